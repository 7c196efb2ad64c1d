//! `lares tools discover --dry-run`: what discovery would find, looked for from here. Nothing is started, approved or
//! written down, and nothing is connected to but the loopback ports that the configuration allows.

use std::fmt::Write as _;

use anyhow::Result;
use console::style;
use lares_config::Config;
use lares_tools::api::Source;
use lares_tools::discover::{self, Found, Machine, Round};
use serde_json::{Value, json};

use super::{foreign, shown};
use crate::output::{self, Output};

/// Longest origin and problem in a line, in characters.
const LINE: usize = 200;

/// Looks once and prints what there is.
pub async fn dry_run(config: &Config, output: Output) -> Result<()> {
    let round = discover::look(&config.tools, &Machine::new(config)).await;
    output.value(&as_json(&round), |_| described(&round))
}

fn as_json(round: &Round) -> Value {
    let servers: Vec<Value> = round
        .found
        .iter()
        .map(|found| {
            json!({
                "name": found.name,
                "source": found.source,
                "origin": found.origin,
                "transport": found.shown(),
                "trusted": found.trusted,
                "enabled": found.enabled,
                "needs": found.needs,
            })
        })
        .collect();
    json!({"servers": servers, "problems": round.problems})
}

fn described(round: &Round) -> String {
    let mut text = if round.found.is_empty() {
        "no tool servers found; declare one in tools.servers, or see tools.discovery for where else to look".to_owned()
    } else {
        let rows = round.found.iter().map(|found| {
            [
                found.name.to_string(),
                outlook(found).to_owned(),
                foreign::line(&found.origin, LINE),
                shown::reached(&found.shown()),
            ]
        });
        output::table(["server", "then", "found in", "reached by"], rows)
    };
    for problem in &round.problems {
        let _ = write!(text, "\n{}: {}", style("problem").yellow().bold(), foreign::line(problem, LINE));
    }
    text
}

/// What the daemon would do with a server that it has not seen before.
fn outlook(found: &Found) -> &'static str {
    match (found.source, found.enabled) {
        (_, false) => "cannot start",
        (Source::Configuration, true) => "used",
        (Source::ClientFile | Source::Port | Source::Unit, true) => "waits for approval",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lares_config::ToolServer;

    use super::*;

    #[tokio::test]
    async fn a_dry_run_tells_what_would_be_found_and_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mcp.json");
        let client = r#"{"mcpServers": {
            "git": {"command": "uvx", "args": ["mcp-server-git", "--token", "hunter2"], "env": {"KEY": "hunter2"}},
            "hub": {"command": "hub", "args": ["${HUB}"]}
        }}"#;
        std::fs::write(&file, client).unwrap();
        let mut config = Config::default();
        config.tools.discovery.client_files = vec![file.clone()];
        config.tools.discovery.units = false;
        let time = ToolServer { command: vec!["mcp-time".to_owned()], ..ToolServer::default() };
        config.tools.servers.insert("time".to_owned(), time);
        let round = discover::look(&config.tools, &Machine::new(&config)).await;
        console::set_colors_enabled(false);
        let text = described(&round).replace(&file.display().to_string(), "FILE");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..3], ["time", "used", "tools.servers.time"]);
        assert_eq!(lines[2].join(" "), "git waits for approval FILE uvx mcp-server-git --token ***");
        assert_eq!(lines[3].join(" "), "hub cannot start FILE hub ${HUB}");
        assert!(lines[4].join(" ").starts_with("problem: FILE: server `hub` needs the variable `HUB`"), "{text}");
        let json = as_json(&round).to_string();
        assert!(!json.contains("hunter2") && !text.contains("hunter2"), "{json} {text}");
        assert_eq!(as_json(&round)["servers"][1]["transport"]["environment"], json!(["KEY"]));
    }
}
