//! `lares status` and `lares unit …`: looking at a running `lares up`.

use anyhow::Result;
use console::style;
use lares_units::{State, UnitStatus};

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::control::{Client, Overview};
use crate::output::{self, Output};

/// `lares status`.
pub async fn list(global: &Global) -> Result<u8> {
    let client = Client::new(&configuration::load(global)?.config.state_dir);
    let overview = client.overview().await?;
    Output { json: global.json }.value(&overview, describe)?;
    Ok(exit::OK)
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
