//! Unit logs on disk: `NAME.log`, and the one before it as `NAME.log.1`, written by one thread for all units.
//!
//! A unit is never held up by its log. When the thread is behind or the disk is full, lines are left out of the file, and counted.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::error::SetupError;
use crate::journal::LogLine;
use crate::name::UnitName;

/// Batches under way to the thread. A batch is one read from a pipe, so this is some 16 MiB at the very most.
const QUEUE: usize = 256;
/// Longest wait for the thread to write what is queued when the supervisor shuts down.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Logs can hold what a unit was asked; only its owner and group may read them.
const MODE: u32 = 0o640;

enum Message {
    Lines { file: usize, lines: Vec<Arc<LogLine>> },
    Flush(oneshot::Sender<()>),
}

/// The thread that writes.
#[derive(Debug, Clone)]
pub(crate) struct Writer(SyncSender<Message>);

/// One unit's way to the thread.
#[derive(Debug)]
pub(crate) struct Sink {
    writer: Writer,
    file: usize,
    counter: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    dropped: AtomicU64,
    warned: AtomicBool,
}

impl Writer {
    /// Starts the thread for the log files of these units in `directory`, each at most `max` bytes long.
    pub(crate) fn start(directory: &Path, units: &[UnitName], max: u64) -> Result<(Self, Vec<Sink>), SetupError> {
        let (sender, inbox) = sync_channel(QUEUE);
        let writer = Self(sender);
        let mut files = Vec::with_capacity(units.len());
        let mut sinks = Vec::with_capacity(units.len());
        for (file, unit) in units.iter().enumerate() {
            let counter = Arc::new(Counter::default());
            files.push(LogFile::new(directory.join(format!("{unit}.log")), max, Arc::clone(&counter)));
            sinks.push(Sink { writer: writer.clone(), file, counter });
        }
        let serve = move || write_all(&inbox, &mut files);
        thread::Builder::new().name("units-logs".into()).spawn(serve).map_err(SetupError::Thread)?;
        Ok((writer, sinks))
    }

    /// Waits until all lines up to now are written, or given up.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let sender = self.0.clone();
        let ask = tokio::task::spawn_blocking(move || sender.send(Message::Flush(done)));
        if tokio::time::timeout(FLUSH_TIMEOUT, async { (ask.await, flushed.await) }).await.is_err() {
            warn!("the last log lines are not on disk yet: the disk is slow");
        }
    }
}

impl Sink {
    /// Queues lines, or counts them as dropped.
    pub(crate) fn write(&self, lines: Vec<Arc<LogLine>>) {
        match self.writer.0.try_send(Message::Lines { file: self.file, lines }) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                if let Message::Lines { lines, .. } = message {
                    self.counter.give_up(&lines, &"the disk is slower than the unit");
                }
            }
        }
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.counter.dropped.load(Ordering::Relaxed)
    }
}

impl Counter {
    fn give_up(&self, lines: &[Arc<LogLine>], why: &dyn std::fmt::Display) {
        self.dropped.fetch_add(lines.len() as u64, Ordering::Relaxed);
        if let Some(line) = lines.first()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            warn!(unit = %line.unit, %why, "log lines are not written to disk");
        }
    }
}

