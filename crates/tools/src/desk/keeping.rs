//! What people see and decide: tools and servers with their history, approvals, and how things are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lares_config::Network;
use lares_gate::Caller;
use lares_store::audit::Entry;
use lares_store::tools::{CallCount, ChangeRecord, ChangeWrite, VersionRecord};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Desk;
use crate::api::{
    ApproveBody, ChangeList, ChangeView, DifferenceView, Discovered, Grant, Health, Policy, QuarantineBody, RoundView,
    ServerList, ServerState, ServerView, Severity, Source, Statistics, ToolDetails, ToolList, ToolQuery, ToolState,
    ToolView, UsedTool, VersionView,
};
use crate::definition::{ServerName, ToolId};
use crate::offers::ListChange;
use crate::port::Transport;
use crate::records::{RecordError, Records};
use crate::registry::{Server, Tool, name, statistics};
use crate::upstream::unreadable;
use crate::vetting;

/// Tools in an answer that does not say.
const LIST: usize = 1000;
/// Tools in the list of the most used.
const MOST_USED: usize = 10;
/// Longest wait for servers that are being started, when a person asks for a round.
const SETTLE: Duration = Duration::from_secs(10);
/// Longest a round takes when a person asks for one.
const ROUND: Duration = Duration::from_secs(60);

/// The desk as people see it. It holds the desk itself for rounds, which go on beside.
pub(crate) struct Counter(pub(crate) Arc<Desk>);

impl Desk {
    fn tool_view(&self, tool: &Tool, caller: &Caller, whole: bool) -> ToolView {
        let available = self.health().get(&tool.id.server()).is_some_and(|status| status.health == Health::Up);
        tool.view(self.policies.decide(&caller.name, &tool.id), available, whole)
    }

    fn find(&self, id: &ToolId) -> Result<Tool, RecordError> {
        self.read().tools.get(id).cloned().ok_or_else(|| RecordError::NoTool(id.clone()))
    }

    fn find_server(&self, name: &ServerName) -> Result<Server, RecordError> {
        self.read().servers.get(name).cloned().ok_or_else(|| RecordError::NoServer(name.clone()))
    }

    /// Writes what a person decided on tools of one server, then has it count.
    async fn decide(
        &self,
        server: &ServerName,
        tools: Vec<Tool>,
        approved_by: Option<&str>,
        changes: Vec<ChangeWrite>,
    ) -> Result<(), RecordError> {
        let writes: Vec<_> = tools.iter().map(|tool| tool.write(approved_by)).collect();
        self.store.tools().put_tools(server.as_str(), &writes, &changes).await?;
        let mut registry = self.write();
        for tool in tools {
            self.index(&tool);
            registry.tools.insert(tool.id.clone(), tool);
        }
        drop(registry);
        let _ = self.bell.send(ListChange::Tools);
        Ok(())
    }

