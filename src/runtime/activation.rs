//! Sockets that systemd listens on and passes at the start (`LISTEN_FDS`, `sd_listen_fds(3)`).

use anyhow::{Context, bail};
use listenfd::ListenFd;

use crate::listen::{BoundPlace, Inheritance, Inherited};

/// Every socket that was passed to this process. systemd still owns the files of Unix sockets.
///
/// # Errors
/// The router cannot listen on one of them.
pub(super) fn sockets() -> anyhow::Result<Inheritance> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let number = index + 3;
        let socket = match passed.take_tcp_listener(index) {
            Ok(Some(listener)) => listener.into(),
            Ok(None) => bail!("descriptor {number} from systemd is missing"),
            Err(_not_tcp) => match passed.take_unix_listener(index) {
                Ok(Some(listener)) => listener.into(),
                _ => {
                    bail!("descriptor {number} from systemd is not a listening TCP or Unix socket")
                }
            },
        };
        let place =
            BoundPlace::of_socket(&socket).with_context(|| format!("descriptor {number} from systemd"))?;
        sockets.push(Inherited {
            place,
            socket,
            file: None,
        });
    }
    Ok(Inheritance::new(sockets))
}
