//! The port between the HTTP routes and what the registry keeps: tools, servers, versions, changes. `desk` is the real
//! one. Searching and calling go through [`crate::offers::Offers`].

use async_trait::async_trait;
use lares_gate::Caller;
use lares_store::audit::Entry;

use crate::api::{
    ApproveBody, ChangeList, Discovered, QuarantineBody, RoundView, ServerList, ServerView, Statistics, ToolDetails,
    ToolList, ToolQuery, ToolView,
};
use crate::definition::{ServerName, ToolId};

/// Why the registry does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// No such tool. The routes add the nearest names.
    #[error("there is no tool `{0}`")]
    NoTool(ToolId),
    /// No such server. The routes add the nearest names.
    #[error("there is no tool server `{0}`")]
    NoServer(ServerName),
    /// It is not any more what the caller looked at.
    #[error("`{what}` has changed since it was looked at: now it is {now}")]
    Changed {
        /// The tool or server.
        what: String,
        /// Its present hash or fingerprint.
        now: String,
    },
    /// It is in a state in which that makes no sense. The text says which, and what to do.
    #[error("{0}")]
    Conflict(String),
    /// It takes too long or something is away; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] lares_store::Error),
}

/// What the registry keeps, and what a person may do about it.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Tools by id. `query.limit` was checked, or is absent. What policy hides from the caller is listed all the same,
    /// with [`Policy::Deny`](crate::api::Policy::Deny): this is the view of people who manage tools.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    async fn tools(&self, query: &ToolQuery, caller: &Caller) -> Result<ToolList, RecordError>;

    /// One tool with its versions; also one that is gone.
    ///
    /// # Errors
    /// When there is none, or PostgreSQL fails.
    async fn details(&self, id: &ToolId, caller: &Caller) -> Result<ToolDetails, RecordError>;

    /// Lets the present definition of a tool be used.
    ///
    /// # Errors
    /// When there is none, `body.hash` is not its hash any more, or PostgreSQL fails.
    async fn approve(&self, id: &ToolId, body: &ApproveBody, caller: &Caller) -> Result<ToolView, RecordError>;

    /// Puts a tool aside, until it is approved or (`body.block`) for good.
    ///
    /// # Errors
    /// When there is none, or PostgreSQL fails.
    async fn quarantine(&self, id: &ToolId, body: &QuarantineBody, caller: &Caller) -> Result<ToolView, RecordError>;

    /// All servers, by name.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    async fn servers(&self) -> Result<ServerList, RecordError>;

    /// One server.
    ///
    /// # Errors
    /// When there is none, or PostgreSQL fails.
    async fn server(&self, name: &ServerName) -> Result<ServerView, RecordError>;

    /// Lets a server be started or connected to, and touch what `body` grants; with `body.tools`, its harmless tools are
    /// approved as well. The paths of `body` were checked.
    ///
    /// # Errors
    /// When there is none, `body.hash` is not its fingerprint any more, it cannot be granted that, or PostgreSQL fails.
    async fn approve_server(
        &self,
        name: &ServerName,
        body: &ApproveBody,
        caller: &Caller,
    ) -> Result<ServerView, RecordError>;

    /// Ends the use of a server, or says that a proposed one is not wanted.
    ///
    /// # Errors
    /// When there is none, it is declared in the configuration, or PostgreSQL fails.
    async fn reject_server(&self, name: &ServerName, caller: &Caller) -> Result<ServerView, RecordError>;

    /// What changed, newest first, older than `before`, at most `limit` of them.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    async fn changes(&self, before: Option<i64>, limit: usize) -> Result<ChangeList, RecordError>;

    /// How things are.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    async fn statistics(&self) -> Result<Statistics, RecordError>;

    /// The last round of discovery, with every tool that the caller may call now.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    async fn discovered(&self, caller: &Caller) -> Result<Discovered, RecordError>;

    /// A round of discovery now; a round under way counts, and is waited for.
    ///
    /// # Errors
    /// When it does not end in time.
    async fn discover_now(&self, caller: &Caller) -> Result<RoundView, RecordError>;

    /// The ids of all tools that are not gone, from memory: for hints in errors.
    fn tool_ids(&self) -> Vec<ToolId>;

    /// The names of all servers, from memory: for hints in errors.
    fn server_names(&self) -> Vec<ServerName>;

    /// Writes a line of the audit log. What goes wrong is logged: the change has happened already.
    async fn audit(&self, entry: Entry);
}
