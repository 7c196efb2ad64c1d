//! What happens to incidents, written down: first into a file of this machine, then into PostgreSQL.
//!
//! A step begins only when its entry is in the file, so a healer that dies goes on where it was, and PostgreSQL itself
//! can be the patient. The file keeps open incidents and those that ended within the hour; everything else it only
//! holds until PostgreSQL has it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::page::Line;

/// Most bytes in the file. Beyond it nothing is written, and so nothing is done, until PostgreSQL has taken some.
const FILE_MAX: u64 = 64 << 20;
/// The file is tidied when it has this many bytes and PostgreSQL has all of them.
const TIDY_AT: u64 = 1 << 20;
/// How long ended incidents are kept, for the bounds that look back so far.
pub(crate) const KEPT: SignedDuration = SignedDuration::from_hours(1);

/// Why the book cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// Another healer has it.
    #[error("another healer uses {}: only one may act on the units of a machine", .0.display())]
    Taken(PathBuf),
    /// The file cannot be read or written.
    #[error("incidents cannot be written down in {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is more in it than it may hold.
    #[error("incidents cannot be written down: {} holds {FILE_MAX} bytes that PostgreSQL has not taken", .0.display())]
    Full(PathBuf),
}

/// The file.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    id: Uuid,
    inner: Mutex<Inner>,
    /// Lines that PostgreSQL does not have yet.
    unshipped: AtomicU64,
    /// Rings when there are more.
    pub(crate) bell: Notify,
    _lock: File,
}

#[derive(Debug)]
struct Inner {
    file: File,
    length: u64,
    /// Everything before this byte is in PostgreSQL.
    shipped: u64,
    /// Length after it was tidied last.
    tidied: u64,
}

