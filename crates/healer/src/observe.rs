//! Facts of a unit as it is now: from the service manager, the journal and the machine around it.
//!
//! ```text
//! Observer ─┬─ service manager    state, what it needs, whether the machine goes down
//!           ├─ words              the journal: how it ended and whether somebody asked for that
//!           ├─ classify           what the lines of its run look like
//!           └─ around             ports, files, disks, locks, generations; all that blocks
//! ```
//!
//! Nothing here changes anything, and no lock is ever tried.

mod around;
#[cfg(test)]
mod fake;
mod files;
mod generation;
mod lock;
pub(crate) mod process;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lares_config::{Config, HealedUnit};
use lares_units::Exit;
use lares_units::port::{self, ActiveState, LoadState, Manager, ManagerError, Question, RunResult, UnitId};
use tokio::time::timeout;

use crate::classify::{Classifier, Diagnosis, Entry};
use crate::facts::{
    Active, Dependency, Facts, Holder, Lead, Load, Lock, LockHolder, Match, Memory, Owner, Probe, Switch,
};
use crate::fingerprint::Template;
use crate::helper;
use crate::patterns::Origin;
use crate::scholar::secrets::hide;
use crate::symptom::Symptom;
use around::{Around, Listener, Look};
use files::{Named, Said};
use generation::Generations;
use words::End;

/// Units looked at for what a unit needs; more than any chain that a person wrote.
const DEPENDENCIES: usize = 64;
/// Failed units that are compared after a switch; which of hundreds they are says nothing more.
const COMPARED: usize = 64;
/// Last lines of a unit that is not up, and the longest one, in characters.
const SAID: usize = 20;
const SAID_LINE: usize = 500;
/// Longest that looking around may take: a disk that is gone answers never.
const AROUND: Duration = Duration::from_secs(5);
/// How far the kernel's word on a death may be behind the service manager's.
const KERNEL_SLACK: SignedDuration = SignedDuration::from_secs(1);
/// Profile of the system on NixOS.
pub const PROFILE: &str = "/nix/var/nix/profiles/system";
/// Reached when the machine goes down.
const SHUTDOWN: &str = "shutdown.target";
/// What `nixos-rebuild` lets systemd carry a switch out as.
const REBUILD: &str = "nixos-rebuild-switch-to-configuration.service";

/// What the observer is told besides the machine itself.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The units that may be acted on.
    pub units: BTreeMap<String, HealedUnit>,
    /// Profile of the system, whose links are its generations.
    pub profile: PathBuf,
    /// Files of models that can be fetched again because their hash is known, and the models' names.
    pub models: BTreeMap<PathBuf, String>,
    /// Where such files are.
    pub models_dir: Option<PathBuf>,
    /// Asked for what only root may look into; none: that stays unknown.
    pub helper: Option<helper::Client>,
}

impl Settings {
    /// What the configuration says.
    pub fn of(config: &Config, profile: PathBuf) -> Self {
        let models_dir = config.models_dir();
        let hashed = config.models.iter().filter_map(|(name, model)| {
            let hash = model.sha256.as_ref().filter(|_| model.url.is_some())?;
            Some((models_dir.join(format!("sha256-{}.gguf", hash.to_ascii_lowercase())), name.clone()))
        });
        Self {
            units: config.healer.units.clone(),
            profile,
            models: hashed.collect(),
            models_dir: Some(models_dir),
            helper: Some(helper::Client::new(&config.healer.helper)),
        }
    }
}

/// What whoever asks knows of the unit and of what it needs.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// What the probes say, by unit.
    pub probes: BTreeMap<String, Probe>,
    /// Units that a pause is in force for.
    pub paused: BTreeSet<String>,
    /// The run of a unit that we stopped, or whose stop we asked for.
    pub stopped_by_us: BTreeMap<String, String>,
    /// While the unit is up, only lines as recent as this count as evidence.
    pub recent: Duration,
}

/// What was found out, and what could not be.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The facts.
    pub facts: Facts,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// Looks at units.
