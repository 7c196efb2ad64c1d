#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use lares_config::ToolDiscovery;
use proptest::prelude::*;

use super::*;

/// What a test says there is.
#[derive(Default)]
struct Told {
    files: BTreeMap<PathBuf, Result<Vec<u8>, ReadError>>,
    hangs: Option<PathBuf>,
    listening: Vec<Listening>,
    speaks: BTreeMap<SocketAddr, String>,
    units: Vec<UnitFiles>,
    no_units: Option<String>,
    asked: Mutex<Vec<SocketAddr>>,
    most_at_once: AtomicUsize,
    at_once: AtomicUsize,
    takes: Duration,
}

impl Told {
    fn file(mut self, path: &str, content: &str) -> Self {
        self.files.insert(PathBuf::from(path), Ok(content.as_bytes().to_vec()));
        self
    }

    fn unit(mut self, name: &str, content: &str) -> Self {
        let path = format!("/etc/systemd/system/{name}");
        self.units.push(UnitFiles { name: name.to_owned(), files: vec![PathBuf::from(&path)] });
        self.file(&path, content)
    }

    fn port(mut self, address: &str, path: Option<&str>) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        self.listening.push(Listening { address, socket: self.listening.len() as u64 });
        if let Some(path) = path {
            self.speaks.insert(address, path.to_owned());
        }
        self
    }
}

#[async_trait]
impl Around for Told {
    fn home(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/home/eva"))
    }

    async fn read(&self, path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
        if self.hangs.as_deref() == Some(path) {
            std::future::pending::<()>().await;
        }
        let content = self.files.get(path).cloned().unwrap_or(Err(ReadError::Absent))?;
        if content.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(content) }
    }

    async fn listening(&self) -> Result<Vec<Listening>, String> {
        Ok(self.listening.clone())
    }

    async fn speaks_mcp(&self, address: SocketAddr) -> Option<String> {
        self.asked.lock().unwrap().push(address);
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        self.speaks.get(&address).cloned()
    }

    async fn units(&self) -> Result<Vec<UnitFiles>, String> {
        self.no_units.clone().map_or_else(|| Ok(self.units.clone()), Err)
    }
}

fn config(ports: &[&str]) -> Tools {
    let ports = ports.iter().map(|port| (*port).to_owned()).collect();
    Tools { discovery: ToolDiscovery { ports, ..ToolDiscovery::default() }, ..Tools::default() }
}

fn with_server(name: &str, server: ToolServer, mut config: Tools) -> Tools {
    config.servers.insert(name.to_owned(), server);
    config
}

fn program(command: &[&str]) -> ToolServer {
    ToolServer { command: command.iter().map(|word| (*word).to_owned()).collect(), ..ToolServer::default() }
}

fn names(round: &Round) -> Vec<(&str, Source)> {
    round.found.iter().map(|found| (found.name.as_str(), found.source)).collect()
}

const GIT: &str = r#"{"mcpServers": {"git": {"command": "uvx", "args": ["mcp-server-git"]}}}"#;

#[tokio::test]
async fn every_source_is_looked_at_and_only_the_configuration_is_trusted() {
    let around = Told::default()
        .file("/home/eva/.mcp.json", GIT)
        .unit("weather.service", "[Service]\nX-MCP=http://127.0.0.1:9100/mcp\n")
        .unit("plain.service", "[Service]\nExecStart=/x\n")
        .port("127.0.0.1:8000", Some("/mcp"))
        .port("127.0.0.1:8001", None);
    let mut server = program(&["mcp-time"]);
    (server.trusted, server.tags, server.read) = (true, vec!["clock".to_owned()], vec![PathBuf::from("~/zones")]);
    let round = look(&with_server("time", server, config(&["8000-8100"])), &around).await;
    assert_eq!(round.problems, Vec::<String>::new());
    assert_eq!(
        names(&round),
        [
            ("time", Source::Configuration),
            ("git", Source::ClientFile),
            ("weather", Source::Unit),
            ("port-8000", Source::Port)
        ]
    );
    assert_eq!(round.found.iter().map(|found| found.trusted).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(round.found[0].tags, ["clock"]);
    let Transport::Stdio(time) = &round.found[0].transport else { panic!("time is a program") };
    assert_eq!(time.read, [PathBuf::from("/home/eva/zones")]);
    let origins: Vec<_> = round.found.iter().map(|found| found.origin.as_str()).collect();
    assert_eq!(origins, ["tools.servers.time", "/home/eva/.mcp.json", "weather.service", "port 8000"]);
}

#[tokio::test]
async fn a_server_seen_twice_is_found_once_under_its_better_name() {
    let around = Told::default()
        .file("/home/eva/.mcp.json", GIT)
        .file(
            "/home/eva/.cursor/mcp.json",
            r#"{"mcpServers": {
            "repo": {"command": "uvx", "args": ["mcp-server-git"], "env": {"OTHER": "1"}},
            "w": {"url": "http://localhost:9100/mcp/"}
        }}"#,
        )
        .unit("weather.service", "[Service]\nX-MCP=http://127.0.0.1:9100/mcp\n")
        .port("127.0.0.1:9100", Some("/mcp"));
    let declared = with_server("sources", program(&["uvx", "mcp-server-git"]), config(&["9000-9200"]));
    let round = look(&declared, &around).await;
    assert_eq!(names(&round), [("sources", Source::Configuration), ("w", Source::ClientFile)]);
    assert_eq!(*around.asked.lock().unwrap(), [], "the port of a known server is not asked");
    // Nothing declared: another environment makes another server.
    let round = look(&config(&[]), &around).await;
    assert_eq!(names(&round), [("repo", Source::ClientFile), ("w", Source::ClientFile), ("git", Source::ClientFile)]);
}

