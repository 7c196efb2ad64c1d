//! How a daemon writes telemetry: never blocking, through a spool that outlives it and PostgreSQL's absences.
//!
//! `record` → queue → thread that appends to the spool → task that ships it in batches. An event is safe from
//! `kill -9` of the daemon as soon as the thread has written it, and from the machine's end about a second later.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::spool::{Batch, Reader, Slot, Writer, reject, remove, to_line};
use super::{Event, is_poison};
use crate::connect::jittered;
use crate::{Error, Store};

/// Events on their way to the thread; at 1,000 a second it may stall for eight seconds.
const QUEUE: usize = 8192;
/// Most bytes in the spool, shipped or not; what comes on top is dropped and counted.
const SPOOL_MAX: u64 = 64 * 1024 * 1024;
/// Bytes after which the thread writes what it has gathered.
const WRITE: usize = 256 * 1024;
/// Events in one INSERT. PostgreSQL takes about a fifth of a millisecond for them, and so long may whoever shares its
/// core have to wait: at 1,000 requests a second on two cores, one in a hundred waited 0.6 ms longer than without a
/// coordinator with 6 in one, 1.1 ms with 20, and 1.7 ms with 100.
const BATCH: usize = 6;
/// Events in one INSERT where many wait: then it is more important that they get there.
const BATCH_BACKLOG: usize = 500;
/// Bytes from which on a file to ship is a backlog; a thousand events a second make 50 KB from one time to the next.
const BACKLOG: u64 = 256 * 1024;
/// Wait for more events before shipping, so that a busy second is a few statements.
const GATHER: Duration = Duration::from_millis(100);
/// How often the spool is brought to disk.
const SYNC: Duration = Duration::from_secs(1);
/// First and longest wait before shipping again after PostgreSQL failed.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often to look for what other recorders of this name left behind; the first time comes sooner.
const ADOPT: Duration = Duration::from_secs(30);
const ADOPT_FIRST: Duration = Duration::from_secs(1);
/// Longest a flush takes.
const FLUSH: Duration = Duration::from_secs(5);

/// Why there is no recorder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The name cannot be that of a file.
    #[error("{0:?} cannot name a spool; use small letters, digits, - and _")]
    BadName(String),
    /// Too many daemons of one name.
    #[error("all spools of {name} in {dir} are in use; are that many daemons running?")]
    Busy {
        /// The name.
        name: String,
        /// Where its spools are.
        dir: PathBuf,
    },
    /// The spool cannot be written.
    #[error("cannot use the spool in {dir}: {source}")]
    Io {
        /// Where the spools are.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

enum Message {
    Event(Box<Event>),
    /// Make the live file the one to ship; answers whether there is one.
    Rotate(oneshot::Sender<io::Result<bool>>),
}

#[derive(Debug, Default)]
struct Counters {
    dropped: AtomicU64,
    rejected: AtomicU64,
    /// Bytes of the file being appended to.
    live: AtomicU64,
    /// Bytes of the file being shipped.
    shipping: AtomicU64,
    /// Wakes the shipper.
    written: Notify,
}

/// Writes events. Clones share it; dropping the last one leaves what is not shipped yet in the spool, and the next
/// recorder of the name ships it.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    queue: SyncSender<Message>,
    flushes: mpsc::Sender<oneshot::Sender<()>>,
    counters: Arc<Counters>,
    _stop: DropGuard,
}

impl Recorder {
    /// Opens the spool `STATE_DIR/spool/NAME.jsonl` and starts to ship what is in it. `name` is the daemon's.
    ///
    /// # Errors
    /// When the spool cannot be written.
    pub async fn open(store: Store, state_dir: &Path, name: &str) -> Result<Self, SpoolError> {
        if name.is_empty() || !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')) {
            return Err(SpoolError::BadName(name.to_owned()));
        }
        let dir = state_dir.join("spool");
        let io_error = |source: io::Error| SpoolError::Io { dir: dir.clone(), source };
        let (wanted, at) = (name.to_owned(), dir.clone());
        let opened = blocking(move || {
            let Some(slot) = Slot::take(&at, &wanted)? else { return Ok(None) };
            let writer = Writer::open(&slot.files)?;
            let shipping = slot.files.shipping.metadata().map_or(0, |meta| meta.len());
            Ok(Some((slot, writer, shipping)))
        })
        .await
        .map_err(io_error)?;
        let Some((slot, writer, shipping)) = opened else {
            return Err(SpoolError::Busy { name: name.to_owned(), dir });
        };
        let slot = Arc::new(slot);
        let counters = Arc::new(Counters::default());
        counters.live.store(writer.length(), Ordering::Relaxed);
        counters.shipping.store(shipping, Ordering::Relaxed);
        let (queue, messages) = sync_channel(QUEUE);
        let (flushes, flush_requests) = mpsc::channel(16);
        let appender = Appender { writer, messages, counters: counters.clone(), told: 0, _slot: slot.clone() };
        std::thread::Builder::new().name(format!("spool-{name}")).spawn(|| appender.run()).map_err(io_error)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let shipper = Shipper {
            store,
            slot,
            dir: dir.clone(),
            name: name.to_owned(),
            queue: queue.clone(),
            counters: counters.clone(),
            current: None,
        };
        // There may be something from before.
        counters.written.notify_one();
        tokio::spawn(async move {
            stopped.run_until_cancelled(shipper.run(flush_requests)).await;
        });
        Ok(Self { inner: Arc::new(Inner { queue, flushes, counters, _stop: stop.drop_guard() }) })
    }

    /// Takes an event. Returns at once; when the spool is full or its thread cannot keep up the event is dropped and
    /// counted.
    pub fn record(&self, event: Event) {
        if self.inner.queue.try_send(Message::Event(Box::new(event))).is_err() {
            self.inner.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.inner.counters.dropped.load(Ordering::Relaxed)
    }

    /// Lines put aside into `NAME.rejected.jsonl` since the start, because they do not parse or PostgreSQL refuses them.
    pub fn rejected(&self) -> u64 {
        self.inner.counters.rejected.load(Ordering::Relaxed)
    }

    /// Bytes that wait in the spool.
    pub fn spooled_bytes(&self) -> u64 {
        self.inner.counters.live.load(Ordering::Relaxed) + self.inner.counters.shipping.load(Ordering::Relaxed)
    }

    /// Waits until everything recorded before is in PostgreSQL, but no longer than a few seconds. `false` when it is
    /// not: it stays in the spool, and the next start ships it.
    pub async fn flush(&self) -> bool {
        let (done, wait) = oneshot::channel();
        let flushed = async { self.inner.flushes.send(done).await.is_ok() && wait.await.is_ok() };
        timeout(FLUSH, flushed).await.unwrap_or(false)
    }
}

