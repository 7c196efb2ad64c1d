//! The routes: what is refused, what is streamed, who may do what.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use lares_ralph::api::{Merged, Task, TaskList, TaskState};
use serde_json::{Value, json};
use support::{Place, Ralph, Scripted, git};

async fn refused(ralph: &Ralph, body: Value) -> (u16, Vec<String>, String) {
    let response = ralph.post("/tasks").json(&body).send().await.unwrap();
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    let fields = problem["errors"].as_array().into_iter().flatten().map(|e| e["field"].as_str().unwrap().to_owned());
    (status, fields.collect(), problem["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_wrong_request_names_its_fields_and_makes_no_task() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::new(|_| Ok(()))).await;
    let plain = place.dir.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let empty = place.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    git(&empty, &["init", "-q"]);
    let with = |field: &str, value: Value| {
        let mut body = serde_json::to_value(place.request()).unwrap();
        body[field] = value;
        body
    };
    let table = [
        (with("repo", json!(plain)), "repo", "git init"),
        (with("repo", json!(empty)), "repo", "no commit yet"),
        (with("repo", json!("/nonexistent/repo")), "repo", "does not exist"),
        (with("repo", json!("relative")), "repo", "absolute"),
        (with("repo", json!(place.repo.join("tests"))), "repo", "inside the repository"),
        (with("repo", json!(place.repo.join("answer.txt"))), "repo", "not a directory"),
        (with("backend", json!("aider")), "backend", "there is `builtin`"),
        (with("timeout", json!("30")), "timeout", "not a duration"),
        (with("max_iterations", json!(0)), "max_iterations", "from 1"),
        (with("check", json!("")), "check", "missing"),
        (with("chek", json!("x")), "chek", "unknown field"),
    ];
    for (body, field, said) in table {
        let (status, fields, detail) = refused(&ralph, body).await;
        assert_eq!((status, fields), (422, vec![field.to_owned()]), "{detail}");
        assert!(detail.contains(said), "{field}: {detail}");
    }
    let response = ralph.post("/tasks").body("{").send().await.unwrap();
    assert_eq!(response.status(), 400);
    let list: TaskList = ralph.get("/tasks").send().await.unwrap().json().await.unwrap();
    assert_eq!(list.tasks, []);
    ralph.stop().await;
}

#[tokio::test]
async fn the_same_idempotency_key_makes_one_task() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n")).await;
    let send = async |request: &lares_ralph::api::SubmitTask| {
        ralph.post("/tasks").header("Idempotency-Key", "k1").json(request).send().await.unwrap()
    };
    let request = place.request();
    let first = send(&request).await;
    assert_eq!(first.status(), 201);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let first: Task = first.json().await.unwrap();
    assert_eq!(location, format!("/tasks/{}", first.id));
    let again = send(&request).await;
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Task>().await.unwrap().id, first.id);
    let mut other = request.clone();
    other.prompt = "something else".to_owned();
    assert_eq!(send(&other).await.status(), 422);
    ralph.ended(first.id).await;
    ralph.stop().await;
}

#[tokio::test]
async fn a_full_queue_and_a_low_role_are_refused() {
    let place = Place::new().await;
    let mut config = place.config.clone();
    config.ralph.max_queued = 1;
    config.ralph.workers = 1;
    let ralph = place.start_with(config, &Scripted::new(|_| Ok(())).taking(Duration::from_secs(30))).await;
    let running = ralph.submit(&place.request()).await;
    ralph.until(running.id, &[TaskState::Running]).await;
    let waiting = ralph.submit(&place.request()).await;
    let refused = ralph.post("/tasks").json(&place.request()).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    for path in ["cancel", "approve", "merge"] {
        let url = format!("{}/tasks/{}/{path}", ralph.url, waiting.id);
        let response = ralph.client.post(&url).bearer_auth(&ralph.viewer).send().await.unwrap();
        assert_eq!(response.status(), 403, "{path}");
        assert_eq!(ralph.client.post(url).send().await.unwrap().status(), 401, "{path}");
    }
    let cancelled = ralph.post(&format!("/tasks/{}/cancel", waiting.id)).send().await.unwrap();
    assert_eq!(cancelled.status(), 200);
    let cancelled: Task = cancelled.json().await.unwrap();
    assert_eq!(cancelled.reason.as_deref(), Some("cancelled by operator"));
    let page: TaskList = ralph.get("/tasks?limit=1").send().await.unwrap().json().await.unwrap();
    assert_eq!((page.tasks[0].id, page.next_before), (waiting.id, Some(waiting.id)));
    let page = format!("/tasks?limit=1&before={}", waiting.id);
    let page: TaskList = ralph.get(&page).send().await.unwrap().json().await.unwrap();
    assert_eq!(page.tasks[0].id, running.id);
    let none: TaskList = ralph.get("/tasks?state=failed").send().await.unwrap().json().await.unwrap();
    assert_eq!(none.tasks, []);
    for wrong in ["/tasks?state=done", "/tasks?limit=0", "/tasks?page=2"] {
        assert_eq!(ralph.get(wrong).send().await.unwrap().status(), 400, "{wrong}");
    }
    assert_eq!(ralph.get("/tasks/none").send().await.unwrap().status(), 404);
    assert_eq!(ralph.get(&format!("/tasks/{}", uuid::Uuid::nil())).send().await.unwrap().status(), 404);
    ralph.stop().await;
}

