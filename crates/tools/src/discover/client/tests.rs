#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn seen(file: &str, content: &str) -> (Vec<Sighting>, Vec<String>) {
    let (mut sightings, mut problems) = (Vec::new(), Vec::new());
    read(Path::new(file), content.as_bytes(), Some(Path::new("/home/eva")), &mut sightings, &mut problems);
    (sightings, problems)
}

/// Name and command line or URL of each server, for a file without problems.
#[track_caller]
fn good(file: &str, content: &str) -> Vec<(String, String)> {
    let (sightings, problems) = seen(file, content);
    assert_eq!(problems, Vec::<String>::new());
    let reached = |transport: &Transport| match transport {
        Transport::Stdio(program) => program.command.join(" "),
        Transport::Http(endpoint) => endpoint.url.clone(),
    };
    sightings.iter().map(|sighting| (sighting.wanted.clone(), reached(&sighting.transport))).collect()
}

fn pair(name: &str, reached: &str) -> (String, String) {
    (name.to_owned(), reached.to_owned())
}

fn program(sightings: &[Sighting], name: &str) -> Program {
    let found = sightings.iter().find(|sighting| sighting.wanted == name).unwrap();
    let Transport::Stdio(program) = &found.transport else { panic!("{name} is no program") };
    program.clone()
}

#[test]
fn a_projects_mcp_json_is_read() {
    let content = r#"{"mcpServers": {
        "git": {"command": "uvx", "args": ["mcp-server-git"], "env": {"DEPTH": 3, "DEBUG": true, "GONE": null}},
        "docs": {"type": "http", "url": "https://docs.example/mcp", "headers": {"X-Team": "home"}},
        "off": {"command": "never", "disabled": true}
    }}"#;
    assert_eq!(
        good(".mcp.json", content),
        [pair("git", "uvx mcp-server-git"), pair("docs", "https://docs.example/mcp")]
    );
    let (sightings, _) = seen(".mcp.json", content);
    let git = program(&sightings, "git");
    assert_eq!(git.env, BTreeMap::from([("DEPTH".into(), "3".into()), ("DEBUG".into(), "true".into())]));
    assert_eq!((git.network, git.read, git.write), (Network::None, vec![], vec![]));
    let Transport::Http(docs) = &sightings[1].transport else { panic!("docs is a URL") };
    assert_eq!(docs.headers["X-Team"], "home");
    assert!(!docs.loopback);
}

#[test]
fn cursor_and_claude_desktop_leave_the_type_out() {
    let content = r#"{"mcpServers": {
        "files": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-filesystem", "${userHome}/notes"]},
        "local": {"url": "http://localhost:3000/mcp"}
    }, "globalShortcut": "Ctrl+Space"}"#;
    assert_eq!(
        good("mcp.json", content),
        [
            pair("files", "npx -y @modelcontextprotocol/server-filesystem /home/eva/notes"),
            pair("local", "http://localhost:3000/mcp"),
        ]
    );
}

#[test]
fn claude_codes_own_file_has_servers_of_the_user_and_of_projects() {
    let content = r#"{
        "numStartups": 7,
        "mcpServers": {"memory": {"type": "stdio", "command": "npx", "args": ["server-memory"], "env": {}}},
        "projects": {
            "/home/eva/app": {
                "allowedTools": [],
                "mcpServers": {"db": {"type": "stdio", "command": "db-server"}, "old": {"command": "old"}},
                "disabledMcpServers": ["old"]
            },
            "/home/eva/other": {"mcpServers": {}}
        }
    }"#;
    assert_eq!(good(".claude.json", content), [pair("memory", "npx server-memory"), pair("db", "db-server")]);
    let (sightings, _) = seen("/home/eva/.claude.json", content);
    assert_eq!(sightings[1].origin, "/home/eva/.claude.json (project /home/eva/app)");
}

