//! Processes as `/proc` shows them: who listens, whose a process is, whether it does anything.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::unistd::{SysconfVar, sysconf};

use crate::facts::{Holder, Owner};

/// A process that does nothing for so long counts as idle.
const WATCHED: Duration = Duration::from_millis(200);
/// Generations of processes that are followed upwards.
const DEPTH: usize = 64;
/// Where systemd links the present run of each unit that has one.
const RUNS: &str = "/run/systemd/units";
/// A boot's beginning is known to the second only.
const BOOT_SLACK: SignedDuration = SignedDuration::from_secs(2);

/// The process that listens on a TCP port of this machine. Of several with one socket it is the one that made the
/// others, or the oldest.
///
/// # Errors
/// `PermissionDenied` when it is the process of another user, which only root may look into.
pub(crate) fn holder(port: u16, unit: &str, main: Option<u32>) -> io::Result<Option<Holder>> {
    let inodes: BTreeSet<u64> =
        sockets()?.into_iter().filter(|socket| socket.port == port).map(|socket| socket.inode).collect();
    if inodes.is_empty() {
        return Ok(None);
    }
    let (found, hidden) = with_open(|target| socket_inode(target).is_some_and(|inode| inodes.contains(&inode)))?;
    let above = |pid: i32| found.iter().any(|other| *other != pid && is_below(pid, *other));
    let Some(&pid) = found.iter().find(|pid| !above(**pid)) else {
        let denied = || io::Error::new(io::ErrorKind::PermissionDenied, "it is not a process of this user");
        return if hidden { Err(denied()) } else { Ok(None) };
    };
    let command = String::from_utf8_lossy(&read(pid, "comm")).trim().to_owned();
    Ok(Some(Holder { pid, started: started(pid).unwrap_or(0), command, owner: owner(pid, unit, main) }))
}

/// Whether somebody listens on a TCP port of this machine.
pub(crate) fn is_taken(port: u16) -> io::Result<bool> {
    Ok(sockets()?.iter().any(|socket| socket.port == port))
}

/// `starttime` of a process: clock ticks since boot. None: there is no such process.
pub(crate) fn started(pid: i32) -> Option<u64> {
    Some(stat(pid)?.started)
}

/// The process that made another, or took it over when that one ended.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    Some(stat(pid)?.parent)
}

/// Whose process it is: by its control group, and within the unit's by the run it was started in.
pub(crate) fn owner(pid: i32, unit: &str, main: Option<u32>) -> Owner {
    let Some(group) = unit_of(pid) else { return Owner::Nobody };
    if group != unit {
        return Owner::Unit(group);
    }
    let main = main.and_then(|main| i32::try_from(main).ok());
    let present = fs::read_link(Path::new(RUNS).join(format!("invocation:{unit}"))).ok();
    belonging(pid, main, present.as_deref().and_then(Path::to_str), invocation(pid).as_deref())
}

/// Whose a process in the unit's control group is, by the unit's main process and present run, and the run that the
/// process was started in.
fn belonging(pid: i32, main: Option<i32>, present: Option<&str>, started_in: Option<&str>) -> Owner {
    let below_main = main.is_some_and(|main| pid == main || is_below(pid, main));
    let of_this_run = match (present, started_in) {
        // Its main process may have been told to systemd wrongly or not at all, as with `Type=forking`.
        (Some(present), Some(run)) => present == run,
        // It emptied its environment. The main process tells, while there is one.
        (Some(_), None) => main.is_none(),
        // The unit does not run: whatever is left was left behind.
        (None, _) => false,
    };
    if below_main || of_this_run { Owner::Itself } else { Owner::Orphan }
}