#[derive(Debug)]
pub struct Observer<'a> {
    manager: &'a dyn Manager,
    classifier: &'a Classifier,
    settings: &'a Settings,
}

/// What the journal has on the last run of a unit.
#[derive(Debug)]
struct Journal {
    entries: Vec<Arc<port::Entry>>,
    end: End,
    run: Option<port::InvocationId>,
    /// Whether there are more lines than were read.
    cut: bool,
}

impl<'a> Observer<'a> {
    /// Through this manager.
    pub fn new(manager: &'a dyn Manager, classifier: &'a Classifier, settings: &'a Settings) -> Self {
        Self { manager, classifier, settings }
    }

    /// A unit as it is now. Symptoms are what its state alone tells: what only a signal of the service manager says (a
    /// failure that lasted a millisecond) is for whoever listens to those.
    ///
    /// # Errors
    /// When the service manager does not answer or does not know the unit. What else cannot be found out is noted.
    pub async fn observe(&self, unit: &UnitId, context: &Context) -> Result<Observed, ManagerError> {
        let found = self.manager.facts(unit).await?;
        let config = self.configured(&found);
        let mut unknown = Vec::new();
        let (journal, machine) = tokio::join!(self.journal(&found), self.machine());
        let journal = journal.inspect_err(|error| unknown.push(format!("what it said: {error}"))).ok();
        let (shutting_down, rebuilding) = machine?;

        let mut facts = of_manager(&found);
        facts.probe = context.probes.get(unit.as_str()).copied().unwrap_or_default();
        facts.paused = context.paused.contains(unit.as_str());
        facts.shutting_down = shutting_down;
        facts.stopped_by_operator = self.was_stopped(&found, journal.as_ref(), context, &mut unknown).await?;
        facts.symptoms = symptoms(&found, &facts, journal.as_ref());
        facts.dependencies = self.dependencies(&found, context, &mut unknown).await?;

        let entries = journal.as_ref().map(|journal| evidence(journal, &found, context.recent)).unwrap_or_default();
        let diagnosis = self.diagnose(&entries);
        let texts: Vec<&str> = entries.iter().map(|entry| entry.message.as_str()).collect();
        facts.matched = diagnosis.as_ref().map(|found| Match::of(found, &texts));
        if diagnosis.is_none() && facts.active.is_down() {
            let said = entries.iter().rev().find(|entry| entry.origin == port::Origin::Unit);
            facts.fingerprint = said.map(|entry| Template::of(&entry.message).fingerprint().to_string());
        }
        if !facts.is_up() {
            facts.said = last_words(&entries);
        }

        let said = diagnosis.as_ref().map(|found| (found, entries[found.line].at));
        let look = self.what_to_look_at(&found, config, said).await;
        let around = look_around(look, &mut unknown).await;
        facts.rebuilding = rebuilding || around.rebuilding;
        facts.file = around.file;
        facts.disk = around.disk;
        facts.memory.pressure = around.pressure;
        facts.free_port = around.free_port;
        if let Some(port) = facts.matched.as_ref().and_then(|matched| matched.port) {
            facts.port_holder = self.holder(port, &found.unit, around.listener, &mut unknown).await;
        }
        if let (Some(holder), Some(database)) = (around.lock, config.and_then(|config| config.database.as_deref())) {
            facts.lock = self.lock(&found.unit, database, holder, context, &mut unknown).await?;
        }
        if let Some((generations, changed)) = around.generations {
            facts.switch = Some(self.switch(&found, &facts, generations, changed).await?);
        }
        Ok(Observed { facts, unknown })
    }

