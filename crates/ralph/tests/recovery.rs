//! Crashes, take-overs and several workers: no task is lost, none is done twice.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use lares_ralph::api::{Outcome, TaskState};
use lares_store::tasks::{Approach, NewTask, State, TaskError};
use support::{Place, Scripted, eventually, git};
use uuid::Uuid;

/// Fails first, so that there is a checkpoint to come back to.
fn second_try_is_right() -> Scripted {
    Scripted::new(|run| {
        let right = run.iteration > 1 && run.diff.contains("+40");
        std::fs::write(run.worktree.join("answer.txt"), if right { "42\n" } else { "40\n" }).unwrap();
        Ok(())
    })
}

async fn assert_done_once(place: &Place, id: Uuid) {
    let task = place.store.tasks().get(id).await.unwrap();
    assert_eq!(task.state, State::Succeeded, "{task:#?}");
    let (branch, result) = (task.branch.unwrap(), task.result_commit.unwrap());
    assert_eq!(git(&place.repo, &["rev-list", &format!("main..{branch}")]), result);
    assert_eq!(git(&place.repo, &["show", &format!("{branch}:answer.txt")]), "42");
    let log = place.log(id).await;
    assert_eq!(log.iter().filter(|line| line.starts_with("state: succeeded")).count(), 1, "{log:#?}");
    let passed = place.store.tasks().iterations(id).await.unwrap();
    assert_eq!(passed.iter().filter(|i| i.outcome == lares_store::tasks::Outcome::Passed).count(), 1);
    assert_eq!(git(&place.repo, &["branch", "--list", "lares/*"]).lines().count(), 1);
}

