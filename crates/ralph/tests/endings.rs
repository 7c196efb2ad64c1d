//! How tasks end: by the check's exit code, whatever the agent says.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use lares_agents::BackendError;
use lares_ralph::api::{Approach, Outcome, TaskState, short_id};
use support::{Place, Scripted, git};

#[tokio::test]
async fn a_liar_that_changes_nothing_fails() {
    let place = Place::new().await;
    let agent = Scripted::new(|_| Ok(()));
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.max_iterations = Some(4);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    assert_eq!(detail.task.reason.as_deref(), Some("the check did not pass in 4 iterations"));
    assert!(detail.iterations.iter().all(|i| i.outcome == Outcome::NoChange && i.check_exit.is_none()));
    assert_eq!((detail.task.branch, detail.task.result_commit), (None, None));
    assert!(agent.seen()[1].notes.contains("changed nothing"), "{}", agent.seen()[1].notes);
    ralph.stop().await;
    place.assert_clean();
    assert_eq!(git(&place.repo, &["branch", "--list", "lares/*"]), "");
}

#[tokio::test]
async fn a_fixer_that_never_says_so_succeeds_with_one_clean_commit() {
    let place = Place::new().await;
    let agent = Scripted::new(|run| {
        let text = if run.iteration == 1 { "40\n" } else { "42\n" };
        std::fs::write(run.worktree.join("answer.txt"), text).unwrap();
        Ok(())
    });
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded, "{detail:#?}");
    assert_eq!(detail.base_check.unwrap().output, "answer is 41\n");
    let outcomes: Vec<_> = detail.iterations.iter().map(|i| (i.approach, i.outcome, i.check_exit)).collect();
    assert_eq!(outcomes, [(Approach::First, Outcome::Failed, Some(1)), (Approach::Repair, Outcome::Passed, Some(0))]);
    let (result, branch) = (detail.task.result_commit.unwrap(), detail.task.branch.unwrap());
    assert_eq!(branch, format!("lares/{}-make-the-answer-right", short_id(task.id)));
    assert_eq!(git(&place.repo, &["rev-parse", &branch]), result);
    assert_eq!(git(&place.repo, &["rev-list", &format!("main..{branch}")]), result, "one commit, on the base");
    assert_eq!(git(&place.repo, &["show", &format!("{branch}:answer.txt")]), "42");
    let message = git(&place.repo, &["log", "-1", "--format=%an %s%n%b", &branch]);
    assert!(message.starts_with("Lares Make the answer right\n"), "{message}");
    assert!(message.contains(&format!("Lares-Task: {}\nLares-Iterations: 2\n", task.id)), "{message}");
    let repair = &agent.seen()[1];
    assert_eq!(repair.last_check.as_ref().unwrap().output, "answer is 40\n");
    assert!(repair.diff.contains("+40"), "{}", repair.diff);
    let patch = ralph.get(&format!("/tasks/{}/diff", task.id)).send().await.unwrap().text().await.unwrap();
    assert!(patch.contains("-41\n+42\n"), "{patch}");
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_check_that_passes_already_ends_the_task_without_an_agent() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "0\n");
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.check = "true".to_owned();
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded);
    assert_eq!(detail.task.reason.as_deref(), Some("the check already passes; nothing was changed"));
    assert!(agent.seen().is_empty() && detail.task.result_commit.is_none());
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_changed_test_is_put_back_and_does_not_count() {
    let place = Place::new().await;
    let agent = Scripted::new(|run| {
        std::fs::write(run.worktree.join("tests/test_answer.sh"), "exit 0\n").unwrap();
        if run.iteration == 2 {
            std::fs::write(run.worktree.join("answer.txt"), "42\n").unwrap();
        }
        Ok(())
    });
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded);
    assert_eq!(detail.iterations[0].outcome, Outcome::NoChange);
    assert_eq!(detail.iterations[1].changed_files, ["answer.txt"]);
    let log = place.log(task.id).await.join("\n");
    assert!(log.contains("put back before the check, because they decide: tests/test_answer.sh"), "{log}");
    assert!(agent.seen()[0].protected.contains(&"tests/test_answer.sh".into()));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn the_best_try_of_a_failed_task_is_kept_on_its_branch() {
    let place = Place::new().await;
    std::fs::write(
        place.repo.join("tests/test_answer.sh"),
        "n=$(cat answer.txt); echo \"Ran 10 tests in 0.1s\"; echo \"FAILED (failures=$n)\"; exit 1\n",
    )
    .unwrap();
    git(&place.repo, &["commit", "-qam", "base", "--amend"]);
    let agent = Scripted::new(|run| {
        std::fs::write(run.worktree.join("answer.txt"), ["9\n", "2\n", "5\n"][run.iteration as usize - 1]).unwrap();
        Ok(())
    });
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.max_iterations = Some(3);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    let reason = detail.task.reason.unwrap();
    assert!(reason.contains("the best try (iteration 2, 8 of 10 tests pass) is kept on branch lares/"), "{reason}");
    assert_eq!(git(&place.repo, &["show", &format!("{}:answer.txt", detail.task.branch.unwrap())]), "2");
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn an_agent_that_cannot_work_ends_the_task_with_its_reason() {
    let place = Place::new().await;
    let agent =
        Scripted::new(|_| Err(BackendError::Refused { status: 404, message: "there is no model `x`".to_owned() }));
    let ralph = place.start(&agent).await;
    let task = ralph.submit(&place.request()).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    let reason = detail.task.reason.unwrap();
    assert!(reason.contains("3 times in a row") && reason.contains("there is no model `x`"), "{reason}");
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_model_that_is_away_uses_up_no_iteration() {
    let place = Place::new().await;
    let calls = std::sync::atomic::AtomicU32::new(0);
    let agent = Scripted::new(move |run| {
        if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            return Err(BackendError::Unreachable {
                url: "http://127.0.0.1:1/v1".to_owned(),
                reason: "refused".to_owned(),
            });
        }
        std::fs::write(run.worktree.join("answer.txt"), "42\n").unwrap();
        Ok(())
    });
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.max_iterations = Some(1);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded, "{detail:#?}");
    assert_eq!(detail.iterations.len(), 1);
    assert!(place.log(task.id).await.join("\n").contains("does not count"));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_task_that_takes_too_long_fails_with_that_reason() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n").taking(Duration::from_secs(60));
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.timeout = Some("1s".to_owned());
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    assert!(detail.task.reason.unwrap().contains("timeout of 1s"));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_full_disk_puts_a_task_off_and_loses_nothing() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n");
    let mut config = place.config.clone();
    config.ralph.min_free_disk = lares_config::ByteSize::gib(1 << 30);
    let ralph = place.start_with(config, &agent).await;
    let task = ralph.submit(&place.request()).await;
    support::eventually("put back", async || {
        let detail = ralph.show(task.id).await;
        detail.task.reason.is_some_and(|reason| reason.contains("min_free_disk"))
    })
    .await;
    assert_eq!(ralph.show(task.id).await.task.state, TaskState::Queued);
    ralph.stop().await;
    place.assert_clean();
    let client = place.db.client().await;
    client.execute("UPDATE tasks SET not_before = clock_timestamp()", &[]).await.unwrap();
    let ralph = place.start(&agent).await;
    assert_eq!(ralph.ended(task.id).await.task.state, TaskState::Succeeded);
    ralph.stop().await;
    place.assert_clean();
}
