//! What to do about a cause: remedies to try one after the other, a question to a person, or a reason to hold still.

use std::fmt;
use std::time::Duration;

use lares_config::{ByteSize, HealedUnit, Healer};
use serde::{Deserialize, Serialize};

use crate::diagnose::Cause;
use crate::facts::{Active, Facts, Load, LockHolder, Owner};
use crate::remedy::Remedy;

/// Longest that one step takes: systemd's own limits for starting and stopping, 90 s each, may pass in it.
const STEP_TIMEOUT: Duration = Duration::from_secs(190);

/// What the configuration allows for one unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Start it even if somebody stopped it.
    pub keep_running: bool,
    /// Failed probes in a row that make it sick.
    pub sick_after: u32,
    /// Whether it may be moved to another port.
    pub reassign_port: bool,
    /// Up to so many bytes `MemoryMax` may be raised.
    pub memory_ceiling: Option<u64>,
    /// It counts as recovered when it stayed up for so long.
    pub verify_hold: Duration,
    /// A remedy that has not brought it up after so long did not help.
    pub verify_timeout: Duration,
    /// Longest that one step takes.
    pub step_timeout: Duration,
    /// A person is told of an incident that only waits for so long.
    pub patience: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self::of(&Healer::default(), &HealedUnit::default())
    }
}

impl Policy {
    /// What the configuration says of one unit.
    pub fn of(healer: &Healer, unit: &HealedUnit) -> Self {
        Self {
            keep_running: unit.keep_running,
            sick_after: unit.probe.threshold,
            reassign_port: !unit.ports.is_empty(),
            memory_ceiling: unit.memory_max.map(ByteSize::bytes),
            verify_hold: healer.verify_hold,
            verify_timeout: healer.verify_timeout,
            step_timeout: STEP_TIMEOUT,
            patience: healer.patience,
        }
    }
}

/// Why nothing is done for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing is wrong.
    Healthy,
    /// Too few probes failed so far.
    BelowThreshold,
    /// A child was killed for memory and the unit is well.
    ChildKilled,
    /// It is on its way up or down.
    Changing,
    /// The service manager restarts it.
    LeftToManager,
    /// An administrator masked it.
    Masked,
    /// A pause is in force.
    Paused,
    /// The machine goes down.
    ShuttingDown,
    /// `nixos-rebuild` runs.
    Rebuilding,
    /// Somebody stopped it.
    OperatorStopped,
    /// A job for it waits or runs.
    JobQueued,
    /// What it needs comes up.
    DependencyBusy,
    /// What it needs is down and not ours to start.
    DependencyNotOurs,
    /// What it needs is down, and a person was told of that.
    DependencyHeld,
    /// The program tries again by itself.
    Retrying,
    /// The holder of the lock is at work.
    LockHeld,
    /// The holder of the lock lives and does nothing, or nobody knows who it is.
    LockStuck,
    /// The database is not ours to restart.
    DatabaseNotOurs,
    /// Another unit holds the port, and it may not be moved.
    PortHeld,
    /// More memory is not allowed.
    MemoryCeiling,
    /// The model is not there.
    ModelMissing,
    /// The model is of no use.
    ModelUnreadable,
    /// A file may not be used.
    PermissionDenied,
    /// The disk is full.
    DiskFull,
    /// The configuration is refused.
    BadConfiguration,
    /// Going back to the previous generation was proposed already.
    RollbackProposed,
    /// It crashes at once, again and again.
    CrashLoop,
    /// A pattern says that a person has to look.
    Reported,
    /// All that could be tried was tried.
    Exhausted,
    /// The last remedy was not long ago.
    Cooldown,
    /// Remedies fail; the next try waits longer.
    Backoff,
    /// So many remedies an hour are enough.
    HourlyLimit,
    /// So many remedies for all units together are enough.
    Budget,
    /// The circuit is open after remedies that did not help.
    CircuitOpen,
    /// A remedy for a unit of the same chain is under way.
    ChainBusy,
}

