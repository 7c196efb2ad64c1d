//! Which tool servers there are: in the configuration, in the files of MCP clients, on loopback ports, in systemd units.
//!
//! ```text
//! configuration ─┐
//! client files ──┤                      same server: once           sorted by source and origin:
//! units ─────────┼─→ sightings ───────→ (configuration first) ────→ names, stable from round to round ─→ Round
//! ports ─────────┘   (what `Around` sees)
//! ```
//!
//! Looking runs nothing and connects to nothing but the loopback ports that the configuration allows. What is found is
//! a proposal; only what the configuration declares is approved by being there.

mod around;
mod client;
mod fingerprint;
mod lenient;
mod machine;
mod mask;
mod ports;
mod probe;
mod units;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lares_config::{McpEra, Network, ToolServer, Tools};
use serde_json::{Value, json};
use url::Url;

pub use around::{Around, Listening, ReadError, UnitFiles};
pub use fingerprint::FingerprintKey;
pub use machine::{Machine, house_ports};
pub use ports::Asked;

use crate::api::Source;
use crate::definition::{MAX_SERVER_NAME, ServerName};
use crate::port::{Endpoint, Program, Target, Transport};
use fingerprint::Fingerprint;

/// Most servers of one round; what is beyond is named as a problem.
const MAX_FOUND: usize = 1000;
/// Most problems that a round keeps.
const MAX_PROBLEMS: usize = 200;
/// Longest look at client files and at units, which go on at the same time, and longest asking of ports after that. With
/// what is between them a round takes at most 10 s.
const LOOKING: Duration = Duration::from_secs(3);
const ASKING: Duration = Duration::from_secs(6);
/// Calls at the same time of a server that nothing else is known of; the default of the configuration too.
const CONCURRENT: u32 = 8;

/// A tool server that was found.
#[derive(Clone, PartialEq)]
pub struct Found {
    /// Its name, unique in its round.
    pub name: ServerName,
    /// Where it was found.
    pub source: Source,
    /// The file, unit or port it was found in, or the key of the configuration.
    pub origin: String,
    /// How it is reached.
    pub transport: Transport,
    /// Whether its new tools are used without asking.
    pub trusted: bool,
    /// Whether it can be started as it stands: false where something is left open (see `needs`).
    pub enabled: bool,
    /// What its client would fill in and nobody else can, one phrase each.
    pub needs: Vec<String>,
    /// Which revisions of the protocol are spoken.
    pub era: McpEra,
    /// Tags of its tools.
    pub tags: Vec<String>,
    /// Longest call.
    pub call_timeout: Duration,
    /// Most calls at the same time.
    pub max_concurrent: u32,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Environments and headers hold secrets.
        f.debug_struct("Found")
            .field("name", &self.name)
            .field("source", &self.source)
            .field("origin", &self.origin)
            .field("transport", &self.shown())
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl Found {
    /// Stands for all that would be run or connected to, values of the environment and of headers included, as 64
    /// hexadecimal digits of HMAC-SHA256. An approval is for this and nothing else.
    pub fn fingerprint(&self, key: &FingerprintKey) -> String {
        let mut digest = Fingerprint::new(key);
        match &self.transport {
            Transport::Stdio(program) => {
                digest.text("stdio");
                digest.list(program.command.iter().map(String::as_str));
                digest.pairs(program.env.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
                digest.pairs(program.env_files.iter().map(|(name, path)| (name.as_str(), bytes(path))));
                digest.list(program.directory.iter().map(PathBuf::as_path));
                digest.list(program.read.iter().map(PathBuf::as_path));
                digest.list(program.write.iter().map(PathBuf::as_path));
                digest.text(network(program.network));
            }
            Transport::Http(endpoint) => {
                digest.text("http");
                digest.text(&endpoint.url);
                digest.pairs(endpoint.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
                digest.pairs(endpoint.header_files.iter().map(|(name, path)| (name.as_str(), bytes(path))));
            }
        }
        digest.finish()
    }

    /// How it is reached, fit to be shown: `{"kind": "stdio", "command": […], "environment": [names], "network": …}` or
    /// `{"kind": "http", "url": …, "headers": [names]}`, with `directory`, `read` and `write` where they are set.
    /// Values of the environment and of headers are never in it, and what looks like a key elsewhere is masked.
    pub fn shown(&self) -> Value {
        match &self.transport {
            Transport::Stdio(program) => {
                let environment: BTreeSet<&String> = program.env.keys().chain(program.env_files.keys()).collect();
                let mut shown = json!({
                    "kind": "stdio",
                    "command": mask::command(&program.command),
                    "environment": environment,
                    "network": network(program.network),
                });
                if let Some(directory) = &program.directory {
                    shown["directory"] = json!(directory.display().to_string());
                }
                for (key, paths) in [("read", &program.read), ("write", &program.write)] {
                    if !paths.is_empty() {
                        shown[key] = paths.iter().map(|path| path.display().to_string()).collect();
                    }
                }
                shown
            }
            Transport::Http(endpoint) => {
                let headers: BTreeSet<&String> = endpoint.headers.keys().chain(endpoint.header_files.keys()).collect();
                json!({"kind": "http", "url": mask::url(&endpoint.url), "headers": headers})
            }
        }
    }

    /// What the upstreams keep connected once it is approved.
    pub fn target(&self) -> Target {
        Target {
            name: self.name.clone(),
            transport: self.transport.clone(),
            era: self.era,
            call_timeout: self.call_timeout,
            max_concurrent: self.max_concurrent,
        }
    }

    /// Whether another one is the same server, seen from elsewhere.
    fn is(&self, other: &Self) -> bool {
        match (&self.transport, &other.transport) {
            // What the configuration declares stands for its command, whatever environment others give it. Elsewhere the
            // environment makes the server: two databases behind one program are two servers.
            (Transport::Stdio(one), Transport::Stdio(two)) => {
                let declared = [self.source, other.source].contains(&Source::Configuration);
                one.command == two.command && (declared || one.env == two.env)
            }
            (Transport::Http(one), Transport::Http(two)) => place(&one.url) == place(&two.url),
            _ => false,
        }
    }
}

/// What a round of discovery found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Round {
    /// The servers: those of the configuration first, then by source and origin.
    pub found: Vec<Found>,
    /// What could not be looked at or used, one sentence each.
    pub problems: Vec<String>,
}

impl Round {
    fn problem(&mut self, problem: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem.into());
        }
    }
}

