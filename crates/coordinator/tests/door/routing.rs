//! Where requests go, and what arrives there.

use axum::body::Body;
use axum::extract::Request;
use futures_util::future::join_all;
use lares_config::Model;
use lares_coordinator::request::Endpoint;
use lares_llama::testing::reserved_port;
use serde_json::json;

use crate::rig::{Rig, body, bytes_of, config, json_of, with_local, with_remote};
use crate::stub::{Act, Stub};

#[tokio::test]
async fn requests_go_to_the_least_loaded_upstream() {
    let (one, two) = (Stub::always(Act::chat().late(300)).await, Stub::always(Act::chat().late(300)).await);
    let mut config = config();
    with_remote(&mut config, "one", one.port, 2, &["m"]);
    with_remote(&mut config, "two", two.port, 4, &["m"]);
    let rig = Rig::new(&config).await;
    let answers = join_all((0..6).map(|_| rig.chat("m"))).await;
    assert!(answers.iter().all(|answer| answer.status() == 200));
    // In proportion to what each can take.
    assert_eq!((one.count(), two.count()), (2, 4));
}

#[tokio::test]
async fn an_alias_is_rewritten_and_every_other_byte_kept() {
    let stub = Stub::always(Act::chat()).await;
    let mut config = config();
    with_local(&mut config, "qwen", stub.port, Model { aliases: vec!["coder".into()], ..Model::default() });
    let rig = Rig::new(&config).await;
    let sent = "{\"tools\": [ {\"x\" :1.0} ],\n\"model\" : \"NAME\", \"response_format\":{\"type\":\"json_schema\"},\
                \"unknown\":\"\\u00e9 \\/\",\"n\":1e2}";
    for name in ["qwen", "coder"] {
        let response = rig.ask(Endpoint::ChatCompletions, sent.replace("NAME", name)).await;
        assert_eq!(response.status(), 200);
    }
    let received = stub.received();
    assert_eq!(received[0].body, sent.replace("NAME", "qwen"));
    assert_eq!(received[1].body, sent.replace("NAME", "qwen"));
}

#[tokio::test]
async fn the_answer_comes_back_byte_for_byte_without_the_upstreams_own_headers() {
    let stub = Stub::always(Act::chat()).await;
    let mut config = config();
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let response = rig.chat("m").await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(!response.headers().contains_key("server"));
    let Act::Json(_, expected) = Act::chat() else { panic!("chat is JSON") };
    assert_eq!(bytes_of(response).await, expected.to_string());
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.status), ("ok", Some(200)));
    assert_eq!((event.prompt_tokens, event.completion_tokens), (Some(11), Some(2)));
    assert_eq!((event.model.as_deref(), event.upstream.as_deref()), (Some("m"), Some("one")));
    assert!(event.first_byte.is_some_and(|first_byte| first_byte <= event.latency));
}

#[tokio::test]
async fn an_upstream_gets_its_own_key_and_never_the_clients() {
    let stub = Stub::always(Act::chat()).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    std::fs::write(dir.path().join("keys/llama.key"), "local-secret\n").unwrap();
    std::fs::write(dir.path().join("remote.key"), "remote-secret").unwrap();
    let mut config = config();
    config.state_dir = dir.path().to_path_buf();
    with_local(&mut config, "local", stub.port, Model::default());
    with_remote(&mut config, "box", stub.port, 1, &["remote"]);
    with_remote(&mut config, "open", stub.port, 1, &["keyless"]);
    config.coordinator.upstreams.get_mut("box").unwrap().api_key_file = Some(dir.path().join("remote.key"));
    let rig = Rig::new(&config).await;
    for model in ["local", "remote", "keyless"] {
        let request = Request::post("/v1/chat/completions")
            .header("authorization", "Bearer lares_client")
            .header("x-api-key", "lares_client")
            .header("traceparent", "00-1-2-3")
            .body(Body::from(body(model, false)))
            .unwrap();
        assert_eq!(rig.ask_as(0, Endpoint::ChatCompletions, request).await.status(), 200);
    }
    let received = stub.received();
    assert_eq!(received[0].headers["authorization"], "Bearer local-secret");
    assert_eq!(received[1].headers["authorization"], "Bearer remote-secret");
    assert!(!received[2].headers.contains_key("authorization"));
    for request in received {
        assert!(!request.headers.contains_key("x-api-key"));
        assert_eq!(request.headers["traceparent"], "00-1-2-3");
        assert_eq!(request.path, "/v1/chat/completions");
    }
}

#[tokio::test]
async fn embeddings_only_models_are_not_asked_to_chat() {
    let stub = Stub::always(Act::Json(200, json!({"data": [], "usage": {"prompt_tokens": 3}}))).await;
    let mut config = config();
    with_local(&mut config, "minilm", stub.port, Model { embeddings: true, ..Model::default() });
    let rig = Rig::new(&config).await;
    let response = rig.chat("minilm").await;
    assert_eq!(response.status(), 400);
    let error = json_of(response).await["error"].take();
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("embeddings only"), "{error}");
    assert_eq!(stub.count(), 0);
    let response = rig.ask(Endpoint::Embeddings, r#"{"model":"minilm","input":"x"}"#).await;
    assert_eq!(response.status(), 200);
    drop(bytes_of(response).await);
    assert_eq!(stub.received()[0].path, "/v1/embeddings");
    let events = rig.events();
    assert_eq!(events.iter().map(|event| event.outcome.as_str()).collect::<Vec<_>>(), ["client_error", "ok"]);
    assert_eq!((events[1].prompt_tokens, events[1].completion_tokens), (Some(3), None));
}

#[tokio::test]
async fn an_unknown_model_is_404_with_the_names_there_are() {
    let mut config = config();
    with_remote(&mut config, "one", reserved_port(), 1, &["qwen-coder"]);
    let rig = Rig::new(&config).await;
    let response = rig.chat("qwen-codr").await;
    assert_eq!(response.status(), 404);
    let error = json_of(response).await["error"].take();
    assert_eq!(error["code"], "model_not_found");
    assert!(error["message"].as_str().unwrap().contains("did you mean `qwen-coder`?"), "{error}");
    assert_eq!(rig.only_event().await.status, Some(404));
}
