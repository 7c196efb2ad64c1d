//! What is done and what is not: the configuration, and the state of the unit, against what a caller wants.

use lares_config::{HealedUnit, Healer};
use lares_units::port::UnitId;

use super::Obstacle;
use super::dropin::DropIn;
use super::process::Process;

/// A unit as systemd has it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct UnitNow {
    /// Whether its definition was found and makes sense; a masked one is not.
    pub(super) loaded: bool,
    /// Whether a run of it is under way.
    pub(super) active: bool,
    /// Process that it runs as.
    pub(super) main: Option<u32>,
    /// Process that prepares, reloads or ends it.
    pub(super) control: Option<u32>,
    /// Its present or last run: 32 hexadecimal digits, or nothing.
    pub(super) invocation: String,
    /// Path of its control group; empty: it has no process.
    pub(super) group: String,
    /// `MemoryMax` in bytes; none: no limit.
    pub(super) memory_max: Option<u64>,
    /// `Environment=` with all drop-ins, as `NAME=VALUE`.
    pub(super) environment: Vec<String>,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Obstacle> {
    Err(Obstacle::Refused(reason.into()))
}

/// What the configuration says of a unit. No other unit is ever touched.
pub(super) fn named<'a>(healer: &'a Healer, unit: &UnitId) -> Result<&'a HealedUnit, Obstacle> {
    match healer.units.get(unit.as_str()) {
        Some(named) if unit.kind() == Some("service") => Ok(named),
        _ => refuse(format!("the configuration does not name {unit}; add it to `healer.units`")),
    }
}

/// That there is such a unit.
pub(super) fn there(unit: &UnitId, now: &UnitNow) -> Result<(), Obstacle> {
    if now.loaded { Ok(()) } else { refuse(format!("systemd has no unit {unit} that can be started")) }
}

/// Whether the memory limit may become this.
pub(super) fn memory(named: &HealedUnit, unit: &UnitId, bytes: u64, now: &UnitNow) -> Result<(), Obstacle> {
    let Some(most) = named.memory_max else {
        return refuse(format!("`healer.units.\"{unit}\".memory_max` is not set, so its limit is never raised"));
    };
    if bytes > most.0 {
        return refuse(format!("{bytes} bytes are more than the {} that `memory_max` of {unit} allows", most.0));
    }
    there(unit, now)?;
    match now.memory_max {
        None => refuse(format!("{unit} has no memory limit that could be raised")),
        Some(present) if bytes <= present => {
            refuse(format!("{unit} may use {present} bytes already; the limit is only ever raised"))
        }
        Some(_) => Ok(()),
    }
}

/// The drop-ins that move a unit to another port: its own first, then those of the units that are told.
pub(super) fn port(healer: &Healer, unit: &UnitId, to: u16) -> Result<Vec<DropIn>, Obstacle> {
    let own = named(healer, unit)?;
    if !own.ports.contains(&to) || to == 0 {
        return refuse(format!("{to} is none of the `ports` that {unit} may be moved to"));
    }
    let Some(variable) = &own.port_variable else {
        return refuse(format!("`port_variable` of {unit} is not set, so there is no way to tell it its port"));
    };
    let mut files = vec![DropIn::of(unit.as_str(), variable, to)];
    for (other, told) in healer.units.iter().filter(|(other, _)| other.as_str() != unit.as_str()) {
        if let Some(variable) = told.port_variables.get(unit.as_str()) {
            files.push(DropIn::telling(other, unit.as_str(), variable, to));
        }
    }
    match files.iter().find(|file| !file.is_sound()) {
        Some(file) => refuse(format!("`{}` cannot be the name of an environment variable", file.variable)),
        None => Ok(files),
    }
}