impl Reason {
    /// How long to wait before looking again when nothing is heard.
    pub(crate) const fn look_again(self) -> Duration {
        match self {
            Self::Changing | Self::LeftToManager | Self::JobQueued | Self::BelowThreshold | Self::DependencyBusy => {
                Duration::from_secs(1)
            }
            // What a person or time puts right is heard of from nobody.
            Self::ChildKilled
            | Self::Retrying
            | Self::LockHeld
            | Self::LockStuck
            | Self::PortHeld
            | Self::DependencyNotOurs
            | Self::DependencyHeld
            | Self::ModelMissing
            | Self::ModelUnreadable
            | Self::PermissionDenied
            | Self::DiskFull => Duration::from_secs(5),
            _ => Duration::from_secs(30),
        }
    }

    /// Whether nothing but a person, or time, puts it right: starting again does not.
    pub(crate) const fn is_out_of_hands(self) -> bool {
        matches!(
            self,
            Self::LockStuck
                | Self::DatabaseNotOurs
                | Self::PortHeld
                | Self::MemoryCeiling
                | Self::ModelMissing
                | Self::ModelUnreadable
                | Self::PermissionDenied
                | Self::DiskFull
                | Self::BadConfiguration
                | Self::CrashLoop
                | Self::Reported
                | Self::Exhausted
        )
    }

    /// Whether the wish of a person ends the incident.
    pub(crate) const fn is_wish(self) -> bool {
        matches!(self, Self::Masked | Self::Paused | Self::OperatorStopped | Self::ShuttingDown)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "nothing is wrong",
            Self::BelowThreshold => "too few probes failed so far",
            Self::ChildKilled => "a child was killed for memory and the unit is well",
            Self::Changing => "it is on its way up or down",
            Self::LeftToManager => "left to its service manager, which restarts it",
            Self::Masked => "it is masked",
            Self::Paused => "it is paused",
            Self::ShuttingDown => "the machine goes down",
            Self::Rebuilding => "nixos-rebuild runs",
            Self::OperatorStopped => "nothing failed: somebody stopped it, or nobody started it",
            Self::JobQueued => "systemd has a job for it",
            Self::DependencyBusy => "what it needs does not answer yet",
            Self::DependencyNotOurs => "what it needs is down and not ours to start",
            Self::DependencyHeld => "what it needs is down, and a person was told of that",
            Self::Retrying => "the program tries again by itself",
            Self::LockHeld => "the holder of the lock is at work",
            Self::LockStuck => "nobody may break the lock of a process that lives",
            Self::DatabaseNotOurs => "the database is not ours to restart",
            Self::PortHeld => "another process holds the port, and the unit may not be moved",
            Self::MemoryCeiling => "more memory is not allowed",
            Self::ModelMissing => "the model is not there",
            Self::ModelUnreadable => "the model is of no use",
            Self::PermissionDenied => "a file may not be used",
            Self::DiskFull => "the disk is full",
            Self::BadConfiguration => "the configuration is refused",
            Self::RollbackProposed => "going back to the previous generation was proposed already",
            Self::CrashLoop => "it crashes at once, again and again",
            Self::Reported => "a person has to look",
            Self::Exhausted => "all that could be tried was tried",
            Self::Cooldown => "the last remedy was not long ago",
            Self::Backoff => "the last remedies did not help; the next try waits longer",
            Self::HourlyLimit => "enough remedies for one hour",
            Self::Budget => "enough remedies for all units together",
            Self::CircuitOpen => "remedies did not help; the circuit is open",
            Self::ChainBusy => "a remedy for a unit it is tied to is under way",
        })
    }
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// Try these, the next one when the one before did not help.
    Act {
        /// At least one.
        ladder: Vec<Remedy>,
        /// Whether a person is told as well.
        alert: bool,
    },
    /// A person has to agree.
    Ask {
        /// To what.
        remedy: Remedy,
    },
    /// Hold still.
    Hold {
        /// Why.
        reason: Reason,
        /// Whether a person is told.
        alert: bool,
    },
}

