#![allow(clippy::unwrap_used)]
use std::fs;

use serde_json::{Value, json};

use super::fake::{Fake, kernel, said, word};
use super::*;
use crate::facts::FileState;
use crate::scholar::Unknown;

const APP: &str = "app.service";
const DB: &str = "db.service";
const RUN: &str = "00ff102030405060708090a0b0c0d0e0";
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";
const STOPPED: &str = "9d1aaa27d60140bd96365438aad20286";
const SUCCEEDED: &str = "7ad2d189f7e94e70a38c781354912448";
const FAILED: &str = "d9b373ed55a64feb8242e02dbe79a49c";

fn id(name: &str) -> UnitId {
    UnitId::new(name).unwrap()
}

/// Now, in whole seconds.
fn now() -> i64 {
    Timestamp::now().as_second()
}

/// The present on the service manager's clock, so many seconds ago.
fn stamp(ago: u64) -> Value {
    let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    serde_json::to_value(now.saturating_sub(Duration::from_secs(ago))).unwrap()
}

fn settings(units: &[(&str, HealedUnit)]) -> Settings {
    Settings {
        units: units.iter().map(|(name, unit)| ((*name).to_owned(), unit.clone())).collect(),
        profile: "/nowhere/system".into(),
        models: BTreeMap::new(),
        models_dir: None,
        helper: None,
    }
}

fn plain() -> HealedUnit {
    HealedUnit::default()
}

fn needing(units: &[&str]) -> HealedUnit {
    HealedUnit { dependencies: units.iter().map(|unit| (*unit).to_owned()).collect(), ..plain() }
}

fn context() -> Context {
    Context { recent: Duration::from_secs(10), ..Context::default() }
}

async fn look(manager: &Fake, settings: &Settings, context: &Context) -> Observed {
    Observer::new(manager, &Classifier::builtin(), settings).observe(&id(APP), context).await.unwrap()
}

async fn facts(manager: &Fake, settings: &Settings) -> Facts {
    let seen = look(manager, settings, &context()).await;
    assert_eq!(seen.unknown, Vec::<String>::new());
    seen.facts
}

/// Lines of a run that ended when somebody asked for that, or by itself.
fn ended(asked: bool) -> Vec<Arc<port::Entry>> {
    let mut lines = vec![word(now() - 20, RUN, "Started", &[("MESSAGE_ID", STARTED), ("JOB_TYPE", "start")])];
    if asked {
        lines.push(word(now() - 9, RUN, "Stopping", &[("MESSAGE_ID", STOPPING), ("JOB_TYPE", "stop")]));
    }
    lines.push(word(now() - 9, RUN, "Deactivated", &[("MESSAGE_ID", SUCCEEDED)]));
    if asked {
        lines.push(word(now() - 9, RUN, "Stopped", &[("MESSAGE_ID", STOPPED), ("JOB_TYPE", "stop")]));
    }
    lines
}

#[tokio::test]
async fn the_last_words_of_a_unit_that_failed_are_kept_without_secrets() {
    let of = async |active: &str| {
        let manager = Fake::default();
        let standing = json!({"active": active, "sub": active});
        manager.unit(APP, &json!({"standing": standing, "invocation": RUN, "result": "exit-code"}));
        let mut lines: Vec<Arc<port::Entry>> = (0..30).map(|n| said(now() - 9, RUN, &format!("step {n}"))).collect();
        lines.push(said(now() - 8, RUN, &format!("the queue is odd; password=hunter2 {}", "x".repeat(900))));
        lines.push(word(now() - 8, RUN, "Failed with result", &[("MESSAGE_ID", FAILED)]));
        manager.says(APP, lines);
        facts(&manager, &settings(&[])).await
    };
    let failed = of("failed").await;
    assert_eq!((failed.said.len(), failed.said[0].as_str()), (20, "step 11"));
    assert!(failed.said[19].starts_with("the queue is odd; password=<secret> xxx"), "{:?}", failed.said[19]);
    assert_eq!(failed.said[19].chars().count(), 500);
    let known = Unknown::of(&failed).unwrap();
    assert_eq!((Some(known.fingerprint), known.line), (failed.fingerprint, failed.said[19].clone()));
    assert_eq!(of("active").await.said, Vec::<String>::new());
}

