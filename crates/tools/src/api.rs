//! What travels over HTTP: the JSON of tools, servers, searches, calls and changes. One set of types for the daemon,
//! the command line and the tests.

use std::path::PathBuf;

use jiff::Timestamp;
use lares_config::Network;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// Whether a tool may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ToolState {
    /// Its definition was looked at and found good, by a person or because its server is trusted.
    Approved,
    /// It is new, changed or suspicious, and waits for a person.
    Quarantined,
    /// A person put it aside.
    Blocked,
}

/// Whether a tool server may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ServerState {
    /// Declared in the configuration, or approved by a person.
    Approved,
    /// Found; nothing of it is run or asked until a person approves it.
    Proposed,
    /// A person said no.
    Rejected,
}

/// How a tool server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not used (proposed, rejected or switched off).
    Idle,
    /// Being started or connected to.
    Starting,
    /// It answers.
    Up,
    /// It failed and is tried again soon.
    Down,
    /// It failed too often and is left alone for a while (circuit open).
    Resting,
}

/// Where a tool server was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The configuration of Lares.
    Configuration,
    /// A file of an MCP client.
    ClientFile,
    /// A loopback port that answers MCP.
    Port,
    /// A systemd unit that declares it.
    Unit,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Suspicious: a person should look.
    Warning,
    /// Dangerous: quarantined even when its server is trusted.
    Danger,
}

/// Something a rule found in a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FindingView {
    /// The rule's stable name, in kebab-case.
    pub rule: String,
    /// How grave it is.
    pub severity: Severity,
    /// Where, for example `input_schema/properties/path/description`.
    pub field: String,
    /// The text it was found in, bounded, with hidden characters made visible.
    pub excerpt: String,
    /// What is wrong with that, in a sentence.
    pub why: String,
}

/// What happens when somebody calls a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// It is carried out.
    Allow,
    /// A person is asked first.
    Ask,
    /// It is refused.
    Deny,
}

/// How calls of a tool went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CallStatistics {
    /// Calls that reached the server.
    pub calls: u64,
    /// Of these, calls that failed (the server, or an error result).
    pub failures: u64,
    /// Median time, in milliseconds; absent without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// Time that 99 of 100 calls do not exceed, in milliseconds; absent without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
    /// The last call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last: Option<Timestamp>,
}

/// A tool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolView {
    /// `SERVER__TOOL`.
    pub id: String,
    /// Its server.
    pub server: String,
    /// Its name at the server.
    pub name: String,
    /// Its name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it says it does.
    pub description: String,
    /// JSON Schema of its arguments; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// JSON Schema of its structured result; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Hints of its server; left out of lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Value>,
    /// Whether it may be used.
    pub state: ToolState,
    /// Why it is in that state.
    pub reason: String,
    /// Name of the key of the person who put it aside; absent: nobody did, and what holds it are the rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// What happens when the caller calls it.
    pub policy: Policy,
    /// Whether its server answers now.
    pub available: bool,
    /// Tags.
    pub tags: Vec<String>,
    /// SHA-256 of its definition.
    pub hash: String,
    /// SHA-256 of the definition that was approved; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_hash: Option<String>,
    /// What the rules found.
    pub findings: Vec<FindingView>,
    /// How calls went.
    pub statistics: CallStatistics,
    /// When it was seen first.
    #[schema(value_type = String)]
    pub first_seen: Timestamp,
    /// When it was listed last.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
    /// Since when its server lists it no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gone_since: Option<Timestamp>,
}

/// Answer of `GET /api/v1/tools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolList {
    /// The tools, by id.
    pub tools: Vec<ToolView>,
    /// How many there are in all, before `limit`.
    pub total: usize,
}

/// Query of `GET /api/v1/tools`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct ToolQuery {
    /// Only tools of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Only tools in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<ToolState>,
    /// Only tools with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Also tools that their server lists no more.
    pub gone: bool,
    /// Go on after this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Most tools in the answer, 1 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// One version of a definition, oldest first in `GET /api/v1/tools/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// SHA-256.
    pub hash: String,
    /// The definition as the server gave it.
    pub definition: Value,
    /// When it was seen first.
    #[schema(value_type = String)]
    pub first_seen: Timestamp,
    /// When it was approved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub approved_at: Option<Timestamp>,
    /// Name of the key of who approved it; `configuration` for a trusted server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
}