    /// One listing of a server at a time, and no listing while a person decides on its tools.
    fn turn(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.listing.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default())
    }

    /// `tool`, approved as it is.
    fn approved(tool: Tool, by: &str) -> Tool {
        Tool {
            state: ToolState::Approved,
            reason: format!("approved by {by}"),
            held_by: None,
            approved_hash: Some(tool.hash.clone()),
            approved: Some(Arc::clone(&tool.definition)),
            ..tool
        }
    }

    fn server_view(&self, name: &ServerName) -> Result<ServerView, RecordError> {
        let health = self.health();
        let registry = self.read();
        let server = registry.servers.get(name).ok_or_else(|| RecordError::NoServer(name.clone()))?;
        Ok(registry.server_view(server, health.get(name)))
    }

    /// What may be granted to a server, with the home directory put in for `~`.
    fn grantable(&self, server: &Server, grant: Grant) -> Result<Grant, RecordError> {
        let refused = |why: String| Err(RecordError::Conflict(why));
        let name = &server.name;
        if server.source == Source::Configuration {
            return refused(format!(
                "`{name}` is declared in the configuration; say there what it may touch: `tools.servers.{name}.read`, \
                 `write` and `network`"
            ));
        }
        if server.transport["kind"] != "stdio" && !grant.is_empty() {
            return refused(format!("`{name}` is reached by a URL; only a program is granted something"));
        }
        let home = lares_sandbox::home();
        let put_in = |paths: Vec<PathBuf>| -> Vec<PathBuf> {
            let mut paths: Vec<PathBuf> =
                paths.iter().filter_map(|path| lares_sandbox::expand(path, home.as_deref())).collect();
            paths.sort();
            paths.dedup();
            paths
        };
        let grant = Grant { network: grant.network, read: put_in(grant.read), write: put_in(grant.write) };
        // Who can write there approves itself.
        let state = &self.config.state_dir;
        if let Some(path) = grant.write.iter().find(|path| path.starts_with(state) || state.starts_with(path)) {
            return refused(format!(
                "what may write {} could write the state of Lares in {}; grant something narrower",
                path.display(),
                state.display()
            ));
        }
        Ok(grant)
    }

    /// What the program of a server, as it would be started now, cannot do without and may not read.
    async fn unreadable(&self, name: &ServerName) -> Vec<String> {
        let program = {
            let registry = self.read();
            let Some(server) = registry.servers.get(name) else { return Vec::new() };
            let Some(found) = &server.found else { return Vec::new() };
            let Transport::Stdio(mut program) = found.transport.clone() else { return Vec::new() };
            program.read.extend(server.granted.read.iter().cloned());
            program.write.extend(server.granted.write.iter().cloned());
            program
        };
        unreadable(&program).await.iter().map(|path| path.display().to_string()).collect()
    }

    /// Takes down that a server may be used, and what it may touch. Gives whether that is anything new.
    async fn let_in(&self, name: &ServerName, body: &ApproveBody, caller: &Caller) -> Result<bool, RecordError> {
        // A round under way has compared already, and would write over this what it found before.
        let _round = self.round.lock().await;
        let server = self.find_server(name)?;
        if let Some(looked_at) = &body.hash
            && server.fingerprint != *looked_at
        {
            return Err(RecordError::Changed { what: name.to_string(), now: server.fingerprint });
        }
        if server.gone_since.is_some() {
            return Err(RecordError::Conflict(format!("`{name}` is found no more; nothing can be approved")));
        }
        if let Some(needs) = server.found.as_ref().map(|found| found.needs.join(", ")).filter(|needs| !needs.is_empty())
        {
            return Err(RecordError::Conflict(format!(
                "`{name}` needs {needs}, which only its client knows; declare it in `tools.servers` to use it"
            )));
        }
        let used = server.state == ServerState::Approved;
        let granted = match body.grant() {
            Some(grant) => self.grantable(&server, grant)?,
            None if used => server.granted.clone(),
            None => Grant::default(),
        };
        if used && granted == server.granted {
            return Ok(false);
        }
        let noted = ChangeWrite { reason: describe(&granted), ..server_change("server-approved", &server, caller) };
        let approved_fingerprint = Some(server.fingerprint.clone());
        let approved = Server { state: ServerState::Approved, approved_fingerprint, granted, ..server };
        self.put_server(approved, noted).await?;
        Ok(true)
    }

    /// Writes a server whose state a person changed.
    async fn put_server(&self, server: Server, change: ChangeWrite) -> Result<(), RecordError> {
        self.store.tools().put_servers(&[server.record()], &[change]).await?;
        self.write().servers.insert(server.name.clone(), server);
        Ok(())
    }

    /// A round of discovery, and a moment for the servers that it has started. It goes on when the caller goes away.
    async fn settled_round(self: &Arc<Self>) -> Result<RoundView, RecordError> {
        let round: JoinHandle<_> = tokio::spawn(settle(Arc::clone(self)));
        timeout(ROUND, round)
            .await
            .map_err(|_| RecordError::Unavailable(format!("the round is not done within {} s", ROUND.as_secs())))?
            .map_err(|_| RecordError::Unavailable("the daemon is about to end".to_owned()))?
    }
}

