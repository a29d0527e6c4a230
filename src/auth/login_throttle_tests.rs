#![allow(clippy::unwrap_used)]
use std::net::Ipv4Addr;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

fn limit() -> RateLimit {
    RateLimit {
        failures: 3,
        delay: SECOND,
        max_delay: 4 * SECOND,
        refuse_after: 8,
        refuse_for: MINUTE,
        exempt: [].into(),
    }
}

/// A guard, a clock, and attempts by user and last byte of the address.
struct Scene {
    guard: LoginThrottle,
    start: Instant,
    now: Instant,
    /// Secrets given so far.
    guesses: u32,
}

impl Scene {
    fn new(limit: RateLimit) -> Self {
        let now = Instant::now();
        Self {
            guard: LoginThrottle::new(limit),
            start: now,
            now,
            guesses: 0,
        }
    }

    fn attempt(&self, user: &str, address: u8) -> Attempt {
        let address = IpAddr::from([10, 0, 0, address]);
        self.guard.attempt(Some(address), "main", user.as_bytes())
    }

    /// Milliseconds it has to wait, or a refusal.
    fn ask(&mut self, user: &str, address: u8) -> Result<u128, (By, u128)> {
        let attempt = self.attempt(user, address);
        match self.guard.ask(&attempt, self.now + 10 * MINUTE, self.now) {
            ThrottleDecision::Go => Ok(0),
            ThrottleDecision::Wait { until, .. } => Ok((until - self.now).as_millis()),
            ThrottleDecision::Refuse { by, until } => Err((by, (until - self.now).as_millis())),
        }
    }

    /// With another secret each time.
    fn fail(&mut self, times: usize, user: &str, address: u8) -> Vec<Began> {
        let attempt = self.attempt(user, address);
        (0..times)
            .map(|_| {
                let guess = self.guess();
                self.guard.failed(&attempt, Some(guess), self.now)
            })
            .collect()
    }

    fn guess(&mut self) -> Guess {
        self.guesses += 1;
        Guess::of(&self.guesses.to_be_bytes())
    }

    /// With secrets that nobody can tell apart.
    fn fail_by_scram(&mut self, times: usize, user: &str, address: u8) -> Vec<Began> {
        let attempt = self.attempt(user, address);
        (0..times)
            .map(|_| self.guard.failed(&attempt, None, self.now))
            .collect()
    }

    fn succeed(&mut self, user: &str, address: u8) {
        let attempt = self.attempt(user, address);
        self.guard.succeeded(&attempt, self.now);
    }
}

#[test]
fn after_some_failures_a_growing_delay_then_refusal_then_one_more_try() {
    let mut scene = Scene::new(limit());
    for _ in 0..3 {
        assert_eq!(scene.ask("eve", 1), Ok(0));
        scene.fail(1, "eve", 1);
    }
    for expected in [1000, 2000, 4000, 4000, 4000] {
        let waited = scene.ask("eve", 1).unwrap();
        assert_eq!(waited, expected);
        scene.now += SECOND * u32::try_from(waited / 1000).unwrap();
        let began = scene.fail(1, "eve", 1)[0];
        let refused = scene.now - scene.start == 15 * SECOND;
        let refuses = |start: Option<ThrottleStart>| start.is_some_and(ThrottleStart::is_refusal);
        assert_eq!((refuses(began.address), refuses(began.user)), (refused, refused));
    }
    assert_eq!(scene.ask("eve", 1), Err((By::Address, 60_000)));
    assert_eq!(
        scene.ask("other", 1),
        Err((By::Address, 60_000)),
        "whatever its name"
    );
    assert_eq!(scene.ask("eve", 2), Err((By::User, 60_000)), "wherever it is");
    assert_eq!(scene.ask("other", 2), Ok(0));
    scene.now += MINUTE;
    // What is remembered is the worst: one attempt, and its failure begins the next refusal.
    assert_eq!(scene.ask("eve", 1), Ok(4000));
    assert_eq!(
        scene.fail(1, "eve", 1)[0].address,
        Some(ThrottleStart::Refusal(8))
    );
    assert_eq!(scene.ask("eve", 1), Err((By::Address, 60_000)));
}

