//! diesel, which uses libpq, with r2d2.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, Pool};
use diesel::sql_types::{BigInt, Integer};

use crate::harness::*;

type Connections = Pool<ConnectionManager<PgConnection>>;

diesel::table! {
    written (writer, number) {
        writer -> Integer,
        number -> Integer,
    }
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

fn dsn(more: &str) -> String {
    format!(
        "host={} port={} user=app password=app dbname=app sslmode=verify-full sslrootcert={} connect_timeout=20{more}",
        variable("HOST"),
        variable("PORT"),
        variable("CA")
    )
}

fn count(connection: &mut PgConnection) -> QueryResult<i64> {
    Ok(diesel::sql_query(COUNT).get_result::<Number>(connection)?.number)
}

fn tls(more: &str) -> Done {
    let mut connection = PgConnection::establish(&dsn(more))?;
    let answer = diesel::sql_query("SELECT 1::int8 AS number").get_result::<Number>(&mut connection)?;
    equal(&answer.number, &1, "the answer")
}

fn copy() -> Done {
    let mut connection = PgConnection::establish(&dsn(""))?;
    connection.batch_execute("TRUNCATE copied")?;
    diesel::copy_from(copied::table)
        .from_raw_data(copied::table, |sink| {
            std::io::Write::write_all(sink, lines().as_bytes()).expect("it is kept in memory");
            QueryResult::Ok(())
        })
        .execute(&mut connection)?;
    let mut text = String::new();
    let mut out = diesel::copy_to(copied::table).load_raw(&mut connection)?;
    std::io::Read::read_to_string(&mut out, &mut text)?;
    equal(&text, &lines(), "what COPY brings out")
}

diesel::table! {
    copied (id) {
        id -> BigInt,
        words -> Text,
    }
}

/// It prepares every statement of its builder.
fn prepared() -> Done {
    let mut one = PgConnection::establish(&dsn(""))?;
    let mut two = PgConnection::establish(&dsn(""))?;
    for number in 0..TIMES {
        let found: i32 = diesel::select(number.into_sql::<Integer>()).get_result(&mut one)?;
        let other: i32 = diesel::select(number.into_sql::<Integer>() + 1).get_result(&mut two)?;
        equal(&(found, other), &(number, number + 1), "answers")?;
    }
    Ok(())
}

fn new_pool() -> Connections {
    Pool::builder()
        .max_size(CONNECTIONS)
        .connection_timeout(Duration::from_secs(60))
        .build(ConnectionManager::new(dsn("")))
        .expect("a pool")
}

fn add(pool: &Connections) -> Done {
    let mut connection = pool.get()?;
    connection.transaction(|connection| diesel::sql_query(ADD).execute(connection))?;
    Ok(())
}

fn pooled() -> Done {
    let mut outside = PgConnection::establish(&dsn(""))?;
    let before = count(&mut outside)?;
    let pool = new_pool();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || add(&pool))
        })
        .collect();
    for task in tasks {
        task.join().map_err(|_| "a task panicked")??;
    }
    equal(&count(&mut outside)?, &(before + TASKS), "the counter")
}

fn insert(pool: &Connections, writer: i32, number: i32) -> Done {
    let mut connection = pool.get()?;
    diesel::insert_into(written::table)
        .values((written::writer.eq(writer), written::number.eq(number)))
        .execute(&mut connection)?;
    Ok(())
}

fn writes() {
    let pool = new_pool();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let pool = pool.clone();
            thread::spawn(move || {
                let mut number = 0;
                while !stopped() {
                    let begun = Instant::now();
                    told(writer, number, begun, insert(&pool, writer, number));
                    number += 1;
                    thread::sleep(Duration::from_millis(50));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("a writer does not panic");
    }
}

pub fn main() {
    version(&variable("VERSION"));
    if is_writing() {
        return writes();
    }
    checked("tls", tls(""));
    checked("binding", tls(" channel_binding=require"));
    cannot("cancel", "no way to cancel");
    checked("copy", copy());
    checked("prepared", prepared());
    checked("pool", pooled());
}
