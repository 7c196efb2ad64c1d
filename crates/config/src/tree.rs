//! The configuration tree: every section, key, default and unit.
//!
//! Field docs become the descriptions of the JSON Schema, so they say what a person who tunes the key needs to know.

mod healer;
mod tools;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::size::ByteSize;

pub use healer::{HealedUnit, Healer, HealthProbe};
pub use tools::{
    Embedding, GatewayMode, McpEra, ToolAction, ToolDiscovery, ToolGateway, ToolRule, ToolSearch, ToolServer, Tools,
    Toolset,
};

/// The whole configuration of every daemon and of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory that holds everything Lares writes: database cluster, models, worktrees, logs, keys.
    pub state_dir: PathBuf,
    /// What is logged, and how it looks.
    pub log: Log,
    /// PostgreSQL, vectors and cache.
    pub store: Store,
    /// How long keys are remembered.
    pub gate: Gate,
    /// The supervisor behind `lares up`.
    pub units: Units,
    /// Where `llama-server` and the model files are, and how much memory they may take.
    pub llama: Llama,
    /// The local models, one `llama-server` each; the key is the name clients ask for.
    pub models: BTreeMap<String, Model>,
    /// The OpenAI-compatible door.
    pub coordinator: Coordinator,
    /// Coding agents and their confinement.
    pub agents: Agents,
    /// The loop that works on tasks.
    pub ralph: Ralph,
    /// What keeps units running.
    pub healer: Healer,
    /// The registry of tools and the door to them.
    pub tools: Tools,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: default_state_dir(),
            log: Log::default(),
            store: Store::default(),
            gate: Gate::default(),
            units: Units::default(),
            llama: Llama::default(),
            models: BTreeMap::new(),
            coordinator: Coordinator::default(),
            agents: Agents::default(),
            ralph: Ralph::default(),
            healer: Healer::default(),
            tools: Tools::default(),
        }
    }
}

/// `/var/lib/lares` for root, else `$XDG_STATE_HOME/lares` or `~/.local/state/lares`.
///
/// Root gets a directory outside its home because a private PostgreSQL cluster then runs as another user, who has to
/// be able to walk down to it.
fn default_state_dir() -> PathBuf {
    if nix::unistd::Uid::effective().is_root() {
        return PathBuf::from("/var/lib/lares");
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("lares")
}

/// What is logged, and how it looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Filter in `tracing` syntax, for example `info` or `info,lares_ralph=debug`.
    pub level: String,
    /// Shape of a log line.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// `journald` under systemd (when `JOURNAL_STREAM` is set), else `text`.
    Auto,
    /// One line of text a record, on standard error.
    Text,
    /// One JSON object a record, on standard error.
    Json,
    /// Structured fields to journald's own socket.
    Journald,
}

/// PostgreSQL, vectors and cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// PostgreSQL to use, as a `postgres://` URL or a `key=value` connection string. Empty: `lares up` runs a private
    /// cluster in the state directory and the daemons find it there. Put a password into `url_file`, not here.
    pub url: String,
    /// File holding the connection string; wins over `url`. For credentials (`LoadCredential`).
    pub url_file: Option<PathBuf>,
    /// Most connections a daemon keeps open.
    pub pool_size: u32,
    /// Longest wait for a connection, then the request fails.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// The private cluster of `lares up`.
    pub cluster: Cluster,
    /// Where embeddings are kept and searched.
    pub vectors: Vectors,
    /// Where cached answers are kept.
    pub cache: Cache,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: String::new(),
            url_file: None,
            pool_size: 8,
            connect_timeout: Duration::from_secs(10),
            cluster: Cluster::default(),
            vectors: Vectors::default(),
            cache: Cache::default(),
        }
    }
}

/// The private PostgreSQL cluster of `lares up`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Directory with `initdb` and `postgres`. Unset: PATH, then the places distributions use.
    pub bin_dir: Option<PathBuf>,
    /// User that runs it when Lares runs as root (PostgreSQL refuses root). Unset: `postgres`, else `nobody`.
    pub user: Option<String>,
}

/// Where embeddings are kept and searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vectors {
    /// Which implementation.
    pub backend: VectorsBackend,
    /// Qdrant's gRPC URL, for `qdrant`.
    pub url: String,
    /// File with Qdrant's API key.
    pub api_key_file: Option<PathBuf>,
    /// Width of every vector: that of the embedding model (384 for all-MiniLM-L6-v2).
    pub dimensions: u32,
}

