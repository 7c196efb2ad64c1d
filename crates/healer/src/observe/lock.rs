//! Who holds the lock of a file: by the kernel's list, by the number in a lock file, by what the log says.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::sys::stat::{major, minor};

use super::{files, process};
use crate::facts::LockHolder;

/// The kernel's locks. Nothing else tells them without trying to take them, and who tries may win.
const LOCKS: &str = "/proc/locks";
/// Longest lock file that is read for a number, in bytes. PostgreSQL's has some 100.
const LOCK_FILE: u64 = 4096;

/// Where the lock of a database is looked for.
#[derive(Debug, Clone)]
pub(super) struct Traces {
    /// File that the configuration names.
    pub(super) configured: Option<PathBuf>,
    /// File that the log names.
    pub(super) named: Option<PathBuf>,
    /// Process that the log names.
    pub(super) pid: Option<i32>,
    /// When it was logged.
    pub(super) said: Timestamp,
}

/// What one file tells.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// This process has it.
    Process(i32),
    /// A number in it is that of a process that is gone.
    Dead,
    /// Nobody.
    Free,
    /// Somebody, or what is in it is not understood.
    Unclear,
}

/// Finds out who holds the lock, and what could not be found out. Blocks for up to a fifth of a second.
pub(super) fn holder(traces: &Traces) -> (LockHolder, Option<String>) {
    let mut file = None;
    if let Some(path) = traces.configured.as_ref().or(traces.named.as_ref()) {
        match of_file(path, traces.configured.is_some()) {
            Ok(found) => file = Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A lock file that is gone locks nothing.
                file = traces.configured.is_none().then_some(Found::Free);
            }
            Err(error) => return (LockHolder::Unknown, Some(format!("who locks {}: {error}", path.display()))),
        }
    }
    let holder = match (file, traces.pid) {
        (Some(Found::Process(pid)), _) => at_work(pid),
        (Some(Found::Dead), _) => LockHolder::Dead,
        (Some(Found::Unclear) | None, None) => LockHolder::Unknown,
        (_, Some(pid)) if !process::lived_at(pid, traces.said) => LockHolder::Dead,
        // It lives and let go of it.
        (Some(Found::Free), _) => LockHolder::Free,
        (_, Some(pid)) => at_work(pid),
    };
    (holder, None)
}

fn at_work(pid: i32) -> LockHolder {
    match process::is_at_work(pid) {
        Some(true) => LockHolder::Working { pid },
        Some(false) => LockHolder::Idle { pid },
        // The kernel frees what it held.
        None => LockHolder::Free,
    }
}

/// Who locks a file. SQLite locks the file itself or, with a log of changes, two beside it.
fn of_file(path: &Path, configured: bool) -> io::Result<Found> {
    let locks = locks()?;
    let on = |path: &Path| -> io::Result<Vec<(Lock, PathBuf)>> {
        let places = places(path)?;
        let locks = locks.iter().filter(|lock| places.contains(&lock.place));
        Ok(locks.map(|lock| (*lock, path.to_owned())).collect())
    };
    let own = on(path)?;
    let beside = ["-wal", "-shm"].map(|ending| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    });
    // With such a log everybody who has the database open locks it for reading all the time, and that hinders nobody.
    let readers_count = !beside[0].exists();
    let other: Vec<(Lock, PathBuf)> = beside.iter().filter_map(|path| on(path).ok()).flatten().collect();
    let writer = own.iter().chain(&other).find(|(lock, _)| lock.writes);
    if let Some((lock, path)) = writer.or_else(|| own.first().filter(|_| readers_count)) {
        if let Some(pid) = lock.pid.filter(|pid| process::lives(*pid)) {
            return Ok(Found::Process(pid));
        }
        // The lock is of an open file, whoever has it open now.
        return Ok(opened_by(path)?.map_or(Found::Unclear, Found::Process));
    }
    Ok(match written_in(path) {
        Some((pid, written)) if process::lived_at(pid, written) => Found::Process(pid),
        Some(_) => Found::Dead,
        None if !configured && is_lock_file(path) && fs::metadata(path)?.len() > 0 => Found::Unclear,
        None => Found::Free,
    })
}

/// Whether somebody holds a lock on a file; one that is not there has none.
pub(super) fn is_locked(path: &Path) -> io::Result<bool> {
    let places = match places(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        places => places?,
    };
    Ok(locks()?.iter().any(|lock| places.contains(&lock.place)))
}

