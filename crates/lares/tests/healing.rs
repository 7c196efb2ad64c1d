//! `lares heal UNIT` and `lares incident …` against a healer whose answers are written down here.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::routing::{get, post};
use lares_healer::api::Healing;
use lares_healer::decide::{History, Policy};
use lares_healer::facts::{Active, Facts};
use lares_healer::observe::Observed;
use lares_healer::outlook::Outlook;
use lares_healer::symptom::Symptom;
use serde_json::{Value, json};
use support::{lares, state_dir, text};

const ID: &str = "0199a000-0000-7000-8000-000000000042";

/// What the incident is at each look; the last one stays.
struct Script {
    looks: Vec<Value>,
    at: AtomicUsize,
}

/// The state directory with its key, and the address.
struct FakeHealer {
    state: tempfile::TempDir,
    port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl FakeHealer {
    fn new(looks: Vec<Value>) -> Self {
        let state = state_dir();
        std::fs::create_dir(state.path().join("keys")).unwrap();
        std::fs::write(state.path().join("keys/admin.key"), "lares_key\n").unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let script = Arc::new(Script { looks, at: AtomicUsize::new(0) });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes(script)).await.unwrap();
        });
        Self { state, port, _runtime: runtime }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let listen = format!("healer.listen=127.0.0.1:{}", self.port);
        let mut command = lares();
        command.arg("--state-dir").arg(self.state.path()).args(["--set", &listen]).args(arguments);
        command.output().unwrap()
    }
}

fn routes(script: Arc<Script>) -> Router {
    let listed = async |uri: Uri| {
        // Nothing is open before the order.
        let open = uri.query().unwrap_or_default().contains("open=true");
        let incidents = if open { Vec::new() } else { vec![incident("asking", &Value::Null)] };
        axum::Json(json!({ "incidents": incidents, "next_before": null }))
    };
    let look = async |State(script): State<Arc<Script>>| {
        let at = script.at.fetch_add(1, Ordering::SeqCst);
        // The first look comes before PostgreSQL has it.
        match at.checked_sub(1) {
            None => (StatusCode::NOT_FOUND, axum::Json(json!({ "detail": "there is no such incident" }))),
            Some(at) => (StatusCode::OK, axum::Json(script.looks[at.min(script.looks.len() - 1)].clone())),
        }
    };
    let answered = async |Path((id, verb)): Path<(String, String)>| {
        assert_eq!((id.as_str(), verb.as_str()), (ID, "approve"));
        axum::Json(incident("healing", &Value::Null))
    };
    Router::new()
        .route("/api/v1/incidents", get(listed))
        .route("/api/v1/incidents/{id}", get(look))
        .route("/api/v1/incidents/{id}/{verb}", post(answered))
        .route("/api/v1/heal/{unit}", post(async || axum::Json(healing())))
        .with_state(script)
}

fn healing() -> Value {
    let facts = Facts {
        active: Active::Failed,
        symptoms: vec![Symptom::ExitCode { status: 1 }],
        result: "exit-code".to_owned(),
        ..Facts::healthy("app.service")
    };
    let outlook = Outlook::of(Observed { facts, unknown: Vec::new() }, &Policy::default(), &History::default());
    serde_json::to_value(Healing { outlook, incident: Some(ID.parse().unwrap()) }).unwrap()
}

fn incident(state: &str, outcome: &Value) -> Value {
    json!({
        "id": ID, "unit": "app.service", "state": state, "outcome": outcome, "known_as": "", "cause": "it ended",
        "shared": null, "needs_person": state != "healing", "opened_at": "2026-11-23T16:00:00Z",
        "closed_at": if outcome.is_null() { Value::Null } else { json!("2026-11-23T16:00:01Z") },
        "recovered_ms": if *outcome == "healed" { json!(112) } else { Value::Null },
    })
}

