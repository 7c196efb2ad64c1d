//! The files of MCP clients. They are read and never executed.
//!
//! Every client has a dialect of its own, but an entry says in all of them what it is by its own fields, so one reader
//! takes them all:
//!
//! | file | where its servers are |
//! |---|---|
//! | `.mcp.json`, Cursor's `mcp.json`, Claude desktop | `mcpServers` |
//! | Claude Code's `~/.claude.json` | `mcpServers` and `projects.*.mcpServers` |
//! | VS Code's `mcp.json` and `settings.json` | `servers`, and `mcp.servers` |
//! | opencode | `mcp`, and `mcp.servers` from its version 2 on |
//! | goose's `config.yaml` | `extensions` |

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use lares_config::{Network, ToolDiscovery};
use serde_json::{Map, Value};
use tokio::time::timeout;
use url::Url;

use super::{Around, ReadError, Sighting, at_home, endpoint, lenient, quoted};
use crate::api::Source;
use crate::port::{Endpoint, Program, Transport};

/// Largest file. `~/.claude.json` keeps histories too and grows to some hundred kilobytes.
const LARGEST: usize = 1 << 20;
/// Most servers of one file, and most arguments, variables and headers of one server.
const MOST_SERVERS: usize = 256;
const MOST_PARTS: usize = 256;

/// What the files say, and what is wrong with them.
pub(super) async fn look(
    config: &ToolDiscovery,
    around: &dyn Around,
    patience: Duration,
) -> (Vec<Sighting>, Vec<String>) {
    let home = around.home();
    let files: BTreeSet<PathBuf> = config.client_files.iter().map(|path| at_home(path, home.as_deref())).collect();
    let reading = files.iter().map(|path| async move {
        // A file may lie on something that hangs; the others must not wait for it.
        timeout(patience, around.read(path, LARGEST)).await.unwrap_or(Err(ReadError::Hangs))
    });
    let contents = join_all(reading).await;
    let mut sightings = Vec::new();
    let mut problems = Vec::new();
    for (path, content) in files.iter().zip(contents) {
        match content {
            Ok(content) => read(path, &content, home.as_deref(), &mut sightings, &mut problems),
            Err(ReadError::Absent) => {}
            Err(error) => problems.push(format!("{} {error}", path.display())),
        }
    }
    (sightings, problems)
}

/// The servers of one file.
fn read(path: &Path, content: &[u8], home: Option<&Path>, sightings: &mut Vec<Sighting>, problems: &mut Vec<String>) {
    let shown = path.display().to_string();
    let Ok(text) = std::str::from_utf8(content) else {
        problems.push(format!("{shown} is not UTF-8 text"));
        return;
    };
    let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let document = match if yaml { lenient::yaml(text) } else { lenient::json(text) } {
        Ok(document) => document,
        Err(error) => {
            problems.push(format!("{shown} {error}"));
            return;
        }
    };
    let mut count = 0;
    for section in sections(&document, &shown, problems) {
        for (name, entry) in section.servers {
            if section.disabled.contains(name.as_str()) {
                continue;
            }
            let seen = match entry_of(entry, section.strict, home) {
                Ok(None) => continue,
                Ok(Some(seen)) => seen,
                Err(error) => {
                    problems.push(format!("{}: server `{}` {error}", section.origin, quoted(name)));
                    continue;
                }
            };
            count += 1;
            if count > MOST_SERVERS {
                problems.push(format!("{shown} names more than {MOST_SERVERS} servers; the rest was left out"));
                return;
            }
            let (transport, needs) = seen;
            sightings.push(Sighting {
                wanted: name.clone(),
                source: Source::ClientFile,
                origin: section.origin.clone(),
                transport,
                needs,
            });
        }
    }
}

/// Entries of a file that are servers.
struct Section<'a> {
    origin: String,
    servers: &'a Map<String, Value>,
    disabled: BTreeSet<&'a str>,
    /// Every entry must be a server; else what has neither a command nor a URL is something else.
    strict: bool,
}

fn sections<'a>(document: &'a Value, path: &str, problems: &mut Vec<String>) -> Vec<Section<'a>> {
    let mut sections = Vec::new();
    let Some(document) = document.as_object() else {
        if !document.is_null() {
            problems.push(format!("{path} holds no settings; it should be an object"));
        }
        return sections;
    };
    let mut add = |value: Option<&'a Value>, origin: String, key: &str, disabled: Option<&'a Value>, strict: bool| {
        let servers = match value {
            None | Some(Value::Null) => return,
            Some(Value::Object(servers)) => servers,
            Some(_) => {
                problems.push(format!("{origin}: `{key}` should be an object with the servers by name"));
                return;
            }
        };
        let disabled = disabled.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        sections.push(Section { origin, servers, disabled, strict });
    };
    add(document.get("mcpServers"), path.to_owned(), "mcpServers", document.get("disabledMcpServers"), true);
    for (directory, project) in document.get("projects").and_then(Value::as_object).into_iter().flatten() {
        let origin = format!("{path} (project {})", quoted(directory));
        add(project.get("mcpServers"), origin, "mcpServers", project.get("disabledMcpServers"), true);
    }
    add(document.get("servers"), path.to_owned(), "servers", None, true);
    let mut two_levels = false;
    if let Some(mcp) = document.get("mcp") {
        let nested = mcp.get("servers").filter(|servers| {
            // opencode may have a server that is called `servers`.
            !["type", "command", "url"].iter().any(|key| servers.get(key).is_some_and(|value| !value.is_object()))
        });
        if let Some(servers) = nested {
            two_levels = true;
            add(Some(servers), path.to_owned(), "mcp.servers", None, true);
        }
        // Also beside `servers`: opencode's older servers stay there when somebody adds the first of the newer kind.
        add(Some(mcp), path.to_owned(), "mcp", None, false);
    }
    // `extensions` is a common word: other programs mean other things by it.
    add(document.get("extensions").filter(|value| value.is_object()), path.to_owned(), "extensions", None, false);
    if two_levels && let Some(outer) = sections.iter_mut().find(|section| !section.strict) {
        outer.disabled.insert("servers");
    }
    sections
}