/// What differs between the approved definition and the present one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DifferenceView {
    /// Where, for example `description`.
    pub field: String,
    /// What was approved, bounded; absent if it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What is said now, bounded; absent if it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Answer of `GET /api/v1/tools/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolDetails {
    /// The tool.
    #[serde(flatten)]
    pub tool: ToolView,
    /// Every version of its definition that was seen, oldest first, at most the last 20.
    pub versions: Vec<VersionView>,
    /// What differs from what was approved; empty if nothing does.
    pub differences: Vec<DifferenceView>,
}

/// A tool server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// Its name.
    pub name: String,
    /// Whether it may be used.
    pub state: ServerState,
    /// Whether its new tools are used without asking.
    pub trusted: bool,
    /// How it is.
    pub health: Health,
    /// Where it was found.
    pub source: Source,
    /// The file, unit or port it was found in.
    pub origin: String,
    /// How it is reached: `{"kind": "stdio", "command": […], "environment": [names]}` or `{"kind": "http", "url": …,
    /// "headers": [names]}`. What looks like a secret is masked.
    pub transport: Value,
    /// Stands for all that would be run or connected to: what an approval is for. HMAC-SHA256 with a key of this
    /// installation, so that nobody can try secrets out on it.
    pub fingerprint: String,
    /// What its program may touch besides, given with the approval of this fingerprint; absent where that is nothing,
    /// and for a server of the configuration, whose `transport` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Grant>,
    /// What is open in its entry and only its client can fill in, one phrase each: it cannot be approved like that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Paths its program cannot do without as far as can be seen, and may not read now: to be granted with `read`. Left
    /// out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// Revision of the protocol it speaks; absent before the first connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What it calls itself, with its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub implementation: Option<String>,
    /// Tools it lists.
    pub tools: usize,
    /// Of these, tools that may be used.
    pub approved: usize,
    /// Of these, tools that wait for a person.
    pub quarantined: usize,
    /// Processes started or connections made for it since the daemon started.
    pub connections: u64,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When it was found first.
    #[schema(value_type = String)]
    pub first_seen: Timestamp,
    /// When it was found last.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
}

/// Answer of `GET /api/v1/servers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServerList {
    /// The servers, by name.
    pub servers: Vec<ServerView>,
}

/// Query of `GET /api/v1/tools/search`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct SearchQuery {
    /// What is needed, in words.
    pub q: String,
    /// Most hits, 1 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Only tools of this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Only tools with this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// How a search was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SearchMode {
    /// By words and by meaning.
    Hybrid,
    /// By words alone: there is no embedding model, or it failed.
    Words,
}

/// Why a tool was found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Reasons {
    /// BM25, in its own scale.
    pub bm25: f32,
    /// Cosine of the embeddings; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f32>,
    /// The words of the query that were found.
    pub words: Vec<String>,
}

/// A tool that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HitView {
    /// `SERVER__TOOL`.
    pub id: String,
    /// Its server.
    pub server: String,
    /// Its name at the server.
    pub name: String,
    /// What it says it does.
    pub description: String,
    /// Fused score, 0 to 1; comparable within one answer.
    pub score: f32,
    /// Why it was found.
    pub reasons: Reasons,
    /// What happens when the caller calls it.
    pub policy: Policy,
    /// Whether its server answers now.
    pub available: bool,
}

/// Answer of `GET /api/v1/tools/search`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SearchAnswer {
    /// The query.
    pub query: String,
    /// How it was searched.
    pub mode: SearchMode,
    /// Id of the embedding model; absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Time it took, in milliseconds.
    pub took_ms: f64,
    /// The tools, best first.
    pub hits: Vec<HitView>,
}

/// Body of `POST /api/v1/tools/{id}/call`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CallBody {
    /// Its arguments, by name.
    #[schema(value_type = Object)]
    pub arguments: serde_json::Map<String, Value>,
    /// The caller, a person, has agreed to this call: needed where the policy is `ask`.
    pub confirmed: bool,
}

/// Answer of `POST /api/v1/tools/{id}/call`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CallAnswer {
    /// MCP's result, as the server gave it.
    #[schema(value_type = Object)]
    pub result: Value,
    /// Whether the tool says that it failed.
    pub is_error: bool,
    /// Time it took, in milliseconds.
    pub took_ms: f64,
}

