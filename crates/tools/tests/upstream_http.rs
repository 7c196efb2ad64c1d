//! Tool servers behind a URL.
#![allow(clippy::unwrap_used)]

#[path = "upstream_support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use lares_tools::api::Health;
use lares_tools::port::{Transport, UpstreamError, Upstreams};
use serde_json::{Value, json};
use support::*;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a server saw.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    methods: Mutex<Vec<String>>,
}

struct Site {
    at: SocketAddr,
    seen: Arc<Seen>,
    serving: JoinHandle<()>,
}

impl Site {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(at: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let counted = seen.clone();
        let listener = listener.tap_io(move |_| {
            counted.connections.fetch_add(1, Ordering::AcqRel);
        });
        let router = Router::new()
            .route("/away/{kind}", post(|| async { Redirect::temporary("/both") }))
            .route("/{kind}", post(answer))
            .route("/{kind}", get(|| async { StatusCode::METHOD_NOT_ALLOWED }).delete(|| async { StatusCode::OK }))
            .with_state(seen.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { at, seen, serving }
    }

    fn url(&self, kind: &str) -> String {
        format!("http://{}/{kind}", self.at)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(seen): State<Arc<Seen>>, Path(kind): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    seen.requests.fetch_add(1, Ordering::AcqRel);
    let message: Value = serde_json::from_slice(&body).unwrap();
    let id = message["id"].clone();
    let method = message["method"].as_str().unwrap_or_default().to_owned();
    seen.methods.lock().unwrap().push(method.clone());
    if id.is_null() {
        return StatusCode::ACCEPTED.into_response();
    }
    let json = |value: Value| ([("content-type", "application/json")], value.to_string()).into_response();
    let result = |result: Value| json(json!({"jsonrpc": "2.0", "id": id, "result": result}));
    let has = json!({"tools": {}});
    match method.as_str() {
        "server/discover" if kind == "both" => result(json!({
            "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
            "capabilities": has,
        })),
        "server/discover" => (StatusCode::BAD_REQUEST, "no session").into_response(),
        "initialize" => {
            let session = [("mcp-session-id", "one"), ("content-type", "application/json")];
            let result = json!({
                "protocolVersion": "2025-11-25", "capabilities": has, "serverInfo": {"name": "site", "version": "1"},
            });
            (session, json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()).into_response()
        }
        _ if kind == "old" && headers.get("mcp-session-id").is_none_or(|session| session != "one") => {
            StatusCode::BAD_REQUEST.into_response()
        }
        "ping" => result(json!({})),
        "tools/list" => result(json!({"tools": [{"name": "headers", "inputSchema": {"type": "object"}}]})),
        "tools/call" => {
            let text = |text: &str| json!({"content": [{"type": "text", "text": text}]});
            match message["params"]["name"].as_str().unwrap_or_default() {
                "headers" => result(text(&format!("{headers:?}"))),
                "huge" => result(text(&"x".repeat(200_000))),
                "huge-event" => {
                    let message = json!({"jsonrpc": "2.0", "id": id, "result": text(&"x".repeat(200_000))});
                    ([("content-type", "text/event-stream")], format!("data: {message}\n\n")).into_response()
                }
                "drip" => {
                    let drops = futures_util::stream::repeat(())
                        .then(|()| tokio::time::sleep(Duration::from_millis(20)))
                        .map(|()| Ok::<_, Infallible>(Bytes::from_static(b" ")));
                    ([("content-type", "application/json")], Body::from_stream(drops)).into_response()
                }
                _ => std::future::pending().await,
            }
        }
        _ => json(json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no such method"}})),
    }
}

#[tokio::test]
async fn both_eras_are_spoken_and_headers_come_from_files() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "Bearer hunter2-hunter2\n").unwrap();
    let bed = Bed::new(
        ["both", "old"]
            .map(|kind| {
                let mut target = endpoint(kind, &site.url(kind));
                let Transport::Http(endpoint) = &mut target.transport else { unreachable!() };
                endpoint.header_files.insert("Authorization".to_owned(), dir.path().join("key"));
                endpoint.headers.insert("X-Team".to_owned(), "attic-attic".to_owned());
                assert!(!format!("{endpoint:?}").contains("attic-attic"), "{endpoint:?}");
                target
            })
            .into(),
    )
    .await;
    for (kind, protocol) in [("both", "2026-07-28"), ("old", "2025-11-25")] {
        assert_eq!(bed.wait(kind, Health::Up).await.protocol.as_deref(), Some(protocol));
        assert_eq!(bed.pool.offer(&name(kind)).await.unwrap().tools.len(), 1);
        let headers = bed.call(kind, "headers", json!({})).await.unwrap();
        assert!(headers.contains("hunter2-hunter2") && headers.contains("attic-attic"), "{headers}");
        assert_eq!(headers.contains("mcp-session-id"), kind == "old", "{headers}");
    }
}

#[tokio::test]
async fn rounds_reuse_connections() {
    let site = Site::start().await;
    let bed = Bed::new(["both", "old"].map(|kind| endpoint(kind, &site.url(kind))).into()).await;
    for kind in ["both", "old"] {
        bed.wait(kind, Health::Up).await;
    }
    let (before, open) = (site.seen.connections.load(Ordering::Acquire), descriptors());
    for _ in 0..500 {
        for kind in ["both", "old"] {
            bed.pool.offer(&name(kind)).await.unwrap();
        }
    }
    let after = site.seen.connections.load(Ordering::Acquire);
    assert!(after <= before + 4, "{before} connections before, {after} after; {open} descriptors before");
}

#[tokio::test]
async fn nothing_on_this_machine_is_reached_that_nobody_allowed() {
    let site = Site::start().await;
    let port = site.at.port();
    let urls = [
        ("literal", site.url("both")),
        ("name", format!("http://localhost:{port}/both")),
        ("mapped", format!("http://[::ffff:127.0.0.1]:{port}/both")),
        ("octal", format!("http://0177.0.0.1:{port}/both")),
    ];
    let targets = urls.iter().map(|(server, url)| {
        let mut target = endpoint(server, url);
        let Transport::Http(endpoint) = &mut target.transport else { unreachable!() };
        endpoint.loopback = false;
        target
    });
    let bed = Bed::new(targets.collect()).await;
    for (server, _) in &urls {
        let why = bed.wait_for(server, |status| status.last_error.is_some()).await.last_error.unwrap();
        assert!(why.contains("on this machine"), "{server}: {why}");
    }
    assert_eq!(site.seen.connections.load(Ordering::Acquire), 0);
    let allowed = Bed::new(vec![endpoint("name", &urls[1].1)]).await;
    allowed.wait("name", Health::Up).await;
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let site = Site::start().await;
    let bed = Bed::new(vec![endpoint("s", &site.url("away/both"))]).await;
    let why = bed.wait_for("s", |status| status.last_error.is_some()).await.last_error.unwrap();
    assert!(why.contains("307"), "{why}");
    assert_eq!(site.seen.requests.load(Ordering::Acquire), 0);
}

#[tokio::test]
async fn answers_that_are_too_large_or_too_slow_fail_their_call_only() {
    let site = Site::start().await;
    for kind in ["both", "old"] {
        let mut target = endpoint("s", &site.url(kind));
        target.call_timeout = Duration::from_millis(500);
        let bed = Bed::new(vec![target]).await;
        bed.wait("s", Health::Up).await;
        for tool in ["huge", "huge-event"] {
            let huge = bed.call("s", tool, json!({})).await;
            assert!(matches!(huge, Err(UpstreamError::TooLarge { .. })), "{kind} {tool}: {huge:?}");
        }
        for tool in ["drip", "hang", "drip", "hang"] {
            let started = Instant::now();
            let slow = bed.call("s", tool, json!({})).await;
            assert!(matches!(slow, Err(UpstreamError::Timeout { .. })), "{kind} {tool}: {slow:?}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
        assert!(bed.call("s", "headers", json!({})).await.is_ok());
        assert_eq!(bed.status("s").connections, 1);
    }
}

#[tokio::test]
async fn a_site_that_goes_away_is_noticed_and_found_again() {
    for kind in ["both", "old"] {
        let site = Site::start().await;
        let at = site.at;
        let bed = Bed::new(vec![endpoint("s", &site.url(kind))]).await;
        bed.wait("s", Health::Up).await;
        drop(site);
        wait_until("the port is free", || std::net::TcpListener::bind(at).is_ok()).await;
        // A connection that was open may still be answered.
        let lost = async {
            while bed.call("s", "headers", json!({})).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, lost).await.unwrap();
        bed.wait_for("s", |status| status.last_error.is_some()).await;
        let site = Site::start_at(at).await;
        bed.wait("s", Health::Up).await;
        assert!(bed.call("s", "headers", json!({})).await.is_ok());
        assert!(!site.seen.methods.lock().unwrap().is_empty());
    }
}
