//! What callers get: the tools, resources and prompts of their view, searched and called under the same policy whichever
//! way they come.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use lares_gate::Caller;
use lares_store::events::Event;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, GetPromptRequestParams,
    GetPromptResponse, Prompt, ReadResourceRequestParams, ReadResourceResponse, Reference, Resource, ResourceTemplate,
};
use serde_json::json;
use tokio::sync::broadcast;

use super::Desk;
use super::consent::Answer;
use crate::api::{Health, HitView, Policy, SearchAnswer, SearchQuery, ToolState};
use crate::definition::{SEPARATOR, ServerName, ToolId};
use crate::finder::Wanted;
use crate::offers::{ListChange, OfferError, Offered, Offers, View};
use crate::port::{CallContext, UpstreamError, UpstreamStatus};
use crate::registry::{Server, Tool};

/// Longest query, in characters: beyond that the embedding model reads no further anyway.
const MAX_QUERY: usize = 2000;
/// Most hits of one search.
const MAX_HITS: usize = 100;
/// Names that an error suggests.
const NEAREST: usize = 3;

impl Desk {
    /// What happens when a caller calls a tool of its view; `deny` also for what is outside the view.
    fn policy(&self, view: &View, id: &ToolId) -> Policy {
        let inside = match &view.toolset {
            Some(name) => self.policies.toolset(name).is_some_and(|toolset| toolset.contains(id)),
            None => true,
        };
        if inside { self.policies.decide(&view.caller.name, id) } else { Policy::Deny }
    }

    fn offered(&self, view: &View, tool: &Tool, health: &BTreeMap<ServerName, UpstreamStatus>) -> Option<Offered> {
        let definition = tool.offered()?;
        let policy = self.policy(view, &tool.id);
        if policy == Policy::Deny {
            return None;
        }
        let status = health.get(&tool.id.server());
        let shown = if view.namespaces { tool.id.to_string() } else { tool.id.name().to_owned() };
        self.shows(status).then(|| Offered {
            id: tool.id.clone(),
            shown,
            definition: Arc::clone(definition),
            policy,
            available: status.is_some_and(|status| status.health == Health::Up),
        })
    }

    /// The tool of a name in a view: by id, or by its name at the server where the view has no namespaces.
    fn resolve(&self, view: &View, name: &str) -> Option<ToolId> {
        let registry = self.read();
        if let Ok(id) = name.parse::<ToolId>()
            && registry.tools.contains_key(&id)
            && self.policy(view, &id) != Policy::Deny
        {
            return Some(id);
        }
        if view.namespaces {
            return None;
        }
        let named = |tool: &&Tool| tool.id.name() == name && self.policy(view, &tool.id) != Policy::Deny;
        let mut found = registry.tools.values().filter(named).filter(|tool| tool.gone_since.is_none());
        let usable = registry.tools.values().filter(named).find(|tool| tool.offered().is_some());
        usable.or_else(|| found.next()).map(|tool| tool.id.clone())
    }

    /// `; did you mean …` for a name that is not there.
    fn hint(&self, view: &View, name: &str) -> String {
        let tools = self.tools(view);
        let mut near: Vec<(f64, &str)> = tools
            .iter()
            .map(|tool| {
                let likeness = strsim::jaro_winkler(name, &tool.shown).max(strsim::jaro_winkler(name, tool.id.name()));
                (likeness, tool.shown.as_str())
            })
            .filter(|(likeness, _)| *likeness > 0.8)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let near: Vec<String> = near.into_iter().take(NEAREST).map(|(_, name)| format!("`{name}`")).collect();
        if near.is_empty() {
            "; search_tools finds tools by what they do".to_owned()
        } else {
            format!("; did you mean {}?", near.join(" or "))
        }
    }

