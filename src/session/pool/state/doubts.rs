//! What may have changed since a session's state was last confirmed.

use super::calls::kinds_of;
use super::question::{Asked, GUARDED, Question};
use super::settings::{is_custom, is_restorable};
use super::suspicion::{Kinds, MAX_NAMES, Suspicion};
use super::{Confirmed, CustomName, Hint, PinReason, Pins, Reported, StateOptions};

/// Reported parameters between two boundaries. PostgreSQL 19 has 15.
const MAX_REPORTED: usize = 32;

/// What may have changed since the last boundary at which the session's state was confirmed.
/// Belongs to a lease; while a session is pinned it may hold doubts over many boundaries.
#[derive(Debug, Default)]
pub struct Doubts {
    /// From texts, and from the names of bound parameters.
    texts: Suspicion,
    /// From tags: grown, and what may only have been taken away.
    grown: Kinds,
    removed: Kinds,
    /// Tags since the last boundary.
    tags: Tags,
    /// Names of reported parameters that the server has told anew, in lower case.
    reported: Vec<Box<str>>,
    /// How often the question has failed.
    unanswered: u8,
    /// A transaction has ended since, so that only its server can tell what is doubted.
    is_committed: bool,
    custom_names: Vec<CustomName>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tags {
    set: bool,
    reset: bool,
    prepare: bool,
    discard_all: bool,
    discard_sequences: bool,
    /// Any command.
    any: bool,
    /// Any but BEGIN.
    worked: bool,
}

impl Doubts {
    /// Of the client: a Query with such a text is forwarded.
    #[inline]
    pub fn query(&mut self, hint: &Hint) {
        if let Some(suspicion) = hint.suspicion() {
            self.take(suspicion, None);
        }
    }

    /// Of the client: a Bind of a statement with such a text is forwarded. `body` is the body of
    /// the Bind as far as it has come, for names that are parameters: `set_config($1, $2, false)`.
    #[inline]
    pub fn bind(&mut self, hint: &Hint, body: &[u8]) {
        if let Some(suspicion) = hint.suspicion() {
            self.take(suspicion, Some(body));
        }
    }

    /// Of the client: a `FunctionCall` of the function with this OID is forwarded. Whether it reads
    /// the number of a sequence.
    pub fn call(&mut self, function: u32) -> bool {
        let kinds = kinds_of(function);
        self.texts.kinds.add(kinds);
        kinds.has(Kinds::SEQUENCE)
    }

    #[cold]
    fn take(&mut self, suspicion: &Suspicion, bind: Option<&[u8]>) {
        self.texts.merge(suspicion);
        match bind {
            Some(body) => self.texts.bound(&suspicion.parameters, body),
            // SQL PREPARE: the names come with EXECUTE.
            None if suspicion.parameters.iter().any(|parameter| !parameter.is_local) => {
                self.texts.unknown(true);
            }
            None => {}
        }
        let texts = std::mem::take(&mut self.texts);
        let names = texts.names.iter().chain(&texts.local_custom);
        for name in names.filter(|name| is_custom(name)) {
            if self.custom_names.contains(name) {
            } else if self.custom_names.len() < 2 * MAX_NAMES {
                self.custom_names.push(name.clone());
            } else {
                self.grown.add(Kinds::UNKNOWN_NAME);
            }
        }
        self.texts = texts;
    }

    /// An answer to the client: `CommandComplete`.
    #[inline]
    pub fn tag(&mut self, tag: &[u8]) {
        self.tags.any = true;
        self.tags.worked |= tag.first() != Some(&b'B');
        match tag {
            [b'S', ..] if tag.len() > 3 => {}
            [b'U', b'P', ..] | [b'D', b'E', b'L', ..] | [b'C', b'O', ..] => {}
            [b'S' | b'R' | b'P' | b'D' | b'L' | b'U' | b'C', ..] => self.telling_tag(tag),
            _ => {}
        }
    }