#[tokio::test]
async fn who_stopped_it_is_known_from_systemds_own_words() {
    let of = async |changes: Value, lines: Vec<Arc<port::Entry>>| {
        let manager = Fake::default();
        manager.unit(APP, &changes);
        manager.says(APP, lines);
        let facts = facts(&manager, &settings(&[])).await;
        (facts.symptoms, facts.stopped_by_operator)
    };
    let inactive = || vec![Symptom::InactiveUnexpectedly];
    let known = || json!({"invocation": RUN});
    assert_eq!(of(known(), ended(true)).await, (inactive(), true));
    assert_eq!(of(known(), ended(false)).await, (inactive(), false));
    // Systemd forgot the run, the journal did not.
    assert_eq!(of(json!({}), ended(true)).await, (inactive(), true));
    assert_eq!(of(json!({}), ended(false)).await, (inactive(), false));
    // Nobody ever started it.
    assert_eq!(of(json!({}), vec![]).await, (inactive(), true));
    // It is about to be started.
    let restarted = json!({"invocation": RUN, "job": {"id": 7, "kind": null}});
    assert_eq!(of(restarted, ended(true)).await, (inactive(), false));
    // It did not end well when it was asked to.
    let badly = json!({
        "standing": {"active": "failed", "sub": "failed"}, "invocation": RUN, "result": "exit-code",
        "main_exit": {"kind": "code", "code": 143},
    });
    assert_eq!(of(badly.clone(), ended(true)).await, (vec![Symptom::ExitCode { status: 143 }], true));
    assert_eq!(of(badly, ended(false)).await, (vec![Symptom::ExitCode { status: 143 }], false));
    // It rests.
    let oneshot = json!({"invocation": RUN, "kind": "oneshot"});
    let called = json!({"relations": {"triggered_by": ["app.timer"]}});
    assert_eq!(of(oneshot.clone(), ended(false)).await, (vec![], false));
    assert_eq!(of(called.clone(), ended(false)).await, (vec![], false));
    assert_eq!(of(called, vec![]).await, (vec![], false));
    assert_eq!(of(json!({"result": "exec-condition"}), vec![]).await, (vec![], false));
    assert_eq!(of(oneshot, ended(true)).await, (inactive(), true));
    let dependency =
        word(now(), "", "Dependency failed for app", &[("JOB_RESULT", "dependency"), ("JOB_TYPE", "start")]);
    assert_eq!(of(json!({}), vec![dependency]).await, (vec![Symptom::DependencyFailed], false));
}

#[tokio::test]
async fn what_we_stopped_is_nobodys_wish() {
    let manager = Fake::default();
    manager.unit(APP, &json!({"invocation": RUN}));
    manager.says(APP, ended(true));
    let by_us = |run: &str| Context { stopped_by_us: BTreeMap::from([(APP.into(), run.into())]), ..context() };
    assert!(!look(&manager, &settings(&[]), &by_us(RUN)).await.facts.stopped_by_operator);
    assert!(look(&manager, &settings(&[]), &by_us(&RUN.replace('0', "1"))).await.facts.stopped_by_operator);
}

#[tokio::test]
async fn a_program_that_says_a_lot_on_its_way_down_hides_no_wish() {
    let manager = Fake::default();
    manager.unit(APP, &json!({"invocation": RUN, "times": {"active_exit": stamp(9), "inactive_enter": stamp(8)}}));
    let mut lines = ended(true);
    let chatter = (0..300).map(|n| said(now() - 9, RUN, &format!("closing connection {n}")));
    lines.splice(2..2, chatter);
    lines.pop();
    manager.says(APP, lines);
    assert!(facts(&manager, &settings(&[])).await.stopped_by_operator);
}

#[tokio::test]
async fn a_unit_that_went_down_with_another_was_not_stopped_by_anybody() {
    let of = async |other: Vec<Arc<port::Entry>>| {
        let manager = Fake::default();
        manager.unit(APP, &json!({"invocation": RUN, "relations": {"binds_to": [DB]}}));
        manager.says(APP, ended(true));
        manager.active(DB, RUN, &json!({}));
        manager.says(DB, other);
        facts(&manager, &settings(&[])).await.stopped_by_operator
    };
    let died = vec![word(now() - 10, RUN, "Failed", &[("MESSAGE_ID", FAILED)])];
    assert!(!of(died).await);
    assert!(of(ended(true)).await);
    assert!(of(vec![]).await);
}

