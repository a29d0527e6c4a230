//! A users file in the form of PgBouncer's `userlist.txt`: one user a line, `"name" "secret"`, a
//! quote inside doubled, the rest of the line ignored. Lines that are empty, or start with `;` or
//! `#`, are comments (PgBouncer does not know `#`).
//!
//! A secret is a SCRAM verifier or an md5 hash as in `pg_authid`, or a password.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Identity;
use super::md5::Md5Hash;
use super::scram::{DEFAULT_ITERATIONS, MAX_PASSWORD, MockSecret, Verifier, VerifierError};
use crate::config::{Secret, without_mark};
use crate::wire::startup::MAX_NAME;
use crate::wire::text::is_unsafe;

/// The users of one file.
#[derive(Debug, Default)]
pub struct UserList {
    users: HashMap<Box<[u8]>, Identity>,
}

/// One error of a users file. It names the user where there is one, and never repeats a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {kind}")]
pub struct UserListError {
    /// From 1.
    pub line: usize,
    pub kind: UserListErrorKind,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserListErrorKind {
    #[error("expected \"user\" \"secret\", both in double quotes")]
    Form,
    #[error("a double quote is not closed on this line")]
    Unclosed,
    #[error("the user name is empty, longer than {MAX_NAME} bytes or contains a zero byte")]
    Name,
    #[error("user \"{user}\" has an empty password; PostgreSQL accepts none, remove the line")]
    Empty { user: String },
    #[error("the password of user \"{user}\" is longer than {MAX_PASSWORD} bytes or contains a zero byte")]
    Password { user: String },
    #[error("user \"{user}\": {error}")]
    Verifier { user: String, error: VerifierError },
    #[error("user \"{user}\" is already on line {first}")]
    Duplicate { user: String, first: usize },
}

impl UserList {
    /// Reads a whole file, or reports every error in it.
    ///
    /// Each password costs about a millisecond, to compute a verifier: read large files off the
    /// data path. Its salt is the one that an unknown user of this name has, so that a client
    /// cannot see whether a user is in the file.
    pub fn parse(contents: &Secret, mock: &MockSecret) -> Result<Self, Vec<UserListError>> {
        let mut users = HashMap::new();
        let mut seen: HashMap<Box<[u8]>, usize> = HashMap::new();
        let mut errors = Vec::new();
        let iterations = NonZeroU32::new(DEFAULT_ITERATIONS).expect("4096 is not zero");
        for (index, text) in without_mark(contents.expose())
            .split(|&byte| byte == b'\n')
            .enumerate()
        {
            let line = index + 1;
            let text = text.trim_ascii();
            if matches!(text.first(), None | Some(b';' | b'#')) {
                continue;
            }
            let entry = UserRecord::parse(text).and_then(|entry| {
                if let Some(&first) = seen.get(&*entry.user) {
                    return Err(UserListErrorKind::Duplicate {
                        user: shown(&entry.user),
                        first,
                    });
                }
                seen.insert(entry.user.clone(), line);
                let stored = entry.stored()?;
                Ok((entry, stored))
            });
            match entry {
                Ok((entry, stored)) => {
                    let identity = match stored {
                        Stored::Verifier(verifier) => Identity::Verifier(Arc::new(verifier)),
                        Stored::Md5(hash) => Identity::Md5(hash),
                        // After an error the result is not used: compute nothing more.
                        Stored::Password if !errors.is_empty() => continue,
                        Stored::Password => {
                            let salt = mock.salt(&entry.user);
                            let verifier = Verifier::from_password(&entry.secret, &salt, iterations);
                            Identity::Password(Secret::new(entry.secret.to_vec()), Arc::new(verifier))
                        }
                    };
                    users.insert(entry.user, identity);
                }
                Err(kind) => errors.push(UserListError { line, kind }),
            }
        }
        if errors.is_empty() {
            Ok(Self { users })
        } else {
            Err(errors)
        }
    }

    /// The user as it stands in the startup packet, byte for byte.
    pub fn find(&self, user: &[u8]) -> Option<&Identity> {
        self.users.get(user)
    }

