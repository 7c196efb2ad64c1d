//! The log of a task as server-sent events: what was, then what comes, until the task ends.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use lares_store::Store;
use lares_store::tasks::LogLine;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Task, TaskEvent};

/// Lines read at a time.
const PAGE: u32 = 200;
/// How often the log is looked at even if nothing was announced.
const POLL: Duration = Duration::from_secs(5);
/// How often a comment is sent while nothing happens, so that proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest wait for one answer of PostgreSQL.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

struct Reader {
    store: Store,
    task: Uuid,
    seq: i64,
    lines: broadcast::Receiver<Uuid>,
    shutdown: CancellationToken,
    ready: VecDeque<LogLine>,
    over: bool,
    _slot: OwnedSemaphorePermit,
}

/// The stream after line `seq`. `slot` is given back when the reader goes.
pub(crate) fn of(
    store: Store,
    task: Uuid,
    seq: i64,
    lines: broadcast::Receiver<Uuid>,
    shutdown: CancellationToken,
    slot: OwnedSemaphorePermit,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let reader = Reader { store, task, seq, lines, shutdown, ready: VecDeque::new(), over: false, _slot: slot };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("waiting"))
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                self.seq = line.seq;
                let line = TaskEvent::from(line);
                let event = Event::default().id(line.seq.to_string()).event(line.kind.clone());
                return event.json_data(line).ok();
            }
            if self.over || self.shutdown.is_cancelled() {
                return None;
            }
            match timeout(ANSWER_TIMEOUT, self.look()).await {
                Ok(Ok(Some(end))) => {
                    self.over = true;
                    return Event::default().event("end").json_data(end).ok();
                }
                Ok(Ok(None)) if self.ready.is_empty() => self.wait().await,
                Ok(Ok(None)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::debug!(task = %self.task, %error, "the log cannot be read, trying again");
                    self.wait().await;
                }
            }
        }
    }

    /// Reads the next lines; the task when it has ended and there are none.
    async fn look(&mut self) -> Result<Option<Task>, lares_store::tasks::TaskError> {
        // The state before the lines: the line that ended a task is there when its state is.
        let tasks = self.store.tasks();
        let task = tasks.get(self.task).await?;
        self.ready = tasks.log_after(self.task, self.seq, PAGE).await?.into();
        Ok((self.ready.is_empty() && task.state.is_final()).then(|| task.into()))
    }

    async fn wait(&mut self) {
        let (task, lines) = (self.task, &mut self.lines);
        let rung = async {
            loop {
                match lines.recv().await {
                    Ok(id) if id != task && !id.is_nil() => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
                }
            }
        };
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = sleep(POLL) => {}
            () = rung => {}
        }
    }
}

/// Streams that may be open at the same time; each one asks PostgreSQL now and then.
pub(crate) const MAX_STREAMS: usize = 256;

/// A place for one more stream, if there is one.
pub(crate) fn slot(slots: &Arc<tokio::sync::Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(slots).try_acquire_owned().ok()
}
