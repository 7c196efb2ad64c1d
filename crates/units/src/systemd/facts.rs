//! Properties of a unit, put in order.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use zbus::zvariant::{OwnedValue, Value};

use crate::port::{
    Facts, InvocationId, Job, LoadState, ManagerError, Memory, Relations, RestartSettings, RunResult, Standing, Times,
    UnitId,
};
use crate::status::Exit;

use super::bus::Properties;

/// Properties by name, whoever owns them.
pub(super) trait Lookup {
    fn value(&self, name: &str) -> Option<&Value<'_>>;

    fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::Str(text) => Some(text.to_string()),
            _ => None,
        }
    }

    /// A text that is there and not empty.
    fn some_text(&self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    /// A number that is not negative. The largest there is stands for "none" or "unlimited" with systemd.
    fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::U64(number) => Some(*number).filter(|&number| number != u64::MAX),
            Value::U32(number) => Some(u64::from(*number)),
            Value::I32(number) => u64::try_from(*number).ok(),
            Value::I64(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn small(&self, name: &str) -> Option<u32> {
        u32::try_from(self.number(name)?).ok()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.value(name)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Microseconds.
    fn span(&self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_micros)
    }

    /// A moment on the monotonic clock; zero stands for "never".
    fn moment(&self, name: &str) -> Option<Duration> {
        self.span(name).filter(|moment| !moment.is_zero())
    }

    fn invocation(&self, name: &str) -> Option<InvocationId> {
        let Value::Array(bytes) = self.value(name)? else { return None };
        let byte = |value: &Value<'_>| if let Value::U8(byte) = value { Some(*byte) } else { None };
        InvocationId::from_bytes(&bytes.iter().map(byte).collect::<Option<Vec<u8>>>()?)
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let Some(Value::Array(list)) = self.value(name) else { return Vec::new() };
        list.iter()
            .filter_map(|value| if let Value::Str(text) = value { Some(text.to_string()) } else { None })
            .collect()
    }

    fn units(&self, name: &str) -> Vec<UnitId> {
        self.texts(name).into_iter().filter_map(|name| UnitId::new(name).ok()).collect()
    }

    /// A property of several values.
    fn parts(&self, name: &str) -> Option<&[Value<'_>]> {
        match self.value(name)? {
            Value::Structure(structure) => Some(structure.fields()),
            _ => None,
        }
    }

    /// The job of a unit; systemd says number 0 when there is none.
    fn job(&self) -> Option<u32> {
        match self.parts("Job")?.first()? {
            Value::U32(id) if *id != 0 => Some(*id),
            _ => None,
        }
    }

    /// How the main process ended, in the kernel's words (`waitid`).
    fn main_exit(&self) -> Option<Exit> {
        let status = i32::try_from(self.number("ExecMainStatus")?).ok()?;
        match self.number("ExecMainCode")? {
            1 => Some(Exit::Code { code: status }),
            2 | 3 => Some(Exit::Signal { signal: status }),
            _ => None,
        }
    }

    fn main_pid(&self) -> Option<u32> {
        self.small("MainPID").filter(|&pid| pid != 0)
    }

    fn result(&self) -> Option<RunResult> {
        self.some_text("Result").map(RunResult::from)
    }
}

impl Lookup for Properties {
    fn value(&self, name: &str) -> Option<&Value<'_>> {
        self.get(name).map(|value: &OwnedValue| &**value)
    }
}

impl Lookup for HashMap<&str, Value<'_>> {
    fn value(&self, name: &str) -> Option<&Value<'_>> {
        self.get(name)
    }
}

