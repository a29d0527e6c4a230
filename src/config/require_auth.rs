//! `server_tls.require_auth`: which authentication a server may ask the router for.

use super::section::Field;

/// A method by the name libpq's `require_auth` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// The server asks for nothing: `trust`, or a client certificate alone.
    None,
    /// In clear.
    Password,
    Md5,
    Scram,
    Gss,
    Sspi,
    Oauth,
}

const NAMES: [(&str, AuthMethod); 7] = [
    ("none", AuthMethod::None),
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("scram-sha-256", AuthMethod::Scram),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("oauth", AuthMethod::Oauth),
];

/// What is said of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Listed: whatever the connection.
    Allowed,
    Refused,
    /// Not spoken of: where it is safe.
    IfSafe,
}

/// libpq's `require_auth`. By default nothing is said of any method.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RequireAuth {
    /// Each where it is safe.
    #[default]
    Safe,
    /// These and no other.
    Only(Vec<AuthMethod>),
    /// Each where it is safe, but none of these (`!`).
    Without(Vec<AuthMethod>),
}

impl RequireAuth {
    pub fn ruling(&self, method: AuthMethod) -> Ruling {
        match self {
            Self::Only(methods) if methods.contains(&method) => Ruling::Allowed,
            Self::Only(_) => Ruling::Refused,
            Self::Without(methods) if methods.contains(&method) => Ruling::Refused,
            Self::Safe | Self::Without(_) => Ruling::IfSafe,
        }
    }

    /// A list, or text with commas as libpq has it.
    pub(super) fn read(field: &Field<'_>) -> Option<Self> {
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
            let Some((_, method)) = NAMES.iter().find(|(known, _)| *known == name) else {
                let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
                field.fault_with(
                    format!("`{}` is not a method", name.escape_debug()),
                    format!("there is: {}; each with `!` before it, or none", names.join(", ")),
                );
                return None;
            };
            if methods.contains(method) {
                field.fault(format!("names `{name}` twice"));
                return None;
            }
            methods.push(*method);
        }
        if !only.is_empty() && !without.is_empty() {
            field.fault("has methods with `!` and without; a list is of one kind");
            return None;
        }
        let required = if without.is_empty() {
            Self::Only(only)
        } else {
            Self::Without(without)
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
            field.fault_with(
                "leaves nothing that the router can answer",
                "it can answer `scram-sha-256`, `md5`, `password` and `none`",
            );
            return None;
        }
        Some(required)
    }
}