/// Kills ralph as soon as the log has `lines` lines; whether it got that far before the task ended.
async fn crash_after(lines: usize) -> bool {
    let place = Place::new().await;
    let agent = second_try_is_right().taking(Duration::from_millis(20));
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    let mut ended = false;
    eventually("the line", async || {
        ended = place.store.tasks().get(task.id).await.unwrap().state.is_final();
        ended || place.log(task.id).await.len() >= lines
    })
    .await;
    ralph.kill().await;
    place.expire_leases().await;
    let ralph = place.start(&agent).await;
    ralph.ended(task.id).await;
    // The sweep at the start may come after the task when that had ended before the crash.
    eventually("the sweep", async || {
        std::fs::read_dir(place.config.worktrees_dir())
            .unwrap()
            .all(|entry| entry.unwrap().file_name().to_string_lossy().starts_with('.'))
    })
    .await;
    ralph.stop().await;
    assert_done_once(&place, task.id).await;
    place.assert_clean();
    !ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_any_step_is_resumed_and_completes_once() {
    // queued, taken, base, check, 2 × (begin, agent, check, end), result, succeeded
    let steps: Vec<usize> = (1..=14).collect();
    let mut crashed = 0;
    for few in steps.chunks(4) {
        crashed += join_all(few.iter().map(|lines| crash_after(*lines))).await.into_iter().filter(|c| *c).count();
    }
    assert!(crashed >= 8, "only {crashed} crashes came before the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_random_moments_lose_nothing() {
    let place = Place::new().await;
    let agent = second_try_is_right().taking(Duration::from_millis(10));
    let mut config = place.config.clone();
    config.ralph.workers = 2;
    let ralph = place.start_with(config.clone(), &agent).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(ralph.submit(&place.request()).await.id);
    }
    ralph.kill().await;
    for round in 0..8u64 {
        place.expire_leases().await;
        let ralph = place.start_with(config.clone(), &agent).await;
        tokio::time::sleep(Duration::from_millis(40 + 67 * round)).await;
        ralph.kill().await;
    }
    place.expire_leases().await;
    let ralph = place.start_with(config, &agent).await;
    for id in &ids {
        assert_eq!(ralph.ended(*id).await.task.state, TaskState::Succeeded);
        let log = place.log(*id).await;
        assert_eq!(log.iter().filter(|line| line.starts_with("state: succeeded")).count(), 1, "{log:#?}");
    }
    eventually("the sweep", async || {
        std::fs::read_dir(place.config.worktrees_dir())
            .unwrap()
            .all(|entry| entry.unwrap().file_name().to_string_lossy().starts_with('.'))
    })
    .await;
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_on_one_queue_never_run_the_same_task() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n").taking(Duration::from_millis(30));
    let mut other = place.config.clone();
    other.ralph.listen.set_port(0);
    other.state_dir = place.dir.path().join("other");
    let ralph = place.start(&agent).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let launcher =
        lares_agents::sandbox::Launcher { program: env!("CARGO_BIN_EXE_lares-ralph-sandbox").into(), args: Vec::new() };
    let store = place.db.store().await;
    let second = tokio::spawn(lares_ralph::serve_with(
        std::sync::Arc::new(other),
        store,
        launcher,
        agent.backends(),
        shutdown.clone(),
    ));
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(ralph.submit(&place.request()).await.id);
    }
    for id in &ids {
        let detail = ralph.ended(*id).await;
        assert_eq!(detail.task.state, TaskState::Succeeded);
        assert_eq!(detail.iterations.len(), 1);
        let task = place.store.tasks().get(*id).await.unwrap();
        assert_eq!(task.fence, 1, "taken twice");
    }
    let ran: Vec<Uuid> = agent.seen().iter().map(|run| run.task_id).collect();
    assert_eq!(ran.iter().collect::<BTreeSet<_>>().len(), ran.len(), "an agent ran twice on one task");
    shutdown.cancel();
    second.await.unwrap().unwrap();
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_postgresql_in_mid_task_loses_nothing() {
    let cluster = lares_store::testing::Cluster::start().await;
    let place = Place::over(cluster.database("restarted").await).await;
    let agent = second_try_is_right().taking(Duration::from_millis(700));
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    eventually("the agent runs", async || !agent.seen().is_empty()).await;
    cluster.stop().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.restart().await;
    // Reading fails until the pool has noticed, so the store is asked, not the route.
    eventually("the end", async || place.store.tasks().get(task.id).await.is_ok_and(|task| task.state.is_final()))
        .await;
    assert_done_once(&place, task.id).await;
    let task = place.store.tasks().get(task.id).await.unwrap();
    assert_eq!(task.fence, 1, "the worker that had it went on");
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_worker_that_was_fenced_out_stops_and_writes_nothing() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n").taking(Duration::from_secs(2));
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    eventually("the agent runs", async || !agent.seen().is_empty()).await;
    // Another worker takes it over, as it would after a silence.
    let client = place.db.client().await;
    client
        .execute("UPDATE tasks SET fence = fence + 1, lease_owner = 'other', lease_until = clock_timestamp() + interval '1 hour'", &[])
        .await
        .unwrap();
    let lines = place.log(task.id).await.len();
    client.execute("SELECT pg_notify('lares_tasks', $1)", &[&task.id.to_string()]).await.unwrap();
    eventually("the worker lets go", async || {
        std::fs::read_dir(place.config.worktrees_dir())
            .unwrap()
            .all(|entry| entry.unwrap().file_name().to_string_lossy().starts_with('.'))
    })
    .await;
    assert_eq!(place.log(task.id).await.len(), lines);
    let held = place.store.tasks().get(task.id).await.unwrap();
    assert_eq!((held.state, held.lease_owner.as_deref()), (State::Running, Some("other")));
    assert_eq!(git(&place.repo, &["branch", "--list", "lares/*"]), "");
    ralph.stop().await;
}

#[tokio::test]
async fn every_write_of_an_old_fence_is_refused() {
    let place = Place::new().await;
    let tasks = place.store.tasks();
    let new = NewTask {
        prompt: "p".to_owned(),
        repo: "/r".to_owned(),
        check_command: "c".to_owned(),
        backend: "builtin".to_owned(),
        model: None,
        max_iterations: 1,
        timeout: Duration::from_secs(60),
        require_approval: false,
        created_by: None,
        idempotency_key: None,
    };
    tasks.submit(&new, 10).await.unwrap();
    let old = tasks.take("a", Duration::from_secs(60)).await.unwrap().unwrap().lease();
    tasks.begin_iteration(old, 1, "b", Approach::First, 0.0).await.unwrap();
    assert_eq!(tasks.take("b", Duration::from_secs(60)).await.unwrap(), None, "a held task is not taken");
    place.expire_leases().await;
    let taken = tasks.take("b", Duration::from_secs(60)).await.unwrap().unwrap();
    assert_eq!(taken.fence, old.fence + 1);
    assert_eq!(tasks.iterations(taken.id).await.unwrap()[0].outcome, lares_store::tasks::Outcome::Interrupted);
    let fenced = |result: Result<(), TaskError>| assert!(matches!(result, Err(TaskError::Fenced(_))), "{result:?}");
    let end = lares_store::tasks::IterationEnd {
        outcome: lares_store::tasks::Outcome::Passed,
        summary: String::new(),
        changed_files: Vec::new(),
        checkpoint_commit: None,
        check_exit: Some(0),
        check_output: String::new(),
        check_duration: None,
        agent_duration: None,
        prompt_tokens: None,
        completion_tokens: None,
        tests_passed: None,
        tests_failed: None,
    };
    let no_time = Duration::ZERO;
    fenced(tasks.heartbeat(old, no_time, no_time).await.map(drop));
    fenced(tasks.set_base(old, "x", None, "w").await);
    fenced(tasks.set_base_check(old, None, "").await);
    fenced(tasks.begin_iteration(old, 2, "b", Approach::First, 0.0).await);
    fenced(tasks.finish_iteration(old, 1, &end).await);
    fenced(tasks.discard_iteration(old, 1).await);
    fenced(tasks.log(old, "log", "x", &serde_json::json!({})).await);
    fenced(tasks.release(old, no_time, "x", no_time).await);
    fenced(tasks.finish(old, State::Succeeded, "x", None, None, no_time).await.map(drop));
    let lease = taken.lease();
    tasks.finish(lease, State::Succeeded, "x", None, None, no_time).await.unwrap();
    fenced(tasks.finish(lease, State::Failed, "again", None, None, no_time).await.map(drop));
}

#[tokio::test]
async fn a_shutdown_puts_the_task_back_for_the_next_worker_at_once() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n").taking(Duration::from_secs(2));
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    eventually("the agent runs", async || !agent.seen().is_empty()).await;
    let began = std::time::Instant::now();
    ralph.stop().await;
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    place.assert_clean();
    assert_eq!(place.store.tasks().get(task.id).await.unwrap().state, State::Queued);
    let ralph = place.start(&agent).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded);
    let outcomes: Vec<_> = detail.iterations.iter().map(|i| i.outcome).collect();
    assert_eq!(outcomes, [Outcome::Interrupted, Outcome::Passed]);
    ralph.stop().await;
    place.assert_clean();
}
