//! `clusters.NAME.server_tls`.

use rustls::pki_types::ServerName;

use crate::config::fields::{Field, Section, Unlock, key_pair};
use crate::config::model::{
    AuthMethod, ChannelBinding, RequireAuth, Ruling, ServerTls, SslMode, SslNegotiation, Words,
};

pub(super) fn server_tls(cluster: &Section<'_>) -> Option<ServerTls> {
    let section = cluster.section("server_tls");
    let sslmode = section.one_of("sslmode");
    let sslnegotiation = sslnegotiation(&section, sslmode);
    let channel_binding = channel_binding(&section, sslmode);
    let root = section.field("sslrootcert");
    let mut roots = None;
    match (&root, root.as_ref().and_then(Field::text)) {
        (Some(field), Some(text)) if field.has_word(text) => {
            // As libpq: any public authority is accepted, so only the name distinguishes servers.
            if sslmode.is_some_and(|mode| mode != SslMode::VerifyFull) {
                field.error("`system` needs `sslmode: verify-full`");
            }
        }
        (Some(field), Some(_)) => roots = field.roots(),
        _ => {
            if sslmode == Some(SslMode::VerifyCa) && root.is_none() {
                section.error("`sslmode: verify-ca` needs `sslrootcert`, a file");
            }
        }
    }
    let pair = section.pair("sslcert", "sslkey");
    let command = section.field("sslpassphrase_command");
    if sslmode == Some(SslMode::Disable) {
        for key in ["sslrootcert", "sslcert", "sslkey", "sslpassphrase_command"] {
            if let Some(field) = section.field(key) {
                field.error("has no effect with `sslmode: disable`");
            }
        }
    }
    if let (None, Some(command)) = (section.field("sslkey"), &command) {
        command.error("has no effect without `sslkey`");
    }
    let unlock = Unlock::With("sslpassphrase_command", command);
    let client_certificate = pair.and_then(|(cert, key)| key_pair(&cert, &key, &unlock));
    let server_name = server_name(&section, sslmode);
    let require_auth = require_auth(&section, channel_binding);
    Some(ServerTls {
        server_name: server_name?,
        require_auth: require_auth?,
        sslmode: sslmode?,
        sslnegotiation: sslnegotiation?,
        channel_binding: channel_binding?,
        roots,
        client_certificate,
    })
}

fn sslnegotiation(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<SslNegotiation> {
    let negotiation = section.one_of("sslnegotiation");
    // Direct TLS leaves nothing to fall back to.
    let weak = matches!(sslmode, Some(SslMode::Disable | SslMode::Allow | SslMode::Prefer));
    if let Some(field) = section
        .field("sslnegotiation")
        .filter(|_| negotiation == Some(SslNegotiation::Direct) && weak)
    {
        field.error("`direct` needs `sslmode: require`, `verify-ca` or `verify-full`");
    }
    negotiation
}

/// The inner `None`: the member's host.
#[expect(
    clippy::option_option,
    reason = "the outer one is an error, as everywhere here"
)]
fn server_name(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<Option<String>> {
    let Some(field) = section.field("server_name") else {
        return Some(None);
    };
    let name = field.text()?;
    if sslmode == Some(SslMode::Disable) {
        field.error("has no effect with `sslmode: disable`");
        return None;
    }
    if !matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))) {
        field.error_with_hint(
            "is not a DNS name",
            "give the name in the servers' certificates, as in `db.example.org`",
        );
        return None;
    }
    Some(Some(name.to_owned()))
}

fn channel_binding(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<ChannelBinding> {
    let binding = section.one_of("channel_binding");
    if let Some(field) = section
        .field("channel_binding")
        .filter(|_| binding == Some(ChannelBinding::Require) && sslmode == Some(SslMode::Disable))
    {
        field.error("`require` needs TLS, and `sslmode` is `disable`");
    }
    binding
}

fn require_auth(section: &Section<'_>, binding: Option<ChannelBinding>) -> Option<RequireAuth> {
    let Some(field) = section.field("require_auth") else {
        return Some(RequireAuth::Safe);
    };
    let required = required_methods(&field)?;
    if binding == Some(ChannelBinding::Require) && required.ruling(AuthMethod::Scram) == Ruling::Refused {
        field.error("leaves out `scram-sha-256`, which `channel_binding: require` needs");
        return None;
    }
    Some(required)
}

/// A list, or text with commas as libpq has it.
fn required_methods(field: &Field<'_>) -> Option<RequireAuth> {
    let words: Vec<&str> = if field.is_list() {
        let fields = field.list();
        fields.iter().map(Field::text).collect::<Option<_>>()?
    } else {
        field.text()?.split(',').collect()
    };
    let (mut only, mut without) = (Vec::new(), Vec::new());
    for word in words {
        let word = word.trim();
        let (name, methods) = match word.strip_prefix('!') {
            Some(name) => (name, &mut without),
            None => (word, &mut only),
        };
        let Some(method) = AuthMethod::from_word(name) else {
            field.error_with_hint(
                format!("`{}` is not a method", name.escape_debug()),
                format!(
                    "the methods are: {}; write `!` before each of them, or before none",
                    AuthMethod::WORDS.join(", ")
                ),
            );
            return None;
        };
        if methods.contains(&method) {
            field.error(format!("names `{name}` twice"));
            return None;
        }
        methods.push(method);
    }
    if !only.is_empty() && !without.is_empty() {
        field.error("mixes methods with and without `!`; use only one kind");
        return None;
    }
    let required = if without.is_empty() {
        RequireAuth::Only(only)
    } else {
        RequireAuth::Without(without)
    };
    let answered = [
        AuthMethod::None,
        AuthMethod::Password,
        AuthMethod::Md5,
        AuthMethod::Scram,
    ];
    if answered
        .iter()
        .all(|method| required.ruling(*method) == Ruling::Refused)
    {
        field.error_with_hint(
            "allows no method that the router supports",
            "the router supports `scram-sha-256`, `md5`, `password` and `none`",
        );
        return None;
    }
    Some(required)
}
