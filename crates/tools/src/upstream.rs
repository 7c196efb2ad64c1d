//! The tool servers for real: each one's session kept by a task of its own, so that none waits for another.
//!
//! A program is run confined ([`lares_sandbox`]) and speaks on its standard streams, a URL is reached by a client that
//! connects to nothing but what was allowed. Everything a server sends is bounded, and everything asked of it has a time.

#![expect(deprecated, reason = "servers of the older revisions use logging and resources/subscribe")]

mod address;
mod breaker;
mod http;
mod lines;
mod lists;
mod program;
mod reading;
mod secret;
mod server;
mod session;
mod stdio;
mod traffic;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use lares_config::Sandbox;
use lares_sandbox::Launcher;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, CallToolResult, ClientRequest, CompleteRequest,
    CompleteRequestParams, CompleteResult, GetPromptRequest, GetPromptRequestParams, GetPromptResponse,
    ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, ServerResult,
};
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::definition::ServerName;
use crate::port::{CallContext, Offer, Target, UpstreamError, UpstreamEvent, UpstreamStatus, Upstreams};
pub(crate) use reading::unreadable;
use server::Server;

/// Events that a slow listener may be behind.
const EVENT_QUEUE: usize = 256;
/// Longest wait for all sessions to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What counts for every server.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSettings {
    /// Longest wait until a server is ready.
    pub start_timeout: Duration,
    /// Longest wait for all lists of a server.
    pub list_timeout: Duration,
    /// After so many failures in a row a server is left alone.
    pub circuit_after: u32,
    /// For so long, doubled with each try that fails up to 32 times.
    pub circuit_open: Duration,
    /// Bytes of the largest message of a server.
    pub max_result: u64,
    /// How programs are confined: mode and limits. Its paths are for checks and count for no server.
    pub sandbox: Sandbox,
    /// Paths that no program reads, whatever it may read besides.
    pub hidden: Vec<PathBuf>,
    /// What starts them.
    pub launcher: Launcher,
}

impl PoolSettings {
    /// Those of a configuration.
    pub fn new(config: &lares_config::Config, launcher: Launcher) -> Self {
        let tools = &config.tools;
        Self {
            start_timeout: tools.start_timeout,
            list_timeout: tools.list_timeout,
            circuit_after: tools.circuit_after,
            circuit_open: tools.circuit_open,
            max_result: tools.max_result.bytes(),
            sandbox: config.agents.sandbox.clone(),
            // The key for fingerprints and the homes of others; keys of Lares itself.
            hidden: ["tools", "keys"].map(|name| config.state_dir.join(name)).into(),
            launcher,
        }
    }

    /// The largest message as a size in memory.
    fn max_message(&self) -> usize {
        usize::try_from(self.max_result).unwrap_or(usize::MAX)
    }
}

/// The tool servers in use.
pub struct Pool {
    settings: Arc<PoolSettings>,
    servers: RwLock<BTreeMap<ServerName, Arc<Server>>>,
    events: broadcast::Sender<UpstreamEvent>,
    keepers: TaskTracker,
    shutdown: CancellationToken,
}

impl Pool {
    /// A pool without servers, until `shutdown` fires.
    pub fn new(settings: PoolSettings, shutdown: &CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            settings: Arc::new(settings),
            servers: RwLock::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            keepers: TaskTracker::new(),
            shutdown: shutdown.child_token(),
        })
    }

    /// Ends all sessions and the programs behind them, within 5 s.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.keepers.close();
        if timeout(CLOSE_TIMEOUT, self.keepers.wait()).await.is_err() {
            tracing::warn!("not every tool server ended in time; its guard ends it");
        }
    }

    fn server(&self, name: &ServerName) -> Result<Arc<Server>, UpstreamError> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.get(name).cloned().ok_or_else(|| UpstreamError::Unknown(name.clone()))
    }
}

/// The server's answer does not fit the question.
fn unexpected(server: &ServerName) -> UpstreamError {
    UpstreamError::Protocol { server: server.clone(), error: Box::new(session::unexpected()) }
}

