//! The gate against a real PostgreSQL: who gets in, and how fast a change of a key is seen.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;

use http::{Request, StatusCode};
use lares_gate::{Caller, Gate, GateError, Role, Secret};
use lares_store::Store;
use lares_store::keys::Key;
use lares_store::testing::{Cluster, TestDatabase};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

async fn add(store: &Store, name: &str, role: Role) -> (Secret, Key) {
    let secret = Secret::generate().unwrap();
    let key = Key::new(name, role, secret.hash());
    store.keys().insert(&key).await.unwrap();
    (secret, key)
}

fn app(gate: &Gate) -> Router {
    Router::new().route("/", get(|caller: Caller| async move { caller.name })).route_layer(gate.require(Role::Client))
}

async fn ask(app: &Router, secret: &Secret) -> StatusCode {
    let request = Request::get("/").header("authorization", format!("Bearer {}", secret.expose()));
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
}

/// How long it takes until the answer is `wanted`.
async fn until(app: &Router, secret: &Secret, wanted: u16) -> Duration {
    let began = Instant::now();
    while ask(app, secret).await != wanted {
        assert!(began.elapsed() < Duration::from_secs(10), "still not {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// Brings what was committed to disk: the clusters of tests are stopped at once and write late.
async fn keep(database: &TestDatabase) {
    database.client().await.batch_execute("CHECKPOINT").await.unwrap();
}

/// Refreshes too seldom to hide a lost announcement.
fn seldom() -> lares_config::Gate {
    lares_config::Gate { keys_refresh: Duration::from_secs(3600), keys_max_age: Duration::from_secs(7200) }
}

#[tokio::test]
async fn without_any_good_key_the_gate_refuses_to_open() {
    let store = Cluster::shared().await.store().await;
    let refused = Gate::open(store.clone(), &seldom(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, GateError::NoKeys) && refused.to_string().contains("lares key create"), "{refused}");
    let (_, key) = add(&store, "revoked", Role::Admin).await;
    store.keys().revoke(key.id).await.unwrap();
    let refused = Gate::open(store.clone(), &seldom(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, GateError::NoKeys));
}

#[tokio::test]
async fn keys_made_and_revoked_elsewhere_are_seen_within_a_second() {
    let database = Cluster::shared().await;
    let (here, elsewhere) = (database.store().await, database.store().await);
    let (admin, _) = add(&here, "admin", Role::Admin).await;
    let shutdown = CancellationToken::new();
    let gate = Gate::open(here.clone(), &seldom(), shutdown.clone()).await.unwrap();
    let app = app(&gate);
    assert_eq!(ask(&app, &admin).await, 200);

    let (client, key) = add(&elsewhere, "client", Role::Client).await;
    assert!(until(&app, &client, 200).await < Duration::from_secs(1));
    let (viewer, _) = add(&elsewhere, "viewer", Role::Viewer).await;
    assert!(until(&app, &viewer, 403).await < Duration::from_secs(1));
    assert!(elsewhere.keys().revoke(key.id).await.unwrap());
    assert!(until(&app, &client, 401).await < Duration::from_secs(1));
    assert_eq!(ask(&app, &admin).await, 200);
    shutdown.cancel();
}

#[tokio::test]
async fn while_postgresql_is_away_keys_stay_good_until_they_are_too_old() {
    let cluster = Cluster::start().await;
    let database = cluster.database("outage").await;
    let store = database.store().await;
    let (admin, _) = add(&store, "admin", Role::Admin).await;
    keep(&database).await;
    let config = lares_config::Gate { keys_refresh: Duration::from_millis(200), keys_max_age: Duration::from_secs(2) };
    let shutdown = CancellationToken::new();
    let gate = Gate::open(store.clone(), &config, shutdown.clone()).await.unwrap();
    let app = app(&gate);

    cluster.stop().await;
    let stopped = Instant::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ask(&app, &admin).await, 200, "asked {:?} after the stop", stopped.elapsed());
    until(&app, &admin, 503).await;
    let unknown = Secret::generate().unwrap();
    assert_eq!(ask(&app, &unknown).await, 503, "nobody is told anything by keys that are too old");

    cluster.restart().await;
    until(&app, &admin, 200).await;
    shutdown.cancel();
}

#[tokio::test]
async fn a_key_revoked_while_the_announcements_were_cut_is_seen_after_they_are_back() {
    let cluster = Cluster::start().await;
    let database = cluster.database("gap").await;
    let store = database.store().await;
    let (admin, key) = add(&store, "admin", Role::Admin).await;
    let (client, _) = add(&store, "client", Role::Client).await;
    keep(&database).await;
    let shutdown = CancellationToken::new();
    let gate = Gate::open(store.clone(), &seldom(), shutdown.clone()).await.unwrap();
    let app = app(&gate);
    cluster.stop().await;
    cluster.restart().await;
    // The gate's own listener may be back before or after this; either way it must not miss the change.
    let store = database.store().await;
    assert!(store.keys().revoke(key.id).await.unwrap());
    until(&app, &admin, 401).await;
    assert_eq!(ask(&app, &client).await, 200);
    shutdown.cancel();
}
