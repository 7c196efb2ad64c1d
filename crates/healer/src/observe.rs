//! Facts of a unit as it is now: from the service manager, the journal and `/proc`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lares_units::Exit;
use lares_units::port::{self, ActiveState, LoadState, Manager, ManagerError, Question, UnitId};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Gid, Group, Uid, User};

use crate::classify::{Classifier, Diagnosis, Entry};
use crate::facts::{Active, Dependency, Disk, Facts, File, FileState, Holder, Load, Match, Memory, Owner, Probe};
use crate::fingerprint::Template;
use crate::patterns::Origin;
use crate::symptom::Symptom;

/// Units looked at for what a unit needs; more than any chain that a person wrote.
const DEPENDENCIES: usize = 64;
/// Where programs write.
const WRITTEN: &str = "/var";
/// Free space below which programs fail, in bytes.
const FULL: u64 = 16 << 20;

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
    ours: BTreeSet<String>,
}

impl<'a> Observer<'a> {
    /// Through this manager; `ours`: the units that may be acted on.
    pub fn new(manager: &'a dyn Manager, classifier: &'a Classifier, ours: impl IntoIterator<Item = String>) -> Self {
        Self { manager, classifier, ours: ours.into_iter().collect() }
    }

    /// A unit as it is now. Symptoms are what its state alone tells: what only a signal of the service manager says (a
    /// failure that lasted a millisecond) is for whoever listens to those.
    ///
    /// # Errors
    /// When the service manager does not answer. A journal that may not be read is no error, but noted.
    pub async fn observe(&self, unit: &UnitId) -> Result<Observed, ManagerError> {
        let found = self.manager.facts(unit).await?;
        let mut unknown = Vec::new();
        let question = Question::about_the_end(unit.clone(), found.invocation, found.times.began);
        let entries = match self.manager.recent(&question).await {
            Ok(entries) => entries,
            Err(error) => {
                unknown.push(format!("what it said: {error}"));
                Vec::new()
            }
        };
        let mut facts = of_manager(&found);
        facts.symptoms = symptoms(&found, &facts, &entries);
        // Nothing failed, and systemd lets no unit rest by itself: it was stopped, or nobody started it.
        facts.stopped_by_operator =
            facts.symptoms == [Symptom::InactiveUnexpectedly] && matches!(facts.result.as_str(), "success" | "");
        facts.dependencies = self.dependencies(&found).await?;

        let fields: Vec<Vec<(&str, &str)>> = entries
            .iter()
            .map(|entry| entry.fields.iter().map(|f| (f.name.as_str(), f.value.as_str())).collect())
            .collect();
        let lines: Vec<Entry<'_>> = entries
            .iter()
            .zip(&fields)
            .map(|(entry, fields)| Entry { message: &entry.message, origin: origin(entry.origin), fields })
            .collect();
        let texts: Vec<&str> = entries.iter().map(|entry| entry.message.as_str()).collect();
        let diagnosis = self.classifier.diagnose(&lines);
        facts.matched = diagnosis.as_ref().map(|found| Match::of(found, &texts));
        if diagnosis.is_none() && facts.active.is_down() {
            let said = entries.iter().rev().find(|entry| entry.origin == port::Origin::Unit);
            facts.fingerprint = said.map(|entry| Template::of(&entry.message).fingerprint().to_string());
        }
        let named = unit.as_str().to_owned();
        let main = found.main_pid;
        let looked = tokio::task::spawn_blocking(move || around(&named, main, diagnosis.as_ref())).await;
        match looked {
            Ok(around) => {
                facts.port_holder = around.holder;
                facts.file = around.file;
                facts.disk = around.disk;
                unknown.extend(around.unknown);
            }
            Err(_) => unknown.push("what is around it: looking failed".to_owned()),
        }
        Ok(Observed { facts, unknown })
    }

    /// What it needs, all the way down.
    async fn dependencies(&self, of: &port::Facts) -> Result<Vec<Dependency>, ManagerError> {
        let services = |facts: &port::Facts| -> Vec<UnitId> {
            facts.relations.needed().into_iter().filter(|unit| unit.kind() == Some("service")).collect()
        };
        let mut open: VecDeque<UnitId> = services(of).into();
        let mut found = BTreeMap::new();
        while let Some(unit) = open.pop_front() {
            if found.contains_key(unit.as_str()) || unit == of.unit || found.len() == DEPENDENCIES {
                continue;
            }
            let facts = self.manager.facts(&unit).await?;
            let needs = services(&facts);
            open.extend(needs.iter().cloned());
            let dependency = Dependency {
                unit: unit.to_string(),
                needs: needs.iter().map(ToString::to_string).collect(),
                active: active(&facts.standing.active),
                invocation: facts.invocation.map(|id| id.to_string()).unwrap_or_default(),
                probe: Probe::None,
                ours: self.ours.contains(unit.as_str()) && !facts.is_masked(),
            };
            found.insert(unit.to_string(), dependency);
        }
        Ok(found.into_values().collect())
    }
}

fn active(state: &ActiveState) -> Active {
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
        },
        result,
        ..Facts::default()
    }
}

/// What the unit's state and the manager's own lines tell.
fn symptoms(found: &port::Facts, facts: &Facts, entries: &[std::sync::Arc<port::Entry>]) -> Vec<Symptom> {
    let said = |words: &str| {
        entries.iter().any(|entry| entry.origin == port::Origin::Manager && entry.message.contains(words))
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
        if said("Dependency failed for") && found.main_pid.is_none() {
            symptoms.push(Symptom::DependencyFailed);
        } else {
            // Of an inactive unit that nobody holds on to, systemd forgets how it ended.
            symptoms.push(Symptom::InactiveUnexpectedly);
        }
    }
    if found.oom_kills.is_some_and(|kills| kills > 0) && facts.active == Active::Active {
        symptoms.push(Symptom::OomKill { main: false });
    }
    symptoms
}

