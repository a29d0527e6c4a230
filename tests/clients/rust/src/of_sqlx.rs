//! sqlx with its pool.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgPoolCopyExt, PgPoolOptions, PgSslMode};
use sqlx::{Executor, PgPool};

use crate::harness::*;

async fn new_pool(connections: u32) -> Result<PgPool, sqlx::Error> {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&variable("HOST"))
        .port(variable("PORT").parse().expect("a port"))
        .username("app")
        .password("app")
        .database("app")
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert(variable("CA"));
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(60))
        .connect_with(options)
        .await
}

async fn tls() -> Done {
    let pool = new_pool(1).await?;
    let answer: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await?;
    equal(&answer, &1, "the answer")
}

async fn copy() -> Done {
    let pool = new_pool(1).await?;
    pool.execute("TRUNCATE copied").await?;
    let mut sink = pool.copy_in_raw(COPY_IN).await?;
    sink.send(lines().into_bytes()).await?;
    sink.finish().await?;
    let chunks: Vec<bytes::Bytes> = pool.copy_out_raw(COPY_OUT).await?.try_collect().await?;
    equal(
        &String::from_utf8(chunks.concat())?,
        &lines(),
        "what COPY brings out",
    )
}

/// It prepares every statement that has parameters.
async fn prepared() -> Done {
    let (one, two) = (new_pool(1).await?, new_pool(1).await?);
    for number in 0..TIMES {
        let found: i32 = sqlx::query_scalar("SELECT $1::int")
            .bind(number)
            .fetch_one(&one)
            .await?;
        let other: i32 = sqlx::query_scalar("SELECT $1::int + 1")
            .bind(number)
            .fetch_one(&two)
            .await?;
        equal(&(found, other), &(number, number + 1), "answers")?;
    }
    Ok(())
}

async fn add(pool: PgPool) -> Done {
    let mut transaction = pool.begin().await?;
    transaction.execute(ADD).await?;
    Ok(transaction.commit().await?)
}

async fn pooled() -> Done {
    let (outside, pool) = (new_pool(1).await?, new_pool(CONNECTIONS).await?);
    let before: i64 = sqlx::query_scalar(COUNT).fetch_one(&outside).await?;
    let tasks: Vec<_> = (0..TASKS).map(|_| tokio::spawn(add(pool.clone()))).collect();
    for task in tasks {
        task.await??;
    }
    let after: i64 = sqlx::query_scalar(COUNT).fetch_one(&outside).await?;
    equal(&after, &(before + TASKS), "the counter")
}

async fn insert(pool: PgPool, writer: i32, number: i32) -> Done {
    let insert = sqlx::query("INSERT INTO written VALUES ($1, $2)");
    insert.bind(writer).bind(number).execute(&pool).await?;
    Ok(())
}

pub fn main() {
    version(&variable("VERSION"));
    in_runtime(async {
        if is_writing() {
            let pool = new_pool(CONNECTIONS).await.expect("a pool");
            return write(move |writer, number| insert(pool.clone(), writer, number)).await;
        }
        check("tls", tls()).await;
        cannot("binding", "not offered");
        cannot("cancel", "no way to cancel");
        check("copy", copy()).await;
        check("prepared", prepared()).await;
        check("pool", pooled()).await;
    });
}
