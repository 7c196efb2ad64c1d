//! A door with stubs behind it, and the events it leaves.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use lares_config::{Config, Model, Upstream};
use lares_coordinator::account::Sink;
use lares_coordinator::forward::Door;
use lares_coordinator::request::Endpoint;
use lares_gate::{Caller, Role};
use lares_store::events::Event;
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Default)]
pub struct Kept(Mutex<Vec<Event>>);

impl Sink for Kept {
    fn record(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

pub struct Rig {
    pub door: Arc<Door>,
    kept: Arc<Kept>,
}

impl Rig {
    pub async fn new(config: &Config) -> Self {
        let kept = Arc::new(Kept::default());
        let door = Door::open(config, Arc::<Kept>::clone(&kept)).await.unwrap();
        Self { door: Arc::new(door), kept }
    }

    pub async fn ask(&self, endpoint: Endpoint, body: impl Into<Body>) -> Response {
        self.ask_as(0, endpoint, Request::new(body.into())).await
    }

    pub async fn ask_as(&self, key: u128, endpoint: Endpoint, request: Request) -> Response {
        let caller = Caller { key_id: Uuid::from_u128(key), name: format!("key {key}"), role: Role::Client };
        self.door.answer(endpoint, &caller, request).await
    }

    pub async fn chat(&self, model: &str) -> Response {
        self.ask(Endpoint::ChatCompletions, body(model, false)).await
    }

    pub async fn stream(&self, model: &str) -> Response {
        self.ask(Endpoint::ChatCompletions, body(model, true)).await
    }

    pub fn events(&self) -> Vec<Event> {
        self.kept.0.lock().unwrap().clone()
    }

    /// The event of the only request, once it is there.
    pub async fn only_event(&self) -> Event {
        for _ in 0..500 {
            match self.events().as_slice() {
                [] => tokio::time::sleep(Duration::from_millis(10)).await,
                [event] => return event.clone(),
                events => panic!("{} events for one request", events.len()),
            }
        }
        panic!("no event within 5 s");
    }
}

pub fn body(model: &str, stream: bool) -> String {
    json!({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}).to_string()
}

/// One remote upstream `name` on a port, which knows each of `models` by that very name.
pub fn with_remote(config: &mut Config, name: &str, port: u16, capacity: u32, models: &[&str]) {
    let upstream = Upstream {
        url: format!("http://127.0.0.1:{port}/v1"),
        models: models.iter().map(|model| ((*model).to_owned(), (*model).to_owned())).collect(),
        max_in_flight: capacity,
        ..Upstream::default()
    };
    config.coordinator.upstreams.insert(name.to_owned(), upstream);
}

pub fn with_local(config: &mut Config, name: &str, port: u16, model: Model) {
    config.models.insert(name.to_owned(), Model { port, ..model });
}

/// A configuration whose state directory does not exist, so that nothing is read from this machine.
pub fn config() -> Config {
    Config { state_dir: "/nonexistent/lares-test".into(), ..Config::default() }
}

pub async fn bytes_of(response: Response) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

pub async fn json_of(response: Response) -> Value {
    let bytes = bytes_of(response).await;
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&bytes)))
}
