//! What is known of servers and tools, in memory: PostgreSQL is written first, this follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use lares_store::tools::{CallCount, ServerRecord, ToolRecord, ToolWrite};
use rmcp::model::{Prompt, Resource, ResourceTemplate};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{
    CallStatistics, FindingView, Grant, Health, Policy, ServerState, ServerView, Source, ToolState, ToolView,
};
use crate::definition::{Definition, DefinitionHash, ServerName, ToolId};
use crate::discover::Found;
use crate::judge::Known;
use crate::port::UpstreamStatus;

/// A tool.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) id: ToolId,
    pub(crate) state: ToolState,
    pub(crate) reason: String,
    pub(crate) held_by: Option<String>,
    pub(crate) hash: DefinitionHash,
    pub(crate) approved_hash: Option<DefinitionHash>,
    /// As its server gives it now.
    pub(crate) definition: Arc<Definition>,
    /// As it was approved.
    pub(crate) approved: Option<Arc<Definition>>,
    pub(crate) findings: Vec<FindingView>,
    pub(crate) tags: Vec<String>,
    pub(crate) first_seen: Timestamp,
    pub(crate) last_seen: Timestamp,
    pub(crate) gone_since: Option<Timestamp>,
    pub(crate) count: CallCount,
}

impl Tool {
    /// A tool as PostgreSQL has it. `None`: the row is of no use (an id or a definition that is none).
    pub(crate) fn from_record(record: ToolRecord) -> Option<Self> {
        let definition: Arc<Definition> = Arc::new(serde_json::from_value(record.definition).ok()?);
        let hash = DefinitionHash::from_stored(record.hash);
        let approved_hash = record.approved_hash.map(DefinitionHash::from_stored);
        let approved = match (record.approved_definition, &approved_hash) {
            (Some(other), _) => serde_json::from_value(other).ok().map(Arc::new),
            (None, Some(approved)) if *approved == hash => Some(Arc::clone(&definition)),
            (None, _) => None,
        };
        Some(Self {
            id: record.id.parse().ok()?,
            state: named(&record.state)?,
            reason: record.reason,
            held_by: record.held_by,
            hash,
            approved_hash,
            definition,
            approved,
            findings: serde_json::from_value(record.findings).unwrap_or_default(),
            tags: record.tags,
            first_seen: record.first_seen,
            last_seen: record.last_seen,
            gone_since: record.gone_since,
            count: record.count,
        })
    }

    pub(crate) fn known(&self) -> Known {
        Known {
            state: self.state,
            reason: self.reason.clone(),
            hash: self.hash.clone(),
            approved: self.approved_hash.clone(),
            held_by: self.held_by.clone(),
        }
    }

    /// What is written of it; `approved_by` as in [`ToolWrite`].
    pub(crate) fn write(&self, approved_by: Option<&str>) -> ToolWrite {
        ToolWrite {
            id: self.id.to_string(),
            state: name(&self.state),
            reason: self.reason.clone(),
            held_by: self.held_by.clone(),
            hash: self.hash.to_string(),
            definition: serde_json::to_value(&*self.definition).unwrap_or_default(),
            findings: serde_json::to_value(&self.findings).unwrap_or_default(),
            tags: self.tags.clone(),
            approved_by: approved_by.map(str::to_owned),
        }
    }

    /// The definition that callers are shown: the approved one of a tool in use.
    pub(crate) fn offered(&self) -> Option<&Arc<Definition>> {
        let pinned = self.approved_hash.as_ref() == Some(&self.hash);
        (self.state == ToolState::Approved && self.gone_since.is_none() && pinned).then_some(&self.definition)
    }

    /// What people see of it; `whole`: with its schemas.
    pub(crate) fn view(&self, policy: Policy, available: bool, whole: bool) -> ToolView {
        let definition = &self.definition;
        ToolView {
            id: self.id.to_string(),
            server: self.id.server().to_string(),
            name: self.id.name().to_owned(),
            title: definition.title.clone(),
            description: definition.description.clone().unwrap_or_default(),
            input_schema: whole.then(|| definition.input_schema.clone()),
            output_schema: definition.output_schema.clone().filter(|_| whole),
            annotations: definition.annotations.clone().filter(|_| whole),
            state: self.state,
            reason: self.reason.clone(),
            held_by: self.held_by.clone(),
            policy,
            available: available && self.gone_since.is_none(),
            tags: self.tags.clone(),
            hash: self.hash.to_string(),
            approved_hash: self.approved_hash.as_ref().map(ToString::to_string),
            findings: self.findings.clone(),
            statistics: statistics(&self.count),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            gone_since: self.gone_since,
        }
    }
}

