//! A whole surface on a real port: bound, asked, and stopped.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use lares_gate::{Caller, Gate, Json, Metrics, Problem, Role, Secret, Surface};
use lares_store::keys::Key;
use lares_store::testing::Cluster;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Says who asks.
#[utoipa::path(get, path = "/me", responses((status = 200, body = Value)))]
async fn me(caller: Caller) -> Result<Json<Value>, Problem> {
    Ok(Json(serde_json::json!({ "name": caller.name, "role": caller.role, "key": caller.key_id })))
}

/// Sends one request and returns the status line and the body.
async fn ask(address: SocketAddr, path: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_surface_is_bound_asked_and_stopped() {
    let store = Cluster::shared().await.store().await;
    let secret = Secret::generate().unwrap();
    let key = Key::new("vera", Role::Viewer, secret.hash());
    store.keys().insert(&key).await.unwrap();
    let shutdown = CancellationToken::new();
    let gate = Gate::open(store.clone(), &lares_config::Gate::default(), shutdown.clone()).await.unwrap();
    let bound = Surface::new("example", gate, Metrics::new())
        .routes(Role::Viewer, OpenApiRouter::new().routes(routes!(me)))
        .ready_check("store", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|error| error.to_string()) }
        })
        .bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let address = bound.local_addr().unwrap();
    let running = tokio::spawn(bound.run(shutdown.clone()));

    let own = format!("Host: {address}\r\n");
    let with_key = format!("{own}Authorization: Bearer {}\r\n", secret.expose());
    let (status, body) = ask(address, "/me", &with_key).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let said: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(said, serde_json::json!({ "name": "vera", "role": "viewer", "key": key.id }));

    assert_eq!(ask(address, "/me", &own).await.0, "HTTP/1.1 401 Unauthorized");
    let (status, body) = ask(address, "/ready", &own).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(body, r#"{"status":"ready","checks":[{"name":"keys","state":"ok"},{"name":"store","state":"ok"}]}"#);
    let rebound = with_key.replace(&own, "Host: evil.example\r\n");
    assert_eq!(ask(address, "/me", &rebound).await.0, "HTTP/1.1 421 Misdirected Request");
    let page = format!("{with_key}Origin: https://evil.example\r\n");
    assert_eq!(ask(address, "/me", &page).await.0, "HTTP/1.1 403 Forbidden");

    shutdown.cancel();
    timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