impl Default for Vectors {
    fn default() -> Self {
        Self {
            backend: VectorsBackend::Memory,
            url: "http://127.0.0.1:6334".to_owned(),
            api_key_file: None,
            dimensions: 384,
        }
    }
}

/// Implementations of vector search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VectorsBackend {
    /// Exact search in memory, persisted in PostgreSQL.
    Memory,
    /// A Qdrant server.
    Qdrant,
}

/// Where cached answers are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Which implementation.
    pub backend: CacheBackend,
    /// Valkey or Redis URL (`redis://` or `redis+unix://`), for `redis`.
    pub url: String,
    /// Most entries the in-process cache keeps; the least recently used goes first.
    pub max_entries: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self { backend: CacheBackend::InProcess, url: "redis://127.0.0.1:6379".to_owned(), max_entries: 10_000 }
    }
}

/// Implementations of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CacheBackend {
    /// In this process only.
    InProcess,
    /// Valkey or Redis, shared between workers.
    Redis,
}

/// How long keys are remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// How often the list of keys is read again even if PostgreSQL announced no change.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub keys_refresh: Duration,
    /// How long the last list stays good while PostgreSQL cannot be reached; after that every request gets 503.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub keys_max_age: Duration,
}

impl Default for Gate {
    fn default() -> Self {
        Self { keys_refresh: Duration::from_secs(30), keys_max_age: Duration::from_secs(600) }
    }
}

/// The supervisor behind `lares up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Units {
    /// Wait before the first restart of a unit that died.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub restart_delay: Duration,
    /// The wait doubles with each restart in a row, up to this.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub restart_delay_max: Duration,
    /// Longest wait for a unit to become ready; then it is stopped and started again.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub start_timeout: Duration,
    /// Longest wait for a unit to stop by itself; then its process group is killed.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub stop_timeout: Duration,
    /// Size at which a unit's log file is rotated; one old file is kept.
    pub log_max: ByteSize,
}

impl Default for Units {
    fn default() -> Self {
        Self {
            restart_delay: Duration::from_millis(100),
            restart_delay_max: Duration::from_secs(10),
            start_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(5),
            log_max: ByteSize::mib(10),
        }
    }
}

/// Where `llama-server` and the model files are, and how much memory they may take.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Llama {
    /// The `llama-server` binary. Unset: PATH, then what `lares engine install` built.
    pub server: Option<PathBuf>,
    /// Where model files are kept, named by hash. Unset: `models` in the state directory.
    pub models_dir: Option<PathBuf>,
    /// Where `lares engine install` keeps what it built. Unset: `engines` in the state directory.
    pub engines_dir: Option<PathBuf>,
    /// Memory all local models may take together. Unset: what the machine has available when they start.
    pub memory_budget: Option<ByteSize>,
}

/// One local model. What is here is intent; the flags are the `llama-server` binary's own, looked up when it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Name in the model catalog (`lares model list`). Exactly one of `source`, `path`, `url` is set.
    pub source: Option<String>,
    /// A GGUF file that is already there.
    pub path: Option<PathBuf>,
    /// Where to fetch the GGUF file from; needs `sha256`.
    pub url: Option<String>,
    /// SHA-256 of the file behind `url`, 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// Other names clients may use for it.
    pub aliases: Vec<String>,
    /// TCP port on 127.0.0.1. 0: `lares up` picks a free one from 8080 on.
    pub port: u16,
    /// Tokens of context each request gets (prompt and answer together).
    pub context_size: u32,
    /// Requests served at the same time; each has `context_size` tokens, so memory grows with it.
    pub slots: u32,
    /// Type of the KV cache. Quantised types need flash attention and save memory; on CPU they cost prompt speed.
    pub kv_type: KvType,
    /// Flash attention.
    pub flash_attention: Toggle,
    /// Keep the weights in RAM (mlock). Needs the `memlock` limit raised.
    pub lock_memory: bool,
    /// How to spread over NUMA nodes. Unset: not at all.
    pub numa: Option<Numa>,
    /// Threads. Unset: the physical cores this process may use.
    pub threads: Option<u32>,
    /// Most tokens a prompt is taken in at a time (logical batch).
    pub batch_size: u32,
    /// Tokens computed at a time (physical batch). Small values save memory and are faster on CPU: 128 against 512
    /// gave 12 % more tokens/s over four streams of Qwen2.5-Coder 1.5B on two cores.
    pub micro_batch_size: u32,
    /// Layers offloaded to the GPU. Unset: the binary's own choice.
    pub gpu_layers: Option<u32>,
    /// Serve embeddings (and only embeddings).
    pub embeddings: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            source: None,
            path: None,
            url: None,
            sha256: None,
            aliases: Vec::new(),
            port: 0,
            context_size: 8192,
            slots: 1,
            kv_type: KvType::F16,
            flash_attention: Toggle::On,
            lock_memory: false,
            numa: None,
            threads: None,
            batch_size: 2048,
            micro_batch_size: 128,
            gpu_layers: None,
            embeddings: false,
        }
    }
}

