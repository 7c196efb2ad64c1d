//! First stage of the launcher: stays outside the confinement and ends the run's whole process tree.
//!
//! It ends with the command, on request, on SIGTERM, when the run grows over its number of processes, or when the
//! process that started it is gone. That is seen on the socket, which the kernel closes even after SIGKILL;
//! PR_SET_PDEATHSIG would not do, as it fires when the starting *thread* ends, and runtimes end threads.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, setsid};

use lares_config::SandboxMode;

use super::descendants::{Descendants, Left};
use super::wire::{Refusal, Report, Spec, receive_descriptor, send, send_descriptor, stdin_socket};
use super::{Confinement, ENTER, Exit, PROBE, paths};

/// Longest the second stage takes to become the command.
const ENTER_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn main() -> ExitCode {
    let Ok(socket) = stdin_socket() else {
        eprintln!("this starts the confined commands of a task; it is not meant to be called by hand");
        return ExitCode::FAILURE;
    };
    let report = match Spec::receive(&socket) {
        Err(error) => Report::Refused(Refusal::Launcher(format!("the description of the run is unreadable: {error}"))),
        Ok(spec) => {
            let scratch = spec.scratch.clone();
            let stdin = if spec.stdin { receive_descriptor(&socket).map(Some) } else { Ok(None) };
            let report = match stdin {
                Ok(stdin) => supervise(&socket, spec, stdin).unwrap_or_else(Report::Refused),
                Err(error) => Report::Refused(Refusal::Launcher(format!("no standard input came: {error}"))),
            };
            paths::remove(&scratch);
            report
        }
    };
    send(&socket, &report);
    ExitCode::SUCCESS
}

fn supervise(socket: &UnixStream, mut spec: Spec, stdin: Option<OwnedFd>) -> Result<Report, Refusal> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Refusal::Launcher(format!("{what}: {error}"));
    // A session of its own: signals for the daemon's process group are not for the guard, which has to outlive it.
    let _ = setsid();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|error| failed("blocking signals", &error))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| failed("receiving signals", &error))?;
    let descendants = Descendants::adopt().map_err(|error| failed("adopting processes", &error))?;

    spec.guard = getpid().as_raw();
    spec.namespaces = spec.mode == SandboxMode::Require;
    if spec.namespaces {
        spec.namespaces = stage(&spec, PROBE, None).and_then(|(child, _)| finish(child)).unwrap_or(false);
    }
    let (child, channel) = stage(&spec, ENTER, stdin).map_err(|error| failed("starting the second stage", &error))?;
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap_or(-1));
    let mut exit = None;
    let entered = entered(channel);
    let confinement = match entered {
        Ok(confinement) => confinement,
        Err(refusal) => {
            descendants.end(main, &mut exit);
            return Err(refusal);
        }
    };
    send(socket, &Report::Started { session: main.as_raw() });

    let over_processes = watch(socket, &signals, &descendants, &spec, main, &mut exit);
    let left = descendants.end(main, &mut exit);
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| usage.max_rss());
    Ok(Report::Ended {
        exit: exit.unwrap_or(Exit::Signal(Signal::SIGKILL as i32)),
        over_processes,
        survivors: left == Left::Some,
        peak_memory: u64::try_from(peak).unwrap_or(0) * 1024,
        confinement,
    })
}

/// Starts this program again in another stage, the description of the run on its standard input.
fn stage(spec: &Spec, argument: &str, stdin: Option<OwnedFd>) -> io::Result<(std::process::Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new("/proc/self/exe")
        .args(&spec.reenter)
        .arg(argument)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    ours.set_read_timeout(Some(ENTER_TIMEOUT))?;
    io::Write::write_all(&mut &ours, &spec.frame()?)?;
    if let Some(stdin) = stdin {
        send_descriptor(ours.as_fd(), stdin.as_fd())?;
    }
    Ok((child, ours))
}

/// Whether the stage ended well, waiting no longer than it may take.
fn finish(mut child: std::process::Child) -> io::Result<bool> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if started.elapsed() > ENTER_TIMEOUT {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Waits until the second stage has become the command: what it says before its side of the socket closes.
fn entered(channel: UnixStream) -> Result<Confinement, Refusal> {
    let mut said = String::new();
    let read = channel.take(1 << 20).read_to_string(&mut said);
    let answer: Option<Result<Confinement, Refusal>> =
        said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    match (read, answer) {
        (_, Some(answer)) => answer,
        (Ok(_), None) => Err(Refusal::Launcher("the second stage ended without a word".to_owned())),
        (Err(error), None) => Err(Refusal::Launcher(format!("no word from the second stage: {error}"))),
    }
}

/// Watches the run until it has to end; whether because it had too many processes.
fn watch(
    socket: &UnixStream,
    signals: &SignalFd,
    descendants: &Descendants,
    spec: &Spec,
    main: Pid,
    exit: &mut Option<Exit>,
) -> bool {
    let _ = socket.set_nonblocking(true);
    let mut stop_at: Option<Instant> = None;
    // Root's processes are not bounded by RLIMIT_NPROC, so counting them is the bound.
    let mut count_at = Instant::now() + spec.count_every;
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let now = Instant::now();
        let wait = stop_at.map_or(count_at, |stop_at| stop_at.min(count_at)).saturating_duration_since(now);
        // Up to the next whole millisecond: rounded down it would spin through the last one.
        let wait = u16::try_from(wait.as_millis() + 1).unwrap_or(100);
        let _ = poll(&mut fds, PollTimeout::from(wait));

        let mut stop = false;
        while let Ok(Some(signal)) = signals.read_signal() {
            stop |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        descendants.reap(main, exit);
        if exit.is_some() {
            return false;
        }
        let mut asked = [0; 16];
        match (&mut &*socket).read(&mut asked) {
            Ok(0) => return false,
            Ok(_) => stop = true,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        let now = Instant::now();
        if stop && stop_at.is_none() {
            descendants.signal(Signal::SIGTERM);
            stop_at = Some(now + spec.grace);
        }
        if stop_at.is_some_and(|stop_at| now >= stop_at) {
            return false;
        }
        if now >= count_at {
            let most = spec.max_processes as usize;
            if descendants.threads(most) > most {
                return true;
            }
            count_at = now + spec.count_every;
        }
    }
}
