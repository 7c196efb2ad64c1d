//! A unit that dies or hangs comes back, quickly, and says how long that took.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{House, PATIENCE, gone, kill, runs, shell};
use lares_units::{Exit, FeedItem, Probe, State, UnitSpec};

#[tokio::test]
async fn a_killed_server_is_back_and_tells_how_long_it_took() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let script = "import os, socket, sys
s = socket.socket(socket.AF_UNIX)
try: os.unlink(sys.argv[1])
except FileNotFoundError: pass
s.bind(sys.argv[1]); s.listen()
while True: s.accept()";
    let mut spec = UnitSpec::new(common::name("server"), "python3").args(["-c", script, socket.to_str().unwrap()]);
    spec.probe = Probe::UnixSocket(socket);
    let house = House::of(vec![spec]).await;
    house.supervisor.wait_ready(PATIENCE).await.unwrap();
    let mut changes = house.supervisor.changes();
    let before = house.status("server").await;
    assert!(before.ready_after.is_some() && before.last_recovery.is_none());

    let start = Instant::now();
    kill(before.pid.unwrap());
    let down = changes.next().await.unwrap();
    let noticed = start.elapsed();
    let after = house.until_active("server").await;
    let took = start.elapsed();

    let FeedItem::Item(down) = down else { panic!("{down:?}") };
    assert_eq!((down.from, down.to), (State::Active, State::Activating));
    assert!(down.cause.contains("SIGKILL"), "{}", down.cause);
    assert_ne!(after.pid, before.pid);
    assert_eq!((after.restarts, after.last_exit), (1, Some(Exit::Signal { signal: 9 })));
    let recovery = after.last_recovery.unwrap();
    eprintln!("killed; noticed after {noticed:?}, ready again after {recovery:?} (seen from outside: {took:?})");
    assert!(noticed < Duration::from_secs(1), "noticed after {noticed:?}");
    assert!(recovery >= Duration::from_millis(75) && recovery <= took, "{recovery:?} of {took:?}");
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn a_unit_that_hangs_is_started_again() {
    let hangs = Arc::new(AtomicBool::new(false));
    let mut spec = shell("hanger", "exec sleep 1000");
    let probed = Arc::clone(&hangs);
    spec.probe = Probe::check(move || {
        let hangs = probed.load(Ordering::Relaxed);
        async move { if hangs { std::future::pending().await } else { Ok(()) } }
    });
    spec.liveness.interval = Duration::from_millis(20);
    spec.liveness.failures = 2;
    let house = House::of(vec![spec]).await;
    let before = house.until_active("hanger").await;
    hangs.store(true, Ordering::Relaxed);
    house.until("hanger", |status| status.state == State::Deactivating || status.restarts > 0).await;
    hangs.store(false, Ordering::Relaxed);
    let after = house.until("hanger", |status| status.state == State::Active && status.restarts == 1).await;
    assert_ne!(after.pid, before.pid);
    assert!(house.log("hanger").contains("sick, 2 probes in a row failed: no answer within 2 s"));
    assert!(after.last_recovery.is_some());
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn a_unit_that_never_starts_is_failed_says_why_and_goes_on_trying() {
    let units = lares_config::Units {
        restart_delay: Duration::from_millis(5),
        restart_delay_max: Duration::from_millis(200),
        ..lares_config::Units::default()
    };
    let mut broken = shell("broken", "echo no such model >&2; exit 7");
    broken.probe = Probe::check(|| async { Err("not listening".into()) });
    let mut waiting = shell("waiting", "exec sleep 1000");
    waiting.after = vec![common::name("broken")];
    let missing = UnitSpec::new(common::name("missing"), "/nonexistent/program");
    let house = House::with(units, vec![broken, waiting, missing]).await;
    let error = house.supervisor.wait_ready(Duration::from_secs(1)).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.units.len(), 3, "{text}");
    assert!(text.contains("exited with code 7") && text.contains("no such model"), "{text}");
    assert!(text.contains("unit waiting is activating: waits for broken"), "{text}");
    assert!(text.contains("/nonexistent/program is no executable file"), "{text}");
    let failed = house.until("broken", |status| status.state == State::Failed).await;
    house.until("broken", |status| status.restarts > failed.restarts).await;
    let error = house.supervisor.start("broken").await.unwrap_err().to_string();
    assert!(error.contains("unit broken is failed: main process exited with code 7"), "{error}");
    assert!(!house.log("waiting").contains("process"), "started too early");
    house.supervisor.shutdown().await;
    assert_eq!(house.status("broken").await.state, State::Inactive);
}

#[tokio::test]
async fn a_unit_that_is_not_ready_in_time_is_tried_again() {
    let mut slow = shell("slow", "exec sleep 1000");
    slow.probe = Probe::check(|| async { Err("still loading".into()) });
    slow.start_timeout = Some(Duration::from_millis(200));
    let house = House::of(vec![slow]).await;
    house.until("slow", |status| status.restarts >= 1).await;
    assert!(house.log("slow").contains("not ready within 0.2 s: still loading"), "{}", house.log("slow"));
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn what_a_dead_unit_left_in_its_group_is_gone_before_it_is_back() {
    let house = House::of(vec![shell("parent", "sleep 1000 & echo child $!; wait")]).await;
    let child: u32 = house.said("parent", "child ").await.parse().unwrap();
    let usage = house.status("parent").await.usage.unwrap();
    assert!(usage.processes >= 2 && usage.rss_bytes > 0, "{usage:?}");
    assert!(runs(child));
    kill(house.status("parent").await.pid.unwrap());
    house.until("parent", |status| status.restarts == 1 && status.pid.is_some()).await;
    assert!(!runs(child));
    house.supervisor.shutdown().await;
    gone(child).await;
}

#[tokio::test]
async fn a_killed_llama_server_is_back() {
    let (Some(server), Some(model)) =
        (std::env::var_os("LARES_TEST_LLAMA_SERVER"), std::env::var_os("LARES_TEST_MODEL"))
    else {
        eprintln!("SKIP a_killed_llama_server_is_back: LARES_TEST_LLAMA_SERVER or LARES_TEST_MODEL is not set");
        return;
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut spec = UnitSpec::new(common::name("llama"), server).args(["--host", "127.0.0.1", "--port"]);
    spec.args.extend([port.to_string().into(), "--model".into(), model, "--ctx-size".into(), "512".into()]);
    spec.probe = Probe::Http { url: format!("http://127.0.0.1:{port}/health") };
    let house = House::of(vec![spec]).await;
    house.supervisor.wait_ready(Duration::from_secs(100)).await.unwrap();
    let before = house.status("llama").await;
    kill(before.pid.unwrap());
    let after = house.until("llama", |status| status.state == State::Active && status.pid != before.pid).await;
    eprintln!(
        "llama-server: first ready after {:?}, killed and ready again after {:?}, {:?}",
        before.ready_after.unwrap(),
        after.last_recovery.unwrap(),
        after.usage.unwrap()
    );
    assert_eq!(after.restarts, 1);
    house.supervisor.shutdown().await;
}
