//! The spool: files of JSON lines between a daemon and PostgreSQL.
//!
//! One thread appends to `NAME.jsonl`. To ship it, that thread renames it to `NAME.shipping.jsonl` and starts a new
//! one, so nothing is ever cut off a file that is being appended to. A shipped file is removed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Event;

/// Recorders of one name on one machine; each has a slot, so that no two share a file.
const SLOTS: usize = 16;
/// Longest line, in bytes.
pub(super) const MAX_LINE: usize = 1024 * 1024;

/// The files of one recorder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) live: PathBuf,
    pub(super) shipping: PathBuf,
    pub(super) rejected: PathBuf,
    lock: PathBuf,
}

/// Held as long as somebody writes or ships a slot's files.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) files: Files,
    _lock: File,
}

impl Slot {
    /// The first slot of a name that nobody holds.
    pub(super) fn take(dir: &Path, name: &str) -> io::Result<Option<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for number in 0..SLOTS {
            if let Some(slot) = Self::try_take(dir, name, number)? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// The slots of a name that nobody holds and in which events are left, as after a crash.
    pub(super) fn abandoned(dir: &Path, name: &str) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for number in 0..SLOTS {
            let files = Files::of(dir, name, number);
            if files.live.exists() || files.shipping.exists() {
                found.extend(Self::try_take(dir, name, number)?);
            }
        }
        Ok(found)
    }

    fn try_take(dir: &Path, name: &str, number: usize) -> io::Result<Option<Self>> {
        let files = Files::of(dir, name, number);
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&files.lock)?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { files, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl Files {
    fn of(dir: &Path, name: &str, number: usize) -> Self {
        let stem = if number == 0 { name.to_owned() } else { format!("{name}.{number}") };
        let file = |suffix: &str| dir.join(format!("{stem}.{suffix}"));
        Self {
            live: file("jsonl"),
            shipping: file("shipping.jsonl"),
            rejected: file("rejected.jsonl"),
            lock: file("lock"),
        }
    }
}

/// The event as one line with its newline, or `None` when it is too long to keep.
pub(super) fn to_line(event: &Event) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(event).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_LINE).then_some(line)
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Writer {
    files: Files,
    file: File,
    length: u64,
}

impl Writer {
    pub(super) fn open(files: &Files) -> io::Result<Self> {
        let mut file = open_live(files)?;
        let length = mend(&mut file, &files.live)?;
        Ok(Self { files: files.clone(), file, length })
    }

    /// Bytes in the live file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Appends whole lines, or nothing.
    pub(super) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(e) => {
                // A full disk may have taken half a line.
                self.file.set_len(self.length)?;
                Err(e)
            }
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes the live file the one to ship; gives its length, or `None` when it is empty or the last one is still there.
    pub(super) fn rotate(&mut self) -> io::Result<Option<u64>> {
        if self.length == 0 || self.files.shipping.exists() {
            return Ok(None);
        }
        self.file.sync_data()?;
        std::fs::rename(&self.files.live, &self.files.shipping)?;
        let length = self.length;
        // Opening can fail; the old handle then still writes to the file that is being shipped, so its length is reset
        // only with the new handle in place.
        match open_live(&self.files) {
            Ok(file) => {
                self.file = file;
                self.length = 0;
                Ok(Some(length))
            }
            Err(e) => {
                std::fs::rename(&self.files.shipping, &self.files.live)?;
                Err(e)
            }
        }
    }
}

fn open_live(files: &Files) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&files.live)
}

/// Ends the file with a whole line; gives its length.
fn mend(file: &mut File, path: &Path) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(MAX_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    if tail.is_empty() || tail.ends_with(b"\n") {
        return Ok(length);
    }
    let start = tail.iter().rposition(|&b| b == b'\n').map_or(0, |newline| newline + 1);
    if serde_json::from_slice::<Event>(&tail[start..]).is_ok() {
        file.write_all(b"\n")?;
        return Ok(length + 1);
    }
    tracing::warn!(spool = %path.display(), bytes = tail.len() - start, "dropped a torn last line");
    let whole = from + start as u64;
    file.set_len(whole)?;
    Ok(whole)
}

/// Some lines of a file that is being shipped.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<Event>,
    /// Lines that are no events.
    pub(super) rejected: Vec<Vec<u8>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.rejected.is_empty()
    }
}

/// The reading end.
#[derive(Debug)]
pub(super) struct Reader {
    file: BufReader<File>,
    path: PathBuf,
}

impl Reader {
    /// `None` when there is no such file.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { file: BufReader::new(file), path: path.to_owned() })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Up to `most` lines; none at the end of the file.
    pub(super) fn next_batch(&mut self, most: usize) -> io::Result<Batch> {
        let mut batch = Batch::default();
        let mut line = Vec::new();
        for _ in 0..most {
            line.clear();
            if self.file.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let torn = !line.ends_with(b"\n");
            match serde_json::from_slice(&line) {
                Ok(event) => batch.events.push(event),
                Err(_) if torn => {
                    tracing::warn!(spool = %self.path.display(), bytes = line.len(), "dropped a torn last line");
                }
                Err(error) => {
                    tracing::warn!(spool = %self.path.display(), %error, "a line is no event");
                    batch.rejected.push(std::mem::take(&mut line));
                }
            }
        }
        Ok(batch)
    }
}