/// Whether this process may be ended: what an earlier run of the unit left, and nothing that its present run needs.
pub(super) fn end(unit: &UnitId, process: &Process, started: u64, now: &UnitNow) -> Result<(), Obstacle> {
    let pid = process.pid;
    if process.started != started {
        return refuse(format!("process {pid} is not the one that was meant: that one has ended"));
    }
    let below = process.group.strip_prefix(&now.group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    // The root of all groups is no unit's.
    if now.group.trim_end_matches('/').is_empty() || !below {
        return refuse(format!("process {pid} is none of {unit}: its control group is {}", process.group));
    }
    let own = |id: Option<u32>| id.and_then(|id| i32::try_from(id).ok());
    for (name, id) in [("main", own(now.main)), ("control", own(now.control))] {
        if id == Some(pid) {
            return refuse(format!("process {pid} is the {name} process of {unit}"));
        }
        if id.is_some_and(|id| process.ancestors.contains(&id)) {
            return refuse(format!("process {pid} was started by the {name} process of {unit}, which runs"));
        }
    }
    // One that has detached itself from the main process is known by the run it was started in.
    if now.active || now.main.is_some() || now.control.is_some() {
        match &process.invocation {
            Some(invocation) if *invocation == now.invocation => {
                return refuse(format!("process {pid} belongs to the present run of {unit}"));
            }
            // Where a main process is known, what is not below it was told apart above.
            Some(_) => {}
            None if now.main.is_some() => {}
            None => {
                return refuse(format!("{unit} runs, and which run of it process {pid} belongs to cannot be told"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use lares_config::ByteSize;

    use super::*;

    fn healer() -> Healer {
        let app = HealedUnit {
            memory_max: Some(ByteSize(512)),
            ports: vec![9001, 9002],
            port_variable: Some("PORT".into()),
            ..HealedUnit::default()
        };
        let web = HealedUnit {
            port_variables: BTreeMap::from([("app.service".to_owned(), "APP_PORT".to_owned())]),
            ..HealedUnit::default()
        };
        let bare = HealedUnit { ports: vec![9001], ..HealedUnit::default() };
        let units = [("app.service", app), ("web.service", web), ("bare.service", bare)];
        Healer { units: units.map(|(name, unit)| (name.to_owned(), unit)).into(), ..Healer::default() }
    }

    fn id(name: &str) -> UnitId {
        UnitId::new(name).unwrap()
    }

    fn refused<T: std::fmt::Debug>(outcome: Result<T, Obstacle>, words: &str) {
        match outcome {
            Err(Obstacle::Refused(reason)) if reason.contains(words) => {}
            other => panic!("wanted a refusal with {words:?}, got {other:?}"),
        }
    }

    #[test]
    fn only_services_that_the_configuration_names_are_touched() {
        let mut healer = healer();
        healer.units.insert("app.socket".to_owned(), HealedUnit::default());
        assert!(named(&healer, &id("app.service")).is_ok());
        for other in ["other.service", "app", "app.socket", "App.service"] {
            refused(named(&healer, &id(other)), "add it to `healer.units`");
        }
    }

    #[test]
    fn memory_is_raised_to_the_ceiling_and_never_lowered() {
        let healer = healer();
        let raise = |unit: &str, bytes, now: &UnitNow| {
            let unit = id(unit);
            memory(named(&healer, &unit)?, &unit, bytes, now)
        };
        let now = UnitNow { loaded: true, memory_max: Some(256), ..UnitNow::default() };
        assert_eq!(raise("app.service", 512, &now), Ok(()));
        refused(raise("app.service", 513, &now), "more than the 512");
        refused(raise("app.service", 256, &now), "only ever raised");
        refused(raise("app.service", 0, &now), "only ever raised");
        refused(raise("web.service", 300, &now), "memory_max` is not set");
        refused(raise("app.service", 300, &UnitNow { memory_max: None, ..now.clone() }), "no memory limit");
        refused(raise("app.service", 300, &UnitNow { loaded: false, ..now }), "has no unit");
    }

    #[test]
    fn a_port_comes_from_the_configuration_and_others_are_told() {
        let healer = healer();
        let files = port(&healer, &id("app.service"), 9002).unwrap();
        let expected =
            [DropIn::of("app.service", "PORT", 9002), DropIn::telling("web.service", "app.service", "APP_PORT", 9002)];
        assert_eq!(files, expected);
        refused(port(&healer, &id("app.service"), 9003), "none of the `ports`");
        refused(port(&healer, &id("app.service"), 0), "none of the `ports`");
        refused(port(&healer, &id("bare.service"), 9001), "`port_variable`");
        refused(port(&healer, &id("web.service"), 9001), "none of the `ports`");
        refused(port(&healer, &id("other.service"), 9001), "does not name");
        for bad in ["", "1PORT", "PORT\nExecStart", "A B", "A=B", "PÖRT"] {
            let mut healer = healer.clone();
            healer.units.get_mut("app.service").unwrap().port_variable = Some(bad.into());
            refused(port(&healer, &id("app.service"), 9001), "environment variable");
        }
        let mut healer = healer;
        let variables = &mut healer.units.get_mut("web.service").unwrap().port_variables;
        variables.insert("app.service".to_owned(), String::new());
        refused(port(&healer, &id("app.service"), 9001), "environment variable");
    }

    #[test]
    fn only_what_an_earlier_run_left_is_ended() {
        let unit = id("app.service");
        let orphan = Process {
            pid: 50,
            started: 7,
            group: "/system.slice/app.service".into(),
            ancestors: vec![1],
            invocation: Some("a".repeat(32)),
        };
        let down = UnitNow {
            loaded: true,
            group: "/system.slice/app.service".into(),
            invocation: "a".repeat(32),
            ..UnitNow::default()
        };
        let runs = UnitNow { active: true, main: Some(60), invocation: "b".repeat(32), ..down.clone() };
        let tell = |process: &Process, now: &UnitNow| end(&unit, process, 7, now);
        assert_eq!(tell(&orphan, &down), Ok(()));
        assert_eq!(tell(&orphan, &runs), Ok(()), "the run before left it");
        assert_eq!(tell(&Process { group: format!("{}/worker", orphan.group), ..orphan.clone() }, &down), Ok(()));

        let process = |change: fn(&mut Process)| {
            let mut process = orphan.clone();
            change(&mut process);
            process
        };
        refused(end(&unit, &orphan, 8, &down), "not the one that was meant");
        refused(tell(&process(|p| p.group = "/system.slice/app.service-else".into()), &down), "none of app.service");
        refused(tell(&process(|p| p.group = "/user.slice/app.service".into()), &down), "none of app.service");
        refused(tell(&process(|p| p.group = "/".into()), &down), "none of app.service");
        for root in ["", "/"] {
            refused(tell(&orphan, &UnitNow { group: root.into(), ..down.clone() }), "none of app.service");
        }
        refused(tell(&process(|p| p.pid = 60), &runs), "main process");
        refused(tell(&process(|p| p.ancestors = vec![55, 60, 1]), &runs), "started by the main process");
        let prepares = UnitNow { main: None, control: Some(60), ..runs.clone() };
        refused(tell(&process(|p| p.pid = 60), &prepares), "control process");
        refused(tell(&process(|p| p.invocation = Some("b".repeat(32))), &runs), "present run");
        let nameless = process(|p| p.invocation = None);
        refused(tell(&nameless, &UnitNow { main: None, ..runs.clone() }), "cannot be told");
        assert_eq!(tell(&nameless, &runs), Ok(()), "not below the main process");
        assert_eq!(tell(&process(|p| p.invocation = None), &down), Ok(()));
    }
}
