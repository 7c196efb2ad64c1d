//! `lares up` on its own: ready, usable, healing itself, gone within ten seconds.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Stack, real_parts, repository, signal, state_dir, text};

#[test]
fn up_serves_heals_and_stops_within_ten_seconds() {
    let Some((model, server, _turn)) = real_parts("up") else { return };
    let state = state_dir();
    let configuration = format!(
        "{}{}{}",
        Stack::base(&server),
        Stack::model("coder", &model, "context_size = 4096\naliases = [\"gpt-4o\"]"),
        Stack::model("embed", &model, "context_size = 1024\nembeddings = true"),
    );
    let mut stack = Stack::up(state.path(), &configuration);

    for key in ["admin.key", "agent.key", "llama.key"] {
        let mode = std::fs::metadata(state.path().join("keys").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let second = stack.command(&["up"]).output().unwrap();
    assert!(text(&second).contains("runs already"), "{}", text(&second));

    openai_client(&stack);
    keys(&stack);
    every_unit_comes_back(&mut stack);
    wrong_requests(&stack, state.path());

    let (status, took) = stack.interrupt();
    assert!(status.success(), "{status}: {}", stack.log());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(stack.leftovers(), Vec::<String>::new());
}

/// The official client, against everything the coordinator offers.
fn openai_client(stack: &Stack) {
    let Some(python) = std::env::var_os("LARES_TEST_OPENAI_PYTHON").filter(|path| std::path::Path::new(path).exists())
    else {
        eprintln!("SKIP openai-client: LARES_TEST_OPENAI_PYTHON names no Python with the openai package");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../coordinator/tests/openai_client.py");
    let key = std::fs::read_to_string(stack.state_dir.join("keys/agent.key")).unwrap();
    let output = Command::new(python)
        .arg(script)
        .env("LARES_TEST_URL", format!("http://{}/v1", stack.address("coordinator")))
        .env("LARES_TEST_KEY", key.trim())
        .env("LARES_TEST_CHAT_MODEL", "coder")
        .env("LARES_TEST_EMBEDDING_MODEL", "embed")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    println!("{}", text(&output).trim());
}

/// A key is shown once, works, and stops working at once.
fn keys(stack: &Stack) {
    let created = stack.json(&["key", "create", "laptop", "--role", "viewer"]);
    let key = created["key"].as_str().unwrap();
    let listed = stack.run(&["key", "list", "--json"]);
    assert!(!text(&listed).contains(key), "the list shows the secret");
    let status = |path: &str| {
        let url = format!("http://{}{path}", stack.address("ralph"));
        let bearer = format!("Authorization: Bearer {key}");
        let output = Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, &url])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(status("/tasks"), "200");
    assert_eq!(status("/metrics"), "200");
    assert_eq!(status("/openapi.json"), "200");
    stack.json(&["key", "revoke", "laptop"]);
    let deadline = Instant::now() + Duration::from_secs(2);
    while status("/tasks") != "401" {
        assert!(Instant::now() < deadline, "a revoked key still works after 2 s");
    }
}

/// Each unit is killed; each is back, and says how long it took.
fn every_unit_comes_back(stack: &mut Stack) {
    for name in ["llama@coder", "coordinator", "ralph", "postgres"] {
        let before = stack.unit(name).unwrap();
        let pid = u32::try_from(before["pid"].as_u64().unwrap()).unwrap();
        signal(pid, "KILL");
        let began = Instant::now();
        loop {
            let now = stack.unit(name).unwrap();
            if now["state"] == "active" && now["pid"].as_u64() != Some(u64::from(pid)) {
                println!("{name}: back after {:?}, by its own account {} ms", began.elapsed(), now["last_recovery_ms"]);
                assert!(now["last_recovery_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{now}");
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{name} is not back: {now}");
            std::thread::sleep(Duration::from_millis(20));
        }
        stack.wait_ready(Duration::from_secs(60));
    }
    what_happened_is_told(stack);
    let restarted = stack.json(&["unit", "restart", "coordinator"]);
    assert_eq!(restarted["state"], "active");
}

/// The healer has an incident for each, PostgreSQL's own included, and left the restarting to the supervisor.
fn what_happened_is_told(stack: &Stack) {
    let began = Instant::now();
    for name in ["llama@coder", "coordinator", "ralph", "postgres"] {
        let incident = loop {
            let found = stack.json(&["incident", "list", "--unit", name]);
            if let Some(incident) = found["incidents"].get(0) {
                break incident.clone();
            }
            assert!(began.elapsed() < Duration::from_secs(30), "nothing is told of {name}: {found}");
            std::thread::sleep(Duration::from_millis(100));
        };
        let detail = stack.json(&["incident", "show", incident["id"].as_str().unwrap()]);
        let timeline = detail["timeline"].as_array().unwrap();
        assert!(timeline[0]["message"].as_str().unwrap().contains("killed by signal 9"), "{detail}");
        assert!(timeline.iter().all(|entry| entry["kind"] != "acting"), "{detail}");
    }
}

/// What a person gets wrong: one clear error each, and the stack goes on.
fn wrong_requests(stack: &Stack, state: &std::path::Path) {
    let plain = state.join("plain");
    std::fs::create_dir(&plain).unwrap();
    let submit = |repo: &std::path::Path, check: &str, more: &[&str]| {
        let repo = repo.to_str().unwrap();
        let mut arguments = vec!["task", "submit", "--repo", repo, "--check", check];
        arguments.extend(more);
        arguments.push("make it right");
        stack.run(&arguments)
    };
    let not_git = submit(&plain, "true", &[]);
    assert_eq!(not_git.status.code(), Some(1), "{}", text(&not_git));
    assert!(text(&not_git).contains("git"), "{}", text(&not_git));

    let typo = stack.run(&["unit", "restart", "corodinator"]);
    assert!(text(&typo).contains("did you mean coordinator"), "{}", text(&typo));

    let repo = state.join("repo");
    repository(&repo, &[("README.md", "nothing to see\n")]);
    let unknown = submit(&repo, "false", &["--backend", "goose"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", text(&unknown));
    assert!(text(&unknown).contains("builtin"), "the error names what there is: {}", text(&unknown));
}
