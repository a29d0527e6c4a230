//! The credential with which a session logs into the servers: the one that the client's own login
//! leaves with the router, or that of `auth.server_credentials` for its user.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Identity;
use super::crypto::hmac_sha256;
use super::md5::Md5Hash;
use super::scram::ClientKey;
use crate::config::{CredentialUsers, KeyPair, Secret, ServerCredential, ServerSecret};

/// A client's proof in its login, as far as it is of use at a server.
#[derive(Debug, Clone)]
pub enum Proof {
    /// By SCRAM: its key, recovered.
    Key(ClientKey),
    /// By a password in clear.
    Password(Secret),
    /// By md5: the role's hash.
    Md5(Md5Hash),
    /// Without a secret that the router could use: by a certificate, an operating system's user, or
    /// not at all.
    Nothing,
}

/// How one session logs into the servers.
#[derive(Debug, Clone)]
pub struct ServerLogin {
    /// The role on the server, where it is not the client's own.
    pub user: Option<Bytes>,
    pub with: ServerProof,
    /// The credential does not come from the client: if the server refuses it, the operator must
    /// fix that, not the client.
    pub is_operators: bool,
}

/// What the router sends to a server.
#[derive(Debug, Clone)]
pub enum ServerProof {
    Key(ClientKey),
    Password(Secret),
    Md5(Md5Hash),
    /// A client certificate in place of the cluster's `sslcert`.
    Certificate(Arc<KeyPair>),
    /// The cluster's `sslcert`, or nothing.
    Nothing,
}

/// Distinguishes the credentials of server logins without containing them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(***)")
    }
}

impl ServerLogin {
    /// `secret` is random and belongs to this process: outside it, a fingerprint says nothing about
    /// a password.
    pub fn fingerprint(&self, secret: &[u8; 32]) -> Fingerprint {
        let of = |kind: &[u8], parts: &[&[u8]]| {
            // All parts but the last have a fixed length for each kind.
            let parts: Vec<&[u8]> = std::iter::once(kind).chain(parts.iter().copied()).collect();
            Fingerprint(*hmac_sha256(secret, &parts))
        };
        match &self.with {
            ServerProof::Key(key) => of(b"k", &[&key.verifier.stored_key, &*key.key]),
            ServerProof::Password(password) => of(b"p", &[password.expose()]),
            ServerProof::Md5(hash) => of(b"m", &[hash.expose()]),
            ServerProof::Certificate(pair) => of(b"c", &[pair.chain.first().map_or(&[], |leaf| leaf)]),
            ServerProof::Nothing => of(b"n", &[]),
        }
    }
}

/// The list `auth.server_credentials`, by user.
#[derive(Debug, Default)]
pub struct ServerCredentials {
    entries: Arc<[ServerCredential]>,
    by_user: HashMap<Bytes, usize>,
    everybody: Option<usize>,
}

impl ServerCredentials {
    pub fn new(entries: Arc<[ServerCredential]>) -> Self {
        let mut by_user = HashMap::new();
        let mut everybody = None;
        for (index, entry) in entries.iter().enumerate() {
            match &entry.users {
                CredentialUsers::All => everybody = everybody.or(Some(index)),
                CredentialUsers::Names(names) => {
                    for name in names {
                        by_user
                            .entry(Bytes::copy_from_slice(name.as_bytes()))
                            .or_insert(index);
                    }
                }
            }
        }
        Self {
            entries,
            by_user,
            everybody,
        }
    }

    /// The first entry for a user, as clients name it.
    pub fn find(&self, user: &[u8]) -> Option<&ServerCredential> {
        let index = self.by_user.get(user).copied();
        // The entry for all is the last of the list, behind all names.
        index.or(self.everybody).map(|index| &self.entries[index])
    }

    /// The entry for every user that no other entry names.
    pub fn for_all(&self) -> Option<&ServerCredential> {
        self.everybody.map(|index| &self.entries[index])
    }

    pub fn entries(&self) -> &[ServerCredential] {
        &self.entries
    }