#[test]
fn vs_code_has_comments_inputs_and_settings() {
    let content = r#"{
        // asked for once
        "inputs": [{"type": "promptString", "id": "key", "password": true}],
        "servers": {
            "time": {"type": "stdio", "command": "uvx", "args": ["mcp-server-time"], "cwd": "/srv"},
            "hub": {"type": "http", "url": "https://hub.example/mcp", "headers": {"Authorization": "Bearer ${input:key}"}},
            "here": {"command": "node", "args": ["${workspaceFolder}/server.js"], "envFile": "${workspaceFolder}/.env"},
        },
    }"#;
    let (sightings, problems) = seen("mcp.json", content);
    assert_eq!(problems, Vec::<String>::new());
    let needs: Vec<_> = sightings.iter().map(|sighting| (sighting.wanted.as_str(), &sighting.needs)).collect();
    assert_eq!(
        json!(needs),
        json!([
            ["time", []],
            ["hub", ["the input `key`"]],
            ["here", ["an open folder (`workspaceFolder`)", "the variables of `${workspaceFolder}/.env`"]],
        ])
    );
    assert_eq!(program(&sightings, "time").directory.as_deref(), Some(Path::new("/srv")));
    let settings = r#"{"editor.fontSize": 12, "mcp": {"inputs": [], "servers": {"time": {"command": "mcp-time"}}}}"#;
    assert_eq!(good("settings.json", settings), [pair("time", "mcp-time")]);
}

#[test]
fn opencode_writes_commands_as_lists() {
    let content = r#"{"$schema": "https://opencode.ai/config.json", "mcp": {
        "git": {"type": "local", "command": ["uvx", "mcp-server-git"], "environment": {"A": "b"}, "enabled": true},
        "docs": {"type": "remote", "url": "https://docs.example/mcp", "headers": {"K": "{env:DOCS_KEY}"}},
        "off": {"type": "local", "command": ["x"], "enabled": false},
        "theirs": {"enabled": true}
    }}"#;
    let (sightings, problems) = seen("opencode.json", content);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(sightings.len(), 2);
    assert_eq!(program(&sightings, "git").env["A"], "b");
    assert_eq!(sightings[1].needs, ["the variable `DOCS_KEY`"]);
    let newer = r#"{"mcp": {"servers": {"git": {"type": "local", "command": ["uvx", "mcp-server-git"]}}}}"#;
    assert_eq!(good("opencode.json", newer), [pair("git", "uvx mcp-server-git")]);
    // As people have it who went on from an older file; and one bad entry costs no other.
    let both = r#"{"mcp": {
        "old": {"type": "local", "command": ["old"], "enabled": true},
        "timeout": 5000,
        "servers": {
            "new": {"type": "local", "command": ["new"], "cwd": "/srv", "environment": {"A": "b"}},
            "off": {"type": "local", "command": ["off"], "disabled": true},
            "command": {"type": "local", "command": ["odd"]},
            "bad": {"type": "local", "command": [{}]}
        }
    }}"#;
    let (sightings, problems) = seen("opencode.json", both);
    let mut names: Vec<_> = sightings.iter().map(|sighting| sighting.wanted.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["command", "new", "old"]);
    assert_eq!(program(&sightings, "new").directory.as_deref(), Some(Path::new("/srv")));
    assert!(problems.len() == 1 && problems[0].contains("server `bad`"), "{problems:?}");
    let named_so = r#"{"mcp": {"servers": {"type": "local", "command": ["uvx", "x"]}}}"#;
    assert_eq!(good("opencode.json", named_so), [pair("servers", "uvx x")]);
}

#[test]
fn goose_writes_yaml_and_has_extensions_that_are_no_servers() {
    let content = "GOOSE_PROVIDER: openai
extensions:
  developer:
    bundled: true
    enabled: true
    name: developer
    timeout: 300
    type: builtin
  git:
    type: stdio
    enabled: true
    cmd: uvx
    args:
    - mcp-server-git
    - --repository
    - /srv/repo
    envs:
      LEVEL: 007
    env_keys:
    - GIT_TOKEN
  docs:
    type: streamable_http
    enabled: true
    uri: https://docs.example/mcp
    headers: {}
  old:
    type: sse
    enabled: true
    uri: https://old.example/sse
  off:
    type: stdio
    enabled: false
    cmd: x
";
    let (sightings, problems) = seen("config.yaml", content);
    assert_eq!(sightings.iter().map(|sighting| sighting.wanted.as_str()).collect::<Vec<_>>(), ["git", "docs"]);
    let git = program(&sightings, "git");
    assert_eq!(git.command, ["uvx", "mcp-server-git", "--repository", "/srv/repo"]);
    assert_eq!(git.env["LEVEL"], "007");
    assert_eq!(sightings[0].needs, ["the variable `GIT_TOKEN`"]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].contains("`old` uses the transport `sse`"), "{problems:?}");
}

