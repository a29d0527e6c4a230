#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

/// Wherever the stream is split, its valid part is what comes before the invalid message; if a part
/// of that message has passed already, nothing may be put behind it.
#[test]
fn an_error_says_how_far_the_stream_is_valid() {
    let good = [
        frame(b'T', &[7; 30]),
        frame(b'D', &[7; 40]),
        frame(b'C', b"SELECT 1\0"),
    ]
    .concat();
    for bad in [
        &b"D\0\0\0\x03"[..],
        b"Z\0\0\0\x05?",
        b"Z\0\0\0\x09",
        b"S\0\0\0\x05x",
    ] {
        let stream = [&good[..], bad].concat();
        for cut in 0..=stream.len() {
            let mut observer = ServerObserver::new();
            let (first, second) = stream.split_at(cut);
            let mut passed = 0;
            for run in [first, second] {
                if observer.feed(run, |_| {}).is_err() {
                    passed += observer.valid();
                    break;
                }
                passed += run.len();
            }
            assert_eq!(observer.at_boundary(), passed == good.len(), "{cut}");
            assert!(passed >= good.len(), "{cut}");
        }
    }
}

/// Every message that a server may send, and the event that reports it.
fn server_stream() -> (Vec<u8>, Vec<String>) {
    let long_report = [b"SERROR\0VERROR\0C23505\0M", &b"x".repeat(40_000)[..], b"\0\0"].concat();
    let frames: Vec<(u8, Vec<u8>, Option<&str>)> = vec![
        (b'1', vec![], Some("Answer(49)")),
        (b't', b"\0\0".to_vec(), None),
        (b'T', vec![7; 300], Some("Answer(84)")),
        (b'D', vec![7; 100], None),
        (b'D', vec![], None),
        (b'C', b"SELECT 2\0".to_vec(), Some("C SELECT 2")),
        (b'S', b"TimeZone\0\xff\0".to_vec(), Some("S TimeZone \u{fffd}")),
        (
            b'K',
            b"\0\0\0\x07key!".to_vec(),
            Some("Key { process_id: 7, key: [107, 101, 121, 33] }"),
        ),
        (
            b'N',
            b"SWARNING\0VWARNING\0C01000\0M?\0\0".to_vec(),
            Some("N 01000 false"),
        ),
        (b'E', long_report, Some("E 23505 false")),
        (
            b'E',
            b"SFATAL\0VFATAL\0C57P01\0M!\0\0".to_vec(),
            Some("E 57P01 true"),
        ),
        (b'?', vec![1; 50], None),
        (b'G', b"\0\0\x01\0\0".to_vec(), Some("CopyIn")),
        (b'H', b"\0\0\x01\0\0".to_vec(), Some("CopyOut")),
        (b'W', b"\0\0\0".to_vec(), Some("CopyBoth")),
        (b'd', vec![1; 20], None),
        (b'c', vec![], None),
        (b'A', b"\0\0\0\x01ch\0payload\0".to_vec(), Some("Notification")),
        (b'Z', b"T".to_vec(), Some("ReadyForQuery(InTransaction)")),
    ];
    let stream = frames
        .iter()
        .flat_map(|(tag, body, _)| frame(*tag, body))
        .collect();
    (
        stream,
        frames
            .iter()
            .filter_map(|(_, _, event)| event.map(str::to_owned))
            .collect(),
    )
}

