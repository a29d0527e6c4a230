//! Writers in this process: tokio-postgres as one more driver, and the direct writer.

use std::fmt::Display;
use std::fs::File;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

use super::now;
use crate::cluster::drivers::Rustls;

/// A statement of the direct writer: a frozen server does not hold up the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// What programs of other languages find in their environment.
#[derive(Debug, Clone)]
pub struct Job {
    /// Each writer takes one of them, by its number.
    pub hosts: Vec<String>,
    pub port: u16,
    pub out: PathBuf,
    pub stop: PathBuf,
    pub writers: Vec<u64>,
    pub pause: Duration,
    pub limit: Duration,
}

#[derive(Clone)]
struct Lines {
    file: Arc<Mutex<File>>,
    job: Arc<Job>,
    end: Instant,
}

impl Lines {
    fn new(job: Job) -> Self {
        let file = Arc::new(Mutex::new(File::create(&job.out).unwrap()));
        let end = Instant::now() + job.limit;
        Self {
            file,
            job: Arc::new(job),
            end,
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !self.job.stop.exists()
    }

    fn line(&self, fields: &[&dyn Display]) {
        let fields: Vec<String> = fields
            .iter()
            .map(|field| field.to_string().replace(['\t', '\n'], " "))
            .collect();
        let line = format!("{}\n", fields.join("\t"));
        self.file.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn write(&self, writer: u64, began: u64, kind: &str, ids: &[u64], phase: &str, told: &Told) {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        self.line(&[
            &"write",
            &began,
            &now(),
            &writer,
            &told.outcome,
            &kind,
            &ids.join(","),
            &phase,
            &told.code,
            &told.text,
        ]);
    }
}

struct Told {
    outcome: &'static str,
    code: String,
    text: String,
}

impl Told {
    fn new<T>(result: &Result<T, Error>, client: &Client) -> Self {
        let Err(error) = result else {
            return Self {
                outcome: "done",
                code: "-".to_owned(),
                text: String::new(),
            };
        };
        let database = error.as_db_error();
        let severity = database.and_then(tokio_postgres::error::DbError::parsed_severity);
        let is_fatal = matches!(severity, Some(Severity::Fatal | Severity::Panic));
        Self {
            outcome: if is_fatal || client.is_closed() || error.is_closed() {
                "dead"
            } else {
                "error"
            },
            code: error.code().map_or("-", |code| code.code()).to_owned(),
            text: database.map_or_else(|| error.to_string(), ToString::to_string),
        }
    }
}

fn run<F: Future<Output = ()> + Send + 'static>(jobs: Vec<F>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            for job in jobs.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
                job.await.unwrap();
            }
        });
    })
}

fn configuration(host: &str, port: u16) -> Config {
    let mut config = Config::new();
    config
        .host(host)
        .port(port)
        .user("app")
        .password("app")
        .dbname("app")
        .application_name("recorder");
    config
}

// --- tokio-postgres ------------------------------------------------------------------------------

pub fn tokio_postgres(job: Job) -> JoinHandle<()> {
    let writers = job.writers.clone();
    let lines = Lines::new(job);
    run(writers
        .into_iter()
        .map(|writer| through_the_router(writer, lines.clone()))
        .collect())
}

async fn connect(job: &Job, writer: u64) -> Result<(Client, Statement), Error> {
    let host = usize::try_from(writer).unwrap() % job.hosts.len();
    let mut config = configuration(&job.hosts[host], job.port);
    config
        .ssl_mode(SslMode::Require)
        .connect_timeout(Duration::from_mins(1));
    let (client, connection) = config.connect(Rustls::new()).await?;
    tokio::spawn(connection);
    let insert = client.prepare("INSERT INTO recorded (id) VALUES ($1)").await?;
    Ok((client, insert))
}