/// A process other than this one that has the file open, the first that is found.
fn opened_by(path: &Path) -> io::Result<Option<i32>> {
    let path = fs::canonicalize(path)?;
    let (found, _) = process::with_open(|target| target == path)?;
    Ok(found.into_iter().find(|pid| u32::try_from(*pid) != Ok(std::process::id())))
}

/// The number of the process that a lock file names, and when it was written: the first line has nothing else.
fn written_in(path: &Path) -> Option<(i32, Timestamp)> {
    let found = fs::metadata(path).ok().filter(|found| found.is_file() && found.len() <= LOCK_FILE)?;
    let text = fs::read_to_string(path).ok()?;
    let pid = text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
    Some((pid, files::modified(&found)))
}

fn is_lock_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.contains("lock") || name.ends_with(".pid")
}

/// Major and minor number of a device, and the inode on it.
type Place = (u64, u64, u64);

/// A lock that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lock {
    /// Who took it; none where it belongs to the open file (`OFDLCK`).
    pid: Option<i32>,
    place: Place,
    writes: bool,
}

/// Where a file is, as the kernel's list has it. On file systems with subvolumes the device that a file is said to be on
/// is not the one of its file system, and the list has the latter.
fn places(path: &Path) -> io::Result<Vec<Place>> {
    let found = fs::metadata(path)?;
    let mut places = vec![(major(found.dev()), minor(found.dev()), found.ino())];
    if let Some((major, minor)) = files::mount_of(path).map(|mount| mount.device) {
        places.push((major, minor, found.ino()));
    }
    Ok(places)
}

fn locks() -> io::Result<Vec<Lock>> {
    Ok(fs::read_to_string(LOCKS)?.lines().filter_map(lock).collect())
}

