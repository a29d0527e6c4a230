//! A session against any bytes: whatever comes, the console answers in whole frames and ends when
//! the client does.

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::super::http::fixture::{self, NothingHeld};
use super::Console;
use crate::frontend::ClientStream;
use crate::session::console::{Console as _, ConsoleClient, IsOperator};
use crate::session::registry::ConsoleSession;
use crate::wire::frame::next_frame;

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

pub(crate) fn run(data: &[u8]) {
    RUNTIME.with(|cell| {
        let runtime = cell.get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().expect("a runtime")
        });
        runtime.block_on(session(data));
    });
}

async fn session(data: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return;
    };
    let orders = fixture::console_orders(Arc::new(NothingHeld::default()));
    let console = Console::new(fixture::handles(Vec::new()), orders, "trunkline".into());
    let entry = ConsoleSession::alone();
    let serving = console.serve(ConsoleClient {
        stream: ClientStream::Unix(ours),
        user: "admin".into(),
        is_operator: IsOperator::new(|| true),
        by: "admin".into(),
        welcome: BytesMut::new(),
        session: Arc::clone(entry.session()),
        closing: CancellationToken::new(),
    });
    let (mut answers, mut questions) = theirs.into_split();
    let mut buffer = BytesMut::new();
    let reading = async {
        while let Ok(1..) = answers.read_buf(&mut buffer).await {
            while let Some(frame) = next_frame(&mut buffer, 1 << 20).expect("a frame") {
                assert!(frame.tag.is_ascii());
            }
        }
        assert!(buffer.is_empty(), "a part of a frame");
    };
    let writing = async {
        // It may have hung up.
        let _ = questions.write_all(data).await;
        drop(questions);
    };
    let serving = async { drop(serving.await) };
    tokio::join!(serving, reading, writing);
}