impl Book {
    /// Opens the book in this directory, made where it is not there, and reads what is in it. Blocks.
    pub(crate) fn open(dir: &Path) -> Result<(Arc<Self>, Vec<Line>), BookError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| BookError::Io { path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&lock_path).map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BookError::Taken(dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(BookError::Io { path: lock_path, source }),
        }
        let id = identity(&dir.join("id")).map_err(io(dir))?;
        let path = dir.join("incidents.jsonl");
        let mut file =
            OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path).map_err(io(&path))?;
        let (lines, length) = read(&mut file).map_err(io(&path))?;
        // What follows the last whole line was being written when the machine went down.
        file.set_len(length).map_err(io(&path))?;
        let unshipped = AtomicU64::new(lines.len() as u64);
        let inner = Mutex::new(Inner { file, length, shipped: 0, tidied: 0 });
        Ok((Arc::new(Self { path, id, inner, unshipped, bell: Notify::new(), _lock: lock }), lines))
    }

    /// Names this healer over restarts.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// Lines that PostgreSQL does not have yet.
    pub(crate) fn unshipped(&self) -> u64 {
        self.unshipped.load(Ordering::Relaxed)
    }

    /// Writes lines, all or none, and returns when they are on the disk. Blocks.
    pub(crate) fn write(&self, lines: &[Line]) -> Result<(), BookError> {
        let io = |source| BookError::Io { path: self.path.clone(), source };
        let mut bytes = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut bytes, line).map_err(|error| io(error.into()))?;
            bytes.push(b'\n');
        }
        let mut inner = self.lock();
        if inner.length + bytes.len() as u64 > FILE_MAX {
            return Err(BookError::Full(self.path.clone()));
        }
        let length = inner.length;
        if let Err(error) = inner.file.write_all(&bytes).and_then(|()| inner.file.sync_data()) {
            // A full disk may have taken half a line.
            inner.file.set_len(length).map_err(io)?;
            return Err(io(error));
        }
        inner.length += bytes.len() as u64;
        // Before anybody can have shipped them.
        self.unshipped.fetch_add(lines.len() as u64, Ordering::Relaxed);
        drop(inner);
        self.bell.notify_one();
        Ok(())
    }

    /// The lines that PostgreSQL does not have yet, the oldest ones first, at most so many, and the byte where the last
    /// of them ends. Blocks.
    pub(crate) fn waiting(&self, most: usize) -> Result<(Vec<Line>, u64), BookError> {
        let (from, to) = {
            let inner = self.lock();
            (inner.shipped, inner.length)
        };
        let io = |source| BookError::Io { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(from)).map_err(io)?;
        let (mut lines, mut end) = (Vec::new(), from);
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        while end < to && lines.len() < most {
            text.clear();
            let count = reader.read_until(b'\n', &mut text).map_err(io)?;
            if count == 0 {
                break;
            }
            end += count as u64;
            match serde_json::from_slice(&text) {
                Ok(line) => lines.push(line),
                Err(error) => tracing::error!(%error, "a line about an incident cannot be read; it is passed over"),
            }
        }
        Ok((lines, end))
    }

    /// All that the file has. Blocks.
    pub(crate) fn all(&self) -> Result<Vec<Line>, BookError> {
        let io = |source| BookError::Io { path: self.path.clone(), source };
        Ok(read(&mut File::open(&self.path).map_err(io)?).map_err(io)?.0)
    }

    /// All that the file has of one incident. Blocks.
    pub(crate) fn all_of(&self, incident: Uuid) -> Result<Vec<Line>, BookError> {
        Ok(self.all()?.into_iter().filter(|line| line.incident.id == incident).collect())
    }

    /// PostgreSQL has everything up to this byte, which were so many lines. Blocks when the file is worth tidying.
    pub(crate) fn shipped(&self, end: u64, lines: usize, now: Timestamp) -> Result<(), BookError> {
        let lines = lines as u64;
        let mut inner = self.lock();
        let _ = self.unshipped.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(lines)));
        inner.shipped = inner.shipped.max(end);
        if inner.shipped == inner.length {
            self.unshipped.store(0, Ordering::Relaxed);
            // What stays is written anew each time, so it has to be worth it.
            if inner.length >= TIDY_AT.max(2 * inner.tidied) {
                return self.tidy(&mut inner, now).map_err(|source| BookError::Io { path: self.path.clone(), source });
            }
        }
        Ok(())
    }

    /// Leaves out what is over. The new file takes the old one's place whole or not at all.
    fn tidy(&self, inner: &mut Inner, now: Timestamp) -> io::Result<()> {
        let (lines, _) = read(&mut File::open(&self.path)?)?;
        let over: BTreeSet<Uuid> = lines
            .iter()
            .filter(|line| line.incident.closed_at.is_some_and(|at| now.duration_since(at) > KEPT))
            .map(|line| line.incident.id)
            .collect();
        let next = self.path.with_extension("next");
        let mut bytes = Vec::new();
        for line in lines.iter().filter(|line| !over.contains(&line.incident.id)) {
            serde_json::to_writer(&mut bytes, line)?;
            bytes.push(b'\n');
        }
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        inner.file = OpenOptions::new().append(true).open(&self.path)?;
        inner.length = bytes.len() as u64;
        inner.shipped = inner.length;
        inner.tidied = inner.length;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole lines of the file, and where they end. One that cannot be read is passed over.
fn read(file: &mut File) -> io::Result<(Vec<Line>, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::new(file);
    let (mut lines, mut end, mut text) = (Vec::new(), 0, Vec::new());
    loop {
        text.clear();
        let count = reader.read_until(b'\n', &mut text)?;
        if text.last() != Some(&b'\n') {
            return Ok((lines, end));
        }
        end += count as u64;
        match serde_json::from_slice(&text) {
            Ok(line) => lines.push(line),
            Err(error) => tracing::error!(%error, "a line about an incident cannot be read; it is passed over"),
        }
    }
}

/// The name in this file; one that is not there is made.
fn identity(path: &Path) -> io::Result<Uuid> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = Uuid::now_v7();
            std::fs::write(path, format!("{id}\n"))?;
            Ok(id)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::moment::Moment;
    use crate::page::Page;
    use crate::timeline::{Entry, Event, Outcome};

    fn line(id: u128, seq: u32, event: Event, at: Timestamp) -> Line {
        let mut page = Page::new(Uuid::from_u128(id), "app.service");
        let entry = Entry { seq, at, moment: Moment::from_millis(1), ms: 0, event };
        page.add(&entry);
        Line { incident: page.row(), boot: Uuid::nil(), entries: vec![entry] }
    }

    fn note(id: u128, seq: u32, text: &str) -> Line {
        line(id, seq, Event::HandedOver { text: text.to_owned() }, Timestamp::now())
    }

    #[test]
    fn what_was_written_is_there_after_a_crash_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let (book, lines) = Book::open(dir.path()).unwrap();
        assert_eq!(lines, []);
        let id = book.id();
        let written = [note(1, 1, "one"), note(2, 1, "two")];
        book.write(&written).unwrap();
        drop(book);
        let mut file = OpenOptions::new().append(true).open(dir.path().join("incidents.jsonl")).unwrap();
        file.write_all(b"{\"incident\":{\"id\":").unwrap();
        let (book, lines) = Book::open(dir.path()).unwrap();
        assert_eq!(lines, written);
        assert_eq!((book.id(), book.unshipped()), (id, 2));
        book.write(&[note(1, 2, "three")]).unwrap();
        assert_eq!(book.all_of(Uuid::from_u128(1)).unwrap().len(), 2);
    }

    #[test]
    fn what_a_full_disk_refused_is_written_when_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = Book::open(dir.path()).unwrap();
        book.write(&[note(1, 1, "before")]).unwrap();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut book.lock().file, full);
        assert!(matches!(book.write(&[note(1, 2, "refused")]), Err(BookError::Io { .. })));
        assert_eq!(book.unshipped(), 1);
        book.lock().file = file;
        book.write(&[note(1, 2, "refused")]).unwrap();
        drop(book);
        let (_, lines) = Book::open(dir.path()).unwrap();
        let seqs: Vec<u32> = lines.iter().flat_map(|line| &line.entries).map(|entry| entry.seq).collect();
        assert_eq!(seqs, [1, 2]);
    }

    #[test]
    fn only_one_healer_has_the_book() {
        let dir = tempfile::tempdir().unwrap();
        let first = Book::open(dir.path()).unwrap();
        assert!(matches!(Book::open(dir.path()), Err(BookError::Taken(_))));
        drop(first);
        assert!(Book::open(dir.path()).is_ok());
    }

    #[test]
    fn lines_are_shipped_in_order_and_tidied_away_an_hour_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (book, _) = Book::open(dir.path()).unwrap();
        let now = Timestamp::now();
        let closed = |outcome| Event::Closed { outcome, reason: None };
        book.write(&[line(1, 1, closed(Outcome::Healed), now - SignedDuration::from_hours(2))]).unwrap();
        book.write(&[line(2, 1, closed(Outcome::Healed), now), note(3, 1, "open")]).unwrap();
        let (waiting, end) = book.waiting(2).unwrap();
        let ids = |lines: &[Line]| lines.iter().map(|line| line.incident.id.as_u128()).collect::<Vec<_>>();
        assert_eq!(ids(&waiting), [1, 2]);
        book.shipped(end, 2, now).unwrap();
        assert_eq!(book.unshipped(), 1);
        let (waiting, end) = book.waiting(1000).unwrap();
        assert_eq!(ids(&waiting), [3]);
        book.shipped(end, 1, now).unwrap();
        // Enough for the file to be worth tidying.
        let long = "x".repeat(usize::try_from(TIDY_AT).unwrap());
        book.write(&[line(4, 1, closed(Outcome::Healed), now - SignedDuration::from_hours(3)), note(5, 1, &long)])
            .unwrap();
        let (waiting, end) = book.waiting(1000).unwrap();
        book.shipped(end, waiting.len(), now).unwrap();
        let (kept, _) = read(&mut File::open(dir.path().join("incidents.jsonl")).unwrap()).unwrap();
        assert_eq!(ids(&kept), [2, 3, 5]);
        assert_eq!(book.waiting(10).unwrap().0, []);
        book.write(&[note(5, 2, "goes on")]).unwrap();
        assert_eq!(ids(&book.waiting(10).unwrap().0), [5]);
    }
}
