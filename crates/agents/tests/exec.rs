//! Commands behind the launcher: how they end, what is kept of their output, and that nothing of them is left.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Place;
use futures_util::FutureExt as _;
use lares_agents::exec::{ExecError, Limits};
use lares_agents::sandbox::{Exit, Launcher};
use lares_config::ByteSize;
use tokio_util::sync::CancellationToken;

/// An argument no other process has.
fn mark() -> String {
    format!("{}", 100_000_000 + u64::from(rand::random::<u32>()))
}

/// Waits until `what` holds, or fails after ten seconds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes whose command line holds `mark`.
fn processes_with(mark: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() && String::from_utf8_lossy(&line).contains(mark) {
            found.push(pid);
        }
    }
    found
}

#[tokio::test]
async fn exit_codes_and_signals_come_through_exactly() {
    let place = Place::new();
    for code in [0, 1, 2, 42, 126, 127, 128, 137, 255] {
        let output = place.run(&format!("exit {code}")).await;
        assert_eq!(output.exit, Exit::Code(code));
        assert_eq!(output.success(), code == 0);
    }
    for (name, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("ABRT", 6)] {
        let output = place.run(&format!("kill -{name} $$")).await;
        assert_eq!(output.exit, Exit::Signal(number), "{name}");
        assert!(!output.success());
    }
}

#[tokio::test]
async fn both_outputs_are_kept_in_order_and_input_is_empty() {
    let place = Place::new();
    let output = place.run("echo one; echo two >&2; cat; echo three").await;
    assert_eq!(output.text(), "one\ntwo\nthree\n");
    assert_eq!(output.output_bytes, 14);
    assert!(output.peak_memory > 0 && output.duration > Duration::ZERO);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_that_names_it() {
    let place = Place::new();
    let mut command = lares_agents::exec::Command::shell("", place.path());
    command.program = "no-such-program".into();
    let limits = Limits::new(&place.sandbox, place.timeout);
    let shutdown = CancellationToken::new();
    let launcher = common::launcher();
    let run = lares_agents::exec::run(&launcher, &place.policy, &command, &limits, &shutdown);
    let error = run.await.unwrap_err();
    assert!(matches!(&error, ExecError::Command(why) if why.contains("no-such-program")), "{error}");
    let wrong = Launcher { program: "/bin/true".into(), args: Vec::new() };
    let run = lares_agents::exec::run(&wrong, &place.policy, &command, &limits, &shutdown);
    assert!(matches!(run.await.unwrap_err(), ExecError::Launcher { .. }));
}

#[tokio::test]
async fn a_check_that_never_ends_is_ended_even_when_it_ignores_sigterm() {
    let mut place = Place::new();
    place.timeout = Duration::from_millis(300);
    let mark = mark();
    let started = Instant::now();
    let polite = place.run(&format!("sleep {mark}")).await;
    assert!(polite.timed_out && !polite.success() && polite.exit == Exit::Signal(15));
    assert!(started.elapsed() < Duration::from_secs(2));
    let started = Instant::now();
    let stubborn = place.run(&format!("trap '' TERM; echo begun; while :; do sleep 0.1; : {mark}; done")).await;
    assert!(stubborn.timed_out && stubborn.exit == Exit::Signal(9));
    assert_eq!(stubborn.text(), "begun\n");
    assert!((2..5).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert!(processes_with(&mark).is_empty());
}

#[tokio::test]
async fn cancelling_ends_the_run() {
    let place = Place::new();
    let shutdown = CancellationToken::new();
    let mark = mark();
    let line = format!("sleep {mark}");
    let run = place.run_until(&line, &shutdown);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        shutdown.cancel();
    };
    let (output, ()) = tokio::join!(run, cancel);
    assert!(output.unwrap().cancelled);
    assert!(processes_with(&mark).is_empty());
}

#[tokio::test]
async fn dropping_the_run_ends_its_processes() {
    let place = Place::new();
    let mark = mark();
    let line = format!("setsid sleep {mark} & sleep {mark}");
    let dropped = tokio::time::timeout(Duration::from_millis(500), place.run(&line)).await;
    assert!(dropped.is_err());
    eventually("the processes of a dropped run end", || processes_with(&mark).is_empty());
}

#[tokio::test]
async fn a_run_that_is_dropped_at_any_moment_leaves_no_directory() {
    let mut place = Place::new();
    let scratch = tempfile::tempdir().unwrap();
    place.policy.scratch = Some(scratch.path().to_owned());
    for micros in [0, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000] {
        let _ = tokio::time::timeout(Duration::from_micros(micros), place.run("sleep 60")).await;
    }
    // While its directory is being made: the timer above is never that fine.
    for _ in 0..50 {
        assert!(place.run("sleep 60").now_or_never().is_none());
    }
    let empty = || std::fs::read_dir(scratch.path()).unwrap().next().is_none();
    eventually("the private directories are gone", empty);
}

#[tokio::test]
async fn a_daemon_dies_with_the_run_it_came_from() {
    let place = Place::new();
    let mark = mark();
    // Double-forked, in a session of its own, its output elsewhere, reparented to whoever adopts orphans.
    let line =
        format!("(setsid sh -c 'sleep {mark} & sleep {mark} & exit' >/dev/null 2>&1 </dev/null &) ; sleep 0.2; exit 3");
    let output = place.run(&line).await;
    assert_eq!(output.exit, Exit::Code(3));
    assert!(output.duration < Duration::from_secs(5));
    assert!(processes_with(&mark).is_empty(), "a daemon outlived its run");
}

#[test]
fn a_killed_runner_leaves_no_process_and_no_directory() {
    let place = Place::new();
    let mark = mark();
    let scratch = tempfile::tempdir().unwrap();
    let launcher = common::launcher().program;
    let example = launcher.parent().unwrap().join("examples/run_check");
    let line = format!("(setsid sleep {mark} &); trap '' TERM; sleep {mark}");
    let mut runner = Command::new(example)
        .args([launcher.as_path(), place.path()])
        .arg(&line)
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let sleeping = |least: usize| {
        let sleeps =
            |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
        processes_with(&mark).iter().filter(|pid| sleeps(pid)).count() >= least
    };
    eventually("both processes run", || sleeping(2));
    runner.kill().unwrap();
    runner.wait().unwrap();
    eventually("the guard ends all of them", || processes_with(&mark).is_empty());
    let empty = || std::fs::read_dir(scratch.path()).unwrap().next().is_none();
    eventually("the private directory is gone", empty);
}

#[tokio::test]
async fn a_killed_guard_is_an_error_and_its_run_ends_too() {
    let place = Place::new();
    let mark = mark();
    let line = format!("sleep {mark} & sleep {mark}; true");
    let kill = async {
        let parent = |pid: u32| -> Option<u32> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        };
        let is_guard = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("lares-sandbox"))
        };
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let guard = processes_with(&mark).into_iter().filter_map(parent).find(is_guard);
            if let Some(guard) = guard.filter(|_| processes_with(&mark).len() >= 3) {
                assert!(Command::new("kill").args(["-9", &guard.to_string()]).status().unwrap().success());
                return;
            }
        }
    };
    let (result, ()) = tokio::join!(place.try_run(&line), kill);
    assert!(matches!(result, Err(ExecError::Lost)), "{result:?}");
    eventually("the processes end", || processes_with(&mark).is_empty());
}

