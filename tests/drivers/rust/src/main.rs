//! tokio-postgres with deadpool-postgres, and sqlx with its pool, every statement prepared. Run
//! with HOST, PORT, SCHEMA and TASKS and the driver's name; see tests/it/pooling/drivers.rs.

use std::env;
use std::pin::pin;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt, TryStreamExt, future};

const LINES: i32 = 20;
const OWN: &str = "SELECT current_setting('app.schema'), (SELECT name FROM place), \
                   current_setting('statement_timeout'), current_setting('work_mem')";
const LOCK: &str = "SELECT id FROM account WHERE id IN ($1, $2) ORDER BY id FOR UPDATE";
const TAKE: &str = "UPDATE account SET amount = amount - $1::int WHERE id = $2";

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn task_count() -> i32 {
    variable("TASKS").parse().unwrap()
}

/// The two accounts of a task, in the order in which all lock them.
fn accounts(task: i32) -> (i32, i32) {
    let (one, other) = (task % 8 + 1, (task + 3) % 8 + 1);
    (one.min(other), one.max(other))
}

fn texts() -> Vec<String> {
    let mut texts: Vec<String> = (0..LINES).map(|line| format!("{line} ü")).collect();
    texts.sort();
    texts
}

#[tokio::main]
async fn main() {
    match env::args().nth(1).as_deref() {
        Some("deadpool") => with_deadpool().await,
        Some("sqlx") => with_sqlx().await,
        other => panic!("no such driver: {other:?}"),
    }
    println!("done");
}

// --- tokio-postgres ------------------------------------------------------------------------------

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use tokio_postgres::NoTls;

/// Before each use: the pool has thrown away what was set before.
async fn settle(client: &Object, schema: &str) {
    client
        .batch_execute(&format!(
            "SET search_path = {schema}; SET app.schema = '{schema}'; SET work_mem = '7MB'"
        ))
        .await
        .unwrap();
}

async fn own(client: &Object, schema: &str) {
    let statement = client.prepare_cached(OWN).await.unwrap();
    let row = client.query_one(&statement, &[]).await.unwrap();
    let seen: Vec<&str> = (0..4).map(|column| row.get(column)).collect();
    assert_eq!(seen, [schema, schema, "0", "7MB"]);
}

async fn transfer(client: &mut Object, task: i32) {
    let (first, second) = accounts(task);
    let mut transaction = client.transaction().await.unwrap();
    let lock = transaction.prepare_cached(LOCK).await.unwrap();
    let rows = transaction.query(&lock, &[&first, &second]).await.unwrap();
    let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, [first, second]);
    let take = transaction.prepare_cached(TAKE).await.unwrap();
    transaction.execute(&take, &[&1i32, &first]).await.unwrap();
    let savepoint = transaction.transaction().await.unwrap();
    let error = savepoint
        .execute(&take, &[&1_000_000i32, &first])
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23514");
    savepoint.rollback().await.unwrap();
    transaction.execute(&take, &[&-1i32, &second]).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn errors(client: &mut Object, task: i32) {
    let transaction = client.transaction().await.unwrap();
    let line = transaction
        .prepare_cached("INSERT INTO line VALUES ($1, $2)")
        .await
        .unwrap();
    transaction
        .execute(&line, &[&task, &"of a transaction that fails"])
        .await
        .unwrap();
    let error = transaction
        .execute("INSERT INTO account VALUES (1, 1)", &[])
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23505");
    transaction.rollback().await.unwrap();

    let transaction = client.transaction().await.unwrap();
    transaction
        .batch_execute("SET LOCAL statement_timeout = '20ms'")
        .await
        .unwrap();
    let error = transaction
        .query("SELECT pg_sleep($1)", &[&30f64])
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    // Dropped: the driver rolls back, and nobody waits for it.
    drop(transaction);

    if task % 8 == 0 {
        let token = client.cancel_token();
        let asking = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                token.cancel_query(NoTls).await.unwrap();
            }
        });
        let error = client.query("SELECT pg_sleep($1)", &[&30f64]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "57014");
        asking.abort();
        let _ = asking.await;
    }
}