    pub fn len(&self) -> usize {
        self.users.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

struct UserRecord {
    user: Box<[u8]>,
    secret: Zeroizing<Vec<u8>>,
}

enum Stored {
    Verifier(Verifier),
    Md5(Md5Hash),
    Password,
}

impl UserRecord {
    fn parse(line: &[u8]) -> Result<Self, UserListErrorKind> {
        let (user, rest) = quoted(line)?;
        let (secret, _ignored) = quoted(rest.trim_ascii_start())?;
        if user.is_empty() || user.len() > MAX_NAME || user.contains(&0) {
            return Err(UserListErrorKind::Name);
        }
        Ok(Self {
            user: user.as_slice().into(),
            secret,
        })
    }

    fn stored(&self) -> Result<Stored, UserListErrorKind> {
        let user = || shown(&self.user);
        if self.secret.is_empty() {
            return Err(UserListErrorKind::Empty { user: user() });
        }
        if let Some(hash) = Md5Hash::parse(&self.secret) {
            return Ok(Stored::Md5(hash));
        }
        if self.secret.starts_with(b"SCRAM-SHA-256$") {
            return std::str::from_utf8(&self.secret)
                .map_err(|_| VerifierError::Form)
                .and_then(Verifier::parse)
                .map(Stored::Verifier)
                .map_err(|error| UserListErrorKind::Verifier { user: user(), error });
        }
        if self.secret.len() > MAX_PASSWORD || self.secret.contains(&0) {
            return Err(UserListErrorKind::Password { user: user() });
        }
        Ok(Stored::Password)
    }
}

/// A string in double quotes at the start of `text`, and what follows it.
fn quoted(text: &[u8]) -> Result<(Zeroizing<Vec<u8>>, &[u8]), UserListErrorKind> {
    let Some((b'"', mut rest)) = text.split_first() else {
        return Err(UserListErrorKind::Form);
    };
    // Never grows beyond this, so that no copy of a secret stays behind unwiped.
    let mut value = Zeroizing::new(Vec::with_capacity(rest.len()));
    loop {
        match rest {
            [b'"', b'"', tail @ ..] => {
                value.push(b'"');
                rest = tail;
            }
            [b'"', tail @ ..] => return Ok((value, tail)),
            [byte, tail @ ..] => {
                value.push(*byte);
                rest = tail;
            }
            [] => return Err(UserListErrorKind::Unclosed),
        }
    }
}

/// A name for a message: at most 63 characters, no control or format characters.
fn shown(user: &[u8]) -> String {
    String::from_utf8_lossy(user)
        .chars()
        .take(63)
        .map(|c| {
            if is_unsafe(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<UserList, Vec<String>> {
        UserList::parse(&Secret::new(text.as_bytes()), &MockSecret::new(None))
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    const VERIFIER: &str = "SCRAM-SHA-256$4096:8P7FSGLy2sNDJgWP8lmsaA==$jrIVfxqOLsiCAyDSdZ+FBuybVcmcxB0MXLCW6d7tE/M=:fWZIbs7wubKmoZ5vfpGgJ3y9MKsVS8J88lPztXtfFI8=";

    #[test]
    fn reads_what_pgbouncer_reads() {
        let text = format!(
            "; a comment\n# another\n\n  \"app\"\t\"{VERIFIER}\" \"ignored\" also\r\n\"we\"\"ird\" \"pa\"\"ss;#\"\n\"last\"\"\" \"x\""
        );
        let list = parse(&text).unwrap();
        assert_eq!(list.len(), 3);
        let Some(Identity::Verifier(verifier)) = list.find(b"app") else {
            panic!("a verifier")
        };
        assert_eq!(*verifier.to_text(), VERIFIER);
        let Some(Identity::Password(password, verifier)) = list.find(b"we\"ird") else {
            panic!("a password")
        };
        assert_eq!(password.expose(), b"pa\"ss;#");
        let computed = Verifier::from_password(
            b"pa\"ss;#",
            &verifier.salt,
            NonZeroU32::new(verifier.iterations).unwrap(),
        );
        assert_eq!(**verifier, computed);
        assert!(list.find(b"last\"").is_some());
        assert!(list.find(b"App").is_none());
    }

    #[test]
    fn a_password_keeps_the_salt_the_unknown_user_had() {
        let mock = MockSecret::new(None);
        let read = || UserList::parse(&Secret::new(*b"\"a\" \"secret\""), &mock).unwrap();
        assert_eq!(
            read().find(b"a").unwrap().verifier().unwrap().salt,
            mock.salt(b"a")
        );
        assert_eq!(
            read().find(b"a").unwrap().verifier(),
            read().find(b"a").unwrap().verifier()
        );
    }

    #[test]
    fn reports_all_faults_with_their_lines_and_no_secret() {
        let text = "\"a\" \"hidden1\"\n\"b\" hidden2\nc hidden3\n\"d\" \"hidden4\n\"\" \"hidden5\"\n\"e\" \"\"\n\
                    \"f\" \"hid\0den\"\n\"g\" \"SCRAM-SHA-256$1:hidden6\"\n\"a\" \"hidden7\"\n\
                    \"h\" \"hid\0den\"\n\"i\"";
        let errors = parse(text).unwrap_err();
        let lines: Vec<_> = errors
            .iter()
            .map(|error| error.split_once(':').unwrap().0)
            .collect();
        assert_eq!(
            lines,
            [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
                .map(|line| format!("line {line}"))
                .to_vec()
        );
        assert!(
            errors[5].contains("the password of user \"f\" is longer"),
            "{}",
            errors[5]
        );
        assert!(
            errors[7].contains("user \"a\" is already on line 1"),
            "{}",
            errors[7]
        );
        assert!(errors.iter().all(|error| !error.contains("hid")));
        assert!(!format!("{:?}", parse("\"a\" \"hidden\"")).contains("hidden"));
    }

    #[test]
    fn a_name_that_no_role_can_have_is_refused() {
        assert!(parse(&format!("\"{}\" \"x\"", "n".repeat(63))).is_ok());
        assert!(parse(&format!("\"{}\" \"x\"", "n".repeat(64))).is_err());
    }

    #[test]
    fn a_duplicate_of_a_faulty_line_is_a_duplicate() {
        let errors = parse("\"a\" \"\"\n\"a\" \"x\"").unwrap_err();
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn an_md5_hash_is_one() {
        let list = parse("\"f\" \"md5900150983cd24fb0d6963f7d28e17f72\"").unwrap();
        let expected = Md5Hash::parse(b"md5900150983cd24fb0d6963f7d28e17f72").unwrap();
        assert_eq!(list.find(b"f"), Some(&Identity::Md5(expected)));
        let shouted = parse("\"f\" \"md5900150983CD24FB0D6963F7D28E17F72\"").unwrap();
        assert!(
            matches!(shouted.find(b"f"), Some(Identity::Password(..))),
            "PostgreSQL takes it for a password too"
        );
    }

    #[test]
    fn an_odd_password_that_starts_like_md5_is_a_password() {
        assert!(matches!(
            parse("\"a\" \"md5isdead\"").unwrap().find(b"a"),
            Some(Identity::Password(..))
        ));
    }
}
