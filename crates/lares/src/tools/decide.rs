//! What a person decides about tools and servers: approve, quarantine, reject. What is approved is what was shown, by its
//! hash.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use lares_tools::api::{
    ApproveBody, QuarantineBody, ServerState, ServerView, Severity, ToolDetails, ToolList, ToolState, ToolView,
};
use lares_tools::definition::SEPARATOR;
use serde::Serialize;

use super::{all_tools, confirm, foreign, server_path, shown, tool_path};
use crate::cli::exit;
use crate::cli::tools::{ApproveTools, QuarantineTool, RejectServer};
use crate::daemon::Daemon;
use crate::output::{self, Output};

/// Fewest digits of a hash that tell which is meant.
const DIGITS_MIN: usize = 8;

/// `lares tools approve`.
pub async fn approve(daemon: &Daemon, output: Output, asked: &ApproveTools) -> Result<u8> {
    if output.json && !asked.yes && !asked.dry_run {
        bail!("with --json nobody is asked: add --yes, or --dry-run to look first");
    }
    if asked.name.contains(SEPARATOR) {
        if asked.tools {
            bail!("--tools is for a server; {} is a tool", asked.name);
        }
        approve_tool(daemon, output, asked).await
    } else {
        approve_server(daemon, output, asked).await
    }
}

async fn approve_tool(daemon: &Daemon, output: Output, asked: &ApproveTools) -> Result<u8> {
    let details: ToolDetails = daemon.get(&tool_path(&asked.name, None)).await?;
    let tool = &details.tool;
    same(&tool.id, &tool.hash, asked.hash.as_deref())?;
    if tool.state == ToolState::Approved && tool.approved_hash.as_ref() == Some(&tool.hash) {
        output.value(tool, |tool| format!("{} is approved already", tool.id))?;
        return Ok(exit::OK);
    }
    if asked.dry_run {
        output.value(&details, |details| format!("{}\nnothing was changed", shown::tool(details)))?;
        return Ok(exit::OK);
    }
    if !output.json {
        output::line(&shown::tool(&details))?;
    }
    if !asked.yes && !confirm(&question(tool))? {
        bail!("{} stays {}", tool.id, if tool.state == ToolState::Blocked { "blocked" } else { "quarantined" });
    }
    let body = ApproveBody { hash: Some(tool.hash.clone()), tools: false };
    let tool: ToolView = daemon.post(&tool_path(&asked.name, Some("approve")), &body).await?;
    output.value(&tool, |tool| format!("{} may be used ({})", tool.id, shown::digits(&tool.hash)))?;
    Ok(exit::OK)
}

fn question(tool: &ToolView) -> String {
    let worst = tool.findings.iter().map(|finding| finding.severity).max();
    match worst {
        Some(Severity::Danger) => format!("{} looks dangerous. Let it be used all the same?", tool.id),
        Some(Severity::Warning) => format!("{} looks suspicious. Let it be used all the same?", tool.id),
        Some(Severity::Info) | None => format!("Let {} be used?", tool.id),
    }
}

async fn approve_server(daemon: &Daemon, output: Output, asked: &ApproveTools) -> Result<u8> {
    let server: ServerView = daemon.get(&server_path(&asked.name, None)).await?;
    same(&server.name, &server.fingerprint, asked.hash.as_deref())?;
    if server.state == ServerState::Approved && !asked.tools {
        output.value(&server, |server| {
            let next = if server.quarantined > 0 {
                "; --tools lets those of its tools be used that look harmless"
            } else {
                ""
            };
            format!("{} is approved already{next}", server.name)
        })?;
        return Ok(exit::OK);
    }
    let waiting = if asked.tools { waiting(daemon, &server.name).await? } else { Vec::new() };
    let (harmless, suspicious): (Vec<_>, Vec<_>) = waiting.iter().partition(|tool| looks_harmless(tool));
    if asked.dry_run {
        let plan = Plan { server: &server, tools: harmless, left: suspicious };
        output.value(&plan, |plan| format!("{}\nnothing was changed", describe(plan)))?;
        return Ok(exit::OK);
    }
    if !output.json {
        output::line(&describe(&Plan { server: &server, tools: harmless, left: suspicious }))?;
    }
    let what = if server.state == ServerState::Approved { "Let these tools be used?" } else { approval_of(&server) };
    if !asked.yes && !confirm(what)? {
        bail!("{} stays as it is", server.name);
    }
    let body = ApproveBody { hash: Some(server.fingerprint.clone()), tools: asked.tools };
    let server: ServerView = daemon.post(&server_path(&asked.name, Some("approve")), &body).await?;
    output.value(&server, |server| {
        let held = match server.quarantined {
            0 if server.tools == 0 => "; `lares tools list --server` shows its tools in a moment".to_owned(),
            0 => format!("; {} tools", server.tools),
            held => format!("; {held} of its tools are quarantined, `lares tools list --state quarantined` shows them"),
        };
        format!("{} is used from now on{held}", server.name)
    })?;
    Ok(exit::OK)
}