/// Element type of the KV cache; the names are llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are llama.cpp's own")]
pub enum KvType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
}

/// On, off, or what the binary thinks best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they are what they say")]
pub enum Toggle {
    On,
    Off,
    Auto,
}

/// NUMA strategies of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Numa {
    /// Spread evenly over all nodes.
    Distribute,
    /// Only the node the process started on.
    Isolate,
    /// The CPU map of `numactl`.
    Numactl,
}

/// The OpenAI-compatible door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Coordinator {
    /// Address and port.
    pub listen: SocketAddr,
    /// Most requests waiting for a free upstream; one more gets 429.
    pub max_queued: u32,
    /// Longest wait for a free upstream; then 503.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub queue_timeout: Duration,
    /// Longest wait for an upstream's first byte.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub first_byte_timeout: Duration,
    /// Longest silence between two bytes of an answer.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// Tries after the first, on another upstream where there is one, only before the first byte of the answer.
    pub retries: u32,
    /// Largest request body.
    pub max_body: ByteSize,
    /// OpenAI-compatible servers beside the local models; the key is a name of your choice.
    pub upstreams: BTreeMap<String, Upstream>,
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8092)),
            max_queued: 256,
            queue_timeout: Duration::from_secs(300),
            first_byte_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(120),
            retries: 2,
            max_body: ByteSize::mib(16),
            upstreams: BTreeMap::new(),
        }
    }
}

/// One OpenAI-compatible server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Base URL up to and including `/v1`.
    pub url: String,
    /// The models it serves: the name clients use = the name the upstream knows.
    pub models: BTreeMap<String, String>,
    /// File with the API key sent as `Authorization: Bearer`.
    pub api_key_file: Option<PathBuf>,
    /// Most requests sent to it at the same time; further ones queue.
    pub max_in_flight: u32,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { url: String::new(), models: BTreeMap::new(), api_key_file: None, max_in_flight: 8 }
    }
}

/// Coding agents and their confinement.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Agents {
    /// The built-in agent.
    pub builtin: Builtin,
    /// What a run (an agent's or a check's) may touch.
    pub sandbox: Sandbox,
}

/// The built-in agent, made for models of 0.5 to 7 billion parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Builtin {
    /// Model to ask, by a name the coordinator knows. Empty: the first local model that is not for embeddings.
    pub model: String,
    /// Form in which edits are asked for.
    pub edit_format: EditFormat,
    /// Most bytes of a prompt. Small models get worse long before their window is full.
    pub max_prompt: ByteSize,
    /// Most tokens of an answer.
    pub max_answer_tokens: u32,
    /// Longest wait for the whole answer.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub answer_timeout: Duration,
}

impl Default for Builtin {
    fn default() -> Self {
        Self {
            model: String::new(),
            edit_format: EditFormat::Auto,
            max_prompt: ByteSize::kib(12),
            max_answer_tokens: 2048,
            answer_timeout: Duration::from_secs(600),
        }
    }
}

/// Form in which the built-in agent asks for edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EditFormat {
    /// Whole files below 14 billion parameters (or when the size is not known), search/replace from there on.
    Auto,
    /// Whole files in fenced blocks.
    WholeFile,
    /// Search/replace blocks.
    SearchReplace,
}

/// What a run (an agent's or a check's) may touch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// Whether a run without confinement is refused.
    pub mode: SandboxMode,
    /// Paths a run may read and execute besides the system's own (`/usr`, `/etc`, `/nix/store`, …) and its worktree.
    /// `~` is the home directory. The default is where language toolchains are installed for one user.
    pub read: Vec<PathBuf>,
    /// Paths a run may also write, such as a shared build cache.
    pub write: Vec<PathBuf>,
    /// TCP for checks. Agents reach the coordinator and nothing else, whatever this says.
    pub check_network: Network,
    /// Most memory (address space) of each process.
    pub max_memory: ByteSize,
    /// Largest file a run may write.
    pub max_file: ByteSize,
    /// Most processes and threads of a run's process tree.
    pub max_processes: u32,
    /// Most bytes of output kept: the first and the last half of it. The rest is read and dropped.
    pub max_output: ByteSize,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            mode: SandboxMode::Require,
            read: ["~/.cargo", "~/.rustup", "~/.pyenv", "~/.local", "~/.nvm", "~/.npm", "~/go"]
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            write: Vec::new(),
            check_network: Network::None,
            max_memory: ByteSize::gib(8),
            max_file: ByteSize::gib(1),
            max_processes: 512,
            max_output: ByteSize::kib(256),
        }
    }
}