/// How calls went, for people.
pub(crate) fn statistics(count: &CallCount) -> CallStatistics {
    CallStatistics {
        calls: u64::try_from(count.calls).unwrap_or(0),
        failures: u64::try_from(count.failures).unwrap_or(0),
        p50_ms: count.quantile(0.5),
        p99_ms: count.quantile(0.99),
        last: count.last,
    }
}

/// A server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) name: ServerName,
    pub(crate) source: Source,
    pub(crate) origin: String,
    pub(crate) transport: Value,
    pub(crate) fingerprint: String,
    pub(crate) approved_fingerprint: Option<String>,
    /// Given with the approval of `approved_fingerprint`, and of no other.
    pub(crate) granted: Grant,
    pub(crate) state: ServerState,
    pub(crate) trusted: bool,
    pub(crate) first_seen: Timestamp,
    pub(crate) last_seen: Timestamp,
    pub(crate) gone_since: Option<Timestamp>,
    /// What it offers besides tools.
    pub(crate) extras: Arc<Extras>,
    /// As the last round found it; `None` before the first round and for one that is gone.
    pub(crate) found: Option<Arc<Found>>,
}

/// What a server offers besides tools.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    pub(crate) resources: Vec<Resource>,
    pub(crate) templates: Vec<ResourceTemplate>,
    pub(crate) prompts: Vec<Prompt>,
}

impl Server {
    /// A server as PostgreSQL has it; `None`: the row is of no use.
    pub(crate) fn from_record(record: ServerRecord) -> Option<Self> {
        Some(Self {
            name: record.name.parse().ok()?,
            source: named(&record.source)?,
            origin: record.origin,
            transport: record.transport,
            fingerprint: record.fingerprint,
            approved_fingerprint: record.approved_fingerprint,
            // What cannot be read grants nothing.
            granted: record.granted.and_then(|granted| serde_json::from_value(granted).ok()).unwrap_or_default(),
            state: named(&record.state)?,
            trusted: record.trusted,
            first_seen: record.first_seen,
            last_seen: record.last_seen,
            gone_since: record.gone_since,
            extras: Arc::default(),
            found: None,
        })
    }

    pub(crate) fn record(&self) -> ServerRecord {
        ServerRecord {
            name: self.name.to_string(),
            source: name(&self.source),
            origin: self.origin.clone(),
            transport: self.transport.clone(),
            fingerprint: self.fingerprint.clone(),
            approved_fingerprint: self.approved_fingerprint.clone(),
            granted: Some(&self.granted).filter(|granted| !granted.is_empty()).map(json),
            state: name(&self.state),
            trusted: self.trusted,
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            gone_since: self.gone_since,
        }
    }

    /// Whether it is to be connected to.
    pub(crate) fn in_use(&self) -> bool {
        self.state == ServerState::Approved && self.gone_since.is_none()
    }
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) servers: BTreeMap<ServerName, Server>,
    pub(crate) tools: BTreeMap<ToolId, Tool>,
}

impl Registry {
    /// The tools of one server.
    pub(crate) fn of(&self, server: &ServerName) -> impl Iterator<Item = &Tool> + use<'_> {
        self.tools.range(ToolId::bounds(server)).map(|(_, tool)| tool)
    }

    /// What people see of a server.
    pub(crate) fn server_view(&self, server: &Server, status: Option<&UpstreamStatus>) -> ServerView {
        let mut view = ServerView {
            name: server.name.to_string(),
            state: server.state,
            trusted: server.trusted,
            health: status.filter(|_| server.in_use()).map_or(Health::Idle, |status| status.health),
            source: server.source,
            origin: server.origin.clone(),
            transport: server.transport.clone(),
            fingerprint: server.fingerprint.clone(),
            granted: Some(server.granted.clone())
                .filter(|granted| server.state == ServerState::Approved && !granted.is_empty()),
            needs: server.found.as_ref().map(|found| found.needs.clone()).unwrap_or_default(),
            unreadable: Vec::new(),
            protocol: status.and_then(|status| status.protocol.clone()),
            implementation: status.and_then(|status| status.implementation.clone()),
            tools: 0,
            approved: 0,
            quarantined: 0,
            connections: status.map_or(0, |status| status.connections),
            last_error: status.and_then(|status| status.last_error.clone()),
            first_seen: server.first_seen,
            last_seen: server.last_seen,
        };
        for tool in self.of(&server.name).filter(|tool| tool.gone_since.is_none()) {
            view.tools += 1;
            view.approved += usize::from(tool.state == ToolState::Approved);
            view.quarantined += usize::from(tool.state == ToolState::Quarantined);
        }
        view
    }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The name of a state, as JSON and PostgreSQL have it.
pub(crate) fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The state of a name.
fn named<T: DeserializeOwned>(name: &str) -> Option<T> {
    serde_json::from_value(Value::String(name.to_owned())).ok()
}