/// Puts lines aside for a person to look at.
pub(super) fn reject(files: &Files, lines: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&files.rejected)?;
    file.write_all(lines)
}

/// Removes a file that has been shipped.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        let text = || any::<String>();
        let detail = prop_oneof![
            text().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            prop::collection::btree_map(text(), text(), 0..4).prop_map(|m| serde_json::to_value(m).unwrap()),
        ];
        let numbers = (any::<Option<i32>>(), any::<Option<i64>>(), 0..=i64::MAX.unsigned_abs(), any::<Option<u32>>());
        (any::<u128>(), text(), text(), prop::option::of(text()), numbers, detail).prop_map(
            |(id, kind, outcome, model, (status, tokens, latency, first_byte), detail)| Event {
                id: Uuid::from_u128(id),
                subject: Some(Uuid::from_u128(!id)),
                outcome,
                upstream: model.clone(),
                model,
                status,
                prompt_tokens: tokens,
                completion_tokens: tokens,
                latency: Duration::from_micros(latency),
                first_byte: first_byte.map(|us| Duration::from_micros(us.into())),
                detail,
                ..Event::new(kind)
            },
        )
    }

    proptest! {
        #[test]
        fn an_event_is_one_line_and_reads_back(event in events()) {
            let line = to_line(&event).unwrap();
            prop_assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
            prop_assert_eq!(serde_json::from_slice::<Event>(&line).unwrap(), event);
        }

        #[test]
        fn whatever_a_crash_cuts_off_the_whole_lines_before_it_survive(
            events in prop::collection::vec(events(), 1..5),
            cut in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let slot = Slot::take(dir.path(), "t").unwrap().unwrap();
            let lines: Vec<Vec<u8>> = events.iter().map(|e| to_line(e).unwrap()).collect();
            let all = lines.concat();
            let cut = cut.index(all.len());
            std::fs::write(&slot.files.live, &all[..cut]).unwrap();
            let mut writer = Writer::open(&slot.files).unwrap();
            let last = Event::new("after the crash");
            writer.append(&to_line(&last).unwrap()).unwrap();
            writer.rotate().unwrap().unwrap();
            let batch = Reader::open(&slot.files.shipping).unwrap().unwrap().next_batch(100).unwrap();
            // A line is whole once all but its newline is there.
            let mut end = 0;
            let whole = lines.iter().take_while(|line| { end += line.len(); end <= cut + 1 }).count();
            let mut expected = events[..whole].to_vec();
            expected.push(last);
            prop_assert_eq!(batch.events, expected);
            prop_assert!(batch.rejected.is_empty());
        }
    }

    #[test]
    fn two_recorders_of_one_name_do_not_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = Slot::take(dir.path(), "ralph").unwrap().unwrap();
        let second = Slot::take(dir.path(), "ralph").unwrap().unwrap();
        assert_ne!(first.files.live, second.files.live);
        std::fs::write(&second.files.live, "x").unwrap();
        assert!(Slot::abandoned(dir.path(), "ralph").unwrap().is_empty());
        drop(second);
        assert_eq!(Slot::abandoned(dir.path(), "ralph").unwrap().len(), 1);
    }

    #[test]
    fn a_file_is_not_rotated_over_one_that_is_still_being_shipped() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::take(dir.path(), "t").unwrap().unwrap();
        let mut writer = Writer::open(&slot.files).unwrap();
        assert_eq!(writer.rotate().unwrap(), None);
        writer.append(b"1\n").unwrap();
        assert_eq!(writer.rotate().unwrap(), Some(2));
        writer.append(b"2\n").unwrap();
        assert_eq!(writer.rotate().unwrap(), None);
        remove(&slot.files.shipping).unwrap();
        assert_eq!(writer.rotate().unwrap(), Some(2));
        assert_eq!(std::fs::read(&slot.files.shipping).unwrap(), b"2\n");
    }

    #[test]
    fn a_line_that_is_no_event_is_handed_out_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let event = Event::new("request");
        std::fs::write(&path, [b"{\"of\":\"old\"}\n".to_vec(), to_line(&event).unwrap(), b"{\"torn".to_vec()].concat())
            .unwrap();
        let mut reader = Reader::open(&path).unwrap().unwrap();
        let batch = reader.next_batch(10).unwrap();
        assert_eq!(batch.events, [event]);
        assert_eq!(batch.rejected, [b"{\"of\":\"old\"}\n"]);
        assert!(reader.next_batch(10).unwrap().is_empty());
    }
}
