//! Tools, servers and what was found in them, as text for people.

use std::fmt::Write as _;

use console::style;
use lares_config::Network;
use lares_tools::api::{
    CallStatistics, ChangeList, ChangeView, DifferenceView, FindingView, Grant, Health, Policy, RoundView,
    SearchAnswer, SearchMode, ServerList, ServerState, ServerView, Severity, Source, Statistics, ToolDetails, ToolList,
    ToolState, ToolView, VersionView,
};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::foreign;
use super::schema::Schema;
use crate::output;

/// Longest description in a table, in characters.
const SUMMARY: usize = 70;
/// Longest one-line text, in characters.
const LINE: usize = 400;
/// Digits of a hash that are shown.
const DIGITS: usize = 12;

/// `lares tools list`.
pub fn list(tools: &ToolList) -> String {
    if tools.tools.is_empty() {
        return "no tools; `lares tools servers` shows the servers, docs/tools.md says how to declare one".to_owned();
    }
    let rows = tools.tools.iter().map(|tool| {
        [
            foreign::line(&tool.id, LINE),
            standing(tool),
            tool.statistics.calls.to_string(),
            foreign::line(&tool.description, SUMMARY),
        ]
    });
    let mut text = output::table(["tool", "state", "calls", "description"], rows);
    let waiting = tools.tools.iter().filter(|tool| tool.state == ToolState::Quarantined).count();
    if waiting > 0 {
        let _ = write!(
            text,
            "\n\n{waiting} quarantined; `lares tools show TOOL` says why, `lares tools approve` lets them be used"
        );
    }
    text
}

/// A tool's state with what keeps it from being used.
fn standing(tool: &ToolView) -> String {
    let state = match tool.state {
        ToolState::Approved => style("approved").green(),
        ToolState::Quarantined => style("quarantined").yellow(),
        ToolState::Blocked => style("blocked").red(),
    };
    let mut parts = vec![state.to_string()];
    match tool.policy {
        Policy::Allow => {}
        Policy::Ask => parts.push("asks".to_owned()),
        Policy::Deny => parts.push("denied".to_owned()),
    }
    if tool.gone_since.is_some() {
        parts.push(style("gone").dim().to_string());
    } else if !tool.available && tool.state == ToolState::Approved {
        parts.push(style("away").red().to_string());
    }
    parts.join(", ")
}

/// `lares tools search`.
pub fn found(answer: &SearchAnswer) -> String {
    if answer.hits.is_empty() {
        return "nothing found; other words may help, `lares tools list` shows all tools".to_owned();
    }
    let rows = answer.hits.iter().map(|hit| {
        let mut why: Vec<String> = hit.reasons.words.iter().map(|word| foreign::line(word, SUMMARY)).collect();
        if let Some(cosine) = hit.reasons.cosine {
            why.push(format!("meaning {cosine:.2}"));
        }
        let away = if hit.available { "" } else { " (away)" };
        [
            format!("{:.2}", hit.score),
            format!("{}{away}", foreign::line(&hit.id, LINE)),
            why.join(" "),
            foreign::line(&hit.description, SUMMARY),
        ]
    });
    let mut text = output::table(["score", "tool", "why", "description"], rows);
    if answer.mode == SearchMode::Words {
        text.push_str("\n\nby words alone: there is no embedding model; `lares tools statistics` says why");
    }
    text
}

/// Lines of names and values.
#[derive(Default)]
struct Fields(String);

impl Fields {
    fn add(&mut self, name: &str, value: impl AsRef<str>) {
        let _ = writeln!(self.0, "{name:<12} {}", value.as_ref());
    }
}