#[tokio::test]
async fn names_that_clash_get_numbers_that_stay() {
    let named = |command: &str| format!(r#"{{"mcpServers": {{"Git!": {{"command": "{command}"}}}}}}"#);
    let around = Told::default()
        .file("/home/eva/.mcp.json", &named("one"))
        .file("/home/eva/.claude.json", &named("two"))
        .file("/home/eva/.cursor/mcp.json", &named("three"));
    let mut off = program(&["off"]);
    off.enabled = false;
    let declared = with_server("git", off, config(&[]));
    let round = look(&declared, &around).await;
    let commands: Vec<_> =
        round.found.iter().map(|found| (found.name.as_str(), found.shown()["command"][0].clone())).collect();
    assert_eq!(commands, [("git-2", "two".into()), ("git-3", "three".into()), ("git-4", "one".into())]);
    assert_eq!(look(&declared, &around).await, round);
}

#[tokio::test]
async fn one_bad_source_hides_no_other() {
    let mut around = Told::default()
        .file("/home/eva/.mcp.json", GIT)
        .file("/home/eva/.config/Code/User/mcp.json", "{\"servers\": ")
        .file("/home/eva/.config/goose/config.yaml", &"[".repeat(1 << 20))
        .unit("bad.service", "[Service]\nX-MCP=http://example.org/\n")
        .unit("weather.service", "[Service]\nX-MCP=http://127.0.0.1:9100/mcp\n");
    around.files.insert("/home/eva/.cursor/mcp.json".into(), Ok(vec![0xff, 0xfe]));
    around.files.insert("/home/eva/.claude.json".into(), Ok(vec![b' '; (1 << 20) + 1]));
    around.files.insert("/home/eva/.config/Claude/claude_desktop_config.json".into(), Err(ReadError::NotAFile));
    around.hangs = Some("/home/eva/.config/opencode/opencode.json".into());
    let began = std::time::Instant::now();
    let round = look(&config(&["oops"]), &around).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(names(&round), [("git", Source::ClientFile), ("weather", Source::Unit)]);
    for (part, why) in [
        ("Code/User/mcp.json", "is not JSON"),
        ("goose/config.yaml", "is not YAML"),
        ("cursor/mcp.json", "UTF-8"),
        (".claude.json", "larger than 1048576 bytes"),
        ("claude_desktop_config.json", "not a regular file"),
        ("opencode.json", "does not answer"),
        ("bad.service", "loopback"),
        ("discovery.ports", "oops"),
    ] {
        let named = round.problems.iter().any(|problem| problem.contains(part) && problem.contains(why));
        assert!(named, "{part}: {:#?}", round.problems);
    }
    assert_eq!(round.problems.len(), 8, "{:#?}", round.problems);
}

#[tokio::test]
async fn what_only_a_client_can_fill_in_is_found_but_cannot_be_started() {
    let around = Told::default()
        .file("/home/eva/.mcp.json", r#"{"mcpServers": {"hub": {"command": "hub", "env": {"KEY": "${HUB_KEY}"}}}}"#);
    let round = look(&config(&[]), &around).await;
    assert_eq!(names(&round), [("hub", Source::ClientFile)]);
    assert!(!round.found[0].enabled);
    assert_eq!(round.problems.len(), 1);
    assert!(round.problems[0].contains("needs the variable `HUB_KEY`"), "{:?}", round.problems);
}

#[tokio::test]
async fn a_port_that_said_no_is_left_in_peace_for_ten_rounds() {
    let around = Arc::new(Told::default().port("127.0.0.1:8000", None).port("127.0.0.1:8001", Some("/")));
    let discovery = Discovery::new(Arc::clone(&around) as Arc<dyn Around>);
    let config = config(&["8000-8001"]);
    for round in 1..=10 {
        assert_eq!(names(&discovery.look(&config).await), [("port-8001", Source::Port)], "round {round}");
        assert_eq!(around.asked.lock().unwrap().len(), 2, "round {round}");
    }
    discovery.look(&config).await;
    assert_eq!(around.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn slow_ports_are_asked_sixteen_at_a_time_and_the_rest_in_the_next_round() {
    let mut around = (0..100).fold(Told::default(), |told, n| told.port(&format!("127.0.0.1:{}", 8000 + n), None));
    around.takes = Duration::from_millis(100);
    let (config, asked, known) = (config(&["8000-8999"]).discovery, Asked::default(), BTreeSet::new());
    let mut rounds = 0;
    while around.asked.lock().unwrap().iter().collect::<BTreeSet<_>>().len() < 100 {
        rounds += 1;
        assert!(rounds < 10, "the rounds do not get on");
        around.at_once.store(0, Ordering::SeqCst);
        let began = std::time::Instant::now();
        let (_, problems) = ports::look(&config, &around, &asked, &known, Duration::from_millis(350)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(rounds > 1 || problems.iter().any(|problem| problem.contains("next round")), "{problems:?}");
    }
    assert!(rounds > 1);
    assert_eq!(around.most_at_once.load(Ordering::SeqCst), 16);
}

#[tokio::test]
async fn the_gateway_does_not_find_itself() {
    let around = Told::default().file(
        "/home/eva/.mcp.json",
        r#"{"mcpServers": {
        "lares": {"url": "http://localhost:8091/mcp/night", "headers": {"Authorization": "Bearer k"}},
        "bridge": {"command": "npx", "args": ["mcp-remote", "http://127.0.0.1:8091/mcp"]},
        "other": {"url": "http://localhost:8191/mcp"}
    }}"#,
    );
    let round = look(&config(&[]), &around).await;
    assert_eq!(names(&round), [("other", Source::ClientFile)]);
    assert_eq!(round.problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_drop_in_has_the_last_word_and_instances_share_their_template() {
    let template = PathBuf::from("/etc/systemd/system/lamp@.service");
    let mut around = Told::default()
        .file("/etc/systemd/system/lamp@.service", "[Service]\nX-MCP=http://127.0.0.1:%i/mcp\n")
        .file("/run/systemd/system/off.conf", "[Service]\nX-MCP=\n")
        .file("/run/systemd/system/other.conf", "[Unit]\nX-MCP=http://127.0.0.1:9300/mcp\n");
    for (name, drop_in) in
        [("lamp@9200.service", None), ("lamp@9201.service", Some("off")), ("lamp@9202.service", Some("other"))]
    {
        let drop_in = drop_in.map(|name| PathBuf::from(format!("/run/systemd/system/{name}.conf")));
        let files = [template.clone()].into_iter().chain(drop_in).collect();
        around.units.push(UnitFiles { name: name.to_owned(), files });
    }
    let round = look(&config(&[]), &around).await;
    let urls: Vec<_> = round.found.iter().map(|found| (found.name.as_str(), found.shown()["url"].clone())).collect();
    let expected =
        [("lamp-9200", "http://127.0.0.1:9200/mcp".into()), ("lamp-9202", "http://127.0.0.1:9300/mcp".into())];
    assert_eq!(urls, expected);
    assert_eq!(round.problems, Vec::<String>::new());
}

#[tokio::test]
async fn units_named_by_the_configuration_count_without_systemd() {
    let no_units = Some("systemd does not tell its units: no".to_owned());
    let around = Told { no_units, ..Told::default() };
    let mut config = config(&[]);
    config.discovery.unit_urls.insert("lights.service".to_owned(), "http://127.0.0.1:9000/mcp".to_owned());
    let round = look(&config, &around).await;
    assert_eq!(names(&round), [("lights", Source::Unit)]);
    assert_eq!(round.problems, ["systemd does not tell its units: no"]);
    config.discovery.units = false;
    assert_eq!(look(&config, &around).await.problems, Vec::<String>::new());
}

fn found(transport: Transport) -> Found {
    Found {
        name: "a".parse().unwrap(),
        source: Source::ClientFile,
        origin: "x".to_owned(),
        transport,
        trusted: false,
        enabled: true,
        needs: Vec::new(),
        era: McpEra::Auto,
        tags: Vec::new(),
        call_timeout: Duration::from_secs(60),
        max_concurrent: 8,
    }
}

fn stdio() -> Program {
    Program {
        command: vec!["run".to_owned(), "ab".to_owned(), "c".to_owned()],
        env: BTreeMap::from([("KEY".to_owned(), "hunter2".to_owned())]),
        env_files: BTreeMap::new(),
        directory: None,
        home: None,
        read: Vec::new(),
        write: Vec::new(),
        network: Network::None,
    }
}

fn http() -> Endpoint {
    Endpoint {
        url: "https://eva:geheim@x.example/mcp?token=hunter2".to_owned(),
        headers: BTreeMap::from([("Authorization".to_owned(), "Bearer hunter2".to_owned())]),
        header_files: BTreeMap::new(),
        loopback: false,
    }
}

const KEY: [u8; 32] = [7; 32];

#[test]
fn a_fingerprint_tells_nothing_to_who_does_not_have_the_key() {
    let found = found(Transport::Stdio(stdio()));
    assert_eq!(found.fingerprint(&KEY.into()), found.fingerprint(&KEY.into()));
    assert_ne!(found.fingerprint(&KEY.into()), found.fingerprint(&[8; 32].into()));
}

#[test]
fn a_fingerprint_changes_with_everything_that_would_be_run_or_connected_to() {
    let programs: [fn(&mut Program); 9] = [
        |p| p.command[1].push('c'),
        |p| p.command = vec!["run".into(), "a".into(), "bc".into()],
        |p| p.env.insert("KEY".into(), "hunter3".into()).map_or((), drop),
        |p| p.env.insert("MORE".into(), String::new()).map_or((), drop),
        |p| p.env_files.insert("KEY2".into(), "/run/key".into()).map_or((), drop),
        |p| p.directory = Some("/srv".into()),
        |p| p.read.push("/srv".into()),
        |p| p.write.push("/srv".into()),
        |p| p.network = Network::Host,
    ];
    let mut seen = BTreeSet::from([found(Transport::Stdio(stdio())).fingerprint(&KEY.into())]);
    for change in programs {
        let mut program = stdio();
        change(&mut program);
        assert!(seen.insert(found(Transport::Stdio(program)).fingerprint(&KEY.into())));
    }
    let endpoints: [fn(&mut Endpoint); 4] = [
        |e| e.url.push('x'),
        |e| e.headers.insert("Authorization".into(), "Bearer x".into()).map_or((), drop),
        |e| e.headers.insert("X".into(), String::new()).map_or((), drop),
        |e| e.header_files.insert("X".into(), "/run/key".into()).map_or((), drop),
    ];
    assert!(seen.insert(found(Transport::Http(http())).fingerprint(&KEY.into())));
    for change in endpoints {
        let mut endpoint = http();
        change(&mut endpoint);
        assert!(seen.insert(found(Transport::Http(endpoint)).fingerprint(&KEY.into())));
    }
    let mut renamed = found(Transport::Stdio(stdio()));
    (renamed.name, renamed.origin, renamed.trusted) = ("b".parse().unwrap(), "y".to_owned(), true);
    assert_eq!(renamed.fingerprint(&KEY.into()), found(Transport::Stdio(stdio())).fingerprint(&KEY.into()));
    assert_eq!(renamed.fingerprint(&KEY.into()).len(), 64);
}

#[test]
fn no_secret_is_shown_or_printed() {
    let mut program = stdio();
    program.command.extend(["--api-key".to_owned(), "hunter2".to_owned()]);
    for found in [found(Transport::Stdio(program)), found(Transport::Http(http()))] {
        let shown = found.shown().to_string();
        for text in [shown.clone(), format!("{found:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("geheim"), "{text}");
        }
        assert!(shown.contains("KEY") || shown.contains("Authorization"), "{shown}");
    }
}

#[test]
fn only_an_address_that_the_url_itself_names_may_be_on_loopback() {
    let allowed = |url: &str| endpoint(&url.parse().unwrap(), BTreeMap::new()).loopback;
    for url in ["http://127.0.0.1:1/", "http://localhost/", "http://[::1]/", "http://192.168.1.5/mcp"] {
        assert!(allowed(url), "{url}");
    }
    for url in ["https://x.example/", "http://localhost.example/", "http://127.0.0.1.example/"] {
        assert!(!allowed(url), "{url}");
    }
}

proptest! {
    #[test]
    fn a_free_name_is_a_name_and_free(text in "[a-z0-9._-]{1,40}", count in 1_usize..30) {
        let Some(name) = ServerName::from_any(&text) else { return Ok(()) };
        let mut taken = BTreeSet::new();
        for _ in 0..count {
            let given = free(name.clone(), &taken);
            prop_assert!(given.as_str().parse::<ServerName>().is_ok());
            prop_assert!(taken.insert(given.as_str().to_owned()));
        }
    }
}