#[test]
fn attempts_in_parallel_get_slots_one_behind_the_other() {
    let mut scene = Scene::new(limit());
    scene.fail(4, "a", 1);
    let slots: Vec<_> = (0..4)
        .map(|n| scene.ask(&format!("user{n}"), 1).unwrap())
        .collect();
    assert_eq!(slots, [2000, 4000, 6000, 8000]);
    // One that came too late for its login's deadline takes no slot.
    let attempt = scene.attempt("late", 1);
    let decision = scene.guard.ask(&attempt, scene.now + 9 * SECOND, scene.now);
    assert!(
        matches!(decision, ThrottleDecision::Refuse { by: By::Address, until } if until == scene.now + 10 * SECOND)
    );
    assert_eq!(scene.ask("next", 1), Ok(10_000));
    // Whoever waits hears of a refusal that began meanwhile.
    let waiting = scene.attempt("next", 1);
    assert_eq!(scene.guard.refusal(&waiting, scene.now), None);
    scene.fail(4, "a", 1);
    assert!(matches!(
        scene.guard.refusal(&waiting, scene.now),
        Some(ThrottleDecision::Refuse { by: By::Address, .. })
    ));
}

#[test]
fn a_user_is_not_locked_out_where_it_has_logged_in_lately() {
    let mut scene = Scene::new(limit());
    scene.succeed("app", 1);
    for attacker in 100..120 {
        scene.fail(1, "app", attacker);
    }
    assert_eq!(scene.ask("app", 1), Ok(0), "where it is known");
    assert!(
        matches!(scene.ask("app", 2), Err((By::User, _))),
        "where it is not"
    );
    scene.now += 59 * MINUTE;
    scene.succeed("app", 1);
    scene.now += 3599 * SECOND;
    scene.fail(20, "app", 130);
    assert_eq!(scene.ask("app", 1), Ok(0), "each success counts anew");
    scene.now += SECOND;
    assert!(matches!(scene.ask("app", 1), Err((By::User, _))), "long ago");
}

#[test]
fn a_success_behind_a_nat_helps_its_own_user_and_nobody_else() {
    let mut scene = Scene::new(limit());
    scene.fail(8, "eve", 1);
    scene.succeed("app", 1);
    assert_eq!(scene.ask("app", 1), Ok(0));
    assert_eq!(
        scene.ask("admin", 1),
        Err((By::Address, 60_000)),
        "nothing is forgiven"
    );
    // Guesses at the familiar user's own password use up its freedom; successes in between give
    // none of it back.
    scene.fail(2, "app", 1);
    assert_eq!(scene.ask("app", 1), Ok(0));
    scene.succeed("app", 1);
    scene.fail(1, "app", 1);
    assert!(matches!(scene.ask("app", 1), Err((By::Address, _))));
}

/// On a Unix socket no address's limit takes over: whoever else is on this host could guess without
/// end.
#[test]
fn a_success_on_a_unix_socket_frees_nobody_to_guess() {
    let mut scene = Scene::new(limit());
    scene.fail(20, "app", 1);
    let local = scene.guard.attempt(None, "main", b"app");
    scene.guard.succeeded(&local, scene.now);
    let ask = |scene: &mut Scene| scene.guard.ask(&local, scene.now + 10 * MINUTE, scene.now);
    assert_eq!(
        ask(&mut scene),
        ThrottleDecision::Go,
        "no guess from elsewhere counts here"
    );
    for _ in 0..2 {
        let guess = scene.guess();
        scene.guard.failed(&local, Some(guess), scene.now);
    }
    assert_eq!(ask(&mut scene), ThrottleDecision::Go);
    for _ in 0..6 {
        let guess = scene.guess();
        scene.guard.failed(&local, Some(guess), scene.now);
    }
    let decision = ask(&mut scene);
    assert!(
        matches!(decision, ThrottleDecision::Refuse { by: By::User, .. }),
        "{decision:?}"
    );
}

