//! From facts to the cause that the remedy is chosen for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chain;
use crate::decide::Policy;
use crate::facts::{Active, Dependency, Facts, FileState, Holder, Lead, Load, Lock, LockHolder, Match, Owner, Probe};
use crate::symptom::Symptom;

/// Exit status of a program that refuses its configuration (`EX_CONFIG`).
const EX_CONFIG: i32 = 78;
/// So many failures in a row that are alike and come at once make a crash loop.
const LOOP: u32 = 3;
/// A second kill for memory within the hour: the limit does not fit the program.
const AGAIN: u32 = 2;

/// Why a unit is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// Nothing is wrong with it.
    Healthy,
    /// A probe or two failed; not enough to call it sick.
    Suspected,
    /// It is on its way up or down.
    Changing,
    /// The service manager restarts it, or has done so.
    ManagerRestarts,
    /// A child process was killed for memory; the unit goes on.
    ChildKilled,
    /// Killed for memory.
    OutOfMemory {
        /// `MemoryPeak`, bytes.
        peak: Option<u64>,
        /// `MemoryMax`, bytes.
        limit: Option<u64>,
        /// Whether it was not the first time this hour.
        again: bool,
    },
    /// The port it wants is taken.
    PortConflict {
        /// The port.
        port: u16,
        /// By whom.
        holder: Holder,
    },
    /// What it needs is down.
    DependencyDown {
        /// All of it, what others need first.
        units: Vec<String>,
        /// Whether all of it may be acted on.
        ours: bool,
    },
    /// What it needs is on its way up, or runs and does not answer yet.
    DependencyBusy {
        /// Which unit.
        unit: String,
    },
    /// A model file is not there.
    ModelMissing {
        /// Where it should be.
        path: String,
        /// The nearest path that exists.
        nearest: Option<String>,
        /// Name under which it is declared with a hash.
        declared: Option<String>,
    },
    /// A model file is there and of no use.
    ModelUnreadable {
        /// Where it is.
        path: String,
        /// Owner and mode.
        access: String,
        /// Whether its content is what is wrong, and not its permissions.
        corrupt: bool,
    },
    /// It may not use a file.
    PermissionDenied {
        /// Which.
        path: String,
        /// Owner and mode.
        access: String,
    },
    /// Its database is locked.
    DatabaseLocked {
        /// Unit of the database, the lock and who holds it, where known.
        lock: Option<Lock>,
    },
    /// The file system it writes to is full.
    DiskFull {
        /// Where it is mounted.
        mount: String,
        /// Free bytes.
        free: u64,
    },
    /// Its unit file or its configuration is refused.
    BadConfiguration {
        /// By whom and how.
        why: String,
    },
    /// Several units whose closure a switch changed failed right after it.
    NewGeneration {
        /// Number of the generation.
        generation: u64,
        /// How many units.
        units: u32,
    },
    /// It ends the same way again and again, as soon as it is started.
    CrashLoop,
    /// What it failed over is no longer so.
    CauseGone {
        /// What that was.
        pattern: String,
    },
    /// A pattern that only a person can deal with.
    Reported {
        /// Its name.
        pattern: String,
    },
    /// The program waits and tries again by itself.
    Retrying,
    /// It runs and does not answer.
    Unresponsive,
    /// It ended, and nothing tells why.
    Crashed,
}

/// Finds the cause. Lines of the journal count only while something is wrong with the unit: anybody may make a healthy
/// one write them.
pub fn diagnose(facts: &Facts, policy: &Policy) -> Cause {
    let saw = |wanted: &dyn Fn(&Symptom) -> bool| facts.symptoms.iter().any(wanted);
    let looping = saw(&|s| matches!(s, Symptom::RestartLoop { .. }));
    let killed = saw(&|s| matches!(s, Symptom::OomKill { main: true }));
    let red =
        facts.active == Active::Active && matches!(facts.probe, Probe::Red { times } if times >= policy.sick_after);
    let down = match facts.active {
        Active::Failed => true,
        Active::Inactive => policy.keep_running || !facts.symptoms.is_empty(),
        _ => false,
    };
    let broken = !matches!(facts.load, Load::Loaded | Load::Masked);
    if killed && facts.memory.kills >= AGAIN {
        return out_of_memory(facts);
    }
    if !(red || down || looping || broken) {
        return quiet(facts);
    }
    if killed {
        return out_of_memory(facts);
    }
    if facts.manager_restarts && !looping && !red {
        return Cause::ManagerRestarts;
    }
    if broken {
        return with_the_switch(facts).unwrap_or_else(|| Cause::BadConfiguration { why: load_error(facts.load) });
    }
    let matched = facts.matched.as_ref().filter(|m| m.lead != Lead::None);
    if let Some(disk) = facts.disk.as_ref().filter(|disk| disk.full)
        && matched.is_none_or(|m| m.lead == Lead::Alert)
    {
        return Cause::DiskFull { mount: disk.mount.clone(), free: disk.free };
    }
    let needs = dependencies(facts);
    if matched.is_none_or(|m| m.lead == Lead::RestartDependencies)
        && let Some(cause) = needs
    {
        return cause;
    }
    if let Some(cause) = with_the_switch(facts) {
        return cause;
    }
    if facts.exit_status == Some(EX_CONFIG) {
        return Cause::BadConfiguration { why: format!("it exited with status {EX_CONFIG}") };
    }
    if facts.result == "resources" {
        return Cause::BadConfiguration { why: "systemd could not set it up (result resources)".into() };
    }
    if let Some(cause) = matched.and_then(|m| known(m, facts)) {
        return cause;
    }
    if saw(&|s| matches!(s, Symptom::DependencyFailed)) {
        return Cause::CauseGone { pattern: "dependency".into() };
    }
    if looping || facts.quick_failures >= LOOP {
        return Cause::CrashLoop;
    }
    if red { Cause::Unresponsive } else { Cause::Crashed }
}