/// The incident with the first entries of its story.
fn detail(state: &str, outcome: &Value, entries: &[(&str, &str)]) -> Value {
    let mut detail = incident(state, outcome);
    let entries = (1..).zip(entries).map(|(seq, (kind, message))| {
        json!({ "seq": seq, "at": "2026-11-23T16:00:00Z", "ms": seq * 10, "kind": kind, "message": message, "data": {} })
    });
    detail["timeline"] = entries.collect();
    detail
}

const STORY: [(&str, &str); 3] =
    [("symptoms", "exited with status 1"), ("decided", "attempt 1, restart"), ("closed", "healed")];

#[test]
fn healing_is_followed_to_its_end_and_each_entry_is_told_once() {
    let looks = || {
        vec![
            detail("healing", &Value::Null, &STORY[..1]),
            detail("verifying", &Value::Null, &STORY[..2]),
            detail("closed", &json!("healed"), &STORY),
        ]
    };
    let output = FakeHealer::new(looks()).run(&["heal", "app"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for (_, message) in STORY {
        assert_eq!(said.lines().filter(|l| l.starts_with('+') && l.ends_with(message)).count(), 1, "{message}: {said}");
    }
    assert!(said.contains("will      reset-failed app.service, then start app.service"), "{said}");
    assert!(said.ends_with("healed: app.service was up again after 112 ms\n"), "{said}");

    let output = FakeHealer::new(looks()).run(&["--json", "heal", "app"]);
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!((lines[0]["incident"].as_str(), lines[4]["outcome"].as_str()), (Some(ID), Some("healed")));

    let output = FakeHealer::new(looks()).run(&["heal", "--detach", "app"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(!text(&output).contains("attempt 1"), "{}", text(&output));
}

#[test]
fn healing_that_needs_a_person_says_what_to_do_and_fails() {
    let asking = vec![detail("asking", &Value::Null, &[("asked", "waits for a person to approve rollback")])];
    let output = FakeHealer::new(asking).run(&["heal", "app"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("lares incident approve {ID}")), "{said}");

    let held = vec![detail("held", &Value::Null, &[("handed_over", "over to a person: port 80 is held")])];
    let output = FakeHealer::new(held).run(&["heal", "app"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("a person is needed"), "{}", text(&output));

    let healing = vec![detail("healing", &Value::Null, &STORY[..1])];
    let output = FakeHealer::new(healing).run(&["heal", "app", "--timeout", "1s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not healed yet: app.service is healing still"), "{}", text(&output));
}

#[test]
fn an_incident_is_named_by_the_end_of_its_id() {
    let healer = FakeHealer::new(vec![detail("closed", &json!("healed"), &STORY)]);
    let output = healer.run(&["incident", "approve", "000000000042"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains(&format!("approved: app.service, incident {ID}")), "{}", text(&output));
    let output = healer.run(&["incident", "show", "42"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("`42` is not the id of an incident"), "{}", text(&output));
    let output = healer.run(&["incident", "list"]);
    assert!(text(&output).contains("asking, needs a person"), "{}", text(&output));
}

#[test]
fn what_is_in_the_way_is_said_with_its_exit_code() {
    let healer = FakeHealer::new(Vec::new());
    let run = |arguments: &[&str], code: i32, says: &str| {
        let output = healer.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(says), "{}", text(&output));
    };
    run(&["heal", "app", "--timeout", "soon"], 1, "--timeout: `soon` is not a duration");
    run(&["heal", "app", "dry-run", "app"], 2, "lares heal dry-run UNIT");
    run(&["incident", "list", "--state", "ill"], 2, "verifying");
    // A port that was free a moment ago.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    run(&["--set", &format!("healer.listen={free}"), "heal", "app"], 4, "`lares heal dry-run` works without it");
    std::fs::remove_file(healer.state.path().join("keys/admin.key")).unwrap();
    run(&["incident", "list"], 5, "LARES_API_KEY_FILE");
}
