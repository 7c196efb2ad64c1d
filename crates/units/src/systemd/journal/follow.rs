//! New entries of watched units as they come.
//!
//! journald tells that it wrote by a change of the file's size, at most every 250 ms; so the follower also looks when a unit's
//! state has changed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::{Notify, broadcast};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::port::{Entry, ManagerError, UnitId};

use super::file::{JournalFile, Listing};
use super::{Journals, interpret};

/// Entries a reader may be behind before it misses some.
const ENTRIES: usize = 4096;
/// Looks for files without having been told to: directories that did not exist before, or a lost notice.
const BACKSTOP: Duration = Duration::from_secs(30);
/// After a poke, lines that were written just before the change may still be on their way to the file.
const AFTER_POKE: Duration = Duration::from_millis(20);
/// Kinds of fields remembered a file: those of a thousand units.
const REMEMBERED: usize = 16_384;
/// Entries behind in one file from which on it is not caught up with but said to be missed: some minutes of a busy machine.
const BEHIND_MAX: u64 = 100_000;

/// Hands out new entries. Clones share one.
#[derive(Clone)]
pub(in crate::systemd) struct Follower(Arc<Inner>);

struct Inner {
    journals: Arc<Journals>,
    units: RwLock<Arc<HashSet<UnitId>>>,
    poke: Notify,
    entries: Mutex<Option<broadcast::Sender<Arc<Entry>>>>,
    ends: CancellationToken,
}

impl Follower {
    pub(in crate::systemd) fn new(journals: Arc<Journals>, ends: CancellationToken) -> Self {
        let units = RwLock::default();
        Self(Arc::new(Inner { journals, units, poke: Notify::new(), entries: Mutex::new(None), ends }))
    }

    /// Whose entries are wanted, from now on.
    pub(in crate::systemd) fn watch(&self, units: HashSet<UnitId>) {
        *self.0.units.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(units);
    }

    /// Something happened that is likely to be in the journal.
    pub(in crate::systemd) fn poke(&self) {
        self.0.poke.notify_one();
    }

    /// New entries from now on. Following begins with the first who asks, and ends with the manager.
    pub(in crate::systemd) async fn subscribe(&self) -> Result<broadcast::Receiver<Arc<Entry>>, ManagerError> {
        if let Some(entries) = &*self.0.entries.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(entries.subscribe());
        }
        let journals = Arc::clone(&self.0.journals);
        let failed = |error: &dyn std::fmt::Display| ManagerError::Journal(error.to_string());
        let tails = spawn_blocking(move || Tails::new(journals)).await.map_err(|error| failed(&error))?;
        let notices = Notices::new().map_err(|error| failed(&error))?;
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = &*entries {
            return Ok(entries.subscribe());
        }
        let (sender, receiver) = broadcast::channel(ENTRIES);
        *entries = Some(sender.clone());
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::select! {
                () = inner.ends.cancelled() => {}
                () = inner.follow(tails, notices, sender) => {}
            }
        });
        Ok(receiver)
    }
}

impl Inner {
    async fn follow(&self, mut tails: Tails, mut notices: Notices, sender: broadcast::Sender<Arc<Entry>>) {
        let mut look_for_files = true;
        loop {
            if look_for_files {
                notices.cover(&self.journals.directories());
            }
            let units = Arc::clone(&self.units.read().unwrap_or_else(PoisonError::into_inner));
            let outcome = spawn_blocking(move || {
                let mut found = Vec::new();
                tails.read(look_for_files, &units, &mut found);
                (tails, found)
            });
            let Ok((back, found)) = outcome.await else {
                warn!("the journal is not followed any more");
                return;
            };
            tails = back;
            for entry in found {
                // Nobody may be listening.
                let _ = sender.send(Arc::new(entry));
            }
            look_for_files = tokio::select! {
                () = self.poke.notified() => {
                    sleep(AFTER_POKE).await;
                    false
                }
                noticed = timeout(BACKSTOP, notices.wait()) => noticed.unwrap_or(true),
            };
        }
    }
}

/// Notices that journald wrote. A thread waits for them, as nothing that waits for any descriptor does so without `unsafe`.
struct Notices {
    inotify: Arc<Inotify>,
    covered: HashSet<PathBuf>,
    noticed: Arc<Noticed>,
    /// Its end is the thread's.
    _alive: UnixStream,
}

#[derive(Default)]
struct Noticed {
    something: Notify,
    files: AtomicBool,
}

impl Notices {
    fn new() -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
        let noticed = Arc::new(Noticed::default());
        let (alive, end) = UnixStream::pair()?;
        let (source, teller) = (Arc::clone(&inotify), Arc::clone(&noticed));
        std::thread::Builder::new().name("journal".into()).spawn(move || tell(&source, &teller, &end))?;
        Ok(Self { inotify, covered: HashSet::new(), noticed, _alive: alive })
    }

    /// Adds directories that are not covered yet.
    fn cover(&mut self, directories: &[PathBuf]) {
        let what = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        self.covered.retain(|path| directories.contains(path));
        for directory in directories {
            if self.covered.contains(directory) {
                continue;
            }
            match self.inotify.add_watch(directory, what) {
                Ok(_) => drop(self.covered.insert(directory.clone())),
                Err(error) => debug!(directory = %directory.display(), %error, "not told of what is written there"),
            }
        }
    }

    /// Waits for a notice; true when files or directories came or went.
    async fn wait(&mut self) -> bool {
        self.noticed.something.notified().await;
        self.noticed.files.swap(false, Ordering::Relaxed)
    }
}

