//! The child-process supervisor as a service manager: what it cannot know is left out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::ControlError;
use crate::feed::{Feed, FeedItem};
use crate::journal::{LogLine, LogStream};
use crate::port::{
    Entry, Event, EventKind, Facts, JobOutcome, Listed, LoadState, Manager, ManagerError, Memory, Origin, Question,
    Relations, RestartSettings, RunResult, Standing, StateChange, Times, UnitId, Verb,
};
use crate::runner::{Snapshot, Step};
use crate::spec::UnitSpec;
use crate::status::{Exit, State};
use crate::supervisor::Supervisor;

/// Events a reader may be behind before it misses some.
const EVENTS: usize = 4096;
/// Entries a reader may be behind before it misses some.
const ENTRIES: usize = 4096;
/// Most lines given for one question; the supervisor keeps 1000 a unit.
const LINES: usize = 1000;

/// A [`Supervisor`] as a [`Manager`].
///
/// It has no runs with ids, no jobs in a queue and no masks; a unit that dies goes to `activating`, as it is started again by
/// itself, and to `failed` only after several failures in a row.
#[derive(Debug)]
pub struct Children {
    supervisor: Supervisor,
    watched: Arc<Mutex<HashSet<UnitId>>>,
    events: broadcast::Sender<Event>,
    entries: broadcast::Sender<Arc<Entry>>,
    _ends: DropGuard,
}

impl Children {
    /// Watches a supervisor. Must be called within a runtime; the supervisor goes on when this is dropped.
    pub fn new(supervisor: Supervisor) -> Self {
        let ends = CancellationToken::new();
        let watched: Arc<Mutex<HashSet<UnitId>>> = Arc::default();
        let events = broadcast::Sender::new(EVENTS);
        let entries = broadcast::Sender::new(ENTRIES);
        let mut steps = supervisor.steps();
        let (sender, wanted) = (events.clone(), Arc::clone(&watched));
        let tell = async move {
            while let Some(item) = steps.next().await {
                let kind = match item {
                    FeedItem::Item(step) => {
                        let change = state_change(&step);
                        if !lock(&wanted).contains(&change.unit) {
                            continue;
                        }
                        EventKind::Changed(Box::new(change))
                    }
                    FeedItem::Missed(count) => EventKind::Missed(count),
                };
                // Nobody may be listening.
                let _ = sender.send(Event::now(kind));
            }
            let reason = "the supervisor ended".to_owned();
            let _ = sender.send(Event::now(EventKind::Disconnected { reason }));
        };
        let mut lines = supervisor.follow_all();
        let (sender, wanted) = (entries.clone(), Arc::clone(&watched));
        let repeat = async move {
            while let Some(item) = lines.next().await {
                match item {
                    FeedItem::Item(line) => {
                        let entry = entry(&line);
                        if entry.unit.as_ref().is_some_and(|unit| lock(&wanted).contains(unit)) {
                            // Nobody may be listening.
                            let _ = sender.send(Arc::new(entry));
                        }
                    }
                    FeedItem::Missed(count) => tracing::warn!(count, "lines of units were missed"),
                }
            }
        };
        let stopped = ends.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                _ = futures_util::future::join(tell, repeat) => {}
            }
        });
        Self { supervisor, watched, events, entries, _ends: ends.drop_guard() }
    }

    async fn act(&self, unit: &UnitId, verb: Verb, patience: Duration) -> Result<JobOutcome, ManagerError> {
        let name = unit.as_str();
        let work = async {
            match verb {
                Verb::Stop => self.supervisor.stop(name).await,
                Verb::Restart => self.supervisor.restart(name).await,
                Verb::Start | Verb::ResetFailed => self.supervisor.start(name).await,
            }
        };
        let ended = timeout(patience, work).await;
        let ended = ended.map_err(|_| ManagerError::Patience { unit: unit.clone(), verb, waited: patience })?;
        let outcome = match ended {
            Ok(()) => JobOutcome::Done,
            Err(ControlError::NotActive(_)) => JobOutcome::Failed,
            Err(error) => return Err(refused(unit, verb, &error)),
        };
        if lock(&self.watched).contains(unit) {
            let kind = EventKind::JobRemoved { unit: unit.clone(), job: None, outcome: outcome.clone() };
            // Nobody may be listening.
            let _ = self.events.send(Event::now(kind));
        }
        Ok(outcome)
    }
}

