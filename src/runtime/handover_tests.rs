#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};

use tokio::net::UnixListener;

use super::super::control::HANDOVER;
use super::*;
use crate::config::BindAddress;

async fn accept_request(control: &UnixListener) -> UnixStream {
    let (mut socket, _) = control.accept().await.unwrap();
    let mut request = [0; HANDOVER.len()];
    socket.read_exact(&mut request).await.unwrap();
    socket
}

#[tokio::test]
async fn sockets_and_the_offer_arrive() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let inherited = |place| Inherited {
        place,
        socket: listener.try_clone().unwrap().into(),
        file: None,
    };
    let (here, elsewhere) = (BoundPlace::Ip(address), BoundPlace::Any(1));
    let sockets = vec![inherited(here.clone()), inherited(elsewhere.clone())];
    let before = Generation {
        name: "a".to_owned(),
        uid: nix::unistd::geteuid().as_raw(),
    };
    let other_user = Generation {
        uid: 4_000_000,
        ..before.clone()
    };
    let generations = vec![before.clone(), other_user];
    let offer = Offer::new(
        &sockets,
        &HashMap::new(),
        &AdminOverrides::default(),
        true,
        generations,
        1_999_999,
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let control = UnixListener::bind(&path).unwrap();
    let old = tokio::spawn(async move {
        let deadline = Instant::now() + START_LIMIT;
        let mut new_process = give(accept_request(&control).await, offer, sockets, deadline)
            .await
            .unwrap();
        let about = (
            new_process.process.id(),
            new_process.generation.name.clone(),
            new_process.kept.clone(),
        );
        new_process.commit().await.unwrap();
        about
    });
    let (mut old_process, mut inheritance) = take(&path, "b").await.unwrap();
    assert_eq!(old_process.process_id, std::process::id());
    assert_eq!(old_process.generations, [before]);
    assert!(old_process.is_drained);
    assert_eq!(old_process.first_session, 3_000_000);
    assert!(
        inheritance
            .take(&BindAddress::Any { port: address.port() })
            .is_none()
    );
    let socket = inheritance.take(&BindAddress::Ip(address)).unwrap().socket;
    assert_eq!(inheritance.places(), [elsewhere]);
    old_process.wait_for_same_view(&HashMap::new()).await.unwrap();
    let committed = old_process.ready(&inheritance.places()).await.unwrap();
    committed.serving().await.unwrap();
    assert_eq!(
        old.await.unwrap(),
        (std::process::id(), "b".to_owned(), vec![here])
    );
    drop(listener);
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).unwrap();
    let _client = TcpStream::connect(address).unwrap();
    listener.accept().unwrap();
}

fn message(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// The error of a handover from a process that sends these bytes.
async fn error_after(bytes: Vec<u8>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let control = UnixListener::bind(&path).unwrap();
    let old = tokio::spawn(async move {
        let mut socket = accept_request(&control).await;
        let HandoverRequest { generation, .. } = read_versioned(&mut socket).await.unwrap();
        assert_eq!(generation, "b");
        let _ = socket.write_all(&bytes).await;
    });
    let error = take(&path, "b").await.unwrap_err().to_string();
    old.await.unwrap();
    error
}

#[tokio::test]
async fn malformed_messages_are_refused() {
    let offer = |sockets: &str| {
        message(&format!(
            r#"{{"version":{VERSION},"process_id":1,"limit_ms":9,"sockets":[{sockets}],"clusters":{{}},"kept":{{"version":1,"clusters":{{}}}},"relatives":[]}}"#
        ))
    };
    assert!(error_after(Vec::new()).await.contains("hung up"));
    assert!(error_after(vec![0, 0, 0, 9, b'{']).await.contains("hung up"));
    assert!(error_after(vec![255; 8]).await.contains("4294967295 bytes"));
    assert!(error_after(message("[]")).await.contains("malformed"));
    // The rest of the message does not matter.
    assert!(
        error_after(message(r#"{"version":9}"#))
            .await
            .contains("is version 9")
    );
    let socket = r#"{"place":{"any":5},"file":null}"#;
    assert!(error_after(offer(socket)).await.contains("hung up"));
    let mut without = offer(socket);
    without.push(b'S');
    assert!(error_after(without).await.contains("without its descriptor"));
    let nowhere = take(Path::new("/nonexistent"), "b")
        .await
        .unwrap_err()
        .to_string();
    assert!(nowhere.contains("without --take-over"), "{nowhere}");
}

#[tokio::test]
async fn both_sides_report_another_version() {
    let (mut new, old) = UnixStream::pair().unwrap();
    let offer = Offer::new(
        &[],
        &HashMap::new(),
        &AdminOverrides::default(),
        false,
        Vec::new(),
        0,
    );
    let request = serde_json::json!({"version": 9, "new": "fields"});
    write(&mut new, &request).await.unwrap();
    let error = give(old, offer, Vec::new(), Instant::now() + START_LIMIT)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is version 9"), "{error}");
    let answer: serde_json::Value = read(&mut new).await.unwrap();
    assert_eq!(answer["version"], VERSION);
}

#[tokio::test(start_paused = true)]
async fn both_sides_time_out_and_the_new_process_first() {
    let (mut new, old) = UnixStream::pair().unwrap();
    let offer = Offer::new(
        &[],
        &HashMap::new(),
        &AdminOverrides::default(),
        false,
        Vec::new(),
        0,
    );
    let deadline = Instant::now() + START_LIMIT;
    let giving = tokio::spawn(give(old, offer, Vec::new(), deadline));
    let request = HandoverRequest {
        version: VERSION,
        release: "1".to_owned(),
        generation: "b".to_owned(),
    };
    write(&mut new, &request).await.unwrap();
    let offer: Offer = read_versioned(&mut new).await.unwrap();
    let limit = Duration::from_millis(offer.limit_ms);
    assert!(
        limit > START_LIMIT / 2 && limit + START_MARGIN <= START_LIMIT,
        "{limit:?}"
    );
    // It is never ready.
    let late = giving.await.unwrap().unwrap_err();
    assert!(matches!(late, HandoverError::TimedOut), "{late}");
    assert!(Instant::now() >= deadline);

    let (_old, socket) = UnixStream::pair().unwrap();
    let old_process = OldProcess {
        socket,
        deadline: Instant::now() + limit,
        process_id: 1,
        places: Vec::new(),
        clusters: BTreeMap::new(),
        kept: AdminOverrides::default(),
        generations: Vec::new(),
        is_drained: false,
        first_session: 0,
    };
    let late = old_process.ready(&[]).await.unwrap_err();
    assert!(matches!(late, HandoverError::TimedOut), "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_silent_after_the_commit_is_killed() {
    let mut sleeping = tokio::process::Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut new, socket) = UnixStream::pair().unwrap();
    let mut new_process = NewProcess {
        socket,
        process: Process::open(sleeping.id().unwrap()).unwrap(),
        release: String::new(),
        generation: Generation {
            name: String::new(),
            uid: 0,
        },
        kept: Vec::new(),
    };
    let late = new_process.commit().await.unwrap_err();
    assert!(matches!(late, HandoverError::TimedOut), "{late}");
    let Commit {} = read(&mut new).await.unwrap();
    let status = sleeping.wait().await.unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}