/// The run of a unit that a process was started in, by its environment. None also where another user's process must not
/// be looked into.
pub(crate) fn invocation(pid: i32) -> Option<String> {
    let environment = read(pid, "environ");
    let value = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"INVOCATION_ID="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// The unit of the system's manager that a process is in. What is below it, such as the services of a user's own
/// manager, has names of its own that may be the same.
fn unit_of(pid: i32) -> Option<String> {
    let init = cgroup(1).unwrap_or_default();
    let root = init.strip_suffix("/init.scope").unwrap_or_default();
    let path = cgroup(pid)?;
    let mut parts = path.strip_prefix(root).unwrap_or(&path).split('/');
    parts.find(|part| part.ends_with(".service") || part.ends_with(".scope")).map(str::to_owned)
}

/// Path of the control group that a process is in.
pub(crate) fn cgroup(pid: i32) -> Option<String> {
    let groups = String::from_utf8(read(pid, "cgroup")).ok()?;
    groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Whether a process was made by another, directly or through others.
fn is_below(pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    for _ in 0..DEPTH {
        match stat(at).map(|stat| stat.parent) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

/// Whether a process lives. One that ended and was not waited for does not.
pub(crate) fn lives(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !stat.is_over())
}

/// Whether a process lives that was there already at this moment. Ids are used again.
pub(crate) fn lived_at(pid: i32, moment: Timestamp) -> bool {
    let Some(stat) = stat(pid).filter(|stat| !stat.is_over()) else { return false };
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    let since_boot = SignedDuration::from_millis(i64::try_from(stat.started * 1000 / ticks).unwrap_or(i64::MAX));
    // Without the moment of the boot nothing speaks against it.
    booted().and_then(|boot| boot.checked_add(since_boot).ok()).is_none_or(|began| began <= moment + BOOT_SLACK)
}

/// When the machine started.
pub(crate) fn booted() -> Option<Timestamp> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// Whether a process does anything: uses the processor, reads or writes, or waits for a disk. None: it ended. Blocks for
/// a fifth of a second unless that is clear at once.
pub(crate) fn is_at_work(pid: i32) -> Option<bool> {
    let before = stat(pid).filter(|stat| !stat.is_over())?;
    if matches!(before.state, b'R' | b'D') {
        return Some(true);
    }
    let moved = moved_bytes(pid);
    thread::sleep(WATCHED);
    let after = stat(pid).filter(|stat| !stat.is_over() && stat.started == before.started)?;
    Some(matches!(after.state, b'R' | b'D') || after.ticks != before.ticks || moved_bytes(pid) != moved)
}

/// Bytes that a process read and wrote so far; nothing where this user must not know.
fn moved_bytes(pid: i32) -> Vec<u8> {
    read(pid, "io")
}

/// Processes with an open file for which this holds, the oldest number first, and whether there are processes that must
/// not be looked into.
pub(crate) fn with_open(is_it: impl Fn(&Path) -> bool) -> io::Result<(Vec<i32>, bool)> {
    let (mut found, mut hidden) = (Vec::new(), false);
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        match fs::read_dir(process.path().join("fd")) {
            Ok(files) => {
                if files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| is_it(&target)) {
                    found.push(pid);
                }
            }
            // It ended meanwhile, or is another user's.
            Err(error) => hidden |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    found.sort_unstable();
    Ok((found, hidden))
}

fn socket_inode(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    port: u16,
    inode: u64,
}

/// All listening TCP sockets of this machine.
fn sockets() -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => found.extend(text.lines().filter_map(listening)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// A listening socket, from a line of `/proc/net/tcp`: `sl local:PORT remote state … inode` with hexadecimal numbers;
/// state 0A listens.
fn listening(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(local, 16).ok()?;
    if *fields.get(3)? != "0A" {
        return None;
    }
    Some(Socket { port, inode: fields.get(9)?.parse().ok()? })
}

fn read(pid: i32, name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(format!("/proc/{pid}/{name}"))).unwrap_or_default()
}

/// What `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: i32,
    /// Processor time used, in user mode and in the kernel.
    ticks: u64,
    started: u64,
}

impl Stat {
    fn is_over(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&String::from_utf8_lossy(&read(pid, "stat")))
}

/// The name, in parentheses before the numbers, may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(11)?.saturating_add(number(12)?),
        started: number(19)?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that is ended when the test is.
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn child(script: &str) -> (Ended, i32) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).env("INVOCATION_ID", "aa").stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (Ended(child), pid)
    }

    fn own() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn the_holder_of_a_port_is_found_with_its_start() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(is_taken(port).unwrap());
        let found = holder(port, "other.service", None).unwrap().unwrap();
        assert_eq!((found.pid, Some(found.started)), (own(), started(own())));
        drop(socket);
        assert!(holder(port, "other.service", None).is_ok_and(|holder| holder.is_none()));
        assert!(!is_taken(port).unwrap());
    }

    #[test]
    fn only_listening_sockets_count() {
        let line = |state: &str| {
            format!(
                "   0: 0100007F:2328 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 12345 1 0"
            )
        };
        assert_eq!(listening(&line("0A")), Some(Socket { port: 9000, inode: 12345 }));
        assert_eq!(listening(&line("01")), None);
        assert_eq!(listening("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let line = "7 (a) R 1 (b) S 42 7 7 0 -1 4194304 1 2 3 4 100 20 5 6 20 0 1 0 777 1000 2";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { state: b'S', parent: 42, ticks: 120, started: 777 });
        assert_eq!(parse_stat("7 (a"), None);
    }

    #[test]
    fn a_process_of_an_earlier_run_is_an_orphan() {
        let (_ended, pid) = child("sleep 60 & wait");
        let of = |main, present| belonging(pid, main, present, Some("aa"));
        // The main process and what it made, whatever they say of themselves.
        assert_eq!(of(Some(pid), Some("bb")), Owner::Itself);
        assert_eq!(of(Some(own()), Some("bb")), Owner::Itself);
        // A worker that left its parent, of the present run and of an earlier one.
        assert_eq!(of(Some(1_000_000_000), Some("aa")), Owner::Itself);
        assert_eq!(of(Some(1_000_000_000), Some("bb")), Owner::Orphan);
        // The unit is down, or waits for an automatic restart.
        assert_eq!(of(None, None), Owner::Orphan);
        assert_eq!(of(None, Some("bb")), Owner::Orphan);
        // It hides which run it is of.
        assert_eq!(belonging(pid, Some(1_000_000_000), Some("bb"), None), Owner::Orphan);
        assert_eq!(belonging(pid, None, Some("bb"), None), Owner::Itself);
        // The kernel shows the environment some time after the program has taken the place of its parent's.
        let mut tries = 0..250;
        assert!(tries.any(|_| {
            thread::sleep(Duration::from_millis(20));
            invocation(pid).as_deref() == Some("aa")
        }));
    }

    #[test]
    fn work_and_idleness_are_told_apart() {
        let (_busy, busy) = child("while :; do :; done");
        let (_idle, idle) = child("read line");
        assert_eq!(is_at_work(busy), Some(true));
        // One that has just begun still works.
        let mut tries = 0..250;
        assert!(tries.any(|_| {
            thread::sleep(Duration::from_millis(20));
            is_at_work(idle) == Some(false)
        }));
    }

    #[test]
    fn the_dead_do_not_live_though_nobody_has_waited_for_them() {
        let (_ended, pid) = child("read line");
        assert!(lives(pid) && lived_at(pid, Timestamp::now()));
        // Another process had this number then.
        assert!(!lived_at(pid, Timestamp::now() - SignedDuration::from_hours(1)));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        while stat(pid).is_some_and(|stat| !stat.is_over()) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!lives(pid) && !lived_at(pid, Timestamp::now()));
        assert_eq!(is_at_work(pid), None);
    }

    #[test]
    fn open_files_lead_to_their_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (found, _) = with_open(|target| target == file.path()).unwrap();
        assert_eq!(found, [own()]);
    }
}
