//! Tool servers that are programs: every way to behave, and what becomes of the others meanwhile.
#![allow(clippy::unwrap_used)]
#![expect(deprecated, reason = "servers of the older revisions use logging")]

#[path = "upstream_support/mod.rs"]
mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lares_config::McpEra;
use lares_tools::api::Health;
use lares_tools::port::{CallContext, Downstream, UpstreamError, UpstreamEvent, Upstreams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientResult, ElicitResult, ElicitationAction, GetPromptRequestParams,
    GetPromptResponse, LoggingMessageNotificationParam, NumberOrString, ProgressNotificationParam, ProgressToken,
    ReadResourceRequestParams, ReadResourceResponse, RequestMetaObject, ServerRequest,
};
use serde_json::{Value, json};
use support::*;
use tokio_util::sync::CancellationToken;

/// A client that remembers what it is told and says yes.
#[derive(Default)]
struct Client {
    progress: Mutex<Vec<ProgressNotificationParam>>,
    logs: Mutex<Vec<Value>>,
}

#[async_trait]
impl Downstream for Client {
    fn capabilities(&self) -> ClientCapabilities {
        ClientCapabilities::default()
    }

    async fn progress(&self, params: ProgressNotificationParam) {
        self.progress.lock().unwrap().push(params);
    }

    async fn log(&self, params: LoggingMessageNotificationParam) {
        self.logs.lock().unwrap().push(params.data);
    }

    async fn request(&self, request: ServerRequest) -> Result<ClientResult, ErrorData> {
        assert!(matches!(request, ServerRequest::ElicitRequest(_)));
        Ok(ClientResult::ElicitResult(ElicitResult::new(ElicitationAction::Accept)))
    }
}

fn for_client(client: &Arc<Client>) -> CallContext {
    CallContext { downstream: client.clone(), cancelled: CancellationToken::new() }
}

#[tokio::test]
async fn each_kind_of_server_is_understood() {
    let kinds = [
        ("both", "2026-07-28", 1),
        ("sessions", "2025-11-25", 1),
        ("stateless", "2026-07-28", 1),
        ("mute", "2025-11-25", 1),
        ("dies", "2025-11-25", 2),
        ("garbage", "2026-07-28", 1),
    ];
    let bed = Bed::new(kinds.map(|(kind, ..)| target(kind, fixture(&[kind]))).into()).await;
    for (kind, protocol, connections) in kinds {
        let status = bed.wait(kind, Health::Up).await;
        assert_eq!(status.protocol.as_deref(), Some(protocol), "{kind}");
        assert_eq!(status.connections, connections, "{kind}");
        assert!(status.implementation.unwrap().starts_with("fixture "), "{kind}");
        assert_eq!((status.last_error, status.down_for), (None, None), "{kind}");
        let offer = bed.pool.offer(&name(kind)).await.unwrap();
        assert_eq!(offer.tools.len(), 12, "{kind}");
        assert_eq!((offer.resources.len(), offer.templates.len(), offer.prompts.len()), (1, 0, 1), "{kind}");
        assert_eq!(offer.ttl, Some(Duration::from_secs(60)), "{kind}");
        assert_eq!(offer.instructions.as_deref(), Some("Ask nicely."), "{kind}");
        assert_eq!(bed.call(kind, "echo", json!({"text": "hello"})).await.unwrap(), "hello", "{kind}");
    }
}

#[tokio::test]
async fn what_the_configuration_says_about_the_revision_counts() {
    let era = |name: &str, words: &[&str], era| lares_tools::port::Target { era, ..target(name, fixture(words)) };
    let bed = Bed::new(vec![
        era("old", &["both"], McpEra::Sessions),
        era("new", &["both"], McpEra::Stateless),
        era("wrong", &["sessions"], McpEra::Stateless),
    ])
    .await;
    assert_eq!(bed.wait("old", Health::Up).await.protocol.as_deref(), Some("2025-11-25"));
    assert_eq!(bed.wait("new", Health::Up).await.protocol.as_deref(), Some("2026-07-28"));
    let status = bed.wait_for("wrong", |status| status.last_error.is_some()).await;
    assert!(status.last_error.unwrap().contains("no such method"));
}