    /// How `user`, authenticated with `proof`, logs into the servers. `None` without a credential;
    /// rules that would lead to that are refused at load.
    pub fn login(&self, user: &[u8], proof: Proof, identity: Option<Identity>) -> Option<ServerLogin> {
        let has_shown_nothing = matches!(proof, Proof::Nothing);
        if let Some(entry) = self.find(user) {
            let user = entry
                .server_user
                .as_ref()
                .map(|name| Bytes::copy_from_slice(name.as_bytes()));
            let with = match &entry.secret {
                ServerSecret::Password(password) => ServerProof::Password(password.clone()),
                ServerSecret::Certificate(pair) => ServerProof::Certificate(Arc::clone(pair)),
                ServerSecret::ClusterCertificate => ServerProof::Nothing,
                ServerSecret::ClientPassword => own(proof, identity)?,
            };
            let is_operators = !matches!(entry.secret, ServerSecret::ClientPassword) || has_shown_nothing;
            return Some(ServerLogin {
                user,
                with,
                is_operators,
            });
        }
        own(proof, identity).map(|with| ServerLogin {
            user: None,
            with,
            is_operators: has_shown_nothing,
        })
    }
}

/// The credential from the user's own login.
fn own(proof: Proof, identity: Option<Identity>) -> Option<ServerProof> {
    Some(match (proof, identity) {
        // A users file has the password; the key recovered from the client fits the file's salt,
        // not the server's.
        (Proof::Password(password), _) | (_, Some(Identity::Password(password, _))) => {
            ServerProof::Password(password)
        }
        (Proof::Key(key), _) => ServerProof::Key(key),
        (Proof::Md5(hash), _) | (Proof::Nothing, Some(Identity::Md5(hash))) => ServerProof::Md5(hash),
        (Proof::Nothing, Some(Identity::Verifier(_)) | None) => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU32;

    use super::*;
    use crate::auth::scram::Verifier;

    fn entry(users: &[&str], server_user: Option<&str>, secret: ServerSecret) -> ServerCredential {
        ServerCredential {
            path: "auth.server_credentials[0]".to_owned(),
            line: None,
            users: match users {
                [] => CredentialUsers::All,
                names => CredentialUsers::Names(names.iter().map(ToString::to_string).collect()),
            },
            server_user: server_user.map(ToOwned::to_owned),
            secret,
        }
    }

    fn password(text: &str) -> Secret {
        Secret::new(text.as_bytes())
    }

    fn shown(login: Option<ServerLogin>) -> String {
        let Some(login) = login else {
            return "none".to_owned();
        };
        let user = String::from_utf8(login.user.unwrap_or_default().to_vec()).unwrap();
        match login.with {
            ServerProof::Password(secret) => {
                format!("{user}/password {}", String::from_utf8_lossy(secret.expose()))
            }
            ServerProof::Md5(_) => format!("{user}/md5"),
            ServerProof::Key(_) => format!("{user}/key"),
            ServerProof::Certificate(_) => format!("{user}/certificate"),
            ServerProof::Nothing => format!("{user}/nothing"),
        }
    }

    #[test]
    fn the_first_entry_for_a_user_counts() {
        let credentials = ServerCredentials::new(Arc::from([
            entry(
                &["a", "b"],
                Some("reader"),
                ServerSecret::Password(password("one")),
            ),
            entry(&["b", "c"], None, ServerSecret::ClientPassword),
            entry(&[], Some("rest"), ServerSecret::ClusterCertificate),
        ]));
        let login = |user: &str, proof| shown(credentials.login(user.as_bytes(), proof, None));
        assert_eq!(login("a", Proof::Nothing), "reader/password one");
        assert_eq!(
            login("b", Proof::Password(password("own"))),
            "reader/password one"
        );
        assert_eq!(login("c", Proof::Password(password("own"))), "/password own");
        assert_eq!(login("c", Proof::Nothing), "none");
        assert_eq!(login("d", Proof::Password(password("own"))), "rest/nothing");
    }

    #[test]
    fn without_an_entry_the_login_itself_counts() {
        let credentials = ServerCredentials::default();
        let verifier = Arc::new(Verifier::from_password(b"x", b"salt", NonZeroU32::MIN));
        let login = |proof, identity| shown(credentials.login(b"a", proof, identity));
        let known = Identity::Password(password("file"), Arc::clone(&verifier));
        assert_eq!(login(Proof::Nothing, Some(known.clone())), "/password file");
        assert_eq!(
            login(
                Proof::Password(password("own")),
                Some(Identity::Verifier(Arc::clone(&verifier)))
            ),
            "/password own"
        );
        let hash = Md5Hash::parse(b"md5900150983cd24fb0d6963f7d28e17f72").unwrap();
        assert_eq!(login(Proof::Md5(hash.clone()), None), "/md5");
        assert_eq!(login(Proof::Nothing, Some(Identity::Md5(hash))), "/md5");
        assert_eq!(login(Proof::Nothing, Some(Identity::Verifier(verifier))), "none");
        assert_eq!(login(Proof::Nothing, None), "none");
    }
}