fn shown(event: ServerEvent<'_>) -> String {
    let report = |tag, report: Report<'_>| format!("{tag} {} {}", report.code(), report.is_fatal());
    let text = String::from_utf8_lossy;
    match event {
        ServerEvent::CommandComplete(tag) => format!("C {}", text(tag)),
        ServerEvent::Parameter { name, value } => format!("S {} {}", text(name), text(value)),
        ServerEvent::Notice(notice) => report("N", notice),
        ServerEvent::Error(error) => report("E", error),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_server_s_stream_may_be_split_at_every_byte() {
    let (stream, expected) = server_stream();
    for at in 0..=stream.len() {
        let (mut observer, mut seen) = (ServerObserver::new(), Vec::new());
        for part in [&stream[..at], &stream[at..]] {
            observer.feed(part, |event| seen.push(shown(event))).unwrap();
        }
        assert_eq!(seen, expected, "split at {at}");
        assert!(observer.at_boundary());
        assert_eq!(observer.kept.capacity(), 0);
    }
}

#[test]
fn a_server_s_stream_may_come_in_reads_of_any_size() {
    let (stream, expected) = server_stream();
    for step in (1..64).chain([997, 8192]) {
        let (mut observer, mut seen, mut fed) = (ServerObserver::new(), Vec::new(), 0);
        let mut boundaries = vec![0];
        while let Some(&[_, a, b, c, d]) = stream[*boundaries.last().unwrap()..].first_chunk::<5>() {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            boundaries.push(boundaries.last().unwrap() + 1 + length);
        }
        for part in stream.chunks(step) {
            observer.feed(part, |event| seen.push(shown(event))).unwrap();
            fed += part.len();
            assert_eq!(
                observer.at_boundary(),
                boundaries.contains(&fed),
                "after {fed} bytes"
            );
            assert!(observer.kept.len() <= REPORT_KEPT);
        }
        assert_eq!(seen, expected, "reads of {step} bytes");
    }
}

#[test]
fn an_idle_observer_is_small() {
    assert!(size_of::<ServerObserver>() <= 64);
    assert!(size_of::<ClientObserver>() <= 16);
}

#[test]
fn a_frame_larger_than_memory_is_a_counter() {
    let mut observer = ServerObserver::new();
    observer
        .feed(b"D\x7f\xff\xff\xff", |_| panic!("a row is not reported"))
        .unwrap();
    let megabyte = vec![b'Z'; 1 << 20];
    let mut left = 0x7fff_ffff_usize - 4;
    while left > 0 {
        assert!(!observer.at_boundary());
        let part = &megabyte[..left.min(megabyte.len())];
        observer.feed(part, |_| panic!("inside a row")).unwrap();
        left -= part.len();
    }
    assert!(observer.at_boundary());
    let mut seen = 0;
    observer.feed(b"Z\0\0\0\x05I", |_| seen += 1).unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn a_server_out_of_step_is_an_error() {
    let absurd: [&[u8]; 13] = [
        b"D\0\0\0\x03",
        b"D\x80\0\0\0",
        b"Z\0\0\0\x06II",
        b"Z\0\0\0\x04",
        b"Z\0\0\0\x05X",
        b"C\0\0\x75\x31",
        b"C\0\0\0\x05x",
        b"C\0\0\0\x04",
        b"S\0\0\x75\x31",
        b"S\0\0\0\x06x\0",
        b"S\0\0\0\x0aa\0b\0c\0",
        b"K\0\0\0\x06xx",
        b"?\0\0\0\0",
    ];
    for stream in absurd {
        let mut whole = ServerObserver::new();
        assert!(whole.feed(stream, |_| {}).is_err(), "{stream:?}");
        let mut split = ServerObserver::new();
        assert!(
            stream.iter().any(|byte| split.feed(&[*byte], |_| {}).is_err()),
            "{stream:?}"
        );
    }
}

#[test]
fn a_client_s_frames_are_reported_at_their_headers() {
    let stream = [
        frame(b'P', &[b'x'; 500]),
        frame(b'S', b""),
        frame(b'?', b"abc"),
        frame(b'X', b""),
    ]
    .concat();
    let expected = [(b'P', 504), (b'S', 4), (b'?', 7), (b'X', 4)];
    for step in 1..=stream.len() {
        let (mut observer, mut seen) = (ClientObserver::new(), Vec::new());
        for part in stream.chunks(step) {
            assert!(!observer.terminated());
            observer
                .feed(part, |tag, length| seen.push((tag, length)))
                .unwrap();
        }
        assert_eq!(seen, expected, "reads of {step} bytes");
        assert!(observer.at_boundary() && observer.terminated());
        // Nothing follows Terminate.
        assert_eq!(observer.feed(b"Q\0\0\0\x04", |_, _| panic!("ignored")), Ok(0));
    }
    let mut observer = ClientObserver::new();
    let mut seen = Vec::new();
    observer.feed(&stream[..5], |tag, _| seen.push(tag)).unwrap();
    assert_eq!((seen, observer.at_boundary()), (vec![b'P'], false));
}

/// A server reads the body of `X` before it ends, and nothing behind it.
#[test]
fn a_terminate_counts_when_it_is_whole() {
    let stream = [frame(b'X', b"and a body"), frame(b'Q', b"SELECT 1\0")].concat();
    let terminate = 5 + b"and a body".len();
    for cut in 0..=stream.len() {
        let mut observer = ClientObserver::new();
        let mut tags = Vec::new();
        let first = observer.feed(&stream[..cut], |tag, _| tags.push(tag)).unwrap();
        assert_eq!(observer.terminated(), cut >= terminate, "{cut}");
        assert_eq!(
            observer.unfinished(),
            (5..terminate).contains(&cut).then_some(b'X')
        );
        let second = observer.feed(&stream[cut..], |tag, _| tags.push(tag)).unwrap();
        assert_eq!(
            (first + second, observer.terminated()),
            (terminate, true),
            "{cut}"
        );
        assert_eq!(tags, b"X");
    }
}

#[test]
fn what_has_passed_of_a_frame_and_what_is_missing_is_known() {
    let frames = [
        frame(b'D', &[7; 300]),
        frame(b'E', b"SERROR\0C42P01\0\0"),
        frame(b'I', b""),
    ];
    let stream = frames.concat();
    let mut start = 0;
    for frame in &frames {
        for passed in 0..frame.len() {
            let mut observer = ServerObserver::new();
            let mut at = start + passed;
            observer.feed(&stream[..at], |_| {}).unwrap();
            assert_eq!(observer.passed(), passed, "{at}");
            while !observer.at_boundary() {
                let next = at + observer.missing();
                observer.feed(&stream[at..next], |_| {}).unwrap();
                at = next;
            }
            let end = if passed == 0 { start } else { start + frame.len() };
            assert_eq!((at, observer.missing()), (end, 0));
        }
        start += frame.len();
    }
}

#[test]
fn a_client_s_lengths_have_the_limits_of_postgresql() {
    for (header, is_refused) in [
        (b"Q\x3f\xff\xff\xfe", false),
        (b"Q\x3f\xff\xff\xff", true),
        (b"d\0\0\0\x03", true),
        (b"S\0\0\x27\x10", false),
        (b"S\0\0\x27\x11", true),
        (b"?\xff\xff\xff\xff", true),
    ] {
        assert_eq!(
            ClientObserver::new().feed(header, |_, _| {}).is_err(),
            is_refused,
            "{header:?}"
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_the_same_however_they_are_split(
        bytes in vec(prop_oneof![4 => Just(0), 2 => Just(5), 2 => proptest::sample::select(b"ZCENSKDGT1".to_vec()), 1 => any::<u8>()], 0..80),
        cuts in vec(0_usize..80, 0..6),
    ) {
        let run = |parts: &[&[u8]]| {
            let (mut server, mut events) = (ServerObserver::new(), Vec::new());
            let outcome = parts.iter().try_for_each(|p| server.feed(p, |event| events.push(format!("{event:?}"))));
            let (mut client, mut frames) = (ClientObserver::new(), Vec::new());
            let client_outcome = parts.iter().try_for_each(|p| client.feed(p, |tag, length| frames.push((tag, length))).map(drop));
            (outcome, events, client_outcome, frames)
        };
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(run(&[&bytes]), run(&parts));
    }
}