/// A result of a call that has no content, which `rmcp` takes for something else.
fn without_content(result: ServerResult) -> Option<CallToolResult> {
    let meta = match result {
        ServerResult::EmptyResult(_) => None,
        ServerResult::TaskAckResult(result) => result.meta,
        ServerResult::CustomResult(custom) => {
            let object = custom.0.as_object()?;
            if object.keys().any(|key| key != "_meta") {
                return None;
            }
            object.get("_meta").and_then(|meta| serde_json::from_value(meta.clone()).ok())
        }
        _ => return None,
    };
    let mut complete = CallToolResult::success(Vec::new());
    complete.meta = meta;
    Some(complete)
}

#[async_trait]
impl Upstreams for Pool {
    async fn set(&self, targets: Vec<Target>) {
        let mut targets: BTreeMap<ServerName, Target> =
            targets.into_iter().map(|target| (target.name.clone(), target)).collect();
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let mut watched = BTreeMap::new();
        servers.retain(|name, server| {
            let stays = targets.get(name) == Some(&server.target);
            if stays {
                targets.remove(name);
            } else {
                watched.insert(name.clone(), server.watched_now());
                server.retired.cancel();
            }
            stays
        });
        if self.shutdown.is_cancelled() {
            return;
        }
        for (name, target) in targets {
            let server = Server::new(target, self.settings.clone(), self.events.clone(), self.shutdown.child_token());
            // Who watched its resources does so still, however it is reached now.
            server.watch_also(watched.remove(&name).unwrap_or_default());
            self.keepers.spawn(server.clone().keep());
            servers.insert(name, server);
        }
    }

    fn status(&self) -> Vec<UpstreamStatus> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.values().map(|server| server.status()).collect()
    }

    fn events(&self) -> broadcast::Receiver<UpstreamEvent> {
        self.events.subscribe()
    }

    async fn offer(&self, server: &ServerName) -> Result<Offer, UpstreamError> {
        self.server(server)?.offer().await
    }

    async fn call(
        &self,
        server: &ServerName,
        params: CallToolRequestParams,
        context: CallContext,
    ) -> Result<CallToolResponse, UpstreamError> {
        let meta = params.meta.clone();
        let request = ClientRequest::from(CallToolRequest::new(params));
        match self.server(server)?.call(request, meta.as_ref(), context).await? {
            ServerResult::CallToolResult(result) => Ok(CallToolResponse::Complete(result)),
            ServerResult::InputRequiredResult(result) => Ok(CallToolResponse::InputRequired(result)),
            ServerResult::CreateTaskResult(result) => Ok(CallToolResponse::Task(result)),
            other => without_content(other).map(CallToolResponse::Complete).ok_or_else(|| unexpected(server)),
        }
    }

    async fn read_resource(
        &self,
        server: &ServerName,
        params: ReadResourceRequestParams,
        context: CallContext,
    ) -> Result<ReadResourceResponse, UpstreamError> {
        let meta = params.meta.clone();
        let request = ClientRequest::from(ReadResourceRequest::new(params));
        match self.server(server)?.call(request, meta.as_ref(), context).await? {
            ServerResult::ReadResourceResult(result) => Ok(ReadResourceResponse::Complete(result)),
            ServerResult::InputRequiredResult(result) => Ok(ReadResourceResponse::InputRequired(result)),
            _ => Err(unexpected(server)),
        }
    }

    async fn get_prompt(
        &self,
        server: &ServerName,
        params: GetPromptRequestParams,
        context: CallContext,
    ) -> Result<GetPromptResponse, UpstreamError> {
        let meta = params.meta.clone();
        let request = ClientRequest::from(GetPromptRequest::new(params));
        match self.server(server)?.call(request, meta.as_ref(), context).await? {
            ServerResult::GetPromptResult(result) => Ok(GetPromptResponse::Complete(result)),
            ServerResult::InputRequiredResult(result) => Ok(GetPromptResponse::InputRequired(result)),
            _ => Err(unexpected(server)),
        }
    }

    async fn complete(
        &self,
        server: &ServerName,
        params: CompleteRequestParams,
        context: CallContext,
    ) -> Result<CompleteResult, UpstreamError> {
        let meta = params.meta.clone();
        let request = ClientRequest::from(CompleteRequest::new(params));
        match self.server(server)?.call(request, meta.as_ref(), context).await? {
            ServerResult::CompleteResult(result) => Ok(result),
            _ => Err(unexpected(server)),
        }
    }

    async fn watch_resource(&self, server: &ServerName, uri: &str, watch: bool) -> Result<(), UpstreamError> {
        self.server(server)?.watch(uri, watch).await
    }
}
