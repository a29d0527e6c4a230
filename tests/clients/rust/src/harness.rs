//! What the drivers share: one line of JSON for each result, and writers.

use std::env;
use std::error::Error;
use std::fmt::{Debug, Write};
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

pub const WRITERS: i32 = 4;
pub const CONNECTIONS: u32 = 4;
pub const TASKS: i64 = 32;
pub const TIMES: i32 = 20;
pub const SLEEP: &str = "SELECT pg_sleep(30)";
pub const COPY_IN: &str = "COPY copied FROM STDIN";
pub const COPY_OUT: &str = "COPY (SELECT * FROM copied ORDER BY id) TO STDOUT";
pub const ADD: &str = "UPDATE counted SET number = number + 1";
pub const COUNT: &str = "SELECT number FROM counted";

pub type Done = Result<(), Box<dyn Error + Send + Sync>>;

pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

pub fn is_writing() -> bool {
    env::args().nth(1).as_deref() == Some("writes")
}

pub fn stopped() -> bool {
    Path::new(&variable("STOP")).exists()
}

pub fn lines() -> String {
    (0..1000).fold(String::new(), |mut all, number| {
        let _ = writeln!(all, "{number}\twords {number} é");
        all
    })
}

pub fn equal<T: PartialEq + Debug>(found: &T, wanted: &T, what: &str) -> Done {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: {found:?} and not {wanted:?}").into())
}

/// All the causes: the drivers keep the server's words in one of them.
fn words(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut all = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        let _ = write!(all, ": {one}");
        cause = one.source();
    }
    all
}

pub fn version(of: &str) {
    println!("{}", json!({ "version": of }));
}

pub fn cannot(check: &str, why: &str) {
    println!("{}", json!({ "check": check, "result": "cannot", "note": why }));
}

pub fn checked(check: &str, result: Done) {
    let (result, note) = match result {
        Ok(()) => ("ok", String::new()),
        Err(error) => ("failed", words(error.as_ref())),
    };
    println!("{}", json!({ "check": check, "result": result, "note": note }));
}

pub async fn check<F: Future<Output = Done>>(name: &str, run: F) {
    let limited = tokio::time::timeout(Duration::from_secs(60), run);
    checked(
        name,
        limited
            .await
            .unwrap_or_else(|_| Err("not done within 60 s".into())),
    );
}

pub fn told(writer: i32, number: i32, begun: Instant, result: Done) {
    let at = [writer, number];
    match result {
        Ok(()) => println!(
            "{}",
            json!({ "wrote": at, "seconds": begun.elapsed().as_secs_f64() })
        ),
        Err(error) => println!("{}", json!({ "error": words(error.as_ref()), "at": at })),
    }
}

/// Each writer goes on until it is told to stop.
pub async fn write<F, R>(one: F)
where
    F: Fn(i32, i32) -> R + Clone + Send + 'static,
    R: Future<Output = Done> + Send,
{
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let one = one.clone();
            tokio::spawn(async move {
                let mut number = 0;
                while !stopped() {
                    let begun = Instant::now();
                    told(writer, number, begun, one(writer, number).await);
                    number += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
}

pub fn in_runtime<F: Future<Output = ()>>(run: F) {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(run);
}
