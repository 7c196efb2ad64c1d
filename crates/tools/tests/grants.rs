//! What an approval lets a server from a client's file touch: the whole daemon, with real programs in the sandbox.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lares_config::{Config, Embedding};
use lares_gate::{Role, Secret};
use lares_sandbox::Launcher;
use lares_store::keys::Key;
use lares_store::testing::Cluster;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const FIXTURE: &str = env!("CARGO_BIN_EXE_lares-tools-fixture");
/// Longest wait for anything in a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tools daemon with a client's file.
struct House {
    at: SocketAddr,
    key: String,
    directory: TempDir,
    client: reqwest::Client,
    shutdown: CancellationToken,
    daemon: Option<JoinHandle<()>>,
}

impl House {
    /// Where the fixture lies is for its server to be granted, as a program in somebody's home directory.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Cluster::shared().await.store().await;
        let secret = Secret::generate().unwrap();
        store.keys().insert(&Key::new("me", Role::Operator, secret.hash())).await.unwrap();
        let key = secret.expose().to_owned();
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = Config { state_dir: directory.path().join("state"), ..Config::default() };
        config.tools.listen = at;
        config.tools.search.embedding = Embedding::None;
        config.tools.discovery.client_files = vec![directory.path().join("mcp.json")];
        config.tools.discovery.units = false;
        config.tools.circuit_open = Duration::from_millis(200);
        let shutdown = CancellationToken::new();
        let launcher = Launcher { program: FIXTURE.into(), args: vec!["sandbox".to_owned()] };
        let running = lares_tools::serve(Arc::new(config), store, launcher, shutdown.clone());
        let daemon = tokio::spawn(async move { running.await.unwrap() });
        Self { at, key, directory, client: reqwest::Client::new(), shutdown, daemon: Some(daemon) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// Writes the client's file and has it read.
    async fn found(&self, servers: Value) {
        fs::write(self.path("mcp.json"), json!({ "mcpServers": servers }).to_string()).unwrap();
        self.wait("the daemon to answer", async || self.post("tools/discover", json!({})).await.ok()).await;
    }

    async fn get(&self, path: &str) -> Value {
        let url = format!("http://{}/api/v1/{path}", self.at);
        let answer = self.client.get(url).bearer_auth(&self.key).send().await.unwrap();
        answer.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, String> {
        let url = format!("http://{}/api/v1/{path}", self.at);
        let sent = self.client.post(url).bearer_auth(&self.key).json(&body).send().await;
        let answer = sent.map_err(|error| error.to_string())?;
        let good = answer.status().is_success();
        let body: Value = answer.json().await.map_err(|error| error.to_string())?;
        if good { Ok(body) } else { Err(body.to_string()) }
    }

    async fn wait<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(seen) = look().await {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what}: it did not come to that"))
    }

    /// Approves the server `s` with all its tools, and waits until it is up.
    async fn approve(&self, mut body: Value) {
        body["tools"] = json!(true);
        self.post("servers/s/approve", body.clone()).await.unwrap();
        self.wait("s to be up with its tools", async || {
            let up = self.get("servers/s").await["health"] == "up";
            // Its tools are listed when it is up, which may be after the approval was answered.
            let _ = self.post("servers/s/approve", json!({"tools": true})).await;
            (up && self.get("servers/s").await["approved"].as_u64() > Some(0)).then_some(())
        })
        .await;
    }

    /// The text that a tool of `s` gives.
    async fn call(&self, tool: &str, arguments: Value) -> String {
        let answer = self.post(&format!("tools/s__{tool}/call"), json!({ "arguments": arguments })).await.unwrap();
        answer["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }

    async fn close(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.daemon.take().unwrap()).await.unwrap().unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn here() -> &'static Path {
    Path::new(FIXTURE).parent().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_from_a_clients_file_reads_what_was_granted_and_nothing_else() {
    let house = House::new().await;
    let (notes, other) = (house.path("notes.txt"), house.path("other.txt"));
    fs::write(&notes, "buy bread").unwrap();
    fs::write(&other, "a secret").unwrap();
    house.found(json!({"s": {"command": FIXTURE, "args": ["both"]}})).await;

    // Without its own program in reach it cannot start, and says what is missing.
    let seen = house.get("servers/s").await;
    assert_eq!((&seen["state"], &seen["unreadable"]), (&json!("proposed"), &json!([here()])), "{seen}");
    house.post("servers/s/approve", json!({"hash": seen["fingerprint"]})).await.unwrap();
    let error = house.wait("an error", async || house.get("servers/s").await["last_error"].as_str().map(str::to_owned));
    let error = error.await;
    assert!(error.contains(&format!("it may not read {}", here().display())), "{error}");

    house.approve(json!({"read": [here()]})).await;
    let read = house.call("read", json!({"path": notes})).await;
    assert!(read.starts_with("refused: "), "{read}");

    house.approve(json!({"read": [here(), notes]})).await;
    let seen = house.get("servers/s").await;
    assert_eq!(seen["granted"], json!({"network": "none", "read": sorted([here(), &notes]), "write": []}));
    assert_eq!(house.call("read", json!({"path": notes})).await, "buy bread");
    let read = house.call("read", json!({"path": other})).await;
    assert!(read.starts_with("refused: "), "{read}");
    // Not the key for fingerprints either, whatever it may read.
    let around = house.directory.path();
    house.approve(json!({"read": [here(), around]})).await;
    assert_eq!(house.call("read", json!({"path": other})).await, "a secret");
    let key = house.path("state/tools/fingerprint.key");
    assert!(key.exists());
    assert!(house.call("read", json!({"path": key})).await.starts_with("refused: "));

    // Another command is another server, which was granted nothing.
    house.found(json!({"s": {"command": FIXTURE, "args": ["both", "changed"]}})).await;
    let seen = house.get("servers/s").await;
    assert_eq!((&seen["state"], &seen["granted"]), (&json!("proposed"), &Value::Null));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_granted_by_itself_and_with_it_a_home_that_stays() {
    let house = House::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    house.found(json!({"s": {"command": FIXTURE, "args": ["both", "reaches"]}})).await;

    house.approve(json!({"read": [here()]})).await;
    let connected = house.call("connect", json!({"port": port})).await;
    assert!(connected.starts_with("refused: "), "{connected}");
    let home = house.call("write", json!({"text": "fetched"})).await;
    assert!(!home.starts_with(house.path("state").to_str().unwrap()), "{home}");

    house.approve(json!({"read": [here()], "network": "host"})).await;
    assert_eq!(house.call("connect", json!({"port": port})).await, "connected");
    let home = PathBuf::from(house.call("write", json!({"text": "fetched"})).await);
    assert!(home.starts_with(house.path("state/tools/homes")), "{home:?}");
    assert_eq!(home.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // Started again it finds what it fetched.
    let _ = house.post("tools/s__die/call", json!({})).await;
    house
        .wait("it to be up again", async || {
            let answer = house.post("tools/s__read/call", json!({"arguments": {"path": home}})).await.ok()?;
            (answer["result"]["content"][0]["text"] == "fetched").then_some(())
        })
        .await;
    house.post("servers/s/reject", json!({})).await.unwrap();
    house
        .wait("its home to be removed", async || {
            let _ = house.post("tools/discover", json!({})).await;
            (!home.exists()).then_some(())
        })
        .await;
    house.close().await;
}

fn sorted(mut paths: [&Path; 2]) -> [&Path; 2] {
    paths.sort();
    paths
}
