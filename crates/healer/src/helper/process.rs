//! One process: what `/proc` tells of it, and its end.

use std::iter;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Obstacle;
use crate::observe::process as proc;

/// Time to end in after SIGTERM, and after SIGKILL.
const TERM: Duration = Duration::from_secs(5);
const KILL: Duration = Duration::from_secs(2);
/// Generations of parents that are looked at; more than any tree of processes that a unit has.
const ANCESTORS: usize = 64;

/// A process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    /// Its id.
    pub(super) pid: i32,
    /// Its `starttime`, in clock ticks since boot.
    pub(super) started: u64,
    /// Path of its control group.
    pub(super) group: String,
    /// Its parent, the parent of that, and so on.
    pub(super) ancestors: Vec<i32>,
    /// `INVOCATION_ID` it was started with; none when it has none, or has written over it.
    pub(super) invocation: Option<String>,
}

impl Process {
    /// The process with this id; none when there is none.
    pub(super) fn look(pid: i32) -> Option<Self> {
        let ancestors = iter::successors(proc::parent(pid), |at| proc::parent(*at)).take_while(|at| *at > 0);
        Some(Self {
            pid,
            started: proc::started(pid)?,
            group: proc::cgroup(pid)?,
            ancestors: ancestors.take(ANCESTORS).collect(),
            invocation: proc::invocation(pid),
        })
    }
}

/// A hold on the process with this id: whatever gets that id later is another one. None when there is no such process.
pub(super) fn hold(pid: i32) -> Result<Option<OwnedFd>, Obstacle> {
    // Below 2 are PID 1 and what means groups of processes.
    let Some(id) = (pid > 1).then(|| Pid::from_raw(pid)).flatten() else {
        return Err(Obstacle::Refused(format!("{pid} is no process that may be ended")));
    };
    match pidfd_open(id, PidfdFlags::empty()) {
        Ok(held) => Ok(Some(held)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(Obstacle::Failed(format!("cannot take hold of process {pid}: {error}"))),
    }
}

/// Ends a process and waits until it is gone: SIGTERM, then SIGKILL. Gives the signal that did it. Blocks.
pub(super) fn end(held: &OwnedFd) -> Result<&'static str, Obstacle> {
    for (signal, name, patience) in [(Signal::TERM, "SIGTERM", TERM), (Signal::KILL, "SIGKILL", KILL)] {
        match pidfd_send_signal(held, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(Obstacle::Failed(format!("cannot signal it: {error}"))),
        }
        if has_ended(held, patience).map_err(|error| Obstacle::Failed(format!("cannot wait for its end: {error}")))? {
            return Ok(name);
        }
    }
    Err(Obstacle::Failed("it is still there after SIGKILL; it probably waits in the kernel for a device".to_owned()))
}

/// Waits for the end of a process, so long at most: what holds it becomes readable then.
fn has_ended(held: &OwnedFd, patience: Duration) -> nix::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(held.as_fd(), PollFlags::POLLIN)], left) {
            Err(nix::Error::EINTR) => {}
            outcome => return outcome.map(|ended| ended > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_known_with_its_parents() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = Command::new("sleep").arg("60").env("INVOCATION_ID", "x".repeat(32)).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Until it has become `sleep` it has the test's own environment.
        let look = || Process::look(pid).filter(|seen| seen.invocation.is_some());
        let seen = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            look()
        });
        let seen = seen.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((seen.pid, seen.ancestors.first(), seen.invocation), (pid, Some(&own), Some("x".repeat(32))));
        assert!(seen.started >= proc::started(own).unwrap());
        assert!(seen.group.starts_with('/') || seen.group.is_empty());
        assert!(Process::look(pid).is_none(), "it has ended");
    }

    #[test]
    fn no_group_of_processes_can_be_meant() {
        for pid in [1, 0, -1, i32::MIN] {
            assert!(matches!(hold(pid), Err(Obstacle::Refused(_))), "{pid}");
        }
        // Above the highest id there can be.
        assert!(hold(i32::MAX).unwrap().is_none());
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_ended_too() {
        let mut willing = Command::new("sleep").arg("60").spawn().unwrap();
        let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let mut stubborn = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(stubborn.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        for (child, signal) in [(&mut willing, "SIGTERM"), (&mut stubborn, "SIGKILL")] {
            let held = hold(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
            assert_eq!(end(&held), Ok(signal));
            assert!(!child.wait().unwrap().success());
            assert_eq!(end(&held), Ok("SIGTERM"), "one that is gone is no failure");
        }
    }
}