/// `lares tools show`.
pub fn tool(details: &ToolDetails) -> String {
    let tool = &details.tool;
    let mut text = format!("{}\n", style(foreign::line(&tool.id, LINE)).bold());
    text.push_str(&foreign::block(&tool.description, "  "));
    text.push('\n');
    let mut fields = Fields::default();
    if let Some(title) = &tool.title {
        fields.add("title", foreign::line(title, LINE));
    }
    let reason =
        if tool.reason.is_empty() { String::new() } else { format!(": {}", foreign::line(&tool.reason, LINE)) };
    fields.add("state", format!("{}{reason}", standing(tool)));
    if let Some(by) = &tool.held_by {
        fields.add("put aside by", foreign::line(by, LINE));
    }
    fields.add("server", format!("{}{}", tool.server, if tool.available { "" } else { " (does not answer)" }));
    if !tool.tags.is_empty() {
        fields.add("tags", foreign::line(&tool.tags.join(" "), LINE));
    }
    if let Some(annotations) = tool.annotations.as_ref().filter(|hints| !hints.is_null()) {
        fields.add("hints", foreign::line(&hints(annotations), LINE));
    }
    fields.add("hash", hash(tool));
    fields.add("calls", calls(&tool.statistics));
    fields.add("first seen", output::time(tool.first_seen));
    fields.add("last seen", output::time(tool.last_seen));
    if let Some(since) = tool.gone_since {
        fields.add("gone since", output::time(since));
    }
    text.push_str(&fields.0);
    for (title, schema) in [("takes", &tool.input_schema), ("gives", &tool.output_schema)] {
        let Some(schema) = schema else { continue };
        let rows = Schema::new(schema).table();
        if rows.is_empty() {
            if title == "takes" {
                text.push_str("\nIt takes no arguments.\n");
            }
            continue;
        }
        let _ = write!(text, "\n{}\n", output::table([title, "type", "required", "default", "meaning"], rows));
    }
    text.push_str(&findings(&tool.findings));
    text.push_str(&differences(&details.differences));
    text.push_str(&versions(&details.versions));
    text
}

