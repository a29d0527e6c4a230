//! tokio-postgres with TLS by postgres-native-tls, and deadpool.

use std::pin::pin;
use std::time::Duration;

use deadpool_postgres::{Manager, Pool};
use futures_util::{SinkExt, TryStreamExt};
use native_tls::{Certificate, TlsConnector};
use postgres_native_tls::MakeTlsConnector;
use tokio_postgres::Client;
use tokio_postgres::config::{ChannelBinding, Config, SslMode};

use crate::harness::*;

fn config(binding: ChannelBinding) -> Config {
    let mut config = Config::new();
    config
        .host(variable("HOST"))
        .port(variable("PORT").parse().expect("a port"))
        .user("app")
        .password("app")
        .dbname("app")
        .ssl_mode(SslMode::Require)
        .channel_binding(binding)
        .connect_timeout(Duration::from_secs(20));
    config
}

fn connector() -> MakeTlsConnector {
    let ca = std::fs::read(variable("CA")).expect("the CA");
    let ca = Certificate::from_pem(&ca).expect("a certificate");
    let connector = TlsConnector::builder().add_root_certificate(ca).build();
    MakeTlsConnector::new(connector.expect("a connector"))
}

async fn connect(binding: ChannelBinding) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config(binding).connect(connector()).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn plain() -> Result<Client, tokio_postgres::Error> {
    connect(ChannelBinding::Prefer).await
}

async fn tls(binding: ChannelBinding) -> Done {
    let client = connect(binding).await?;
    equal(
        &client.query_one("SELECT 1", &[]).await?.get::<_, i32>(0),
        &1,
        "the answer",
    )
}

/// The first request may come before the statement runs.
async fn cancel() -> Done {
    let client = plain().await?;
    let token = client.cancel_token();
    let asking = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if token.cancel_query(connector()).await.is_err() {
                return;
            }
        }
    });
    let end = client.batch_execute(SLEEP).await;
    asking.abort();
    let code = end
        .err()
        .and_then(|error| error.code().map(|code| code.code().to_owned()));
    equal(&code.as_deref(), &Some("57014"), "SQLSTATE")?;
    // A request that is under way may still end this one.
    let _ = client.batch_execute("SELECT 1").await;
    equal(
        &client.query_one("SELECT 1", &[]).await?.get::<_, i32>(0),
        &1,
        "the next answer",
    )
}

async fn copy() -> Done {
    let client = plain().await?;
    client.batch_execute("TRUNCATE copied").await?;
    let mut sink = pin!(client.copy_in(COPY_IN).await?);
    sink.send(bytes::Bytes::from(lines())).await?;
    sink.finish().await?;
    let chunks: Vec<bytes::Bytes> = client.copy_out(COPY_OUT).await?.try_collect().await?;
    equal(
        &String::from_utf8(chunks.concat())?,
        &lines(),
        "what COPY brings out",
    )
}

async fn prepared() -> Done {
    let (one, two) = (plain().await?, plain().await?);
    let first = one.prepare("SELECT $1::int").await?;
    let second = two.prepare("SELECT $1::int + 1").await?;
    for number in 0..TIMES {
        let found = one.query_one(&first, &[&number]).await?.get::<_, i32>(0);
        let other = two.query_one(&second, &[&number]).await?.get::<_, i32>(0);
        equal(&(found, other), &(number, number + 1), "answers")?;
    }
    Ok(())
}

fn new_pool() -> Pool {
    let manager = Manager::new(config(ChannelBinding::Prefer), connector());
    Pool::builder(manager)
        .max_size(CONNECTIONS as usize)
        .build()
        .expect("a pool")
}

async fn add(pool: Pool) -> Done {
    let mut client = pool.get().await?;
    let transaction = client.transaction().await?;
    transaction.execute(ADD, &[]).await?;
    Ok(transaction.commit().await?)
}

async fn pooled() -> Done {
    let client = plain().await?;
    let before: i64 = client.query_one(COUNT, &[]).await?.get(0);
    let pool = new_pool();
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(add(pool.clone()))).collect();
    for task in tasks {
        task.await??;
    }
    let after: i64 = client.query_one(COUNT, &[]).await?.get(0);
    equal(&after, &(before + TASKS), "the counter")
}

async fn insert(pool: Pool, writer: i32, number: i32) -> Done {
    let client = pool.get().await?;
    let statement = client
        .prepare_cached("INSERT INTO written VALUES ($1, $2)")
        .await?;
    client.execute(&statement, &[&writer, &number]).await?;
    Ok(())
}

pub fn main() {
    version(&variable("VERSION"));
    in_runtime(async {
        if is_writing() {
            let pool = new_pool();
            return write(move |writer, number| insert(pool.clone(), writer, number)).await;
        }
        check("tls", tls(ChannelBinding::Prefer)).await;
        check("binding", tls(ChannelBinding::Require)).await;
        check("cancel", cancel()).await;
        check("copy", copy()).await;
        check("prepared", prepared()).await;
        check("pool", pooled()).await;
    });
}
