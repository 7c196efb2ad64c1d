//! The journal: what units said, what systemd said of them, and what the kernel said meanwhile.
//!
//! It is read from its files and not through libsystemd, so that the program runs (and builds) where there is none.

mod file;
mod follow;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::debug;

use crate::port::{Entry, Field, InvocationId, Origin, Question, UnitId};

use file::{JournalFile, Listing, Raw};
pub(super) use follow::Follower;

/// Longest field kept; enough for any stack trace, and what journald splits lines of standard output at (48 KiB) fits.
const FIELD_MAX: usize = 64 * 1024;
/// Most entries looked at for one question in one file; twenty times what anybody asks for.
const SCAN_MAX: usize = 20_000;
/// Most entries given for one question.
const COUNT_MAX: usize = 10_000;
/// What systemd writes about the end of a run: a process ended, the unit failed, the unit succeeded.
const END_MESSAGES: [&str; 3] =
    ["98e322203f7a4ed290d09fe03c09fe15", "d9b373ed55a64feb8242e02dbe79a49c", "7ad2d189f7e94e70a38c781354912448"];

/// The directories with the journal's files.
#[derive(Debug)]
pub(super) struct Journals {
    roots: Vec<PathBuf>,
}

/// An entry on its way to being one of the answers.
struct Found {
    order: (u64, u64),
    seqnum_id: [u8; 16],
    seqnum: u64,
    entry: Arc<Entry>,
}

/// All that is read of a file, for the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn read_all(path: &Path) {
    let Ok(file) = JournalFile::open(path) else { return };
    let _ = file.with(b"_SYSTEMD_UNIT=a.service");
    let Ok(listing) = file.all() else { return };
    for index in 0..listing.len().min(64) {
        if let Ok(raw) = file.nth(&listing, index).and_then(|at| file.entry(at)) {
            raw.data.iter().take(32).for_each(|at| drop(file.field(*at)));
        }
    }
}

/// Whether systemd says in one of these that the run has ended.
pub(super) fn tells_the_end(entries: &[Arc<Entry>]) -> bool {
    let ends = |entry: &Arc<Entry>| {
        entry.origin == Origin::Manager && entry.field("MESSAGE_ID").is_some_and(|id| END_MESSAGES.contains(&id))
    };
    entries.iter().any(ends)
}