type Seen = (Transport, Vec<String>);

/// One entry; nothing for one that is switched off, or is no server where it need not be one.
fn entry_of(entry: &Value, strict: bool, home: Option<&Path>) -> Result<Option<Seen>, String> {
    let Some(entry) = entry.as_object() else {
        return if strict { Err("should be an object".to_owned()) } else { Ok(None) };
    };
    if entry.get("disabled") == Some(&Value::Bool(true)) || entry.get("enabled") == Some(&Value::Bool(false)) {
        return Ok(None);
    }
    let mut filler = Filler { home, needs: Vec::new() };
    let kind = first(entry, &["type", "transport", "transportType"]).and_then(Value::as_str).unwrap_or_default();
    let command = first(entry, &["command", "cmd"]);
    let url = first(entry, &["url", "uri", "httpUrl", "serverUrl"]);
    let transport = match kind {
        "sse" => {
            return Err(
                "uses the transport `sse`, which MCP gave up in 2025; ask it for a streamable HTTP URL".to_owned()
            );
        }
        // Parts of goose itself and of its windows.
        "builtin" | "platform" | "frontend" | "inline_python" if !strict => return Ok(None),
        "" | "stdio" | "local" | "http" | "remote" | "streamable-http" | "streamable_http" | "streamableHttp" => {
            match (command, url) {
                (Some(_), Some(_)) => return Err("has both a command and a URL".to_owned()),
                (Some(command), None) => Transport::Stdio(program(entry, command, &mut filler)?),
                (None, Some(url)) => {
                    let url = filler.fill(&text("its URL", url)?);
                    let headers = pairs(entry, &["headers", "http_headers"], &mut filler)?;
                    Transport::Http(if filler.needs.is_empty() {
                        let parsed = Url::parse(&url).map_err(|error| format!("has no good URL: {error}"))?;
                        if !matches!(parsed.scheme(), "http" | "https") {
                            return Err(format!("has a URL of the scheme `{}`", quoted(parsed.scheme())));
                        }
                        endpoint(&parsed, headers)
                    } else {
                        Endpoint { url, headers, header_files: BTreeMap::new(), loopback: false }
                    })
                }
                (None, None) if strict => return Err("has neither a command nor a URL".to_owned()),
                (None, None) => return Ok(None),
            }
        }
        _ if strict => return Err(format!("uses the transport `{}`, which is not known", quoted(kind))),
        _ => return Ok(None),
    };
    Ok(Some((transport, filler.needs)))
}

fn program(entry: &Map<String, Value>, command: &Value, filler: &mut Filler<'_>) -> Result<Program, String> {
    let mut words = match command {
        Value::Array(words) => list("its command", words)?,
        other => vec![text("its command", other)?.into_owned()],
    };
    match entry.get("args") {
        None | Some(Value::Null) => {}
        Some(Value::Array(args)) => words.extend(list("`args`", args)?),
        Some(_) => return Err("has `args` that are no list".to_owned()),
    }
    if words.first().is_none_or(String::is_empty) {
        return Err("has an empty command".to_owned());
    }
    if words.len() > MOST_PARTS {
        return Err(format!("has more than {MOST_PARTS} arguments"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err("has a command with a NUL in it".to_owned());
    }
    let command = words.into_iter().map(|word| filler.fill(&word)).collect();
    let env = pairs(entry, &["env", "environment", "envs"], filler)?;
    // goose keeps these in its keyring.
    for name in entry.get("env_keys").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !env.contains_key(name) {
            filler.need(format!("the variable `{}`", quoted(name)));
        }
    }
    if let Some(file) = entry.get("envFile").and_then(Value::as_str) {
        filler.need(format!("the variables of `{}`", quoted(file)));
    }
    let directory = match entry.get("cwd") {
        None | Some(Value::Null) => None,
        Some(cwd) => {
            let directory = at_home(Path::new(&filler.fill(&text("`cwd`", cwd)?)), filler.home);
            if directory.is_relative() {
                filler.need(format!("the directory that `{}` is in", quoted(&directory.to_string_lossy())));
            }
            Some(directory)
        }
    };
    // No network and no files, as for a program that the configuration declares and gives nothing: a client's file cannot
    // say what its program may touch.
    Ok(Program {
        command,
        env,
        env_files: BTreeMap::new(),
        directory,
        home: None,
        read: Vec::new(),
        write: Vec::new(),
        network: Network::None,
    })
}

fn first<'a>(entry: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a Value> {
    keys.iter().find_map(|key| entry.get(*key)).filter(|value| !value.is_null())
}