#[test]
fn what_a_client_would_fill_in_is_filled_in_or_named() {
    let fill = |text: &str| {
        let mut filler = Filler { home: Some(Path::new("/home/eva")), needs: Vec::new() };
        let filled = filler.fill(text);
        (filled, filler.needs)
    };
    for (text, filled) in [
        ("plain", "plain"),
        ("${HOST:-localhost}:${PORT:-80}", "localhost:80"),
        ("${userHome}/x", "/home/eva/x"),
        ("{\"a\": {\"b\": 1}}", "{\"a\": {\"b\": 1}}"),
        ("echo ${x%y} $HOME {} ${", "echo ${x%y} $HOME {} ${"),
        ("{{x}}", "{{x}}"),
        ("é{env:}ü", "é{env:}ü"),
    ] {
        assert_eq!(fill(text), (filled.to_owned(), Vec::new()));
    }
    for (text, need) in [
        ("${TOKEN}", "the variable `TOKEN`"),
        ("x${env:TOKEN}y", "the variable `TOKEN`"),
        ("{env:TOKEN}", "the variable `TOKEN`"),
        ("{file:~/key}", "the content of `~/key`"),
        ("${command:x.y}", "`command:x.y`"),
    ] {
        assert_eq!(fill(text), (text.to_owned(), vec![need.to_owned()]));
    }
}

#[test]
fn a_wrong_entry_is_named_and_the_others_are_found() {
    let content = r#"{"mcpServers": {
        "list": [], "none": {}, "both": {"command": "x", "url": "http://x"}, "args": {"command": "x", "args": "y"},
        "deep": {"command": {"a": 1}}, "env": {"command": "x", "env": []}, "value": {"command": "x", "env": {"A": {}}},
        "name": {"command": "x", "env": {"A=B": "c"}}, "empty": {"command": ""}, "ftp": {"url": "ftp://x/y"},
        "url": {"url": "::"}, "kind": {"type": "ws", "url": "ws://x"}, "nul": {"command": "a\u0000b"},
        "\u001b[31mred": {}, "good": {"command": "fine"}
    }, "servers": 3}"#;
    let (sightings, problems) = seen("x.json", content);
    assert_eq!(sightings.len(), 1);
    assert_eq!(sightings[0].wanted, "good");
    assert_eq!(problems.len(), 15, "{problems:#?}");
    for name in ["list", "none", "both", "args", "deep", "env", "value", "name", "empty", "ftp", "url", "kind", "nul"] {
        assert!(problems.iter().any(|problem| problem.contains(&format!("server `{name}`"))), "{name}: {problems:#?}");
    }
    assert!(problems.iter().all(|problem| !problem.contains('\u{1b}')), "{problems:#?}");
}

#[test]
fn other_programs_extensions_are_left_alone() {
    assert_eq!(good("x.json", r#"{"extensions": {"a": {"type": "theme"}, "b": 1}}"#), []);
    assert_eq!(good("x.json", r#"{"extensions": ["a"]}"#), []);
    assert_eq!(good("x.json", ""), []);
    assert_eq!(good("x.yaml", "# nothing yet\n"), []);
}

#[test]
fn there_is_an_end_to_servers_and_arguments() {
    let servers: Map<String, Value> = (0..300).map(|n| (format!("s{n}"), json!({"command": "x"}))).collect();
    let (sightings, problems) = seen("x.json", &json!({"mcpServers": servers}).to_string());
    assert_eq!((sightings.len(), problems.len()), (256, 1));
    let (sightings, problems) =
        seen("x.json", &json!({"mcpServers": {"a": {"command": "x", "args": vec!["y"; 300]}}}).to_string());
    assert_eq!((sightings.len(), problems.len()), (0, 1));
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(text in "[a-z{}$:\\-\"\\[\\], ]{0,80}") {
        seen("x.json", &text);
        seen("x.yaml", &text);
        let entry = json!({"mcpServers": {"a": {"command": text, "args": [text], "env": {"A": text}}, "b": {"url": text}}});
        seen("x.json", &entry.to_string());
    }
}