fn hints(annotations: &Value) -> String {
    let Some(map) = annotations.as_object() else { return annotations.to_string() };
    map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn hash(tool: &ToolView) -> String {
    let now = digits(&tool.hash);
    match &tool.approved_hash {
        Some(approved) if *approved == tool.hash => format!("{now}, approved"),
        Some(approved) => format!("{now}; {} was approved", digits(approved)),
        None => format!("{now}; none was approved"),
    }
}

/// The first digits of a hash.
pub fn digits(hash: &str) -> &str {
    hash.get(..DIGITS).unwrap_or(hash)
}

fn calls(statistics: &CallStatistics) -> String {
    let mut text = statistics.calls.to_string();
    if statistics.failures > 0 {
        let _ = write!(text, ", {} failed", statistics.failures);
    }
    if let (Some(p50), Some(p99)) = (statistics.p50_ms, statistics.p99_ms) {
        let _ = write!(text, "; median {}, 99 of 100 within {}", milliseconds(p50), milliseconds(p99));
    }
    if let Some(last) = statistics.last {
        let _ = write!(text, "; last {}", output::time(last));
    }
    text
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// What the rules found, the gravest first.
pub fn findings(findings: &[FindingView]) -> String {
    let mut sorted: Vec<&FindingView> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let mut text = String::new();
    for finding in sorted {
        let severity = match finding.severity {
            Severity::Info => style("info").dim(),
            Severity::Warning => style("warning").yellow().bold(),
            Severity::Danger => style("danger").red().bold(),
        };
        let (rule, field) = (foreign::line(&finding.rule, SUMMARY), foreign::line(&finding.field, LINE));
        let _ = writeln!(text, "\n{severity}  {rule} in {field}");
        text.push_str(&foreign::block(&finding.why, "  "));
        if !finding.excerpt.is_empty() {
            text.push_str(&foreign::block(&finding.excerpt, "  > "));
        }
    }
    text
}

/// What differs from what was approved, line by line.
pub fn differences(differences: &[DifferenceView]) -> String {
    let mut text = String::new();
    if !differences.is_empty() {
        text.push_str("\nIt is not what was approved:\n");
    }
    for difference in differences {
        let _ = writeln!(text, "{}", style(foreign::line(&difference.field, LINE)).bold());
        let lines = |side: &Option<String>| foreign::block(side.as_deref().unwrap_or_default(), "");
        let (before, after) = (lines(&difference.before), lines(&difference.after));
        for change in TextDiff::from_lines(&before, &after).iter_all_changes() {
            let line = change.value().trim_end_matches('\n');
            let _ = match change.tag() {
                ChangeTag::Delete => writeln!(text, "{}", style(format!("  - {line}").trim_end()).red()),
                ChangeTag::Insert => writeln!(text, "{}", style(format!("  + {line}").trim_end()).green()),
                ChangeTag::Equal => writeln!(text, "{}", format!("    {line}").trim_end()),
            };
        }
    }
    text
}

fn versions(versions: &[VersionView]) -> String {
    if versions.is_empty() {
        return String::new();
    }
    let rows = versions.iter().map(|version| {
        let by = version.approved_by.as_deref().map(|by| format!(" by {}", foreign::line(by, SUMMARY)));
        let approved = version.approved_at.map(|at| format!("{}{}", output::time(at), by.unwrap_or_default()));
        [digits(&version.hash).to_owned(), output::time(version.first_seen), approved.unwrap_or_else(|| "-".to_owned())]
    });
    format!("\n{}\n", output::table(["version", "first seen", "approved"], rows))
}

/// `lares tools servers`.
pub fn servers(list: &ServerList) -> String {
    if list.servers.is_empty() {
        return "no tool servers; declare one in `tools.servers` of the configuration, docs/tools.md says how"
            .to_owned();
    }
    let rows = list.servers.iter().map(|server| {
        let held =
            if server.quarantined > 0 { format!(" ({} quarantined)", server.quarantined) } else { String::new() };
        [
            server.name.clone(),
            server_state(server),
            health(server.health),
            format!("{}{held}", server.tools),
            source(server),
            reached(&server.transport),
        ]
    });
    let mut text = output::table(["server", "state", "health", "tools", "found in", "reached by"], rows);
    for server in &list.servers {
        if let (Health::Down | Health::Resting, Some(error)) = (server.health, &server.last_error) {
            let _ = write!(text, "\n\n{}: {}", server.name, foreign::line(error, LINE));
        }
    }
    let proposed = list.servers.iter().filter(|server| server.state == ServerState::Proposed).count();
    if proposed > 0 {
        let _ = write!(text, "\n\n{proposed} found and not used; `lares tools approve SERVER` lets one be used");
    }
    text
}

fn server_state(server: &ServerView) -> String {
    let state = match server.state {
        ServerState::Approved => style("approved").green(),
        ServerState::Proposed => style("proposed").yellow(),
        ServerState::Rejected => style("rejected").red(),
    };
    let mut parts = vec![state.to_string()];
    if server.trusted {
        parts.push("trusted".to_owned());
    }
    if server.granted.as_ref().is_some_and(|granted| granted.network == Network::Host) {
        parts.push("network".to_owned());
    }
    match server.granted.as_ref().map_or(0, |granted| granted.read.len() + granted.write.len()) {
        0 => {}
        1 => parts.push("1 path".to_owned()),
        paths => parts.push(format!("{paths} paths")),
    }
    parts.join(", ")
}

fn health(health: Health) -> String {
    match health {
        Health::Idle => style("idle").dim().to_string(),
        Health::Starting => style("starting").yellow().to_string(),
        Health::Up => style("up").green().to_string(),
        Health::Down => style("down").red().to_string(),
        Health::Resting => style("resting").red().to_string(),
    }
}

fn source(server: &ServerView) -> String {
    let kind = match server.source {
        Source::Configuration => return "configuration".to_owned(),
        Source::ClientFile => "file",
        Source::Port => "port",
        Source::Unit => "unit",
    };
    format!("{kind} {}", foreign::line(&server.origin, SUMMARY))
}

/// The command of a server that is a program; empty for others.
pub fn command(transport: &Value) -> Vec<&str> {
    transport.get("command").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the program of a server may touch now: as it was granted, or as the configuration says.
pub fn grant(server: &ServerView) -> Grant {
    if let Some(granted) = &server.granted {
        return granted.clone();
    }
    let paths = |key: &str| {
        let paths = server.transport.get(key).and_then(Value::as_array);
        paths.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    let network = if server.transport["network"] == "host" { Network::Host } else { Network::None };
    Grant { network, read: paths("read"), write: paths("write") }
}

/// What a program may touch, as fields.
pub fn may_use(grant: &Grant) -> String {
    let mut fields = Fields::default();
    fields.add("network", if grant.network == Network::Host { "TCP, as the machine has it" } else { "none" });
    for (name, paths, none) in [
        ("may read", &grant.read, "the system's programs and libraries"),
        ("may write", &grant.write, "a directory of its own"),
    ] {
        if paths.is_empty() {
            fields.add(name, format!("{none} only"));
        } else {
            let paths: Vec<String> = paths.iter().map(|path| foreign::line(&path.to_string_lossy(), LINE)).collect();
            fields.add(name, format!("{none}, and {}", paths.join(" ")));
        }
    }
    fields.0
}

/// How a server is reached, in one line.
pub fn reached(transport: &Value) -> String {
    let command = command(transport);
    if !command.is_empty() {
        return foreign::line(&command.join(" "), LINE);
    }
    let url = transport.get("url").and_then(Value::as_str);
    foreign::line(url.unwrap_or("?"), LINE)
}

/// `lares tools servers NAME`.
pub fn server(server: &ServerView) -> String {
    let mut text = format!("{}\n", style(&server.name).bold());
    let mut fields = Fields::default();
    fields.add("state", server_state(server));
    fields.add("health", health(server.health));
    fields.add("found in", source(server));
    fields.add("reached by", reached(&server.transport));
    for (key, name) in [("environment", "environment"), ("headers", "headers")] {
        let names = server.transport.get(key).and_then(Value::as_array);
        let names: Vec<&str> = names.into_iter().flatten().filter_map(Value::as_str).collect();
        if !names.is_empty() {
            fields.add(name, foreign::line(&names.join(" "), LINE));
        }
    }
    if server.state == ServerState::Approved && !command(&server.transport).is_empty() {
        fields.0.push_str(&may_use(&grant(server)));
    }
    if !server.unreadable.is_empty() {
        let paths: Vec<String> = server.unreadable.iter().map(|path| foreign::line(path, LINE)).collect();
        fields.add("cannot read", paths.join(" "));
    }
    if !server.needs.is_empty() {
        let needs: Vec<String> = server.needs.iter().map(|need| foreign::line(need, LINE)).collect();
        fields.add("needs", format!("{}; only its client knows that", needs.join(", ")));
    }
    fields.add("fingerprint", digits(&server.fingerprint));
    if let Some(implementation) = &server.implementation {
        fields.add("is", foreign::line(implementation, LINE));
    }
    if let Some(protocol) = &server.protocol {
        fields.add("speaks", format!("MCP {}", foreign::line(protocol, SUMMARY)));
    }
    let (all, approved, held) = (server.tools, server.approved, server.quarantined);
    fields.add("tools", format!("{all}, of these {approved} may be used and {held} are quarantined"));
    fields.add("connections", server.connections.to_string());
    fields.add("first seen", output::time(server.first_seen));
    fields.add("last seen", output::time(server.last_seen));
    if let Some(error) = &server.last_error {
        fields.add("last error", foreign::line(error, LINE));
    }
    text.push_str(&fields.0);
    text
}

/// `lares tools discover`.
pub fn round(round: &RoundView) -> String {
    let found: Vec<String> = round.found.iter().map(|(place, count)| format!("{place} {count}")).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    let changes = match round.changes {
        0 => "nothing changed".to_owned(),
        1 => "1 change; `lares tools changes` shows it".to_owned(),
        many => format!("{many} changes; `lares tools changes` shows them"),
    };
    let mut text = format!("servers found: {found}\n{changes} ({})", milliseconds(round.took_ms));
    for problem in &round.problems {
        let _ = write!(text, "\n{}: {}", style("problem").yellow().bold(), foreign::line(problem, LINE));
    }
    text
}

/// `lares tools changes`.
pub fn changes(list: &ChangeList) -> String {
    if list.changes.is_empty() {
        return "nothing has changed yet".to_owned();
    }
    let rows = list.changes.iter().map(|change| {
        [
            output::time(change.at),
            change.kind.clone(),
            foreign::line(change.tool.as_deref().unwrap_or(&change.server), LINE),
            foreign::line(&change.actor, SUMMARY),
            why(change),
        ]
    });
    output::table(["when", "what", "which", "who", "why"], rows)
}

fn why(change: &ChangeView) -> String {
    let reason = foreign::line(&change.reason, LINE);
    match (&change.from, &change.to) {
        (Some(from), Some(to)) if from != to => {
            let hashes = format!("{} → {}", digits(from), digits(to));
            if reason.is_empty() { hashes } else { format!("{reason} ({hashes})") }
        }
        _ => reason,
    }
}

/// `lares tools statistics`.
pub fn statistics(statistics: &Statistics) -> String {
    let counts = |counts: &std::collections::BTreeMap<String, usize>| {
        let all: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let mut fields = Fields::default();
    fields.add("tools", counts(&statistics.tools));
    fields.add("servers", counts(&statistics.servers));
    fields.add("calls", calls(&statistics.calls));
    fields.add("searches", calls(&statistics.searches));
    let model = statistics.model.as_deref().map(|model| foreign::line(model, LINE));
    let embedded = match model {
        Some(model) => format!("{model}; {} tools embedded", statistics.embedded),
        None => "none: tools are found by their words alone".to_owned(),
    };
    fields.add("embedding", embedded);
    if let Some(problem) = &statistics.embedding_problem {
        fields.add("", foreign::line(problem, LINE));
    }
    let mut text = fields.0;
    if !statistics.most_used.is_empty() {
        let rows = statistics.most_used.iter().map(|used| [foreign::line(&used.id, LINE), calls(&used.statistics)]);
        let _ = write!(text, "\n{}", output::table(["most used", "calls"], rows));
    }
    text
}

/// A result of a call for people, and what of it cannot be printed. `terminal`: what would act on the terminal is made
/// visible.
pub fn result(result: &Value, terminal: bool) -> String {
    if result.get("resultType").and_then(Value::as_str) == Some("input_required") {
        return "the tool asks for more before it goes on, which this command cannot answer; --json shows what"
            .to_owned();
    }
    let shown = |text: &str| if terminal { foreign::result(text) } else { text.to_owned() };
    let mut parts = Vec::new();
    for block in result.get("content").and_then(Value::as_array).into_iter().flatten() {
        let text = |key: &str| block.get(key).and_then(Value::as_str);
        let kind = text("type").unwrap_or("unknown");
        let bytes = |data: &str| output::bytes((data.len() / 4 * 3) as u64);
        let about = foreign::line(text("mimeType").unwrap_or("of unknown type"), SUMMARY);
        parts.push(match kind {
            "text" => shown(text("text").unwrap_or_default()),
            "image" | "audio" => {
                let size = bytes(text("data").unwrap_or_default());
                format!("[{kind}, {about}, {size}; --json has it]")
            }
            "resource" => {
                let resource = &block["resource"];
                match resource.get("text").and_then(Value::as_str) {
                    Some(text) => shown(text),
                    None => format!("[resource {}; --json has it]", foreign::line(uri(resource), LINE)),
                }
            }
            "resource_link" => format!("[resource {}]", foreign::line(uri(block), LINE)),
            other => format!("[{}; --json has it]", foreign::line(other, SUMMARY)),
        });
    }
    // A structured result is repeated as text by servers that follow the specification.
    if parts.is_empty()
        && let Some(structured) = result.get("structuredContent")
    {
        parts.push(shown(&serde_json::to_string_pretty(structured).unwrap_or_default()));
    }
    parts.join("\n")
}

fn uri(resource: &Value) -> &str {
    resource.get("uri").and_then(Value::as_str).unwrap_or("without a URI")
}

#[cfg(test)]
mod tests;