impl Journals {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots }
    }

    /// Directories that hold files, or may.
    fn directories(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for root in &self.roots {
            let Ok(below) = std::fs::read_dir(root) else { continue };
            found.push(root.clone());
            found.extend(below.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        found
    }

    /// The journal's files. Those that end in `~` were left by a crash; they can be read like the others.
    fn files(&self) -> Vec<PathBuf> {
        let is_journal = |path: &Path| {
            path.extension().and_then(OsStr::to_str).is_some_and(|end| end == "journal" || end == "journal~")
        };
        self.directories()
            .iter()
            .filter_map(|directory| std::fs::read_dir(directory).ok())
            .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
            .filter(|path| is_journal(path))
            .collect()
    }

    /// The last entries that answer the question, oldest first. Blocks for some milliseconds.
    pub(super) fn search(&self, question: &Question) -> io::Result<Vec<Arc<Entry>>> {
        let paths = self.files();
        let since = question.since.map_or(0, micros);
        let mut found: Vec<Found> = Vec::new();
        let mut ids = BTreeSet::new();
        let (mut read, mut trouble) = (0, None);
        for path in &paths {
            let searched = JournalFile::open(path).and_then(|file| {
                let header = file.header()?;
                if header.entries > 0 && header.tail_realtime >= since && ids.insert(file.id) {
                    search_file(&file, header.seqnum_id, question, &mut found)?;
                }
                Ok(())
            });
            match searched {
                Ok(()) => read += 1,
                // Rotated away between listing and opening, or damaged: the other files still have answers.
                Err(error) => {
                    debug!(path = %path.display(), %error, "a journal file that cannot be read");
                    trouble = Some(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
            }
        }
        if let (0, Some(error)) = (read, trouble) {
            return Err(error);
        }
        if paths.is_empty() {
            let places: Vec<String> = self.roots.iter().map(|root| root.display().to_string()).collect();
            let text = format!("no journal below {} that this user may read", places.join(" or "));
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        // journald numbers entries across its files; only files of several journals have to go by the clock.
        let one_journal = found.windows(2).all(|pair| pair[0].seqnum_id == pair[1].seqnum_id);
        if one_journal {
            found.sort_by_key(|found| found.seqnum);
        } else {
            found.sort_by_key(|found| found.order);
        }
        let surplus = found.len().saturating_sub(question.count.min(COUNT_MAX));
        Ok(found.into_iter().skip(surplus).map(|found| found.entry).collect())
    }
}

fn micros(at: Timestamp) -> u64 {
    u64::try_from(at.as_microsecond()).unwrap_or(0)
}

/// The last entries of one file that answer the question.
fn search_file(file: &JournalFile, seqnum_id: [u8; 16], question: &Question, found: &mut Vec<Found>) -> io::Result<()> {
    let mut terms = vec![format!("_SYSTEMD_UNIT={}", question.unit), format!("UNIT={}", question.unit)];
    if let Some(invocation) = question.invocation {
        terms.push(format!("_SYSTEMD_INVOCATION_ID={invocation}"));
        terms.push(format!("INVOCATION_ID={invocation}"));
    }
    if question.kernel {
        terms.push("_TRANSPORT=kernel".into());
    }
    let mut listings = Vec::new();
    for term in &terms {
        match file.with(term.as_bytes())? {
            Some(listing) => listings.push(listing),
            None => {
                listings = vec![file.all()?];
                break;
            }
        }
    }
    let mut backwards = Backwards::new(file, listings)?;
    let since = question.since.map_or(0, micros);
    let (mut taken, mut looked) = (0, 0);
    while let Some(offset) = backwards.next()? {
        let raw = file.entry(offset)?;
        looked += 1;
        if raw.realtime < since || looked > SCAN_MAX {
            break;
        }
        let entry = interpret(file, &raw);
        if answers(&entry, question) {
            let order = (raw.realtime, raw.monotonic);
            found.push(Found { order, seqnum_id, seqnum: raw.seqnum, entry: Arc::new(entry) });
            taken += 1;
            if taken == question.count.min(COUNT_MAX) {
                break;
            }
        }
    }
    Ok(())
}

/// Several listings of one file as one, the last entry first, none twice.
struct Backwards<'a> {
    file: &'a JournalFile,
    heads: Vec<(Listing, u64, u64)>,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a JournalFile, listings: Vec<Listing>) -> io::Result<Self> {
        let mut heads = Vec::with_capacity(listings.len());
        for listing in listings {
            if let Some(last) = listing.len().checked_sub(1) {
                let offset = file.nth(&listing, last)?;
                heads.push((listing, last, offset));
            }
        }
        Ok(Self { file, heads })
    }

    /// Entries further back in a file are older.
    fn next(&mut self) -> io::Result<Option<u64>> {
        let Some(last) = self.heads.iter().map(|(_, _, offset)| *offset).max() else { return Ok(None) };
        let mut index = 0;
        while let Some((listing, place, offset)) = self.heads.get_mut(index) {
            if *offset < last {
                index += 1;
            } else if let Some(before) = place.checked_sub(1) {
                *place = before;
                *offset = self.file.nth(listing, before)?;
                if *offset >= last {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "entries out of order"));
                }
                index += 1;
            } else {
                self.heads.swap_remove(index);
            }
        }
        Ok(Some(last))
    }
}

fn answers(entry: &Entry, question: &Question) -> bool {
    if question.until.is_some_and(|until| entry.at > until) {
        return false;
    }
    if entry.origin == Origin::Kernel {
        return question.kernel;
    }
    let of_unit = entry.unit.as_ref() == Some(&question.unit);
    match (question.invocation, entry.invocation) {
        (Some(wanted), Some(run)) => wanted == run,
        (Some(_), None) => of_unit && question.since.is_some(),
        (None, _) => of_unit,
    }
}

/// An entry with its fields. Fields that cannot be read are left out.
fn interpret(file: &JournalFile, raw: &Raw) -> Entry {
    let fields = raw.data.iter().filter_map(|&offset| {
        let (bytes, cut) = file.field(offset).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let (name, value) = text.split_once('=')?;
        Some(Field { name: name.to_owned(), value: value.to_owned(), cut })
    });
    entry_of(fields.collect(), raw.realtime, raw.monotonic)
}