    /// The servers whose resources and prompts are in a view. Without a toolset: all that are in use. With one: those of
    /// which it names a tool, or might.
    fn servers_of(&self, view: &View) -> Vec<Server> {
        let health = self.health();
        let toolset = view.toolset.as_ref().and_then(|name| self.policies.toolset(name));
        let registry = self.read();
        let inside = |server: &&Server| {
            server.in_use()
                && self.shows(health.get(&server.name))
                && toolset.is_none_or(|toolset| {
                    registry.of(&server.name).any(|tool| tool.gone_since.is_none() && toolset.contains(&tool.id))
                })
        };
        registry.servers.values().filter(inside).cloned().collect()
    }

    /// The server of a resource of a view.
    pub(super) fn server_of_resource(&self, view: &View, uri: &str) -> Result<ServerName, OfferError> {
        let servers = self.servers_of(view);
        let has = |server: &&Server| server.extras.resources.iter().any(|resource| resource.uri == uri);
        if let Some(server) = servers.iter().find(has) {
            return Ok(server.name.clone());
        }
        // Templates: the longest fixed beginning wins, because it says most.
        let fixed = |template: &ResourceTemplate| {
            let fixed = template.uri_template.split('{').next().unwrap_or_default().to_owned();
            uri.starts_with(&fixed).then_some(fixed.len())
        };
        let matching = servers.iter().filter_map(|server| {
            let best = server.extras.templates.iter().filter_map(fixed).max()?;
            Some((best, server))
        });
        // Of equals the first by name.
        let best = matching.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, server)| server.name.clone())
            .ok_or_else(|| OfferError::NotFound { what: "resource", name: uri.to_owned() })
    }

    /// The server of a prompt of a view, and the prompt's name there.
    fn server_of_prompt(&self, view: &View, name: &str) -> Result<(ServerName, String), OfferError> {
        let servers = self.servers_of(view);
        let has = |server: &Server, prompt: &str| server.extras.prompts.iter().any(|known| known.name == prompt);
        if let Some((server, prompt)) = name.split_once(SEPARATOR)
            && let Some(server) = servers.iter().find(|known| known.name.as_str() == server && has(known, prompt))
        {
            return Ok((server.name.clone(), prompt.to_owned()));
        }
        servers
            .iter()
            .find(|server| !view.namespaces && has(server, name))
            .map(|server| (server.name.clone(), name.to_owned()))
            .ok_or_else(|| OfferError::NotFound { what: "prompt", name: name.to_owned() })
    }

    /// Takes down how a call went.
    fn account(&self, view: &View, id: &ToolId, begun: Instant, outcome: &str) {
        let took = begun.elapsed();
        self.count_call(id, took, outcome != "ok");
        self.recorder.record(Event {
            upstream: Some(id.server().to_string()),
            outcome: outcome.to_owned(),
            latency: took,
            detail: json!({"tool": id, "caller": view.caller.name, "toolset": view.toolset}),
            ..Event::new("tool_call")
        });
    }
}

#[async_trait]
impl Offers for Desk {
    fn view(&self, caller: &Caller, toolset: Option<&str>) -> Result<View, OfferError> {
        let toolset = self.policies.toolset_for(&caller.name, toolset).map_err(|error| OfferError::Toolset(error.0))?;
        Ok(match toolset {
            Some(toolset) => View {
                caller: caller.clone(),
                toolset: Some(toolset.name().to_owned()),
                mode: toolset.mode(),
                namespaces: toolset.namespaces(),
            },
            None => {
                View { caller: caller.clone(), toolset: None, mode: self.config.tools.gateway.mode, namespaces: true }
            }
        })
    }

    fn tools(&self, view: &View) -> Vec<Arc<Offered>> {
        let health = self.health();
        let registry = self.read();
        let mut tools: Vec<Arc<Offered>> =
            registry.tools.values().filter_map(|tool| self.offered(view, tool, &health)).map(Arc::new).collect();
        if !view.namespaces {
            // Of two with one name the first by id is the one that a call reaches.
            let mut seen = std::collections::BTreeSet::new();
            tools.retain(|tool| seen.insert(tool.shown.clone()));
        }
        tools
    }

