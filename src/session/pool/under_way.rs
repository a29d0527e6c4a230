//! What a client's requests on their way do to transactions, by their texts: what is known of them
//! where their server connection is lost before they are answered.
//!
//! Guarantees: pure, and small enough to be kept for each connection; a request costs a few
//! comparisons. Whatever is not certain counts as an unknown outcome. It is not taken back when
//! answers come: it begins anew when nothing is owed any more.

use super::state::Command;
use crate::wire::pending::TransactionStatus;

/// Where the next statement runs, if all that is on its way succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// In a transaction of its own.
    #[default]
    Outside,
    /// In a transaction block.
    Block,
    /// In a block that has failed.
    Failed,
}

/// The requests since nothing was owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Requests {
    #[default]
    None,
    /// A Query with BEGIN, outside a transaction.
    Begin,
    Others,
}

/// A text that passes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LongText {
    Query,
    /// Of the unnamed statement.
    Parse,
}

/// How far a batch has come that is a ROLLBACK and nothing else: Parse of the unnamed statement if
/// it is not prepared yet, Bind and, if wanted, Describe of the unnamed portal, Execute, Sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Empty,
    Parsed,
    Bound,
    Described,
    Executed,
    Ended,
    /// It is something else.
    Odd,
}

/// A message of such a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Parse,
    Bind,
    Describe,
    Execute,
}

/// See [`Stage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Batch {
    stage: Stage,
    is_parsed: bool,
    is_described: bool,
}

