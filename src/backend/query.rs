//! A small simple-query client for the service account: probes and look-ups.

use tokio::time::Instant;

use super::{ConnectError, ServerConnection};

/// One row: text values, `None` for NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// Runs one statement and returns its rows (at most `max_rows`, at most 1 MiB), reading up to ReadyForQuery. After
/// an `Err` other than one the server reported, the connection must not be used again.
pub async fn simple_query(
    _connection: &mut ServerConnection,
    _sql: &str,
    _max_rows: usize,
    _deadline: Instant,
) -> Result<Vec<Row>, ConnectError> {
    todo!()
}
