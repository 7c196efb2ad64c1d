//! Everything together over TCP: the gate, OpenAI's errors, and the events in a real PostgreSQL.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lares_config::{Config, Model};
use lares_gate::{Role, Secret};
use lares_llama::testing::reserved_port;
use lares_store::Store;
use lares_store::events::Event;
use lares_store::keys::Key;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::rig::{body, config, with_local, with_remote};
use crate::stub::{Act, Stub};

pub struct Served {
    pub base: String,
    pub key: String,
    pub viewer: String,
    pub store: Store,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
    _database: lares_store::testing::TestDatabase,
}

impl Served {
    pub async fn start(mut config: Config) -> Self {
        let database = lares_store::testing::Cluster::shared().await;
        let store = database.store().await;
        let dir = tempfile::tempdir().unwrap();
        if !config.state_dir.exists() {
            config.state_dir = dir.path().to_path_buf();
        }
        let address = SocketAddr::from(([127, 0, 0, 1], reserved_port()));
        config.coordinator.listen = address;
        let mut keys = Vec::new();
        for role in [Role::Client, Role::Viewer] {
            let secret = Secret::generate().unwrap();
            store.keys().insert(&Key::new(format!("{role:?}"), role, secret.hash())).await.unwrap();
            keys.push(secret.expose().to_owned());
        }
        let shutdown = CancellationToken::new();
        let (stop, served) = (shutdown.clone(), store.clone());
        let serving = tokio::spawn(async move {
            lares_coordinator::serve(Arc::new(config), served, stop).await.unwrap();
        });
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let [key, viewer] = keys.try_into().unwrap();
        Self {
            base: format!("http://{address}"),
            key,
            viewer,
            store,
            address,
            shutdown,
            serving,
            _dir: dir,
            _database: database,
        }
    }

    pub async fn post(&self, path: &str, body: String) -> reqwest::Response {
        self.post_for(None, path, body).await
    }

    async fn post_for(&self, task: Option<Uuid>, path: &str, body: String) -> reqwest::Response {
        let mut request = reqwest::Client::new()
            .post(format!("{}{path}", self.base))
            .bearer_auth(&self.key)
            .header("content-type", "application/json")
            .body(body);
        if let Some(task) = task {
            request = request.header("x-lares-task", task.to_string());
        }
        request.send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        reqwest::Client::new().get(format!("{}{path}", self.base)).bearer_auth(&self.key).send().await.unwrap()
    }

    /// Shuts down, which brings all events to PostgreSQL.
    pub async fn stop(self) -> Vec<Event> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(15), self.serving).await.unwrap().unwrap();
        let mut events = self.store.events().recent(Some("request"), 1000).await.unwrap();
        events.reverse();
        events
    }
}

