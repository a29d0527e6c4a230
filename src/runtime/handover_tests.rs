#![allow(clippy::unwrap_used)]

use std::net::{TcpListener, TcpStream};

use tokio::net::UnixListener;

use super::super::control::HANDOVER;
use super::*;
use crate::config::BindAddress;

async fn asked(control: &UnixListener) -> UnixStream {
    let (mut socket, _) = control.accept().await.unwrap();
    let mut asked = [0; HANDOVER.len()];
    socket.read_exact(&mut asked).await.unwrap();
    socket
}

#[tokio::test]
async fn sockets_pass_with_all_that_is_said_of_them() {
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
    let stranger = Generation {
        uid: 4_000_000,
        ..before.clone()
    };
    let generations = vec![before.clone(), stranger];
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
        let deadline = Instant::now() + START;
        let mut heir = give(asked(&control).await, offer, sockets, deadline)
            .await
            .unwrap();
        let about = (heir.process.id(), heir.generation.name.clone(), heir.kept.clone());
        heir.commit().await.unwrap();
        about
    });
    let (mut taken, mut inheritance) = take(&path, "b").await.unwrap();
    assert_eq!(taken.process_id, std::process::id());
    assert_eq!(taken.generations, [before]);
    assert!(taken.is_drained);
    assert_eq!(taken.first_session, 3_000_000);
    assert!(
        inheritance
            .take(&BindAddress::Any { port: address.port() })
            .is_none()
    );
    let socket = inheritance.take(&BindAddress::Ip(address)).unwrap().socket;
    assert_eq!(inheritance.places(), [elsewhere]);
    taken.warm(&HashMap::new()).await.unwrap();
    let successor = taken.ready(&inheritance.places()).await.unwrap();
    successor.serving().await.unwrap();
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

/// Why nothing is taken from a process that says this.
async fn told(bytes: Vec<u8>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let control = UnixListener::bind(&path).unwrap();
    let old = tokio::spawn(async move {
        let mut socket = asked(&control).await;
        let Asks { generation, .. } = read_versioned(&mut socket).await.unwrap();
        assert_eq!(generation, "b");
        let _ = socket.write_all(&bytes).await;
    });
    let error = take(&path, "b").await.unwrap_err().to_string();
    old.await.unwrap();
    error
}

#[tokio::test]
async fn a_process_that_makes_no_sense_gets_nowhere() {
    let offer = |sockets: &str| {
        message(&format!(
            r#"{{"version":{VERSION},"process_id":1,"limit_ms":9,"sockets":[{sockets}],"clusters":{{}},"kept":{{"version":1,"clusters":{{}}}},"relatives":[]}}"#
        ))
    };
    assert!(told(Vec::new()).await.contains("hung up"));
    assert!(told(vec![0, 0, 0, 9, b'{']).await.contains("hung up"));
    assert!(told(vec![255; 8]).await.contains("4294967295 bytes"));
    assert!(told(message("[]")).await.contains("no sense"));
    // However it looks otherwise.
    assert!(told(message(r#"{"version":9}"#)).await.contains("is version 9"));
    let socket = r#"{"place":{"any":5},"file":null}"#;
    assert!(told(offer(socket)).await.contains("hung up"));
    let mut without = offer(socket);
    without.push(b'S');
    assert!(told(without).await.contains("without its descriptor"));
    let nowhere = take(Path::new("/nonexistent"), "b")
        .await
        .unwrap_err()
        .to_string();
    assert!(nowhere.contains("without --take-over"), "{nowhere}");
}

#[tokio::test]
async fn another_version_is_named_on_both_sides() {
    let (mut new, old) = UnixStream::pair().unwrap();
    let offer = Offer::new(
        &[],
        &HashMap::new(),
        &AdminOverrides::default(),
        false,
        Vec::new(),
        0,
    );
    let asks = serde_json::json!({"version": 9, "new": "words"});
    write(&mut new, &asks).await.unwrap();
    let error = give(old, offer, Vec::new(), Instant::now() + START)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is version 9"), "{error}");
    let answer: serde_json::Value = read(&mut new).await.unwrap();
    assert_eq!(answer["version"], VERSION);
}

#[tokio::test(start_paused = true)]
async fn a_late_process_is_given_up_and_the_new_process_gives_up_first() {
    let (mut new, old) = UnixStream::pair().unwrap();
    let offer = Offer::new(
        &[],
        &HashMap::new(),
        &AdminOverrides::default(),
        false,
        Vec::new(),
        0,
    );
    let deadline = Instant::now() + START;
    let giving = tokio::spawn(give(old, offer, Vec::new(), deadline));
    let asks = Asks {
        version: VERSION,
        release: "1".to_owned(),
        generation: "b".to_owned(),
    };
    write(&mut new, &asks).await.unwrap();
    let offer: Offer = read_versioned(&mut new).await.unwrap();
    let limit = Duration::from_millis(offer.limit_ms);
    assert!(limit > START / 2 && limit + SOONER <= START, "{limit:?}");
    // It is never ready.
    let late = giving.await.unwrap().unwrap_err();
    assert!(matches!(late, HandoverError::Late), "{late}");
    assert!(Instant::now() >= deadline);

    let (_old, socket) = UnixStream::pair().unwrap();
    let taken = Taken {
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
    let late = taken.ready(&[]).await.unwrap_err();
    assert!(matches!(late, HandoverError::Late), "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_silent_after_the_commit_is_killed() {
    let mut sleeping = tokio::process::Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut new, socket) = UnixStream::pair().unwrap();
    let mut heir = Heir {
        socket,
        process: Process::open(sleeping.id().unwrap()).unwrap(),
        release: String::new(),
        generation: Generation {
            name: String::new(),
            uid: 0,
        },
        kept: Vec::new(),
    };
    let late = heir.commit().await.unwrap_err();
    assert!(matches!(late, HandoverError::Late), "{late}");
    let Yours {} = read(&mut new).await.unwrap();
    let status = sleeping.wait().await.unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}
