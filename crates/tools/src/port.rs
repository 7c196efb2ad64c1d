//! The port to tool servers: who they are, and what may be asked of them. `upstream` is the real one.

#![expect(deprecated, reason = "MCP 2026-07-28 deprecates logging; servers and clients of today use it")]

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lares_config::{McpEra, Network};
use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientResult, CompleteRequestParams, CompleteResult,
    GetPromptRequestParams, GetPromptResponse, LoggingMessageNotificationParam, ProgressNotificationParam, Prompt,
    ReadResourceRequestParams, ReadResourceResponse, Resource, ResourceTemplate, ServerRequest, Tool,
};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::api::Health;
use crate::definition::ServerName;

/// How a tool server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A program that speaks MCP on standard input and output.
    Stdio(Program),
    /// A URL that speaks streamable HTTP.
    Http(Endpoint),
}

/// A program to run, without a shell.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// Its environment, besides `PATH`, `HOME`, `TMPDIR`, `LANG` and `TZ`.
    pub env: BTreeMap<String, String>,
    /// Variables whose value is read from a file when it is started.
    pub env_files: BTreeMap<String, PathBuf>,
    /// Directory it runs in; `None`: a private empty one.
    pub directory: Option<PathBuf>,
    /// Home directory that is still there when it is started again, made when it is missing; `None`: a private empty one
    /// that goes with its process.
    pub home: Option<PathBuf>,
    /// Paths it may read besides the system's own.
    pub read: Vec<PathBuf>,
    /// Paths it may write.
    pub write: Vec<PathBuf>,
    /// TCP it may use.
    pub network: Network,
}

/// What is started, and the names of its variables: their values may be secrets.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("command", &self.command)
            .field("env", &self.env.keys())
            .field("env_files", &self.env_files)
            .field("directory", &self.directory)
            .field("home", &self.home)
            .field("read", &self.read)
            .field("write", &self.write)
            .field("network", &self.network)
            .finish()
    }
}

/// A URL to connect to.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The URL.
    pub url: String,
    /// Headers to send; they may be secrets.
    pub headers: BTreeMap<String, String>,
    /// Headers whose value is read from a file when it is connected to.
    pub header_files: BTreeMap<String, PathBuf>,
    /// It may be on loopback: a person wrote the URL into the configuration or approved it. Other private and
    /// reserved addresses are refused unless the URL itself names the address; link-local ones always.
    pub loopback: bool,
}

/// Where it is, without a query, and the names of the headers: both may hold secrets.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &self.url.split('?').next().unwrap_or_default())
            .field("headers", &self.headers.keys())
            .field("header_files", &self.header_files)
            .field("loopback", &self.loopback)
            .finish()
    }
}

/// A tool server to keep connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: ServerName,
    /// How it is reached.
    pub transport: Transport,
    /// Which revisions of the protocol are spoken.
    pub era: McpEra,
    /// Longest call.
    pub call_timeout: Duration,
    /// Most calls at the same time.
    pub max_concurrent: u32,
}

/// What a server offers: whole lists, bounded.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Its tools.
    pub tools: Vec<Tool>,
    /// Its resources.
    pub resources: Vec<Resource>,
    /// Its resource templates.
    pub templates: Vec<ResourceTemplate>,
    /// Its prompts.
    pub prompts: Vec<Prompt>,
    /// How long this stays true, by the server's own `ttlMs`.
    pub ttl: Option<Duration>,
    /// What it says to models about itself; foreign text.
    pub instructions: Option<String>,
}

/// How a server is.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: ServerName,
    /// How it is.
    pub health: Health,
    /// Revision of the protocol, once connected.
    pub protocol: Option<String>,
    /// What it calls itself, `name version`.
    pub implementation: Option<String>,
    /// Processes started or connections made since the start.
    pub connections: u64,
    /// What went wrong last; for a program, with the last line it wrote to standard error.
    pub last_error: Option<String>,
    /// Since when it is not up, by the monotonic clock.
    pub down_for: Option<Duration>,
}

/// Something that happened to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamEvent {
    /// It answers (again): its lists should be fetched.
    Up(ServerName),
    /// It is not there.
    Down(ServerName),
    /// It says that its lists changed.
    Changed(ServerName),
    /// A resource changed.
    ResourceUpdated(ServerName, String),
}