#[tokio::test]
async fn resources_prompts_and_completions_are_passed_through() {
    let bed = Bed::up(&[]).await;
    let server = name("s");
    let read = ReadResourceRequestParams::new("file:///a");
    let ReadResourceResponse::Complete(read) =
        bed.pool.read_resource(&server, read, CallContext::default()).await.unwrap()
    else {
        panic!("no result")
    };
    assert_eq!(read.contents.len(), 1);
    let prompt = GetPromptRequestParams::new("greet");
    let GetPromptResponse::Complete(prompt) =
        bed.pool.get_prompt(&server, prompt, CallContext::default()).await.unwrap()
    else {
        panic!("no result")
    };
    assert_eq!(prompt.messages.len(), 1);
    let complete = serde_json::from_value(
        json!({"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "who", "value": "o"}}),
    )
    .unwrap();
    let complete = bed.pool.complete(&server, complete, CallContext::default()).await.unwrap();
    assert_eq!(complete.completion.values, ["one", "two"]);
    bed.pool.watch_resource(&server, "file:///a", true).await.unwrap();
    bed.pool.watch_resource(&server, "file:///a", false).await.unwrap();
    assert!(matches!(bed.pool.offer(&name("nobody")).await, Err(UpstreamError::Unknown(_))));
}

#[tokio::test]
async fn dead_hung_and_slow_servers_do_not_delay_another() {
    let bed = Bed::new(vec![
        target("dead", fixture(&["dies-at-once"])),
        target("hung", fixture(&["hang-list"])),
        target("slow", fixture(&["slow=60000"])),
        target("fine", fixture(&[])),
    ])
    .await;
    bed.wait("fine", Health::Up).await;
    bed.wait("hung", Health::Up).await;
    let pool = bed.pool.clone();
    let hanging = tokio::spawn(async move { pool.offer(&name("hung")).await });
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(bed.pool.offer(&name("fine")).await.unwrap().tools.len(), 12);
        assert_eq!(bed.call("fine", "echo", json!({"text": "a"})).await.unwrap(), "a");
        assert_eq!(bed.pool.status().len(), 4);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(matches!(hanging.await.unwrap(), Err(UpstreamError::Timeout { .. })));
    let status = bed.wait_for("dead", |status| status.last_error.is_some()).await;
    let why = status.last_error.unwrap();
    assert!(why.contains("exit code 3") && why.contains("there is no configuration"), "{why}");
    assert_eq!(bed.status("slow").health, Health::Starting);
}

#[tokio::test]
async fn a_server_that_is_killed_comes_back() {
    let bed = Bed::up(&["marker-killed"]).await;
    let mut events = bed.pool.events();
    let child: i32 = bed.call("s", "children", json!({"for": 7531})).await.unwrap().parse().unwrap();
    assert!(child > 0);
    let pid = server_process("marker-killed").unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let server = name("s");
    assert_eq!(events.recv().await.unwrap(), UpstreamEvent::Down(server.clone()));
    assert_eq!(events.recv().await.unwrap(), UpstreamEvent::Up(server));
    let status = bed.wait("s", Health::Up).await;
    assert_eq!(status.connections, 2);
    assert_eq!(bed.call("s", "echo", json!({"text": "again"})).await.unwrap(), "again");
    assert!(!exists(pid) && server_process("7531").is_none());
}

#[tokio::test]
async fn a_call_that_kills_its_server_fails_at_once_and_the_next_one_waits_for_it() {
    let bed = Bed::up(&[]).await;
    let started = Instant::now();
    let died = bed.call("s", "die", json!({})).await;
    assert!(matches!(died, Err(UpstreamError::Unavailable { .. })), "{died:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(bed.call("s", "echo", json!({"text": "again"})).await.unwrap(), "again");
}

#[tokio::test]
async fn the_circuit_opens_and_closes_again() {
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("flag");
    let mut program = fixture(&[]);
    let script = format!("test -e {} && exec {FIXTURE}; echo not yet >&2; exit 5", flag.display());
    program.command = ["/bin/sh", "-c", &script].map(str::to_owned).into();
    program.read.push(dir.path().to_owned());
    let bed = Bed::new(vec![target("s", program)]).await;
    let status = bed.wait("s", Health::Resting).await;
    assert!(status.last_error.unwrap().contains("not yet"));
    assert!(status.down_for.is_some());
    let started = Instant::now();
    let refused = bed.call("s", "echo", json!({})).await;
    assert!(matches!(&refused, Err(UpstreamError::Unavailable { why, .. }) if why.contains("not yet")), "{refused:?}");
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    std::fs::write(&flag, "").unwrap();
    bed.wait("s", Health::Up).await;
    assert_eq!(bed.call("s", "echo", json!({"text": "at last"})).await.unwrap(), "at last");
}

#[tokio::test]
async fn a_call_that_hangs_ends_in_time_and_its_server_is_told() {
    for era in ["both", "sessions"] {
        let mut slow = target("s", fixture(&[era]));
        slow.call_timeout = Duration::from_millis(300);
        let bed = Bed::new(vec![slow]).await;
        bed.wait("s", Health::Up).await;
        let started = Instant::now();
        let hung = bed.call("s", "hang", json!({})).await;
        assert!(matches!(hung, Err(UpstreamError::Timeout { .. })), "{hung:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        let mut told = String::new();
        for _ in 0..100 {
            told = bed.call("s", "cancelled", json!({})).await.unwrap();
            if told != "[]" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(serde_json::from_str::<Vec<i64>>(&told).unwrap().len(), 1, "{told}");
        assert_eq!(bed.status("s").connections, 1);
    }
}

#[tokio::test]
async fn a_call_that_is_cancelled_frees_its_slot_and_one_that_is_dropped_too() {
    let mut narrow = target("s", fixture(&[]));
    narrow.max_concurrent = 1;
    let bed = Bed::new(vec![narrow]).await;
    bed.wait("s", Health::Up).await;
    let cancelled = CancellationToken::new();
    let context = CallContext { cancelled: cancelled.clone(), ..CallContext::default() };
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancelled.cancel();
    };
    let (call, ()) = tokio::join!(bed.call_with("s", "hang", json!({}), context), cancel);
    assert!(matches!(call, Err(UpstreamError::Cancelled)), "{call:?}");
    let dropped = tokio::time::timeout(Duration::from_millis(100), bed.call("s", "hang", json!({}))).await;
    assert!(dropped.is_err());
    let mut told = String::new();
    for _ in 0..100 {
        told = bed.call("s", "cancelled", json!({})).await.unwrap();
        if serde_json::from_str::<Vec<i64>>(&told).unwrap().len() == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the server was told of {told} only");
}

#[tokio::test]
async fn as_many_calls_run_as_are_allowed_and_a_bounded_number_waits() {
    let mut narrow = target("s", fixture(&[]));
    narrow.max_concurrent = 2;
    narrow.call_timeout = Duration::from_millis(1500);
    let bed = Bed::new(vec![narrow]).await;
    bed.wait("s", Health::Up).await;
    let started = Instant::now();
    let calls = (0..40).map(|_| bed.call("s", "hang", json!({})));
    let results = futures_util::future::join_all(calls).await;
    let busy = results.iter().filter(|result| matches!(result, Err(UpstreamError::Busy { .. }))).count();
    let late = results.iter().filter(|result| matches!(result, Err(UpstreamError::Timeout { .. }))).count();
    assert_eq!((busy, late), (6, 34));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let four = (0..4).map(|_| bed.call("s", "echo", json!({"text": "a", "after": 200})));
    let started = Instant::now();
    assert!(futures_util::future::join_all(four).await.iter().all(Result::is_ok));
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_server_that_answers_nothing_any_more_is_started_again() {
    let mut hung = target("s", fixture(&[]));
    hung.call_timeout = Duration::from_millis(200);
    let bed = Bed::new(vec![hung]).await;
    bed.wait("s", Health::Up).await;
    for tool in ["deaf", "echo"] {
        let call = bed.call("s", tool, json!({})).await;
        assert!(matches!(call, Err(UpstreamError::Timeout { .. })), "{tool}: {call:?}");
    }
    bed.wait_for("s", |status| status.connections == 2 && status.health == Health::Up).await;
    assert_eq!(bed.call("s", "echo", json!({"text": "again"})).await.unwrap(), "again");
}

#[tokio::test]
async fn an_answer_that_is_too_large_fails_its_call_and_no_other() {
    let bed = Bed::up(&[]).await;
    for first in [true, false] {
        let huge = json!({"bytes": 10 << 20, "first": first});
        let (other, huge) =
            tokio::join!(bed.call("s", "echo", json!({"text": "a", "after": 300})), bed.call("s", "huge", huge));
        assert!(matches!(huge, Err(UpstreamError::TooLarge { limit: 65536, .. })), "{huge:?}");
        assert_eq!(other.unwrap(), "a");
    }
    let fits = bed.call("s", "huge", json!({"bytes": 60_000})).await.unwrap();
    assert_eq!(fits.len(), 60_000);
    assert_eq!(bed.status("s").connections, 1);
}

#[tokio::test]
async fn a_change_of_the_lists_is_heard_in_both_eras_and_many_are_heard_as_few() {
    for era in ["both", "sessions"] {
        let bed = Bed::up(&[era]).await;
        let mut events = bed.pool.events();
        // A subscription is open soon after the session.
        let mut heard = 0;
        for _ in 0..50 {
            bed.call("s", "change", json!({})).await.unwrap();
            if let Ok(event) = tokio::time::timeout(Duration::from_millis(300), events.recv()).await {
                assert_eq!(event.unwrap(), UpstreamEvent::Changed(name("s")));
                heard += 1;
                break;
            }
        }
        assert_eq!(heard, 1, "{era}");
        assert_eq!(bed.pool.offer(&name("s")).await.unwrap().tools.len(), 13);
        let mut events = bed.pool.events();
        bed.call("s", "change", json!({"times": 50})).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut heard = 0;
        while events.try_recv().is_ok() {
            heard += 1;
        }
        assert!((1..=3).contains(&heard), "{era}: {heard}");
    }
}

#[tokio::test]
async fn progress_comes_in_order_under_the_name_the_client_gave_it_and_before_the_result() {
    for era in ["both", "sessions"] {
        let bed = Bed::up(&[era]).await;
        let client = Arc::new(Client::default());
        let token = ProgressToken(NumberOrString::String("mine".into()));
        let mut meta = RequestMetaObject::new();
        meta.set_progress_token(token.clone());
        meta.0.insert(
            "io.modelcontextprotocol/clientInfo".to_owned(),
            json!({"name": "a-client-of-ours", "version": "1"}),
        );
        meta.0.insert("traceparent".to_owned(), json!("00-1-2-00"));
        let mut params = CallToolRequestParams::new("work");
        params.meta = Some(meta);
        let seen = bed.call_params("s", params, for_client(&client)).await.unwrap();
        let progress = client.progress.lock().unwrap();
        let steps: Vec<u64> = progress.iter().map(|progress| progress.progress as u64).collect();
        assert_eq!(steps, (1..=20).collect::<Vec<_>>(), "{era}");
        assert!(progress.iter().all(|progress| progress.progress_token == token));
        assert_eq!(*client.logs.lock().unwrap(), [json!("working")]);
        assert!(!seen.contains("a-client-of-ours") && seen.contains("00-1-2-00"), "{seen}");
    }
}

#[tokio::test]
async fn a_question_reaches_the_client_of_the_only_call_and_is_refused_otherwise() {
    let bed = Bed::up(&["sessions"]).await;
    let client = Arc::new(Client::default());
    let answer = bed.call_with("s", "ask", json!({}), for_client(&client)).await.unwrap();
    assert!(answer.contains("\"action\":\"accept\""), "{answer}");
    let answer = bed.call("s", "ask", json!({})).await.unwrap();
    assert!(answer.contains("answers no requests"), "{answer}");
    let other = bed.call("s", "echo", json!({"text": "a", "after": 500}));
    let ask = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bed.call_with("s", "ask", json!({}), for_client(&client)).await
    };
    let (other, answer) = tokio::join!(other, ask);
    assert!(answer.unwrap().contains("belongs to no call") && other.is_ok());
}

/// A client whose person takes a while.
struct Thoughtful(Duration);

#[async_trait]
impl Downstream for Thoughtful {
    fn capabilities(&self) -> ClientCapabilities {
        ClientCapabilities::default()
    }

    async fn progress(&self, _: ProgressNotificationParam) {}

    async fn log(&self, _: LoggingMessageNotificationParam) {}

    async fn request(&self, _: ServerRequest) -> Result<ClientResult, ErrorData> {
        tokio::time::sleep(self.0).await;
        Ok(ClientResult::ElicitResult(ElicitResult::new(ElicitationAction::Accept)))
    }
}

#[tokio::test]
async fn the_clock_of_a_call_stands_still_while_a_person_thinks_and_goes_on_after_that() {
    let mut target = target("s", fixture(&["sessions"]));
    target.call_timeout = Duration::from_millis(500);
    let bed = Bed::new(vec![target]).await;
    bed.wait("s", Health::Up).await;
    let thinks = |for_so_long| CallContext {
        downstream: Arc::new(Thoughtful(for_so_long)),
        cancelled: CancellationToken::new(),
    };
    let answer = bed.call_with("s", "ask", json!({}), thinks(Duration::from_millis(1500))).await.unwrap();
    assert!(answer.contains("accept"), "{answer}");
    // What it does with the answer is its own time again.
    let began = Instant::now();
    let then_slow = bed.call_with("s", "ask", json!({"then": 5000}), thinks(Duration::from_millis(700))).await;
    assert!(matches!(then_slow, Err(UpstreamError::Timeout { .. })), "{then_slow:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1150) && took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn a_program_sees_its_own_variables_and_files_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("text"), "public").unwrap();
    std::fs::write(dir.path().join("private"), "private").unwrap();
    std::fs::write(dir.path().join("secret"), "hunter2-hunter2\n").unwrap();
    let mut program = fixture(&[]);
    program.env.insert("GREETING".to_owned(), "hello".to_owned());
    program.env_files.insert("SECRET".to_owned(), dir.path().join("secret"));
    program.read.push(shared.clone());
    assert!(!format!("{program:?}").contains("hello"), "{program:?}");
    let bed = Bed::new(vec![target("s", program)]).await;
    bed.wait("s", Health::Up).await;
    let env = bed.call("s", "env", json!({})).await.unwrap();
    assert!(env.contains("GREETING=hello") && env.contains("SECRET=hunter2-hunter2"), "{env}");
    let known = ["PATH", "HOME", "TMPDIR", "LANG", "TZ", "GREETING", "SECRET"];
    assert!(env.lines().all(|line| known.contains(&line.split('=').next().unwrap())), "{env}");
    let read = |path: std::path::PathBuf| bed.call("s", "read", json!({"path": path}));
    assert_eq!(read(shared.join("text")).await.unwrap(), "public");
    assert!(read(dir.path().join("private")).await.unwrap().starts_with("refused"));
    assert!(bed.call("s", "die", json!({})).await.is_err());
    let status = bed.wait_for("s", |status| status.last_error.is_some()).await;
    let why = status.last_error.unwrap();
    assert!(why.contains("the wheels came off, [secret]") && why.contains("exit code 9"), "{why}");
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let missing = lares_tools::port::Program { command: vec!["/nowhere/at/all".to_owned()], ..fixture(&[]) };
    let mut secretless = fixture(&[]);
    secretless.env_files.insert("SECRET".to_owned(), path("/nowhere/secret"));
    let bed = Bed::new(vec![
        target("missing", missing),
        target("secretless", secretless),
        target("silent", fixture(&["slow=60000"])),
        target("garbage", fixture(&["garbage-only"])),
    ])
    .await;
    for (server, expected) in [
        ("missing", "/nowhere/at/all"),
        ("secretless", "/nowhere/secret"),
        ("silent", "was not ready within 6s"),
        ("garbage", "closed the connection"),
    ] {
        let why = bed.wait_for(server, |status| status.last_error.is_some()).await.last_error.unwrap();
        assert!(why.contains(expected), "{server}: {why}");
    }
}

#[tokio::test]
async fn lists_that_do_not_end_are_cut_and_broken_entries_left_out() {
    let bed =
        Bed::new(["endless-list", "circular-list", "broken-list"].map(|kind| target(kind, fixture(&[kind]))).into())
            .await;
    for (kind, count) in [("endless-list", 200), ("circular-list", 2), ("broken-list", 1)] {
        bed.wait(kind, Health::Up).await;
        assert_eq!(bed.pool.offer(&name(kind)).await.unwrap().tools.len(), count, "{kind}");
    }
}

#[tokio::test]
async fn a_server_that_is_used_no_more_ends_with_all_it_started_and_the_others_stay() {
    let bed =
        Bed::new(vec![target("a", fixture(&["marker-stays-a", "stays"])), target("b", fixture(&["marker-stays-b"]))])
            .await;
    bed.wait("a", Health::Up).await;
    bed.wait("b", Health::Up).await;
    bed.call("a", "children", json!({"for": 7532})).await.unwrap();
    let (a, b) = (server_process("marker-stays-a").unwrap(), server_process("marker-stays-b").unwrap());
    let sleeping = server_process("7532").unwrap();
    bed.pool.set(vec![target("b", fixture(&["marker-stays-b"]))]).await;
    wait_until("a server that is used no more", || !exists(a) && !exists(sleeping)).await;
    assert!(exists(b));
    assert_eq!(bed.status("b").connections, 1);
    assert!(matches!(bed.call("a", "echo", json!({})).await, Err(UpstreamError::Unknown(_))));
    let started = Instant::now();
    bed.pool.close().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(!exists(b));
}
