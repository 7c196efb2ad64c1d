//! What both managers promise, and what only systemd does: driven from outside a box with systemd as PID 1.
//!
//! The tests of systemd need `LARES_TEST_ROOTS` and root; `LARES_TEST_SUITE` chooses the Debian release (trixie).
#![allow(clippy::unwrap_used)]

mod bed;
mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bed::Bed;
use common::{House, PATIENCE, shell};
use futures_util::future::join_all;
use lares_units::port::{
    ActiveState, Event, EventKind, JobOutcome, LoadState, Manager, ManagerError, Origin, Question, RunResult,
    StateChange, UnitId,
};
use lares_units::{Children, Exit, Feed, FeedItem, Systemd};
use tokio::time::timeout;

fn id(name: &str) -> UnitId {
    UnitId::new(name).unwrap()
}

async fn next(feed: &mut Feed<Event>) -> Event {
    match timeout(PATIENCE, feed.next()).await.unwrap() {
        Some(FeedItem::Item(event)) => event,
        other => panic!("{other:?}"),
    }
}

/// Waits for a state change of the unit that is as wanted.
async fn change(feed: &mut Feed<Event>, unit: &str, wanted: impl Fn(&StateChange) -> bool) -> (Event, StateChange) {
    loop {
        let event = next(feed).await;
        if let EventKind::Changed(change) = &event.kind
            && change.unit.as_str() == unit
            && wanted(change)
        {
            let change = change.as_ref().clone();
            return (event, change);
        }
    }
}

async fn until(feed: &mut Feed<Event>, wanted: impl Fn(&EventKind) -> bool) -> Event {
    loop {
        let event = next(feed).await;
        if wanted(&event.kind) {
            return event;
        }
    }
}

fn failed(change: &StateChange) -> bool {
    change.result.as_ref().is_some_and(RunResult::is_failure)
}

/// Time since boot, as systemd stamps its changes.
fn monotonic(at: Instant) -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    Duration::from(now) - at.elapsed()
}

/// What every manager promises, on a unit that runs until it is stopped.
async fn starts_stops_and_restarts(manager: &dyn Manager, steady: &str, active_after_start: bool) {
    let unit = id(steady);
    let mut events = manager.events();
    let watched = manager.watch(std::slice::from_ref(&unit)).await.unwrap();
    assert_eq!((watched.len(), &watched[0].unit, &watched[0].load), (1, &unit, &LoadState::Loaded));
    assert_eq!(watched[0].standing.active == ActiveState::Active, active_after_start);

    assert_eq!(manager.start(&unit, PATIENCE).await.unwrap(), JobOutcome::Done);
    let before = manager.facts(&unit).await.unwrap();
    assert_eq!(before.standing.active, ActiveState::Active);
    assert!(before.main_pid.is_some() && before.main_exit.is_none(), "{before:?}");

    assert_eq!(manager.restart(&unit, PATIENCE).await.unwrap(), JobOutcome::Done);
    let after = manager.facts(&unit).await.unwrap();
    assert_ne!(after.main_pid, before.main_pid);
    assert!(after.invocation.is_none() || after.invocation != before.invocation);

    assert_eq!(manager.stop(&unit, PATIENCE).await.unwrap(), JobOutcome::Done);
    assert_eq!(manager.facts(&unit).await.unwrap().standing.active, ActiveState::Inactive);
    let (_, down) = change(&mut events, steady, |change| change.to.active == ActiveState::Inactive).await;
    assert_eq!(down.result, Some(RunResult::Success), "a stop is no failure: {down:?}");
    until(&mut events, |kind| matches!(kind, EventKind::JobRemoved { outcome: JobOutcome::Done, .. })).await;

    assert!(matches!(manager.start(&id("ghost.service"), PATIENCE).await, Err(ManagerError::Unknown(_))));
    assert!(matches!(manager.facts(&id("ghost.service")).await, Err(ManagerError::Unknown(_))));
    let ghost = manager.watch(&[id("ghost.service")]).await.unwrap();
    assert_eq!(ghost[0].load, LoadState::NotFound);

    let listed = manager.list(&[&format!("{}*", &steady[..3])]).await.unwrap();
    assert!(listed.iter().any(|listed| listed.unit == unit) || !active_after_start, "{listed:?}");
    assert!(manager.list(&["no-such-*"]).await.unwrap().is_empty());
}

