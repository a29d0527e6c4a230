//! Whether the servers of a directory can be asked, before somebody's login needs them.
//!
//! No password of a user is sent: a wrong one may lock the user out.

use std::sync::Arc;

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{Exchange, LdapError, LdapRequest, encrypt, io_fault};
use crate::auth::ldap::{Encryption, LdapServer, LdapSettings, Mode};
use crate::names;

/// A user that no directory has.
const NOBODY: &[u8] = b"trunkline-doctor-asks-for-nobody";

/// Each server with what works there, or why it does not. All are tried at the same time.
pub async fn try_servers(
    settings: &LdapSettings,
    tls: &Arc<ClientConfig>,
    deadline: Instant,
) -> Vec<(String, Result<&'static str, String>)> {
    let tried = settings.servers().iter().map(async |server| {
        let tried = timeout_at(deadline, try_one(settings, server, tls, deadline)).await;
        let tried = tried.unwrap_or_else(|_| Err(LdapError::Unavailable("no answer in time".to_owned())));
        (server.to_string(), tried.map_err(|error| error.to_string()))
    });
    join_all(tried).await
}

async fn try_one(
    settings: &LdapSettings,
    server: &LdapServer,
    tls: &Arc<ClientConfig>,
    deadline: Instant,
) -> Result<&'static str, LdapError> {
    let stream = names::connect(&server.host, server.port)
        .await
        .map_err(|error| io_fault(&error))?;
    match settings.encryption() {
        Encryption::None => search(stream, settings.mode(), deadline).await,
        Encryption::Ldaps => search(encrypt(stream, server, tls).await?, settings.mode(), deadline).await,
        Encryption::StartTls => {
            let stream: TcpStream = Exchange::new(stream).start_tls().await?;
            search(encrypt(stream, server, tls).await?, settings.mode(), deadline).await
        }
    }
}

/// With a direct bind there is nothing to ask without a user's password.
async fn search<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    mode: &Mode,
    deadline: Instant,
) -> Result<&'static str, LdapError> {
    let Mode::Search(search) = mode else {
        return Ok("answers; no login was tried");
    };
    let mut exchange = Exchange::new(stream);
    match exchange.find(search, &search.filter(NOBODY)?, deadline).await {
        // It has searched.
        Ok(_) | Err(LdapError::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    let _ = exchange.send(&LdapRequest::Unbind).await;
    Ok("answers, and lets the router search; no user's login was tried")
}