/// What is on the machine around a unit.
#[derive(Debug, Default)]
struct Around {
    holder: Option<Holder>,
    file: Option<File>,
    disk: Option<Disk>,
    unknown: Vec<String>,
}

/// Looks at what the lines name. Blocks.
fn around(unit: &str, main: Option<u32>, diagnosis: Option<&Diagnosis>) -> Around {
    let mut around = Around::default();
    let named = |name: &str| diagnosis.and_then(|found| found.best.evidence.get(name));
    if let Some(port) = named("port").and_then(|port| port.parse().ok()) {
        match holder(port, unit, main) {
            Ok(holder) => around.holder = holder,
            Err(error) => around.unknown.push(format!("who holds port {port}: {error}")),
        }
    }
    if let Some(path) = named("path").map(Path::new).filter(|path| path.is_absolute()) {
        let denied = diagnosis.is_some_and(|found| found.best.pattern == "permission_denied");
        around.file = Some(file(path, denied));
    }
    match statvfs(WRITTEN) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            around.disk = Some(Disk { mount: WRITTEN.to_owned(), free, full: free < FULL });
        }
        Err(error) => around.unknown.push(format!("how full {WRITTEN} is: {error}")),
    }
    around
}

/// The file a failure is about. Whether the unit's user may use it is known from the failure only.
fn file(path: &Path, denied: bool) -> File {
    let shown = path.display().to_string();
    match std::fs::symlink_metadata(path).and_then(|_| std::fs::metadata(path)) {
        Ok(found) => {
            let owner = User::from_uid(Uid::from_raw(found.uid())).ok().flatten();
            let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
            let access = format!(
                "{} {} {:04o}",
                owner.map_or_else(|| found.uid().to_string(), |user| user.name),
                group.map_or_else(|| found.gid().to_string(), |group| group.name),
                found.mode() & 0o7777
            );
            let state = if denied { FileState::Forbidden } else { FileState::Good };
            File { path: shown, state, access, nearest: None, declared: None }
        }
        Err(error) => {
            let nearest = path.ancestors().skip(1).find(|place| place.exists());
            let state =
                if error.kind() == io::ErrorKind::PermissionDenied { FileState::Forbidden } else { FileState::Missing };
            File {
                path: shown,
                state,
                access: String::new(),
                nearest: nearest.map(|place| place.display().to_string()),
                declared: None,
            }
        }
    }
}

/// The process that listens on a TCP port of this machine.
pub(crate) fn holder(port: u16, unit: &str, main: Option<u32>) -> io::Result<Option<Holder>> {
    let mut inodes = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => inodes.extend(text.lines().filter_map(|line| listening(line, port))),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if inodes.is_empty() {
        return Ok(None);
    }
    let mut hidden = false;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            hidden = true;
            continue;
        };
        let sockets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
        let mut inode = sockets
            .filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
        if inode.any(|inode| inodes.contains(&inode)) {
            return Ok(Some(Holder {
                pid,
                started: started(pid).unwrap_or(0),
                command: read(pid, "comm").trim().to_owned(),
                owner: owner(pid, unit, main),
            }));
        }
    }
    if hidden {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "processes of other users cannot be looked into"));
    }
    Ok(None)
}

/// The inode of a listening socket, from a line of `/proc/net/tcp`: `sl local:PORT remote state … inode` with
/// hexadecimal numbers; state 0A listens.
fn listening(line: &str, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let wanted = u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == "0A";
    wanted.then(|| fields.get(9)?.parse().ok()).flatten()
}

fn read(pid: i32, name: &str) -> String {
    std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/{name}"))).unwrap_or_default()
}

/// `starttime` of a process; its name, in parentheses before, may hold anything.
fn started(pid: i32) -> Option<u64> {
    read(pid, "stat").rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Whose process it is, by its control group.
fn owner(pid: i32, unit: &str, main: Option<u32>) -> Owner {
    let groups = read(pid, "cgroup");
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    let Some(group) = path.split('/').rfind(|part| part.ends_with(".service") || part.ends_with(".scope")) else {
        return Owner::Nobody;
    };
    if group != unit {
        return Owner::Unit(group.to_owned());
    }
    // The unit does not run, and a process of it does: an earlier run left it.
    if main.is_none() { Owner::Orphan } else { Owner::Itself }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found_with_its_start() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holder = holder(port, "other.service", None).unwrap().unwrap();
        assert_eq!(u32::try_from(holder.pid).unwrap(), std::process::id());
        assert!(holder.started > 0);
        drop(socket);
        assert!(super::holder(port, "other.service", None).is_ok_and(|holder| holder.is_none()));
    }

    #[test]
    fn a_file_that_is_not_there_has_a_nearest_place() {
        let directory = std::env::temp_dir();
        let missing = file(&directory.join("no-such-directory/model.gguf"), false);
        assert_eq!(missing.state, FileState::Missing);
        assert_eq!(missing.nearest.as_deref(), directory.to_str().map(|text| text.trim_end_matches('/')));
        let there = file(Path::new("/etc/passwd"), true);
        assert_eq!((there.state, there.access.as_str()), (FileState::Forbidden, "root root 0644"));
    }

    #[test]
    fn only_listening_sockets_count() {
        let line = |state: &str| {
            format!(
                "   0: 0100007F:2328 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 12345 1 0"
            )
        };
        assert_eq!(listening(&line("0A"), 9000), Some(12345));
        assert_eq!(listening(&line("01"), 9000), None);
        assert_eq!(listening(&line("0A"), 9001), None);
        assert_eq!(listening("  sl  local_address rem_address   st", 9000), None);
    }
}