/// Something that looks like a tool server, before it has its name.
#[derive(Debug, Clone)]
struct Sighting {
    wanted: String,
    source: Source,
    origin: String,
    transport: Transport,
    needs: Vec<String>,
}

/// One round, with nothing remembered from others. It ends within 10 s.
pub async fn look(config: &Tools, around: &dyn Around) -> Round {
    look_again(config, around, &Asked::default()).await
}

/// Rounds that remember which ports answered what, so that other programs are not bothered with each.
pub struct Discovery {
    around: Arc<dyn Around>,
    asked: Asked,
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl Discovery {
    /// Begins.
    pub fn new(around: Arc<dyn Around>) -> Self {
        Self { around, asked: Asked::default() }
    }

    /// One round. It ends within 10 s. Rounds are meant to follow each other.
    pub async fn look(&self, config: &Tools) -> Round {
        look_again(config, &*self.around, &self.asked).await
    }
}

async fn look_again(config: &Tools, around: &dyn Around, asked: &Asked) -> Round {
    let mut round = Round::default();
    let home = around.home();
    configured(config, home.as_deref(), &mut round);
    let (clients, units) =
        tokio::join!(client::look(&config.discovery, around, LOOKING), units::look(&config.discovery, around, LOOKING));
    let mut sightings = Vec::new();
    for (seen, problems) in [clients, units] {
        sightings.extend(seen);
        problems.into_iter().for_each(|problem| round.problem(problem));
    }
    // Whoever uses Lares has its gateway in the files of their clients.
    sightings.retain(|sighting| !leads_home(&sighting.transport, config.listen.port()));
    let known: BTreeSet<u16> = round
        .found
        .iter()
        .map(|found| &found.transport)
        .chain(sightings.iter().map(|sighting| &sighting.transport))
        .filter_map(loopback_port)
        .collect();
    let (seen, problems) = ports::look(&config.discovery, around, asked, &known, ASKING).await;
    sightings.extend(seen);
    problems.into_iter().for_each(|problem| round.problem(problem));
    settle(config, sightings, &mut round);
    round
}

/// The servers that the configuration declares and does not switch off.
fn configured(config: &Tools, home: Option<&Path>, round: &mut Round) {
    for (name, server) in config.servers.iter().filter(|(_, server)| server.enabled) {
        let name: ServerName = match name.parse() {
            Ok(name) => name,
            Err(error) => {
                round.problem(format!("tools.servers: {error}"));
                continue;
            }
        };
        let Some(transport) = declared(server, home) else {
            round.problem(format!("tools.servers.{name}: neither `command` nor `url` is set"));
            continue;
        };
        round.found.push(Found {
            origin: format!("tools.servers.{name}"),
            name,
            source: Source::Configuration,
            transport,
            trusted: server.trusted,
            enabled: true,
            needs: Vec::new(),
            era: server.protocol,
            tags: server.tags.clone(),
            call_timeout: server.call_timeout.unwrap_or(config.call_timeout),
            max_concurrent: server.max_concurrent,
        });
    }
}

fn declared(server: &ToolServer, home: Option<&Path>) -> Option<Transport> {
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| at_home(path, home)).collect();
    match &server.url {
        Some(url) => Some(Transport::Http(Endpoint {
            url: url.clone(),
            headers: Default::default(),
            header_files: server.header_files.clone(),
            loopback: true,
        })),
        None if server.command.is_empty() => None,
        None => Some(Transport::Stdio(Program {
            command: server.command.clone(),
            env: server.env.clone(),
            env_files: server.env_files.clone(),
            directory: server.directory.clone(),
            home: None,
            read: paths(&server.read),
            write: paths(&server.write),
            network: server.network,
        })),
    }
}

