//! What a person decides about tools and servers: approve, quarantine, reject. What is approved is what was shown, by its
//! hash.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lares_config::Network;
use lares_tools::api::{
    ApproveBody, Grant, QuarantineBody, ServerState, ServerView, Severity, ToolDetails, ToolList, ToolState, ToolView,
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
        if said(asked) {
            bail!("--network, --read and --write are for a server; {} is a tool", asked.name);
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
    let body = ApproveBody { hash: Some(tool.hash.clone()), ..ApproveBody::default() };
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

/// Whether anything is said of what a server may touch.
fn said(asked: &ApproveTools) -> bool {
    asked.network.is_some() || !asked.read.is_empty() || !asked.write.is_empty()
}

/// What the options grant. A relative path is meant from here, `~` by the daemon.
fn grant(asked: &ApproveTools) -> Result<Grant> {
    let from_here = |paths: &[PathBuf]| -> Result<Vec<PathBuf>> {
        let absolute = |path: &PathBuf| {
            if path.starts_with("~") {
                return Ok(path.clone());
            }
            path.canonicalize()
                .or_else(|_| std::path::absolute(path))
                .with_context(|| format!("{} is no path", path.display()))
        };
        paths.iter().map(absolute).collect()
    };
    let network = if asked.network.as_deref() == Some("host") { Network::Host } else { Network::None };
    Ok(Grant { network, read: from_here(&asked.read)?, write: from_here(&asked.write)? })
}

async fn approve_server(daemon: &Daemon, output: Output, asked: &ApproveTools) -> Result<u8> {
    let server: ServerView = daemon.get(&server_path(&asked.name, None)).await?;
    same(&server.name, &server.fingerprint, asked.hash.as_deref())?;
    if !server.needs.is_empty() {
        let needs: Vec<String> = server.needs.iter().map(|need| foreign::line(need, 200)).collect();
        bail!(
            "{} needs {}, which only its client knows; declare it in tools.servers to use it",
            server.name,
            needs.join(", ")
        );
    }
    let used = server.state == ServerState::Approved;
    let asked_for = if said(asked) { Some(grant(asked)?) } else { None };
    if used && !asked.tools && asked_for.is_none() {
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
    let plan = Plan::new(server, asked_for.as_ref(), waiting);
    if asked.dry_run {
        output.value(&plan, |plan| format!("{}\nnothing was changed", describe(plan)))?;
        return Ok(exit::OK);
    }
    if !output.json {
        output::line(&describe(&plan))?;
    }
    let what = match (used, &asked_for) {
        (true, None) => "Let these tools be used?",
        (true, Some(_)) => "Start it again with that?",
        (false, _) => approval_of(&plan.server),
    };
    if !asked.yes && !confirm(what)? {
        bail!("{} stays as it is", plan.server.name);
    }
    let body = ApproveBody {
        hash: Some(plan.server.fingerprint.clone()),
        tools: asked.tools,
        network: asked_for.as_ref().map(|grant| grant.network),
        read: asked_for.as_ref().map(|grant| grant.read.clone()),
        write: asked_for.map(|grant| grant.write),
    };
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
struct Plan {
    /// With what it could not read even then.
    server: ServerView,
    /// What its program may touch from now on; absent for one that is no program.
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<Grant>,
    /// What will keep it from working, and what to say for that.
    notes: Vec<String>,
    /// Its tools that will be used.
    tools: Vec<ToolView>,
    /// Its tools that have to be looked at one by one.
    left: Vec<ToolView>,
    /// Its tools that a person put aside.
    held: Vec<ToolView>,
}

impl Plan {
    fn new(mut server: ServerView, asked_for: Option<&Grant>, waiting: Vec<ToolView>) -> Self {
        let (held, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|tool| tool.held_by.is_some());
        let (tools, left) = waiting.into_iter().partition(looks_harmless);
        let command = shown::command(&server.transport);
        let grant = (!command.is_empty()).then(|| match asked_for {
            Some(grant) => grant.clone(),
            None => shown::grant(&server),
        });
        if let Some(grant) = &grant {
            let granted =
                |path: &String| grant.read.iter().chain(&grant.write).any(|known| Path::new(path).starts_with(known));
            server.unreadable.retain(|path| !granted(path));
        }
        let mut notes: Vec<String> = grant.iter().filter_map(|grant| fetching(&command, grant)).collect();
        if !server.unreadable.is_empty() {
            let options: Vec<String> =
                server.unreadable.iter().map(|path| format!("--read {}", quoted(&foreign::line(path, 400)))).collect();
            notes.push(format!("its program needs what it may not read: add {}", options.join(" ")));
        }
        Self { server, grant, notes, tools, left, held }
    }
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@~:,=".contains(c));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// What keeps a program from working that fetches another one when it starts; `None`: nothing that can be seen.
fn fetching(command: &[&str], grant: &Grant) -> Option<String> {
    let (first, rest) = command.split_first()?;
    let name = Path::new(first).file_name()?.to_str()?;
    let verb = rest.iter().find(|word| !word.starts_with('-')).copied().unwrap_or_default();
    match (name, verb) {
        ("docker" | "podman", _) => {
            let socket = if name == "docker" { "/run/docker.sock" } else { "/run/podman/podman.sock" };
            let reached =
                grant.write.iter().any(|path| Path::new(socket).starts_with(path) || path.ends_with("docker.sock"));
            (!reached).then(|| {
                format!(
                    "{name} starts containers through {socket}, which it does not reach, and so cannot fetch its image: \
                     add --write {socket}, which gives it power over this whole machine, or start the container \
                     yourself and declare its URL"
                )
            })
        }
        ("npx" | "pnpx" | "bunx" | "uvx" | "pipx" | "deno", _)
        | ("npm", "exec" | "x" | "init")
        | ("pnpm" | "yarn", "dlx")
        | ("bun", "x")
        | ("uv", "run" | "tool" | "x") => (grant.network == Network::None)
            .then(|| format!("{name} cannot fetch its package, for it gets no network: add --network host")),
        _ => None,
    }
}

fn describe(plan: &Plan) -> String {
    let mut text = shown::server(&plan.server);
    if let Some(grant) = &plan.grant {
        let used = plan.server.state == ServerState::Approved;
        // What it may touch now is there already.
        if !used {
            text.push_str(&shown::may_use(grant));
        } else if *grant != shown::grant(&plan.server) {
            text.push_str(&format!("\nfrom now on:\n{}", shown::may_use(grant)));
        }
    }
    for note in &plan.notes {
        text.push_str(&format!("\n{}: {note}\n", console::style("note").yellow().bold()));
    }
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
    if !plan.held.is_empty() {
        text.push_str("\nstay quarantined, a person put them aside:\n");
        for tool in &plan.held {
            text.push_str(&format!("  {}  {}\n", tool.id, foreign::line(&tool.reason, 70)));
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
    fn what_fetches_its_package_is_told_apart() {
        let (nothing, network) = (Grant::default(), Grant { network: Network::Host, ..Grant::default() });
        for words in ["npx -y @x/notes", "/usr/bin/uvx mcp-git", "npm exec -- x", "uv tool run x", "deno run jsr:@x/y"]
        {
            let command: Vec<&str> = words.split(' ').collect();
            let note = fetching(&command, &nothing);
            assert!(note.is_some_and(|note| note.contains("--network host")), "{words}");
            assert_eq!(fetching(&command, &network), None, "{words}");
        }
        let docker = ["docker", "run", "-i", "mcp/time"];
        let note = fetching(&docker, &network).expect("the network is of no use to it");
        assert!(note.contains("--write /run/docker.sock") && note.contains("whole machine"), "{note}");
        let socket = Grant { write: vec!["/run/docker.sock".into()], ..Grant::default() };
        assert_eq!(fetching(&docker, &socket), None);
        for words in ["notes-mcp", "npm start", "uv", "node server.js"] {
            assert_eq!(fetching(&words.split(' ').collect::<Vec<_>>(), &nothing), None, "{words}");
        }
    }

    #[test]
    fn a_preview_says_what_is_granted_and_what_is_missing() {
        console::set_colors_enabled(false);
        let server = |state: &str, granted: serde_json::Value| -> ServerView {
            let view = serde_json::json!({
                "name": "notes", "state": state, "trusted": false, "health": "idle", "source": "client-file",
                "origin": "/home/ann/.mcp.json", "granted": granted, "unreadable": ["/home/ann/.local/bin", "/srv/it's"],
                "transport": {"kind": "stdio", "command": ["npx", "-y", "notes"], "network": "none"},
                "fingerprint": "77aa88bb".repeat(8), "tools": 0, "approved": 0, "quarantined": 0, "connections": 0,
                "first_seen": "1970-01-01T00:00:00Z", "last_seen": "1970-01-01T00:00:00Z",
            });
            serde_json::from_value(view).expect("a server")
        };
        let words = |plan: &Plan| describe(plan).split_whitespace().collect::<Vec<_>>().join(" ");
        let plan = Plan::new(server("proposed", serde_json::Value::Null), None, Vec::new());
        let text = words(&plan);
        for part in [
            "network none",
            "may read the system's programs and libraries only",
            "npx cannot fetch its package, for it gets no network: add --network host",
            r"add --read /home/ann/.local/bin --read '/srv/it'\''s'",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let grant = Grant { network: Network::Host, read: vec!["/home/ann/.local".into()], write: vec!["/srv".into()] };
        let text = words(&Plan::new(server("proposed", serde_json::Value::Null), Some(&grant), Vec::new()));
        assert!(text.contains("network TCP, as the machine has it"), "{text}");
        assert!(text.contains("may write a directory of its own, and /srv"), "{text}");
        assert!(!text.contains("note:") && !text.contains("cannot read"), "{text}");
        // Of one in use, what it has and what it will have.
        let granted = serde_json::json!({"network": "host", "read": [], "write": []});
        let text = words(&Plan::new(server("approved", granted.clone()), Some(&Grant::default()), Vec::new()));
        let (now, then) = text.split_once("from now on:").expect("both");
        assert!(now.contains("network TCP") && then.contains("network none"), "{text}");
        let kept = Plan::new(server("approved", granted), None, Vec::new());
        assert!(
            !words(&kept).contains("from now on:") && kept.notes.len() == 1,
            "{kept_notes:?}",
            kept_notes = kept.notes
        );
    }

    #[test]
    fn options_are_quoted_for_a_shell() {
        assert_eq!(quoted("/home/ann/.local/bin"), "/home/ann/.local/bin");
        assert_eq!(quoted("/home/ann/it's here"), r"'/home/ann/it'\''s here'");
    }

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