    fn tool(&self, view: &View, name: &str) -> Result<Arc<Offered>, OfferError> {
        let Some(id) = self.resolve(view, name) else {
            return Err(OfferError::NoTool { name: name.to_owned(), hint: self.hint(view, name) });
        };
        let health = self.health();
        let registry = self.read();
        let Some(tool) = registry.tools.get(&id) else {
            return Err(OfferError::NoTool { name: name.to_owned(), hint: String::new() });
        };
        if let Some(offered) = self.offered(view, tool, &health) {
            return Ok(Arc::new(offered));
        }
        if tool.gone_since.is_some() {
            return Err(OfferError::NoTool { name: name.to_owned(), hint: "; its server lists it no more".to_owned() });
        }
        if tool.state != ToolState::Approved {
            let reason = format!("{}; a person can look at it with `lares tools show {id}`", tool.reason);
            return Err(OfferError::Held { id, reason });
        }
        let server = id.server();
        let why = health.get(&server).and_then(|status| status.last_error.clone());
        let why = why.unwrap_or_else(|| "it is not connected".to_owned());
        Err(UpstreamError::Unavailable { server, why }.into())
    }

    async fn search(&self, view: &View, query: &SearchQuery) -> Result<SearchAnswer, OfferError> {
        let begun = Instant::now();
        let text = query.q.trim();
        if text.is_empty() {
            return Err(OfferError::Query("say what is needed, for example `read a file`".to_owned()));
        }
        if text.chars().nth(MAX_QUERY).is_some() {
            return Err(OfferError::Query(format!("a query has at most {MAX_QUERY} characters")));
        }
        let usual = usize::try_from(self.config.tools.search.limit).unwrap_or(MAX_HITS);
        let limit = query.limit.unwrap_or(usual).clamp(1, MAX_HITS);
        let health = self.health();
        let fits = |id: &ToolId| {
            let server_fits = query.server.as_ref().is_none_or(|server| id.server().as_str() == server);
            server_fits && self.policy(view, id) != Policy::Deny && self.shows(health.get(&id.server()))
        };
        let tag = query.tag.as_deref();
        let found = self.finder.search(&Wanted { text, limit, tag, fits: &fits }).await;
        let registry = self.read();
        let hits = found
            .hits
            .into_iter()
            .filter_map(|hit| {
                let tool = registry.tools.get(&hit.id)?;
                let offered = self.offered(view, tool, &health)?;
                Some(HitView {
                    id: offered.id.to_string(),
                    server: offered.id.server().to_string(),
                    name: offered.shown.clone(),
                    description: offered.definition.description.clone().unwrap_or_default(),
                    score: hit.score,
                    reasons: hit.reasons,
                    policy: offered.policy,
                    available: offered.available,
                })
            })
            .collect();
        drop(registry);
        let took_ms = begun.elapsed().as_secs_f64() * 1000.0;
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        searches.add(took_ms, false, jiff::Timestamp::now());
        drop(searches);
        self.metrics.searched(found.mode, begun.elapsed());
        Ok(SearchAnswer { query: text.to_owned(), mode: found.mode, model: found.model, took_ms, hits })
    }

    async fn call(
        &self,
        view: &View,
        mut params: CallToolRequestParams,
        confirmed: bool,
        context: CallContext,
    ) -> Result<CallToolResponse, OfferError> {
        let offered = self.tool(view, &params.name)?;
        let id = offered.id.clone();
        let mut consent = None;
        if offered.policy == Policy::Ask && !confirmed {
            match self.consents.obtain(view.caller.key_id, &id, &mut params, &context).await? {
                Answer::Yes(given) => consent = Some(given),
                Answer::Ask(question) => return Ok(*question),
            }
        }
        params.name = id.name().to_owned().into();
        let begun = Instant::now();
        let called = self.upstreams.call(&id.server(), params, context).await;
        if let Some(given) = consent
            && matches!(called, Ok(CallToolResponse::InputRequired(_)))
        {
            // What the tool asks next makes the client call again: that is the same call still.
            given.goes_on();
        }
        let outcome = match &called {
            Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => "tool_error",
            Ok(_) => "ok",
            Err(UpstreamError::Timeout { .. }) => "timeout",
            Err(UpstreamError::Cancelled) => "cancelled",
            Err(UpstreamError::Unavailable { .. } | UpstreamError::Unknown(_)) => "unavailable",
            Err(UpstreamError::Busy { .. }) => "busy",
            Err(_) => "error",
        };
        self.account(view, &id, begun, outcome);
        let called = called.map_err(OfferError::from);
        self.metrics.called(Some(&id.server()), &called, begun.elapsed());
        called
    }

