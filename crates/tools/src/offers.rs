//! The port between the gateway (and the HTTP routes) and what is offered to a caller. `desk` is the real one.

use std::sync::Arc;

use async_trait::async_trait;
use lares_config::GatewayMode;
use lares_gate::Caller;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, GetPromptRequestParams,
    GetPromptResponse, Prompt, ReadResourceRequestParams, ReadResourceResponse, Resource, ResourceTemplate,
};
use tokio::sync::broadcast;

use crate::api::{Policy, SearchAnswer, SearchQuery};
use crate::definition::{Definition, ToolId};
use crate::port::{CallContext, UpstreamError};

/// A caller and the selection of tools it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Who.
    pub caller: Caller,
    /// Name of the toolset; `None`: everything that policy lets the caller see.
    pub toolset: Option<String>,
    /// What is shown.
    pub mode: GatewayMode,
    /// Whether names carry their server's.
    pub namespaces: bool,
}

/// A tool as a caller sees it: approved, not denied, listed by its server.
#[derive(Debug, Clone, PartialEq)]
pub struct Offered {
    /// Its id.
    pub id: ToolId,
    /// Its name in this view: the id, or the name at the server where the view has no namespaces.
    pub shown: String,
    /// The approved definition.
    pub definition: Arc<Definition>,
    /// Whether a call is carried out at once or a person is asked first (never `deny`).
    pub policy: Policy,
    /// Whether its server answers now.
    pub available: bool,
}

/// Something a list of a client may have become old by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListChange {
    /// Tools.
    Tools,
    /// Resources or templates.
    Resources,
    /// Prompts.
    Prompts,
    /// One resource, by the URI the gateway shows.
    Resource(String),
}

/// Why the caller does not get what it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// No such toolset, or not for this key.
    #[error("there is no toolset `{0}` for this key")]
    Toolset(String),
    /// No such tool in this view.
    #[error("there is no tool `{name}` here{hint}")]
    NoTool {
        /// As asked for.
        name: String,
        /// What to do, beginning with `;`, or empty.
        hint: String,
    },
    /// It may not be called: quarantined or blocked.
    #[error("tool `{id}` may not be called: {reason}")]
    Held {
        /// The tool.
        id: ToolId,
        /// Why, and what a person can do.
        reason: String,
    },
    /// Policy refuses it.
    #[error("policy does not allow `{caller}` to call `{id}`")]
    Denied {
        /// The tool.
        id: ToolId,
        /// Name of the key.
        caller: String,
    },
    /// Policy wants a person's consent and there is nobody to ask.
    #[error("policy wants a person's consent for `{0}`, and this client cannot ask; use `lares tools call {0}`")]
    Consent(ToolId),
    /// A person said no.
    #[error("a person declined the call of `{0}`")]
    Declined(ToolId),
    /// No such resource or prompt in this view.
    #[error("there is no {what} `{name}` here")]
    NotFound {
        /// `resource` or `prompt`.
        what: &'static str,
        /// As asked for.
        name: String,
    },
    /// The query makes no sense.
    #[error("{0}")]
    Query(String),
    /// The server.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// What is offered to callers.
#[async_trait]
pub trait Offers: Send + Sync + 'static {
    /// What a caller sees at `/mcp` (`toolset` absent) or `/mcp/TOOLSET`.
    ///
    /// # Errors
    /// When there is no such toolset for the caller.
    fn view(&self, caller: &Caller, toolset: Option<&str>) -> Result<View, OfferError>;

    /// The tools in a view, by id.
    fn tools(&self, view: &View) -> Vec<Arc<Offered>>;

    /// One tool of a view, by its shown name or its id.
    ///
    /// # Errors
    /// When it is not there, or may not be called; the error says which.
    fn tool(&self, view: &View, name: &str) -> Result<Arc<Offered>, OfferError>;

    /// Finds tools of a view by words and meaning.
    ///
    /// # Errors
    /// When the query is empty or too long.
    async fn search(&self, view: &View, query: &SearchQuery) -> Result<SearchAnswer, OfferError>;

    /// Calls a tool of a view by its shown name or its id, policy included. `confirmed`: a person agreed already; else,
    /// where policy says `ask`, the client is asked through elicitation.
    ///
    /// # Errors
    /// When it may not be called, or the server fails. Whether the arguments fit is the server's to say.
    async fn call(
        &self,
        view: &View,
        params: CallToolRequestParams,
        confirmed: bool,
        context: CallContext,
    ) -> Result<CallToolResponse, OfferError>;

    /// The resources in a view. URIs are the servers' own; where two servers have the same one, the first by name wins.
    fn resources(&self, view: &View) -> Vec<Resource>;

    /// The resource templates in a view.
    fn templates(&self, view: &View) -> Vec<ResourceTemplate>;

    /// The prompts in a view, named like tools.
    fn prompts(&self, view: &View) -> Vec<Prompt>;

    /// Reads a resource.
    ///
    /// # Errors
    /// When it is not there or the server fails.
    async fn read_resource(
        &self,
        view: &View,
        params: ReadResourceRequestParams,
        context: CallContext,
    ) -> Result<ReadResourceResponse, OfferError>;

    /// Gets a prompt.
    ///
    /// # Errors
    /// When it is not there or the server fails.
    async fn get_prompt(
        &self,
        view: &View,
        params: GetPromptRequestParams,
        context: CallContext,
    ) -> Result<GetPromptResponse, OfferError>;

    /// Completes an argument.
    ///
    /// # Errors
    /// When what it belongs to is not there or the server fails.
    async fn complete(
        &self,
        view: &View,
        params: CompleteRequestParams,
        context: CallContext,
    ) -> Result<CompleteResult, OfferError>;

    /// Asks to be told of changes of a resource ([`ListChange::Resource`]), or no more. Counted by key and toolset: what
    /// one lets go of goes on for the others.
    ///
    /// # Errors
    /// When it is not there or the server fails.
    async fn watch_resource(&self, view: &View, uri: &str, watch: bool) -> Result<(), OfferError>;

    /// What changes from now on. A listener that missed some takes everything for changed.
    fn changes(&self) -> broadcast::Receiver<ListChange>;
}