/// A unit that says `last words` and exits with 3, once started.
async fn a_crash_is_seen_with_its_reason_and_last_words(manager: &dyn Manager, crash: &str) -> (Event, StateChange) {
    let unit = id(crash);
    let (mut events, mut entries) = (manager.events(), manager.entries().await.unwrap());
    manager.watch(std::slice::from_ref(&unit)).await.unwrap();
    // How the start ends is another matter: the program may be gone before its manager says that it runs.
    let started = manager.start(&unit, PATIENCE);
    let (seen, _) = tokio::join!(change(&mut events, crash, failed), started);
    let (event, change) = seen;
    assert_eq!(change.result, Some(RunResult::ExitCode));
    assert_eq!(change.main_exit, Some(Exit::Code { code: 3 }));
    let question = Question::about_the_end(unit.clone(), change.invocation, None);
    let lines = manager.recent(&question).await.unwrap();
    let own: Vec<&str> =
        lines.iter().filter(|line| line.origin == Origin::Unit).map(|line| line.message.as_str()).collect();
    assert!(own.ends_with(&["hello", "last words"]) || own.contains(&"last words"), "{own:?}");
    assert!(lines.iter().any(|line| line.origin == Origin::Manager), "{lines:?}");
    loop {
        let entry = timeout(PATIENCE, entries.next()).await.unwrap();
        if matches!(&entry, Some(FeedItem::Item(entry)) if entry.message == "last words" && entry.unit == Some(unit.clone()))
        {
            break;
        }
        assert!(entry.is_some());
    }
    (event, change)
}

mod children {
    use super::*;

    async fn house(specs: Vec<lares_units::UnitSpec>) -> (House, Children) {
        let house = House::of(specs).await;
        let children = Children::new(house.supervisor.clone());
        (house, children)
    }