/// Body of `POST /api/v1/tools/{id}/approve` and of `POST /api/v1/servers/{name}/approve`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApproveBody {
    /// The hash that was looked at; the approval fails if it has changed since. Absent: whatever it is now. For a
    /// server: its `fingerprint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// For a server: approve all its tools that have no finding above `info` and that no person put aside as well.
    pub tools: bool,
    /// For a server that is a program: TCP it may use, `none` or `host`. When one of `network`, `read` and `write` is
    /// given, they are all that is granted; without any, an approved server keeps what it has and another gets nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub network: Option<Network>,
    /// For a server that is a program: paths it may read besides the system's own. `~` is the daemon's home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub read: Option<Vec<PathBuf>>,
    /// For a server that is a program: paths it may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub write: Option<Vec<PathBuf>>,
}

impl ApproveBody {
    /// What is to be granted; `None`: it says nothing of that.
    pub fn grant(&self) -> Option<Grant> {
        let said = self.network.is_some() || self.read.is_some() || self.write.is_some();
        said.then(|| Grant {
            network: self.network.unwrap_or(Network::None),
            read: self.read.clone().unwrap_or_default(),
            write: self.write.clone().unwrap_or_default(),
        })
    }
}

/// What the program of a server may touch besides what every one may, in the words of `tools.servers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grant {
    /// TCP it may use: `none` or `host`.
    #[schema(value_type = String)]
    pub network: Network,
    /// Paths it may read.
    #[schema(value_type = Vec<String>)]
    pub read: Vec<PathBuf>,
    /// Paths it may write.
    #[schema(value_type = Vec<String>)]
    pub write: Vec<PathBuf>,
}

impl Default for Grant {
    fn default() -> Self {
        Self { network: Network::None, read: Vec::new(), write: Vec::new() }
    }
}

impl Grant {
    /// Whether it grants nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Body of `POST /api/v1/tools/{id}/quarantine`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuarantineBody {
    /// Why.
    pub reason: String,
    /// For good (`blocked`): it is not looked at again when its definition changes.
    pub block: bool,
}

/// Something that changed, for `GET /api/v1/changes` (newest first).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeView {
    /// Number; later changes have greater ones.
    pub id: i64,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// What: `server-found`, `server-changed`, `server-approved`, `server-rejected`, `server-gone`, `tool-added`,
    /// `tool-changed`, `tool-approved`, `tool-quarantined`, `tool-blocked`, `tool-gone`, `tool-back`.
    pub kind: String,
    /// The server.
    pub server: String,
    /// The tool, as `SERVER__TOOL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Hash before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Hash after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who: the name of a key, or `discovery`.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// Answer of `GET /api/v1/changes?before=&limit=`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangeList {
    /// Newest first.
    pub changes: Vec<ChangeView>,
    /// Pass as `before` for the next page; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_before: Option<i64>,
}

/// Answer of `POST /api/v1/tools/discover`: what a round of discovery did. `GET` gives the last one with every tool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct RoundView {
    /// Rounds since the daemon started.
    pub round: u64,
    /// When it ended; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished: Option<Timestamp>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// Servers found, by where.
    pub found: std::collections::BTreeMap<String, usize>,
    /// What could not be looked at, one sentence each.
    pub problems: Vec<String>,
    /// Changes it made.
    pub changes: usize,
}

/// Answer of `GET /api/v1/tools/discover`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Discovered {
    /// The last round.
    pub round: RoundView,
    /// How many tools may be called now.
    pub count: usize,
    /// The tools that may be called now.
    pub tools: Vec<ToolView>,
    /// The servers.
    pub servers: Vec<ServerView>,
}

/// Answer of `GET /api/v1/statistics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// Tools by state, those that are gone left out.
    pub tools: std::collections::BTreeMap<String, usize>,
    /// Servers by health.
    pub servers: std::collections::BTreeMap<String, usize>,
    /// Calls of all tools.
    pub calls: CallStatistics,
    /// Searches since the daemon started, with their times.
    pub searches: CallStatistics,
    /// Tools with an embedding of the present model.
    pub embedded: usize,
    /// Id of the embedding model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Why tools are found by words alone; absent if they are not, or if that is what the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_problem: Option<String>,
    /// The most used tools: id and statistics.
    pub most_used: Vec<UsedTool>,
}

/// A tool and how calls of it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsedTool {
    /// `SERVER__TOOL`.
    pub id: String,
    /// How calls went.
    pub statistics: CallStatistics,
}