    fn resources(&self, view: &View) -> Vec<Resource> {
        let mut seen = std::collections::BTreeSet::new();
        let servers = self.servers_of(view);
        let all = servers.iter().flat_map(|server| server.extras.resources.iter());
        all.filter(|resource| seen.insert(resource.uri.clone())).cloned().collect()
    }

    fn templates(&self, view: &View) -> Vec<ResourceTemplate> {
        let mut seen = std::collections::BTreeSet::new();
        let servers = self.servers_of(view);
        let all = servers.iter().flat_map(|server| server.extras.templates.iter());
        all.filter(|template| seen.insert(template.uri_template.clone())).cloned().collect()
    }

    fn prompts(&self, view: &View) -> Vec<Prompt> {
        let mut seen = std::collections::BTreeSet::new();
        let mut prompts = Vec::new();
        for server in self.servers_of(view) {
            for prompt in &server.extras.prompts {
                let mut prompt = prompt.clone();
                if view.namespaces {
                    prompt.name = format!("{}{SEPARATOR}{}", server.name, prompt.name);
                }
                if seen.insert(prompt.name.clone()) {
                    prompts.push(prompt);
                }
            }
        }
        prompts
    }

    async fn read_resource(
        &self,
        view: &View,
        params: ReadResourceRequestParams,
        context: CallContext,
    ) -> Result<ReadResourceResponse, OfferError> {
        let server = self.server_of_resource(view, &params.uri)?;
        Ok(self.upstreams.read_resource(&server, params, context).await?)
    }

    async fn get_prompt(
        &self,
        view: &View,
        mut params: GetPromptRequestParams,
        context: CallContext,
    ) -> Result<GetPromptResponse, OfferError> {
        let (server, name) = self.server_of_prompt(view, &params.name)?;
        params.name = name;
        Ok(self.upstreams.get_prompt(&server, params, context).await?)
    }

    async fn complete(
        &self,
        view: &View,
        mut params: CompleteRequestParams,
        context: CallContext,
    ) -> Result<CompleteResult, OfferError> {
        let server = match &mut params.r#ref {
            Reference::Prompt(prompt) => {
                let (server, name) = self.server_of_prompt(view, &prompt.name)?;
                prompt.name = name;
                server
            }
            Reference::Resource(resource) => self.server_of_template(view, &resource.uri)?,
            other => return Err(OfferError::NotFound { what: "reference", name: format!("{other:?}") }),
        };
        Ok(self.upstreams.complete(&server, params, context).await?)
    }

    async fn watch_resource(&self, view: &View, uri: &str, watch: bool) -> Result<(), OfferError> {
        if watch { self.watch(view, uri).await } else { self.unwatch(view, uri).await }
    }

    fn changes(&self) -> broadcast::Receiver<ListChange> {
        self.bell.subscribe()
    }
}

impl Desk {
    /// The server of a template, given as it is written or as one of its resources.
    fn server_of_template(&self, view: &View, uri: &str) -> Result<ServerName, OfferError> {
        let servers = self.servers_of(view);
        let has = |server: &&Server| server.extras.templates.iter().any(|template| template.uri_template == uri);
        match servers.iter().find(has) {
            Some(server) => Ok(server.name.clone()),
            None => self.server_of_resource(view, uri),
        }
    }
}