/// What was tried before, as far as it bears on the decision.
#[derive(Debug, Clone, Copy, Default)]
pub struct History<'a> {
    /// Remedies of this incident that did not help.
    pub tried: &'a [Remedy],
    /// Whether going back from the present generation was proposed before.
    pub rollback_proposed: bool,
    /// Whether the open circuit allows one trial.
    pub trial: bool,
    /// Remedy that helped against the same unknown failure before and may be used without asking.
    pub learned: Option<&'a str>,
}

/// Whether somebody's wish or the state of the machine forbids to touch the unit, whatever is wrong with it.
pub fn forbidden(facts: &Facts, policy: &Policy) -> Option<Reason> {
    [
        (facts.load == Load::Masked, Reason::Masked),
        (facts.paused, Reason::Paused),
        (facts.shutting_down, Reason::ShuttingDown),
        (facts.stopped_by_operator && !policy.keep_running, Reason::OperatorStopped),
        (facts.rebuilding, Reason::Rebuilding),
        (facts.job_queued, Reason::JobQueued),
    ]
    .into_iter()
    .find_map(|(holds, reason)| holds.then_some(reason))
}

/// Decides. Restraint (cooldowns, budgets, chains) comes after this and may still say "not now".
pub fn decide(facts: &Facts, cause: &Cause, policy: &Policy, history: &History<'_>) -> Decision {
    let hold = |reason| Decision::Hold { reason, alert: false };
    let alert = |reason| Decision::Hold { reason, alert: true };
    let well = matches!(cause, Cause::Healthy | Cause::Suspected);
    if let Some(reason) = forbidden(facts, policy).filter(|_| !well) {
        return hold(reason);
    }
    let ladder = |remedies: Vec<Remedy>, told| climb(remedies, told, facts, history);
    match cause {
        Cause::Healthy => hold(Reason::Healthy),
        Cause::Suspected => hold(Reason::BelowThreshold),
        Cause::Changing => hold(Reason::Changing),
        Cause::ManagerRestarts => hold(Reason::LeftToManager),
        Cause::ChildKilled => hold(Reason::ChildKilled),
        Cause::OutOfMemory { again: false, .. } if facts.manager_restarts => alert(Reason::LeftToManager),
        Cause::OutOfMemory { again: false, .. } => ladder(vec![Remedy::Restart], true),
        Cause::OutOfMemory { peak, limit, .. } => match more_memory(*peak, *limit, policy.memory_ceiling) {
            Some(to) => ladder(vec![Remedy::RaiseMemory { to }], true),
            None if facts.active.is_down() && !facts.manager_restarts => alert(Reason::MemoryCeiling),
            None => ladder(vec![Remedy::Stop], true),
        },
        Cause::PortConflict { port, holder } => {
            let mut remedies = Vec::new();
            if holder.owner == Owner::Orphan {
                remedies.push(Remedy::EndOrphan { pid: holder.pid, started: holder.started });
            }
            if let Some(to) = facts.free_port.filter(|_| policy.reassign_port) {
                remedies.push(Remedy::ReassignPort { from: *port, to });
            }
            if remedies.is_empty() { alert(Reason::PortHeld) } else { ladder(remedies, false) }
        }
        Cause::DependencyDown { ours: false, .. } => alert(Reason::DependencyNotOurs),
        Cause::DependencyDown { units, .. } => {
            ladder(vec![Remedy::RestartDependencies { units: units.clone() }], false)
        }
        Cause::DependencyBusy { .. } => hold(Reason::DependencyBusy),
        Cause::ModelMissing { declared: Some(model), .. } => {
            ladder(vec![Remedy::FetchModel { model: model.clone() }], true)
        }
        Cause::ModelMissing { .. } => alert(Reason::ModelMissing),
        Cause::ModelUnreadable { .. } => alert(Reason::ModelUnreadable),
        Cause::PermissionDenied { .. } => alert(Reason::PermissionDenied),
        Cause::DatabaseLocked { lock } => match lock.as_ref().map(|lock| (lock.holder, lock)) {
            Some((LockHolder::Working { .. }, _)) => hold(Reason::LockHeld),
            Some((LockHolder::Dead, lock)) if lock.ours => ladder(
                vec![Remedy::RestartDatabase { database: lock.database.clone(), clients: lock.clients.clone() }],
                false,
            ),
            Some((LockHolder::Dead, _)) => alert(Reason::DatabaseNotOurs),
            _ => alert(Reason::LockStuck),
        },
        Cause::DiskFull { .. } => alert(Reason::DiskFull),
        Cause::BadConfiguration { .. } => rollback(facts, history).unwrap_or_else(|| alert(Reason::BadConfiguration)),
        Cause::NewGeneration { .. } => rollback(facts, history).unwrap_or_else(|| hold(Reason::RollbackProposed)),
        Cause::CrashLoop if history.trial => ladder(vec![Remedy::Restart], false),
        Cause::CrashLoop => rollback(facts, history).unwrap_or_else(|| alert(Reason::CrashLoop)),
        Cause::Reported { .. } => alert(Reason::Reported),
        Cause::Retrying => hold(Reason::Retrying),
        Cause::CauseGone { .. } | Cause::Unresponsive => ladder(vec![Remedy::Restart], false),
        Cause::Crashed => {
            let needed = || facts.dependencies.iter().filter(|d| d.ours).map(|d| d.unit.clone()).collect::<Vec<_>>();
            let learned = match history.learned {
                Some("restart_dependencies") => Some(Remedy::RestartDependencies { units: needed() }),
                _ => None,
            };
            ladder(learned.into_iter().chain([Remedy::Restart]).collect(), false)
        }
    }
}

