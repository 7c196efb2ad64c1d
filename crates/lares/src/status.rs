//! `lares status` and `lares unit …`: looking at a running `lares up`, or at the units that systemd runs.

use std::time::Duration;

use anyhow::Result;
use console::style;
use lares_units::port::{ActiveState, Facts, LoadState, Manager};
use lares_units::{State, Systemd, SystemdSettings, UnitStatus};
use serde::Serialize;
use tokio::time::timeout;

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::control::{Client, NotRunning, Overview};
use crate::output::{self, Output};

/// Units of the NixOS modules, and of what they rely on.
const ON_SYSTEMD: [&str; 4] = ["lares-*.service", "postgresql.service", "qdrant.service", "redis-lares.service"];
/// Longest wait for all that systemd is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// `lares status`.
pub async fn list(global: &Global) -> Result<u8> {
    let client = Client::new(&configuration::load(global)?.config.state_dir);
    let output = Output { json: global.json };
    match client.overview().await {
        Ok(overview) => output.value(&overview, describe)?,
        Err(error) if error.is::<NotRunning>() => match timeout(PATIENCE, on_systemd()).await {
            Ok(Some(units)) => output.value(&Services { manager: "systemd", units }, services)?,
            _ => return Err(error),
        },
        Err(error) => return Err(error),
    }
    Ok(exit::OK)
}

/// What systemd runs of Lares.
#[derive(Serialize)]
struct Services {
    manager: &'static str,
    units: Vec<Facts>,
}

/// Those units; none where systemd cannot be asked or has none of Lares.
async fn on_systemd() -> Option<Vec<Facts>> {
    let systemd = Systemd::connect(SystemdSettings::default()).await.ok()?;
    let mut units = Vec::new();
    for listed in systemd.list(&ON_SYSTEMD).await.ok()? {
        if listed.load == LoadState::Loaded {
            units.push(systemd.facts(&listed.unit).await.ok()?);
        }
    }
    units.iter().any(|unit| unit.unit.as_str().starts_with("lares-")).then_some(units)
}

fn services(services: &Services) -> String {
    let rows = services.units.iter().map(|unit| {
        let state = unit.standing.to_string();
        let state = match unit.standing.active {
            ActiveState::Active => style(state).green(),
            ActiveState::Failed => style(state).red(),
            _ => style(state).yellow(),
        };
        [
            unit.unit.to_string(),
            state.to_string(),
            unit.main_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            unit.memory.current.map_or_else(|| "-".to_owned(), output::bytes),
            unit.restarts.map_or_else(|| "-".to_owned(), |restarts| restarts.to_string()),
            unit.description.clone(),
        ]
    });
    let table = output::table(["unit", "state", "pid", "memory", "restarts", "what"], rows);
    format!("{table}\n\n`systemctl` starts and stops them; `journalctl -u UNIT` has what they say")
}

/// `lares unit …`.
pub async fn run(global: &Global, command: cli::Unit) -> Result<u8> {
    let client = Client::new(&configuration::load(global)?.config.state_dir);
    let (unit, verb) = match command {
        cli::Unit::List => return list(global).await,
        cli::Unit::Logs { unit, lines, follow } => {
            client
                .logs(&unit, lines, follow, |line| {
                    if global.json {
                        return output::line(&serde_json::to_string(&line)?);
                    }
                    output::line(&format!("{} {}", style(format!("{:.3}", line.at)).dim(), line.text))
                })
                .await?;
            return Ok(exit::OK);
        }
        cli::Unit::Start { unit } => (unit, "start"),
        cli::Unit::Stop { unit } => (unit, "stop"),
        cli::Unit::Restart { unit } => (unit, "restart"),
    };
    let status = client.change(&unit, verb).await?;
    Output { json: global.json }
        .value(&status, |status| format!("{} is {}: {}", status.name, status.state, status.cause))?;
    Ok(exit::OK)
}

fn describe(overview: &Overview) -> String {
    format!("{}\n\nstate directory: {}", units(&overview.units), overview.state_dir.display())
}

/// What runs where, as a table.
pub fn units(units: &[UnitStatus]) -> String {
    let rows = units.iter().map(|unit| {
        let state = unit.state.to_string();
        let state = match unit.state {
            State::Active => style(state).green(),
            State::Failed => style(state).red(),
            _ => style(state).yellow(),
        };
        let usage = unit.usage.as_ref();
        [
            unit.name.to_string(),
            state.to_string(),
            unit.detail.clone().unwrap_or_default(),
            unit.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            usage.map_or_else(|| "-".to_owned(), |usage| output::bytes(usage.rss_bytes)),
            unit.restarts.to_string(),
            unit.description.clone(),
        ]
    });
    output::table(["unit", "state", "address", "pid", "memory", "restarts", "what"], rows)
}
