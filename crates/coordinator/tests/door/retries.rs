//! What is tried again, and what never is.

use std::time::{Duration, Instant};

use lares_config::Model;
use lares_llama::testing::reserved_port;
use serde_json::json;

use crate::rig::{Rig, bytes_of, config, json_of, with_local, with_remote};
use crate::stub::{Act, Stub};

#[tokio::test]
async fn a_try_that_dies_before_the_first_byte_is_made_again() {
    for death in [Act::Die, Act::DieAfterHead] {
        let stub = Stub::start(move |nth| if nth == 0 { death.clone() } else { Act::chat() }).await;
        let mut config = config();
        with_remote(&mut config, "one", stub.port, 1, &["m"]);
        let rig = Rig::new(&config).await;
        let response = rig.chat("m").await;
        assert_eq!(response.status(), 200);
        drop(bytes_of(response).await);
        assert_eq!(stub.count(), 2);
        let event = rig.only_event().await;
        assert_eq!((event.outcome.as_str(), &event.detail["attempts"]), ("ok", &json!(2)));
    }
}

#[tokio::test]
async fn another_upstream_takes_over_from_one_that_cannot_be_reached() {
    let alive = Stub::always(Act::chat()).await;
    let mut config = config();
    with_remote(&mut config, "dead", reserved_port(), 8, &["m"]);
    with_remote(&mut config, "live", alive.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    for _ in 0..4 {
        let response = rig.chat("m").await;
        assert_eq!(response.status(), 200);
        drop(bytes_of(response).await);
    }
    let tries: u64 = rig.events().iter().map(|event| event.detail["attempts"].as_u64().unwrap()).sum();
    assert_eq!(tries, 5, "the dead one is tried once and then avoided");
    assert!(rig.events().iter().all(|event| event.upstream.as_deref() == Some("live")));
}

#[tokio::test]
async fn nothing_is_made_again_after_the_first_byte() {
    let stub = Stub::always(Act::Events { pieces: vec![(0, "data: {}\n\n".into())], dies: true }).await;
    let mut config = config();
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    drop(bytes_of(rig.stream("m").await).await);
    assert_eq!(stub.count(), 1);
    assert_eq!(rig.only_event().await.outcome, "upstream_error");
}

#[tokio::test]
async fn a_client_error_is_passed_on_at_once_and_unchanged() {
    let error = json!({"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error", "n_ctx": 1}});
    let stub = Stub::always(Act::Json(400, error.clone())).await;
    let mut config = config();
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let response = rig.chat("m").await;
    assert_eq!(response.status(), 400);
    assert_eq!(bytes_of(response).await, error.to_string());
    assert_eq!(stub.count(), 1);
    assert_eq!(rig.only_event().await.outcome, "client_error");
}

#[tokio::test]
async fn a_busy_upstream_is_asked_as_often_as_configured() {
    for status in [502, 503, 429] {
        let stub = Stub::always(Act::Text(status, "<html>busy</html>")).await;
        let mut config = config();
        config.coordinator.retries = 1;
        with_remote(&mut config, "one", stub.port, 1, &["m"]);
        let rig = Rig::new(&config).await;
        let response = rig.chat("m").await;
        assert_eq!(response.status(), status);
        let error = json_of(response).await["error"].take();
        assert_eq!(stub.count(), 2);
        assert!(error["message"].as_str().unwrap().contains("<html>busy</html>"), "{error}");
        assert_eq!(rig.only_event().await.outcome, "upstream_error");
    }
}

#[tokio::test]
async fn a_loading_model_is_waited_for_without_using_up_retries() {
    let stub = Stub::start(|nth| if nth < 4 { Act::loading() } else { Act::chat() }).await;
    let mut config = config();
    config.coordinator.retries = 0;
    with_local(&mut config, "m", stub.port, Model::default());
    let rig = Rig::new(&config).await;
    let response = rig.chat("m").await;
    assert_eq!(response.status(), 200);
    assert_eq!(stub.count(), 5);
}

#[tokio::test]
async fn a_model_that_never_gets_ready_is_given_up_with_the_queues_timeout() {
    let stub = Stub::always(Act::loading()).await;
    let mut config = config();
    config.coordinator.queue_timeout = Duration::from_millis(700);
    with_local(&mut config, "m", stub.port, Model::default());
    let rig = Rig::new(&config).await;
    let began = Instant::now();
    let response = rig.chat("m").await;
    assert!(began.elapsed() >= Duration::from_millis(700) && began.elapsed() < Duration::from_secs(3));
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let error = json_of(response).await["error"].take();
    assert_eq!(error["code"], "upstream_not_ready");
    assert!(error["message"].as_str().unwrap().contains("Loading model"), "{error}");
}

#[tokio::test]
async fn a_local_server_that_is_started_again_is_waited_for() {
    let port = reserved_port();
    let mut config = config();
    config.coordinator.retries = 0;
    with_local(&mut config, "m", port, Model::default());
    let rig = Rig::new(&config).await;
    let restart = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        Stub::start_at(port, |_| Act::chat()).await
    };
    let (response, _stub) = tokio::join!(rig.chat("m"), restart);
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_502() {
    let mut config = config();
    with_remote(&mut config, "gone", reserved_port(), 1, &["m"]);
    let rig = Rig::new(&config).await;
    let response = rig.chat("m").await;
    assert_eq!(response.status(), 502);
    assert_eq!(json_of(response).await["error"]["code"], "upstream_unreachable");
    let event = rig.only_event().await;
    assert_eq!(event.detail["attempts"], 3);
    assert_eq!((event.outcome.as_str(), event.status, event.prompt_tokens), ("upstream_error", Some(502), None));
}

#[tokio::test]
async fn an_upstream_that_refuses_our_key_is_not_blamed_on_the_client() {
    let stub = Stub::always(Act::Json(401, json!({"error": {"message": "Incorrect API key provided: sk-abc"}}))).await;
    let mut config = config();
    with_remote(&mut config, "box", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let response = rig.chat("m").await;
    assert_eq!(response.status(), 502);
    let error = json_of(response).await["error"].take();
    assert_eq!(error["code"], "upstream_refused_key");
    assert!(!error.to_string().contains("sk-abc"));
}
