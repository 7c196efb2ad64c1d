//! `lares heal …`: having a unit healed, leaving one alone, and what the healer would make of a log or a unit.

mod classify;
mod dry_run;

use anyhow::Result;
use clap::CommandFactory;
use clap::error::ErrorKind;
use console::style;
use lares_healer::api::{Healing, Pause, PauseRequest, Resumed, Units, WatchedUnit};
use lares_healer::decide::{Decision, Reason};
use lares_healer::facts::{Active, Load, Probe};

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::daemon::{Daemon, path};
use crate::incident::{self, Followed};
use crate::output::{self, Output};

/// Carries out `lares heal …`.
pub fn run(global: &Global, arguments: &cli::Heal) -> Result<u8> {
    let output = Output { json: global.json };
    if arguments.is_ambiguous() {
        let said =
            "the name of a unit comes behind the command: `lares heal dry-run UNIT`; or without one: `lares heal UNIT`";
        cli::Cli::command().error(ErrorKind::ArgumentConflict, said).exit();
    }
    if let Some(cli::HealCommand::Classify(arguments)) = &arguments.command {
        return classify::run(output, arguments);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        if let Some(cli::HealCommand::DryRun(arguments)) = &arguments.command {
            return dry_run::run(global, output, arguments).await.map(|()| exit::OK);
        }
        let healer = Daemon::healer(&configuration::load_for_client(global)?)?;
        match (&arguments.command, &arguments.unit) {
            (Some(cli::HealCommand::Pause(arguments)), _) => pause(&healer, output, arguments).await,
            (Some(cli::HealCommand::Resume { unit }), _) => resume(&healer, output, unit).await,
            (_, Some(unit)) => heal(&healer, output, unit, arguments).await,
            (_, None) => {
                let units: Units = healer.get("/api/v1/units").await?;
                output.value(&units, board).map(|()| exit::OK)
            }
        }
    });
    // Looking at a dead disk may block a thread for good.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Has a unit healed and tells how it goes.
async fn heal(healer: &Daemon, output: Output, unit: &str, arguments: &cli::Heal) -> Result<u8> {
    let wait =
        lares_config::duration::parse(&arguments.timeout).map_err(|error| anyhow::anyhow!("--timeout: {error}"))?;
    // What was written before the order is no answer to it.
    let seen = incident::last_entry(healer, unit).await?;
    let healing: Healing = healer.command(&path(&["api", "v1", "heal", unit], &[])).await?;
    let well = matches!(healing.outlook.decision, Decision::Hold { reason: Reason::Healthy | Reason::ChildKilled, .. });
    let follow = healing.incident.filter(|_| !arguments.detach);
    if output.json && follow.is_some() {
        output::line(&serde_json::to_string(&healing)?)?;
    } else {
        output.value(&healing, |healing| {
            let mut text = dry_run::describe(&healing.outlook, "will");
            if let Some(id) = healing.incident {
                text.push_str(&format!("\nincident  {id}"));
            }
            text
        })?;
    }
    let Some(id) = follow else {
        return Ok(if well || arguments.detach { exit::OK } else { exit::FAILURE });
    };
    let seen = seen.filter(|(before, _)| *before == id).map_or(0, |(_, seq)| seq);
    let followed = incident::follow(healer, output, id, seen, wait).await?;
    if output.json {
        output::line(&serde_json::to_string(followed.incident())?)?;
    } else {
        output::line(&followed.to_string())?;
    }
    Ok(if matches!(followed, Followed::Well(_)) { exit::OK } else { exit::FAILURE })
}

async fn pause(healer: &Daemon, output: Output, arguments: &cli::Pause) -> Result<u8> {
    let request = PauseRequest { lasting: arguments.lasting.clone(), reason: arguments.reason.clone() };
    let pause: Pause = healer.post(&path(&["api", "v1", "units", &arguments.unit, "pause"], &[]), &request).await?;
    output.value(&pause, paused)?;
    Ok(exit::OK)
}

fn paused(pause: &Pause) -> String {
    let until =
        pause.until.map_or_else(|| "until it is resumed".to_owned(), |until| format!("until {}", output::time(until)));
    format!("{} is left alone {until}; `lares heal resume {}` ends that", pause.unit, pause.unit)
}

async fn resume(healer: &Daemon, output: Output, unit: &str) -> Result<u8> {
    let resumed: Resumed = healer.command(&path(&["api", "v1", "units", unit, "resume"], &[])).await?;
    output.value(&resumed, |resumed| {
        let was = if resumed.was_paused { "is healed again" } else { "was not paused" };
        format!("{} {was}", resumed.unit)
    })?;
    Ok(exit::OK)
}

