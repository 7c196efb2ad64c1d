//! Rounds of discovery: what is found now, against what was known, gives who is connected to.
//!
//! What the configuration declares is used. What was found elsewhere is proposed, and used only while it is exactly what
//! a person approved: another command behind the same name is a proposal again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lares_config::Network;
use lares_store::tools::ChangeWrite;

use super::Desk;
use super::homes::home_of;
use super::listing::{DISCOVERY, Taken};
use crate::api::{Grant, Health, RoundView, ServerState, Source};
use crate::definition::{ServerName, ToolId};
use crate::discover::Found;
use crate::offers::ListChange;
use crate::port::{Target, Transport};
use crate::registry::{Server, name};

/// Longest that a round waits for the lists of servers that answer; slower ones go on beside.
const LISTS: Duration = Duration::from_secs(5);
/// How long the home directory of a server stays that is found no more.
const HOME_STAYS: SignedDuration = SignedDuration::from_hours(30 * 24);

impl Desk {
    /// Looks for servers, takes down what was found, connects to those in use and fetches the lists of those that answer.
    ///
    /// # Errors
    /// When PostgreSQL does not take it; what was known stays in use.
    pub(crate) async fn look(self: &Arc<Self>) -> Result<RoundView, lares_store::Error> {
        let mut round = self.round.lock().await;
        let begun = Instant::now();
        let looked = self.discovery.look(&self.config.tools).await;
        let mut done = RoundView { round: round.round + 1, problems: looked.problems, ..RoundView::default() };
        for found in &looked.found {
            *done.found.entry(name(&found.source)).or_default() += 1;
        }
        let found: BTreeMap<ServerName, Found> =
            looked.found.into_iter().map(|found| (found.name.clone(), found)).collect();
        let (servers, changes) = self.compare(&found);
        let records: Vec<_> = servers.iter().map(Server::record).collect();
        self.store.tools().put_servers(&records, &changes).await?;
        done.changes = changes.len();
        let mut targets = Vec::new();
        let mut left = Vec::new();
        {
            let mut registry = self.write();
            for server in servers {
                let extras = registry.servers.get(&server.name).map(|known| Arc::clone(&known.extras));
                if server.in_use() {
                    let startable = found.get(&server.name).filter(|found| found.enabled);
                    targets.extend(startable.map(|found| self.target(found, &server)));
                } else {
                    left.push(server.name.clone());
                }
                let server = Server { extras: extras.unwrap_or_default(), ..server };
                registry.servers.insert(server.name.clone(), server);
            }
        }
        self.upstreams.set(targets).await;
        for server in left {
            done.changes += self.retire(&server).await?;
        }
        self.homes.sweep(&self.homes_in_use()).await;
        done.changes += self.lists().await;
        done.finished = Some(Timestamp::now());
        done.took_ms = begun.elapsed().as_secs_f64() * 1000.0;
        *round = done.clone();
        *self.last_round.write().unwrap_or_else(PoisonError::into_inner) = done.clone();
        Ok(done)
    }

    /// What is kept connected of a server in use: as it was found, with what was granted, and with a home directory that
    /// stays where it can fetch or write something worth keeping.
    fn target(&self, found: &Found, server: &Server) -> Target {
        let mut target = found.target();
        if let Transport::Stdio(program) = &mut target.transport {
            let Grant { network, read, write } = &server.granted;
            if *network == Network::Host {
                program.network = Network::Host;
            }
            program.read.extend(read.iter().cloned());
            program.write.extend(write.iter().cloned());
            if program.network == Network::Host || !program.write.is_empty() {
                program.home = home_of(server).map(|name| self.homes.at(&name));
            }
        }
        target
    }

    /// The home directories of servers that are approved, or were and may be found again.
    fn homes_in_use(&self) -> BTreeSet<String> {
        let now = Timestamp::now();
        let stays = |server: &&Server| server.gone_since.is_none_or(|since| now.duration_since(since) < HOME_STAYS);
        self.read().servers.values().filter(stays).filter_map(home_of).collect()
    }