#[tokio::test]
async fn where_the_journal_is_closed_an_inactive_unit_is_left_alone() {
    let manager = Fake::without_a_journal();
    manager.unit(APP, &json!({"invocation": RUN}));
    let seen = look(&manager, &settings(&[]), &context()).await;
    assert!(seen.facts.stopped_by_operator);
    assert!(seen.unknown[0].contains("what it said"), "{:?}", seen.unknown);
    manager.failed(APP, RUN, &json!({}));
    assert!(!look(&manager, &settings(&[]), &context()).await.facts.stopped_by_operator);
}

#[tokio::test]
async fn what_it_needs_is_known_all_the_way_down() {
    let manager = Fake::default();
    manager.failed(APP, RUN, &json!({"relations": {"requires": [DB, "sysinit.target"]}}));
    manager.failed(DB, RUN, &json!({}));
    manager.active("disk.service", RUN, &json!({}));
    manager.unit("cache.service", &json!({"invocation": RUN}));
    manager.says("cache.service", ended(true));
    manager.unit("setup.service", &json!({"kind": "oneshot"}));
    let units = [
        (APP, needing(&["cache.service", DB, "gone.service"])),
        (DB, needing(&["disk.service", "setup.service", APP])),
        ("cache.service", plain()),
    ];
    let mut context = context();
    context.probes.insert(DB.into(), Probe::Red { times: 4 });
    let seen = look(&manager, &settings(&units), &context).await;
    let found: Vec<(&str, Active, Probe, bool)> =
        seen.facts.dependencies.iter().map(|d| (d.unit.as_str(), d.active, d.probe, d.ours)).collect();
    assert_eq!(
        found,
        [
            ("cache.service", Active::Inactive, Probe::None, false),
            (DB, Active::Failed, Probe::Red { times: 4 }, true),
            ("disk.service", Active::Active, Probe::None, false),
        ]
    );
    assert_eq!(seen.facts.dependencies[1].needs, ["disk.service", "setup.service", APP]);
    assert_eq!(seen.unknown, ["how gone.service is, which it needs: there is no such unit"]);
    // What somebody stopped may be started where the configuration says so.
    let kept = HealedUnit { keep_running: true, ..plain() };
    let kept = settings(&[(APP, needing(&["cache.service"])), ("cache.service", kept)]);
    assert!(look(&manager, &kept, &context).await.facts.dependencies[0].ours);
    context.paused.insert(DB.into());
    let paused = look(&manager, &settings(&units), &context).await.facts;
    assert!(!paused.dependencies[1].ours && !paused.paused);
    context.paused.insert(APP.into());
    assert!(look(&manager, &settings(&units), &context).await.facts.paused);
}

#[tokio::test]
async fn the_end_of_the_machine_and_a_switch_under_way_are_seen() {
    let manager = Fake::default();
    manager.active(APP, RUN, &json!({}));
    manager.unit(SHUTDOWN, &json!({}));
    manager.unit(REBUILD, &json!({}));
    let calm = facts(&manager, &settings(&[])).await;
    assert!(!calm.shutting_down && !calm.rebuilding);
    manager.unit(SHUTDOWN, &json!({"job": {"id": 3, "kind": "start"}}));
    manager.active(REBUILD, RUN, &json!({}));
    let busy = facts(&manager, &settings(&[])).await;
    assert!(busy.shutting_down && busy.rebuilding);
    manager.unit(SHUTDOWN, &json!({"job": {"id": 3, "kind": "stop"}}));
    assert!(!facts(&manager, &settings(&[])).await.shutting_down);
}

#[tokio::test]
async fn only_lines_of_this_run_count_and_of_a_unit_that_is_up_only_recent_ones() {
    let refused = "connect to 127.0.0.1 port 5432 failed: Connection refused";
    let of = async |changes: Value, lines: Vec<Arc<port::Entry>>| {
        let manager = Fake::default();
        manager.unit(APP, &changes);
        manager.says(APP, lines);
        look(&manager, &settings(&[]), &context()).await.facts.matched.map(|matched| matched.pattern)
    };
    let active = || json!({"standing": {"active": "active"}, "invocation": RUN});
    let failed = || json!({"standing": {"active": "failed"}, "invocation": RUN, "result": "exit-code"});
    let other = RUN.replace('0', "1");
    let pattern = Some("connection_refused".to_owned());
    assert_eq!(of(active(), vec![said(now() - 3, RUN, refused)]).await, pattern);
    assert_eq!(of(active(), vec![said(now() - 3600, RUN, refused)]).await, None);
    assert_eq!(of(failed(), vec![said(now() - 3600, RUN, refused)]).await, pattern);
    assert_eq!(of(failed(), vec![said(now() - 3, &other, refused)]).await, None);
    // Systemd forgot which run it was.
    assert_eq!(of(json!({}), vec![said(now() - 3, RUN, refused)]).await, None);
}