/// The events of a stream: id, name, data.
fn events(text: &str) -> Vec<(i64, String, Value)> {
    text.split("\n\n")
        .filter(|block| block.contains("data:"))
        .map(|block| {
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(|value| value.trim().to_owned())
                    .unwrap_or_default()
            };
            (field("id:").parse().unwrap_or(0), field("event:"), serde_json::from_str(&field("data:")).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn the_log_is_streamed_while_it_grows_and_resumed_where_it_was_cut() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n").taking(Duration::from_millis(200))).await;
    let task = ralph.submit(&place.request()).await;
    let path = format!("/tasks/{}/events", task.id);
    // Opened while the task runs; the body ends by itself when the task does.
    let live = ralph.get(&path).send().await.unwrap();
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    let live = events(&tokio::time::timeout(Duration::from_secs(60), live.text()).await.unwrap().unwrap());
    let kinds: Vec<_> = live.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(
        kinds,
        ["state", "state", "log", "check", "iteration", "agent", "check", "iteration", "log", "state", "end"]
    );
    assert_eq!(live.last().unwrap().2["state"], "succeeded");
    assert_eq!(live[live.len() - 2].2["data"]["state"], "succeeded");
    let cut = live[3].0;
    let rest = ralph.get(&path).header("Last-Event-ID", cut.to_string()).send().await.unwrap().text().await.unwrap();
    assert_eq!(events(&rest), live[4..]);
    ralph.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_daemon() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::new(|_| Ok(())).taking(Duration::from_secs(60))).await;
    let task = ralph.submit(&place.request()).await;
    let live = ralph.get(&format!("/tasks/{}/events", task.id)).send().await.unwrap();
    let reading = tokio::spawn(live.text());
    ralph.until(task.id, &[TaskState::Running]).await;
    ralph.stop().await;
    tokio::time::timeout(Duration::from_secs(5), reading).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_result_waits_for_approval_and_is_merged_forward() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n")).await;
    let mut request = place.request();
    request.require_approval = Some(true);
    let task = ralph.submit(&request).await;
    let path = |what: &str| format!("/tasks/{}/{what}", task.id);
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::AwaitingApproval);
    assert_eq!(ralph.post(&path("merge")).send().await.unwrap().status(), 409);
    let approved: Task = ralph.post(&path("approve")).send().await.unwrap().json().await.unwrap();
    assert_eq!(approved.state, TaskState::Succeeded);
    assert_eq!(approved.reason.as_deref(), Some("the check passed; approved by operator"));
    assert_eq!(ralph.post(&path("approve")).send().await.unwrap().status(), 409);
    place.assert_clean();
    std::fs::write(place.repo.join("answer.txt"), "mine\n").unwrap();
    let dirty = ralph.post(&path("merge")).send().await.unwrap();
    assert_eq!(dirty.status(), 409);
    assert!(dirty.text().await.unwrap().contains("uncommitted changes"));
    git(&place.repo, &["checkout", "-q", "answer.txt"]);
    let merged: Merged = ralph.post(&path("merge")).send().await.unwrap().json().await.unwrap();
    assert!(merged.fast_forward && merged.branch == "main");
    assert_eq!(git(&place.repo, &["rev-parse", "main"]), approved.result_commit.unwrap());
    assert_eq!(std::fs::read_to_string(place.repo.join("answer.txt")).unwrap(), "42\n");
    let again: Merged = ralph.post(&path("merge")).send().await.unwrap().json().await.unwrap();
    assert_eq!(again.commit, merged.commit);
    let audit = place.store.audit().recent(50).await.unwrap();
    for action in ["task.submit", "task.awaiting_approval", "task.approve", "task.merge"] {
        assert!(audit.iter().any(|entry| entry.action == action), "{action} is not in the audit log");
    }
    ralph.stop().await;
    let told = place.store.events().of_subject(task.id, 50).await.unwrap();
    assert!(told.iter().any(|event| event.kind == "iteration" && event.outcome == "passed"));
    assert!(told.iter().any(|event| event.kind == "task" && event.outcome == "awaiting_approval"));
}