/// Leaves out what was tried. When nothing is left it may have been the new generation; else a person has to look.
fn climb(remedies: Vec<Remedy>, alert: bool, facts: &Facts, history: &History<'_>) -> Decision {
    let tried = |remedy: &Remedy| !history.trial && history.tried.contains(remedy);
    let ladder: Vec<Remedy> = remedies.into_iter().filter(|remedy| !tried(remedy)).collect();
    if !ladder.is_empty() {
        return Decision::Act { ladder, alert };
    }
    rollback(facts, history).unwrap_or(Decision::Hold { reason: Reason::Exhausted, alert: true })
}

/// Going back is worth asking for once, when the trouble began with a generation that changed the unit.
fn rollback(facts: &Facts, history: &History<'_>) -> Option<Decision> {
    let switch = facts.switch.as_ref()?;
    let blamed = switch.began_with_it && switch.closure_changed && !history.rollback_proposed;
    blamed.then_some(Decision::Ask { remedy: Remedy::Rollback { from: switch.generation, to: switch.previous } })
}

/// Half as much again as it needed or had, within the ceiling; `None` when that is not more than it has.
fn more_memory(peak: Option<u64>, limit: Option<u64>, ceiling: Option<u64>) -> Option<u64> {
    let (limit, ceiling) = (limit?, ceiling?);
    let most = peak.unwrap_or(0).max(limit);
    let to = most.saturating_add(most / 2).min(ceiling);
    (to > limit).then_some(to)
}

/// Whether the unit is as a remedy should leave it: up and answering, with no line that matches a pattern.
pub(crate) fn is_well(facts: &Facts) -> bool {
    facts.is_up() && facts.matched.is_none() && facts.symptoms.is_empty()
}

/// Whether it may still become well by itself.
pub(crate) fn may_come_up(facts: &Facts) -> bool {
    match facts.active {
        Active::Activating | Active::Deactivating => true,
        // Lines of the last moments count against it, but they may be its last complaints.
        Active::Active => facts.symptoms.is_empty(),
        Active::Inactive | Active::Failed => facts.manager_restarts || facts.job_queued,
    }
}

#[cfg(test)]
mod faults;