/// A line such as `1: POSIX  ADVISORY  WRITE 1234 08:01:5678 0 EOF`: the device in hexadecimal, the inode not. Who only
/// waits has `->` after the number.
fn lock(line: &str) -> Option<Lock> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, "POSIX" | "FLOCK" | "OFDLCK", _, access, pid, place, ..] = fields[..] else { return None };
    let mut parts = place.split(':');
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let place = (hexadecimal(parts.next()?)?, hexadecimal(parts.next()?)?, parts.next()?.parse().ok()?);
    Some(Lock { pid: pid.parse().ok().filter(|pid| *pid > 0), place, writes: access == "WRITE" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use jiff::SignedDuration;

    use super::*;

    /// A shell that holds a lock until the test ends.
    struct Locker(Child);

    impl Drop for Locker {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Locks a file and then does this.
    fn locked(path: &Path, then: &str) -> (Locker, i32) {
        let script = format!("exec 9<>\"$0\"; flock 9; echo locked; {then}");
        let mut child = Command::new("bash");
        child.args(["-c", &script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (Locker(child), pid)
    }

    fn traces(configured: Option<&Path>, named: Option<&Path>, pid: Option<i32>) -> Traces {
        let path = |path: Option<&Path>| path.map(Path::to_owned);
        Traces { configured: path(configured), named: path(named), pid, said: Timestamp::now() }
    }

    /// Asks until the answer is this one: a process that has just begun still works.
    fn expect(traces: &Traces, wanted: LockHolder) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while holder(traces).0 != wanted && std::time::Instant::now() < until {}
        assert_eq!(holder(traces).0, wanted);
    }

    /// A number that no process has: above the kernel's highest.
    const NOBODY: i32 = 1_000_000_000;

    #[test]
    fn the_kernels_list_is_read() {
        let place = (0xfe, 0, 10_010_664);
        let line = "1: FLOCK  ADVISORY  WRITE 5854 fe:00:10010664 0 EOF";
        assert_eq!(lock(line), Some(Lock { pid: Some(5854), place, writes: true }));
        let line = "2: OFDLCK ADVISORY  READ -1 fe:00:10010664 0 EOF";
        assert_eq!(lock(line), Some(Lock { pid: None, place, writes: false }));
        for line in ["1: -> FLOCK  ADVISORY  WRITE 5855 fe:00:1 0 EOF", "3: LEASE  ACTIVE    READ 1 fe:00:1 0 EOF", ""]
        {
            assert_eq!(lock(line), None, "{line}");
        }
    }

    #[test]
    fn a_lock_is_seen_without_being_tried() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_locked(file.path()).unwrap());
        let (idle, pid) = locked(file.path(), "read line");
        assert!(is_locked(file.path()).unwrap());
        expect(&traces(Some(file.path()), None, None), LockHolder::Idle { pid });
        drop(idle);
        assert!(!is_locked(file.path()).unwrap());
        assert_eq!(holder(&traces(Some(file.path()), None, None)).0, LockHolder::Free);
        let (_busy, pid) = locked(file.path(), "while :; do :; done");
        assert_eq!(holder(&traces(None, Some(file.path()), Some(NOBODY))).0, LockHolder::Working { pid });
        assert!(!is_locked(Path::new("/nowhere/at.lock")).unwrap());
    }

    #[test]
    fn a_lock_on_some_bytes_is_its_takers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        let file = fs::File::create(&path).unwrap();
        // As SQLite locks: some bytes far behind the end.
        let range = libc_flock(0x4000_0000, 2);
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLK(&range)).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(of_file(&path, true).unwrap(), Found::Process(own));
        assert!(is_locked(&path).unwrap());
        drop(file);
        assert_eq!(of_file(&path, true).unwrap(), Found::Free);
    }

    fn libc_flock(start: i64, len: i64) -> nix::libc::flock {
        let (kind, whence) = (nix::libc::F_WRLCK as i16, nix::libc::SEEK_SET as i16);
        nix::libc::flock { l_type: kind, l_whence: whence, l_start: start, l_len: len, l_pid: 0 }
    }

    #[test]
    fn a_lock_that_a_child_inherited_is_the_childs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // The lock is that of the shell that takes it and ends; its child keeps the file open.
        let (_outer, _) = locked(file.path(), "exec 9>&-; read line");
        expect(&traces(Some(file.path()), None, None), LockHolder::Free);
        let script = "(exec 9<>\"$0\"; flock 9; sleep 60 & echo $! >&2); echo locked; read line";
        let mut child = Command::new("bash");
        child.args(["-c", script]).arg(file.path()).stdin(Stdio::piped());
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let mut sleeper = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut sleeper).unwrap();
        let pid: i32 = sleeper.trim().parse().unwrap();
        let _ended = Locker(child);
        expect(&traces(Some(file.path()), None, None), LockHolder::Idle { pid });
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn the_number_in_a_lock_file_counts_if_it_is_of_that_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.lock");
        let write = |text: &str| fs::write(&path, text).unwrap();
        let of = || holder(&traces(None, Some(&path), None)).0;
        write(&format!("{NOBODY}\n/var/lib/app\n"));
        assert_eq!(of(), LockHolder::Dead);
        write(&format!("{}\n", std::process::id()));
        assert!(matches!(of(), LockHolder::Working { .. } | LockHolder::Idle { .. }));
        // Written before this process began: it was another one's number.
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(of(), LockHolder::Dead);
        write("FileLock#2\n");
        assert_eq!(of(), LockHolder::Unknown);
        write("");
        assert_eq!(of(), LockHolder::Free);
        fs::remove_file(&path).unwrap();
        assert_eq!(of(), LockHolder::Free);
    }

    #[test]
    fn the_process_that_the_log_names_counts() {
        assert_eq!(holder(&traces(None, None, Some(NOBODY))).0, LockHolder::Dead);
        assert_eq!(holder(&traces(None, None, None)).0, LockHolder::Unknown);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        expect(&traces(None, None, Some(pid)), LockHolder::Idle { pid });
        let before = Traces { said: Timestamp::now() - SignedDuration::from_hours(1), ..traces(None, None, Some(pid)) };
        assert_eq!(holder(&before).0, LockHolder::Dead);
        // The file tells that it has let go.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(holder(&traces(Some(file.path()), None, Some(pid))).0, LockHolder::Free);
        child.stdin.take().unwrap().flush().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn readers_of_a_database_with_a_log_of_changes_hinder_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.db");
        fs::write(&path, "").unwrap();
        let script = "exec 9<>\"$0\"; flock --shared 9; echo locked; read line";
        let mut child = Command::new("bash");
        let mut child =
            child.args(["-c", script]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let _ended = Locker(child);
        let of = |wanted| expect(&traces(Some(&path), None, None), wanted);
        of(LockHolder::Idle { pid });
        let log = directory.path().join("app.db-wal");
        fs::write(&log, "").unwrap();
        of(LockHolder::Free);
        let (_writer, pid) = locked(&log, "read line");
        of(LockHolder::Idle { pid });
    }
}