/// The thread that alone appends to the spool.
struct Appender {
    writer: Writer,
    messages: Receiver<Message>,
    counters: Arc<Counters>,
    /// Drops that the log knows of.
    told: u64,
    _slot: Arc<Slot>,
}

impl Appender {
    fn run(mut self) {
        let mut unsynced = false;
        let mut last_sync = Instant::now();
        loop {
            match self.messages.recv_timeout(SYNC) {
                Ok(first) => {
                    self.take(first);
                    unsynced = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if unsynced && last_sync.elapsed() >= SYNC {
                // Not bringing it to disk loses it only together with the machine.
                if let Err(error) = self.writer.sync() {
                    tracing::warn!(%error, "cannot bring the spool to disk");
                }
                (unsynced, last_sync) = (false, Instant::now());
                self.tell_drops();
            }
        }
    }

    /// Writes a message and those that wait behind it with as few calls as can be.
    fn take(&mut self, first: Message) {
        let (mut lines, mut count) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Event(event) => match to_line(&event) {
                    Some(line) => {
                        lines.extend(line);
                        count += 1;
                    }
                    None => self.drop_events(1),
                },
                Message::Rotate(reply) => {
                    self.append(&std::mem::take(&mut lines), std::mem::take(&mut count));
                    let rotated = self.rotate();
                    let _ = reply.send(rotated);
                }
            }
            // `run` comes back for more.
            next = if lines.len() < WRITE { self.messages.try_recv().ok() } else { None };
        }
        self.append(&lines, count);
    }

    fn append(&mut self, lines: &[u8], count: u64) {
        if count == 0 {
            return;
        }
        let waiting = self.writer.length() + self.counters.shipping.load(Ordering::Relaxed);
        if waiting + lines.len() as u64 > SPOOL_MAX {
            self.drop_events(count);
            return;
        }
        match self.writer.append(lines) {
            Ok(()) => {
                self.counters.live.store(self.writer.length(), Ordering::Relaxed);
                self.counters.written.notify_one();
            }
            Err(error) => {
                if self.told == self.counters.dropped.load(Ordering::Relaxed) {
                    tracing::error!(%error, "cannot write the spool");
                }
                self.drop_events(count);
            }
        }
    }

    fn rotate(&mut self) -> io::Result<bool> {
        let rotated = self.writer.rotate()?;
        if let Some(length) = rotated {
            self.counters.shipping.store(length, Ordering::Relaxed);
            self.counters.live.store(0, Ordering::Relaxed);
        }
        Ok(rotated.is_some())
    }

    fn drop_events(&self, count: u64) {
        self.counters.dropped.fetch_add(count, Ordering::Relaxed);
    }

    fn tell_drops(&mut self) {
        let dropped = self.counters.dropped.load(Ordering::Relaxed);
        if dropped > self.told {
            tracing::error!(dropped, "events were dropped: the spool is full or too slow");
            self.told = dropped;
        }
    }
}

/// A file on its way, so far as it has come.
struct Current {
    reader: Reader,
    batch: Batch,
    /// Events in one INSERT.
    size: usize,
}

/// Why shipping stopped for now.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("the spool: {0}")]
    Spool(#[from] io::Error),
    #[error("the spool's thread does not answer")]
    NoThread,
}

/// The task that moves the spool into PostgreSQL.
struct Shipper {
    store: Store,
    slot: Arc<Slot>,
    dir: PathBuf,
    name: String,
    queue: SyncSender<Message>,
    counters: Arc<Counters>,
    current: Option<Current>,
}