/// Nothing that calls for a remedy.
fn quiet(facts: &Facts) -> Cause {
    if facts.symptoms.contains(&Symptom::OomKill { main: false }) {
        return Cause::ChildKilled;
    }
    match facts.active {
        Active::Activating | Active::Deactivating if facts.manager_restarts => Cause::ManagerRestarts,
        Active::Activating | Active::Deactivating => Cause::Changing,
        _ if matches!(facts.probe, Probe::Red { .. }) => Cause::Suspected,
        Active::Active if !facts.symptoms.is_empty() => Cause::ManagerRestarts,
        _ => Cause::Healthy,
    }
}

fn out_of_memory(facts: &Facts) -> Cause {
    let memory = facts.memory;
    Cause::OutOfMemory { peak: memory.peak, limit: memory.limit, again: memory.kills >= AGAIN }
}

fn load_error(load: Load) -> String {
    match load {
        Load::NotFound => "systemd knows no unit of this name".into(),
        Load::BadSetting => "systemd refuses the unit file (bad-setting)".into(),
        _ => "systemd cannot read the unit file".into(),
    }
}

fn with_the_switch(facts: &Facts) -> Option<Cause> {
    let switch = facts.switch.as_ref()?;
    let blamed = switch.began_with_it && switch.closure_changed && switch.failed_units > 1;
    blamed.then_some(Cause::NewGeneration { generation: switch.generation, units: switch.failed_units })
}

fn dependencies(facts: &Facts) -> Option<Cause> {
    let down: Vec<&Dependency> = facts.dependencies.iter().filter(|d| d.active.is_down()).collect();
    if !down.is_empty() {
        let needs = |unit: &str| facts.dependencies.iter().find(|d| d.unit == unit).map_or(&[][..], |d| &d.needs);
        let units = chain::in_order(down.iter().map(|d| d.unit.as_str()), needs);
        return Some(Cause::DependencyDown { units, ours: down.iter().all(|d| d.ours) });
    }
    let busy = facts.dependencies.iter().find(|d| !is_up(d))?;
    Some(Cause::DependencyBusy { unit: busy.unit.clone() })
}

/// Whether a dependency can be used.
pub(crate) fn is_up(dependency: &Dependency) -> bool {
    dependency.active == Active::Active && matches!(dependency.probe, Probe::None | Probe::Green)
}

