/// Why there is no server connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("not built yet")]
    Todo,
}