#[test]
fn quiet_forgives_one_failure_at_a_time() {
    let mut scene = Scene::new(limit());
    scene.fail(5, "eve", 1);
    scene.now += 59 * SECOND;
    assert_eq!(scene.ask("x", 1), Ok(4000));
    scene.now += SECOND + 4 * SECOND;
    assert_eq!(scene.ask("x", 1), Ok(2000));
    scene.now += MINUTE;
    assert_eq!(scene.ask("x", 1), Ok(1000));
    scene.now += MINUTE;
    assert_eq!(scene.ask("x", 1), Ok(0));
    assert_eq!(scene.guard.sweep(scene.now), (1, 1));
    assert_eq!(scene.guard.sweep(scene.now + 2 * MINUTE), (0, 0));
    // The time of a refusal is no quiet.
    scene.fail(8, "eve", 2);
    scene.now += MINUTE;
    assert_eq!(scene.guard.sweep(scene.now + 7 * MINUTE), (1, 1));
    assert_eq!(scene.guard.sweep(scene.now + 8 * MINUTE), (0, 0));
}

#[test]
fn addresses_are_ipv4_ones_and_ipv6_networks_and_sockets_have_none() {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    assert_eq!(network(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    assert_eq!(network(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
    let mut scene = Scene::new(limit());
    for last in 0..8 {
        let attempt = scene.guard.attempt(
            Some(ip(&format!("2001:db8::{last}"))),
            "main",
            format!("u{last}").as_bytes(),
        );
        scene.guard.failed(&attempt, None, scene.now);
    }
    let mut refusal = |text: &str| {
        let attempt = scene.guard.attempt(Some(ip(text)), "main", b"x");
        scene.guard.refusal(&attempt, scene.now)
    };
    assert!(refusal("2001:db8::ffff:1").is_some());
    assert_eq!(refusal("2001:db8:0:1::1"), None);
    let local = scene.guard.attempt(None, "main", b"x");
    for _ in 0..8 {
        let guess = scene.guess();
        scene.guard.failed(&local, Some(guess), scene.now);
    }
    assert_eq!(scene.guard.sweep(scene.now).0, 1, "no address is remembered");
    let other = scene.guard.attempt(None, "main", b"y");
    assert_eq!(scene.guard.refusal(&other, scene.now), None);
    assert!(matches!(
        scene.guard.refusal(&local, scene.now),
        Some(ThrottleDecision::Refuse { by: By::User, .. })
    ));
    let elsewhere = scene.guard.attempt(None, "other", b"x");
    assert_eq!(
        scene.guard.refusal(&elsewhere, scene.now),
        None,
        "another cluster's user"
    );
}

#[test]
fn garbage_counts_for_the_address_alone() {
    let mut scene = Scene::new(limit());
    let source = Some(IpAddr::from([10, 0, 0, 1]));
    let began: Vec<_> = (0..9).map(|_| scene.guard.garbage(source, scene.now)).collect();
    let mut expected = [None; 9];
    expected[2] = Some(ThrottleStart::Delay(3));
    expected[7] = Some(ThrottleStart::Refusal(8));
    assert_eq!(began, expected);
    assert_eq!(scene.guard.sweep(scene.now), (1, 0));
    assert_eq!(scene.guard.garbage(None, scene.now), None);
}

#[test]
fn memory_is_bounded_and_the_worst_are_kept() {
    let mut scene = Scene::new(limit());
    scene.fail(8, "worst", 1);
    for number in 0..100_000_u32 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + number));
        let attempt = scene.guard.attempt(Some(address), "main", &number.to_be_bytes());
        let guess = scene.guess();
        scene.guard.failed(&attempt, Some(guess), scene.now);
        scene.guard.succeeded(&attempt, scene.now);
        scene.now += Duration::from_micros(1);
    }
    assert!(scene.guard.addresses.len() <= MOST_OFFENDERS);
    assert!(scene.guard.users.len() <= MOST_OFFENDERS);
    assert!(scene.guard.familiar.len() <= MOST_FAMILIAR);
    assert!(scene.guard.pairs.len() <= MOST_OFFENDERS);
    assert!(scene.guard.secrets.0.len() <= MOST_SECRETS);
    assert!(matches!(scene.ask("worst", 1), Err((By::Address, _))));
    assert!(matches!(scene.ask("worst", 2), Err((By::User, _))));
    let last = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + 99_999));
    let last = scene.guard.attempt(Some(last), "main", &99_999_u32.to_be_bytes());
    assert!(
        scene.guard.addresses.is_known(last.address.unwrap()),
        "the newest stay"
    );
    assert!(scene.guard.familiar.is_known(last.pair));
}

