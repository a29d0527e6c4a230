//! A standby cluster: no member accepts writes, and all follow another cluster.

use super::*;

/// No member accepts writes: all follow another cluster, through db0.
fn standby_cluster(size: usize) -> World {
    let mut world = World::new(size, SourceKind::Patroni);
    for node in &mut world.nodes {
        node.primary = false;
    }
    world.pass_led_by_standby(Duration::from_secs(5));
    world
}

impl World {
    /// Patroni calls the key's holder a standby leader.
    fn pass_led_by_standby(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let mut report = self.view();
            for member in &mut report.members {
                if member.role == Role::Leader {
                    member.role = Role::StandbyLeader;
                }
            }
            self.nodes
                .iter_mut()
                .for_each(|node| node.rest = Rest::Stale(report.clone()));
            self.pass(STEP);
        }
    }
}

#[test]
fn in_a_standby_cluster_lag_is_measured_against_what_its_standby_leader_has() {
    let mut world = standby_cluster(3);
    assert_eq!(world.leader(), None, "no member accepts writes");
    assert!(!world.is_lagging(0) && !world.is_lagging(1));
    world.rate = 4 << 20;
    world.leave_behind(1, 0);
    world.pass_led_by_standby(Duration::from_secs(6));
    assert!(world.is_lagging(1) && !world.is_lagging(0) && !world.is_lagging(2));
    let lag = world.state.snapshot().member(&name(1)).unwrap().measured.unwrap();
    assert!((20 << 20..=24 << 20).contains(&lag.bytes), "{lag:?}");
    // The standby leader is gone: its last position counts for a minute.
    world.apply(&Action::Run(0, false));
    world.pass_led_by_standby(Duration::from_secs(50));
    assert!(!world.is_lagging(2));
    world.pass_led_by_standby(Duration::from_secs(15));
    assert!(world.is_lagging(2));
    // Another one takes its place.
    world.apply(&Action::Key(Some(2)));
    world.pass_led_by_standby(Duration::from_secs(3));
    assert!(!world.is_lagging(2) && world.is_lagging(1));
}

#[test]
fn a_standby_leader_is_no_reference_once_another_member_accepts_writes() {
    let mut world = standby_cluster(3);
    world.rate = 4 << 20;
    world.nodes[0].replayed = Some(world.written);
    world.nodes[2].replayed = Some(world.written);
    world.nodes[1].primary = true;
    world.nodes[1].timeline = 2;
    world.pass_led_by_standby(Duration::from_secs(5));
    assert_eq!(world.leader(), None, "it is not named");
    world.pass_led_by_standby(Duration::from_mins(1));
    assert!(world.is_lagging(2), "its lag is not known");
}
