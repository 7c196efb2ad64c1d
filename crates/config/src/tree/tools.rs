//! The section of the tools daemon: the tool servers there are, what may be called, and how tools are found.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Network;
use crate::duration;
use crate::size::ByteSize;

/// The registry of tools and the door to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tools {
    /// Address and port.
    pub listen: SocketAddr,
    /// The tool servers, by the name that their tools carry (`NAME__TOOL`).
    pub servers: BTreeMap<String, ToolServer>,
    /// Where else tool servers are looked for. What is found there waits for `lares tools approve`.
    pub discovery: ToolDiscovery,
    /// How tools are found by meaning.
    pub search: ToolSearch,
    /// What the door at `/mcp` shows.
    pub gateway: ToolGateway,
    /// Who may call what; the first rule that names the tool counts.
    pub policy: Vec<ToolRule>,
    /// What happens to a call that no rule names.
    pub default_policy: ToolAction,
    /// Named selections of tools, at `/mcp/NAME`.
    pub toolsets: BTreeMap<String, Toolset>,
    /// Longest wait until a tool server is ready.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub start_timeout: Duration,
    /// Longest wait for the list of a server's tools.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub list_timeout: Duration,
    /// Longest call of a tool whose server says nothing else.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub call_timeout: Duration,
    /// After so many failures in a row a server is left alone for `circuit_open`.
    pub circuit_after: u32,
    /// How long a server is left alone then. It doubles with each try that fails, up to 32 times.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub circuit_open: Duration,
    /// How long the tools of a server that went away stay listed, while it is tried again.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub grace: Duration,
    /// Largest result of a call, and largest message of a server.
    pub max_result: ByteSize,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8091)),
            servers: BTreeMap::new(),
            discovery: ToolDiscovery::default(),
            search: ToolSearch::default(),
            gateway: ToolGateway::default(),
            policy: Vec::new(),
            default_policy: ToolAction::Allow,
            toolsets: BTreeMap::new(),
            start_timeout: Duration::from_secs(30),
            list_timeout: Duration::from_secs(15),
            call_timeout: Duration::from_secs(60),
            circuit_after: 3,
            circuit_open: Duration::from_secs(10),
            grace: Duration::from_secs(60),
            max_result: ByteSize::mib(4),
        }
    }
}

/// One MCP server. Exactly one of `command` and `url` is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolServer {
    /// Program with its arguments that speaks MCP on standard input and output. No shell is involved.
    pub command: Vec<String>,
    /// URL of a server that speaks streamable HTTP.
    pub url: Option<String>,
    /// Environment variables of the program. It gets these, `PATH`, `HOME`, `TMPDIR`, `LANG` and `TZ`,
    /// and nothing else.
    pub env: BTreeMap<String, String>,
    /// Environment variables whose value is in a file, for secrets.
    pub env_files: BTreeMap<String, PathBuf>,
    /// HTTP headers whose value is in a file, for secrets.
    pub header_files: BTreeMap<String, PathBuf>,
    /// Directory the program runs in. Unset: a private empty one.
    pub directory: Option<PathBuf>,
    /// Paths the program may read besides the system's own. `~` is the home directory.
    pub read: Vec<PathBuf>,
    /// Paths the program may write.
    pub write: Vec<PathBuf>,
    /// TCP of the program.
    pub network: Network,
    /// Use new and changed tools of this server without asking, unless they look poisoned.
    pub trusted: bool,
    /// Whether it is used at all.
    pub enabled: bool,
    /// Which revisions of the protocol are spoken with it.
    pub protocol: McpEra,
    /// Tags that all its tools carry, to search by.
    pub tags: Vec<String>,
    /// Longest call. Unset: `tools.call_timeout`.
    #[serde(with = "duration::optional")]
    #[schemars(with = "Option<String>")]
    pub call_timeout: Option<Duration>,
    /// Most calls at the same time; further ones wait.
    pub max_concurrent: u32,
}

impl Default for ToolServer {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            url: None,
            env: BTreeMap::new(),
            env_files: BTreeMap::new(),
            header_files: BTreeMap::new(),
            directory: None,
            read: Vec::new(),
            write: Vec::new(),
            network: Network::None,
            trusted: false,
            enabled: true,
            protocol: McpEra::Auto,
            tags: Vec::new(),
            call_timeout: None,
            max_concurrent: 8,
        }
    }
}