async fn lines(client: &mut Object, task: i32) {
    let mut sink = pin!(client.copy_in("COPY line FROM STDIN").await.unwrap());
    for text in texts() {
        sink.send(bytes::Bytes::from(format!("{task}\t{text}\n")))
            .await
            .unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), u64::try_from(LINES).unwrap());
    let out = client
        .copy_out(&format!(
            "COPY (SELECT text FROM line WHERE task = {task}) TO STDOUT"
        ))
        .await
        .unwrap();
    let chunks: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    let mut found: Vec<String> = chunks
        .iter()
        .map(|chunk| std::str::from_utf8(chunk).unwrap().trim().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, texts());
    // A portal, read in parts.
    let transaction = client.transaction().await.unwrap();
    let statement = transaction
        .prepare_cached("SELECT text FROM line WHERE task = $1")
        .await
        .unwrap();
    let portal = transaction.bind(&statement, &[&task]).await.unwrap();
    let mut found = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 7).await.unwrap();
        if rows.is_empty() {
            break;
        }
        found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    found.sort();
    assert_eq!(found, texts());
    transaction.commit().await.unwrap();
}

async fn with_deadpool() {
    let schema = variable("SCHEMA");
    let mut config = tokio_postgres::Config::new();
    config
        .host(variable("HOST"))
        .port(variable("PORT").parse().unwrap())
        .user("app")
        .password("app")
        .dbname("app");
    let recycling_method = RecyclingMethod::Clean;
    let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method });
    let pool = Pool::builder(manager).max_size(8).build().unwrap();
    let tasks: Vec<_> = (0..task_count())
        .map(|task| {
            let (pool, schema) = (pool.clone(), schema.clone());
            tokio::spawn(async move {
                for part in 0..4 {
                    let mut client = pool.get().await.unwrap();
                    let row = client.query_one("SHOW work_mem", &[]).await.unwrap();
                    assert_eq!(row.get::<_, &str>(0), "4MB");
                    settle(&client, &schema).await;
                    own(&client, &schema).await;
                    // Many requests under way at once.
                    let twice = client
                        .prepare_cached("SELECT $1::int * 2, $2::text")
                        .await
                        .unwrap();
                    let answers = future::join_all((0..20).map(|number: i32| {
                        let (client, twice) = (&client, &twice);
                        async move {
                            let row = client.query_one(twice, &[&number, &"é"]).await.unwrap();
                            (row.get::<_, i32>(0), row.get::<_, String>(1))
                        }
                    }))
                    .await;
                    let expected: Vec<_> = (0..20).map(|number| (number * 2, "é".to_owned())).collect();
                    assert_eq!(answers, expected);
                    match part {
                        1 => errors(&mut client, task).await,
                        2 => lines(&mut client, task).await,
                        _ => transfer(&mut client, task).await,
                    }
                    own(&client, &schema).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let client = pool.get().await.unwrap();
    settle(&client, &schema).await;
    let row = client.query_one("SELECT count(*) FROM line", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), i64::from(task_count() * LINES));
}

// --- sqlx ----------------------------------------------------------------------------------------

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{Connection, Executor, PgConnection, PgPool, Row};

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().unwrap().code().unwrap().into_owned()
}

async fn own_of_sqlx(connection: &mut PgConnection, schema: &str) {
    let row = sqlx::query(OWN).fetch_one(connection).await.unwrap();
    let seen: Vec<String> = (0..4).map(|column| row.get(column)).collect();
    assert_eq!(seen, [schema, schema, "0", "4MB"]);
}

async fn transfer_of_sqlx(connection: &mut PgConnection, task: i32) {
    let (first, second) = accounts(task);
    let mut transaction = connection.begin().await.unwrap();
    let ids: Vec<i32> = sqlx::query_scalar(LOCK)
        .bind(first)
        .bind(second)
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(ids, [first, second]);
    let take = |amount: i32, id: i32| sqlx::query(TAKE).bind(amount).bind(id);
    take(1, first).execute(&mut *transaction).await.unwrap();
    let mut savepoint = transaction.begin().await.unwrap();
    let error = take(1_000_000, first).execute(&mut *savepoint).await.unwrap_err();
    assert_eq!(code(&error), "23514");
    savepoint.rollback().await.unwrap();
    take(-1, second).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn errors_of_sqlx(connection: &mut PgConnection, task: i32) {
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("INSERT INTO line VALUES ($1, $2)")
        .bind(task)
        .bind("of a transaction that fails")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let insert = sqlx::query("INSERT INTO account VALUES (1, 1)");
    assert_eq!(
        code(&insert.execute(&mut *transaction).await.unwrap_err()),
        "23505"
    );
    // Dropped: the driver rolls back before its next statement.
    drop(transaction);

    let mut transaction = connection.begin().await.unwrap();
    transaction
        .execute("SET LOCAL statement_timeout = '20ms'")
        .await
        .unwrap();
    let sleep = sqlx::query("SELECT pg_sleep($1)").bind(30f64);
    assert_eq!(
        code(&sleep.execute(&mut *transaction).await.unwrap_err()),
        "57014"
    );
    transaction.rollback().await.unwrap();
    // A statement that cannot be prepared leaves no name behind.
    for _ in 0..2 {
        let wrong = sqlx::query("SELECT nothing_of_the_kind");
        assert_eq!(code(&wrong.execute(&mut *connection).await.unwrap_err()), "42703");
    }
    connection.ping().await.unwrap();
}

async fn lines_of_sqlx(connection: &mut PgConnection, task: i32) {
    let mut copy = connection.copy_in_raw("COPY line FROM STDIN").await.unwrap();
    for text in texts() {
        copy.send(format!("{task}\t{text}\n").into_bytes()).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), u64::try_from(LINES).unwrap());
    let copied = format!("COPY (SELECT text FROM line WHERE task = {task}) TO STDOUT");
    let chunks: Vec<bytes::Bytes> = connection
        .copy_out_raw(&copied)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(chunks.len(), texts().len());
    let mut rows = sqlx::query_scalar::<_, String>("SELECT text FROM line WHERE task = $1")
        .bind(task)
        .fetch(&mut *connection);
    let mut found = Vec::new();
    while let Some(text) = rows.next().await {
        found.push(text.unwrap());
    }
    found.sort();
    assert_eq!(found, texts());
}

async fn with_sqlx() {
    let schema = variable("SCHEMA");
    let options = PgConnectOptions::new_without_pgpass()
        .host(&variable("HOST"))
        .port(variable("PORT").parse().unwrap())
        .username("app")
        .password("app")
        .database("app")
        .ssl_mode(PgSslMode::Disable);
    let settle = format!("SET search_path = {schema}; SET app.schema = '{schema}'");
    let pool: PgPool = PgPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(Duration::from_secs(60))
        .after_connect(move |connection, _| {
            let settle = settle.clone();
            Box::pin(async move { connection.execute(settle.as_str()).await.map(drop) })
        })
        .connect_with(options)
        .await
        .unwrap();
    let tasks: Vec<_> = (0..task_count())
        .map(|task| {
            let (pool, schema) = (pool.clone(), schema.clone());
            tokio::spawn(async move {
                for part in 0..4 {
                    let mut connection = pool.acquire().await.unwrap();
                    own_of_sqlx(&mut connection, &schema).await;
                    for number in 0..5 {
                        let twice = sqlx::query_as::<_, (i32, String)>("SELECT $1::int * 2, $2::text");
                        let row = twice
                            .bind(number)
                            .bind("é")
                            .fetch_one(&mut *connection)
                            .await
                            .unwrap();
                        assert_eq!(row, (number * 2, "é".to_owned()));
                    }
                    match part {
                        1 => errors_of_sqlx(&mut connection, task).await,
                        2 => lines_of_sqlx(&mut connection, task).await,
                        _ => transfer_of_sqlx(&mut connection, task).await,
                    }
                    own_of_sqlx(&mut connection, &schema).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM line")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(count, i64::from(task_count() * LINES));
    pool.close().await;
}