    fn telling_tag(&mut self, tag: &[u8]) {
        match tag {
            b"SET" => self.tags.set = true,
            b"RESET" => self.tags.reset = true,
            b"PREPARE" => {
                self.tags.prepare = true;
                self.grown.add(Kinds::PREPARE);
            }
            b"DO" if self.texts.kinds.has(Kinds::LONG) => self.grown.add(Kinds::UNKNOWN_NAME),
            b"LISTEN" => self.grown.add(Kinds::LISTEN),
            b"LOAD" => self.grown.add(Kinds::LOAD),
            b"DECLARE CURSOR" => self.grown.add(Kinds::CURSOR),
            b"DEALLOCATE" | b"DEALLOCATE ALL" => self.removed.add(Kinds::PREPARE),
            b"UNLISTEN" => self.removed.add(Kinds::LISTEN),
            b"CLOSE CURSOR" | b"CLOSE CURSOR ALL" => self.removed.add(Kinds::CURSOR),
            b"DISCARD TEMP" => self.removed.add(Kinds::TEMPORARY),
            b"DISCARD SEQUENCES" => self.tags.discard_sequences = true,
            b"DISCARD ALL" => {
                self.tags.discard_all = true;
                self.tags.discard_sequences = true;
                self.tags.reset = true;
                self.removed.add(Kinds::PINS.and(Kinds::ROLE));
            }
            // Also a view or function that comes to depend on a temporary table.
            _ if tag.starts_with(b"CREATE ") => self.grown.add(Kinds::TEMPORARY),
            _ if tag.starts_with(b"DROP ") => self.removed.add(Kinds::TEMPORARY),
            _ => {}
        }
    }

    /// An answer to the client, or unasked: `ParameterStatus`, with its name. Not for those that
    /// the router's own statements cause.
    pub fn parameter(&mut self, name: &[u8]) {
        let lower = name.to_ascii_lowercase();
        if let b"in_hot_standby" | b"server_version" | b"server_encoding" | b"integer_datetimes" = &lower[..]
        {
            return;
        }
        let name = std::str::from_utf8(&lower).unwrap_or_default();
        let is_known = self.reported.iter().any(|known| **known == *name);
        if !is_known && self.reported.len() < MAX_REPORTED {
            self.reported.push(name.into());
        }
    }

    /// The server is idle: a transaction has ended, though this need not be a boundary.
    #[inline]
    pub fn committed(&mut self, options: &StateOptions) {
        self.is_committed |= !self.is_empty() || options.verify_always || !options.names.is_empty();
    }

    /// What the session has is known without its server connection: what is doubted was not
    /// committed, and is as it was before where that connection has ended.
    pub fn end_with_connection(&self) -> bool {
        !self.is_committed
    }

    /// What may have been left on the connection that ends neither with the transaction nor with an
    /// answer to a question, so that the client relies on it there.
    pub fn leave_behind(&self) -> Pins {
        let kinds = self.texts.kinds.and(self.grown);
        let mut pins = Pins::NONE;
        for (kind, reason) in [
            (Kinds::PREPARE, PinReason::Prepare),
            (Kinds::ADVISORY, PinReason::AdvisoryLock),
            (Kinds::LOAD, PinReason::Load),
            (Kinds::SEED, PinReason::Seed),
            (Kinds::SEQUENCE, PinReason::Sequence),
            (Kinds::EXTENSION, PinReason::Extension),
        ] {
            if kinds.has(kind) {
                pins.insert(reason);
            }
        }
        pins
    }

    /// Since the last boundary a command other than BEGIN was answered.
    pub fn has_worked(&self) -> bool {
        self.tags.worked
    }

    /// Nothing may have changed. (At a boundary, [`Doubts::settle`] may still ask, as options say.)
    #[inline]
    pub fn is_empty(&self) -> bool {
        let tags = self.tags;
        !(tags.set || tags.reset || tags.discard_sequences)
            && self.grown.is_empty()
            && self.removed.is_empty()
            && self.reported.is_empty()
            && self.unanswered == 0
            && self.texts.is_empty()
    }

    /// The search path may have changed since the last confirmed boundary: what is parsed now must
    /// not be shared.
    pub fn is_path_open(&self) -> bool {
        let kinds = self.texts.kinds.and(self.grown);
        let names = self.texts.names.iter().chain(&self.reported);
        self.tags.reset
            || self.tags.set && !self.texts.has_set
            || kinds.has(Kinds::ANY_SETTING.and(Kinds::ROLE).and(Kinds::TEMPORARY))
            || names.into_iter().any(|name| **name == *"search_path")
    }

    /// Custom names that this session has touched since the last call, also by SET LOCAL or in a
    /// transaction that was rolled back: from now on they read as an empty string on this
    /// connection, where a fresh one has none.
    pub fn take_custom_names(&mut self) -> Vec<CustomName> {
        std::mem::take(&mut self.custom_names)
    }

