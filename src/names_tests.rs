#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// Each look-up takes the next answer that is sent; until there is one it keeps its thread.
fn scripted() -> (mpsc::Sender<NameResult>, Arc<AtomicUsize>, Names) {
    let (answer, answers) = mpsc::channel::<NameResult>();
    let (answers, asked) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    let names = Names::new(Arc::new(move |_: &str| {
        counted.fetch_add(1, Ordering::SeqCst);
        answers.lock().unwrap().recv().unwrap_or(Err(NameError::Silent))
    }));
    (answer, asked, names)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(100)
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

#[tokio::test]
async fn an_address_written_out_is_not_looked_up() {
    assert_eq!(addresses("192.0.2.1", soon()).await.unwrap(), [A]);
    assert!(addresses("::1", soon()).await.unwrap()[0].is_ipv6());
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_the_last_good_addresses_are_used_by_any_number() {
    let (answer, asked, names) = scripted();
    let nothing = names.addresses("db", soon()).await;
    assert!(matches!(nothing, Err(NameError::Silent)), "{nothing:?}");
    answer.send(Ok(vec![A])).unwrap();
    // The look-up begun before is the one that is answered now; it answers until its thread has
    // ended.
    while lock(&names.known)["db"].is_running() {
        tokio::task::yield_now().await;
    }
    assert_eq!(lock(&names.known)["db"].good, Some(vec![A]));
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(before, 1);
    for _ in 0..1000 {
        assert_eq!(names.addresses("db", later()).await.unwrap(), [A]);
    }
    while asked.load(Ordering::SeqCst) == before {
        tokio::task::yield_now().await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), before + 1, "one thread");
    answer
        .send(Err(NameError::NoSuchName("no such name".into())))
        .unwrap();
    // An answer counts, as soon as there is one, and nothing older.
    while names.addresses("db", soon()).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn names_that_hang_leave_room_for_what_is_known() {
    let (answer, asked, names) = scripted();
    answer.send(Ok(vec![A])).unwrap();
    assert_eq!(names.addresses("db", later()).await.unwrap(), [A]);
    for other in 0..3 * MAX_RUNNING {
        let nothing = names.addresses(&format!("other{other}"), Instant::now()).await;
        assert!(nothing.is_err());
    }
    while asked.load(Ordering::SeqCst) < 1 + MAX_RUNNING {
        tokio::task::yield_now().await;
    }
    assert_eq!(names.addresses("db", later()).await.unwrap(), [A]);
    assert_eq!(asked.load(Ordering::SeqCst), 1 + MAX_RUNNING);
    drop(answer);
}

#[tokio::test]
async fn what_is_remembered_is_limited() {
    let names = Names::new(Arc::new(|_: &str| Ok(vec![A])));
    for name in 0..MAX_NAMES + 100 {
        names.addresses(&format!("n{name}"), later()).await.unwrap();
    }
    let known = lock(&names.known);
    assert!(known.len() <= MAX_NAMES, "{}", known.len());
    assert!(known.contains_key(&format!("n{}", MAX_NAMES + 99)) && !known.contains_key("n0"));
}
