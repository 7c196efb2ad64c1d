//! The gateway as it is on the wire: statuses, headers, JSON-RPC errors, sessions.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod gateway_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gateway_support::{Fixture, Served};
use lares_config::GatewayMode;
use lares_tools::gateway::GatewaySettings;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};

const SETTINGS: GatewaySettings = GatewaySettings { max_sessions: 64, session_idle: Duration::from_secs(600) };
const ACCEPT: &str = "application/json, text/event-stream";

async fn serve(mode: GatewayMode) -> (Arc<Fixture>, Served) {
    let fixture = Fixture::new(mode, true);
    let served = fixture.serve(SETTINGS).await;
    (fixture, served)
}

/// Without certificates, whose reading takes longer than most tests.
fn client() -> Client {
    Client::builder().tls_built_in_root_certs(false).no_proxy().build().unwrap()
}

fn post(url: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    client().post(url).header("accept", ACCEPT).header("content-type", "application/json").body(body)
}

/// A request of 2026-07-28.
fn modern(url: &str, method: &str, mut params: Value) -> RequestBuilder {
    let name = params["name"].as_str().or(params["uri"].as_str()).map(ToOwned::to_owned);
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
    });
    match &mut params["_meta"] {
        Value::Object(given) => given.extend(meta.as_object().unwrap().clone()),
        absent => *absent = meta,
    }
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string();
    let request = post(url, body).header("mcp-protocol-version", "2026-07-28").header("mcp-method", method);
    name.into_iter().fold(request, |request, name| request.header("mcp-name", name))
}

/// A request in a session.
fn older(url: &str, session: &str, method: &str, params: Value) -> RequestBuilder {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string();
    post(url, body).header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25")
}

async fn open(url: &str, key: &str) -> String {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
        "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let answer = post(url, body.to_string()).header("x-test-key", key).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.headers()["mcp-session-id"].to_str().unwrap().to_owned()
}

/// The messages of an answer, from JSON or from a stream that ends.
async fn messages(answer: Response) -> Vec<Value> {
    let is_stream = answer.headers()["content-type"] == "text/event-stream";
    let text = tokio::time::timeout(Duration::from_secs(10), answer.text()).await.unwrap().unwrap();
    if !is_stream {
        return vec![serde_json::from_str(&text).unwrap()];
    }
    text.lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .filter_map(|data| serde_json::from_str(data).ok())
        .collect()
}

