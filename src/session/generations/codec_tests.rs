#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::*;

fn cancel() -> CancelRequest {
    CancelRequest {
        process_id: 7,
        key: Bytes::from_static(b"0123"),
    }
}

/// One request of each kind with its hello, and what a reader makes of it.
fn requests() -> Vec<(RequestKind, Vec<u8>)> {
    let body = |kind| match kind {
        RequestKind::Cancel => cancel_body(&cancel()),
        _ => br#"{"id":7}"#.to_vec(),
    };
    RequestKind::ALL
        .into_iter()
        .map(|kind| (kind, body(kind)))
        .collect()
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Done(b"[]".to_vec()),
        Answer::AtWork,
        Answer::NotFound,
        Answer::Busy,
        Answer::Unsupported,
        Answer::UnknownKind,
        Answer::Malformed,
        Answer::Refused("it serves".to_owned()),
    ]
}

async fn heard(mut bytes: &[u8]) -> Result<(Result<RequestKind, u8>, Vec<u8>), CodecError> {
    assert_eq!(read_opening(&mut bytes).await?, Opening::Hello(VERSION));
    let request = read_request(&mut bytes).await?;
    assert!(bytes.is_empty(), "the whole message is read");
    Ok(request)
}

#[test]
fn every_kind_has_a_code_and_limits_of_its_own() {
    for kind in RequestKind::ALL {
        assert_eq!(RequestKind::of(kind.code()), Some(kind));
        let limits = kind.limits();
        assert!(limits.at_once > 0 && !limits.time.is_zero() && limits.request_bytes > 0);
    }
    assert_eq!(RequestKind::of(0), None);
    assert_eq!(RequestKind::of(12), None);
}

#[tokio::test]
async fn a_message_cut_at_any_byte_is_not_a_message() {
    for (kind, body) in requests() {
        let bytes = request(kind, &body).unwrap();
        assert_eq!(heard(&bytes).await.unwrap(), (Ok(kind), body));
        for length in 0..bytes.len() {
            let cut = heard(&bytes[..length]).await.unwrap_err();
            assert!(
                matches!(&cut, CodecError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof),
                "{kind:?} cut at {length}: {cut}"
            );
        }
    }
    for said in answers() {
        let bytes = answer(Some(RequestKind::Sessions), &said).unwrap();
        assert_eq!(
            read_answer(&mut &bytes[..], RequestKind::Sessions).await.unwrap(),
            said
        );
        for length in 0..bytes.len() {
            assert!(
                read_answer(&mut &bytes[..length], RequestKind::Sessions)
                    .await
                    .is_err(),
                "{said:?} cut at {length}"
            );
        }
    }
}

#[tokio::test]
async fn a_message_in_two_pieces_is_one_message() {
    for (kind, body) in requests() {
        let bytes = request(kind, &body).unwrap();
        for length in 0..bytes.len() {
            let (mut near, mut far) = tokio::io::duplex(bytes.len());
            let (first, second) = bytes.split_at(length);
            let (first, second) = (first.to_vec(), second.to_vec());
            let sending = async move {
                near.write_all(&first).await.unwrap();
                tokio::task::yield_now().await;
                near.write_all(&second).await.unwrap();
            };
            let reading = async {
                assert_eq!(read_opening(&mut far).await.unwrap(), Opening::Hello(VERSION));
                read_request(&mut far).await.unwrap()
            };
            let ((), read) = tokio::join!(sending, reading);
            assert_eq!(read, (Ok(kind), body.clone()));
        }
    }
}

#[tokio::test]
async fn wrong_lengths_are_refused_before_anything_is_read() {
    for kind in RequestKind::ALL {
        let limits = kind.limits();
        for (code, most) in [(kind.code(), limits.request_bytes), (200, UNKNOWN_BYTES)] {
            let mut bytes = u32::try_from(most + 2).unwrap().to_be_bytes().to_vec();
            bytes.push(code);
            let error = read_request(&mut &bytes[..]).await.unwrap_err();
            assert!(matches!(error, CodecError::Length(_)), "{kind:?}: {error}");
        }
        let zero = read_request(&mut &[0, 0, 0, 0, kind.code()][..]).await;
        assert!(matches!(zero, Err(CodecError::Length(0))));
        assert!(request(kind, &vec![0; limits.request_bytes + 1]).is_err());
        assert!(answer(Some(kind), &Answer::Done(vec![0; limits.answer_bytes + 1])).is_err());
        let mut huge = u32::MAX.to_be_bytes().to_vec();
        huge.push(0);
        let error = read_answer(&mut &huge[..], kind).await.unwrap_err();
        assert!(matches!(error, CodecError::Length(_)));
    }
    // An answer that has nothing to say says nothing.
    let error = read_answer(&mut &[0, 0, 0, 2, 3, b'x'][..], RequestKind::Kill).await;
    assert!(matches!(error, Err(CodecError::Length(1))));
}

#[tokio::test]
async fn unknown_kinds_and_statuses_are_named() {
    let mut bytes = hello();
    bytes.extend(frame(77, b"words of a later release").unwrap());
    let (kind, body) = heard(&bytes).await.unwrap();
    assert_eq!((kind, &body[..]), (Err(77), &b"words of a later release"[..]));
    let status = frame(9, b"").unwrap();
    let error = read_answer(&mut &status[..], RequestKind::Kill).await;
    assert!(matches!(error, Err(CodecError::UnknownStatus(9))));
}

#[tokio::test]
async fn a_key_that_a_client_made_up_is_never_a_request() {
    // A process of version 1 passes a client's process id and key on: the client chooses both.
    let process_id = u32::from_be_bytes(*b"TRNK");
    let order = frame(RequestKind::Kill.code(), br#"{"id":1}"#).unwrap();
    let mut question = process_id.to_be_bytes().to_vec();
    question.extend(u16::try_from(order.len()).unwrap().to_be_bytes());
    question.extend(&order);
    assert_eq!(
        read_opening(&mut &question[..]).await.unwrap(),
        Opening::Old {
            process_id,
            key_length: order.len()
        }
    );
    for length in [0_u16, 3, 257, 0xff02] {
        let mut question = 7_u32.to_be_bytes().to_vec();
        question.extend(length.to_be_bytes());
        let error = read_opening(&mut &question[..]).await.unwrap_err();
        assert!(matches!(error, CodecError::Foreign), "{length}: {error}");
    }
}

#[tokio::test]
async fn another_version_shows_itself() {
    for version in [0, 1, 3, 255] {
        let bytes = [&MARK[..], &[version]].concat();
        assert_eq!(
            read_opening(&mut &bytes[..]).await.unwrap(),
            Opening::Hello(version)
        );
    }
}

proptest! {
    #[test]
    fn any_key_arrives(process_id: u32, key in proptest::collection::vec(any::<u8>(), CANCEL_KEY_LENGTHS)) {
        let request = CancelRequest { process_id, key: Bytes::from(key) };
        let parsed = parse_cancel(&cancel_body(&request)).unwrap();
        prop_assert_eq!((parsed.process_id, parsed.key), (request.process_id, request.key));
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        fuzzing::run(&bytes);
    }
}