/// Makes an entry of its fields: who wrote it, and what it is about.
fn entry_of(fields: Vec<Field>, realtime: u64, monotonic: u64) -> Entry {
    let get = |name: &str| fields.iter().find(|field| field.name == name).map(|field| field.value.as_str());
    let unit = |name: &str| get(name).and_then(|name| UnitId::new(name).ok());
    let run = |name: &str| get(name).and_then(|id| id.parse::<InvocationId>().ok());
    let pid = get("_PID").and_then(|pid| pid.parse().ok());
    // `UNIT=` is anybody's claim, except in the mouth of PID 1; names with `_` come from journald itself.
    let (origin, unit, invocation) = if get("_TRANSPORT") == Some("kernel") {
        (Origin::Kernel, None, None)
    } else if pid == Some(1) && get("UNIT").is_some() {
        (Origin::Manager, unit("UNIT"), run("INVOCATION_ID"))
    } else {
        (Origin::Unit, unit("_SYSTEMD_UNIT"), run("_SYSTEMD_INVOCATION_ID"))
    };
    let seconds = i64::try_from(realtime).ok().and_then(|micros| Timestamp::from_microsecond(micros).ok());
    Entry {
        at: seconds.unwrap_or(Timestamp::UNIX_EPOCH),
        monotonic: Some(Duration::from_micros(monotonic)),
        origin,
        unit,
        invocation,
        message: get("MESSAGE").unwrap_or_default().to_owned(),
        priority: get("PRIORITY").and_then(|priority| priority.parse().ok()).filter(|&priority: &u8| priority <= 7),
        pid,
        fields,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(fields: &[(&str, &str)]) -> Entry {
        let field = |&(name, value): &(&str, &str)| Field { name: name.into(), value: value.into(), cut: false };
        entry_of(fields.iter().map(field).collect(), 1_000_000, 5)
    }

    const RUN: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_systemd_itself_speaks_for_a_unit() {
        let forged = entry(&[("UNIT", "a.service"), ("_SYSTEMD_UNIT", "b.service"), ("_PID", "77"), ("MESSAGE", "x")]);
        assert_eq!((forged.origin, forged.unit.unwrap().as_str()), (Origin::Unit, "b.service"));
        let real =
            entry(&[("UNIT", "a.service"), ("_PID", "1"), ("INVOCATION_ID", RUN), ("_SYSTEMD_UNIT", "init.scope")]);
        assert_eq!((real.origin, real.unit.unwrap().as_str()), (Origin::Manager, "a.service"));
        assert_eq!(real.invocation.unwrap().to_string(), RUN);
        let kernel = entry(&[("_TRANSPORT", "kernel"), ("UNIT", "a.service"), ("MESSAGE", "oom-kill: …")]);
        assert_eq!((kernel.origin, kernel.unit), (Origin::Kernel, None));
    }

    #[test]
    fn an_entry_without_a_run_counts_in_the_window_only() {
        let mut question = Question::new(UnitId::new("a.service").unwrap());
        question.invocation = Some(RUN.parse().unwrap());
        let without = entry(&[("_SYSTEMD_UNIT", "a.service")]);
        let other = entry(&[("_SYSTEMD_UNIT", "a.service"), ("_SYSTEMD_INVOCATION_ID", &RUN.replace('0', "f"))]);
        let same = entry(&[("_SYSTEMD_UNIT", "a.service"), ("_SYSTEMD_INVOCATION_ID", RUN)]);
        let kernel = entry(&[("_TRANSPORT", "kernel")]);
        assert!(answers(&same, &question) && !answers(&without, &question) && !answers(&other, &question));
        question.since = Some(Timestamp::UNIX_EPOCH);
        assert!(answers(&without, &question) && !answers(&other, &question) && !answers(&kernel, &question));
        question.kernel = true;
        assert!(answers(&kernel, &question));
        question.until = Some(Timestamp::UNIX_EPOCH);
        assert!(!answers(&same, &question) && !answers(&kernel, &question));
    }

    #[test]
    fn without_a_journal_it_is_said_where_one_was_looked_for() {
        let journals = Journals::new(vec!["/nonexistent/journal".into()]);
        let error = journals.search(&Question::new(UnitId::new("a.service").unwrap())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/journal"), "{error}");
    }
}