#[tokio::test]
async fn gigabytes_of_output_fill_neither_memory_nor_disk() {
    let mut place = Place::new();
    place.sandbox.max_output = ByteSize::kib(8);
    let output = place.run("echo first; head -c 2000000000 /dev/zero; echo last").await;
    assert!(output.success());
    assert_eq!(output.output_bytes, 2_000_000_011);
    assert!(output.output.starts_with(b"first\n") && output.output.ends_with(b"last\n"));
    assert!(output.output.len() < 9000);
    let text = output.text();
    assert!(text.contains(&format!("[{} bytes of output dropped here]", 2_000_000_011 - 8192)));
}

#[tokio::test]
async fn a_file_grows_no_larger_than_allowed() {
    let mut place = Place::new();
    place.sandbox.max_file = ByteSize::mib(1);
    let output = place.run("cat /dev/zero > big; exit $?").await;
    assert!(!output.success());
    assert_eq!(std::fs::metadata(place.path().join("big")).unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn memory_is_bounded() {
    let mut place = Place::new();
    place.sandbox.max_memory = ByteSize::mib(256);
    let output = place.run("python3 -c 'x = bytearray(1 << 30)'").await;
    assert!(!output.success() && output.text().contains("MemoryError"), "{}", output.text());
}

#[tokio::test]
async fn a_fork_bomb_is_ended_and_leaves_nothing() {
    let mut place = Place::new();
    place.sandbox.max_processes = 64;
    let mark = mark();
    let started = Instant::now();
    let output = place.run(&format!("bomb() {{ bomb {mark} | bomb {mark} & }}; bomb; sleep {mark}")).await;
    assert!(output.over_processes && !output.success());
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert!(processes_with(&mark).is_empty());
    // Threads count too.
    let threads =
        "import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(30,)).start()";
    std::fs::write(place.path().join("threads.py"), threads).unwrap();
    assert!(place.run("python3 threads.py").await.over_processes);
}

#[tokio::test]
async fn a_run_has_its_own_home_and_leaves_no_directory() {
    let mut place = Place::new();
    let scratch = tempfile::tempdir().unwrap();
    place.policy.scratch = Some(scratch.path().to_owned());
    let output = place
        .run("echo kept > $HOME/a && mktemp -d && mkdir -p $HOME/ro/x && chmod 500 $HOME/ro && ls $HOME && env")
        .await;
    assert!(output.success(), "{}", output.text());
    let text = output.text();
    assert!(text.contains("PYTHONDONTWRITEBYTECODE=1") && text.contains("TERM=dumb"), "{text}");
    assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn toolchains_of_the_user_work() {
    let place = Place::new();
    std::fs::write(place.path().join("test_a.py"), "import unittest, multiprocessing\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        multiprocessing.Lock()\n        import tempfile; tempfile.mkdtemp()\n").unwrap();
    let output = place.run("python3 -m unittest 2>&1 && git --version && ls").await;
    assert!(output.success(), "{}", output.text());
    assert!(!output.text().contains("__pycache__"));
    let rust = "fn main() { println!(\"built\"); }";
    std::fs::write(place.path().join("a.rs"), rust).unwrap();
    let output = place.run("rustc -o a a.rs && ./a").await;
    assert!(output.text().contains("built"), "{}", output.text());
}