#[test]
fn switched_off_nothing_is_counted() {
    let mut scene = Scene::new(RateLimit {
        failures: 0,
        ..limit()
    });
    scene.fail(100, "eve", 1);
    assert_eq!(scene.ask("eve", 1), Ok(0));
    assert_eq!(scene.guard.sweep(scene.now), (0, 0));
}

#[test]
fn without_a_delay_there_is_only_refusal() {
    let mut scene = Scene::new(RateLimit {
        delay: Duration::ZERO,
        ..limit()
    });
    scene.fail(7, "eve", 1);
    assert_eq!(scene.ask("eve", 1), Ok(0));
    scene.fail(1, "eve", 1);
    assert!(scene.ask("eve", 1).is_err());
}

/// A program that nobody has told of the new password.
#[test]
fn the_same_wrong_secret_is_one_failure() {
    let mut scene = Scene::new(limit());
    let old = Some(Guess::of(b"old"));
    for address in [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8] {
        let attempt = scene.attempt("app", address);
        scene.guard.failed(&attempt, old, scene.now);
        scene.now += SECOND;
    }
    for (user, address) in [("app", 1), ("app", 2), ("other", 1)] {
        assert_eq!(scene.ask(user, address), Ok(0), "{user} {address}");
    }
    // For another user it is a guess, and so is another secret.
    for user in ["a", "b", "c", "d", "e", "f", "g"] {
        let attempt = scene.attempt(user, 1);
        scene.guard.failed(&attempt, old, scene.now);
    }
    assert!(matches!(scene.ask("other", 1), Err((By::Address, _))));
    scene.fail(7, "app", 9);
    assert!(matches!(scene.ask("app", 10), Err((By::User, _))));
}

/// The same program by SCRAM, where every proof is another one.
#[test]
fn one_user_failing_by_scram_keeps_neither_its_neighbours_out_nor_itself_elsewhere() {
    let mut scene = Scene::new(limit());
    let began = scene.fail_by_scram(8, "app", 1);
    assert_eq!(began[2].user_here, Some(ThrottleStart::Delay(3)));
    assert_eq!(began[7].user_here, Some(ThrottleStart::Refusal(8)));
    assert!(
        began
            .iter()
            .all(|began| began.address.is_none() && began.user.is_none())
    );
    assert_eq!(scene.ask("app", 1), Err((By::UserHere, 60_000)));
    assert_eq!(scene.ask("other", 1), Ok(0));
    assert_eq!(scene.ask("app", 2), Ok(0));
    // Many users from one address are no such program, nor is one user from many.
    for number in 0..7 {
        scene.fail_by_scram(1, &format!("user{number}"), 1);
    }
    assert_eq!(scene.ask("other", 1), Err((By::Address, 60_000)));
    for address in 11..18 {
        scene.fail_by_scram(1, "app", address);
    }
    assert_eq!(scene.ask("app", 2), Err((By::User, 60_000)));
}

/// What a program with an old password does by SCRAM, or who guesses: asks, waits, is wrong, and
/// comes again at once.
struct Knocking {
    attempt: Attempt,
    from: Instant,
    waits_until: Option<Instant>,
}

impl Scene {
    fn knocking(&self, user: &str, address: u8, from: Duration) -> Knocking {
        Knocking {
            attempt: self.attempt(user, address),
            from: self.start + from,
            waits_until: None,
        }
    }

