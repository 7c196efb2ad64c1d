//! What a server lists, taken down: each definition is bounded, vetted and judged; what is new, changed or gone is noted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use lares_store::tools::ChangeWrite;
use rmcp::model::Tool as Listed;
use serde_json::Value;

use super::Desk;
use crate::api::{FindingView, Severity, ToolState};
use crate::definition::{Definition, ServerName, ToolId};
use crate::judge::judge;
use crate::offers::ListChange;
use crate::port::UpstreamError;
use crate::registry::{Extras, Tool};
use crate::vetting::{self, Neighbour, Neighbours};

/// Who does what nobody asked for.
pub(super) const DISCOVERY: &str = "discovery";

/// Why a listing was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListingError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Store(#[from] lares_store::Error),
}

/// What a listing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Changes noted.
    pub(crate) changes: usize,
    /// When it is to be fetched again, if the server said so.
    pub(crate) ttl: Option<Duration>,
}

impl Desk {
    /// Fetches what a server offers and takes it down.
    ///
    /// # Errors
    /// When the server does not say, or PostgreSQL does not take it; what was known stays.
    pub(crate) async fn refresh(&self, server: &ServerName) -> Result<Taken, ListingError> {
        let turn =
            Arc::clone(self.listing.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default());
        let _turn = turn.lock().await;
        let offer = self.upstreams.offer(server).await?;
        let changes = self.take(server, offer.tools).await?;
        let extras = Extras { resources: offer.resources, templates: offer.templates, prompts: offer.prompts };
        let mut resources = false;
        let mut prompts = false;
        if let Some(known) = self.write().servers.get_mut(server) {
            resources = differ(&known.extras.resources, &extras.resources)
                || differ(&known.extras.templates, &extras.templates);
            prompts = differ(&known.extras.prompts, &extras.prompts);
            known.extras = Arc::new(extras);
        }
        for (changed, what) in [(resources, ListChange::Resources), (prompts, ListChange::Prompts)] {
            if changed {
                let _ = self.bell.send(what);
            }
        }
        Ok(Taken { changes, ttl: offer.ttl })
    }

    /// Takes down the tools a server lists. Gives the number of changes.
    pub(super) async fn take(&self, server: &ServerName, listed: Vec<Listed>) -> Result<usize, lares_store::Error> {
        let mut definitions: BTreeMap<ToolId, Definition> = BTreeMap::new();
        for listed in listed {
            let definition = definition(listed);
            let id = match ToolId::new(server, &definition.name) {
                Ok(id) => id,
                Err(error) => {
                    tracing::warn!(%server, %error, "a tool was passed over");
                    continue;
                }
            };
            if let Err(error) = vetting::bounds(&definition) {
                tracing::warn!(tool = %id, %error, "a tool was passed over");
                continue;
            }
            // Of two with one name the first counts, as it does for a client that asks by name.
            definitions.entry(id).or_insert(definition);
        }
        let planned = self.plan(server, definitions);
        let writes: Vec<_> = planned.changed.iter().map(|(tool, by)| tool.write(by.as_deref())).collect();
        self.store.tools().put_listing(server.as_str(), &planned.present, &writes, &planned.changes).await?;
        self.apply(server, &planned);
        Ok(planned.changes.len())
    }

