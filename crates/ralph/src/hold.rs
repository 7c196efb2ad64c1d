//! Holding a task: the lease is renewed, the time is counted, and whatever ends the work early reaches what runs.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lares_store::Store;
use lares_store::tasks::{Lease, Task, TaskError};
use rand::Rng as _;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Waits between tries of a write that PostgreSQL did not take: from the first to the longest.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest wait for one answer of PostgreSQL, so that a stuck connection does not use up the lease.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the work on a task stops before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Halt {
    /// A person asked for it.
    Cancelled,
    /// The time of the task is used up.
    Deadline,
    /// This process is shutting down.
    Shutdown,
    /// Another worker has the task, or might have: nothing more may be written.
    Fenced,
    /// It cannot go on now but may later: back into the queue for a while.
    Later { wait: Duration, reason: String },
    /// It cannot go on at all.
    Fail(String),
}

/// The hold on one task.
pub(crate) struct Hold {
    pub(crate) lease: Lease,
    store: Store,
    extend: Duration,
    /// Time worked before this take-over.
    before: Duration,
    timeout: Duration,
    began: Instant,
    why: Mutex<Option<Halt>>,
    /// Times in a row that the model was away.
    away: AtomicU32,
    /// Fires when the work has to stop; the reason is set by then.
    pub(crate) stop: CancellationToken,
}

impl Hold {
    pub(crate) fn new(store: Store, task: &Task, extend: Duration) -> Self {
        Self {
            lease: task.lease(),
            store,
            extend,
            before: task.worked,
            timeout: task.timeout,
            began: Instant::now(),
            why: Mutex::new(None),
            away: AtomicU32::new(0),
            stop: CancellationToken::new(),
        }
    }

    /// Time worked on the task so far, by all workers.
    pub(crate) fn worked(&self) -> Duration {
        self.before + self.began.elapsed()
    }

    /// What remains of the task's time.
    pub(crate) fn time_left(&self) -> Duration {
        self.timeout.saturating_sub(self.worked())
    }

    /// Stops the work; the first reason counts.
    pub(crate) fn halt(&self, why: Halt) {
        let mut held = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert(why);
        drop(held);
        self.stop.cancel();
    }

    /// Whether the work may go on.
    pub(crate) fn check(&self) -> Result<(), Halt> {
        match &*self.why.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// Counts that the model was away once more; how often it was before.
    pub(crate) fn note_away(&self) -> u32 {
        self.away.fetch_add(1, Ordering::Relaxed)
    }

    /// The model answered.
    pub(crate) fn note_back(&self) {
        self.away.store(0, Ordering::Relaxed);
    }

    /// Waits, unless the work has to stop.
    pub(crate) async fn pause(&self, wait: Duration) -> Result<(), Halt> {
        let _ = self.stop.run_until_cancelled(sleep(wait)).await;
        self.check()
    }

    /// Renews the lease until `done`. `bell` rings the ids of tasks that something was announced about.
    pub(crate) async fn keep(
        &self,
        mut bell: broadcast::Receiver<Uuid>,
        shutdown: &CancellationToken,
        done: &CancellationToken,
    ) {
        let mut renewed = Instant::now();
        let beat = self.extend / 3;
        loop {
            let deadline = self.time_left();
            let pause = beat.mul_f64(rand::rng().random_range(0.8..1.0));
            let rung = async {
                loop {
                    match bell.recv().await {
                        Ok(id) if id != self.lease.task && !id.is_nil() => {}
                        // After a gap the announcement may have been for this task.
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                        Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
                    }
                }
            };
            tokio::select! {
                biased;
                () = done.cancelled() => return,
                () = shutdown.cancelled(), if !self.stop.is_cancelled() => self.halt(Halt::Shutdown),
                () = sleep(deadline), if !self.stop.is_cancelled() => self.halt(Halt::Deadline),
                () = rung => {}
                () = sleep(pause) => {}
            }
            let tasks = self.store.tasks();
            let beating = tasks.heartbeat(self.lease, self.extend, self.worked());
            let asked = Instant::now();
            match tokio::time::timeout(beat.max(Duration::from_millis(100)), beating).await {
                Ok(Ok(cancel_requested)) => {
                    renewed = asked;
                    if cancel_requested {
                        self.halt(Halt::Cancelled);
                    }
                }
                Ok(Err(TaskError::Fenced(_) | TaskError::NotFound(_))) => self.halt(Halt::Fenced),
                Ok(Err(error)) => tracing::warn!(task = %self.lease.task, %error, "the lease could not be renewed"),
                Err(_) => tracing::warn!(task = %self.lease.task, "no answer to the renewal of the lease"),
            }
            // Measured from before the question was sent, so that this ends no later than PostgreSQL's own count.
            if renewed.elapsed() >= self.extend {
                self.halt(Halt::Fenced);
            }
        }
    }

    /// Writes, trying again while PostgreSQL is away: the heartbeat ends it when the lease is over.
    pub(crate) async fn write<'s, T, F>(
        &'s self,
        mut query: impl FnMut(lares_store::tasks::Tasks<'s>) -> F,
    ) -> Result<T, Halt>
    where
        F: Future<Output = Result<T, TaskError>>,
    {
        let (mut wait, longest) = RETRY_WAITS;
        let began = Instant::now();
        loop {
            let error = match tokio::time::timeout(ANSWER_TIMEOUT, query(self.store.tasks())).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(TaskError::Fenced(_) | TaskError::NotFound(_))) => {
                    self.halt(Halt::Fenced);
                    return Err(Halt::Fenced);
                }
                Ok(Err(error)) if !error.is_transient() => {
                    return Err(Halt::Later { wait: Duration::from_secs(30), reason: error.to_string() });
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            tracing::warn!(task = %self.lease.task, error, "PostgreSQL did not take a write, trying again");
            if began.elapsed() >= self.extend {
                self.halt(Halt::Fenced);
                return Err(Halt::Fenced);
            }
            let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.5));
            sleep(jittered).await;
            wait = (wait * 2).min(longest);
        }
    }

    /// Writes a line into the task's log.
    pub(crate) async fn log(&self, kind: &str, message: &str, data: serde_json::Value) -> Result<(), Halt> {
        let data = &data;
        self.write(|tasks| async move { tasks.log(self.lease, kind, message, data).await }).await
    }
}
