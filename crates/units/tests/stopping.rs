//! Stopping is bounded, complete, and in order; what somebody stopped stays down.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{House, PATIENCE, example, gone, kill, name, runs, shell};
use lares_units::{ControlError, Exit, Probe, State, StopSignal};

#[tokio::test]
async fn stopped_by_operator_is_left_alone_until_started() {
    let house = House::of(vec![shell("unit", "exec sleep 1000")]).await;
    let pid = house.until_active("unit").await.pid.unwrap();
    house.supervisor.stop("unit").await.unwrap();
    assert!(!runs(pid));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let status = house.status("unit").await;
    assert_eq!((status.state, status.pid, status.restarts), (State::Inactive, None, 0));
    assert_eq!(status.last_exit, Some(Exit::Signal { signal: 15 }));
    house.supervisor.wait_ready(Duration::from_millis(50)).await.unwrap();
    house.supervisor.start("unit").await.unwrap();
    let first = house.status("unit").await.pid;
    house.supervisor.restart("unit").await.unwrap();
    let second = house.status("unit").await;
    assert!(second.state == State::Active && second.pid != first);
    house.supervisor.shutdown().await;
    assert!(matches!(house.supervisor.start("unit").await, Err(ControlError::ShuttingDown)));
}

#[tokio::test]
async fn a_unit_that_ignores_its_stop_signal_is_killed_in_time() {
    let mut stubborn = shell("stubborn", "trap '' TERM; echo armed; while :; do sleep 0.05; done");
    stubborn.stop_timeout = Some(Duration::from_millis(300));
    let house = House::of(vec![stubborn]).await;
    house.said("stubborn", "armed").await;
    let pid = house.status("stubborn").await.pid.unwrap();
    let start = Instant::now();
    house.supervisor.stop("stubborn").await.unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(2), "{took:?}");
    assert!(!runs(pid));
    assert_eq!(house.status("stubborn").await.last_exit, Some(Exit::Signal { signal: 9 }));
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn the_stop_signal_is_the_units_own_and_its_last_words_are_kept() {
    let mut spec = shell("db", "trap 'echo fast shutdown; exit 0' INT; echo armed; while :; do sleep 0.05; done");
    spec.stop_signal = StopSignal::Interrupt;
    let house = House::of(vec![spec]).await;
    house.said("db", "armed").await;
    house.supervisor.stop("db").await.unwrap();
    assert!(house.log("db").contains("fast shutdown"));
    assert_eq!(house.status("db").await.last_exit, Some(Exit::Code { code: 0 }));
    house.supervisor.shutdown().await;
    let file = std::fs::read_to_string(house.directory.path().join("logs/db.log")).unwrap();
    assert!(file.contains("out armed") && file.contains("out fast shutdown"), "{file}");
}

/// As a shell's background job, which starts with SIGINT ignored.
#[test]
fn a_supervisor_that_ignores_a_signal_can_stop_its_units_with_it() {
    let test = "the_stop_signal_is_the_units_own_and_its_last_words_are_kept";
    let program = std::env::current_exe().unwrap();
    let line = format!("trap '' INT; exec '{}' --exact {test}", program.display());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test]