/// Text, or what people write for it without quotes.
fn text<'a>(what: &str, value: &'a Value) -> Result<Cow<'a, str>, String> {
    match value {
        Value::String(text) => Ok(text.as_str().into()),
        Value::Bool(truth) => Ok(truth.to_string().into()),
        Value::Number(number) => Ok(number.to_string().into()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(format!("has something else than text for {what}")),
    }
}

fn list(what: &str, items: &[Value]) -> Result<Vec<String>, String> {
    items.iter().map(|item| text(what, item).map(Cow::into_owned)).collect()
}

fn pairs(
    entry: &Map<String, Value>,
    keys: &[&str],
    filler: &mut Filler<'_>,
) -> Result<BTreeMap<String, String>, String> {
    let Some(value) = first(entry, keys) else { return Ok(BTreeMap::new()) };
    let key = keys.iter().find(|key| entry.contains_key(**key)).unwrap_or(&"");
    let Some(map) = value.as_object() else { return Err(format!("has `{key}` that is no object")) };
    if map.len() > MOST_PARTS {
        return Err(format!("has more than {MOST_PARTS} entries in `{key}`"));
    }
    let mut pairs = BTreeMap::new();
    // VS Code takes a variable away by null; here none is inherited anyway.
    for (name, value) in map.iter().filter(|(_, value)| !value.is_null()) {
        if name.is_empty() || name.contains(['=', '\0', '\r', '\n']) {
            return Err(format!("has a bad name in `{key}`: `{}`", quoted(name)));
        }
        let value = filler.fill(&text(&format!("`{key}.{}`", quoted(name)), value)?);
        if value.contains(['\0']) {
            return Err(format!("has a NUL in `{key}.{}`", quoted(name)));
        }
        pairs.insert(name.clone(), value);
    }
    Ok(pairs)
}

/// Fills in what clients let people leave open, and notes what only they can fill in.
struct Filler<'a> {
    home: Option<&'a Path>,
    needs: Vec<String>,
}

impl Filler<'_> {
    fn need(&mut self, need: String) {
        if !self.needs.contains(&need) && self.needs.len() < MOST_PARTS {
            self.needs.push(need);
        }
    }

    /// `${VAR:-default}` and `${userHome}` are filled in; `${VAR}`, `${env:VAR}`, `${input:ID}`, `${workspaceFolder}`,
    /// opencode's `{env:VAR}` and `{file:PATH}` are needs. Anything else is meant as it stands.
    fn fill(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let (before, from) = rest.split_at(open);
            let dollar = before.ends_with('$');
            let Some(close) = from.find('}') else { break };
            let (inside, after) = (&from[1..close], &from[close + 1..]);
            let filled = if dollar { self.variable(inside) } else { self.opencode(inside) };
            match filled {
                Some(filled) => {
                    out.push_str(before.strip_suffix('$').filter(|_| dollar).unwrap_or(before));
                    out.push_str(&filled);
                    rest = after;
                }
                None => {
                    out.push_str(before);
                    out.push('{');
                    rest = &from[1..];
                }
            }
        }
        out.push_str(rest);
        out
    }

    fn variable(&mut self, inside: &str) -> Option<String> {
        if let Some((name, default)) = inside.split_once(":-") {
            return is_variable(name).then(|| default.to_owned());
        }
        let (kind, name) = inside.split_once(':').unwrap_or((inside, ""));
        match kind {
            "userHome" => {
                if let Some(home) = self.home {
                    return Some(home.display().to_string());
                }
                self.need("the home directory".to_owned());
            }
            "/" | "pathSeparator" => return Some("/".to_owned()),
            "workspaceFolder" | "workspaceFolderBasename" | "workspaceRoot" => {
                self.need("an open folder (`workspaceFolder`)".to_owned());
            }
            "env" if is_variable(name) => self.need(format!("the variable `{name}`")),
            "input" => self.need(format!("the input `{}`", quoted(name))),
            "command" | "config" => self.need(format!("`{}`", quoted(inside))),
            _ if is_variable(inside) => self.need(format!("the variable `{inside}`")),
            _ => return None,
        }
        Some(format!("${{{inside}}}"))
    }

    fn opencode(&mut self, inside: &str) -> Option<String> {
        let (kind, name) = inside.split_once(':')?;
        match kind {
            "env" if is_variable(name) => self.need(format!("the variable `{name}`")),
            "file" if !name.is_empty() => self.need(format!("the content of `{}`", quoted(name))),
            _ => return None,
        }
        Some(format!("{{{inside}}}"))
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests;