fn lock(watched: &Mutex<HashSet<UnitId>>) -> MutexGuard<'_, HashSet<UnitId>> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(unit: &UnitId, verb: Verb, error: &ControlError) -> ManagerError {
    match error {
        ControlError::Unknown { .. } => ManagerError::Unknown(unit.clone()),
        ControlError::ShuttingDown => ManagerError::Unavailable(error.to_string()),
        ControlError::NotActive(_) | ControlError::NotStopped { .. } => {
            ManagerError::Refused { unit: unit.clone(), verb, reason: error.to_string() }
        }
    }
}

fn standing(state: State, failing: bool) -> Standing {
    Standing { active: state.into(), sub: if failing { "auto-restart".into() } else { state.to_string() } }
}

/// Whatever ends a process, only a unit that waits for its next try has failed.
fn result(now: &Snapshot) -> Option<RunResult> {
    if !now.failing {
        return Some(RunResult::Success);
    }
    Some(match &now.last_exit {
        Some(Exit::Code { .. }) => RunResult::ExitCode,
        Some(Exit::Signal { .. }) => RunResult::Signal,
        Some(Exit::NotStarted { .. } | Exit::Unknown { .. }) => RunResult::Resources,
        None => return None,
    })
}

fn state_change(step: &Step) -> StateChange {
    let now = &step.to;
    StateChange {
        unit: UnitId::from(&step.unit),
        from: Some(standing(step.from.state, step.from.failing)),
        to: standing(now.state, now.failing),
        result: result(now),
        main_exit: now.last_exit.clone().filter(|_| now.pid.is_none()),
        invocation: None,
        restarts: u32::try_from(now.restarts).ok(),
        main_pid: now.pid,
        job: None,
        at: None,
        cause: Some(now.cause.clone()),
        found_late: false,
    }
}

fn listed(now: &Snapshot, spec: &UnitSpec) -> Listed {
    Listed {
        unit: UnitId::from(&spec.name),
        description: spec.description.clone(),
        load: LoadState::Loaded,
        standing: standing(now.state, now.failing),
        job: None,
    }
}

fn entry(line: &LogLine) -> Entry {
    Entry {
        at: line.at,
        monotonic: None,
        origin: if line.stream == LogStream::Supervisor { Origin::Manager } else { Origin::Unit },
        unit: Some(UnitId::from(&line.unit)),
        invocation: None,
        message: line.text.clone(),
        priority: None,
        pid: None,
        fields: Vec::new(),
    }
}

