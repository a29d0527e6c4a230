//! Binds an address that overlaps one which this process is about to close, such as
//! `127.0.0.1:6432` after `*:6432`.
//!
//! The kernel refuses this while the old socket listens, unless both sockets have `SO_REUSEPORT`
//! and the same user. They have the option only while the new one is bound. Otherwise a second
//! router of the same user could bind the port unnoticed. (The kernel remembers that the port was
//! shared. A program of the same user that sets `SO_REUSEPORT` may bind it too, and routers set it
//! only here.) The old socket accepts throughout. If the new one cannot be bound, the old one
//! continues unchanged.

use std::io;
use std::os::fd::AsFd;

use socket2::SockRef;

/// Binds while the sockets in `leaving` still listen. `leaving` may be empty. The argument of
/// `bind` says whether to set `SO_REUSEPORT`.
///
/// # Errors
/// The errors of `bind`.
pub(super) fn beside<T: AsFd>(
    leaving: &[impl AsFd],
    bind: impl FnOnce(bool) -> io::Result<T>,
) -> io::Result<T> {
    if leaving.is_empty() {
        return bind(false);
    }
    let share = |shared| {
        leaving
            .iter()
            .try_for_each(|socket| SockRef::from(socket).set_reuse_port(shared))
    };
    let bound = share(true).and_then(|()| bind(true));
    share(false)?;
    let bound = bound?;
    SockRef::from(&bound).set_reuse_port(false)?;
    Ok(bound)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn listen(address: SocketAddr, shares: bool) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shares)?;
        socket.bind(&address.into())?;
        socket.listen(8)?;
        Ok(socket.into())
    }

    #[test]
    fn an_address_that_overlaps_a_closing_one_can_be_bound_by_this_process_only() {
        let whole = listen("0.0.0.0:0".parse().unwrap(), false).unwrap();
        let port = whole.local_addr().unwrap().port();
        let part: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let in_use = |bound: io::Result<TcpListener>| bound.unwrap_err().kind() == io::ErrorKind::AddrInUse;
        assert!(in_use(listen(part, false)));
        let bound = beside(&[&whole], |shares| listen(part, shares)).unwrap();
        // No other socket can share either address now.
        assert!(in_use(listen(part, false)));
        assert!(in_use(listen(SocketAddr::from(([0, 0, 0, 0], port)), false)));
        let client = TcpStream::connect(part).unwrap();
        assert_eq!(
            bound.accept().unwrap().1,
            client.local_addr().unwrap(),
            "the more specific address accepts"
        );
        drop(bound);
        let client = TcpStream::connect(part).unwrap();
        assert_eq!(
            whole.accept().unwrap().1,
            client.local_addr().unwrap(),
            "the old socket still listens"
        );
        // The other way round.
        let bound = beside(&[&whole], |shares| listen(part, shares)).unwrap();
        drop(whole);
        let again = beside(&[&bound], |shares| {
            listen(SocketAddr::from(([0, 0, 0, 0], port)), shares)
        })
        .unwrap();
        drop(bound);
        TcpStream::connect(part).unwrap();
        again.accept().unwrap();
    }

    #[test]
    fn a_port_of_another_program_cannot_be_bound() {
        let (ours, theirs) = (
            listen("127.0.0.1:0".parse().unwrap(), false).unwrap(),
            listen("127.0.0.2:0".parse().unwrap(), false).unwrap(),
        );
        let taken = theirs.local_addr().unwrap();
        assert!(beside(&[&ours], |shares| listen(taken, shares)).is_err());
        assert!(!SockRef::from(&ours).reuse_port().unwrap());
    }
}