#[tokio::test]
async fn the_kernels_word_on_another_unit_is_not_about_this_one() {
    let of = async |unit: &str, ago: i64| {
        let manager = Fake::default();
        let times = json!({
            "began": Timestamp::now() - SignedDuration::from_secs(60), "inactive_exit": stamp(60),
            "inactive_enter": stamp(30),
        });
        manager.failed(APP, RUN, &json!({"result": "oom-kill", "times": times}));
        let line =
            format!("oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/system.slice/{unit},task=python3,pid=7,uid=0");
        manager.says(APP, vec![kernel(now() - ago, &line)]);
        facts(&manager, &settings(&[])).await.matched.map(|matched| matched.pattern)
    };
    assert_eq!(of(APP, 31).await.as_deref(), Some("oom_kill"));
    assert_eq!(of(DB, 31).await, None);
    assert_eq!(of(APP, 5).await, None);
    assert_eq!(of(APP, 90).await, None);
}

/// One that failed with this line a moment from now: nothing has changed since.
fn failing(line: &str) -> Fake {
    let manager = Fake::default();
    manager.failed(APP, RUN, &json!({}));
    manager.says(APP, vec![said(now() + 5, RUN, line)]);
    manager
}

#[tokio::test]
async fn a_port_has_a_holder_and_another_one_is_free() {
    let (taken, other) = ["127.0.0.1:0"; 2].map(|at| std::net::TcpListener::bind(at).unwrap()).into();
    let [port, held] = [&taken, &other].map(|socket: &std::net::TcpListener| socket.local_addr().unwrap().port());
    let free = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    };
    let manager = failing(&format!("bind() to 127.0.0.1:{port} failed (98: Address already in use)"));
    let unit = HealedUnit { ports: vec![port, held, free], ..plain() };
    let found = facts(&manager, &settings(&[(APP, unit)])).await;
    let holder = found.port_holder.unwrap();
    assert_eq!(u32::try_from(holder.pid).unwrap(), std::process::id());
    assert_eq!((found.matched.unwrap().port, found.free_port), (Some(port), Some(free)));
    // Nothing is wrong with the port of what does not answer.
    let manager = failing(&format!("connect to 127.0.0.1 port {port} failed: Connection refused"));
    assert_eq!(facts(&manager, &settings(&[])).await.port_holder, None);
}

#[tokio::test]
async fn a_model_is_declared_where_a_unit_fetches_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coder.gguf");
    fs::write(directory.path().join("coder-q4.gguf"), "").unwrap();
    let line = |path: &Path| {
        format!("gguf_init_from_file: failed to open GGUF file '{}' (No such file or directory)", path.display())
    };
    let manager = failing(&line(&path));
    let mut settings = settings(&[]);
    settings.models.insert(path.clone(), "coder".into());
    let found = facts(&manager, &settings).await.file.unwrap();
    assert_eq!((found.state, found.declared), (FileState::Missing, None));
    assert_eq!(found.nearest, Some(directory.path().join("coder-q4.gguf").display().to_string()));
    manager.unit("lares-model-coder.service", &json!({"kind": "oneshot"}));
    assert_eq!(facts(&manager, &settings).await.file.unwrap().declared.as_deref(), Some("coder"));
    // A file of the catalog, which has its hash for a name.
    settings.models.clear();
    settings.models_dir = Some(directory.path().to_owned());
    let hashed = failing(&line(&directory.path().join("sha256-0123.gguf")));
    hashed.unit("lares-model-small.service", &json!({}));
    let served = id("lares-llama-small.service");
    let observer = Observer { manager: &hashed, classifier: &Classifier::builtin(), settings: &settings };
    let path = directory.path().join("sha256-0123.gguf");
    assert_eq!(observer.declared(&served, &path).await.as_deref(), Some("small"));
    assert_eq!(observer.declared(&served, Path::new("/elsewhere/sha256-0123.gguf")).await, None);
    assert_eq!(observer.declared(&id(APP), &path).await, None);
}