/// Puts the properties of a unit in order: those that all kinds have, and those of its own kind.
pub(super) fn read(asked: &UnitId, common: &Properties, own: &Properties) -> Result<Facts, ManagerError> {
    let (Some(load), Some(active)) = (common.text("LoadState"), common.text("ActiveState")) else {
        return Err(ManagerError::Protocol(format!("no state of {asked}")));
    };
    let load_error = common.parts("LoadError").and_then(|parts| match parts.get(1)? {
        Value::Str(text) if !text.is_empty() => Some(text.to_string()),
        _ => None,
    });
    let program = match own.value("ExecStart") {
        Some(Value::Array(commands)) => commands.iter().find_map(|command| match command {
            Value::Structure(parts) => match parts.fields().first()? {
                Value::Str(path) => Some(path.as_str().into()),
                _ => None,
            },
            _ => None,
        }),
        _ => None,
    };
    Ok(Facts {
        unit: common.text("Id").and_then(|id| UnitId::new(id).ok()).unwrap_or_else(|| asked.clone()),
        description: common.text("Description").unwrap_or_default(),
        load: LoadState::from(load),
        load_error,
        standing: Standing { active: active.into(), sub: common.text("SubState").unwrap_or_default() },
        result: own.result(),
        main_exit: own.main_exit(),
        main_pid: own.main_pid(),
        restarts: own.small("NRestarts"),
        invocation: common.invocation("InvocationID"),
        file_state: common.some_text("UnitFileState"),
        job: common.job().map(|id| Job { id, kind: None }),
        cgroup: own.some_text("ControlGroup"),
        memory: Memory {
            current: own.number("MemoryCurrent"),
            peak: own.number("MemoryPeak"),
            max: own.number("MemoryMax"),
            high: own.number("MemoryHigh"),
        },
        oom_kills: own.number("OOMKills"),
        oom_policy: own.some_text("OOMPolicy"),
        restart: RestartSettings {
            policy: own.text("Restart").unwrap_or_default(),
            delay: own.span("RestartUSec").unwrap_or_default(),
            limit_burst: common.small("StartLimitBurst"),
            limit_interval: common.span("StartLimitIntervalUSec"),
        },
        fragment: common.some_text("FragmentPath").map(Into::into),
        drop_ins: common.texts("DropInPaths").into_iter().map(Into::into).collect(),
        needs_reload: common.flag("NeedDaemonReload"),
        program,
        kind: own.some_text("Type"),
        relations: relations(common),
        times: Times {
            inactive_exit: common.moment("InactiveExitTimestampMonotonic"),
            active_enter: common.moment("ActiveEnterTimestampMonotonic"),
            active_exit: common.moment("ActiveExitTimestampMonotonic"),
            inactive_enter: common.moment("InactiveEnterTimestampMonotonic"),
            state_change: common.moment("StateChangeTimestampMonotonic"),
            main_start: own.moment("ExecMainStartTimestampMonotonic"),
            main_exit: own.moment("ExecMainExitTimestampMonotonic"),
            began: common
                .number("InactiveExitTimestamp")
                .filter(|&micros| micros != 0)
                .and_then(|micros| Timestamp::from_microsecond(i64::try_from(micros).ok()?).ok()),
        },
    })
}

fn relations(common: &Properties) -> Relations {
    Relations {
        requires: common.units("Requires"),
        required_by: common.units("RequiredBy"),
        requisite: common.units("Requisite"),
        requisite_of: common.units("RequisiteOf"),
        wants: common.units("Wants"),
        wanted_by: common.units("WantedBy"),
        binds_to: common.units("BindsTo"),
        bound_by: common.units("BoundBy"),
        part_of: common.units("PartOf"),
        consists_of: common.units("ConsistsOf"),
        upholds: common.units("Upholds"),
        upheld_by: common.units("UpheldBy"),
        after: common.units("After"),
        before: common.units("Before"),
        on_failure: common.units("OnFailure"),
        triggered_by: common.units("TriggeredBy"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn properties(values: Vec<(&str, Value<'_>)>) -> Properties {
        values.into_iter().map(|(name, value)| (name.to_owned(), value.try_into().unwrap())).collect()
    }

    #[test]
    fn what_systemd_uses_for_nothing_is_none() {
        let common = properties(vec![
            ("Id", "a.service".into()),
            ("LoadState", "loaded".into()),
            ("ActiveState", "inactive".into()),
            ("SubState", "dead".into()),
            ("InvocationID", Vec::<u8>::new().into()),
            ("UnitFileState", "".into()),
            ("InactiveExitTimestamp", 0_u64.into()),
            ("Requires", vec!["b.service", "-.mount"].into()),
        ]);
        let own = properties(vec![
            ("MainPID", 0_u32.into()),
            ("MemoryMax", u64::MAX.into()),
            ("ExecMainCode", 0_i32.into()),
            ("ExecMainStatus", 0_i32.into()),
            ("RestartUSec", 100_000_u64.into()),
            ("Restart", "on-failure".into()),
        ]);
        let facts = read(&UnitId::new("a.service").unwrap(), &common, &own).unwrap();
        assert_eq!((facts.main_pid, facts.main_exit, facts.invocation, facts.memory.max), (None, None, None, None));
        assert_eq!((facts.file_state, facts.times.began, facts.restart.delay.as_millis()), (None, None, 100));
        assert!(facts.restart.policy == "on-failure" && facts.relations.requires.len() == 2);
    }

    #[test]
    fn a_kill_and_an_exit_are_told_apart() {
        let of = |code: i32, status: i32| {
            properties(vec![("ExecMainCode", code.into()), ("ExecMainStatus", status.into())]).main_exit()
        };
        assert_eq!(of(1, 78), Some(Exit::Code { code: 78 }));
        assert_eq!(of(2, 9), Some(Exit::Signal { signal: 9 }));
        assert_eq!(of(3, 11), Some(Exit::Signal { signal: 11 }));
    }

    #[test]
    fn properties_of_another_type_are_not_there() {
        let odd = properties(vec![("LoadState", 7_u32.into()), ("ActiveState", "active".into())]);
        assert!(matches!(
            read(&UnitId::new("a.service").unwrap(), &odd, &Properties::new()),
            Err(ManagerError::Protocol(_))
        ));
    }
}