async fn json_body(response: reqwest::Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_leaves_one_event_in_postgresql() {
    let stub = Stub::start(|nth| match nth {
        0 => Act::chat(),
        1 => Act::stream(3, 5),
        2 => Act::Json(500, json!({"error": {"message": "broken", "type": "server_error"}})),
        3 => Act::Hang,
        _ => Act::stream(10_000, 10),
    })
    .await;
    let mut config = config();
    config.coordinator.first_byte_timeout = Duration::from_millis(300);
    with_local(&mut config, "m", stub.port, Model { aliases: vec!["alias".into()], ..Model::default() });
    let served = Served::start(config).await;
    let chat = "/v1/chat/completions";
    let task = Uuid::now_v7();
    let response = served.post_for(Some(task), chat, body("alias", false)).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("x-request-id"));
    drop(response.bytes().await);
    drop(served.post(chat, body("m", true)).await.bytes().await);
    assert_eq!(served.post(chat, body("m", false)).await.status(), 500);
    assert_eq!(served.post(chat, body("m", false)).await.status(), 504);
    assert_eq!(served.post(chat, body("nobody", false)).await.status(), 404);
    assert_eq!(served.post(chat, "{".into()).await.status(), 400);
    // A client that hangs up in the middle of a stream, seen from the wire.
    let text = body("m", true);
    let mut wire = tokio::net::TcpStream::connect(served.address).await.unwrap();
    let head = format!(
        "POST {chat} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{text}",
        served.key,
        text.len()
    );
    wire.write_all(head.as_bytes()).await.unwrap();
    let mut some = [0; 600];
    wire.read_exact(&mut some).await.unwrap();
    drop(wire);
    // One for the timeout above, one for this.
    stub.abandoned(2).await;

    let events = served.stop().await;
    let seen: Vec<_> = events.iter().map(|event| (event.outcome.as_str(), event.status)).collect();
    assert_eq!(
        seen,
        [
            ("ok", Some(200)),
            ("ok", Some(200)),
            ("upstream_error", Some(500)),
            ("timeout", Some(504)),
            ("client_error", Some(404)),
            ("client_error", Some(400)),
            ("cancelled", Some(200)),
        ]
    );
    assert_eq!(events[0].subject, Some(task));
    assert_eq!((events[0].model.as_deref(), events[0].upstream.as_deref()), (Some("alias"), Some("m")));
    assert_eq!((events[0].prompt_tokens, events[0].completion_tokens), (Some(11), Some(2)));
    assert_eq!((events[1].prompt_tokens, events[1].completion_tokens), (Some(5), Some(3)));
    assert!(events[2..].iter().all(|event| event.prompt_tokens.is_none() && event.completion_tokens.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_gate_have_openais_shape_too() {
    let mut config = config();
    with_remote(&mut config, "one", reserved_port(), 1, &["m"]);
    let served = Served::start(config).await;
    let client = reqwest::Client::new();
    for (key, status) in [(None, 401), (Some("lares_wrong".to_owned()), 401), (Some(served.viewer.clone()), 403)] {
        let mut request = client.post(format!("{}/v1/chat/completions", served.base)).body(body("m", false));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status);
        let error = json_body(response).await["error"].take();
        assert!(error["message"].is_string() && error["type"].is_string() && error["code"].is_string(), "{error}");
    }
    let response = served.get("/v1/nothing").await;
    assert_eq!(response.status(), 404);
    assert!(json_body(response).await["error"]["message"].is_string());
    assert!(served.stop().await.is_empty(), "who is not let in leaves no event");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_with_their_context_and_readiness_names_each_local_one() {
    let stub = Stub::always(Act::chat()).await;
    let mut config = config();
    with_local(&mut config, "up", stub.port, Model { context_size: 4096, slots: 3, ..Model::default() });
    with_local(&mut config, "down", reserved_port(), Model { embeddings: true, ..Model::default() });
    with_remote(&mut config, "box", stub.port, 5, &["Qwen/Coder"]);
    let served = Served::start(config).await;
    let list = json_body(served.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["Qwen/Coder", "down", "up"]);
    let up = json_body(served.get("/v1/models/up").await).await;
    assert_eq!((&up["object"], &up["context_length"]), (&json!("model"), &json!(4096)));
    assert_eq!(up["lares"], json!({"context": 4096, "slots": 3, "embeddings": false, "local": true}));
    for path in ["/v1/models/Qwen/Coder", "/v1/models/Qwen%2FCoder"] {
        assert_eq!(json_body(served.get(path).await).await["owned_by"], "box");
    }
    let missing = served.get("/v1/models/upp").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(json_body(missing).await["error"]["code"], "model_not_found");

    let ready = reqwest::get(format!("{}/ready", served.base)).await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready = json_body(ready).await;
    let state = |name: &str| {
        let checks = ready["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name} in {ready}"))["state"]
            .clone()
    };
    assert_eq!((state("store"), state("model up"), state("model down")), (json!("ok"), json!("ok"), json!("failed")));

    let metrics = reqwest::Client::new().get(format!("{}/metrics", served.base)).bearer_auth(&served.viewer);
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("lares_upstream_in_flight{upstream=\"up\"} 0"), "{metrics}");
    assert!(served.stop().await.is_empty(), "only requests to models leave events");
}
