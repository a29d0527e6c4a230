//! Drivers in Rust, by the second argument: tokio-postgres with deadpool, sqlx with its pool,
//! diesel with r2d2. `tests/clients/harness.py` says how they are run.

mod harness;
mod of_diesel;
mod of_sqlx;
mod of_tokio_postgres;

fn main() {
    match std::env::args().nth(2).as_deref() {
        Some("tokio-postgres") => of_tokio_postgres::main(),
        Some("sqlx") => of_sqlx::main(),
        Some("diesel") => of_diesel::main(),
        other => panic!("no such driver: {other:?}"),
    }
}
