//! `lares tools …`: finding, looking at, calling and approving tools, through the tools daemon.

mod arguments;
mod call;
pub mod complete;
mod decide;
mod discover;
pub mod eval;
mod foreign;
mod schema;
mod shown;
pub mod vet;

use std::io::Write as _;

use anyhow::{Context, Result, bail};
use lares_tools::api::{
    ChangeList, RoundView, SearchAnswer, ServerList, ServerView, Statistics, ToolDetails, ToolList,
};

use crate::cli::tools::{ListChanges, ListServers, ListTools, SearchTools, Tools};
use crate::cli::{Global, exit};
use crate::configuration;
use crate::daemon::{Daemon, path};
use crate::output::{self, Output};

/// Tools that are asked for at once.
const PAGE: &str = "1000";
/// Most pages: a daemon that never ends must not keep this command.
const PAGES: usize = 1000;

/// Carries out `lares tools …` and says with which code to exit.
pub async fn run(global: &Global, command: Tools) -> Result<u8> {
    let output = Output { json: global.json };
    // Needs no daemon, and so no configuration.
    if let Tools::Vet(asked) = &command {
        return vet::run(output, asked);
    }
    if let Tools::Eval(asked) = &command {
        return eval::run(global, asked).await;
    }
    let config = configuration::load_for_client(global)?;
    if let Tools::Discover(asked) = &command
        && asked.dry_run
    {
        discover::dry_run(&config, output).await?;
        return Ok(exit::OK);
    }
    let daemon = Daemon::tools(&config)?;
    match command {
        Tools::List(asked) => list(&daemon, output, &asked).await?,
        Tools::Search(asked) => search(&daemon, output, &asked).await?,
        Tools::Show { tool } => {
            let details: ToolDetails = daemon.get(&tool_path(&tool, None)).await?;
            output.value(&details, shown::tool)?;
        }
        Tools::Call(asked) => return call::run(&daemon, &config, output, &asked).await,
        Tools::Servers(asked) => servers(&daemon, output, &asked).await?,
        Tools::Approve(asked) => return decide::approve(&daemon, output, &asked).await,
        Tools::Quarantine(asked) => return decide::quarantine(&daemon, output, &asked).await,
        Tools::Reject(asked) => return decide::reject(&daemon, output, &asked).await,
        Tools::Discover(_) => {
            let round: RoundView = daemon.command("/api/v1/tools/discover").await?;
            output.value(&round, shown::round)?;
        }
        // Carried out above.
        Tools::Eval(_) | Tools::Vet(_) => {}
        Tools::Changes(asked) => changes(&daemon, output, &asked).await?,
        Tools::Statistics => {
            let statistics: Statistics = daemon.get("/api/v1/statistics").await?;
            output.value(&statistics, shown::statistics)?;
        }
    }
    Ok(exit::OK)
}

async fn list(daemon: &Daemon, output: Output, asked: &ListTools) -> Result<()> {
    let mut query = Vec::new();
    for (name, value) in [("server", &asked.server), ("state", &asked.state), ("tag", &asked.tag)] {
        if let Some(value) = value {
            query.push((name, value.as_str()));
        }
    }
    if asked.gone {
        query.push(("gone", "true"));
    }
    let tools = all_tools(daemon, &query).await?;
    if asked.ids {
        if tools.tools.is_empty() {
            return Ok(());
        }
        return output::line(&tools.tools.iter().map(|tool| tool.id.as_str()).collect::<Vec<_>>().join("\n"));
    }
    output.value(&tools, shown::list)
}

/// All tools that a query is for, page by page.
async fn all_tools(daemon: &Daemon, query: &[(&str, &str)]) -> Result<ToolList> {
    let mut all = ToolList { tools: Vec::new(), total: 0 };
    for _ in 0..PAGES {
        let after = all.tools.last().map(|tool| tool.id.clone());
        let mut query = query.to_vec();
        query.push(("limit", PAGE));
        if let Some(after) = &after {
            query.push(("after", after));
        }
        let page: ToolList = daemon.get(&path(&["api", "v1", "tools"], &query)).await?;
        if after.is_none() {
            all.total = page.total;
        }
        // The server says how many there are; a short page is the last one whatever it says.
        let last = page.tools.len() < PAGE.parse().unwrap_or(1);
        all.tools.extend(page.tools);
        if last {
            return Ok(all);
        }
    }
    bail!("there are more than {} tools; name a server with --server", all.tools.len())
}

async fn search(daemon: &Daemon, output: Output, asked: &SearchTools) -> Result<()> {
    let words = asked.query.join(" ");
    let limit = asked.limit.map(|limit| limit.to_string());
    let mut query = vec![("q", words.as_str())];
    for (name, value) in [("limit", &limit), ("server", &asked.server), ("tag", &asked.tag)] {
        if let Some(value) = value {
            query.push((name, value.as_str()));
        }
    }
    let answer: SearchAnswer = daemon.get(&path(&["api", "v1", "tools", "search"], &query)).await?;
    output.value(&answer, shown::found)
}

async fn servers(daemon: &Daemon, output: Output, asked: &ListServers) -> Result<()> {
    if let Some(name) = &asked.server {
        let server: ServerView = daemon.get(&server_path(name, None)).await?;
        return output.value(&server, shown::server);
    }
    let list: ServerList = daemon.get("/api/v1/servers").await?;
    if asked.names {
        if list.servers.is_empty() {
            return Ok(());
        }
        return output::line(&list.servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join("\n"));
    }
    output.value(&list, shown::servers)
}

async fn changes(daemon: &Daemon, output: Output, asked: &ListChanges) -> Result<()> {
    // Changes of one server are looked for among the last thousand.
    let limit = if asked.server.is_some() { PAGE.to_owned() } else { asked.limit.to_string() };
    let mut list: ChangeList = daemon.get(&path(&["api", "v1", "changes"], &[("limit", &limit)])).await?;
    if let Some(server) = &asked.server {
        list.changes.retain(|change| change.server == *server);
        list.changes.truncate(asked.limit as usize);
    }
    output.value(&list, shown::changes)
}

/// The path of a tool, or of something that is done with it.
fn tool_path(id: &str, action: Option<&str>) -> String {
    path(&[&["api", "v1", "tools", id][..], action.as_slice()].concat(), &[])
}

/// The path of a server, or of something that is done with it.
fn server_path(name: &str, action: Option<&str>) -> String {
    path(&[&["api", "v1", "servers", name][..], action.as_slice()].concat(), &[])
}

/// Asks the person at the terminal; without one this is an error, never a yes.
fn confirm(question: &str) -> Result<bool> {
    if !decide::somebody_is_there() {
        bail!("{question}\nnobody can be asked: standard input is no terminal; --yes says yes");
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ").and_then(|()| err.flush()).context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
