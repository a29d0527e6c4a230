//! Requests as they come over a connection, against any bytes.

use std::cell::OnceCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::Runtime;

use super::fixture::{app, handles, led, member, named, primary, view};
use super::guard::Caller;
use super::router::router;
use crate::config::Secret;

thread_local! {
    static SERVER: OnceCell<(Runtime, Router)> = const { OnceCell::new() };
}

/// A cluster of two members. A caller on this host asks, and one of the members is the local one;
/// the token is `t`.
fn server() -> (Runtime, Router) {
    let handles = handles(vec![view(led(vec![primary("db1"), member("db2")]), named("db2"))]);
    handles.token.store(Some(Arc::new(Secret::new(&b"t"[..]))));
    let caller = Caller::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 50_000)), false);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().expect("a runtime");
    (runtime, router(app(handles)).layer(Extension(caller)))
}

pub(crate) fn run(data: &[u8]) {
    SERVER.with(|cell| {
        let (runtime, router) = cell.get_or_init(server);
        let mut out = Vec::new();
        let io = TokioIo::new(tokio::io::join(data, &mut out));
        let service = TowerToHyperService::new(router.clone());
        let mut builder = http1::Builder::new();
        let serving = builder.half_close(true).serve_connection(io, service);
        // Input that is not HTTP is an error.
        let _ = runtime.block_on(serving);
        assert!(out.is_empty() || out.starts_with(b"HTTP/1."));
        assert!(!out.windows(12).any(|bytes| bytes.starts_with(b"HTTP/1.1 500")));
    });
}