/// Whether a run without confinement is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// Refuse to run where the kernel lacks Landlock.
    Require,
    /// Run with resource limits only. Whatever the agent or the check does, it does as the user of the daemon.
    Off,
}

/// TCP of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// No TCP at all, not even on loopback.
    None,
    /// That of the machine.
    Host,
}

/// The loop that works on tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ralph {
    /// Address and port.
    pub listen: SocketAddr,
    /// Tasks worked on at the same time by this process.
    pub workers: u32,
    /// Where worktrees are made. Unset: `worktrees` in the state directory.
    pub worktrees_dir: Option<PathBuf>,
    /// Base URL of the coordinator up to and including `/v1`. Empty: made from `coordinator.listen`.
    pub coordinator_url: String,
    /// File with the key that ralph shows the coordinator. Unset: `keys/agent.key` in the state directory.
    pub coordinator_key_file: Option<PathBuf>,
    /// How long a worker may be silent before another takes its task over. The heartbeat comes three times as often.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub lease: Duration,
    /// Iterations of a task that does not say.
    pub max_iterations: u32,
    /// Longest a task may run when it does not say.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Longest one run of the agent.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub iteration_timeout: Duration,
    /// Longest one run of the check.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub check_timeout: Duration,
    /// Most tasks that wait; one more gets 429.
    pub max_queued: u32,
    /// Free space the state directory must have before an iteration starts.
    pub min_free_disk: ByteSize,
}

impl Default for Ralph {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8098)),
            workers: 1,
            worktrees_dir: None,
            coordinator_url: String::new(),
            coordinator_key_file: None,
            lease: Duration::from_secs(30),
            max_iterations: 10,
            timeout: Duration::from_secs(3600),
            iteration_timeout: Duration::from_secs(900),
            check_timeout: Duration::from_secs(300),
            max_queued: 1000,
            min_free_disk: ByteSize::mib(256),
        }
    }
}

impl Config {
    /// Where model files are kept.
    pub fn models_dir(&self) -> PathBuf {
        self.llama.models_dir.clone().unwrap_or_else(|| self.state_dir.join("models"))
    }

    /// Where `lares engine install` keeps what it built.
    pub fn engines_dir(&self) -> PathBuf {
        self.llama.engines_dir.clone().unwrap_or_else(|| self.state_dir.join("engines"))
    }

    /// Where worktrees of tasks are made.
    pub fn worktrees_dir(&self) -> PathBuf {
        self.ralph.worktrees_dir.clone().unwrap_or_else(|| self.state_dir.join("worktrees"))
    }

    /// Base URL of the coordinator, up to and including `/v1`.
    pub fn coordinator_url(&self) -> String {
        if self.ralph.coordinator_url.is_empty() {
            format!("http://{}/v1", self.coordinator.listen)
        } else {
            self.ralph.coordinator_url.clone()
        }
    }

    /// File with the key that ralph shows the coordinator.
    pub fn agent_key_file(&self) -> PathBuf {
        self.ralph.coordinator_key_file.clone().unwrap_or_else(|| self.state_dir.join("keys/agent.key"))
    }

    /// File with the key that local llama-servers ask for and the coordinator shows.
    pub fn llama_key_file(&self) -> PathBuf {
        self.state_dir.join("keys/llama.key")
    }

    /// File with the first key, made by `lares up`; what the command line shows when nothing else is given.
    pub fn admin_key_file(&self) -> PathBuf {
        self.state_dir.join("keys/admin.key")
    }

    /// Model the built-in agent asks: the configured one, else the first local one that answers chats.
    pub fn builtin_model(&self) -> Option<&str> {
        let configured = self.agents.builtin.model.as_str();
        if !configured.is_empty() {
            return Some(configured);
        }
        self.models
            .iter()
            .find(|(_, model)| !model.embeddings)
            .map(|(name, _)| name.as_str())
            .or_else(|| self.coordinator.upstreams.values().flat_map(|u| u.models.keys()).next().map(String::as_str))
    }
}