/// Revisions of MCP to speak with a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum McpEra {
    /// `server/discover` first, then `initialize`.
    Auto,
    /// 2025-11-25 and before: `initialize`, sessions.
    Sessions,
    /// From 2026-07-28: `server/discover`, no session.
    Stateless,
}

/// Where tool servers are looked for besides the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolDiscovery {
    /// How often it is looked. A server's own `ttlMs` can make it more often for that server, never below 1 s.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// Files of MCP clients, which are read and never executed. `~` is the home directory.
    pub client_files: Vec<PathBuf>,
    /// Loopback ports that are asked whether they speak MCP, as `8000` or `8000-8100`. Empty: none.
    pub ports: Vec<String>,
    /// Look for systemd units that declare `X-MCP=URL` in their `[Service]` or `[Unit]` section.
    pub units: bool,
    /// Further units that are MCP servers, with the URL they serve.
    pub unit_urls: BTreeMap<String, String>,
}

impl Default for ToolDiscovery {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            client_files: [
                "~/.mcp.json",
                "~/.config/Code/User/mcp.json",
                "~/.cursor/mcp.json",
                "~/.claude.json",
                "~/.config/Claude/claude_desktop_config.json",
                "~/.config/opencode/opencode.json",
                "~/.config/opencode/opencode.jsonc",
                "~/.config/goose/config.yaml",
            ]
            .into_iter()
            .map(PathBuf::from)
            .collect(),
            ports: Vec::new(),
            units: true,
            unit_urls: BTreeMap::new(),
        }
    }
}

/// How tools are found by meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolSearch {
    /// What makes the embeddings.
    pub embedding: Embedding,
    /// For `in-process`: a model of the catalog or a GGUF file. For `endpoint`: the name of the model there.
    pub model: String,
    /// For `endpoint`: base URL up to and including `/v1`. Unset: the coordinator's.
    pub url: Option<String>,
    /// For `endpoint`: file with the key shown there.
    pub api_key_file: Option<PathBuf>,
    /// For `in-process`: threads of one embedding.
    pub threads: u32,
    /// Hits of a search that does not say.
    pub limit: u32,
}

impl Default for ToolSearch {
    fn default() -> Self {
        Self {
            embedding: Embedding::InProcess,
            model: "all-minilm-l6-v2".to_owned(),
            url: None,
            api_key_file: None,
            threads: 1,
            limit: 10,
        }
    }
}

/// What makes the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Embedding {
    /// llama.cpp inside the daemon.
    InProcess,
    /// A server with `/v1/embeddings`.
    Endpoint,
    /// Nothing: tools are found by their words alone.
    None,
}

/// What the door at `/mcp` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolGateway {
    /// What a client is shown.
    pub mode: GatewayMode,
    /// Most sessions of clients (of the older protocol) at the same time; the one idle longest gives way.
    pub max_sessions: u32,
    /// Sessions idle for so long end.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub session_idle: Duration,
}

impl Default for ToolGateway {
    fn default() -> Self {
        Self { mode: GatewayMode::Search, max_sessions: 256, session_idle: Duration::from_secs(3600) }
    }
}

/// What a client of the gateway is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GatewayMode {
    /// `search_tools`, `get_tool_details` and `call_tool`.
    Search,
    /// Every tool it may call.
    List,
    /// Both.
    Both,
}

/// A rule for calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolRule {
    /// The tools it is for, as `SERVER__TOOL`; `*` stands for anything.
    pub tools: Vec<String>,
    /// The keys it is for, by name. Empty: all.
    #[serde(default)]
    pub keys: Vec<String>,
    /// What happens.
    pub action: ToolAction,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ToolAction {
    /// It is carried out.
    Allow,
    /// A person is asked first, through the client.
    Ask,
    /// It is refused, and the tool is not shown.
    Deny,
}

/// A named selection of tools.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Toolset {
    /// Its tools, as `SERVER__TOOL`; `*` stands for anything.
    pub tools: Vec<String>,
    /// The keys, by name, that see this selection and nothing else at `/mcp` too. Empty: every key may use `/mcp/NAME`.
    pub keys: Vec<String>,
    /// What its clients are shown. Unset: `tools.gateway.mode`.
    pub mode: Option<GatewayMode>,
    /// Show `SERVER__TOOL` (true), or names as the servers gave them (then no two may be the same).
    pub namespaces: bool,
}

impl Default for Toolset {
    fn default() -> Self {
        Self { tools: vec!["*".to_owned()], keys: Vec::new(), mode: None, namespaces: true }
    }
}