/// Boxed, because the compiler cannot otherwise show that it may move between threads.
fn settle(desk: Arc<Desk>) -> Pin<Box<dyn Future<Output = Result<RoundView, RecordError>> + Send>> {
    Box::pin(async move {
        let mut done = desk.look().await?;
        let settled = async {
            while desk.upstreams.status().iter().any(|status| status.health == Health::Starting) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // Slow servers are taken down when they answer.
        let _ = timeout(SETTLE, settled).await;
        done.changes += desk.lists().await;
        Ok(done)
    })
}

fn change(kind: &'static str, tool: &Tool, by: &Caller, reason: &str) -> ChangeWrite {
    ChangeWrite {
        kind,
        server: tool.id.server().to_string(),
        tool: Some(tool.id.to_string()),
        from: tool.approved_hash.as_ref().map(ToString::to_string),
        to: Some(tool.hash.to_string()),
        actor: by.name.clone(),
        reason: reason.to_owned(),
    }
}

fn server_change(kind: &'static str, server: &Server, by: &Caller) -> ChangeWrite {
    ChangeWrite {
        kind,
        server: server.name.to_string(),
        tool: None,
        from: server.approved_fingerprint.clone(),
        to: Some(server.fingerprint.clone()),
        actor: by.name.clone(),
        reason: String::new(),
    }
}

/// A grant for the list of changes; empty if nothing is granted.
fn describe(grant: &Grant) -> String {
    let mut parts = Vec::new();
    if grant.network == Network::Host {
        parts.push("network".to_owned());
    }
    for (verb, paths) in [("read", &grant.read), ("write", &grant.write)] {
        parts.extend(paths.iter().map(|path| format!("{verb} {}", path.display())));
    }
    if parts.is_empty() { String::new() } else { format!("may use: {}", parts.join(", ")) }
}

#[async_trait]
impl Records for Counter {
    async fn tools(&self, query: &ToolQuery, caller: &Caller) -> Result<ToolList, RecordError> {
        let desk = &self.0;
        let health = desk.health();
        let registry = desk.read();
        let fits = |tool: &&Tool| {
            query.server.as_ref().is_none_or(|server| tool.id.server().as_str() == server)
                && query.state.is_none_or(|state| tool.state == state)
                && query.tag.as_ref().is_none_or(|tag| tool.tags.contains(tag))
                && (query.gone || tool.gone_since.is_none())
        };
        let matching = || registry.tools.values().filter(fits);
        let total = matching().count();
        let tools = matching()
            .filter(|tool| query.after.as_ref().is_none_or(|after| tool.id.as_str() > after.as_str()))
            .take(query.limit.unwrap_or(LIST))
            .map(|tool| {
                let up = health.get(&tool.id.server()).is_some_and(|status| status.health == Health::Up);
                tool.view(desk.policies.decide(&caller.name, &tool.id), up, false)
            })
            .collect();
        Ok(ToolList { tools, total })
    }

    async fn details(&self, id: &ToolId, caller: &Caller) -> Result<ToolDetails, RecordError> {
        let tool = self.0.find(id)?;
        let versions = self.0.store.tools().versions(id.as_str()).await?;
        let differences = match &tool.approved {
            Some(approved) if tool.approved_hash.as_ref() != Some(&tool.hash) => {
                vetting::changes(approved, &tool.definition).into_iter().map(difference).collect()
            }
            _ => Vec::new(),
        };
        let view = self.0.tool_view(&tool, caller, true);
        Ok(ToolDetails { tool: view, versions: versions.into_iter().map(version).collect(), differences })
    }

    async fn approve(&self, id: &ToolId, body: &ApproveBody, caller: &Caller) -> Result<ToolView, RecordError> {
        let desk = &self.0;
        let turn = desk.turn(&id.server());
        let _turn = turn.lock().await;
        let tool = desk.find(id)?;
        if let Some(looked_at) = &body.hash
            && tool.hash.as_str() != looked_at
        {
            return Err(RecordError::Changed { what: id.to_string(), now: tool.hash.to_string() });
        }
        let noted = change("tool-approved", &tool, caller, "");
        let tool = Desk::approved(tool, &caller.name);
        desk.decide(&id.server(), vec![tool.clone()], Some(&caller.name), vec![noted]).await?;
        Ok(desk.tool_view(&tool, caller, true))
    }

    async fn quarantine(&self, id: &ToolId, body: &QuarantineBody, caller: &Caller) -> Result<ToolView, RecordError> {
        let desk = &self.0;
        let turn = desk.turn(&id.server());
        let _turn = turn.lock().await;
        let tool = desk.find(id)?;
        let (state, kind) = if body.block {
            (ToolState::Blocked, "tool-blocked")
        } else {
            (ToolState::Quarantined, "tool-quarantined")
        };
        let why = if body.reason.is_empty() { "no reason given" } else { &body.reason };
        let noted = change(kind, &tool, caller, why);
        let reason = format!("put aside by {}: {why}", caller.name);
        let tool = Tool { state, reason, held_by: Some(caller.name.clone()), ..tool };
        desk.decide(&id.server(), vec![tool.clone()], None, vec![noted]).await?;
        Ok(desk.tool_view(&tool, caller, true))
    }

    async fn servers(&self) -> Result<ServerList, RecordError> {
        let health = self.0.health();
        let registry = self.0.read();
        let present = registry.servers.values().filter(|server| server.gone_since.is_none());
        Ok(ServerList { servers: present.map(|s| registry.server_view(s, health.get(&s.name))).collect() })
    }

    async fn server(&self, name: &ServerName) -> Result<ServerView, RecordError> {
        let view = self.0.server_view(name)?;
        Ok(ServerView { unreadable: self.0.unreadable(name).await, ..view })
    }

    async fn approve_server(
        &self,
        name: &ServerName,
        body: &ApproveBody,
        caller: &Caller,
    ) -> Result<ServerView, RecordError> {
        let desk = &self.0;
        if desk.let_in(name, body, caller).await? {
            desk.settled_round().await?;
        }
        if body.tools {
            let turn = desk.turn(name);
            let _turn = turn.lock().await;
            let waiting: Vec<Tool> = desk
                .read()
                .of(name)
                .filter(|tool| tool.gone_since.is_none() && tool.state == ToolState::Quarantined)
                .filter(|tool| tool.held_by.is_none())
                .filter(|tool| tool.findings.iter().all(|finding| finding.severity == Severity::Info))
                .cloned()
                .collect();
            let noted = waiting.iter().map(|tool| change("tool-approved", tool, caller, "with its server")).collect();
            let tools = waiting.into_iter().map(|tool| Desk::approved(tool, &caller.name)).collect();
            desk.decide(name, tools, Some(&caller.name), noted).await?;
        }
        desk.server_view(name)
    }

    async fn reject_server(&self, name: &ServerName, caller: &Caller) -> Result<ServerView, RecordError> {
        let desk = &self.0;
        {
            let _round = desk.round.lock().await;
            let server = desk.find_server(name)?;
            if server.source == Source::Configuration {
                return Err(RecordError::Conflict(format!(
                    "`{name}` is declared in the configuration; take it out there, or set `tools.servers.{name}.enabled = false`"
                )));
            }
            let noted = server_change("server-rejected", &server, caller);
            let rejected = Server {
                state: ServerState::Rejected,
                approved_fingerprint: None,
                granted: Grant::default(),
                ..server
            };
            desk.put_server(rejected, noted).await?;
        }
        desk.settled_round().await?;
        desk.server_view(name)
    }

    async fn changes(&self, before: Option<i64>, limit: usize) -> Result<ChangeList, RecordError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = self.0.store.tools().changes(before, limit).await?;
        let full = i64::try_from(found.len()).is_ok_and(|count| count >= limit.min(lares_store::tools::CHANGES));
        let next_before = found.last().map(|change| change.id).filter(|_| full);
        Ok(ChangeList { changes: found.into_iter().map(changed).collect(), next_before })
    }

    async fn statistics(&self) -> Result<Statistics, RecordError> {
        let desk = &self.0;
        let mut tools: BTreeMap<String, usize> = BTreeMap::new();
        let mut calls = CallCount::default();
        let mut used: Vec<(i64, ToolId, CallCount)> = Vec::new();
        let mut servers: BTreeMap<String, usize> = BTreeMap::new();
        {
            let health = desk.health();
            let registry = desk.read();
            for tool in registry.tools.values() {
                calls.merge(&tool.count);
                if tool.gone_since.is_none() {
                    *tools.entry(name(&tool.state)).or_default() += 1;
                }
                if tool.count.calls > 0 {
                    used.push((tool.count.calls, tool.id.clone(), tool.count.clone()));
                }
            }
            for server in registry.servers.values().filter(|server| server.gone_since.is_none()) {
                let view = registry.server_view(server, health.get(&server.name));
                *servers.entry(name(&view.health)).or_default() += 1;
            }
        }
        used.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let most_used = used
            .into_iter()
            .take(MOST_USED)
            .map(|(_, id, count)| UsedTool { id: id.to_string(), statistics: statistics(&count) })
            .collect();
        let searches = statistics(&desk.searches.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Statistics {
            tools,
            servers,
            calls: statistics(&calls),
            searches,
            embedded: desk.finder.embedded(),
            model: desk.finder.model(),
            embedding_problem: desk.finder.problem(),
            most_used,
        })
    }

    async fn discovered(&self, caller: &Caller) -> Result<Discovered, RecordError> {
        let desk = &self.0;
        let round = desk.last_round.read().unwrap_or_else(PoisonError::into_inner).clone();
        let health = desk.health();
        let tools: Vec<ToolView> = {
            let registry = desk.read();
            let usable = registry.tools.values().filter(|tool| tool.offered().is_some());
            usable
                .filter(|tool| desk.shows(health.get(&tool.id.server())))
                .map(|tool| {
                    let up = health.get(&tool.id.server()).is_some_and(|status| status.health == Health::Up);
                    tool.view(desk.policies.decide(&caller.name, &tool.id), up, true)
                })
                .filter(|tool| tool.policy != Policy::Deny)
                .collect()
        };
        Ok(Discovered { round, count: tools.len(), tools, servers: self.servers().await?.servers })
    }

    async fn discover_now(&self, _: &Caller) -> Result<RoundView, RecordError> {
        self.0.settled_round().await
    }

    fn tool_ids(&self) -> Vec<ToolId> {
        self.0.read().tools.values().filter(|tool| tool.gone_since.is_none()).map(|tool| tool.id.clone()).collect()
    }

    fn server_names(&self) -> Vec<ServerName> {
        self.0.read().servers.keys().cloned().collect()
    }

    async fn audit(&self, entry: Entry) {
        if let Err(error) = self.0.store.audit().insert(&entry).await {
            tracing::warn!(action = entry.action, target = entry.target, %error, "the audit log did not take an entry");
        }
    }
}

fn version(record: VersionRecord) -> VersionView {
    VersionView {
        hash: record.hash,
        definition: record.definition,
        first_seen: record.first_seen,
        approved_at: record.approved_at,
        approved_by: record.approved_by,
    }
}

fn difference(change: vetting::Change) -> DifferenceView {
    DifferenceView { field: change.field, before: change.before, after: change.after }
}

fn changed(record: ChangeRecord) -> ChangeView {
    ChangeView {
        id: record.id,
        at: record.at,
        kind: record.kind,
        server: record.server,
        tool: record.tool,
        from: record.from,
        to: record.to,
        actor: record.actor,
        reason: record.reason,
    }
}
