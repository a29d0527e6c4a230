//! Transactions, as drivers begin and end them on their own. Nothing here can be rolled back: a
//! block is what a session that only reads sees of one. Orders are refused in it, as PostgreSQL
//! refuses `VACUUM`.

use pgwire::messages::response::TransactionStatus;

use super::tokens::Token;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Savepoints of one block.
const MOST_SAVEPOINTS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TransactionCommand {
    /// `true`: START TRANSACTION, by its tag.
    Begin {
        is_start: bool,
    },
    Commit {
        chains: bool,
    },
    Rollback {
        chains: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

impl TransactionCommand {
    /// `None`: the statement is none of these.
    pub(super) fn read(tokens: &[Token]) -> Option<Self> {
        let (first, rest) = tokens.split_first()?;
        let Token::Word(first) = first else {
            return None;
        };
        let word = |place: usize, word: &str| rest.get(place).is_some_and(|token| token.is(word));
        // What may stand behind COMMIT and ROLLBACK.
        let behind = usize::from(word(0, "work") || word(0, "transaction"));
        let chains = match &rest[behind..] {
            [] => Some(false),
            [and, chain] if and.is("and") && chain.is("chain") => Some(true),
            [and, no, chain] if and.is("and") && no.is("no") && chain.is("chain") => Some(false),
            _ => None,
        };
        let named = |from: usize| match &rest[from.min(rest.len())..] {
            [name @ (Token::Word(_) | Token::Quoted(_))] => name.text().map(str::to_owned),
            _ => None,
        };
        match first.as_str() {
            "begin" if are_modes(&rest[behind..]) => Some(Self::Begin { is_start: false }),
            "start" if word(0, "transaction") && are_modes(&rest[1..]) => {
                Some(Self::Begin { is_start: true })
            }
            "commit" | "end" => chains.map(|chains| Self::Commit { chains }),
            "rollback" if word(behind, "to") => {
                let from = behind + 1 + usize::from(word(behind + 1, "savepoint") && rest.len() > behind + 2);
                named(from).map(Self::RollbackTo)
            }
            "rollback" | "abort" => chains.map(|chains| Self::Rollback { chains }),
            "savepoint" => named(0).map(Self::Savepoint),
            "release" => named(usize::from(word(0, "savepoint") && rest.len() > 1)).map(Self::Release),
            _ => None,
        }
    }

    pub(super) fn tag(&self) -> &'static str {
        match self {
            Self::Begin { is_start: true } => "START TRANSACTION",
            Self::Begin { is_start: false } => "BEGIN",
            Self::Commit { .. } => "COMMIT",
            Self::Rollback { .. } | Self::RollbackTo(_) => "ROLLBACK",
            Self::Savepoint(_) => "SAVEPOINT",
            Self::Release(_) => "RELEASE",
        }
    }

    /// Whether it is carried out in a block that has failed.
    pub(super) fn is_exit(&self) -> bool {
        matches!(
            self,
            Self::Commit { .. } | Self::Rollback { .. } | Self::RollbackTo(_)
        )
    }
}

/// Words of the modes of a transaction. All of them say how it isolates and whether it writes, and
/// nothing here depends on that.
pub(super) fn are_modes(tokens: &[Token]) -> bool {
    tokens.iter().all(|token| match token {
        Token::Word(word) => matches!(
            word.as_str(),
            "isolation"
                | "level"
                | "serializable"
                | "repeatable"
                | "read"
                | "committed"
                | "uncommitted"
                | "only"
                | "write"
                | "not"
                | "deferrable"
        ),
        Token::Sign(sign) => *sign == ',',
        _ => false,
    })
}

/// What became of a command.
#[derive(Debug)]
pub(super) struct Turned {
    pub(super) status: TransactionStatus,
    pub(super) tag: &'static str,
    pub(super) warning: Option<(SqlState, &'static str)>,
}

/// The savepoints of a session's block.
#[derive(Debug, Default)]
pub(super) struct Savepoints(Vec<String>);

impl Savepoints {
    /// Carries a command out.
    ///
    /// # Errors
    /// What PostgreSQL says then.
    pub(super) fn turn(
        &mut self,
        command: &TransactionCommand,
        status: TransactionStatus,
    ) -> Result<Turned, ErrorReply> {
        use TransactionStatus::{Error, Idle, Transaction};
        let mut turned = Turned {
            status,
            tag: command.tag(),
            warning: None,
        };
        match command {
            TransactionCommand::Begin { .. } => {
                if status == Idle {
                    self.0.clear();
                } else {
                    let text = "there is already a transaction in progress";
                    turned.warning = Some((SqlState::ACTIVE_SQL_TRANSACTION, text));
                }
                turned.status = Transaction;
            }
            TransactionCommand::Commit { chains } | TransactionCommand::Rollback { chains } => {
                if status == Idle && *chains {
                    return Err(only_in_block(if turned.tag == "COMMIT" {
                        "COMMIT AND CHAIN"
                    } else {
                        "ROLLBACK AND CHAIN"
                    }));
                }
                if status == Idle {
                    let text = "there is no transaction in progress";
                    turned.warning = Some((SqlState::NO_ACTIVE_SQL_TRANSACTION, text));
                }
                if status == Error {
                    turned.tag = "ROLLBACK";
                }
                self.0.clear();
                turned.status = if *chains { Transaction } else { Idle };
            }
            TransactionCommand::Savepoint(_) if status == Idle => return Err(only_in_block("SAVEPOINT")),
            TransactionCommand::Release(_) if status == Idle => {
                return Err(only_in_block("RELEASE SAVEPOINT"));
            }
            TransactionCommand::RollbackTo(_) if status == Idle => {
                return Err(only_in_block("ROLLBACK TO SAVEPOINT"));
            }
            TransactionCommand::Savepoint(name) => {
                if self.0.len() >= MOST_SAVEPOINTS {
                    return Err(ErrorReply::error(
                        SqlState::PROGRAM_LIMIT_EXCEEDED,
                        format!("a transaction with the console has at most {MOST_SAVEPOINTS} savepoints"),
                    ));
                }
                self.0.push(name.clone());
            }
            TransactionCommand::Release(name) => {
                let place = self.place(name)?;
                self.0.truncate(place);
            }
            TransactionCommand::RollbackTo(name) => {
                let place = self.place(name)?;
                self.0.truncate(place + 1);
                turned.status = Transaction;
            }
        }
        Ok(turned)
    }

    fn place(&self, name: &str) -> Result<usize, ErrorReply> {
        let place = self.0.iter().rposition(|own| own == name);
        place.ok_or_else(|| {
            ErrorReply::error(
                SqlState::INVALID_SAVEPOINT,
                format!("savepoint \"{name}\" does not exist"),
            )
        })
    }
}

fn only_in_block(command: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::NO_ACTIVE_SQL_TRANSACTION,
        format!("{command} can only be used in transaction blocks"),
    )
}

/// A block has failed: nothing is carried out before its end.
pub(super) fn failed() -> ErrorReply {
    ErrorReply::error(
        SqlState::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// An order between BEGIN and COMMIT, or with other statements in a query.
pub(super) fn not_in_block(command: &str) -> ErrorReply {
    ErrorReply::error(
        SqlState::ACTIVE_SQL_TRANSACTION,
        format!("{command} cannot run inside a transaction block"),
    )
    .hint("An order takes effect at once and cannot be rolled back. Put the driver into autocommit mode, or send COMMIT first.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tokens::tokens;
    use super::*;

    fn read(sql: &str) -> Option<TransactionCommand> {
        TransactionCommand::read(&tokens(sql).unwrap())
    }

    #[test]
    fn the_commands_are_read_in_all_their_forms() {
        for sql in [
            "begin",
            "BEGIN WORK",
            "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "BEGIN READ ONLY",
        ] {
            assert_eq!(
                read(sql),
                Some(TransactionCommand::Begin { is_start: false }),
                "{sql}"
            );
        }
        let start = "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, NOT DEFERRABLE";
        assert_eq!(read(start), Some(TransactionCommand::Begin { is_start: true }));
        for sql in ["COMMIT", "end", "COMMIT TRANSACTION", "END WORK AND NO CHAIN"] {
            assert_eq!(
                read(sql),
                Some(TransactionCommand::Commit { chains: false }),
                "{sql}"
            );
        }
        for sql in ["ROLLBACK", "abort", "ROLLBACK WORK"] {
            assert_eq!(
                read(sql),
                Some(TransactionCommand::Rollback { chains: false }),
                "{sql}"
            );
        }
        assert_eq!(
            read("ROLLBACK AND CHAIN"),
            Some(TransactionCommand::Rollback { chains: true })
        );
        assert_eq!(
            read("savepoint A"),
            Some(TransactionCommand::Savepoint("a".into()))
        );
        for sql in ["RELEASE \"A\"", "RELEASE SAVEPOINT \"A\""] {
            assert_eq!(read(sql), Some(TransactionCommand::Release("A".into())), "{sql}");
        }
        for sql in ["ROLLBACK TO s", "ROLLBACK WORK TO SAVEPOINT s"] {
            assert_eq!(
                read(sql),
                Some(TransactionCommand::RollbackTo("s".into())),
                "{sql}"
            );
        }
        assert_eq!(
            read("SAVEPOINT savepoint"),
            Some(TransactionCommand::Savepoint("savepoint".into()))
        );
        for sql in [
            "BEGIN x",
            "START",
            "COMMIT PREPARED 'x'",
            "ROLLBACK TO",
            "SAVEPOINT",
            "SAVEPOINT a b",
            "SELECT 1",
            "",
        ] {
            assert_eq!(read(sql), None, "{sql}");
        }
    }

    #[test]
    fn savepoints_end_as_in_postgresql() {
        use TransactionStatus::{Error, Idle, Transaction};
        let mut savepoints = Savepoints::default();
        let mut turn = |sql: &str, status: TransactionStatus| {
            let turned = savepoints.turn(&read(sql).unwrap(), status);
            turned
                .map(|turned| (turned.status, turned.tag))
                .map_err(|reply| reply.code.to_string())
        };
        assert_eq!(turn("SAVEPOINT a", Idle), Err("25P01".to_owned()));
        assert_eq!(turn("BEGIN", Idle), Ok((Transaction, "BEGIN")));
        for name in ["a", "b", "a"] {
            let sql = format!("SAVEPOINT {name}");
            assert_eq!(turn(&sql, Transaction), Ok((Transaction, "SAVEPOINT")));
        }
        assert_eq!(turn("ROLLBACK TO a", Error), Ok((Transaction, "ROLLBACK")));
        assert_eq!(turn("RELEASE a", Transaction), Ok((Transaction, "RELEASE")));
        assert_eq!(turn("ROLLBACK TO a", Error), Ok((Transaction, "ROLLBACK")));
        assert_eq!(turn("RELEASE b", Transaction), Err("3B001".to_owned()));
        assert_eq!(turn("COMMIT", Error), Ok((Idle, "ROLLBACK")));
        assert_eq!(turn("BEGIN", Idle), Ok((Transaction, "BEGIN")));
        assert_eq!(turn("ROLLBACK TO a", Transaction), Err("3B001".to_owned()));
        for _ in 0..64 {
            assert!(turn("SAVEPOINT x", Transaction).is_ok());
        }
        assert_eq!(turn("SAVEPOINT x", Transaction), Err("54000".to_owned()));
    }
}