    #[tokio::test]
    async fn start_stop_and_restart() {
        let (house, children) =
            house(vec![shell("steady", "exec sleep 1000"), shell("other", "exec sleep 1000")]).await;
        house.until_active("steady").await;
        starts_stops_and_restarts(&children, "steady", true).await;
        house.supervisor.shutdown().await;
        let refused = children.start(&id("steady"), PATIENCE).await;
        assert!(matches!(refused, Err(ManagerError::Unavailable(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn a_crash_is_seen() {
        let (house, children) = house(vec![shell("crash", "echo hello; sleep 0.2; echo last words; exit 3")]).await;
        let (_, change) = a_crash_is_seen_with_its_reason_and_last_words(&children, "crash").await;
        assert!(change.to.sub == "auto-restart" && change.cause.unwrap().contains("exited with code 3"));
        house.supervisor.shutdown().await;
    }

    #[tokio::test]
    async fn relations_are_those_of_the_specs() {
        let mut later = shell("later", "exec sleep 1000");
        later.after = vec![common::name("first")];
        let (house, children) = house(vec![shell("first", "exec sleep 1000"), later]).await;
        house.until_active("later").await;
        assert_eq!(children.facts(&id("later")).await.unwrap().relations.after, [id("first")]);
        assert_eq!(children.facts(&id("first")).await.unwrap().relations.before, [id("later")]);
        assert_eq!(children.list(&["f*t"]).await.unwrap()[0].unit, id("first"));
        house.supervisor.shutdown().await;
    }

    #[tokio::test]
    async fn every_failure_of_a_storm_is_told() {
        let units = lares_config::Units {
            restart_delay: Duration::from_millis(5),
            restart_delay_max: Duration::from_millis(10),
            ..lares_config::Units::default()
        };
        let names: Vec<String> = (0..10).map(|number| format!("storm{number}")).collect();
        let house = House::with(units, names.iter().map(|name| shell(name, "exit 5")).collect()).await;
        let children = Children::new(house.supervisor.clone());
        let mut events = children.events();
        let ids: Vec<UnitId> = names.iter().map(|name| id(name)).collect();
        children.watch(&ids).await.unwrap();
        let before: u64 = house.supervisor.list().await.iter().map(|status| status.restarts).sum();
        let start = Instant::now();
        let mut seen = HashMap::new();
        while seen.values().sum::<u32>() < 200 {
            let (_, failure) = match next(&mut events).await.kind {
                EventKind::Changed(change) if failed(&change) && change.main_pid.is_none() => ((), change),
                _ => continue,
            };
            assert_eq!(failure.main_exit, Some(Exit::Code { code: 5 }));
            *seen.entry(failure.unit).or_insert(0_u32) += 1;
        }
        let restarts = house.supervisor.list().await.iter().map(|status| status.restarts).sum::<u64>() - before;
        eprintln!("200 failures of 10 units told of in {:?}; {restarts} restarts meanwhile", start.elapsed());
        assert_eq!(seen.len(), 10);
        house.supervisor.shutdown().await;
    }
}

mod systemd {
    use super::*;

    macro_rules! bed {
        ($test:literal) => {
            match bed::take($test).await {
                Some((bed, turn)) => (bed, turn),
                None => return,
            }
        };
    }

    async fn watching(bed: &Bed, units: &[&str]) -> (Systemd, Feed<Event>) {
        let systemd = bed.systemd().await;
        let events = systemd.events();
        systemd.watch(&units.iter().map(|unit| id(unit)).collect::<Vec<_>>()).await.unwrap();
        (systemd, events)
    }

    #[tokio::test]
    async fn start_stop_and_restart() {
        let (bed, _turn) = bed!("start_stop_and_restart");
        starts_stops_and_restarts(&bed.systemd().await, "steady.service", false).await;
    }

    #[tokio::test]
    async fn a_crash_is_seen_within_milliseconds() {
        let (bed, _turn) = bed!("a_crash_is_seen_within_milliseconds");
        let systemd = bed.systemd().await;
        let mut times = Vec::new();
        for _ in 0..5 {
            let (event, change) = a_crash_is_seen_with_its_reason_and_last_words(&systemd, "crash.service").await;
            assert!(change.invocation.is_some() && change.main_pid.is_none() && !change.found_late, "{change:?}");
            times.push(monotonic(event.heard).saturating_sub(change.at.unwrap()));
        }
        times.sort();
        eprintln!("a crash is heard of {:?} after systemd's own time of it (worst of 5: {:?})", times[2], times[4]);
        assert!(times[2] < Duration::from_millis(500), "{times:?}");
    }

    #[tokio::test]
    async fn facts_are_complete() {
        let (bed, _turn) = bed!("facts_are_complete");
        let systemd = bed.systemd().await;
        systemd.start(&id("fat.service"), PATIENCE).await.unwrap();
        let facts = systemd.facts(&id("fat.service")).await.unwrap();
        assert_eq!((facts.memory.max, facts.kind.as_deref()), (Some(64 << 20), Some("simple")));
        assert!(facts.times.main_start.is_some() && facts.times.began.is_some() && facts.times.main_exit.is_none());
        assert_eq!(facts.cgroup.as_deref(), Some("/system.slice/fat.service"));
        assert_eq!(facts.fragment.unwrap().to_str(), Some("/etc/systemd/system/fat.service"));
        assert_eq!(facts.program.unwrap().to_str(), Some("/bin/sleep"));
        assert_eq!((facts.restart.policy.as_str(), facts.file_state.as_deref()), ("no", Some("static")));
        let needy = systemd.facts(&id("needy.service")).await.unwrap();
        assert!(needy.relations.needed().contains(&id("base.service")));
        assert!(needy.relations.after.contains(&id("base.service")));
        let base = systemd.facts(&id("base.service")).await.unwrap();
        assert!(base.relations.needed_by().is_empty() || base.relations.needed_by().contains(&id("needy.service")));
        let bad = systemd.facts(&id("bad.service")).await.unwrap();
        assert_eq!(bad.load, LoadState::BadSetting);
        let refused = systemd.start(&id("bad.service"), PATIENCE).await;
        assert!(matches!(refused, Err(ManagerError::Refused { .. })), "{refused:?}");
        let other = systemd.watch(&[id("other.service")]).await.unwrap();
        assert_eq!(other[0].unit, id("alias.service"));
        systemd.stop(&id("fat.service"), PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn a_failure_that_lasts_a_millisecond_is_not_missed() {
        let (bed, _turn) = bed!("a_failure_that_lasts_a_millisecond_is_not_missed");
        let (systemd, mut events) = watching(bed, &["flaky.service"]).await;
        bed.run("rm -f /run/flaky; systemctl start flaky.service");
        let (_, failure) = change(&mut events, "flaky.service", |change| change.to.active == ActiveState::Failed).await;
        assert_eq!((failure.result, failure.main_exit), (Some(RunResult::ExitCode), Some(Exit::Code { code: 7 })));
        let (_, back) = change(&mut events, "flaky.service", |change| change.to.active == ActiveState::Active).await;
        assert_ne!(back.invocation, failure.invocation);
        assert_eq!((back.restarts, back.result), (Some(1), Some(RunResult::Success)));
        systemd.stop(&id("flaky.service"), PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn a_start_limit_is_told_and_reset() {
        let (bed, _turn) = bed!("a_start_limit_is_told_and_reset");
        let (systemd, mut events) = watching(bed, &["limited.service"]).await;
        let unit = id("limited.service");
        // systemd 257 calls the first start done: the program runs before it fails.
        systemd.start(&unit, PATIENCE).await.unwrap();
        let limit = until(
            &mut events,
            |kind| matches!(kind, EventKind::JobRemoved { outcome: JobOutcome::Failed, unit, .. } if unit.as_str() == "limited.service"),
        );
        limit.await;
        let facts = systemd.facts(&unit).await.unwrap();
        assert_eq!(facts.standing.active, ActiveState::Failed);
        assert_eq!((facts.restart.limit_burst, facts.restart.restarts_failures()), (Some(3), true));
        let question = Question::about_the_end(unit.clone(), None, None);
        let lines = systemd.recent(&question).await.unwrap();
        assert!(lines.iter().any(|line| line.message.contains("Start request repeated too quickly")), "{lines:?}");
        bed.run("touch /run/limited");
        assert!(!matches!(systemd.start(&unit, PATIENCE).await, Ok(JobOutcome::Done)));
        systemd.reset_failed(&unit).await.unwrap();
        assert_eq!(systemd.start(&unit, PATIENCE).await.unwrap(), JobOutcome::Done);
        systemd.stop(&unit, PATIENCE).await.unwrap();
        bed.run("rm /run/limited");
    }

    #[tokio::test]
    async fn a_masked_unit_is_not_started() {
        let (bed, _turn) = bed!("a_masked_unit_is_not_started");
        let systemd = bed.systemd().await;
        let unit = id("forbidden.service");
        assert!(systemd.facts(&unit).await.unwrap().is_masked());
        assert!(matches!(systemd.start(&unit, PATIENCE).await, Err(ManagerError::Masked(_))));
    }

    #[tokio::test]
    async fn a_job_ends_in_the_way_systemd_says() {
        let (bed, _turn) = bed!("a_job_ends_in_the_way_systemd_says");
        let (systemd, mut events) = watching(bed, &["needy.service", "mute.service"]).await;
        assert_eq!(systemd.start(&id("needy.service"), PATIENCE).await.unwrap(), JobOutcome::Dependency);
        let kind = until(&mut events, |kind| matches!(kind, EventKind::JobRemoved { .. })).await.kind;
        assert!(
            matches!(kind, EventKind::JobRemoved { outcome: JobOutcome::Dependency, job: Some(_), .. }),
            "{kind:?}"
        );
        assert_eq!(systemd.facts(&id("needy.service")).await.unwrap().result, Some(RunResult::Success));
        assert_eq!(systemd.start(&id("base.service"), PATIENCE).await.unwrap(), JobOutcome::Failed);
        assert_eq!(systemd.start(&id("mute.service"), PATIENCE).await.unwrap(), JobOutcome::Timeout);
        let slow = id("slow.service");
        let late = systemd.start(&slow, Duration::from_millis(200)).await;
        assert!(matches!(late, Err(ManagerError::Patience { .. })), "{late:?}");
        assert!(systemd.facts(&slow).await.unwrap().job.is_some());
        // The operator's job stays.
        let conflict = systemd.stop(&slow, PATIENCE).await;
        assert!(matches!(conflict, Err(ManagerError::Conflict { .. })), "{conflict:?}");
        bed.run("systemctl stop slow.service");
    }

    #[tokio::test]
    async fn a_kill_for_want_of_memory_is_told_as_such() {
        let (bed, _turn) = bed!("a_kill_for_want_of_memory_is_told_as_such");
        let (systemd, mut events) = watching(bed, &["fat.service"]).await;
        systemd.start(&id("fat.service"), PATIENCE).await.unwrap();
        bed.run(
            "cg=/sys/fs/cgroup/system.slice/fat.service; setfattr -n user.oomd_ooms -v 1 $cg;
             setfattr -n user.oomd_kill -v 1 $cg; echo 1 >$cg/cgroup.kill",
        );
        let (_, death) = change(&mut events, "fat.service", |change| change.to.active == ActiveState::Failed).await;
        assert_eq!((death.result, death.main_exit), (Some(RunResult::OomKill), Some(Exit::Signal { signal: 9 })));
        systemd.reset_failed(&id("fat.service")).await.unwrap();
    }

    #[tokio::test]
    async fn two_hundred_failures_lose_nothing() {
        let (bed, _turn) = bed!("two_hundred_failures_lose_nothing");
        let names: Vec<String> = (0..200).map(|number| format!("storm@{number}.service")).collect();
        let (systemd, mut events) = watching(bed, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let start = Instant::now();
        let reader = async {
            let (mut failures, mut missed) = (HashMap::new(), 0);
            while failures.len() < 200 && missed == 0 {
                let Ok(item) = timeout(PATIENCE, events.next()).await else {
                    panic!("only {} failures, for the last of {:?}", failures.len(), start.elapsed());
                };
                match item.unwrap() {
                    FeedItem::Item(Event { kind: EventKind::Changed(change), .. }) => {
                        if change.to.active == ActiveState::Failed {
                            assert_eq!(change.main_exit, Some(Exit::Code { code: 5 }), "{change:?}");
                            assert!(!change.found_late);
                            failures.insert(change.unit, change.invocation.unwrap());
                        }
                    }
                    FeedItem::Item(_) => {}
                    FeedItem::Missed(count) => missed += count,
                }
            }
            (failures, missed)
        };
        let ids: Vec<UnitId> = names.iter().map(|name| id(name)).collect();
        let starts = join_all(ids.iter().map(|unit| systemd.start(unit, PATIENCE)));
        let ((failures, missed), outcomes) = tokio::join!(reader, starts);
        eprintln!("200 failures in {:?}: {} seen, {missed} events missed", start.elapsed(), failures.len());
        assert!(outcomes.iter().all(Result::is_ok));
        assert_eq!((failures.len(), missed), (200, 0));
        assert_eq!(failures.values().collect::<HashSet<_>>().len(), 200);
        bed.run("systemctl reset-failed 'storm@*'");
        systemd.unwatch(&ids).await;
    }

    #[tokio::test]
    async fn the_last_line_of_a_program_that_ends_at_once_is_there() {
        let (bed, _turn) = bed!("the_last_line_of_a_program_that_ends_at_once_is_there");
        let (systemd, mut events) = watching(bed, &["instant.service"]).await;
        let unit = id("instant.service");
        let (mut without_run, mut worst) = (0, Duration::ZERO);
        for _ in 0..20 {
            let since = jiff::Timestamp::now();
            systemd.start(&unit, PATIENCE).await.unwrap();
            let (event, death) =
                change(&mut events, "instant.service", |change| change.to.active == ActiveState::Failed).await;
            let question = Question::about_the_end(unit.clone(), death.invocation, Some(since));
            let lines = systemd.recent(&question).await.unwrap();
            worst = worst.max(event.heard.elapsed());
            let last = lines.iter().find(|line| line.message == "instant last words");
            let last = last.unwrap_or_else(|| panic!("{lines:?}"));
            without_run += u32::from(last.invocation.is_none());
            assert!(lines.iter().filter(|line| line.message == "instant last words").count() == 1, "{lines:?}");
        }
        eprintln!("20 of 20 last lines; {without_run} named no invocation; slowest diagnosis {worst:?}");
        systemd.reset_failed(&unit).await.unwrap();
    }

    #[tokio::test]
    async fn a_long_line_is_whole() {
        let (bed, _turn) = bed!("a_long_line_is_whole");
        let systemd = bed.systemd().await;
        let unit = id("long.service");
        assert_eq!(systemd.start(&unit, PATIENCE).await.unwrap(), JobOutcome::Done);
        let mut question = Question::new(unit);
        question.settle = Duration::from_secs(1);
        let lines = systemd.recent(&question).await.unwrap();
        let long = lines.iter().find(|line| line.message.starts_with("1 2 3")).unwrap();
        assert!(long.message.ends_with("5999 6000") && long.message.len() > 28_000 && !long.is_cut());
        assert!(long.field("_SYSTEMD_UNIT") == Some("long.service") && long.pid.is_some());
        let end = lines.iter().position(|line| line.message == "end").unwrap();
        assert!(lines.iter().position(|line| line.message.starts_with("1 2 3")).unwrap() < end);
        // The same as systemd's own reader finds, in its order.
        let theirs = bed.run("journalctl --unit long.service --output cat --no-pager");
        let ours: Vec<&str> = lines.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(ours, theirs.lines().collect::<Vec<_>>());
        question.count = 1;
        assert_eq!(systemd.recent(&question).await.unwrap().last(), lines.last());
    }

    #[tokio::test]
    async fn journal_files_that_are_rotated_are_followed() {
        let (bed, _turn) = bed!("journal_files_that_are_rotated_are_followed");
        let (systemd, _events) = watching(bed, &["long.service", "steady.service"]).await;
        let mut entries = systemd.entries().await.unwrap();
        let mut wait_for = async |text: &str| loop {
            match timeout(PATIENCE, entries.next()).await.unwrap().unwrap() {
                FeedItem::Item(entry) if entry.message.contains(text) => return Arc::clone(&entry),
                FeedItem::Item(_) => {}
                FeedItem::Missed(count) => panic!("{count} missed"),
            }
        };
        systemd.start(&id("steady.service"), PATIENCE).await.unwrap();
        let started = wait_for("Started steady.service").await;
        assert_eq!((started.origin, &started.unit), (Origin::Manager, &Some(id("steady.service"))));
        bed.run("journalctl --rotate");
        systemd.stop(&id("steady.service"), PATIENCE).await.unwrap();
        wait_for("Stopped steady.service").await;
        let lines = systemd.recent(&Question::new(id("steady.service"))).await.unwrap();
        let place = |text: &str| lines.iter().rposition(|line| line.message.contains(text)).unwrap();
        assert!(place("Started steady.service") < place("Stopped steady.service"));
    }

    #[tokio::test]
    async fn a_bus_that_dies_is_mended_and_what_happened_meanwhile_is_told() {
        let (bed, _turn) = bed!("a_bus_that_dies_is_mended_and_what_happened_meanwhile_is_told");
        let (systemd, mut events) = watching(bed, &["steady.service", "fat.service"]).await;
        systemd.start(&id("steady.service"), PATIENCE).await.unwrap();
        systemd.start(&id("fat.service"), PATIENCE).await.unwrap();
        let died = Instant::now();
        // The unit dies, and the other is restarted, while nobody can hear of it.
        bed.run(
            "pid=$(systemctl show -P MainPID steady.service); kill -STOP $(pgrep -x dbus-daemon);
             kill -KILL $pid; systemctl restart fat.service; sleep 0.1; kill -KILL $(pgrep -x dbus-daemon)",
        );
        let (mut late, mut disconnected) = (Vec::new(), None);
        let gap = loop {
            match next(&mut events).await.kind {
                EventKind::Changed(change) if change.found_late => late.push(*change),
                EventKind::Disconnected { reason } => disconnected = Some(reason),
                EventKind::Resynchronised { gap } => break gap,
                _ => {}
            }
        };
        eprintln!("bus killed ({:?}): heard again after {:?} (gap {gap:?})", disconnected.unwrap(), died.elapsed());
        let steady = late.iter().find(|change| change.unit == id("steady.service")).unwrap();
        assert_eq!((&steady.to.active, &steady.result), (&ActiveState::Failed, &Some(RunResult::Signal)));
        let fat = late.iter().find(|change| change.unit == id("fat.service")).unwrap();
        assert_eq!((&fat.to.active, fat.from.as_ref()), (&ActiveState::Active, Some(&fat.to)));
        // And it goes on as before.
        systemd.reset_failed(&id("steady.service")).await.unwrap();
        assert_eq!(systemd.start(&id("steady.service"), PATIENCE).await.unwrap(), JobOutcome::Done);
        change(&mut events, "steady.service", |change| change.to.active == ActiveState::Active).await;
        systemd.stop(&id("steady.service"), PATIENCE).await.unwrap();
        systemd.stop(&id("fat.service"), PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn a_job_whose_end_cannot_be_heard_is_interrupted() {
        let (bed, _turn) = bed!("a_job_whose_end_cannot_be_heard_is_interrupted");
        let (systemd, mut events) = watching(bed, &["slow.service"]).await;
        let slow = id("slow.service");
        let start = systemd.start(&slow, PATIENCE);
        let kill = async {
            change(&mut events, "slow.service", |change| change.to.active == ActiveState::Activating).await;
            bed.run("kill -KILL $(pgrep -x dbus-daemon)");
        };
        let (outcome, ()) = tokio::join!(start, kill);
        assert!(matches!(outcome, Err(ManagerError::Interrupted { .. })), "{outcome:?}");
        until(&mut events, |kind| matches!(kind, EventKind::Resynchronised { .. })).await;
        bed.run("systemctl stop slow.service");
    }

    #[tokio::test]
    async fn reexec_and_reload_lose_nothing() {
        let (bed, _turn) = bed!("reexec_and_reload_lose_nothing");
        let (systemd, mut events) = watching(bed, &["steady.service", "crash.service"]).await;
        systemd.start(&id("steady.service"), PATIENCE).await.unwrap();
        let before = systemd.facts(&id("steady.service")).await.unwrap();
        let start = Instant::now();
        bed.run("systemctl daemon-reexec");
        until(&mut events, |kind| matches!(kind, EventKind::Resynchronised { .. })).await;
        eprintln!("daemon-reexec: heard again after {:?}", start.elapsed());
        let after = systemd.facts(&id("steady.service")).await.unwrap();
        assert_eq!((after.invocation, after.standing), (before.invocation, before.standing));
        bed.run("systemctl daemon-reload");
        until(&mut events, |kind| matches!(kind, EventKind::ReloadBegan)).await;
        loop {
            match next(&mut events).await.kind {
                EventKind::ReloadEnded => break,
                EventKind::Changed(change) => panic!("nothing changed: {change:?}"),
                EventKind::Gone(unit) | EventKind::Appeared(unit) => panic!("{unit} was there all the time"),
                _ => {}
            }
        }
        systemd.stop(&id("steady.service"), PATIENCE).await.unwrap();
        change(&mut events, "steady.service", |change| change.to.active == ActiveState::Inactive).await;
    }

    #[tokio::test]
    async fn a_forged_signal_is_not_believed() {
        let (bed, _turn) = bed!("a_forged_signal_is_not_believed");
        let (systemd, mut events) = watching(bed, &["steady.service"]).await;
        // To everybody on the bus by name: what is addressed passes without a match rule.
        let names = bed.run("busctl list --no-legend | grep -o '^:1[.][0-9]*'");
        let script: String = names
            .lines()
            .map(|name| {
                format!(
                    "setpriv --reuid=65534 --regid=65534 --clear-groups busctl emit --destination={name} \
                     /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager JobRemoved uoss 7 \
                     /org/freedesktop/systemd1/job/7 steady.service failed\n"
                )
            })
            .collect();
        bed.run(&script);
        assert_eq!(systemd.start(&id("steady.service"), PATIENCE).await.unwrap(), JobOutcome::Done);
        let first = until(&mut events, |kind| matches!(kind, EventKind::JobRemoved { .. })).await;
        assert!(matches!(first.kind, EventKind::JobRemoved { outcome: JobOutcome::Done, .. }), "{first:?}");
        systemd.stop(&id("steady.service"), PATIENCE).await.unwrap();
    }

    #[tokio::test]
    async fn watching_five_hundred_units_costs_next_to_nothing() {
        let (bed, _turn) = bed!("watching_five_hundred_units_costs_next_to_nothing");
        bed.run("systemctl start $(seq -f 'idle@%g.service' 1 500)");
        let settings = bed.settings();
        let output = tokio::process::Command::new(common::example_called("watch"))
            .args(["--address", &settings.address.unwrap(), "--journal", settings.journals[0].to_str().unwrap()])
            .args(["--seconds", "10", "idle@*.service"])
            .output();
        let output = timeout(Duration::from_secs(60), output).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        eprintln!("{said}");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("watching 500 units") && said.contains("% of a core"));
        bed.run("systemctl stop 'idle@*.service'");
    }

    #[tokio::test]
    async fn without_systemd_it_is_said_at_once() {
        let settings = lares_units::SystemdSettings {
            address: Some("unix:path=/nonexistent/bus".into()),
            ..lares_units::SystemdSettings::default()
        };
        let error = Systemd::connect(settings).await.unwrap_err();
        assert!(matches!(error, ManagerError::Unavailable(_)), "{error}");
    }
}
