//! A pool with fixture servers.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lares_config::{McpEra, Network, Sandbox};
use lares_sandbox::Launcher;
use lares_tools::api::Health;
use lares_tools::definition::ServerName;
use lares_tools::port::{CallContext, Endpoint, Program, Target, Transport, UpstreamError, UpstreamStatus, Upstreams};
use lares_tools::upstream::{Pool, PoolSettings};
use rmcp::model::{CallToolRequestParams, CallToolResponse};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub const FIXTURE: &str = env!("CARGO_BIN_EXE_lares-tools-fixture");
/// Longest wait for anything in a test.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn settings() -> PoolSettings {
    PoolSettings {
        start_timeout: Duration::from_secs(6),
        list_timeout: Duration::from_secs(2),
        circuit_after: 3,
        circuit_open: Duration::from_millis(300),
        max_result: 64 << 10,
        sandbox: Sandbox::default(),
        hidden: Vec::new(),
        launcher: Launcher { program: FIXTURE.into(), args: vec!["sandbox".to_owned()] },
    }
}

pub fn name(text: &str) -> ServerName {
    text.parse().unwrap()
}

/// The fixture with these words.
pub fn fixture(words: &[&str]) -> Program {
    let command = std::iter::once(FIXTURE).chain(words.iter().copied()).map(str::to_owned).collect();
    Program {
        command,
        env: BTreeMap::new(),
        env_files: BTreeMap::new(),
        directory: None,
        home: None,
        read: vec![Path::new(FIXTURE).parent().unwrap().to_owned()],
        write: Vec::new(),
        network: Network::None,
    }
}

pub fn target(server: &str, program: Program) -> Target {
    Target {
        name: name(server),
        transport: Transport::Stdio(program),
        era: McpEra::Auto,
        call_timeout: Duration::from_secs(5),
        max_concurrent: 8,
    }
}

pub fn endpoint(server: &str, url: &str) -> Target {
    let endpoint =
        Endpoint { url: url.to_owned(), headers: BTreeMap::new(), header_files: BTreeMap::new(), loopback: true };
    Target { transport: Transport::Http(endpoint), ..target(server, fixture(&[])) }
}

/// A pool that ends with the test.
pub struct Bed {
    pub pool: Arc<Pool>,
    pub shutdown: CancellationToken,
}

impl Bed {
    pub async fn with(settings: PoolSettings, targets: Vec<Target>) -> Self {
        let shutdown = CancellationToken::new();
        let pool = Pool::new(settings, &shutdown);
        pool.set(targets).await;
        Self { pool, shutdown }
    }

    pub async fn new(targets: Vec<Target>) -> Self {
        Self::with(settings(), targets).await
    }

    /// One fixture server, `s`, that is up.
    pub async fn up(words: &[&str]) -> Self {
        let bed = Self::new(vec![target("s", fixture(words))]).await;
        bed.wait("s", Health::Up).await;
        bed
    }

    pub fn status(&self, server: &str) -> UpstreamStatus {
        self.pool.status().into_iter().find(|status| status.name.as_str() == server).unwrap()
    }

    pub async fn wait(&self, server: &str, health: Health) -> UpstreamStatus {
        self.wait_for(server, |status| status.health == health).await
    }

    pub async fn wait_for(&self, server: &str, wanted: impl Fn(&UpstreamStatus) -> bool) -> UpstreamStatus {
        let waiting = async {
            loop {
                let status = self.status(server);
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(status) => status,
            Err(_) => panic!("{server} did not get there: {:?}", self.status(server)),
        }
    }

    pub async fn call(&self, server: &str, tool: &str, arguments: Value) -> Result<String, UpstreamError> {
        self.call_with(server, tool, arguments, CallContext::default()).await
    }

    /// Calls a tool; the text of its result.
    pub async fn call_with(
        &self,
        server: &str,
        tool: &str,
        arguments: Value,
        context: CallContext,
    ) -> Result<String, UpstreamError> {
        let mut params = CallToolRequestParams::new(tool.to_owned());
        params.arguments = arguments.as_object().cloned();
        self.call_params(server, params, context).await
    }

    pub async fn call_params(
        &self,
        server: &str,
        params: CallToolRequestParams,
        context: CallContext,
    ) -> Result<String, UpstreamError> {
        match self.pool.call(&name(server), params, context).await? {
            CallToolResponse::Complete(result) => Ok(result
                .content
                .first()
                .and_then(|content| content.as_text())
                .map(|text| text.text.clone())
                .unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Processes below this one, zombies not counted.
pub fn descendants() -> Vec<i32> {
    let mut parents: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((start, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let pid = start.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok());
        if let (Some(pid), Some(parent)) = (pid, fields.get(1).and_then(|parent| parent.parse().ok()))
            && fields[0] != "Z"
        {
            parents.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![i32::try_from(std::process::id()).unwrap()];
    while let Some(parent) = pending.pop() {
        let children = parents.remove(&parent).unwrap_or_default();
        found.extend(&children);
        pending.extend(children);
    }
    found
}

/// The process that runs `words` as a server, not its launcher.
pub fn server_process(marker: &str) -> Option<i32> {
    descendants().into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == marker.as_bytes())
    })
}

pub fn exists(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn path(text: &str) -> PathBuf {
    PathBuf::from(text)
}