/// Passes notices on until the other end of `end` is gone.
fn tell(inotify: &Inotify, noticed: &Noticed, end: &UnixStream) {
    loop {
        let mut waiting =
            [PollFd::new(inotify.as_fd(), PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return warn!(%error, "not told any more of what is written to the journal"),
        }
        if waiting[1].any().unwrap_or(true) {
            return;
        }
        while let Ok(events) = inotify.read_events() {
            if events.is_empty() {
                break;
            }
            if events.iter().any(|event| !event.mask.contains(AddWatchFlags::IN_MODIFY)) {
                noticed.files.store(true, Ordering::Relaxed);
            }
            noticed.something.notify_one();
        }
    }
}

/// The files and how far they have been read.
struct Tails {
    journals: Arc<Journals>,
    files: HashMap<[u8; 16], Tail>,
    /// Every file there is; archives among them are history.
    known: HashSet<[u8; 16]>,
}

struct Tail {
    file: JournalFile,
    listing: Listing,
    read: u64,
    /// What fields are about, by their place in the file: the same few come again with every entry.
    about: HashMap<u64, About>,
}

#[derive(Debug, Clone)]
enum About {
    Unit(UnitId),
    Kernel,
    Nothing,
}

impl Tails {
    /// All files, read to their ends.
    fn new(journals: Arc<Journals>) -> Self {
        let mut tails = Self { journals, files: HashMap::new(), known: HashSet::new() };
        tails.open(true);
        tails
    }

    /// Opens files that came since; `at_end`: what is in them already is of no interest.
    fn open(&mut self, at_end: bool) {
        let mut present = HashSet::new();
        for path in self.journals.files() {
            let opened = JournalFile::open(&path).and_then(|file| {
                let header = file.header()?;
                present.insert(file.id);
                if self.known.contains(&file.id) || (at_end && header.archived) {
                    return Ok(());
                }
                let read = if at_end { header.entries } else { 0 };
                let tail = Tail { listing: Listing::default(), read, about: HashMap::new(), file };
                self.files.insert(tail.file.id, tail);
                Ok(())
            });
            if let Err(error) = opened {
                debug!(path = %path.display(), %error, "a journal file that cannot be followed");
            }
        }
        self.known = present;
    }

    /// What is new.
    fn read(&mut self, look_for_files: bool, units: &HashSet<UnitId>, found: &mut Vec<Entry>) {
        // First those that are known: one of them may have been archived, and its successor is read after it.
        self.files.retain(|_, tail| tail.go_on(units, found));
        if look_for_files {
            self.open(false);
            self.files.retain(|_, tail| tail.go_on(units, found));
        }
    }
}

impl Tail {
    /// Reads what is new; false when nothing will come any more.
    fn go_on(&mut self, units: &HashSet<UnitId>, found: &mut Vec<Entry>) -> bool {
        let Ok(header) = self.file.header() else { return false };
        if header.entries > self.read {
            if header.entries - self.read > BEHIND_MAX {
                warn!(entries = header.entries - self.read, "too far behind the journal; these are left out");
                self.read = header.entries;
                return !header.archived;
            }
            match self.file.all() {
                Ok(listing) => self.listing = listing,
                Err(error) => {
                    warn!(%error, "a journal file is damaged; what is new in it is left out");
                    return false;
                }
            }
            while self.read < self.listing.len() {
                let entry = self.file.nth(&self.listing, self.read).and_then(|offset| self.file.entry(offset));
                self.read += 1;
                match entry {
                    Ok(raw) => {
                        if raw.data.iter().any(|&offset| self.is_wanted(offset, units)) {
                            let entry = interpret(&self.file, &raw);
                            // A unit that is only named by somebody else is not what it is about.
                            if entry.unit.as_ref().is_none_or(|unit| units.contains(unit)) {
                                found.push(entry);
                            }
                        }
                    }
                    Err(error) => debug!(%error, "an entry that cannot be read"),
                }
            }
        }
        !header.archived
    }

    fn is_wanted(&mut self, offset: u64, units: &HashSet<UnitId>) -> bool {
        if self.about.len() >= REMEMBERED {
            self.about.clear();
        }
        let file = &self.file;
        let about = self.about.entry(offset).or_insert_with(|| {
            let Ok((bytes, _)) = file.field(offset) else { return About::Nothing };
            let unit = bytes.strip_prefix(b"_SYSTEMD_UNIT=").or_else(|| bytes.strip_prefix(b"UNIT="));
            let name = unit.and_then(|name| std::str::from_utf8(name).ok());
            match name.and_then(|name| UnitId::new(name).ok()) {
                Some(unit) => About::Unit(unit),
                None if bytes == b"_TRANSPORT=kernel" => About::Kernel,
                None => About::Nothing,
            }
        });
        match about {
            About::Unit(unit) => units.contains(unit),
            About::Kernel => true,
            About::Nothing => false,
        }
    }
}