async fn a_group_is_stopped_with_its_grandchildren() {
    let house = House::of(vec![shell("unit", "(sleep 1000 & echo grandchild $!; wait) & wait")]).await;
    let grandchild: u32 = house.said("unit", "grandchild ").await.parse().unwrap();
    house.supervisor.stop("unit").await.unwrap();
    assert!(!runs(grandchild));
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn units_start_in_order_and_stop_in_reverse() {
    let chain = |unit: &str, after: &[&str]| {
        let mut spec = shell(unit, "trap 'exit 0' TERM; touch \"$READY\"; while :; do sleep 0.02; done");
        let ready = tempfile::tempdir().unwrap().keep().join("ready");
        spec.env.insert("READY".into(), ready.clone().into());
        spec.probe = Probe::check(move || {
            let there = ready.exists();
            async move { if there { Ok(()) } else { Err("no file".into()) } }
        });
        spec.after = after.iter().map(|unit| name(unit)).collect();
        spec
    };
    let specs = vec![chain("ralph", &["door"]), chain("door", &["db", "model"]), chain("model", &[]), chain("db", &[])];
    let directories: Vec<_> = specs.iter().flat_map(|spec| spec.env.values().cloned()).collect();
    let house = House::of(specs).await;
    let mut changes = house.supervisor.changes();
    house.supervisor.wait_ready(PATIENCE).await.unwrap();
    house.supervisor.shutdown().await;
    let mut order = Vec::new();
    while let Ok(Some(change)) = tokio::time::timeout(Duration::from_millis(200), changes.next()).await {
        let lares_units::FeedItem::Item(change) = change else { panic!("missed changes") };
        order.push((change.unit.to_string(), change.to));
    }
    let at = |unit: &str, state| {
        order.iter().position(|(name, to)| name == unit && *to == state).unwrap_or_else(|| panic!("{unit}: {order:?}"))
    };
    for (first, then) in [("db", "door"), ("model", "door"), ("door", "ralph")] {
        assert!(at(first, State::Active) < at(then, State::Active), "{order:?}");
        assert!(at(then, State::Inactive) < at(first, State::Deactivating), "{order:?}");
    }
    for ready in directories {
        std::fs::remove_dir_all(std::path::Path::new(&ready).parent().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_chain_of_stubborn_units_is_gone_within_ten_seconds() {
    let stubborn = |unit: &str, after: &[&str]| {
        let mut spec = shell(unit, "trap '' TERM; echo armed; while :; do sleep 0.05; done");
        spec.after = after.iter().map(|unit| name(unit)).collect();
        spec
    };
    let house = House::of(vec![stubborn("a", &[]), stubborn("b", &["a"]), stubborn("c", &["b"])]).await;
    house.said("c", "armed").await;
    let start = Instant::now();
    house.supervisor.shutdown().await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(house.supervisor.list().await.iter().all(|unit| unit.state == State::Inactive));
}

#[tokio::test]
async fn an_unknown_unit_is_refused_with_the_nearest_name() {
    let house = House::of(vec![shell("coordinator", "exec sleep 1000"), shell("ralph", "exec sleep 1000")]).await;
    let error = house.supervisor.stop("cordinator").await.unwrap_err();
    assert_eq!(error.to_string(), "no unit is called \"cordinator\"; did you mean coordinator?");
    assert_eq!(house.supervisor.status("xyz").await.unwrap_err().to_string(), "no unit is called \"xyz\"");
    house.supervisor.shutdown().await;
}

/// Runs the example, kills it with SIGKILL once the unit's process is known, and waits for that process to vanish.
async fn dies_with_its_supervisor(unit: &str) {
    let directory = tempfile::tempdir().unwrap();
    let pidfile = directory.path().join("pid");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let file = pidfile.display();
    let unit = format!("{unit}=echo $$ > {file}.new && mv {file}.new {file}; exec sleep 1000");
    let mut supervisor = Command::new(example())
        .args([directory.path().join("logs").to_str().unwrap(), &unit])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !pidfile.exists() {
        assert!(start.elapsed() < PATIENCE, "the unit does not start");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pid: u32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    assert!(runs(pid));
    kill(supervisor.id());
    supervisor.wait().unwrap();
    gone(pid).await;
}

#[tokio::test]
async fn a_supervisor_killed_with_sigkill_leaves_no_process() {
    dies_with_its_supervisor("unit").await;
}

#[tokio::test]
async fn a_supervisor_killed_with_sigkill_leaves_no_process_of_another_user() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!(
            "SKIP a_supervisor_killed_with_sigkill_leaves_no_process_of_another_user: only root can change the user"
        );
        return;
    }
    dies_with_its_supervisor("unit@65534:65534").await;
}

#[test]
fn units_end_with_the_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let house = runtime.block_on(House::of(vec![shell("unit", "exec sleep 1000")]));
    let pid = runtime.block_on(house.until_active("unit")).pid.unwrap();
    drop(runtime);
    drop(house);
    let start = Instant::now();
    while runs(pid) {
        assert!(start.elapsed() < PATIENCE, "process {pid} outlives its supervisor");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_unit_runs_as_the_user_it_names() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIP a_unit_runs_as_the_user_it_names: only root can change the user");
        return;
    }
    let mut spec = shell("unit", "echo ids $(id -u) $(id -g) $(id -G); exec sleep 1000");
    spec.user = Some((4_000_000, 4_000_001).into());
    let house = House::of(vec![spec]).await;
    assert_eq!(house.said("unit", "ids ").await, "4000000 4000001 4000001");
    house.supervisor.stop("unit").await.unwrap();
    house.supervisor.shutdown().await;
}