fn approval_of(server: &ServerView) -> &'static str {
    if server.transport.get("command").is_some() {
        "This command will be run from now on. Approve it?"
    } else {
        "This URL will be connected to from now on. Approve it?"
    }
}

/// What an approval of a server means.
#[derive(Serialize)]
struct Plan<'a> {
    server: &'a ServerView,
    /// Its tools that will be used.
    tools: Vec<&'a ToolView>,
    /// Its tools that have to be looked at one by one.
    left: Vec<&'a ToolView>,
}

fn describe(plan: &Plan<'_>) -> String {
    let mut text = shown::server(plan.server);
    if !plan.tools.is_empty() {
        text.push_str("\nwill be used:\n");
        for tool in &plan.tools {
            text.push_str(&format!("  {}  {}\n", tool.id, foreign::line(&tool.description, 70)));
        }
    }
    if !plan.left.is_empty() {
        text.push_str("\nstay quarantined, something was found in them:\n");
        for tool in &plan.left {
            let mut rules: Vec<&str> = tool.findings.iter().map(|finding| finding.rule.as_str()).collect();
            rules.dedup();
            text.push_str(&format!("  {}  {}\n", tool.id, foreign::line(&rules.join(", "), 70)));
        }
    }
    text
}

/// The daemon decides by the same rule: nothing above `info`.
fn looks_harmless(tool: &ToolView) -> bool {
    tool.findings.iter().all(|finding| finding.severity == Severity::Info)
}

async fn waiting(daemon: &Daemon, server: &str) -> Result<Vec<ToolView>> {
    let ToolList { tools, .. } = all_tools(daemon, &[("server", server), ("state", "quarantined")]).await?;
    Ok(tools)
}

/// `lares tools quarantine`.
pub async fn quarantine(daemon: &Daemon, output: Output, asked: &QuarantineTool) -> Result<u8> {
    let verb = if asked.block { "blocked" } else { "quarantined" };
    if asked.dry_run {
        let details: ToolDetails = daemon.get(&tool_path(&asked.tool, None)).await?;
        output.value(&details.tool, |tool| {
            let now = match tool.state {
                ToolState::Approved => "may be used",
                ToolState::Quarantined => "is quarantined",
                ToolState::Blocked => "is blocked",
            };
            format!("{} {now}; it would be {verb}. Nothing was changed", tool.id)
        })?;
        return Ok(exit::OK);
    }
    let body = QuarantineBody { reason: asked.reason.clone(), block: asked.block };
    let tool: ToolView = daemon.post(&tool_path(&asked.tool, Some("quarantine")), &body).await?;
    output.value(&tool, |tool| format!("{0} is {verb}; `lares tools approve {0}` lets it be used again", tool.id))?;
    Ok(exit::OK)
}

/// `lares tools reject`.
pub async fn reject(daemon: &Daemon, output: Output, asked: &RejectServer) -> Result<u8> {
    let server: ServerView = daemon.get(&server_path(&asked.server, None)).await?;
    if asked.dry_run {
        output.value(&server, |server| {
            format!(
                "{} would be ended, and {} tools not offered any more. Nothing was changed",
                server.name, server.approved
            )
        })?;
        return Ok(exit::OK);
    }
    // One that is not used yet loses nothing.
    let loses = server.state == ServerState::Approved && server.approved > 0;
    if loses && !asked.yes {
        let question = format!("{} offers {} tools. End it?", server.name, server.approved);
        if !confirm(&question)? {
            bail!("{} stays as it is", server.name);
        }
    }
    let server: ServerView = daemon.command(&server_path(&asked.server, Some("reject"))).await?;
    output
        .value(&server, |server| format!("{0} is not used; `lares tools approve {0}` takes that back", server.name))?;
    Ok(exit::OK)
}

/// Sees to it that what is there is what `asked` names.
fn same(name: &str, now: &str, asked: Option<&str>) -> Result<()> {
    let Some(asked) = asked else { return Ok(()) };
    if asked.len() < DIGITS_MIN {
        bail!("--hash: {asked} is too short; {DIGITS_MIN} digits are needed");
    }
    if !now.starts_with(&asked.to_ascii_lowercase()) {
        bail!("{name} has changed: it is {} now, not {asked}; look at it again", shown::digits(now));
    }
    Ok(())
}

/// Whether a person can be asked.
pub fn somebody_is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_known_by_its_beginning() {
        let now = "3fa9c1d2".repeat(8);
        assert!(same("t", &now, None).is_ok() && same("t", &now, Some("3FA9C1D2")).is_ok());
        for (asked, said) in [("3fa9c1d", "too short"), ("3fa9c1d3", "has changed: it is 3fa9c1d23fa9 now")] {
            let error = same("t", &now, Some(asked)).expect_err(said);
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
