//! Which member this copy of the router runs beside.
//!
//! A request never waits for a look-up: one task per cluster resolves the members' hosts and
//! publishes the answer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::snapshot::{Member, MemberName, Snapshot};
use crate::config::LocalMember;
use crate::names;

/// How long the result of a look-up counts. The router checks the addresses of its host as often.
const REFRESH: Duration = Duration::from_secs(30);
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// How many hosts of one cluster are looked up; later members are never the local one.
const MAX_HOSTS: usize = 128;

/// The local member, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Local {
    Member(MemberName),
    /// `local_member: none`.
    Off,
    NotYetKnown,
    NoneHere,
    SeveralHere,
}

impl Local {
    /// For the caller. Must not contain the word that balancers look for.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Member(_) => "no member of the cluster has the name that local_member gives",
            Self::Off => "local_member is none: ask for /node/NAME/",
            Self::NotYetKnown => "the router has not looked up the members' hosts yet",
            Self::NoneHere => {
                "no member has an address of this host: set local_member, or ask for /node/NAME/"
            }
            Self::SeveralHere => "several members have addresses of this host: set local_member",
        }
    }
}

/// The answer that needs no look-up.
pub(super) fn initial(configured: &LocalMember) -> Local {
    match configured {
        LocalMember::Name(name) => Local::Member(MemberName::new(name.as_str())),
        LocalMember::None => Local::Off,
        LocalMember::Auto => Local::NotYetKnown,
    }
}

/// Keeps `out` up to date for `local_member: auto`. It ends with the token, and when nothing can
/// publish or read any more.
pub(super) async fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    out: watch::Sender<Local>,
    shutdown: CancellationToken,
) {
    let mut cache: HashMap<String, (Instant, bool)> = HashMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let local = look(&snapshot, &mut cache).await;
        out.send_if_modified(|known| {
            let changed = *known != local;
            *known = local;
            changed
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = out.closed() => return,
            () = tokio::time::sleep(REFRESH) => {}
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

async fn look(snapshot: &Snapshot, cache: &mut HashMap<String, (Instant, bool)>) -> Local {
    if snapshot.members.is_empty() {
        cache.clear();
        return Local::NotYetKnown;
    }
    cache.retain(|host, _| snapshot.members.iter().any(|member| member.host == *host));
    let mut here = Vec::new();
    for member in snapshot.members.iter().take(MAX_HOSTS) {
        if is_here(member, cache).await {
            here.push(member);
        }
    }
    match here.as_slice() {
        [] => Local::NoneHere,
        [member] => Local::Member(member.name.clone()),
        _ => Local::SeveralHere,
    }
}

async fn is_here(member: &Member, cache: &mut HashMap<String, (Instant, bool)>) -> bool {
    let known = cache.get(&member.host).copied();
    let literal = member.host.parse::<IpAddr>().ok();
    if let (None, Some((at, here))) = (literal, known)
        && at.elapsed() < REFRESH
    {
        return here;
    }
    let found = match literal {
        Some(ip) => is_own_address(ip),
        // A name server that is unavailable for a moment does not make the member remote.
        None => match names::addresses(&member.host, Instant::now() + LOOK_UP_TIMEOUT).await {
            Ok(addresses) => any_own(addresses.into_iter().map(is_own_address)),
            Err(_) => None,
        },
    };
    let here = found.unwrap_or_else(|| known.is_some_and(|(_, here)| here));
    cache.insert(member.host.clone(), (Instant::now(), here));
    here
}

/// Whether one of the addresses belongs to this host; `None` if no address is known to, and one is
/// uncertain.
fn any_own(addresses: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut any = Some(false);
    for own in addresses {
        match own {
            Some(true) => return own,
            Some(false) => {}
            None => any = None,
        }
    }
    any
}

/// Whether this is an address of this host. The kernel shows it by the source address that it
/// chooses: towards an own address it is the same address. (A test by `bind` would be wrong:
/// `ip_nonlocal_bind`, common on hosts with floating addresses, allows any address.) Nothing is
/// sent. `None` if the kernel has no route: a host that has lost its network is still the same
/// host.
fn is_own_address(ip: IpAddr) -> Option<bool> {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return Some(true);
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Some(false);
    }
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect((ip, 9)).and_then(|()| socket.local_addr()))
        .ok()
        .map(|local| local.ip() == ip)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::http::fixture::{member, snapshot};
    use super::*;

    #[test]
    fn own_addresses() {
        let own = |address: &str| is_own_address(address.parse().unwrap());
        for address in ["127.0.0.1", "127.0.0.11", "::ffff:127.0.0.1"] {
            assert_eq!(own(address), Some(true), "{address}");
        }
        // TEST-NET-3, the address of no host. Without a network the answer is uncertain.
        assert_ne!(own("203.0.113.1"), Some(true));
        assert_eq!(own("0.0.0.0"), Some(false));
        assert_eq!(own("224.0.0.1"), Some(false));
    }

    /// A host whose network is cut keeps its local member.
    #[test]
    fn what_cannot_be_told_changes_nothing() {
        let any = |of: &[Option<bool>]| any_own(of.iter().copied());
        assert_eq!(any(&[]), Some(false));
        assert_eq!(any(&[Some(false), Some(false)]), Some(false));
        assert_eq!(any(&[Some(false), None]), None);
        assert_eq!(any(&[None, Some(false)]), None);
        assert_eq!(any(&[None, Some(true)]), Some(true));
    }

    #[tokio::test]
    async fn the_one_member_with_an_own_address_is_local() {
        let mut cache = HashMap::new();
        let mut value = snapshot();
        assert_eq!(look(&value, &mut cache).await, Local::NotYetKnown);
        for (name, host) in [("a", "203.0.113.1"), ("b", "localhost"), ("c", "203.0.113.3")] {
            value.members.push(member(name));
            value.members.last_mut().unwrap().host = host.into();
        }
        assert_eq!(
            look(&value, &mut cache).await,
            Local::Member(MemberName::new("b"))
        );
        value.members[0].host = "127.0.0.1".into();
        assert_eq!(look(&value, &mut cache).await, Local::SeveralHere);
        value.members[0].host = "203.0.113.1".into();
        value.members[1].host = "203.0.113.2".into();
        assert_eq!(look(&value, &mut cache).await, Local::NoneHere);
        assert!(!cache.contains_key("localhost"), "hosts that left are forgotten");
    }

    #[tokio::test]
    async fn a_change_of_the_members_is_followed() {
        let (members, snapshots) = watch::channel(Arc::new(snapshot()));
        let (out, mut local) = watch::channel(initial(&LocalMember::Auto));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(follow(snapshots, out, shutdown.clone()));
        let mut value = snapshot();
        value.members.push(member("here"));
        value.members[0].host = "127.0.0.1".into();
        members.send(Arc::new(value)).unwrap();
        local
            .wait_for(|local| *local == Local::Member(MemberName::new("here")))
            .await
            .unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }

    #[test]
    fn no_hint_contains_the_word_that_balancers_look_for() {
        for local in [
            Local::Member(MemberName::new("true")),
            Local::Off,
            Local::NotYetKnown,
            Local::NoneHere,
            Local::SeveralHere,
        ] {
            assert!(!local.hint().contains("true"));
        }
    }
}