/// Why a server did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// There is no such server, or it is not used.
    #[error("there is no tool server `{0}` in use; `lares tools servers` lists them")]
    Unknown(ServerName),
    /// It is not connected.
    #[error("tool server `{server}` is not available: {why}")]
    Unavailable {
        /// The server.
        server: ServerName,
        /// What went wrong last.
        why: String,
    },
    /// It took too long.
    #[error("tool server `{server}` did not answer within {limit:?}")]
    Timeout {
        /// The server.
        server: ServerName,
        /// How long was waited.
        limit: Duration,
    },
    /// As many calls as are allowed run or wait.
    #[error("tool server `{server}` is busy: too many calls wait for it")]
    Busy {
        /// The server.
        server: ServerName,
    },
    /// It sent more than is taken.
    #[error("tool server `{server}` sent more than {limit} bytes (tools.max_result)")]
    TooLarge {
        /// The server.
        server: ServerName,
        /// The bound.
        limit: u64,
    },
    /// It answered with an error of the protocol.
    #[error("tool server `{server}`: {error}")]
    Protocol {
        /// The server.
        server: ServerName,
        /// Its error, to be passed on.
        error: Box<ErrorData>,
    },
    /// The caller went away.
    #[error("cancelled")]
    Cancelled,
}

/// The client at the other end of a call, for what a server says or asks while it works.
#[async_trait]
pub trait Downstream: Send + Sync {
    /// What the client said it can do.
    fn capabilities(&self) -> ClientCapabilities;

    /// Whether questions go into the result, to be answered by calling again (2026-07-28), instead of by
    /// [`Downstream::request`].
    fn asks_in_result(&self) -> bool {
        false
    }

    /// Passes on how far the work is.
    async fn progress(&self, params: ProgressNotificationParam);

    /// Passes on a log message.
    async fn log(&self, params: LoggingMessageNotificationParam);

    /// Passes on a request of the server (elicitation, sampling, roots).
    ///
    /// # Errors
    /// When the client cannot do that, says no, or is gone.
    async fn request(&self, request: ServerRequest) -> Result<ClientResult, ErrorData>;
}

/// A caller that takes no messages and answers nothing, such as an HTTP request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

#[async_trait]
impl Downstream for Nobody {
    fn capabilities(&self) -> ClientCapabilities {
        ClientCapabilities::default()
    }

    async fn progress(&self, _: ProgressNotificationParam) {}

    async fn log(&self, _: LoggingMessageNotificationParam) {}

    async fn request(&self, _: ServerRequest) -> Result<ClientResult, ErrorData> {
        Err(ErrorData::invalid_request("this caller answers no requests of a tool server", None))
    }
}

/// Who is called for, and until when.
#[derive(Clone)]
pub struct CallContext {
    /// The client, for progress, logs and questions.
    pub downstream: Arc<dyn Downstream>,
    /// Fires when the client gave up; the server is told.
    pub cancelled: CancellationToken,
}

impl Default for CallContext {
    fn default() -> Self {
        Self { downstream: Arc::new(Nobody), cancelled: CancellationToken::new() }
    }
}

/// The tool servers in use. One slow or dead server never delays what is asked of another.
#[async_trait]
pub trait Upstreams: Send + Sync {
    /// Which servers are kept connected from now on. Those that are gone or changed end; the others keep their session.
    /// Returns at once; connecting goes on beside.
    async fn set(&self, targets: Vec<Target>);

    /// How each server is, by name.
    fn status(&self) -> Vec<UpstreamStatus>;

    /// What happens from now on. A listener that missed some looks at everything.
    fn events(&self) -> broadcast::Receiver<UpstreamEvent>;

    /// Fetches all lists of a server over its present session.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn offer(&self, server: &ServerName) -> Result<Offer, UpstreamError>;

    /// Calls a tool by its name at the server.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn call(
        &self,
        server: &ServerName,
        params: CallToolRequestParams,
        context: CallContext,
    ) -> Result<CallToolResponse, UpstreamError>;

    /// Reads a resource by its URI at the server.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn read_resource(
        &self,
        server: &ServerName,
        params: ReadResourceRequestParams,
        context: CallContext,
    ) -> Result<ReadResourceResponse, UpstreamError>;

    /// Gets a prompt by its name at the server.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn get_prompt(
        &self,
        server: &ServerName,
        params: GetPromptRequestParams,
        context: CallContext,
    ) -> Result<GetPromptResponse, UpstreamError>;

    /// Completes an argument of a prompt or a resource template.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn complete(
        &self,
        server: &ServerName,
        params: CompleteRequestParams,
        context: CallContext,
    ) -> Result<CompleteResult, UpstreamError>;

    /// Asks to be told of changes of a resource ([`UpstreamEvent::ResourceUpdated`]), or no more.
    ///
    /// # Errors
    /// When the server is not there or does not do it.
    async fn watch_resource(&self, server: &ServerName, uri: &str, watch: bool) -> Result<(), UpstreamError>;
}