    /// At a boundary. Either settles everything without the server (then `confirmed` is right
    /// afterwards), or says what must be asked. `login` is what the connection reported at its
    /// login, `now` what it has reported last.
    ///
    /// A session that stays pinned in any case is not asked; its doubts are kept.
    #[inline]
    #[must_use]
    pub fn settle(
        &mut self,
        confirmed: &mut Confirmed,
        login: &Reported,
        now: &Reported,
        options: &StateOptions,
    ) -> Option<Question> {
        let may_execute = confirmed.pins.contains(PinReason::Prepare);
        if self.is_empty() && !may_execute && !options.verify_always && options.names.is_empty() {
            self.tags = Tags::default();
            return None;
        }
        self.look(confirmed, login, now, options)
    }

    fn look(
        &mut self,
        confirmed: &mut Confirmed,
        login: &Reported,
        now: &Reported,
        options: &StateOptions,
    ) -> Option<Question> {
        if self.tags.any
            && let Some(prepared) = confirmed.prepared.clone().suspicion()
        {
            self.take(prepared, None);
        }
        if self.tags.set && !self.texts.has_set {
            // Nobody saw its text.
            self.texts.unknown(true);
        }
        self.removed.add(std::mem::take(&mut self.texts.removed));
        self.explain_reported(confirmed, login, now);
        self.pin(confirmed, login, now);
        if self.stays_pinned(confirmed.pins, options) {
            // A later boundary asks for what is not settled now.
            let Tags { reset, .. } = self.tags;
            self.keep_prepared(confirmed);
            self.texts.has_set = false;
            self.tags = Tags {
                reset,
                ..Tags::default()
            };
            return None;
        }
        let asked = self.asked(confirmed, login, now, options);
        if asked.is_empty() {
            self.settled(confirmed);
            return None;
        }
        Some(Question::new(asked))
    }

    /// A reported parameter that no text names has changed: by a function, or by a reload of the
    /// server's configuration. Only the source of the value tells. One that only changed within the
    /// transaction (SET LOCAL) is what it was.
    fn explain_reported(&mut self, confirmed: &Confirmed, login: &Reported, now: &Reported) {
        let settings = &confirmed.settings;
        for name in std::mem::take(&mut self.reported) {
            let before = settings.get(&name).or_else(|| login.get(name.as_bytes()));
            let is_same = now.get(name.as_bytes()) == before;
            let is_explained =
                self.texts.names.contains(&name) || self.tags.reset && settings.get(&name).is_some();
            match &*name {
                "is_superuser" | "session_authorization" => {
                    if !is_same || settings.get("role").is_some() {
                        self.grown.add(Kinds::ROLE);
                    }
                }
                _ if is_same || is_explained => {}
                _ => self.texts.unknown(false),
            }
        }
    }

    /// Pins that need no question. Their kinds are settled with that.
    fn pin(&mut self, confirmed: &mut Confirmed, login: &Reported, now: &Reported) {
        let kinds = self.texts.kinds.and(self.grown);
        let mut pins = confirmed.pins;
        if self.tags.discard_sequences {
            pins.set(PinReason::Sequence, false);
        }
        for (kind, reason) in [
            (Kinds::SEED, PinReason::Seed),
            (Kinds::SEQUENCE, PinReason::Sequence),
            (Kinds::EXTENSION, PinReason::Extension),
            (Kinds::LOAD, PinReason::Load),
            (Kinds::UNKNOWN_NAME, PinReason::Setting),
        ] {
            if kinds.has(kind) {
                pins.insert(reason);
            }
        }
        let settled = Kinds::SEED
            .and(Kinds::SEQUENCE)
            .and(Kinds::EXTENSION)
            .and(Kinds::LOAD)
            .and(Kinds::UNKNOWN_NAME);
        self.texts.kinds = self.texts.kinds.without(settled);
        self.grown = self.grown.without(settled);
        let user = b"session_authorization";
        pins.set(PinReason::SessionAuthorization, login.get(user) != now.get(user));
        confirmed.pins = pins;
    }

    fn stays_pinned(&self, pins: Pins, options: &StateOptions) -> bool {
        let may_go = Pins::ASKED.only(pins);
        let stays = pins != may_go;
        let is_removed = PINNED
            .iter()
            .any(|&(kind, reason)| self.removed.has(kind) && pins.contains(reason));
        stays
            || !may_go.is_empty()
                && !is_removed
                && !options.verify_always
                && !pins.contains(PinReason::Unanswered)
    }

