//! Checks that misbehave: that never end, print without end, or leave processes behind.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use lares_ralph::api::{Outcome, TaskState};
use support::{Place, Scripted, eventually};

/// Whether a process with this text in its command line is there.
fn runs(marker: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // The text is in this process's own arguments only if somebody filters tests by it.
        entry.file_name().to_string_lossy() != std::process::id().to_string()
            && String::from_utf8_lossy(&line).contains(marker)
    })
}

#[tokio::test]
async fn a_check_that_never_ends_is_stopped_and_says_so() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n");
    let mut config = place.config.clone();
    config.ralph.check_timeout = Duration::from_millis(500);
    let ralph = place.start_with(config, &agent).await;
    let mut request = place.request();
    request.check = "echo begun; sleep 86421".to_owned();
    request.max_iterations = Some(1);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    assert_eq!((detail.iterations[0].outcome, detail.iterations[0].check_exit), (Outcome::Failed, None));
    let output = &detail.iterations[0].check_output;
    assert!(output.starts_with("begun\n") && output.contains("ran longer than 500ms"), "{output}");
    assert!(!runs("sleep\x0086421"));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_check_that_prints_a_gigabyte_is_kept_within_bounds() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n");
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.check = "echo first; head -c 1000000000 /dev/zero | tr '\\0' x; echo; echo last; exit 7".to_owned();
    request.max_iterations = Some(1);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Failed);
    assert_eq!(detail.iterations[0].check_exit, Some(7));
    let output = &detail.iterations[0].check_output;
    assert!(output.len() <= 300 * 1024, "{} bytes kept", output.len());
    assert!(output.starts_with("first\n") && output.ends_with("\nlast\n"));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn cancelling_in_mid_check_ends_its_whole_process_tree() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n");
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.check = "setsid sleep 86422 & trap '' TERM; (trap '' TERM; sleep 86423); sleep 86424".to_owned();
    let task = ralph.submit(&request).await;
    eventually("the check runs", async || runs("sleep\x0086422") && runs("sleep\x0086423")).await;
    let began = Instant::now();
    let response = ralph.post(&format!("/tasks/{}/cancel", task.id)).send().await.unwrap();
    assert_eq!(response.status(), 202);
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(!runs("sleep\x0086422") && !runs("sleep\x0086423") && !runs("sleep\x0086424"));
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn what_a_check_writes_is_in_no_commit() {
    let place = Place::new().await;
    let agent = Scripted::writing("answer.txt", "42\n");
    let ralph = place.start(&agent).await;
    let mut request = place.request();
    request.check = "echo junk > junk.txt; echo 0 > tests/extra; grep -qx 42 answer.txt".to_owned();
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded);
    let result = detail.task.result_commit.unwrap();
    assert_eq!(support::git(&place.repo, &["diff", "--name-only", "main", &result]), "answer.txt");
    ralph.stop().await;
    place.assert_clean();
}

/// Runs `probe` in a confined check of this place; its output, or `None` where the kernel cannot confine.
async fn confined(place: &Place, probe: &str) -> Option<String> {
    let agent = Scripted::writing("answer.txt", "42\n");
    let mut config = place.config.clone();
    config.agents.sandbox.mode = lares_config::SandboxMode::Require;
    let ralph = place.start_with(config, &agent).await;
    let mut request = place.request();
    request.check = format!("{probe}; grep -qx 42 answer.txt");
    request.max_iterations = Some(1);
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    ralph.stop().await;
    let reason = detail.task.reason.clone().unwrap_or_default();
    if reason.contains("Landlock") {
        eprintln!("SKIP a confined check: {reason}");
        return None;
    }
    assert_eq!(detail.task.state, TaskState::Succeeded, "{detail:#?}");
    place.assert_clean();
    Some(detail.iterations[0].check_output.clone())
}

#[tokio::test]
async fn a_confined_check_reaches_its_worktree_and_reads_git_and_nothing_of_ours() {
    let place = Place::below(env!("CARGO_TARGET_TMPDIR")).await;
    std::fs::create_dir_all(&place.config.state_dir).unwrap();
    let (secret, outside) = (place.config.state_dir.join("secret"), place.dir.path().join("outside"));
    std::fs::write(&secret, "the key\n").unwrap();
    let head = place.repo.join(".git/HEAD");
    let probe = format!(
        "git log -1 --format=%an; touch here && echo wrote; cat {}; echo x > {}; echo x >> {}",
        secret.display(),
        outside.display(),
        head.display()
    );
    let Some(output) = confined(&place, &probe).await else { return };
    assert!(output.starts_with("Lares\nwrote\n") && !output.contains("the key"), "{output}");
    assert!(!outside.exists());
    assert_eq!(std::fs::read_to_string(head).unwrap(), "ref: refs/heads/main\n");
}

#[tokio::test]
async fn a_repository_in_a_temporary_directory_is_not_written_by_a_check_either() {
    let place = Place::below("/tmp").await;
    let head = place.repo.join(".git/HEAD");
    let probe = format!("git log -1 --format=%an; mkdir -p {0}/.git; echo x >> {0}/.git/HEAD", place.repo.display());
    let Some(output) = confined(&place, &probe).await else { return };
    assert!(output.starts_with("Lares\n"), "{output}");
    assert_eq!(std::fs::read_to_string(head).unwrap(), "ref: refs/heads/main\n");
}
