//! Every process of a run: counting them, and ending them all.
//!
//! The guard is their subreaper, so whatever a command double-forks away still ends up below it. Where the kernel
//! knows Landlock's signal scope, the guard puts itself into a domain that can signal nothing but its own descendants;
//! `kill(-1)` then ends all of them in one step that no fork can slip through. Elsewhere they are listed and killed
//! until none is left.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use landlock::{CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};

use super::Exit;

/// How long processes that do not die (a dead network file system) are waited for.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Most processes taken in before anything else is looked at: those of a fork bomb end faster than they are taken in.
const AT_ONCE: usize = 512;

/// The processes below this one.
#[derive(Debug)]
pub(super) struct Descendants {
    /// Signals of this process reach its descendants only. Proven, not assumed: `kill(-1)` hangs on it.
    scoped: bool,
}

impl Descendants {
    /// Makes this process theirs to adopt, and its signals theirs alone where the kernel can do that.
    pub(super) fn adopt() -> nix::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        Ok(Self { scoped: scope_signals() })
    }

    /// Threads of all of them, counted no further than a little over `enough`.
    pub(super) fn threads(&self, enough: usize) -> usize {
        list(enough).into_iter().map(|(_, threads)| threads).sum()
    }

    /// Sends `signal` to each.
    pub(super) fn signal(&self, signal: Signal) {
        for (pid, _) in list(usize::MAX) {
            let _ = kill(pid, signal);
        }
    }

    /// Takes in those that ended, so many and no more; the exit of `main` when it was among them. `None` inside: no child
    /// is left.
    pub(super) fn reap(&self, main: Pid, exit: &mut Option<Exit>) -> Left {
        for _ in 0..AT_ONCE {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == main => *exit = Some(Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => *exit = Some(Exit::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => return Left::Some,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Left::None,
            }
        }
        Left::Some
    }

    /// Kills all and takes them in.
    pub(super) fn end(&self, main: Pid, exit: &mut Option<Exit>) -> Left {
        let started = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if self.scoped {
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            } else {
                self.signal(Signal::SIGKILL);
            }
            if self.reap(main, exit) == Left::None {
                return Left::None;
            }
            if started.elapsed() > LAST_WAIT {
                return Left::Some;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

/// Whether a child is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Some,
    None,
}

/// Confines the signals of this process to its descendants; true only when a signal that worked before is refused now.
fn scope_signals() -> bool {
    let outsider = getppid();
    if kill(outsider, None).is_err() {
        return false;
    }
    let enforced = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .scope(Scope::Signal)
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .is_ok_and(|status| status.ruleset == RulesetStatus::FullyEnforced);
    enforced && kill(outsider, None) == Err(Errno::EPERM)
}

/// Processes below this one with their number of threads, until `enough` threads were seen.
fn list(enough: usize) -> Vec<(Pid, usize)> {
    let own = getpid();
    if fs::metadata(format!("/proc/{own}/task/{own}/children")).is_ok() {
        list_by_children(own, enough)
    } else {
        list_by_parents(own)
    }
}

fn list_by_children(own: Pid, enough: usize) -> Vec<(Pid, usize)> {
    let mut found = Vec::new();
    let mut seen = 0;
    let mut pending = vec![own];
    while let Some(parent) = pending.pop() {
        let mut threads = 0;
        for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            threads += 1;
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pending.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
        }
        if parent != own {
            found.push((parent, threads));
            seen += threads;
        }
        if seen > enough {
            break;
        }
    }
    found
}

/// For kernels without `CONFIG_PROC_CHILDREN`.
fn list_by_parents(own: Pid) -> Vec<(Pid, usize)> {
    let mut children: HashMap<i32, Vec<(i32, usize)>> = HashMap::new();
    for stat in all() {
        children.entry(stat.parent).or_default().push((stat.pid, stat.threads));
    }
    let mut found = Vec::new();
    let mut pending = vec![own.as_raw()];
    while let Some(parent) = pending.pop() {
        for (pid, threads) in children.remove(&parent).unwrap_or_default() {
            found.push((Pid::from_raw(pid), threads));
            pending.push(pid);
        }
    }
    found
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    pid: i32,
    parent: i32,
    session: i32,
    threads: usize,
}

fn all() -> impl Iterator<Item = Stat> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name is in parentheses and may hold anything, so the fields are counted from its end.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Stat {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
        })
    })
}

/// Kills whatever runs in one of these sessions: the last resort when a guard was killed from outside.
pub fn end_sessions(sessions: &[i32]) {
    for stat in all().filter(|stat| sessions.contains(&stat.session)) {
        let _ = kill(Pid::from_raw(stat.pid), Signal::SIGKILL);
    }
}

/// Threads that run as the user of this process, on the whole machine.
pub(super) fn threads_of_user() -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = nix::unistd::Uid::effective().as_raw();
    let owned = |stat: &Stat| fs::metadata(format!("/proc/{}", stat.pid)).is_ok_and(|found| found.uid() == own);
    all().filter(owned).map(|stat| stat.threads as u64).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_ways_of_listing_find_the_same_processes() {
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 30 & sleep 30; wait"]).spawn().unwrap();
        let children = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let started = Instant::now();
        while children(shell.id()).split_ascii_whitespace().count() < 2 && started.elapsed().as_secs() < 10 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let shell_pid = Pid::from_raw(i32::try_from(shell.id()).unwrap());
        let mut by_children = list_by_children(shell_pid, usize::MAX);
        let mut by_parents = list_by_parents(shell_pid);
        by_children.sort();
        by_parents.sort();
        for (pid, _) in &by_parents {
            kill(*pid, Signal::SIGKILL).unwrap();
        }
        shell.kill().unwrap();
        shell.wait().unwrap();
        assert_eq!(by_children.len(), 2);
        assert_eq!(by_children, by_parents);
    }
}
