//! A service manager with the units and lines that a test gives it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lares_units::Feed;
use lares_units::port::{Entry, Event, Facts, JobOutcome, Listed, Manager, ManagerError, Origin, Question, UnitId};
use serde_json::{Value, json};

/// A line, written at this second.
fn entry(origin: &str, second: i64, run: Option<&str>, message: &str, fields: &[(&str, &str)]) -> Arc<Entry> {
    let fields: Vec<Value> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| json!({"name": name, "value": value, "cut": false}))
        .collect();
    let at = jiff::Timestamp::from_second(second).unwrap();
    let value = json!({
        "at": at, "monotonic": null, "origin": origin, "unit": null, "invocation": run, "message": message,
        "priority": 6, "pid": null, "fields": fields,
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

/// A line of a process.
pub(super) fn said(second: i64, run: &str, message: &str) -> Arc<Entry> {
    entry("unit", second, Some(run), message, &[])
}

/// A line of the manager.
pub(super) fn word(second: i64, run: &str, message: &str, fields: &[(&str, &str)]) -> Arc<Entry> {
    entry("manager", second, Some(run).filter(|run| !run.is_empty()), message, fields)
}

/// A line of the kernel.
pub(super) fn kernel(second: i64, message: &str) -> Arc<Entry> {
    entry("kernel", second, None, message, &[])
}

/// The manager.
#[derive(Debug, Default)]
pub(super) struct Fake {
    facts: Mutex<BTreeMap<String, Value>>,
    lines: Mutex<BTreeMap<String, Vec<Arc<Entry>>>>,
    journal_is_closed: bool,
}

impl Fake {
    /// One whose journal may not be read.
    pub(super) fn without_a_journal() -> Self {
        Self { journal_is_closed: true, ..Self::default() }
    }

    /// A service that is down and of which nothing is known, with these facts changed.
    pub(super) fn unit(&self, name: &str, changes: &Value) {
        let moments = [
            "inactive_exit",
            "active_enter",
            "active_exit",
            "inactive_enter",
            "state_change",
            "main_start",
            "main_exit",
            "began",
        ];
        let times: BTreeMap<&str, Value> = moments.into_iter().map(|moment| (moment, Value::Null)).collect();
        let kinds = [
            "requires",
            "required_by",
            "requisite",
            "requisite_of",
            "wants",
            "wanted_by",
            "binds_to",
            "bound_by",
            "part_of",
            "consists_of",
            "upholds",
            "upheld_by",
            "after",
            "before",
            "on_failure",
            "triggered_by",
        ];
        let relations: BTreeMap<&str, Value> = kinds.into_iter().map(|kind| (kind, json!([]))).collect();
        let mut facts = json!({
            "unit": name, "description": "", "load": "loaded", "load_error": null,
            "standing": {"active": "inactive", "sub": "dead"}, "result": "success", "main_exit": null,
            "main_pid": null, "restarts": 0, "invocation": null, "file_state": null, "job": null, "cgroup": null,
            "memory": {"current": null, "peak": null, "max": null, "high": null}, "oom_kills": null,
            "oom_policy": null,
            "restart": {"policy": "no", "delay": {"secs": 0, "nanos": 0}, "limit_burst": null, "limit_interval": null},
            "fragment": null, "drop_ins": [], "needs_reload": null, "program": null, "kind": "simple",
            "relations": relations, "times": times,
        });
        merge(&mut facts, changes);
        self.facts.lock().unwrap().insert(name.to_owned(), facts);
    }

    /// One that runs.
    pub(super) fn active(&self, name: &str, run: &str, changes: &Value) {
        let mut all = json!({"standing": {"active": "active", "sub": "running"}, "invocation": run});
        merge(&mut all, changes);
        self.unit(name, &all);
    }

    /// One that has failed.
    pub(super) fn failed(&self, name: &str, run: &str, changes: &Value) {
        let mut all = json!({
            "standing": {"active": "failed", "sub": "failed"}, "invocation": run, "result": "exit-code",
            "main_exit": {"kind": "code", "code": 1},
        });
        merge(&mut all, changes);
        self.unit(name, &all);
    }

    /// What is in the journal about a unit.
    pub(super) fn says(&self, name: &str, lines: Vec<Arc<Entry>>) {
        self.lines.lock().unwrap().insert(name.to_owned(), lines);
    }
}

fn merge(into: &mut Value, changes: &Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Value::Null), change);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

#[async_trait]
impl Manager for Fake {
    async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, ManagerError> {
        let facts = self.facts.lock().unwrap();
        let wanted = |name: &str| patterns.is_empty() || patterns.contains(&name);
        let listed = facts.iter().filter(|(name, _)| wanted(name)).map(|(name, facts)| {
            let job = &facts["job"];
            json!({
                "unit": name, "description": "", "load": facts["load"], "standing": facts["standing"], "job": job,
            })
        });
        Ok(listed.map(|listed| serde_json::from_value(listed).unwrap()).collect())
    }

    async fn facts(&self, unit: &UnitId) -> Result<Facts, ManagerError> {
        let facts = self.facts.lock().unwrap();
        let found = facts.get(unit.as_str()).ok_or_else(|| ManagerError::Unknown(unit.clone()))?;
        Ok(serde_json::from_value(found.clone()).unwrap())
    }

    async fn start(&self, unit: &UnitId, _: Duration) -> Result<JobOutcome, ManagerError> {
        panic!("an observer started {unit}")
    }

    async fn stop(&self, unit: &UnitId, _: Duration) -> Result<JobOutcome, ManagerError> {
        panic!("an observer stopped {unit}")
    }

    async fn restart(&self, unit: &UnitId, _: Duration) -> Result<JobOutcome, ManagerError> {
        panic!("an observer restarted {unit}")
    }

    async fn reset_failed(&self, unit: &UnitId) -> Result<(), ManagerError> {
        panic!("an observer reset {unit}")
    }

    async fn watch(&self, _: &[UnitId]) -> Result<Vec<Listed>, ManagerError> {
        panic!("an observer only looks")
    }

    async fn unwatch(&self, _: &[UnitId]) {}

    fn events(&self) -> Feed<Event> {
        panic!("an observer only looks")
    }

    async fn recent(&self, question: &Question) -> Result<Vec<Arc<Entry>>, ManagerError> {
        if self.journal_is_closed {
            return Err(ManagerError::Journal("permission denied".into()));
        }
        let lines = self.lines.lock().unwrap();
        let all = lines.get(question.unit.as_str()).map(Vec::as_slice).unwrap_or_default();
        let wanted = |entry: &&Arc<Entry>| {
            let in_time = question.since.is_none_or(|since| entry.at >= since)
                && question.until.is_none_or(|until| entry.at <= until);
            let of_run = match (question.invocation, entry.invocation) {
                (Some(wanted), Some(run)) => wanted == run,
                _ => true,
            };
            in_time && if entry.origin == Origin::Kernel { question.kernel } else { of_run }
        };
        let found: Vec<Arc<Entry>> = all.iter().filter(wanted).cloned().collect();
        Ok(found[found.len().saturating_sub(question.count)..].to_vec())
    }

    async fn entries(&self) -> Result<Feed<Arc<Entry>>, ManagerError> {
        Err(ManagerError::Journal("an observer only looks".into()))
    }
}
