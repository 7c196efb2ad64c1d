//! Twenty tasks while everything is killed at random: none is lost, none is done twice, no worktree stays.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{EXAMPLE, Stack, git, real_parts, repository, signal, state_dir, text};

const TASKS: usize = 20;

#[test]
fn no_task_is_lost_or_done_twice_while_everything_is_killed() {
    let Some((model, server, _turn)) = real_parts("chaos") else { return };
    let state = state_dir();
    let configuration = format!(
        "{}lease = \"3s\"\nmax_iterations = 3\n{}",
        Stack::base(&server),
        Stack::model("coder", &model, "context_size = 2048")
    );
    let mut stack = Stack::up(state.path(), &configuration);
    let mut tasks = BTreeMap::new();
    for number in 0..TASKS {
        let repo = state.path().join(format!("repos/{number}"));
        repository(&repo, &EXAMPLE);
        let id = submit(&stack, &repo, number);
        tasks.insert(id, repo);
    }

    // A fixed seed, so that a failure can be run again; what the machine does in between is random enough.
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut killed: BTreeMap<&str, u32> = BTreeMap::new();
    let victims = ["postgres", "llama@coder", "ralph", "coordinator", "lares up"];
    let began = Instant::now();
    let mut round = 0;
    loop {
        std::thread::sleep(Duration::from_millis(1500 + next(3500)));
        if round < 15 {
            let victim = victims[round % victims.len()];
            if victim == "lares up" {
                stack.kill();
                stack.again();
                stack.wait_ready(Duration::from_secs(120));
            } else if let Some(pid) = stack.unit(victim).and_then(|unit| unit["pid"].as_u64()) {
                signal(u32::try_from(pid).unwrap(), "KILL");
            }
            *killed.entry(victim).or_default() += 1;
            round += 1;
        }
        let states = states(&stack);
        let ended = states.as_ref().map_or(0, |s| s.values().filter(|state| is_final(state)).count());
        if round >= 15 && ended == TASKS {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(900), "only {ended} of {TASKS} ended: {states:?}");
    }
    let states = states(&stack).unwrap();
    assert_eq!(states.len(), TASKS, "every accepted task is there");
    let succeeded = states.values().filter(|state| *state == "succeeded").count();
    println!("killed {killed:?} in {:?}; {succeeded} of {TASKS} succeeded", began.elapsed());

    for (id, repo) in &tasks {
        let task = stack.json(&["task", "show", id]);
        let commits: usize =
            git(repo, &["log", "--all", "--format=%H", "--grep", "^Lares-Task", "main..", "--branches=lares/*"])
                .lines()
                .count();
        if task["state"] == "succeeded" {
            let branch = task["branch"].as_str().unwrap();
            assert_eq!(git(repo, &["rev-list", "--count", &format!("main..{branch}")]), "1", "{id} was completed once");
            assert_eq!(git(repo, &["rev-parse", branch]), task["result_commit"].as_str().unwrap());
        } else {
            assert_eq!(task["state"], "failed", "{id}: {task} ({commits} commits)");
            assert!(task["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{task}");
        }
        let worktrees = git(repo, &["worktree", "list", "--porcelain"]);
        assert_eq!(worktrees.matches("worktree ").count(), 1, "{id} left a worktree:\n{worktrees}");
    }
    let ends = endings(&stack);
    for id in tasks.keys() {
        assert_eq!(ends.get(id).copied(), Some(1), "{id} has to end exactly once in the event log");
    }
    let left: Vec<_> = std::fs::read_dir(state.path().join("worktrees"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir() && !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "worktrees of tasks that ended");
    assert!(succeeded >= TASKS / 2, "the model does this one in one go, so kills must not be what decides: {states:?}");

    let (status, _) = stack.interrupt();
    assert!(status.success());
    assert_eq!(stack.leftovers(), Vec::<String>::new());
}

fn submit(stack: &Stack, repo: &Path, number: usize) -> String {
    let prompt = format!("make the tests pass (task {number})");
    let output = stack.run(&[
        "task",
        "submit",
        "--detach",
        "--repo",
        repo.to_str().unwrap(),
        "--check",
        "python3 -m unittest",
        &prompt,
    ]);
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn is_final(state: &str) -> bool {
    ["succeeded", "failed", "cancelled"].contains(&state)
}

/// Task → state; `None` while ralph cannot be asked.
fn states(stack: &Stack) -> Option<BTreeMap<String, String>> {
    let output = stack.run(&["task", "list", "-n", "100", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    Some(list["tasks"].as_array()?.iter().map(|task| (text(&task["id"]), text(&task["state"]))).collect())
}

/// Task → how often its log says that it ended.
fn endings(stack: &Stack) -> BTreeMap<String, usize> {
    let states = states(stack).unwrap();
    states
        .into_keys()
        .map(|id| {
            let output = stack.run(&["task", "logs", &id, "--json"]);
            let ends = String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter(|event| event["kind"] == "state" && event["data"]["state"].as_str().is_some_and(is_final))
                .count();
            (id, ends)
        })
        .collect()
}
