//! The directories that rules of clients' logins ask: each server of each line with `ldap`.

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::cluster::examine::Finding;
use crate::config::Config;
use crate::frontend::auth_policy::AuthPolicy;
use crate::frontend::ldap::try_servers;

pub(super) async fn findings(config: &Config, policy: Option<&AuthPolicy>) -> Vec<Finding> {
    let Some(policy) = policy else {
        return Vec::new();
    };
    // A login waits no longer for it either.
    let deadline = Instant::now() + config.auth.login_timeout;
    let tried = policy.rules.iter().enumerate().map(async |(index, rule)| {
        let Some(directory) = policy.directory(index) else {
            return Vec::new();
        };
        let place = rule.place.to_string();
        let tried = try_servers(directory, &policy.ldap_tls, deadline).await;
        tried
            .into_iter()
            .map(|(server, answer)| finding(format!("ldap: {place}: {server}"), answer))
            .collect()
    });
    join_all(tried).await.concat()
}

fn finding(what: String, answer: Result<&'static str, String>) -> Finding {
    match answer {
        Ok(how) => Finding::good(what, how),
        Err(error) => {
            let hint = if error.starts_with("TLS failed") {
                "check auth.ldap_ca_file, and that the certificate has the name in ldapserver"
            } else if error.starts_with("bind as ldapbinddn") {
                "correct ldapbinddn and ldapbindpasswd of the line"
            } else if error.starts_with("search") {
                "correct ldapbasedn of the line, and let ldapbinddn (or anonymous users) search there"
            } else {
                "is the directory running there, and does a firewall let this host connect? Logins by this line get 57P03 \
                 if none of its servers answers"
            };
            Finding::bad(what, error, hint)
        }
    }
}