fn write_all(inbox: &Receiver<Message>, files: &mut [LogFile]) {
    for message in inbox {
        match message {
            Message::Lines { file, lines } => files[file].append(&lines),
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

struct LogFile {
    path: PathBuf,
    max: u64,
    open: Option<(File, u64)>,
    counter: Arc<Counter>,
    /// Dropped lines that the file already tells of.
    told: u64,
}

impl LogFile {
    fn new(path: PathBuf, max: u64, counter: Arc<Counter>) -> Self {
        Self { path, max, open: None, counter, told: 0 }
    }

    fn append(&mut self, lines: &[Arc<LogLine>]) {
        let mut rest = lines;
        while !rest.is_empty() {
            match self.append_some(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) => {
                    self.counter.give_up(rest, &format!("{}: {error}", self.path.display()));
                    return;
                }
            }
        }
        if self.counter.warned.swap(false, Ordering::Relaxed) {
            info!(path = %self.path.display(), dropped = self.counter.dropped.load(Ordering::Relaxed), "log lines are written to disk again");
        }
    }

    /// Writes as many lines as fit into the file, at least one, and rotates first when none fits.
    fn append_some(&mut self, lines: &[Arc<LogLine>]) -> io::Result<usize> {
        let dropped = self.counter.dropped.load(Ordering::Relaxed);
        let mut text = String::new();
        if dropped > self.told {
            let _ = writeln!(text, "{:.3} sup {} lines are missing here", lines[0].at, dropped - self.told);
        }
        let (mut file, mut size) = self.open()?;
        let mut count = 0;
        for line in lines {
            let end = text.len();
            // Writing to a String does not fail.
            let _ = writeln!(text, "{:.3} {} {}", line.at, line.stream.short(), line.text);
            if size + text.len() as u64 > self.max {
                if count > 0 {
                    text.truncate(end);
                    break;
                }
                if size > 0 {
                    drop(file);
                    fs::rename(&self.path, rotated(&self.path))?;
                    (file, size) = self.open()?;
                }
            }
            count += 1;
        }
        if let Err(error) = file.write_all(text.as_bytes()) {
            // Takes away the half line; what is no regular file has none to take away.
            let _ = file.set_len(size);
            return Err(error);
        }
        self.told = dropped;
        self.open = Some((file, size + text.len() as u64));
        Ok(count)
    }

    fn open(&mut self) -> io::Result<(File, u64)> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(MODE).open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

fn rotated(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".1");
    path.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::journal::LogStream;

    fn batch(texts: &[&str]) -> Vec<Arc<LogLine>> {
        let line = |text: &&str| LogLine {
            unit: UnitName::new("x").unwrap(),
            at: "2026-01-02T03:04:05.678901Z".parse().unwrap(),
            stream: LogStream::Stdout,
            text: (*text).into(),
        };
        texts.iter().map(line).map(Arc::new).collect()
    }

    fn file(directory: &Path, max: u64) -> LogFile {
        LogFile::new(directory.join("x.log"), max, Arc::default())
    }

    #[test]
    fn a_line_has_time_and_stream() {
        let directory = tempfile::tempdir().unwrap();
        file(&directory.path().join("new"), 1000).append(&batch(&["hello"]));
        let text = fs::read_to_string(directory.path().join("new/x.log")).unwrap();
        assert_eq!(text, "2026-01-02T03:04:05.678Z out hello\n");
    }

    #[test]
    fn a_full_file_is_rotated_and_one_old_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let texts: Vec<String> = (0..100).map(|number| format!("line {number:03}")).collect();
        let mut log = file(directory.path(), 400);
        log.append(&batch(&texts[..50].iter().map(String::as_str).collect::<Vec<_>>()));
        log = file(directory.path(), 400);
        log.append(&batch(&texts[50..].iter().map(String::as_str).collect::<Vec<_>>()));
        let old = fs::read_to_string(directory.path().join("x.log.1")).unwrap();
        let new = fs::read_to_string(directory.path().join("x.log")).unwrap();
        assert!(old.len() <= 400 && new.len() <= 400 && old.len() > 300);
        let kept: Vec<&str> = old.lines().chain(new.lines()).map(|line| &line[29..]).collect();
        assert_eq!(kept, texts[100 - kept.len()..]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_line_longer_than_the_file_is_still_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = file(directory.path(), 10);
        log.append(&batch(&["first line", "second line"]));
        assert!(fs::read_to_string(directory.path().join("x.log")).unwrap().ends_with("second line\n"));
        assert_eq!(log.counter.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut log = file(directory.path(), 1000);
        log.append(&batch(&["one", "two"]));
        log.append(&batch(&["three"]));
        assert_eq!(log.counter.dropped.load(Ordering::Relaxed), 3);
        fs::remove_file(&path).unwrap();
        log.append(&batch(&["four"]));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("sup 3 lines are missing here\n") && text.ends_with("out four\n"), "{text}");
        assert!(!log.counter.warned.load(Ordering::Relaxed));
    }
}