    /// What the configuration says of a unit, by its own name.
    fn configured(&self, found: &port::Facts) -> Option<&'a HealedUnit> {
        self.settings.units.get(found.unit.as_str())
    }

    /// Whether the machine goes down, and whether the system is being switched.
    async fn machine(&self) -> Result<(bool, bool), ManagerError> {
        let listed = self.manager.list(&[SHUTDOWN, REBUILD]).await?;
        let goes = |unit: &port::Listed| {
            matches!(unit.standing.active, ActiveState::Active | ActiveState::Activating | ActiveState::Reloading)
        };
        let begins = |unit: &port::Listed| {
            unit.job.as_ref().and_then(|job| job.kind.as_deref()).is_some_and(|kind| kind == "start")
        };
        let is = |name: &str| listed.iter().any(|unit| unit.unit.as_str() == name && (goes(unit) || begins(unit)));
        Ok((is(SHUTDOWN), is(REBUILD)))
    }

    /// The lines of the last run. Of a unit that nobody holds on to, systemd forgets the run with its end; then they are
    /// all lines since the machine started.
    async fn journal(&self, found: &port::Facts) -> Result<Journal, ManagerError> {
        let unit = found.unit.clone();
        let mut question = match found.invocation {
            // Waiting for an automatic restart counts as having begun, though the run before it is what is asked about.
            Some(run) => {
                let started = found.times.main_start.map(words::wall);
                let began = [started, found.times.began].into_iter().flatten().min();
                Question::about_the_end(unit, Some(run), began)
            }
            None => Question { since: process::booted(), ..Question::new(unit) },
        };
        // Last words are on their way for some milliseconds after an end.
        let ended =
            ended_at(found).is_some_and(|end| Timestamp::now().duration_since(end) < SignedDuration::from_secs(1));
        if !ended {
            question.settle = Duration::ZERO;
        }
        let entries = self.manager.recent(&question).await?;
        let (end, run) = words::end(&entries);
        Ok(Journal { end, run: found.invocation.or(run), cut: entries.len() >= question.count, entries })
    }

    /// Whether somebody stopped a unit, and not we, or nobody ever started it.
    async fn was_stopped(
        &self,
        found: &port::Facts,
        journal: Option<&Journal>,
        context: &Context,
        unknown: &mut Vec<String>,
    ) -> Result<bool, ManagerError> {
        let down = active(&found.standing.active);
        // With a job it is about to be started: in the middle of a restart, or by somebody.
        if !down.is_down() || found.job.is_some() {
            return Ok(false);
        }
        // Nothing failed and nothing tells how it ended: whoever stopped a unit must not find it running.
        let silent = down == Active::Inactive && !rests(found);
        let Some(journal) = journal else { return Ok(silent) };
        let ours = context.stopped_by_us.get(found.unit.as_str());
        if ours.is_some_and(|ours| journal.run.is_none_or(|run| run.to_string() == *ours)) {
            return Ok(false);
        }
        let mut end = journal.end;
        if journal.cut {
            let left = found.times.active_exit.filter(|_| found.invocation.is_some()).map(words::wall);
            end = words::end_in_many_words(self.manager, &found.unit, end, left).await?;
        }
        Ok(match end {
            End::Asked { at } => words::is_a_wish(self.manager, &found.relations.binds_to, at).await?,
            End::Own { .. } | End::Skipped | End::Dependency => false,
            End::Unsaid => {
                if silent && found.invocation.is_some() {
                    unknown.push("whether somebody stopped it: the journal does not tell how it ended".to_owned());
                }
                silent
            }
        })
    }

    /// Whether a unit may be acted on: the configuration names it, and nobody masked, paused or stopped it.
    async fn is_ours(&self, found: &port::Facts, context: &Context) -> Result<bool, ManagerError> {
        let Some(config) = self.configured(found) else { return Ok(false) };
        if found.is_masked() || context.paused.contains(found.unit.as_str()) {
            return Ok(false);
        }
        if config.keep_running || !active(&found.standing.active).is_down() {
            return Ok(true);
        }
        let journal = self.journal(found).await.ok();
        Ok(!self.was_stopped(found, journal.as_ref(), context, &mut Vec::new()).await?)
    }

    /// What a unit needs: by systemd, and by the configuration.
    fn needs(&self, found: &port::Facts, unknown: &mut Vec<String>) -> Vec<UnitId> {
        let mut needs = found.relations.needed();
        needs.retain(|unit| unit.kind() == Some("service"));
        for name in self.configured(found).into_iter().flat_map(|config| &config.dependencies) {
            match UnitId::new(name.as_str()) {
                Ok(unit) if !needs.contains(&unit) => needs.push(unit),
                Ok(_) => {}
                Err(error) => unknown.push(format!("a dependency of {}: {error}", found.unit)),
            }
        }
        needs
    }

    /// What it needs, all the way down.
    async fn dependencies(
        &self,
        of: &port::Facts,
        context: &Context,
        unknown: &mut Vec<String>,
    ) -> Result<Vec<Dependency>, ManagerError> {
        let mut open: VecDeque<UnitId> = self.needs(of, unknown).into();
        let mut seen = BTreeSet::from([of.unit.clone()]);
        let mut dependencies = BTreeMap::new();
        while let Some(unit) = open.pop_front() {
            if dependencies.len() == DEPENDENCIES || !seen.insert(unit.clone()) {
                continue;
            }
            let found = match self.manager.facts(&unit).await {
                Ok(found) => found,
                Err(ManagerError::Unknown(unit)) => {
                    unknown.push(format!("how {unit} is, which it needs: there is no such unit"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let state = active(&found.standing.active);
            // It has done its work, or comes when it is called.
            if state == Active::Inactive && rests(&found) {
                continue;
            }
            let needs = self.needs(&found, unknown);
            open.extend(needs.iter().cloned());
            let dependency = Dependency {
                unit: found.unit.to_string(),
                needs: needs.iter().map(ToString::to_string).collect(),
                active: state,
                invocation: found.invocation.map(|id| id.to_string()).unwrap_or_default(),
                probe: context.probes.get(found.unit.as_str()).copied().unwrap_or_default(),
                ours: self.is_ours(&found, context).await?,
            };
            dependencies.insert(dependency.unit.clone(), dependency);
        }
        Ok(dependencies.into_values().collect())
    }

    fn diagnose(&self, entries: &[&port::Entry]) -> Option<Diagnosis> {
        let fields: Vec<Vec<(&str, &str)>> = entries
            .iter()
            .map(|entry| entry.fields.iter().map(|f| (f.name.as_str(), f.value.as_str())).collect())
            .collect();
        let lines: Vec<Entry<'_>> = entries
            .iter()
            .zip(&fields)
            .map(|(entry, fields)| Entry { message: &entry.message, origin: origin(entry.origin), fields })
            .collect();
        self.classifier.diagnose(&lines)
    }

    /// What has to be looked at, by what the lines say and when they said it.
    async fn what_to_look_at(
        &self,
        found: &port::Facts,
        config: Option<&HealedUnit>,
        said: Option<(&Diagnosis, Timestamp)>,
    ) -> Look {
        let mut look = Look {
            unit: found.unit.to_string(),
            main: found.main_pid,
            writes: config.and_then(|config| config.database_file.clone()),
            profile: Some(self.settings.profile.clone()),
            ..Look::default()
        };
        let Some((diagnosis, at)) = said else { return look };
        let named = |name: &str| diagnosis.best.evidence.get(name).map(String::as_str);
        let path = named("path").map(PathBuf::from).filter(|path| path.is_absolute());
        match (diagnosis.best.pattern.as_str(), diagnosis.best.remedy) {
            (_, Lead::ReassignPort) => {
                look.port = named("port").and_then(|port| port.parse().ok());
                look.ports = config.map(|config| config.ports.clone()).unwrap_or_default();
            }
            (_, Lead::RestartDatabase) => {
                look.lock = config.filter(|config| config.database.is_some()).map(|config| lock::Traces {
                    configured: config.database_file.clone(),
                    named: path,
                    pid: named("pid").and_then(|pid| pid.parse().ok()),
                    said: at,
                });
            }
            (pattern, lead) => {
                // What other lines name (a socket, a configuration) is not better by being there.
                let said = match (pattern, lead) {
                    ("permission_denied", _) => Said::Forbidden,
                    ("model_unreadable", _) => Said::Corrupt,
                    (_, Lead::FetchModel) => Said::Missing,
                    _ => return look,
                };
                if let Some(path) = path {
                    let declared = self.declared(&found.unit, &path).await;
                    let unit_files = found.fragment.iter().chain(&found.drop_ins).cloned().collect();
                    look.file = Some(Named { path, said, at, declared, unit_files });
                }
            }
        }
        look
    }

    /// Name of the model whose file is at this path, when there is a unit that fetches it.
    async fn declared(&self, unit: &UnitId, path: &Path) -> Option<String> {
        let served = || {
            let name = unit.as_str().strip_prefix("lares-llama-")?.strip_suffix(".service")?;
            let hashed = path.file_name()?.to_str()?.starts_with("sha256-");
            (hashed && path.parent() == self.settings.models_dir.as_deref()).then(|| name.to_owned())
        };
        let name = self.settings.models.get(path).cloned().or_else(served)?;
        let fetches = UnitId::new(format!("lares-model-{name}.service")).ok()?;
        let found = self.manager.facts(&fetches).await.ok()?;
        (found.load == LoadState::Loaded && !found.is_masked()).then_some(name)
    }

    /// Who listens on a port; of processes of other users root's helper is asked.
    async fn holder(&self, port: u16, unit: &UnitId, seen: Listener, unknown: &mut Vec<String>) -> Option<Holder> {
        let mut holder = match seen {
            Listener::Nobody => return None,
            Listener::Found(holder) => holder,
            Listener::Hidden(why) => {
                let asked = match &self.settings.helper {
                    Some(helper) => helper.holder(port, unit.as_str()).await.map_err(|error| format!("{why}; {error}")),
                    None => Err(why),
                };
                match asked {
                    Ok(holder) => holder?,
                    Err(why) => {
                        unknown.push(format!("who holds port {port}: {why}"));
                        return Some(around::stranger());
                    }
                }
            }
        };
        // It may have left the unit's control group, and still carries the name of the run that it came from.
        if holder.owner == Owner::Nobody
            && let Some(run) = process::invocation(holder.pid).and_then(|run| run.parse().ok())
        {
            let question = Question { invocation: Some(run), count: 1, ..Question::new(unit.clone()) };
            let said = self.manager.recent(&question).await.unwrap_or_default();
            if said.iter().any(|entry| entry.unit.as_ref() == Some(unit)) {
                holder.owner = Owner::Orphan;
            }
        }
        Some(holder)
    }

    /// The lock of a database.
    async fn lock(
        &self,
        unit: &UnitId,
        database: &str,
        holder: LockHolder,
        context: &Context,
        unknown: &mut Vec<String>,
    ) -> Result<Option<Lock>, ManagerError> {
        let mut ours = BTreeMap::new();
        let users = self.settings.units.iter().filter(|(_, config)| config.database.as_deref() == Some(database));
        for name in users.map(|(name, _)| name.as_str()).filter(|name| *name != unit.as_str()).chain([database]) {
            let found = match UnitId::new(name).map(|id| async move { self.manager.facts(&id).await }) {
                Ok(facts) => facts.await,
                Err(error) => {
                    unknown.push(format!("how {name} is: {error}"));
                    continue;
                }
            };
            match found {
                Ok(found) => ours.insert(name, self.is_ours(&found, context).await?),
                Err(ManagerError::Unknown(_)) => ours.insert(name, false),
                Err(error) => return Err(error),
            };
        }
        let clients = ours.iter().filter(|(name, ours)| **ours && **name != database);
        Ok(Some(Lock {
            database: database.to_owned(),
            clients: clients.map(|(name, _)| (*name).to_owned()).collect(),
            holder,
            ours: ours.get(database).copied().unwrap_or(false),
        }))
    }

    /// What the last change of generation has to do with the unit.
    async fn switch(
        &self,
        found: &port::Facts,
        facts: &Facts,
        generations: Generations,
        closure_changed: bool,
    ) -> Result<Switch, ManagerError> {
        // What is wrong with a unit that is up is wrong now; since when is not known here.
        let began = ended_at(found).unwrap_or_else(Timestamp::now);
        let mut switch = Switch {
            generation: generations.present,
            previous: generations.previous,
            began_with_it: generations.began(began),
            closure_changed,
            failed_units: 0,
            changes: Vec::new(),
        };
        if !(switch.began_with_it && closure_changed) {
            return Ok(switch);
        }
        let since = generations.since;
        let failed = self.manager.list(&[]).await?.into_iter().filter(|unit| {
            unit.standing.active == ActiveState::Failed || unit.standing.sub.starts_with("auto-restart")
        });
        let mut names: Vec<UnitId> = failed
            .map(|unit| unit.unit)
            .filter(|unit| self.settings.units.contains_key(unit.as_str()) && *unit != found.unit)
            .take(COMPARED)
            .collect();
        let compared = names.clone();
        let own = found.unit.clone();
        let changed = tokio::task::spawn_blocking(move || {
            let others: Vec<bool> = compared.iter().map(|unit| generations.changed(unit.as_str())).collect();
            (others, generations.changes(own.as_str()))
        });
        let (changed, changes) = timeout(AROUND, changed).await.ok().and_then(Result::ok).unwrap_or_default();
        switch.changes = changes;
        let mut changed = changed.into_iter();
        names.retain(|_| changed.next().unwrap_or(false));
        let wrong = !facts.symptoms.is_empty() || matches!(facts.probe, Probe::Red { .. });
        switch.failed_units = u32::from(wrong);
        for unit in names {
            let ended = match self.manager.facts(&unit).await {
                Ok(found) => ended_at(&found),
                Err(ManagerError::Unknown(_)) => None,
                Err(error) => return Err(error),
            };
            switch.failed_units += u32::from(ended.is_some_and(|ended| ended >= since));
        }
        Ok(switch)
    }
}

/// Looks around within bounds.
async fn look_around(look: Look, unknown: &mut Vec<String>) -> Around {
    let mut around = match timeout(AROUND, tokio::task::spawn_blocking(move || around::look(look))).await {
        Ok(Ok(around)) => around,
        Ok(Err(_)) => {
            unknown.push("what is around it: looking failed".to_owned());
            Around::default()
        }
        Err(_) => {
            unknown.push(format!("what is around it: looking took longer than {} s", AROUND.as_secs()));
            Around::default()
        }
    };
    unknown.append(&mut around.unknown);
    around
}

/// What the unit itself said last, in order.
fn last_words(entries: &[&port::Entry]) -> Vec<String> {
    let own = entries.iter().filter(|entry| entry.origin == port::Origin::Unit);
    let mut words: Vec<String> =
        own.rev().take(SAID).map(|entry| hide(&entry.message).chars().take(SAID_LINE).collect()).collect();
    words.reverse();
    words
}

/// `ActiveState` in the words of facts.
pub(crate) fn active(state: &ActiveState) -> Active {
    match state {
        ActiveState::Active | ActiveState::Reloading | ActiveState::Refreshing => Active::Active,
        ActiveState::Inactive => Active::Inactive,
        ActiveState::Failed => Active::Failed,
        ActiveState::Deactivating => Active::Deactivating,
        // `maintenance`, and words of versions to come: nothing is certain, so nothing is done.
        _ => Active::Activating,
    }
}

fn origin(origin: port::Origin) -> Origin {
    match origin {
        port::Origin::Unit => Origin::Unit,
        port::Origin::Manager => Origin::Systemd,
        port::Origin::Kernel => Origin::Kernel,
    }
}

/// Whether a unit that is down is as it should be: it has done its work, comes when it is called, or its own condition
/// keeps it down.
fn rests(found: &port::Facts) -> bool {
    let well = found.result.as_ref().is_none_or(|result| !result.is_failure());
    let called = found.kind.as_deref() == Some("oneshot") || !found.relations.triggered_by.is_empty();
    (well && called) || found.result == Some(RunResult::ExecCondition)
}

/// When the last run ended; none while it runs, or when systemd forgot.
fn ended_at(found: &port::Facts) -> Option<Timestamp> {
    let waits = found.standing.sub.starts_with("auto-restart");
    if !active(&found.standing.active).is_down() && !waits {
        return None;
    }
    // Between two automatic restarts a unit may never be called inactive.
    found.times.inactive_enter.max(found.times.main_exit.filter(|_| waits)).map(words::wall)
}

fn of_manager(found: &port::Facts) -> Facts {
    let result = found.result.as_ref().map(|result| result.as_str().to_owned()).unwrap_or_default();
    Facts {
        unit: found.unit.to_string(),
        load: match &found.load {
            _ if found.is_masked() => Load::Masked,
            LoadState::Loaded | LoadState::Merged => Load::Loaded,
            LoadState::NotFound => Load::NotFound,
            LoadState::BadSetting => Load::BadSetting,
            _ => Load::Error,
        },
        active: active(&found.standing.active),
        invocation: found.invocation.map(|id| id.to_string()).unwrap_or_default(),
        exit_status: match found.main_exit {
            Some(Exit::Code { code }) => Some(code),
            _ => None,
        },
        restarts: found.restarts.unwrap_or(0),
        manager_restarts: found.standing.sub.starts_with("auto-restart"),
        job_queued: found.job.is_some(),
        memory: Memory {
            peak: found.memory.peak,
            limit: found.memory.max,
            kills: u32::from(result == "oom-kill")
                .max(found.oom_kills.map_or(0, |kills| u32::try_from(kills).unwrap_or(u32::MAX))),
            pressure: None,
        },
        result,
        ..Facts::default()
    }
}

/// What the unit's state and the manager's own lines tell.
fn symptoms(found: &port::Facts, facts: &Facts, journal: Option<&Journal>) -> Vec<Symptom> {
    let said = |words: &str| {
        let mut entries = journal.into_iter().flat_map(|journal| &journal.entries);
        entries.any(|entry| entry.origin == port::Origin::Manager && entry.message.contains(words))
    };
    let mut symptoms = Vec::new();
    if facts.active == Active::Failed || facts.manager_restarts {
        let status = match found.main_exit {
            Some(Exit::Code { code }) => code,
            Some(Exit::Signal { signal }) => signal,
            _ => 0,
        };
        symptoms.extend(Symptom::of_result(&facts.result, status));
        // The result stays that of the last run.
        if said("Start request repeated too quickly") {
            symptoms.push(Symptom::StartLimitHit);
        }
    }
    if facts.active == Active::Inactive {
        match journal.map(|journal| journal.end) {
            Some(End::Dependency) => symptoms.push(Symptom::DependencyFailed),
            Some(End::Skipped) => {}
            _ if rests(found) && !facts.stopped_by_operator => {}
            // Of an inactive unit that nobody holds on to, systemd forgets how it ended.
            _ => symptoms.push(Symptom::InactiveUnexpectedly),
        }
    }
    if found.oom_kills.is_some_and(|kills| kills > 0) && facts.active == Active::Active {
        symptoms.push(Symptom::OomKill { main: false });
    }
    symptoms
}

/// The lines of the present or last run that may tell what is wrong: while it is up only recent ones, and of the
/// kernel's those about this unit.
fn evidence<'e>(journal: &'e Journal, found: &port::Facts, recent: Duration) -> Vec<&'e port::Entry> {
    if found.invocation.is_none() {
        return Vec::new();
    }
    let now = Timestamp::now();
    let up = active(&found.standing.active) == Active::Active;
    let end = ended_at(found);
    let unit = found.unit.as_str();
    let mut processes = words::killed_in(unit, &journal.entries);
    processes.extend(found.main_pid);
    let counts = |entry: &&port::Entry| {
        let of_this_run = entry.origin != port::Origin::Kernel
            || (words::is_about(entry, unit, &processes) && end.is_none_or(|end| entry.at <= end + KERNEL_SLACK));
        of_this_run && !(up && words::age(entry, now) > recent)
    };
    journal.entries.iter().map(AsRef::as_ref).filter(counts).collect()
}