async fn last(request: RequestBuilder) -> Value {
    messages(request.send().await.unwrap()).await.pop().unwrap()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn what_is_no_message_is_refused_with_its_status() {
    let (_, served) = serve(GatewayMode::List).await;
    let url = served.url.as_str();
    let ping = || json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    let unsaid = client().post(url).body(ping());
    for (request, status, code) in [
        (post(url, "{\"jsonrpc\":"), 400, Some(-32700)),
        (post(url, format!("[{}]", ping())), 400, Some(-32600)),
        (post(url, "7"), 400, Some(-32600)),
        (post(url, ping()), 400, None),
        (post(url, ping()).header("mcp-session-id", "unknown"), 404, None),
        (post(url, ping()).header("mcp-protocol-version", "1999-01-01"), 400, None),
        (client().post(url).header("content-type", "application/json").body(ping()), 406, None),
        (unsaid.header("accept", ACCEPT).header("content-type", "text/plain"), 415, None),
        (post(url, "x".repeat(3 << 20)), 413, None),
        (post(url, ping()).header("origin", "https://evil.example"), 403, None),
        (post(url, ping()).header("host", "evil.example"), 421, None),
        (client().put(url), 405, None),
        (client().get(url), 406, None),
        (client().get(url).header("accept", "text/event-stream"), 400, None),
        (client().delete(url), 400, None),
        (client().delete(url).header("mcp-session-id", "unknown"), 404, None),
        (modern(&format!("{url}/none"), "tools/list", json!({})), 404, None),
    ] {
        let request = request.build().unwrap();
        let shown = format!("{} {:?}", request.method(), request.headers());
        let answer = client().execute(request).await.unwrap();
        assert_eq!(answer.status(), status, "{shown}");
        if let Some(code) = code {
            assert_eq!(messages(answer).await[0]["error"]["code"], code, "{shown}");
        }
    }
    assert_eq!(served.gateway.sessions(), 0);
}

#[tokio::test]
async fn the_stateless_era_checks_its_headers_and_has_no_sessions() {
    let (_, served) = serve(GatewayMode::List).await;
    let url = served.url.as_str();
    let answer = modern(url, "server/discover", json!({})).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("mcp-session-id")), (200, false));
    let found = &messages(answer).await[0]["result"];
    assert!(found["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")));
    assert_eq!(found["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "lares");
    for (method, params, status, code) in [
        ("ping", json!({}), 404, -32601),
        ("logging/setLevel", json!({"level": "info"}), 404, -32601),
        ("resources/subscribe", json!({"uri": "test://static-text"}), 404, -32601),
        ("no/such", json!({}), 404, -32601),
        ("tools/call", json!({"name": "nothing"}), 200, -32602),
        ("tools/list", json!({"cursor": "made-up"}), 200, -32602),
        ("resources/read", json!({"uri": "test://nothing"}), 200, -32602),
        ("prompts/get", json!({"name": "nothing"}), 200, -32602),
    ] {
        let answer = modern(url, method, params).send().await.unwrap();
        assert_eq!(answer.status(), status, "{method}");
        let error = &messages(answer).await[0];
        assert_eq!((&error["error"]["code"], &error["id"]), (&json!(code), &json!(7)), "{method}");
    }
    for (header, value) in [("mcp-method", "tools/list"), ("mcp-name", "other"), ("mcp-protocol-version", "2025-11-25")]
    {
        let mut request = modern(url, "tools/call", json!({"name": "fixture__slow"})).build().unwrap();
        request.headers_mut().insert(header, value.parse().unwrap());
        let answer = client().execute(request).await.unwrap();
        assert_eq!(answer.status(), 400, "{header}");
        assert_eq!(messages(answer).await[0]["error"]["code"], -32020, "{header}");
    }
    for method in ["tools/list", "resources/list", "resources/templates/list", "prompts/list"] {
        let result = &last(modern(url, method, json!({}))).await["result"];
        assert_eq!(result["cacheScope"], "private", "{method}");
        assert!(result["ttlMs"].as_u64().unwrap() > 0, "{method}");
    }
    // Whatever the tool server thinks of it: who may read it depends on the key.
    let read = last(modern(url, "resources/read", json!({"uri": "test://static-text"}))).await;
    assert_eq!((&read["result"]["cacheScope"], &read["result"]["ttlMs"]), (&json!("private"), &json!(60_000)));
    assert_eq!(served.gateway.sessions(), 0);
}

#[tokio::test]
async fn errors_of_tool_servers_keep_their_code_and_what_a_model_can_mend_is_a_result() {
    let (_, served) = serve(GatewayMode::Both).await;
    let url = served.url.as_str();
    for name in ["fixture__protocol_error", "call_tool"] {
        for (code, seen) in [(-32001, -32001), (-32602, -32602), (-32020, -32603), (-32022, -32603)] {
            let arguments = json!({"code": code.to_string()});
            let arguments = match name {
                "call_tool" => json!({"name": "fixture__protocol_error", "arguments": arguments}),
                _ => arguments,
            };
            let answer = last(modern(url, "tools/call", json!({"name": name, "arguments": arguments}))).await;
            assert_eq!(answer["error"]["code"], seen, "{name} {code}");
        }
    }
    let session = open(url, "anna").await;
    for request in [
        modern(url, "tools/call", json!({"name": "fixture__dead"})),
        older(url, &session, "tools/call", json!({"name": "fixture__dead"})),
        older(url, &session, "tools/call", json!({"name": "call_tool", "arguments": {"name": "fixture__dead"}})),
    ] {
        let result = &last(request).await["result"];
        assert_eq!(result["isError"], true);
        assert!(result["content"][0]["text"].as_str().unwrap().contains("not available"));
    }
    let missing = older(url, &session, "tools/call", json!({"arguments": {}}));
    assert_eq!(last(missing).await["error"]["code"], -32602);
    let unknown = older(url, &session, "tools/call", json!({"name": "nothing"}));
    assert_eq!(last(unknown).await["error"]["code"], -32602);
}

#[tokio::test]
async fn progress_has_the_token_of_the_client_and_metadata_of_a_hop_stays_on_it() {
    let (fixture, served) = serve(GatewayMode::Both).await;
    let url = served.url.as_str();
    let session = open(url, "anna").await;
    let direct = json!({"name": "fixture__test_tool_with_progress"});
    let through = json!({"name": "call_tool", "arguments": direct.clone()});
    for params in [direct, through] {
        let mut params = params;
        params["_meta"] = json!({"progressToken": "mine-7", "traceparent": "00-x"});
        for request in [modern(url, "tools/call", params.clone()), older(url, &session, "tools/call", params.clone())] {
            let messages = messages(request.send().await.unwrap()).await;
            let progress: Vec<_> = messages.iter().filter(|m| m["method"] == "notifications/progress").collect();
            assert_eq!(progress.len(), 3, "{messages:?}");
            assert!(progress.iter().all(|m| m["params"]["progressToken"] == "mine-7"));
            assert_eq!(messages.last().unwrap()["result"]["content"][0]["text"], "done");
        }
    }
    for params in fixture.seen.lock().unwrap().iter() {
        let meta = serde_json::to_value(params.meta.as_ref().unwrap()).unwrap();
        assert_eq!((&meta["progressToken"], &meta["traceparent"]), (&json!("mine-7"), &json!("00-x")));
        assert!(meta.get("io.modelcontextprotocol/clientCapabilities").is_none(), "{meta}");
    }
    // Nobody asked for progress: none is sent.
    let silent = modern(url, "tools/call", json!({"name": "fixture__test_tool_with_progress"}));
    assert_eq!(messages(silent.send().await.unwrap()).await.len(), 1);
}

#[tokio::test]
async fn log_messages_come_from_the_level_on_that_was_asked_for() {
    let (_, served) = serve(GatewayMode::List).await;
    let url = served.url.as_str();
    let logging = |level: Value| {
        let mut params = json!({"name": "fixture__test_tool_with_logging"});
        if !level.is_null() {
            params["_meta"] = json!({"io.modelcontextprotocol/logLevel": level});
        }
        modern(url, "tools/call", params)
    };
    for (level, count) in [(Value::Null, 0), (json!("debug"), 3), (json!("info"), 3), (json!("error"), 0)] {
        let all = messages(logging(level.clone()).send().await.unwrap()).await;
        assert_eq!(all.iter().filter(|m| m["method"] == "notifications/message").count(), count, "{level}");
    }
}

#[tokio::test]
async fn a_call_ends_when_its_client_cancels_or_goes_away() {
    let (fixture, served) = serve(GatewayMode::Both).await;
    let url = served.url.as_str();
    let slow = json!({"name": "call_tool", "arguments": {"name": "fixture__slow"}});
    let gone = tokio::spawn(modern(url, "tools/call", slow.clone()).send());
    eventually("it runs", || fixture.running.load(Ordering::SeqCst) == 1).await;
    gone.abort();
    eventually("it was told", || fixture.cancelled.load(Ordering::SeqCst) == 1).await;

    let session = open(url, "anna").await;
    let waiting = tokio::spawn(older(url, &session, "tools/call", slow).send());
    eventually("it runs", || fixture.running.load(Ordering::SeqCst) == 1).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    let cancel = post(url, cancel.to_string()).header("mcp-session-id", &session).send().await.unwrap();
    assert_eq!(cancel.status(), 202);
    eventually("it was told", || fixture.cancelled.load(Ordering::SeqCst) == 2).await;
    assert_eq!(fixture.running.load(Ordering::SeqCst), 0);
    drop(waiting);
}

#[tokio::test]
async fn a_session_is_for_the_key_and_the_toolset_it_was_opened_with() {
    let (_, served) = serve(GatewayMode::List).await;
    let url = served.url.as_str();
    let selected = format!("{url}/some");
    let session = open(url, "anna").await;
    for (url, key, status) in [(url, "anna", 200), (url, "bert", 404), (selected.as_str(), "anna", 404)] {
        let ping = older(url, &session, "ping", json!({})).header("x-test-key", key).send().await.unwrap();
        assert_eq!(ping.status(), status, "{url} {key}");
        if status == 404 {
            for method in [Method::GET, Method::DELETE] {
                let request = client().request(method.clone(), url).header("mcp-session-id", &session);
                let request = request.header("accept", "text/event-stream").header("x-test-key", key);
                assert_eq!(request.send().await.unwrap().status(), 404, "{method} {url} {key}");
            }
        }
    }
    let end = client().delete(url).header("mcp-session-id", &session).send().await.unwrap();
    assert!(end.status().is_success());
    assert_eq!(older(url, &session, "ping", json!({})).send().await.unwrap().status(), 404);
    assert_eq!(served.gateway.sessions(), 0);
}

#[tokio::test]
async fn two_thousand_sessions_leave_nothing_behind() {
    let (fixture, served) = serve(GatewayMode::List).await;
    let url = served.url.as_str();
    let shared = client();
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25",
        "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}});
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for round in 0..2000 {
        let request = shared.post(url).header("accept", ACCEPT).header("content-type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        let session = answer.headers()["mcp-session-id"].to_str().unwrap().to_owned();
        answer.bytes().await.unwrap();
        if round % 10 == 0 {
            // Some say hello properly and watch something, so that what belongs to them has to go as well.
            let hello = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
            let hello = post(url, hello.to_string()).header("mcp-session-id", &session);
            assert_eq!(hello.send().await.unwrap().status(), 202);
            let watch = older(url, &session, "resources/subscribe", json!({"uri": "test://watched-resource"}));
            assert!(last(watch).await["result"].is_object());
        }
        if round % 3 == 0 {
            shared.delete(url).header("mcp-session-id", &session).send().await.unwrap();
        }
        assert!(served.gateway.sessions() <= SETTINGS.max_sessions);
    }
    let idle = open(url, "anna").await;
    assert_eq!(older(url, &idle, "ping", json!({})).send().await.unwrap().status(), 200);
    assert!(served.gateway.sessions() > SETTINGS.max_sessions / 2);
    // What is open has a few tasks a session; the others have none.
    eventually("tasks of sessions end", || tasks() < before + 8 * SETTINGS.max_sessions).await;
    drop(served);
    eventually("all is over", || tasks() < before + 16).await;
    eventually("what was watched is let go", || {
        let watched = fixture.watched.lock().unwrap();
        !watched.is_empty() && watched.iter().filter(|(_, watch)| *watch).count() * 2 == watched.len()
    })
    .await;
}

#[tokio::test]
async fn the_session_idle_longest_gives_way_and_idle_ones_end() {
    let fixture = Fixture::new(GatewayMode::List, true);
    let settings = GatewaySettings { max_sessions: 2, session_idle: Duration::from_millis(300) };
    let served = fixture.serve(settings).await;
    let url = served.url.as_str();
    let (first, second) = (open(url, "anna").await, open(url, "anna").await);
    assert_eq!(older(url, &first, "ping", json!({})).send().await.unwrap().status(), 200);
    let third = open(url, "anna").await;
    for (session, status) in [(&first, 200), (&second, 404), (&third, 200)] {
        assert_eq!(older(url, session, "ping", json!({})).send().await.unwrap().status(), status);
    }
    eventually("idle sessions end", || served.gateway.sessions() == 0).await;
    assert_eq!(older(url, &third, "ping", json!({})).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn a_call_waits_for_the_answer_of_a_stateless_client_and_of_nobody_else() {
    let (_, served) = serve(GatewayMode::Both).await;
    let url = served.url.as_str();
    let ask = json!({"name": "call_tool", "arguments": {"name": "fixture__test_elicitation", "arguments": {"message": "Who?"}}});
    let asked = last(modern(url, "tools/call", ask.clone())).await;
    let (state, questions) = (&asked["result"]["requestState"], &asked["result"]["inputRequests"]);
    assert_eq!(asked["result"]["resultType"], "input_required");
    let (name, question) = questions.as_object().unwrap().iter().next().unwrap();
    assert_eq!((&question["method"], &question["params"]["message"]), (&json!("elicitation/create"), &json!("Who?")));
    assert_eq!(served.gateway.waiting_calls(), 1);

    let answering = |state: &Value, answer: Value| {
        let mut again = ask.clone();
        again["requestState"] = state.clone();
        again["inputResponses"] = json!({ name: answer });
        again
    };
    let good = json!({"action": "accept", "content": {"username": "u", "email": "e"}});
    // Another key, another call, a state that never was.
    let foreign = modern(url, "tools/call", answering(state, good.clone())).header("x-test-key", "bert");
    assert_eq!(last(foreign).await["error"]["code"], -32602);
    let mut other = answering(state, good.clone());
    other["arguments"]["arguments"]["message"] = json!("Me!");
    assert_eq!(last(modern(url, "tools/call", other)).await["error"]["code"], -32602);
    let made_up = answering(&json!("lares-call:0"), good.clone());
    assert_eq!(last(modern(url, "tools/call", made_up)).await["error"]["code"], -32602);

    // An answer that is none: the question comes again.
    let again = last(modern(url, "tools/call", answering(state, json!(12)))).await;
    assert_eq!(again["result"]["resultType"], "input_required");
    let state = &again["result"]["requestState"];
    let done = last(modern(url, "tools/call", answering(state, good.clone()))).await;
    let text = done["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("accept") && text.contains("\"username\":\"u\""), "{text}");
    assert_eq!(served.gateway.waiting_calls(), 0);
    assert_eq!(last(modern(url, "tools/call", answering(state, good))).await["error"]["code"], -32602);
}
