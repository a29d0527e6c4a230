//! What a service manager is told: the socket of systemd's `sd_notify` protocol.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// A socket that a router is told of by its environment.
pub struct ServiceManager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl ServiceManager {
    /// Waits up to `patience` for each message.
    pub fn listen(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        Self { socket, dir }
    }

    pub fn env(&self) -> Vec<(String, String)> {
        let path = self.dir.path().join("notify");
        vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())]
    }

    /// There is no message that has not been heard.
    pub fn is_told_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let received = self.socket.recv(&mut [0; 256]);
        self.socket.set_nonblocking(false).unwrap();
        received.is_err()
    }

    /// The next message.
    #[track_caller]
    pub fn told(&self) -> String {
        let mut buffer = [0; 256];
        let length = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}