/// The cause a pattern stands for, as the machine is now; `None` when the lines tell nothing more.
fn known(matched: &Match, facts: &Facts) -> Option<Cause> {
    let pattern = || matched.pattern.clone();
    let gone = || Some(Cause::CauseGone { pattern: pattern() });
    match matched.lead {
        Lead::None | Lead::Restart => None,
        Lead::Wait => (!facts.active.is_down()).then_some(Cause::Retrying),
        Lead::RestartDependencies => gone(),
        Lead::RaiseMemory => Some(out_of_memory(facts)),
        Lead::ReassignPort => match &facts.port_holder {
            Some(holder) => {
                Some(Cause::PortConflict { port: matched.port.unwrap_or_default(), holder: holder.clone() })
            }
            None => matched.port.and_then(|_| gone()),
        },
        Lead::RestartDatabase => match &facts.lock {
            Some(lock) if lock.holder == LockHolder::Free => gone(),
            lock => Some(Cause::DatabaseLocked { lock: lock.clone() }),
        },
        Lead::FetchModel | Lead::Alert => {
            let Some(file) = &facts.file else {
                // The disk that was full has room again.
                let freed = matched.pattern == "disk_full" && facts.disk.is_some();
                return if freed { gone() } else { Some(Cause::Reported { pattern: pattern() }) };
            };
            let (path, access) = (file.path.clone(), file.access.clone());
            let model = matched.lead == Lead::FetchModel || matched.pattern == "model_unreadable";
            match file.state {
                FileState::Good => gone(),
                FileState::Missing if model => {
                    Some(Cause::ModelMissing { path, nearest: file.nearest.clone(), declared: file.declared.clone() })
                }
                FileState::Forbidden if !model => Some(Cause::PermissionDenied { path, access }),
                state if model => Some(Cause::ModelUnreadable { path, access, corrupt: state == FileState::Corrupt }),
                _ => Some(Cause::Reported { pattern: pattern() }),
            }
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |n: &Option<u64>| n.map_or("unknown".into(), |n| format!("{n} bytes"));
        match self {
            Self::Healthy => write!(f, "nothing is wrong"),
            Self::Suspected => write!(f, "a probe failed, not often enough to call the unit sick"),
            Self::Changing => write!(f, "it is on its way up or down"),
            Self::ManagerRestarts => write!(f, "its service manager restarts it"),
            Self::ChildKilled => write!(f, "a child process was killed for memory; the unit goes on"),
            Self::OutOfMemory { peak, limit, again } => {
                let again = if *again { ", again" } else { "" };
                write!(f, "killed for memory{again}; MemoryPeak {}, MemoryMax {}", bytes(peak), bytes(limit))
            }
            Self::PortConflict { port, holder } => {
                let owner = match &holder.owner {
                    Owner::Orphan => "left by an earlier run of this unit",
                    Owner::Itself => "of this unit's present run",
                    Owner::Unit(unit) => unit,
                    Owner::Nobody => "of no unit",
                };
                write!(f, "port {port} is held by process {} ({}), {owner}", holder.pid, holder.command)
            }
            Self::DependencyDown { units, .. } => write!(f, "what it needs is down: {}", units.join(", ")),
            Self::DependencyBusy { unit } => write!(f, "{unit}, which it needs, does not answer yet"),
            Self::ModelMissing { path, nearest, .. } => {
                write!(f, "model file {path} is not there")?;
                nearest.as_ref().map_or(Ok(()), |near| write!(f, "; the nearest that is: {near}"))
            }
            Self::ModelUnreadable { path, corrupt: true, .. } => {
                write!(f, "model file {path} is there but truncated or corrupt")
            }
            Self::ModelUnreadable { path, access, .. } => {
                write!(f, "model file {path} is there but may not be read ({access})")
            }
            Self::PermissionDenied { path, access } => write!(f, "{path} may not be used by it ({access})"),
            Self::DatabaseLocked { lock: None } => write!(f, "its database is locked"),
            Self::DatabaseLocked { lock: Some(lock) } => {
                write!(f, "database {} is locked by ", lock.database)?;
                match lock.holder {
                    LockHolder::Working { pid } => write!(f, "process {pid}, which is at work"),
                    LockHolder::Idle { pid } => write!(f, "process {pid}, which does nothing"),
                    LockHolder::Dead => write!(f, "a process that is gone"),
                    LockHolder::Free | LockHolder::Unknown => write!(f, "nobody who can be found"),
                }
            }
            Self::DiskFull { mount, free } => write!(f, "the disk at {mount} is full ({free} bytes free)"),
            Self::BadConfiguration { why } => write!(f, "bad configuration: {why}"),
            Self::NewGeneration { generation, units } => {
                write!(f, "{units} units failed right after the switch to generation {generation}, which changed them")
            }
            Self::CrashLoop => write!(f, "it ends the same way each time it is started"),
            Self::CauseGone { pattern } => write!(f, "what it failed over ({pattern}) is no longer so"),
            Self::Reported { pattern } => write!(f, "{pattern}, which no remedy helps against"),
            Self::Retrying => write!(f, "the program tries again by itself"),
            Self::Unresponsive => write!(f, "it runs and does not answer"),
            Self::Crashed => write!(f, "it ended and nothing tells why"),
        }
    }
}

impl Cause {
    /// What a person can do about it, where that is known.
    pub fn advice(&self, unit: &str) -> Option<String> {
        let service = unit.strip_suffix(".service").unwrap_or(unit);
        Some(match self {
            Self::OutOfMemory { peak, limit, .. } => {
                let room = peak.max(limit).map(|most| most / 2 * 3)?;
                format!("systemd.services.{service}.serviceConfig.MemoryMax = \"{room}\"; or let it need less")
            }
            Self::PortConflict { port, holder } => {
                format!("free port {port} (process {}) or give {unit} another", holder.pid)
            }
            Self::DependencyDown { units, .. } => format!("see `systemctl status {}`", units.join(" ")),
            Self::ModelMissing { path, .. } => format!("put the model at {path}, or declare it with its sha256"),
            Self::ModelUnreadable { path, corrupt: true, .. } => format!("fetch {path} again and check its hash"),
            Self::ModelUnreadable { path, .. } | Self::PermissionDenied { path, .. } => format!(
                "systemd.tmpfiles.settings.lares.\"{path}\".z = {{ user = \"…\"; group = \"…\"; mode = \"…\"; }}; with \
                 the user that {unit} runs as"
            ),
            Self::DiskFull { mount, .. } => format!("make room on {mount}; `nix-collect-garbage -d` often helps"),
            Self::BadConfiguration { .. } => format!("see `systemd-analyze verify {unit}` and `journalctl -u {unit}`"),
            Self::DatabaseLocked { lock: Some(lock) } => format!("see what holds the lock of {}", lock.database),
            Self::CrashLoop | Self::Crashed | Self::Reported { .. } => format!("see `journalctl -u {unit}`"),
            _ => return None,
        })
    }
}
