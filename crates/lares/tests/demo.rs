//! The demo as a person runs it: a real model, a real commit, an injury that heals, and nothing left behind.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use support::{git, lares, processes_of, real_parts, state_dir, text};

#[test]
fn the_demo_ends_in_a_commit_whose_tests_pass_and_leaves_no_process() {
    let Some((model, server, _turn)) = real_parts("demo") else { return };
    let state = state_dir();
    // The files the suite fetched stand in for the download, under the names that a download gives them.
    let models = state.path().join("models");
    let name = model.file_stem().unwrap().to_str().unwrap();
    let fetched = model.canonicalize().unwrap();
    std::fs::create_dir_all(&models).unwrap();
    std::fs::hard_link(&fetched, models.join(fetched.file_name().unwrap()))
        .or_else(|_| std::fs::copy(&fetched, models.join(fetched.file_name().unwrap())).map(drop))
        .unwrap();
    let output = lares()
        .arg("--state-dir")
        .arg(state.path())
        .arg("--set")
        .arg(format!("llama.server={}", server.display()))
        .args(["--set", "coordinator.listen=127.0.0.1:0", "--set", "ralph.listen=127.0.0.1:0"])
        .args(["--set", "healer.listen=127.0.0.1:0"])
        .args(["--set", "tools.listen=127.0.0.1:0", "--set", "tools.search.embedding=none"])
        .args(["demo", "--model", name])
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");

    let repo = state.path().join("demo/scores");
    let branch = git(&repo, &["for-each-ref", "--format=%(refname:short)", "refs/heads/lares"]);
    assert!(!branch.is_empty(), "no branch of lares in the repository:\n{said}");
    // The commit is good by our own eyes, not by what the demo says of it.
    git(&repo, &["checkout", "-q", &branch]);
    let check = std::process::Command::new("python3").args(["-m", "unittest"]).current_dir(&repo).output().unwrap();
    assert!(check.status.success(), "{}", text(&check));
    assert_eq!(git(&repo, &["rev-list", "--count", "main..HEAD"]), "1", "one clean commit");
    assert_eq!(git(&repo, &["diff", "--stat", "main", "--", "test_scores.py"]), "", "the tests are as they were");

    for expected in ["iteration", "back and ready in", "killed by SIGKILL", "no process left"] {
        assert!(said.contains(expected), "{expected:?} is not in:\n{said}");
    }
    assert_eq!(processes_of(state.path()), Vec::<String>::new());
}