    /// What has to be asked. What reported parameters tell is settled here.
    fn asked(
        &self,
        confirmed: &mut Confirmed,
        login: &Reported,
        now: &Reported,
        options: &StateOptions,
    ) -> Asked {
        let kinds = self.texts.kinds.and(self.grown);
        let pinned = PINNED
            .iter()
            .filter(|&&(_, reason)| confirmed.pins.contains(reason))
            .fold(Kinds::NONE, |all, &(kind, _)| all.and(kind));
        let mut asked = Asked {
            pins: kinds.only(Kinds::PINS).and(self.removed.only(pinned)),
            any_setting: kinds.has(Kinds::ANY_SETTING),
            role: kinds.has(Kinds::ROLE.and(Kinds::ANY_SETTING)),
            ..Asked::default()
        };
        if options.verify_always {
            asked.pins = Kinds::PINS;
            asked.any_setting = true;
            asked.role = true;
        }
        let mut names: Vec<Box<str>> = self.texts.names.clone();
        names.extend(options.names.iter().cloned());
        let settings = confirmed.settings.clone();
        for (name, _) in settings.iter() {
            let is_asked = if name == "role" {
                asked.role |= self.tags.reset;
                false
            } else {
                self.tags.reset || asked.any_setting && is_custom(name)
            };
            if is_asked {
                names.push(name.into());
            }
        }
        names.retain(|name| {
            is_restorable(name)
                && (asked.any_setting && !is_custom(name) || !told(confirmed, name, login, now))
        });
        if asked.any_setting {
            // Their sources are listed; only custom ones are not.
            names.retain(|name| is_custom(name));
        }
        let is_guarded = |name: &str| GUARDED.contains(&name);
        let has_guarded =
            settings.iter().any(|(name, _)| is_guarded(name)) || names.iter().any(|name| is_guarded(name));
        if asked.any_setting || has_guarded && !asked.pins.is_empty() {
            names.extend(GUARDED.iter().map(|&name| name.into()));
        }
        names.sort_unstable();
        names.dedup();
        asked.names = names;
        asked.is_plain = self.unanswered % 2 == 1;
        asked
    }

    /// An EXECUTE of what SQL `PREPARE` made may do what its text says.
    fn keep_prepared(&self, confirmed: &mut Confirmed) {
        if self.tags.prepare {
            let mut all = confirmed.prepared.suspicion().cloned().unwrap_or_default();
            all.merge(&self.texts);
            all.has_set = false;
            confirmed.prepared = Hint::from(all);
        }
    }

    /// Everything is known again.
    pub(super) fn settled(&mut self, confirmed: &mut Confirmed) {
        self.keep_prepared(confirmed);
        if !confirmed.pins.contains(PinReason::Prepare) {
            confirmed.prepared = Hint::CLEAN;
        }
        self.clear();
    }

    /// The question failed.
    pub(super) fn unanswered(&mut self, confirmed: &mut Confirmed) {
        confirmed.pins.insert(PinReason::Unanswered);
        self.keep_prepared(confirmed);
        self.unanswered = self.unanswered.wrapping_add(1).max(1);
    }

    /// The connection was lost, or the state is known in another way: forgets everything but
    /// [`Doubts::take_custom_names`].
    pub fn clear(&mut self) {
        *self = Self {
            custom_names: std::mem::take(&mut self.custom_names),
            ..Self::default()
        };
    }
}

/// Kinds and pins that a question finds.
pub(super) const PINNED: [(Kinds, PinReason); 5] = [
    (Kinds::PREPARE, PinReason::Prepare),
    (Kinds::LISTEN, PinReason::Listen),
    (Kinds::TEMPORARY, PinReason::TemporaryObject),
    (Kinds::CURSOR, PinReason::HoldCursor),
    (Kinds::ADVISORY, PinReason::AdvisoryLock),
];

/// Whether the value of a parameter is known from the server's reports; then `confirmed` has it. A
/// value that is not ASCII came in the client's encoding, so it is asked for.
fn told(confirmed: &mut Confirmed, name: &str, login: &Reported, now: &Reported) -> bool {
    let (Some(base), Some(value)) = (login.get(name.as_bytes()), now.get(name.as_bytes())) else {
        return false;
    };
    if !base.is_ascii() || !value.is_ascii() {
        return false;
    }
    let deviation = (value != base).then_some(value);
    if !confirmed.settings.set(name, deviation) {
        confirmed.pins.insert(PinReason::Setting);
    }
    true
}

#[cfg(test)]
mod tests;