#[tokio::test]
async fn what_is_no_file_of_the_unit_is_not_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.mdb");
    fs::write(&path, "").unwrap();
    let denied = failing(&format!("PermissionError: [Errno 13] Permission denied: '{}'", path.display()));
    assert_eq!(facts(&denied, &settings(&[])).await.file.unwrap().state, FileState::Forbidden);
    let full = failing(&format!("write to {} failed: No space left on device", path.display()));
    let found = facts(&full, &settings(&[])).await;
    assert_eq!((found.matched.unwrap().pattern.as_str(), found.file), ("disk_full", None));
}

#[tokio::test]
async fn a_lock_is_that_of_the_database_and_of_those_who_use_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.db");
    fs::write(&file, "1000000000\n").unwrap();
    let manager = failing("sqlite3.OperationalError: database is locked");
    let uses = HealedUnit { database: Some(DB.into()), database_file: Some(file), ..plain() };
    let units = [(APP, uses.clone()), (DB, plain()), ("web.service", uses.clone()), ("off.service", uses.clone())];
    manager.active(DB, RUN, &json!({}));
    manager.active("web.service", RUN, &json!({}));
    manager.unit("off.service", &json!({}));
    let found = facts(&manager, &settings(&units)).await.lock.unwrap();
    let clients = vec!["web.service".to_owned()];
    assert_eq!(found, Lock { database: DB.into(), clients, holder: LockHolder::Dead, ours: true });
    // Nobody said that the database may be restarted.
    assert!(!facts(&manager, &settings(&units[..1])).await.lock.unwrap().ours);
    assert_eq!(facts(&manager, &settings(&[(APP, plain())])).await.lock, None);
}

#[tokio::test]
async fn a_switch_counts_the_units_that_it_broke() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (number, units) in
        [(7, [("app", "1"), ("db", "1"), ("web", "1")]), (8, [("app", "2"), ("db", "2"), ("web", "1")])]
    {
        let root = at(&format!("closure-{number}"));
        fs::create_dir_all(root.join("etc/systemd/system")).unwrap();
        for (unit, version) in units {
            let stored = at(&format!("{unit}-{version}"));
            fs::write(&stored, "").unwrap();
            std::os::unix::fs::symlink(&stored, root.join(format!("etc/systemd/system/{unit}.service"))).unwrap();
        }
        std::os::unix::fs::symlink(&root, at(&format!("system-{number}-link"))).unwrap();
    }
    std::os::unix::fs::symlink("system-8-link", at("system")).unwrap();
    let manager = Fake::default();
    let after = || json!({"times": {"inactive_enter": stamp(0)}});
    std::thread::sleep(Duration::from_millis(20));
    for unit in [APP, DB, "web.service"] {
        manager.failed(unit, RUN, &after());
    }
    let mut settings = settings(&[(APP, plain()), (DB, plain()), ("web.service", plain())]);
    settings.profile = at("system");
    let changes = vec![format!("{} → {}", at("app-1").display(), at("app-2").display())];
    let switch =
        Switch { generation: 8, previous: 7, began_with_it: true, closure_changed: true, failed_units: 2, changes };
    assert_eq!(facts(&manager, &settings).await.switch, Some(switch.clone()));
    // One of them was broken before.
    manager.failed(DB, RUN, &json!({"times": {"inactive_enter": stamp(3600)}}));
    assert_eq!(facts(&manager, &settings).await.switch, Some(Switch { failed_units: 1, ..switch.clone() }));
    manager.failed(APP, RUN, &json!({"times": {"inactive_enter": stamp(3600)}}));
    let before = Switch { began_with_it: false, failed_units: 0, changes: Vec::new(), ..switch };
    assert_eq!(facts(&manager, &settings).await.switch, Some(before));
}

#[test]
fn what_the_configuration_says_of_models_is_found_by_their_file() {
    let mut config = Config::default();
    config.llama.models_dir = Some("/m".into());
    let hashed = lares_config::Model {
        url: Some("https://x/y.gguf".into()),
        sha256: Some("AB".repeat(32)),
        ..Default::default()
    };
    config.models.insert("coder".into(), hashed);
    config.models.insert("own".into(), lares_config::Model { path: Some("/m/own.gguf".into()), ..Default::default() });
    let settings = Settings::of(&config, "/p".into());
    let path = PathBuf::from(format!("/m/sha256-{}.gguf", "ab".repeat(32)));
    assert_eq!(settings.models, BTreeMap::from([(path, "coder".to_owned())]));
}