impl Shipper {
    async fn run(mut self, mut flush_requests: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut adopt = interval(ADOPT);
        adopt.set_missed_tick_behavior(MissedTickBehavior::Delay);
        adopt.reset_after(ADOPT_FIRST);
        let mut flushing = Vec::new();
        let mut retry = RETRY_MIN;
        let mut complained = false;
        loop {
            let mut adopting = false;
            tokio::select! {
                () = self.counters.written.notified() => sleep(GATHER).await,
                Some(flush) = flush_requests.recv() => flushing.push(flush),
                _ = adopt.tick() => adopting = true,
            }
            loop {
                let mut shipped = self.ship_all().await;
                if shipped.is_ok() && adopting {
                    shipped = self.adopt().await;
                }
                match shipped {
                    Ok(()) => break,
                    Err(error) if !complained => tracing::warn!(%error, "telemetry waits in the spool"),
                    Err(error) => tracing::debug!(%error, "telemetry still waits in the spool"),
                }
                complained = true;
                tokio::select! {
                    () = sleep(jittered(retry)) => {}
                    Some(flush) = flush_requests.recv() => flushing.push(flush),
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
            if std::mem::take(&mut complained) {
                tracing::info!("telemetry reaches PostgreSQL again");
            }
            retry = RETRY_MIN;
            for flush in flushing.drain(..) {
                let _ = flush.send(());
            }
        }
    }

    /// Ships until there is nothing left that was recorded before this began.
    async fn ship_all(&mut self) -> Result<(), Stopped> {
        loop {
            let slot = self.slot.clone();
            self.ship(&slot, &slot.files.shipping).await?;
            self.counters.shipping.store(0, Ordering::Relaxed);
            if !self.rotate().await? {
                return Ok(());
            }
        }
    }

    async fn rotate(&self) -> Result<bool, Stopped> {
        let (reply, answer) = oneshot::channel();
        let mut message = Message::Rotate(reply);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return Err(Stopped::NoThread),
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(answer.await.map_err(|_| Stopped::NoThread)??)
    }

    /// Ships what recorders that are gone left in other slots.
    async fn adopt(&mut self) -> Result<(), Stopped> {
        let (dir, name) = (self.dir.clone(), self.name.clone());
        for slot in blocking(move || Slot::abandoned(&dir, &name)).await? {
            let slot = Arc::new(slot);
            self.ship(&slot, &slot.files.shipping).await?;
            self.ship(&slot, &slot.files.live).await?;
        }
        Ok(())
    }

    /// Ships one file and removes it. Goes on where it stopped when PostgreSQL fails in between.
    async fn ship(&mut self, slot: &Arc<Slot>, path: &Path) -> Result<(), Stopped> {
        let mut current = match self.current.take() {
            Some(current) if current.reader.path() == path => current,
            _ => {
                let at = path.to_owned();
                let opened = blocking(move || {
                    let Some(reader) = Reader::open(&at)? else { return Ok(None) };
                    let many = at.metadata()?.len() > BACKLOG;
                    Ok(Some(Current {
                        reader,
                        batch: Batch::default(),
                        size: if many { BATCH_BACKLOG } else { BATCH },
                    }))
                });
                let Some(current) = opened.await? else { return Ok(()) };
                current
            }
        };
        loop {
            if current.batch.is_empty() {
                current = blocking(move || {
                    current.batch = current.reader.next_batch(current.size)?;
                    Ok(current)
                })
                .await?;
                if current.batch.is_empty() {
                    break;
                }
            }
            let inserted = self.insert(slot, &mut current.batch).await;
            if let Err(e) = inserted {
                self.current = Some(current);
                return Err(e);
            }
        }
        let (path, slot) = (path.to_owned(), slot.clone());
        // The slot stays taken until the file is gone.
        blocking(move || {
            let _slot = slot;
            remove(&path)
        })
        .await?;
        Ok(())
    }

    async fn insert(&self, slot: &Arc<Slot>, batch: &mut Batch) -> Result<(), Stopped> {
        match self.store.events().insert_batch(&batch.events).await {
            Ok(()) => batch.events.clear(),
            Err(e) if is_poison(&e) => {
                // One of them is to blame; it must not keep the others.
                while let Some(event) = batch.events.last() {
                    match self.store.events().insert_batch(std::slice::from_ref(event)).await {
                        Ok(()) => {}
                        Err(error) if is_poison(&error) => {
                            tracing::warn!(id = %event.id, %error, "PostgreSQL refuses an event");
                            batch.rejected.extend(to_line(event));
                        }
                        Err(e) => return Err(e.into()),
                    }
                    batch.events.pop();
                }
            }
            Err(e) => return Err(e.into()),
        }
        if !batch.rejected.is_empty() {
            let count = batch.rejected.len() as u64;
            let (lines, slot) = (batch.rejected.concat(), slot.clone());
            blocking(move || reject(&slot.files, &lines)).await?;
            batch.rejected.clear();
            self.counters.rejected.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Runs what touches files off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