#[tokio::test]
async fn a_rejected_result_is_cancelled_and_its_branch_stays() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n")).await;
    let mut request = place.request();
    request.require_approval = Some(true);
    let task = ralph.submit(&request).await;
    ralph.ended(task.id).await;
    let rejected: Task = ralph.post(&format!("/tasks/{}/cancel", task.id)).send().await.unwrap().json().await.unwrap();
    assert_eq!(rejected.state, TaskState::Cancelled);
    assert_eq!(git(&place.repo, &["rev-parse", &rejected.branch.unwrap()]), rejected.result_commit.unwrap());
    ralph.stop().await;
    place.assert_clean();
}

#[tokio::test]
async fn a_branch_that_moved_gets_a_merge_commit_and_a_conflict_changes_nothing() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n")).await;
    let first = ralph.submit(&place.request()).await;
    ralph.ended(first.id).await;
    std::fs::write(place.repo.join("other.txt"), "x\n").unwrap();
    git(&place.repo, &["add", "-A"]);
    git(&place.repo, &["commit", "-qm", "mine"]);
    let merged: Merged = ralph.post(&format!("/tasks/{}/merge", first.id)).send().await.unwrap().json().await.unwrap();
    assert!(!merged.fast_forward);
    assert_eq!(git(&place.repo, &["log", "-1", "--format=%P", "main"]).split(' ').count(), 2);
    assert_eq!(std::fs::read_to_string(place.repo.join("answer.txt")).unwrap(), "42\n");
    assert!(place.repo.join("other.txt").exists());

    git(&place.repo, &["reset", "-q", "--hard", "HEAD~1"]);
    std::fs::write(place.repo.join("answer.txt"), "43\n").unwrap();
    git(&place.repo, &["commit", "-qam", "against it"]);
    let tip = git(&place.repo, &["rev-parse", "main"]);
    let conflict = ralph.post(&format!("/tasks/{}/merge", first.id)).send().await.unwrap();
    assert_eq!(conflict.status(), 409);
    let said = conflict.text().await.unwrap();
    assert!(said.contains("answer.txt"), "{said}");
    assert_eq!(git(&place.repo, &["rev-parse", "main"]), tip);
    assert_eq!(git(&place.repo, &["status", "--porcelain"]), "");
    ralph.stop().await;
}

#[tokio::test]
async fn a_bare_repository_is_as_good() {
    let place = Place::new().await;
    let bare = place.dir.path().join("bare.git");
    git(&place.repo, &["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
    let ralph = place.start(&Scripted::writing("answer.txt", "42\n")).await;
    let mut request = place.request();
    request.repo = bare.display().to_string();
    let task = ralph.submit(&request).await;
    let detail = ralph.ended(task.id).await;
    assert_eq!(detail.task.state, TaskState::Succeeded, "{detail:#?}");
    let merged: Merged = ralph.post(&format!("/tasks/{}/merge", task.id)).send().await.unwrap().json().await.unwrap();
    assert_eq!(git(&bare, &["rev-parse", "main"]), merged.commit);
    ralph.stop().await;
}

#[tokio::test]
async fn the_surface_describes_itself_and_is_ready() {
    let place = Place::new().await;
    let ralph = place.start(&Scripted::new(|_| Ok(()))).await;
    let ready = ralph.client.get(format!("{}/ready", ralph.url)).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    let doc: Value = ralph.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    for path in [
        "/tasks",
        "/tasks/{id}",
        "/tasks/{id}/events",
        "/tasks/{id}/diff",
        "/tasks/{id}/cancel",
        "/tasks/{id}/approve",
        "/tasks/{id}/merge",
    ] {
        assert!(doc["paths"][path].is_object(), "{path}");
    }
    support::eventually("the gauges", async || {
        let page = ralph.get("/metrics").send().await.unwrap().text().await.unwrap();
        page.contains("lares_ralph_tasks{state=\"queued\"} 0")
    })
    .await;
    ralph.stop().await;
}