/// Gives what was seen its place: once each, with a name of its own.
fn settle(config: &Tools, mut sightings: Vec<Sighting>, round: &mut Round) {
    sightings.sort_by(|one, two| {
        (rank(one.source), &one.origin, &one.wanted).cmp(&(rank(two.source), &two.origin, &two.wanted))
    });
    // A name that the configuration switched off is taken too: its approvals were for another server.
    let mut taken: BTreeSet<String> = config.servers.keys().cloned().collect();
    let mut beyond = 0;
    for sighting in sightings {
        let mut found = Found {
            name: wanted(&sighting),
            source: sighting.source,
            origin: sighting.origin,
            transport: sighting.transport,
            trusted: false,
            enabled: sighting.needs.is_empty(),
            needs: sighting.needs,
            era: McpEra::Auto,
            tags: Vec::new(),
            call_timeout: config.call_timeout,
            max_concurrent: CONCURRENT,
        };
        if round.found.iter().any(|other| other.is(&found)) {
            continue;
        }
        if round.found.len() >= MAX_FOUND {
            beyond += 1;
            continue;
        }
        found.name = free(found.name, &taken);
        taken.insert(found.name.as_str().to_owned());
        for need in &found.needs {
            round.problem(format!(
                "{}: server `{}` needs {need}, which only its client knows; declare it in tools.servers to use it",
                found.origin, found.name
            ));
        }
        round.found.push(found);
    }
    if beyond > 0 {
        round.problem(format!("{beyond} servers more than the {MAX_FOUND} that are taken were left out"));
    }
}

fn rank(source: Source) -> u8 {
    match source {
        Source::Configuration => 0,
        Source::ClientFile => 1,
        Source::Unit => 2,
        Source::Port => 3,
    }
}

fn wanted(sighting: &Sighting) -> ServerName {
    let named = ServerName::from_any(&sighting.wanted).or_else(|| ServerName::from_any(&sighting.origin));
    named.or_else(|| ServerName::from_any("server")).unwrap_or_else(|| unreachable!("`server` is a name"))
}

/// The name, or the first of `NAME-2`, `NAME-3`, … that is free.
fn free(name: ServerName, taken: &BTreeSet<String>) -> ServerName {
    if !taken.contains(name.as_str()) {
        return name;
    }
    for number in 2_u32.. {
        let suffix = format!("-{number}");
        // Names are ASCII, so any place is the border of a character.
        let kept: String = name.as_str().chars().take(MAX_SERVER_NAME - suffix.len()).collect();
        let tried = format!("{}{suffix}", kept.trim_end_matches(['-', '.', '_']));
        if !taken.contains(&tried)
            && let Ok(free) = tried.parse()
        {
            return free;
        }
    }
    unreachable!("there are more numbers than servers")
}

/// `~` and what is below it, in the home directory.
fn at_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home.to_owned(),
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// An endpoint that somebody else than the configuration named. It is connected to only once a person approved this very
/// URL, so an address that the URL itself names is meant; one that a name resolves to may be a trick.
fn endpoint(url: &Url, headers: std::collections::BTreeMap<String, String>) -> Endpoint {
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(_) | url::Host::Ipv6(_)) => true,
        None => false,
    };
    Endpoint { url: url.to_string(), headers, header_files: Default::default(), loopback }
}

/// Whether a URL leads to this machine by what it says itself.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn loopback_port(transport: &Transport) -> Option<u16> {
    let Transport::Http(endpoint) = transport else { return None };
    let url = Url::parse(&endpoint.url).ok().filter(is_loopback)?;
    url.port_or_known_default()
}

/// Whether this is the gateway itself, or a program that passes on what it is told to the gateway.
fn leads_home(transport: &Transport, own: u16) -> bool {
    let is_own = |url: Url| is_loopback(&url) && url.port_or_known_default() == Some(own);
    match transport {
        Transport::Http(_) => loopback_port(transport) == Some(own),
        Transport::Stdio(program) => program.command.iter().filter_map(|word| Url::parse(word).ok()).any(is_own),
    }
}

/// What two URLs of one server have in common.
fn place(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    if is_loopback(&url) {
        // The same program, however this machine is called.
        let _ = url.set_host(Some("localhost"));
    }
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    url.to_string()
}

fn network(network: Network) -> &'static str {
    match network {
        Network::None => "none",
        Network::Host => "host",
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

/// Foreign text fit for a sentence: bounded, without control characters.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