    /// What a listing means for what is known.
    fn plan(&self, server: &ServerName, definitions: BTreeMap<ToolId, Definition>) -> Planned {
        let now = Timestamp::now();
        let registry = self.read();
        let known_server = registry.servers.get(server);
        let trusted = known_server.is_some_and(|server| server.trusted);
        let tags = self.config.tools.servers.get(server.as_str()).map(|server| server.tags.clone()).unwrap_or_default();
        // Made only when something new has to be vetted: most listings hold nothing new.
        let mut around: Option<Neighbours> = None;
        let mut planned = Planned::default();
        for (id, definition) in definitions {
            let known = registry.tools.get(&id);
            let hash = definition.hash();
            let same = known.filter(|known| known.hash == hash);
            let findings = match same {
                Some(known) => known.findings.clone(),
                None => {
                    let around = around.get_or_insert_with(|| neighbours(&registry.tools, server));
                    vetting::vet(&definition, around).into_iter().map(finding).collect()
                }
            };
            let verdict = judge(known.map(Tool::known).as_ref(), &hash, &findings, trusted);
            let back = known.is_some_and(|known| known.gone_since.is_some());
            planned.present.push(id.to_string());
            let note = |kind: &'static str, reason: &str| ChangeWrite {
                kind,
                server: server.to_string(),
                tool: Some(id.to_string()),
                from: known.map(|known| known.hash.to_string()),
                to: Some(hash.to_string()),
                actor: DISCOVERY.to_owned(),
                reason: reason.to_owned(),
            };
            if let Some(kind) = verdict.change {
                planned.changes.push(note(kind, &verdict.reason));
                if verdict.state == ToolState::Quarantined {
                    let worst = findings.iter().map(|finding| finding.severity).max();
                    planned.held.push((id.clone(), verdict.reason.clone(), worst));
                }
            } else if back {
                planned.changes.push(note("tool-back", "its server lists it again"));
            }
            let unchanged = same.is_some_and(|known| known.state == verdict.state && known.tags == tags);
            if unchanged && !back && verdict.approved_by.is_none() {
                continue;
            }
            let approved_hash = match verdict.approved_by {
                Some(_) => Some(hash.clone()),
                None => known.and_then(|known| known.approved_hash.clone()),
            };
            let definition = Arc::new(definition);
            let approved = if approved_hash.as_ref() == Some(&hash) {
                Some(Arc::clone(&definition))
            } else {
                known.and_then(|known| known.approved.clone())
            };
            let tool = Tool {
                state: verdict.state,
                reason: verdict.reason,
                held_by: verdict.held_by,
                approved_hash,
                approved,
                hash,
                definition,
                findings,
                tags: tags.clone(),
                first_seen: known.map_or(now, |known| known.first_seen),
                last_seen: now,
                gone_since: None,
                count: known.map(|known| known.count.clone()).unwrap_or_default(),
                id,
            };
            planned.changed.push((tool, verdict.approved_by.map(str::to_owned)));
        }
        let present: BTreeSet<&str> = planned.present.iter().map(String::as_str).collect();
        for tool in registry.of(server).filter(|tool| tool.gone_since.is_none()) {
            if !present.contains(tool.id.as_str()) {
                planned.gone.push(tool.id.clone());
                planned.changes.push(ChangeWrite {
                    kind: "tool-gone",
                    server: server.to_string(),
                    tool: Some(tool.id.to_string()),
                    from: Some(tool.hash.to_string()),
                    to: None,
                    actor: DISCOVERY.to_owned(),
                    reason: "its server lists it no more".to_owned(),
                });
            }
        }
        planned
    }

    /// Brings memory, the search and the clients up to what PostgreSQL has.
    fn apply(&self, server: &ServerName, planned: &Planned) {
        let now = Timestamp::now();
        let mut registry = self.write();
        for id in &planned.gone {
            if let Some(tool) = registry.tools.get_mut(id) {
                tool.gone_since = Some(now);
            }
            self.finder.remove(id);
        }
        for (tool, _) in &planned.changed {
            let mut tool = tool.clone();
            if let Some(known) = registry.tools.get(&tool.id) {
                // Calls that were counted meanwhile.
                tool.count = known.count.clone();
            }
            self.index(&tool);
            registry.tools.insert(tool.id.clone(), tool);
        }
        for id in planned.present.iter().filter_map(|id| id.parse::<ToolId>().ok()) {
            if let Some(tool) = registry.tools.get_mut(&id) {
                tool.last_seen = now;
            }
        }
        drop(registry);
        for (id, reason, worst) in &planned.held {
            let grave = *worst >= Some(Severity::Warning);
            if grave {
                tracing::warn!(tool = %id, reason, "a tool is held; look at it with `lares tools show {id}`");
            } else {
                tracing::info!(tool = %id, reason, "a tool waits for approval");
            }
        }
        if !planned.changes.is_empty() {
            tracing::info!(%server, changes = planned.changes.len(), "the tools of a server changed");
            let _ = self.bell.send(ListChange::Tools);
        }
    }

    /// Has a tool found, or not.
    pub(super) fn index(&self, tool: &Tool) {
        match tool.offered() {
            Some(definition) => self.finder.put(&tool.id, definition, &tool.tags),
            None => self.finder.remove(&tool.id),
        }
    }
}

/// What a listing means.
#[derive(Default)]
struct Planned {
    /// Ids of all tools listed.
    present: Vec<String>,
    /// Those that are new or another than before, with who approved them just now.
    changed: Vec<(Tool, Option<String>)>,
    /// Those that are listed no more.
    gone: Vec<ToolId>,
    /// What is taken down of it.
    changes: Vec<ChangeWrite>,
    /// What is held, why, and the gravest finding.
    held: Vec<(ToolId, String, Option<Severity>)>,
}

/// What a server says of a tool, without what is for pictures and for programs.
fn definition(listed: Listed) -> Definition {
    Definition {
        name: listed.name.into_owned(),
        title: listed.title,
        description: listed.description.map(std::borrow::Cow::into_owned),
        input_schema: Value::Object(Arc::unwrap_or_clone(listed.input_schema)),
        output_schema: listed.output_schema.map(|schema| Value::Object(Arc::unwrap_or_clone(schema))),
        annotations: listed.annotations.and_then(|annotations| serde_json::to_value(annotations).ok()),
    }
}

fn finding(finding: vetting::Finding) -> FindingView {
    FindingView {
        rule: finding.rule.id().to_owned(),
        severity: match finding.severity {
            vetting::Severity::Info => Severity::Info,
            vetting::Severity::Warning => Severity::Warning,
            vetting::Severity::Danger => Severity::Danger,
        },
        field: finding.field,
        excerpt: finding.excerpt,
        why: finding.why,
    }
}

/// The tools there are, as the server sees them: a new one could imitate those of others, or speak about them.
fn neighbours(tools: &BTreeMap<ToolId, Tool>, server: &ServerName) -> Neighbours {
    let present = tools.values().filter(|tool| tool.gone_since.is_none());
    let neighbour = |tool: &Tool| Neighbour {
        server: tool.id.server().to_string(),
        name: tool.id.name().to_owned(),
        description: tool.definition.description.clone(),
    };
    Neighbours::new(present.map(neighbour)).seen_from(server.as_str())
}

/// Whether two lists of what a server offers differ.
fn differ<T: serde::Serialize>(before: &[T], after: &[T]) -> bool {
    serde_json::to_value(before).ok() != serde_json::to_value(after).ok()
}