impl Batch {
    fn goes_on(&mut self, next: Stage) {
        self.stage = match (self.stage, next) {
            (Stage::Empty | Stage::Ended, Stage::Parsed | Stage::Bound) => {
                *self = Self::default();
                next
            }
            (Stage::Parsed, Stage::Bound)
            | (Stage::Bound, Stage::Described)
            | (Stage::Bound | Stage::Described, Stage::Executed)
            | (Stage::Executed, Stage::Ended) => next,
            // A batch of its own follows.
            (_, Stage::Ended) => Stage::Empty,
            _ => Stage::Odd,
        };
        self.is_parsed |= self.stage == Stage::Parsed;
        self.is_described |= self.stage == Stage::Described;
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnderWay {
    place: Place,
    requests: Requests,
    is_unknown: bool,
    begins: bool,
    revives: bool,
    rolls_back: bool,
    is_bound: bool,
    /// Of the unnamed statement, if it was prepared since the last Sync.
    unnamed: Option<Command>,
    /// Of the unnamed portal.
    portal: Command,
    /// A named portal may end a transaction.
    has_odd_portal: bool,
    long: Option<LongText>,
    /// The last batch.
    batch: Batch,
}

impl UnderWay {
    /// Nothing is owed. `status`: what the server said last.
    pub(super) fn rest(&mut self, status: TransactionStatus) {
        let place = match status {
            TransactionStatus::Idle | TransactionStatus::Unknown => Place::Outside,
            TransactionStatus::InTransaction => Place::Block,
            TransactionStatus::Failed => Place::Failed,
        };
        // Portals live as long as their transaction.
        let (portal, has_odd_portal) = match place {
            Place::Outside => (Command::Unknown, false),
            Place::Block | Place::Failed => (self.portal, self.has_odd_portal),
        };
        *self = Self {
            place,
            portal,
            has_odd_portal,
            ..Self::default()
        };
    }

    /// A message of the client is forwarded. Of a long one, `frame` is the beginning. `bound` says
    /// what a Bind is of, where it is given what the unnamed statement does.
    #[inline]
    pub(super) fn forwarded(
        &mut self,
        tag: u8,
        frame: &[u8],
        is_whole: bool,
        bound: impl FnOnce(Option<Command>) -> Command,
    ) {
        let body = frame.get(5..).unwrap_or_default();
        let of_text = |text: &[u8]| {
            if is_whole {
                Command::of(text)
            } else {
                Command::of_start(text)
            }
        };
        let is_unnamed = body.first() == Some(&0);
        match tag {
            b'Q' => {
                self.query(of_text(body.strip_suffix(b"\0").unwrap_or(body)));
                self.long = (!is_whole).then_some(LongText::Query);
            }
            b'P' if is_unnamed => {
                let text = &body[1..];
                let end = text.iter().position(|&byte| byte == 0);
                self.parse_unnamed(of_text(&text[..end.unwrap_or(text.len())]));
                self.long = (!is_whole).then_some(LongText::Parse);
            }
            b'B' => self.bind(is_unnamed, bound(self.unnamed())),
            b'E' => self.execute(is_unnamed),
            b'S' => self.sync(),
            b'F' => self.function_call(),
            b'D' if body == b"P\0" => self.describe_portal(),
            b'P' | b'D' | b'C' => self.others(),
            _ => {}
        }
    }

    /// A Query is forwarded.
    pub(super) fn query(&mut self, command: Command) {
        let is_first = self.requests == Requests::None && !self.is_bound;
        let place = self.place;
        self.run(command);
        self.rolls_back = place != Place::Outside && self.place == Place::Outside && !self.is_unknown;
        self.requests = match (is_first, place, command) {
            (true, Place::Outside, Command::Begin) => Requests::Begin,
            _ => Requests::Others,
        };
        self.batch.stage = match self.batch.stage {
            Stage::Empty | Stage::Ended => Stage::Empty,
            _ => Stage::Odd,
        };
        self.portal = Command::Unknown;
    }

    /// A FunctionCall is forwarded. No function ends a transaction.
    pub(super) fn function_call(&mut self) {
        self.run(Command::Other);
        self.others();
    }

    /// The Parse of an unnamed statement is forwarded.
    pub(super) fn parse_unnamed(&mut self, command: Command) {
        self.unnamed = Some(command);
        self.extended(Stage::Parsed);
    }

    /// More of a long message is forwarded.
    pub(super) fn long_piece(&mut self, piece: &[u8], is_last: bool) {
        let Some(long) = self.long else { return };
        if super::state::goes_on(piece, is_last) {
            match long {
                LongText::Query => self.is_unknown = true,
                LongText::Parse => self.unnamed = Some(Command::Unknown),
            }
        }
        if is_last {
            self.long = None;
        }
    }

    /// What the unnamed statement does, if it was prepared since the last Sync: if that fails, what
    /// follows is skipped.
    pub(super) fn unnamed(&self) -> Option<Command> {
        self.unnamed
    }

    /// A Bind is forwarded.
    pub(super) fn bind(&mut self, is_unnamed_portal: bool, command: Command) {
        if is_unnamed_portal {
            self.portal = command;
        } else {
            self.has_odd_portal |= command != Command::Other;
        }
        self.is_bound = true;
        self.extended(if is_unnamed_portal {
            Stage::Bound
        } else {
            Stage::Odd
        });
    }

    /// A Describe of the unnamed portal is forwarded.
    pub(super) fn describe_portal(&mut self) {
        self.extended(Stage::Described);
    }

    /// An Execute is forwarded.
    pub(super) fn execute(&mut self, is_unnamed_portal: bool) {
        let command = match (is_unnamed_portal, self.has_odd_portal) {
            (true, _) => self.portal,
            (false, false) => Command::Other,
            (false, true) => Command::Unknown,
        };
        self.is_bound = true;
        let place = self.place;
        self.run(command);
        let rolls_back = is_unnamed_portal && place != Place::Outside && self.place == Place::Outside;
        self.extended(if rolls_back { Stage::Executed } else { Stage::Odd });
    }

    /// A Sync is forwarded.
    pub(super) fn sync(&mut self) {
        self.unnamed = None;
        self.extended(Stage::Ended);
    }

    /// Another message of the extended protocol is forwarded.
    pub(super) fn others(&mut self) {
        self.extended(Stage::Odd);
    }

    fn extended(&mut self, stage: Stage) {
        self.requests = Requests::Others;
        self.rolls_back = false;
        self.batch.goes_on(stage);
    }

    fn run(&mut self, command: Command) {
        match (self.place, command) {
            (Place::Outside, Command::Begin) => {
                self.begins = true;
                self.place = Place::Block;
            }
            // Outside a block it may be committed on its own.
            (_, Command::Unknown) | (Place::Outside, _) => self.is_unknown = true,
            (Place::Block, Command::Commit) => {
                self.is_unknown = true;
                self.place = Place::Outside;
            }
            (Place::Block, Command::Rollback)
            // COMMIT of what has failed is a ROLLBACK.
            | (Place::Failed, Command::Commit | Command::Rollback) => self.place = Place::Outside,
            (Place::Failed, Command::RollbackTo) => {
                self.revives = true;
                self.place = Place::Block;
            }
            (Place::Block, Command::Begin | Command::RollbackTo | Command::Other)
            | (Place::Failed, Command::Begin | Command::Other) => {}
        }
    }

    /// Something may be committed: the outcome of the whole is unknown.
    pub(super) fn is_unknown(&self) -> bool {
        self.is_unknown
    }

    /// A transaction block is begun.
    pub(super) fn begins(&self) -> bool {
        self.begins
    }

    /// A block that had failed goes on behind a ROLLBACK TO SAVEPOINT.
    pub(super) fn revives(&self) -> bool {
        self.revives
    }

    /// The last request is a Query that rolls the open block back, and nothing else.
    pub(super) fn rolls_back(&self) -> bool {
        self.rolls_back && !self.is_unknown
    }

    /// The last request is a batch that rolls the open block back, and nothing else: the answers to
    /// its messages without the Sync, of which the last `owed` are owed.
    pub(super) fn rolls_back_in_batch(&self, owed: usize) -> Option<impl Iterator<Item = Step>> {
        let Batch {
            stage,
            is_parsed,
            is_described,
        } = self.batch;
        let steps = [
            is_parsed.then_some(Step::Parse),
            Some(Step::Bind),
            is_described.then_some(Step::Describe),
            Some(Step::Execute),
        ];
        let count = steps.iter().flatten().count();
        let done = count.checked_sub(owed)?;
        let is_one = stage == Stage::Ended && !self.is_unknown;
        is_one.then(|| steps.into_iter().flatten().skip(done))
    }

    /// One Query with BEGIN is all there is.
    pub(super) fn is_lone_begin(&self) -> bool {
        self.requests == Requests::Begin
    }

    /// A portal was made or executed.
    pub(super) fn is_bound(&self) -> bool {
        self.is_bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransactionStatus::{Failed, Idle, InTransaction};

    /// `q:COMMIT`: a Query. `x:COMMIT`: Parse, Bind and Execute of the unnamed statement. `S`:
    /// Sync, `F`: FunctionCall, `p:`: only the Parse.
    fn after(status: TransactionStatus, requests: &str) -> UnderWay {
        let mut way = UnderWay::default();
        way.rest(status);
        for request in requests.split(' ').filter(|request| !request.is_empty()) {
            match request.split_once(':') {
                Some(("q", text)) => way.query(Command::of(text.replace('_', " ").as_bytes())),
                Some((kind, text)) => {
                    way.parse_unnamed(Command::of(text.replace('_', " ").as_bytes()));
                    if kind == "x" {
                        let command = way.unnamed().unwrap_or_default();
                        way.bind(true, command);
                        way.execute(true);
                    }
                }
                None if request == "S" => way.sync(),
                None => way.function_call(),
            }
        }
        way
    }

    #[test]
    fn an_outcome_is_known_only_where_everything_is_rolled_back() {
        for (status, requests, is_unknown) in [
            (Idle, "", false),
            (Idle, "S", false),
            (Idle, "p:INSERT S", false),
            (Idle, "q:INSERT", true),
            (Idle, "q:COMMIT", true),
            (Idle, "q:CALL", true),
            (Idle, "x:INSERT S", true),
            (Idle, "F", true),
            (Idle, "q:BEGIN", false),
            (Idle, "q:BEGIN q:INSERT x:INSERT F S", false),
            (Idle, "q:BEGIN q:INSERT q:COMMIT", true),
            (Idle, "x:BEGIN x:INSERT S", false),
            (Idle, "x:INSERT x:BEGIN S", true),
            (Idle, "q:BEGIN q:ROLLBACK", false),
            (Idle, "q:BEGIN q:ROLLBACK q:INSERT", true),
            (InTransaction, "q:INSERT", false),
            (InTransaction, "q:CALL F x:DO S", false),
            (InTransaction, "q:INSERT;SELECT", true),
            (InTransaction, "q:END", true),
            (InTransaction, "x:COMMIT S", true),
            (InTransaction, "q:PREPARE_TRANSACTION_'x'", true),
            (InTransaction, "q:EXECUTE_x", true),
            (InTransaction, "q:ROLLBACK", false),
            (InTransaction, "q:ROLLBACK q:COMMIT", true),
            (InTransaction, "q:ROLLBACK_TO_a", false),
            (InTransaction, "q:ROLLBACK_TO_a q:COMMIT", true),
            (InTransaction, "q:ROLLBACK_AND_CHAIN", true),
            (Failed, "q:INSERT", false),
            (Failed, "q:COMMIT", false),
            (Failed, "q:ROLLBACK_TO_a q:INSERT", false),
            (Failed, "q:ROLLBACK_TO_a q:COMMIT", true),
        ] {
            let way = after(status, requests);
            assert_eq!(way.is_unknown(), is_unknown, "{status:?} {requests}");
        }
    }

    #[test]
    fn a_begin_is_alone_where_nothing_else_is_on_its_way() {
        for (status, requests, is_alone) in [
            (Idle, "q:BEGIN", true),
            (Idle, "q:START_TRANSACTION_READ_ONLY", true),
            (Idle, "q:BEGIN S", false),
            (Idle, "S q:BEGIN", false),
            (Idle, "q:BEGIN q:SELECT", false),
            (Idle, "q:BEGIN;SELECT", false),
            (Idle, "x:BEGIN", false),
            (InTransaction, "q:BEGIN", false),
        ] {
            let way = after(status, requests);
            assert_eq!(way.is_lone_begin(), is_alone, "{status:?} {requests}");
        }
    }

    #[test]
    fn only_the_last_query_is_a_rollback_that_can_be_answered() {
        for (status, requests, rolls_back) in [
            (InTransaction, "q:ROLLBACK", true),
            (InTransaction, "q:INSERT q:ABORT;", true),
            (InTransaction, "q:ROLLBACK q:SELECT", false),
            (InTransaction, "q:ROLLBACK S", false),
            (InTransaction, "q:COMMIT", false),
            (InTransaction, "x:ROLLBACK S", false),
            (Failed, "q:COMMIT", true),
            (Idle, "q:ROLLBACK", false),
        ] {
            let way = after(status, requests);
            assert_eq!(way.rolls_back(), rolls_back, "{status:?} {requests}");
        }
    }

    #[test]
    fn a_portal_of_an_earlier_batch_is_what_it_was_bound_to() {
        let mut way = UnderWay::default();
        way.rest(InTransaction);
        way.bind(true, Command::Commit);
        way.rest(InTransaction);
        way.execute(true);
        assert!(way.is_unknown());
        way.rest(InTransaction);
        way.bind(false, Command::Commit);
        way.rest(InTransaction);
        way.execute(false);
        assert!(way.is_unknown());
        way.rest(Idle);
        way.rest(InTransaction);
        way.execute(false);
        assert!(!way.is_unknown(), "portals end with their transaction");
    }

    #[test]
    fn a_long_text_is_unknown_where_more_may_follow() {
        for (pieces, is_unknown) in [
            (["1", "2;"], false),
            (["1;", "2"], true),
            (["1", "2; COMMIT"], true),
        ] {
            let mut way = UnderWay::default();
            way.rest(InTransaction);
            way.query(Command::Other);
            way.long = Some(LongText::Query);
            way.long_piece(pieces[0].as_bytes(), false);
            way.long_piece(pieces[1].as_bytes(), true);
            assert_eq!(way.is_unknown(), is_unknown, "{pieces:?}");
            // A Bind.
            way.rest(InTransaction);
            way.long_piece(b"; COMMIT", true);
            assert!(!way.is_unknown());
        }
    }
}