async fn through_the_router(writer: u64, lines: Lines) {
    let job = Arc::clone(&lines.job);
    let mut open: Option<(Client, Statement)> = None;
    let (mut next, mut turn) = (writer << 32, writer);
    while lines.goes_on() {
        let began = now();
        let Some((client, insert)) = &mut open else {
            match connect(&job, writer).await {
                Ok(new) => {
                    lines.line(&[&"login", &began, &now(), &writer, &"done", &"-", &""]);
                    open = Some(new);
                }
                Err(error) => {
                    let code = error.code().map_or("-", |code| code.code());
                    let text = error
                        .as_db_error()
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    lines.line(&[&"login", &began, &now(), &writer, &"error", &code, &text]);
                    sleep(job.pause).await;
                }
            }
            continue;
        };
        let mut take = |count: u64| -> Vec<u64> {
            let ids = (next + 1..=next + count).collect();
            next += count;
            ids
        };
        turn += 1;
        let is_dead = match turn % 4 {
            0 => {
                let ids = take(1);
                let result = client
                    .batch_execute(&format!("INSERT INTO recorded (id) VALUES ({})", ids[0]))
                    .await;
                let told = Told::new(&result, client);
                lines.write(writer, began, "single", &ids, "autocommit", &told);
                told.outcome == "dead"
            }
            1 => {
                let ids = take(2);
                let mut phase = "begin";
                let result = transaction(client, insert, &ids, job.pause / 4, &mut phase).await;
                let told = Told::new(&result, client);
                lines.write(writer, began, "transaction", &ids, phase, &told);
                told.outcome == "dead"
            }
            kind => {
                // Each with its own Sync, all sent before the first answer.
                let ids = take(if kind == 2 { 1 } else { 3 });
                let name = if kind == 2 { "prepared" } else { "pipelined" };
                let numbers: Vec<i64> = ids.iter().map(|id| i64::try_from(*id).unwrap()).collect();
                let (client, insert) = (&*client, &*insert);
                let all = numbers
                    .iter()
                    .map(|number| async move { client.execute(insert, &[number]).await });
                let results = join_all(all).await;
                let mut is_dead = false;
                for (id, result) in ids.iter().zip(&results) {
                    let told = Told::new(result, client);
                    lines.write(writer, began, name, &[*id], "autocommit", &told);
                    is_dead |= told.outcome == "dead";
                }
                is_dead
            }
        };
        if is_dead {
            open = None;
        }
        sleep(job.pause).await;
    }
}

async fn transaction(
    client: &mut Client,
    insert: &Statement,
    ids: &[u64],
    pause: Duration,
    phase: &mut &'static str,
) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    for id in ids {
        *phase = "statement";
        let number = i64::try_from(*id).unwrap();
        transaction.execute(insert, &[&number]).await?;
        sleep(pause).await;
    }
    *phase = "commit";
    transaction.commit().await
}

// --- the direct writer ---------------------------------------------------------------------------

/// Not through the router: at each server of the cluster, as soon as it lets itself be written to.
pub fn direct(job: Job) -> JoinHandle<()> {
    let (writers, hosts) = (job.writers.clone(), job.hosts.clone());
    let lines = Lines::new(job);
    run(writers
        .into_iter()
        .zip(hosts)
        .map(|(writer, host)| at_one_server(writer, host, lines.clone()))
        .collect())
}

async fn at_one_server(writer: u64, host: String, lines: Lines) {
    let pause = lines.job.pause;
    let mut next = writer << 32;
    while lines.goes_on() {
        let began = now();
        let config = configuration(&host, 5432);
        let Ok(Ok((client, connection))) = timeout(PATIENCE, config.connect(NoTls)).await else {
            sleep(pause).await;
            continue;
        };
        let connection = tokio::spawn(connection);
        lines.line(&[&"login", &began, &now(), &writer, &"done", &"-", &""]);
        while lines.goes_on() {
            let asked = timeout(PATIENCE, client.query_one("SELECT pg_is_in_recovery()", &[])).await;
            match asked {
                Ok(Ok(row)) if !row.get::<_, bool>(0) => {
                    next += 1;
                    let statement = format!("INSERT INTO recorded (id) VALUES ({next})");
                    let began = now();
                    let result = timeout(PATIENCE, client.batch_execute(&statement)).await;
                    let told = match &result {
                        Ok(result) => Told::new(result, &client),
                        Err(_) => Told {
                            outcome: "dead",
                            code: "-".to_owned(),
                            text: format!("no answer within {PATIENCE:?}"),
                        },
                    };
                    lines.write(writer, began, "single", &[next], "autocommit", &told);
                    if told.outcome == "dead" {
                        break;
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => break,
            }
            sleep(pause).await;
        }
        connection.abort();
    }
}
