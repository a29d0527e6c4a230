//! Messages between the processes of one router, against any bytes.

#![allow(clippy::unwrap_used, reason = "of what is made here")]

use futures_util::FutureExt;

use super::{
    Answer, CodecError, Opening, RequestKind, answer, cancel_body, frame, hello, parse_cancel, read_answer,
    read_opening, read_request,
};
use crate::fuzzing::choice;

pub(crate) fn run(data: &[u8]) {
    let (which, message) = choice(data);
    match which % 3 {
        0 => opening(message),
        1 => requests(message),
        _ => answers(which / 3, message),
    }
}

/// A future that reads from a slice is ready at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a slice is always ready")
}

fn opening(mut message: &[u8]) {
    let whole = message;
    match ready(read_opening(&mut message)) {
        Ok(Opening::Hello(version)) => assert_eq!([&hello()[..5], &[version]].concat(), &whole[..6]),
        Ok(Opening::Old { key_length, .. }) => {
            assert!(key_length <= 256 && whole[4] <= 1, "a hello is no question");
        }
        Err(CodecError::Io(_)) => assert!(whole.len() < 6),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn requests(mut message: &[u8]) {
    let whole = message;
    let Ok((kind, body)) = ready(read_request(&mut message)) else {
        return;
    };
    let code = kind.map_or_else(|code| code, RequestKind::code);
    // What is accepted is written the same way.
    let written = frame(code, &body).unwrap();
    assert_eq!(written, &whole[..written.len()]);
    if kind == Ok(RequestKind::Cancel)
        && let Ok(request) = parse_cancel(&body)
    {
        assert_eq!(cancel_body(&request), body);
    }
}

fn answers(kind: u8, mut message: &[u8]) {
    let kind = RequestKind::ALL[usize::from(kind) % RequestKind::ALL.len()];
    let whole = message;
    match ready(read_answer(&mut message, kind)) {
        Ok(said) => {
            let written = answer(Some(kind), &said).unwrap();
            assert_eq!(written, &whole[..written.len()]);
            if let Answer::Done(body) = said {
                assert!(body.len() <= kind.limits().answer_bytes);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