    /// What was found against what is known: every server there is now, and the changes.
    fn compare(&self, found: &BTreeMap<ServerName, Found>) -> (Vec<Server>, Vec<ChangeWrite>) {
        let now = Timestamp::now();
        let registry = self.read();
        let mut servers = Vec::new();
        let mut changes = Vec::new();
        let mut note = |kind: &'static str, server: &ServerName, from: Option<&str>, to: Option<&str>, why: String| {
            changes.push(ChangeWrite {
                kind,
                server: server.to_string(),
                tool: None,
                from: from.map(str::to_owned),
                to: to.map(str::to_owned),
                actor: DISCOVERY.to_owned(),
                reason: why,
            });
        };
        for found in found.values() {
            let fingerprint = found.fingerprint(&self.key);
            let known = registry.servers.get(&found.name);
            let declared = found.source == Source::Configuration;
            let same = known.is_some_and(|known| known.fingerprint == fingerprint);
            let (approved_fingerprint, granted) = match known {
                _ if declared => (Some(fingerprint.clone()), Grant::default()),
                // What was declared once is not thereby approved where it is found elsewhere.
                Some(known) if known.source != Source::Configuration => {
                    (known.approved_fingerprint.clone(), known.granted.clone())
                }
                _ => (None, Grant::default()),
            };
            let state = match known.map(|known| known.state) {
                _ if approved_fingerprint.as_deref() == Some(fingerprint.as_str()) => ServerState::Approved,
                Some(ServerState::Rejected) if same => ServerState::Rejected,
                _ => ServerState::Proposed,
            };
            match known {
                None => note("server-found", &found.name, None, Some(&fingerprint), format!("in {}", found.origin)),
                Some(known) if !same => note(
                    "server-changed",
                    &found.name,
                    Some(&known.fingerprint),
                    Some(&fingerprint),
                    format!("in {}", found.origin),
                ),
                Some(known) if known.gone_since.is_some() => {
                    note("server-found", &found.name, None, Some(&fingerprint), format!("again in {}", found.origin));
                }
                Some(_) => {}
            }
            servers.push(Server {
                name: found.name.clone(),
                source: found.source,
                origin: found.origin.clone(),
                transport: found.shown(),
                fingerprint,
                approved_fingerprint,
                granted,
                state,
                trusted: found.trusted,
                first_seen: known.map_or(now, |known| known.first_seen),
                last_seen: now,
                gone_since: None,
                extras: Arc::default(),
                found: Some(Arc::new(found.clone())),
            });
        }
        for known in registry.servers.values().filter(|known| !found.contains_key(&known.name)) {
            if known.gone_since.is_none() {
                let why = format!("no more in {}", known.origin);
                note("server-gone", &known.name, Some(&known.fingerprint), None, why);
                servers.push(Server { gone_since: Some(now), found: None, ..known.clone() });
            }
        }
        (servers, changes)
    }

    /// Takes the tools of a server that is not used any more out of use. Gives the number of changes.
    pub(super) async fn retire(&self, server: &ServerName) -> Result<usize, lares_store::Error> {
        let listed = |id: &ToolId| id.server() == *server;
        let any = self.read().of(server).any(|tool| tool.gone_since.is_none() && listed(&tool.id));
        if !any {
            return Ok(0);
        }
        let turn =
            Arc::clone(self.listing.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default());
        let _turn = turn.lock().await;
        let changes = self.take(server, Vec::new()).await?;
        for change in [ListChange::Resources, ListChange::Prompts] {
            let _ = self.bell.send(change);
        }
        Ok(changes)
    }

    /// Fetches the lists of all servers that answer, beside each other. Gives the number of changes within 5 s.
    pub(super) async fn lists(self: &Arc<Self>) -> usize {
        let up: Vec<ServerName> = self
            .upstreams
            .status()
            .into_iter()
            .filter(|status| status.health == Health::Up)
            .map(|status| status.name)
            .collect();
        let mut fetches = tokio::task::JoinSet::new();
        for server in up {
            let desk = Arc::clone(self);
            fetches.spawn(async move { desk.refreshed(&server).await });
        }
        let mut changes = 0;
        let all = async {
            while let Some(fetched) = fetches.join_next().await {
                changes += fetched.map_or(0, |taken| taken.changes);
            }
        };
        // Servers slower than that are taken down when they answer: the fetches go on.
        if tokio::time::timeout(LISTS, all).await.is_err() {
            fetches.detach_all();
        }
        changes
    }

    /// [`Desk::refresh`] whose failure is only told.
    pub(crate) async fn refreshed(&self, server: &ServerName) -> Taken {
        match self.refresh(server).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%server, %error, "the tools of a server were not listed; what was known stays");
                Taken::default()
            }
        }
    }
}