    /// How many proofs of each are looked at until then.
    fn knock(&mut self, all: &mut [Knocking], until: Duration) -> Vec<u32> {
        let mut looked_at = vec![0; all.len()];
        while self.now < self.start + until {
            for (knocking, looked_at) in all.iter_mut().zip(&mut looked_at) {
                let decision = match knocking.waits_until {
                    _ if self.now < knocking.from => continue,
                    Some(at) if at > self.now => continue,
                    Some(_) => self.guard.refusal(&knocking.attempt, self.now),
                    None => Some(self.guard.ask(&knocking.attempt, self.now + MINUTE, self.now)),
                };
                knocking.waits_until = None;
                match decision {
                    Some(ThrottleDecision::Wait { until, .. }) => knocking.waits_until = Some(until),
                    Some(ThrottleDecision::Refuse { .. }) => {}
                    None | Some(ThrottleDecision::Go) => {
                        *looked_at += 1;
                        self.guard.failed(&knocking.attempt, None, self.now);
                    }
                }
            }
            self.guard.sweep(self.now);
            self.now += Duration::from_millis(20);
        }
        looked_at
    }
}

fn quick_limit() -> RateLimit {
    RateLimit {
        failures: 3,
        delay: Duration::from_millis(10),
        max_delay: Duration::from_millis(100),
        refuse_after: 5,
        refuse_for: 2 * SECOND,
        exempt: [].into(),
    }
}

/// Whether all addresses begin at once or one more in each `refuse_for`, in which one failure is
/// made good.
#[test]
fn guesses_at_one_user_from_many_addresses_are_bounded_for_the_user() {
    for apart in [Duration::ZERO, 2 * SECOND] {
        for addresses in [6, 24, 96] {
            let mut scene = Scene::new(quick_limit());
            let mut all: Vec<_> = (0..addresses)
                .map(|number| scene.knocking("app", number, apart * u32::from(number)))
                .collect();
            let looked_at: u32 = scene.knock(&mut all, 50 * SECOND).iter().sum();
            // The limits of one address allow about 30.
            assert!(
                (20..=75).contains(&looked_at),
                "{addresses} {apart:?}: {looked_at}"
            );
            let familiar = scene.attempt("app", 200);
            scene.guard.succeeded(&familiar, scene.now);
            assert_eq!(scene.ask("app", 200), Ok(0), "where it gets in");
        }
    }
}

/// Also when guesses from elsewhere have brought the user to its limit meanwhile: that passes.
#[test]
fn one_program_with_an_old_password_keeps_its_user_out_nowhere_else_however_long() {
    for limit in [quick_limit(), limit()] {
        let refuse_for = limit.refuse_for;
        let mut scene = Scene::new(limit);
        let mut program = [scene.knocking("app", 1, Duration::ZERO)];
        for spans in 1..=10 {
            scene.knock(&mut program, refuse_for * spans);
            assert_eq!(scene.ask("app", 2), Ok(0));
            assert_eq!(scene.ask("other", 1), Ok(0));
        }
        for address in 100..120 {
            scene.fail(1, "app", address);
        }
        assert!(matches!(scene.ask("app", 2), Err((By::User, _))));
        let looked_at = scene.knock(&mut program, refuse_for * 30);
        assert!(looked_at[0] > 10);
        assert_eq!(scene.ask("app", 2), Ok(0));
        assert_eq!(scene.ask("other", 1), Ok(0));
    }
}

#[test]
fn exempt_networks_are_neither_counted_nor_limited() {
    let exempt = crate::config::Network::parse("10.0.0.8/31").unwrap();
    let mut scene = Scene::new(RateLimit {
        exempt: [exempt].into(),
        ..limit()
    });
    scene.fail(100, "app", 8);
    for (user, address) in [("app", 8), ("app", 9), ("app", 1), ("other", 8)] {
        assert_eq!(scene.ask(user, address), Ok(0));
    }
    let source = Some(IpAddr::from([10, 0, 0, 9]));
    assert!((0..100).all(|_| scene.guard.garbage(source, scene.now).is_none()));
    assert_eq!(scene.guard.sweep(scene.now), (0, 0));
    // What others do to a user does not reach it either.
    for address in 100..120 {
        scene.fail(1, "app", address);
    }
    assert!(matches!(scene.ask("app", 1), Err((By::User, _))));
    assert_eq!(scene.ask("app", 8), Ok(0));
}
