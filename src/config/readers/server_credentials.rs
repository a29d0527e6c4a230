//! `auth.server_credentials`: how sessions log into the servers where the client's own login is not
//! enough.

use super::clusters;
use super::names::user_names;
use crate::config::fields::{Field, Section, Unlock, key_pair};
use crate::config::model::{Auth, CredentialUsers, ServerCredential, ServerSecret};

/// The list `auth.server_credentials`; empty where it is not written. `None` where an entry has an
/// error: the list without it must not cause further errors.
pub(super) fn server_credentials(auth: &Section<'_>) -> Option<Vec<ServerCredential>> {
    let Some(field) = auth.field("server_credentials") else {
        return Some(Vec::new());
    };
    let fields = field.list();
    let credentials: Vec<_> = fields.iter().filter_map(server_credential).collect();
    let everybody = |credential: &ServerCredential| credential.users == CredentialUsers::All;
    if let Some(index) = credentials.iter().position(everybody)
        && credentials.len() == fields.len()
        && index + 1 < fields.len()
    {
        fields[index + 1].error(format!(
            "is never reached: {} is for all users",
            fields[index].path
        ));
    }
    (field.is_list() && credentials.len() == fields.len()).then_some(credentials)
}

fn server_credential(field: &Field<'_>) -> Option<ServerCredential> {
    let section = field.section();
    let users = section.required("users").and_then(|field| users(&field));
    let server_user = match section.field("server_user") {
        Some(field) => Some(field.text()?.to_owned()),
        None => None,
    };
    let secret = secret(field, &section);
    Some(ServerCredential {
        path: field.path.clone(),
        line: field.line,
        users: users?,
        server_user,
        secret: secret?,
    })
}

/// `all`, or a list of names. A role may be named `all`: as an element of a list it is that role.
fn users(field: &Field<'_>) -> Option<CredentialUsers> {
    if !field.is_list() {
        return field.word().map(|_| CredentialUsers::All);
    }
    user_names(field).map(CredentialUsers::Names)
}

/// One way, or none: then the servers let the router in by the cluster's own certificate.
fn secret(field: &Field<'_>, section: &Section<'_>) -> Option<ServerSecret> {
    let file = section.field("password_file");
    let client = section.field("password");
    let pair = section.pair("cert_file", "key_file");
    let with_certificate = section.has("cert_file") || section.has("key_file");
    let ways = usize::from(file.is_some()) + usize::from(client.is_some()) + usize::from(with_certificate);
    if ways > 1 {
        field.error("has more than one of `password_file`, `password` and `cert_file`; keep one of them");
        return None;
    }
    if let Some(field) = section.field("passphrase_command").filter(|_| !with_certificate) {
        field.error("needs `cert_file` and `key_file`");
    }
    if let Some(file) = file {
        return file.secret_file().map(ServerSecret::Password);
    }
    if let Some(client) = client {
        return client.word().map(|_| ServerSecret::ClientPassword);
    }
    if with_certificate {
        let unlock = Unlock::With("passphrase_command", section.field("passphrase_command"));
        let (cert, key) = pair?;
        return key_pair(&cert, &key, &unlock).map(ServerSecret::Certificate);
    }
    Some(ServerSecret::ClusterCertificate)
}

/// A credential without a secret uses the cluster's certificate, so every cluster must have one.
pub(super) fn check_cluster_certificates(
    root: &Section<'_>,
    auth: &Auth,
    clusters: &[clusters::ClusterDraft],
) {
    let bare = |credential: &&ServerCredential| matches!(credential.secret, ServerSecret::ClusterCertificate);
    let without = clusters.iter().find(|cluster| {
        let tls = cluster.server_tls.as_ref();
        tls.is_some_and(|tls| tls.client_certificate.is_none())
    });
    if let (Some(credential), Some(cluster)) = (auth.server_credentials.iter().find(bare), without) {
        root.context().error(
            &credential.path,
            credential.line,
            format!(
                "has no secret, and cluster `{}` has no `server_tls.sslcert` by which the servers could authenticate the router",
                cluster.name
            ),
            Some("give it `password_file`, `cert_file` and `key_file`, or `password: client`".to_owned()),
        );
    }
}
