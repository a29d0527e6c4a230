//! Worker threads. Each has a separate runtime, and a session stays on its worker. No session wakes
//! another thread, and threads share no buffer. Accept loops run here too: with one worker, a
//! client never changes threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::session::turns::WorkerBuffer;

/// While connections arrive, a timer of the worker is never further off than this.
const NEAR: Duration = Duration::from_millis(500);

/// The workers of this process.
#[derive(Debug)]
pub(super) struct Workers {
    threads: Vec<Worker>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Worker {
    handle: Handle,
    buffer: Arc<WorkerBuffer>,
    tasks: Arc<AtomicUsize>,
    arrivals: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// Counts a task on a worker while the task lives.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let threads = (0..count.max(1))
            .map(|number| Worker::start(number, stop.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            threads,
            tracker: TaskTracker::new(),
            stop,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    /// The number of tasks that have not ended.
    pub(super) fn tasks(&self) -> usize {
        self.tracker.len()
    }

    /// The worker that has the fewest tasks: `home`, if no other has fewer.
    pub(super) fn least_busy(&self, home: usize) -> usize {
        let tasks = |worker: usize| self.threads[worker].tasks.load(Ordering::Relaxed);
        let by_tasks = |worker: &usize| (tasks(*worker), *worker != home);
        (0..self.threads.len()).min_by_key(by_tasks).unwrap_or(home)
    }

    /// Runs tasks on a worker that are no connection's.
    pub(super) fn handle(&self, worker: usize) -> &Handle {
        &self.threads[worker].handle
    }

    /// Runs a connection's task on a worker.
    pub(super) fn spawn<F, T>(&self, worker: usize, task: F)
    where
        F: FnOnce(Arc<WorkerBuffer>) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let worker = &self.threads[worker];
        worker.tasks.fetch_add(1, Ordering::Relaxed);
        worker.arrivals.notify_one();
        let busy = Busy(Arc::clone(&worker.tasks));
        let task = task(Arc::clone(&worker.buffer));
        self.tracker.spawn_on(
            // Not in an async block, which would have room for the task twice.
            task.map(move |()| drop(busy)),
            &worker.handle,
        );
    }

    /// Waits until every task has ended.
    pub(super) async fn idle(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends the threads and drops the remaining tasks.
    pub(super) fn stop(mut self) {
        self.stop.cancel();
        for worker in &mut self.threads {
            if let Some(thread) = worker.thread.take() {
                // A worker's thread ends by returning; a panic in a task never reaches it.
                let _ = thread.join();
            }
        }
    }
}

impl Worker {
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let arrivals = Arc::default();
        runtime.spawn(keep_a_timer_near(Arc::clone(&arrivals)));
        let thread = std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                runtime.block_on(stop.cancelled());
                // Dropping the runtime would wait for the name service and everything else that
                // blocks a thread.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            buffer: Arc::default(),
            tasks: Arc::default(),
            arrivals,
            thread: Some(thread),
        })
    }
}

/// Keeps a timer that is nearer than those of logins. Whoever sets a timer that comes before all
/// others wakes the thread on which it runs itself: a write to its event descriptor and a wait that
/// returns at once, three times in a login.
async fn keep_a_timer_near(arrivals: Arc<Notify>) {
    loop {
        arrivals.notified().await;
        sleep(NEAR).await;
    }
}
