//! What the shell is offered while a person types: names of tools and servers, from the daemon. A daemon that does not
//! answer at once offers nothing; nothing is ever said.

use std::time::Duration;

use clap::Parser;
use clap_complete::engine::CompletionCandidate;
use lares_tools::api::{ServerList, ServerState, ServerView, ToolDetails, ToolList, ToolState, ToolView};
use serde::de::DeserializeOwned;

use super::foreign;
use super::schema::Schema;
use crate::cli::Global;
use crate::configuration;
use crate::daemon::{Daemon, path};

/// Longest wait: a person is typing.
const WAIT: Duration = Duration::from_millis(700);
/// Longest description beside a candidate, in characters.
const HELP: usize = 70;

/// The ids of all tools.
pub fn tools() -> Vec<CompletionCandidate> {
    all_tools().iter().map(tool).collect()
}

/// The names of all servers.
pub fn servers() -> Vec<CompletionCandidate> {
    all_servers().iter().map(server).collect()
}

/// What `lares tools approve` is for: servers that were proposed or rejected, tools that are held.
pub fn waiting() -> Vec<CompletionCandidate> {
    let servers = all_servers();
    let servers = servers.iter().filter(|server| server.state != ServerState::Approved || server.quarantined > 0);
    let tools = all_tools();
    let tools = tools.iter().filter(|tool| tool.state != ToolState::Approved);
    servers.map(server).chain(tools.map(tool)).collect()
}

/// The parameters of the tool that the command line names.
pub fn parameters() -> Vec<CompletionCandidate> {
    let named = std::env::args().skip_while(|argument| argument != "call").find(|argument| argument.contains("__"));
    let Some(details) = named.and_then(|id| ask::<ToolDetails>(&path(&["api", "v1", "tools", &id], &[]))) else {
        return Vec::new();
    };
    let Some(schema) = &details.tool.input_schema else { return Vec::new() };
    let rows = Schema::new(schema).table();
    let candidate =
        |[name, kind, ..]: &[String; 5]| CompletionCandidate::new(format!("{name}=")).help(Some(kind.into()));
    rows.iter().filter(|[name, ..]| !name.contains("[]")).map(candidate).collect()
}

fn tool(tool: &ToolView) -> CompletionCandidate {
    CompletionCandidate::new(&tool.id).help(Some(foreign::line(&tool.description, HELP).into()))
}

fn server(server: &ServerView) -> CompletionCandidate {
    CompletionCandidate::new(&server.name).help(Some(foreign::line(&server.origin, HELP).into()))
}

fn all_tools() -> Vec<ToolView> {
    ask::<ToolList>("/api/v1/tools?limit=1000").map(|list| list.tools).unwrap_or_default()
}

fn all_servers() -> Vec<ServerView> {
    ask::<ServerList>("/api/v1/servers").map(|list| list.servers).unwrap_or_default()
}

fn ask<T: DeserializeOwned>(path: &str) -> Option<T> {
    let config = configuration::load_for_client(&global()).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let daemon = Daemon::tools(&config).ok()?;
        tokio::time::timeout(WAIT, daemon.get(path)).await.ok()?.ok()
    })
}

/// The global flags on the command line so far; a line that is not finished has none that can be told.
fn global() -> Global {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        global: Global,
    }
    let named = |flag: &str| matches!(flag, "--config" | "--state-dir" | "--set");
    let mut words = std::env::args().skip_while(|argument| argument != "--").skip(2);
    let mut flags = vec!["lares".to_owned()];
    while let Some(word) = words.next() {
        if named(&word) {
            let Some(value) = words.next() else { break };
            flags.extend([word, value]);
        } else if word.split_once('=').is_some_and(|(flag, _)| named(flag)) {
            flags.push(word);
        }
    }
    let none = Global { config: None, set: Vec::new(), state_dir: None, json: false };
    Flags::try_parse_from(flags).map_or(none, |flags| flags.global)
}