/// Whether a name is like a pattern with `*` and `?`.
fn is_like(name: &str, pattern: &str) -> bool {
    let (name, pattern) = (name.as_bytes(), pattern.as_bytes());
    let (mut at, mut place, mut star) = (0, 0, None);
    while at < name.len() {
        match pattern.get(place) {
            Some(b'*') => {
                star = Some((place, at));
                place += 1;
            }
            Some(&letter) if letter == b'?' || letter == name[at] => {
                at += 1;
                place += 1;
            }
            _ => match star {
                // The last star takes one letter more.
                Some((back, taken)) => {
                    star = Some((back, taken + 1));
                    place = back + 1;
                    at = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[place..].iter().all(|&letter| letter == b'*')
}

#[async_trait]
impl Manager for Children {
    async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, ManagerError> {
        let wanted = |name: &str| patterns.is_empty() || patterns.iter().any(|pattern| is_like(name, pattern));
        let names = self.supervisor.specs().map(|spec| spec.name.as_str()).filter(|name| wanted(name));
        let units = names.filter_map(|name| self.supervisor.look(name).ok());
        let mut units: Vec<Listed> = units.map(|(now, spec)| listed(&now, spec)).collect();
        units.sort_by(|one, other| one.unit.cmp(&other.unit));
        Ok(units)
    }

    async fn facts(&self, unit: &UnitId) -> Result<Facts, ManagerError> {
        let refuse = |error| refused(unit, Verb::Start, &error);
        // Its memory takes a look at all processes; the rest is at hand.
        let usage = self.supervisor.status(unit.as_str()).await.map_err(refuse)?.usage;
        let (now, spec) = self.supervisor.look(unit.as_str()).map_err(refuse)?;
        let after: Vec<UnitId> = spec.after.iter().map(UnitId::from).collect();
        let comes_after = |other: &&UnitSpec| other.after.contains(&spec.name);
        let before: Vec<UnitId> =
            self.supervisor.specs().filter(comes_after).map(|other| UnitId::from(&other.name)).collect();
        let Listed { unit, description, load, standing, .. } = listed(&now, spec);
        Ok(Facts {
            unit,
            description,
            load,
            load_error: None,
            standing,
            result: result(&now),
            main_exit: now.last_exit.clone().filter(|_| now.pid.is_none()),
            main_pid: now.pid,
            restarts: u32::try_from(now.restarts).ok(),
            invocation: None,
            file_state: None,
            job: None,
            cgroup: None,
            memory: Memory { current: usage.map(|usage| usage.rss_bytes), ..Memory::default() },
            oom_kills: None,
            oom_policy: None,
            restart: RestartSettings {
                policy: "always".into(),
                delay: self.supervisor.settings().units.restart_delay,
                ..RestartSettings::default()
            },
            fragment: None,
            drop_ins: Vec::new(),
            needs_reload: None,
            program: Some(spec.program.clone()),
            kind: None,
            // It is started with them and waits until they are active, but it outlives them.
            relations: Relations {
                wants: after.clone(),
                wanted_by: before.clone(),
                after,
                before,
                ..Relations::default()
            },
            times: Times::default(),
        })
    }

    async fn start(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.act(unit, Verb::Start, patience).await
    }

    async fn stop(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.act(unit, Verb::Stop, patience).await
    }

    async fn restart(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.act(unit, Verb::Restart, patience).await
    }

    /// The supervisor forgets failures with every start that somebody asks for; there is nothing else to reset.
    async fn reset_failed(&self, unit: &UnitId) -> Result<(), ManagerError> {
        self.supervisor.look(unit.as_str()).map(drop).map_err(|error| refused(unit, Verb::ResetFailed, &error))
    }

    async fn watch(&self, units: &[UnitId]) -> Result<Vec<Listed>, ManagerError> {
        lock(&self.watched).extend(units.iter().cloned());
        let absent = |unit: &UnitId| Listed {
            unit: unit.clone(),
            description: String::new(),
            load: LoadState::NotFound,
            standing: standing(State::Inactive, false),
            job: None,
        };
        let one = |unit: &UnitId| {
            self.supervisor.look(unit.as_str()).map_or_else(|_| absent(unit), |(now, spec)| listed(&now, spec))
        };
        Ok(units.iter().map(one).collect())
    }

    async fn unwatch(&self, units: &[UnitId]) {
        lock(&self.watched).retain(|unit| !units.contains(unit));
    }

    fn events(&self) -> Feed<Event> {
        Feed::new(self.events.subscribe())
    }

    async fn recent(&self, question: &Question) -> Result<Vec<Arc<Entry>>, ManagerError> {
        // The supervisor tells of an end after the last words: there is nothing to wait for.
        let lines = self.supervisor.logs(question.unit.as_str(), LINES);
        let lines = lines.map_err(|error| refused(&question.unit, Verb::Start, &error))?;
        let in_window = |line: &&Arc<LogLine>| {
            question.since.is_none_or(|since| line.at >= since) && question.until.is_none_or(|until| line.at <= until)
        };
        let found: Vec<_> = lines.iter().filter(in_window).map(|line| Arc::new(entry(line))).collect();
        let surplus = found.len().saturating_sub(question.count);
        Ok(found.into_iter().skip(surplus).collect())
    }

    async fn entries(&self) -> Result<Feed<Arc<Entry>>, ManagerError> {
        Ok(Feed::new(self.entries.subscribe()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_systemds() {
        for (name, pattern) in [("llama@a", "llama@*"), ("llama", "*"), ("abcab", "*ab"), ("a", "?"), ("abc", "a*c*")] {
            assert!(is_like(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in [("llama", "llama@*"), ("", "?"), ("abc", "a?"), ("abc", "*b"), ("x", "")] {
            assert!(!is_like(name, pattern), "{name} {pattern}");
        }
    }
}
