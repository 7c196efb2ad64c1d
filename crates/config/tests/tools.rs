//! The section of the tools daemon: what is wrong is told with its key and its cure.
#![allow(clippy::unwrap_used)]

use lares_config::{Config, GatewayMode, McpEra, Network, Sources};

fn load(text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lares.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources { file: Some(file), ..Sources::default() };
    sources.load().map(|loaded| loaded.config).map_err(|error| error.to_string())
}

#[test]
fn a_server_is_a_program_or_a_url() {
    let config = load(
        r#"
        [tools.servers.time]
        command = ["mcp-server-time"]
        trusted = true
        call_timeout = "5s"
        [tools.servers.docs]
        url = "http://127.0.0.1:9000/mcp"
        protocol = "stateless"
        [tools.toolsets.small]
        tools = ["time__*"]
        mode = "list"
        "#,
    )
    .unwrap();
    let servers = &config.tools.servers;
    assert_eq!(servers["time"].call_timeout.unwrap().as_secs(), 5);
    assert_eq!((servers["time"].network, servers["docs"].protocol), (Network::None, McpEra::Stateless));
    assert_eq!(config.tools.toolsets["small"].mode, Some(GatewayMode::List));
    // What is written out can be read again.
    let text = toml::to_string(&config.tools).unwrap();
    assert_eq!(toml::from_str::<lares_config::Tools>(&text).unwrap(), config.tools);
}

#[test]
fn what_is_wrong_is_told_with_its_key() {
    for (text, told) in [
        ("[tools.servers.a]", "tools.servers.a.command: is missing"),
        ("[tools.servers.a]\nurl = \"http://x\"\ncommand = [\"y\"]", "tools.servers.a.url: set only one of"),
        ("[tools.servers.a]\nurl = \"ftp://x\"", "tools.servers.a.url: `ftp://x` must be"),
        ("[tools.servers.a__b]\ncommand = [\"y\"]", "tools.servers.a__b: a tool server's name has"),
        ("[tools.servers.A]\ncommand = [\"y\"]", "tools.servers.A: a tool server's name has"),
        ("[tools.servers.a]\nurl = \"http://x\"\nread = [\"/\"]", "tools.servers.a.read: is for programs"),
        ("[tools.discovery]\nports = [\"9-1\"]", "tools.discovery.ports[0]: `9-1` is neither a port"),
        ("[[tools.policy]]\ntools = []\naction = \"deny\"", "tools.policy[0].tools: names no tool"),
        ("[tools]\nlisten = \"0.0.0.0:8091\"", "tools.listen"),
        (
            "[tools.toolsets.a]\nkeys = [\"k\"]\n[tools.toolsets.b]\nkeys = [\"k\"]",
            "tools.toolsets.b.keys: `k` is in toolset `a` too",
        ),
        ("[tools.search]\nmodel = \"\"", "tools.search.model: names no model"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(told), "{text}\n→ {error}");
    }
}