/// What is watched, as a table.
fn board(units: &Units) -> String {
    if units.units.is_empty() {
        return "no unit is watched; name some in `healer.units` of the configuration".to_owned();
    }
    let rows = units.units.iter().map(|unit| {
        let probe = match unit.probe {
            Probe::None => "-".to_owned(),
            Probe::Pending => "pending".to_owned(),
            Probe::Green => style("green").green().to_string(),
            Probe::Red { times } => style(format!("red, {times} times")).red().to_string(),
        };
        [unit.unit.clone(), state(unit), probe, unit.restarts.to_string(), doing(unit)]
    });
    let mut text = output::table(["unit", "state", "probe", "restarts", "healing"], rows);
    if !units.acting {
        text.push_str("\n\nanother healer acts on this machine; this one waits for it to end");
    }
    if units.acting && !units.hearing {
        text.push_str("\n\nsystemd cannot be heard: nothing is known of what happens until it can");
    }
    if units.unshipped > 0 {
        text.push_str(&format!("\n\n{} entries wait for PostgreSQL", units.unshipped));
    }
    text
}

fn state(unit: &WatchedUnit) -> String {
    match (unit.load, unit.active) {
        (Load::Loaded, Active::Active) => style("active").green().to_string(),
        (Load::Loaded, Active::Failed) => style("failed").red().to_string(),
        (Load::Loaded, Active::Activating) => style("activating").yellow().to_string(),
        (Load::Loaded, Active::Deactivating) => style("deactivating").yellow().to_string(),
        (Load::Loaded, Active::Inactive) => style("inactive").yellow().to_string(),
        (Load::NotFound, _) => style("not found").red().to_string(),
        (Load::BadSetting, _) => style("bad setting").red().to_string(),
        (Load::Error, _) => style("unreadable").red().to_string(),
        (Load::Masked, _) => style("masked").yellow().to_string(),
    }
}

/// Its pause, or what is done about its open incident.
fn doing(unit: &WatchedUnit) -> String {
    let mut parts = Vec::new();
    if let Some(pause) = &unit.paused {
        let until = pause.until.map(|until| format!(" until {}", output::time(until))).unwrap_or_default();
        let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
        parts.push(format!("paused by {}{until}{why}", pause.by));
    }
    if let Some(incident) = unit.incident {
        let doing = unit.doing.as_deref().unwrap_or("open");
        parts.push(format!("{doing} (incident {incident})"));
    }
    if parts.is_empty() { "-".to_owned() } else { output::plain(&parts.join("; ")) }
}

#[cfg(test)]
mod tests {
    use lares_healer::api::PausedUntil;
    use lares_healer::decide::{History, Policy};
    use lares_healer::facts::{Facts, Holder, Lead, Match, Owner};
    use lares_healer::observe::Observed;
    use lares_healer::outlook::Outlook;
    use lares_healer::symptom::Symptom;
    use uuid::Uuid;

    use super::*;

    fn watched(unit: &str) -> WatchedUnit {
        WatchedUnit {
            unit: unit.to_owned(),
            load: Load::Loaded,
            active: Active::Active,
            probe: Probe::Green,
            restarts: 0,
            incident: None,
            doing: None,
            paused: None,
        }
    }

    #[test]
    fn the_board_tells_who_is_ill_and_who_is_left_alone() {
        let ill = WatchedUnit {
            active: Active::Failed,
            probe: Probe::Red { times: 3 },
            restarts: 5,
            incident: Some(Uuid::from_u128(7)),
            doing: Some("waits: the last remedy was not long ago".to_owned()),
            ..watched("app.service")
        };
        let pause = PausedUntil { until: None, by: "admin".to_owned(), reason: "up\u{1b}[2Jgrade".to_owned() };
        let left = WatchedUnit { load: Load::Masked, probe: Probe::None, paused: Some(pause), ..watched("db.service") };
        let units =
            Units { units: vec![ill, left, watched("web.service")], acting: false, hearing: false, unshipped: 12 };
        insta::assert_snapshot!(board(&units));
        assert!(board(&Units::default()).contains("healer.units"));
    }

    #[test]
    fn an_outlook_says_what_is_wrong_and_what_follows() {
        let facts = Facts {
            active: Active::Failed,
            symptoms: vec![Symptom::ExitCode { status: 1 }],
            result: "exit-code".to_owned(),
            matched: Some(Match {
                pattern: "port_conflict".to_owned(),
                lead: Lead::ReassignPort,
                evidence: vec!["Address already in use: ('127.0.0.1', 8080)".to_owned()],
                port: Some(8080),
            }),
            port_holder: Some(Holder { pid: 41, started: 1, command: "python3".to_owned(), owner: Owner::Orphan }),
            free_port: Some(8081),
            ..Facts::healthy("app.service")
        };
        let policy = Policy { reassign_port: true, ..Policy::default() };
        let of = |facts: Facts, policy: &Policy| {
            Outlook::of(Observed { facts, unknown: Vec::new() }, policy, &History::default())
        };
        insta::assert_snapshot!("acts", dry_run::describe(&of(facts.clone(), &policy), "will"));
        let mut held = facts;
        held.port_holder.iter_mut().for_each(|holder| holder.owner = Owner::Nobody);
        insta::assert_snapshot!("holds", dry_run::describe(&of(held, &Policy::default()), "would"));
    }

    #[test]
    fn a_pause_says_how_it_ends() {
        let since = jiff::Timestamp::UNIX_EPOCH;
        let pause = Pause { unit: "app.service".into(), until: None, by: "op".into(), reason: String::new(), since };
        assert_eq!(
            paused(&pause),
            "app.service is left alone until it is resumed; `lares heal resume app.service` ends that"
        );
    }
}
