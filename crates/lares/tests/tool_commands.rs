//! `lares tools …` as a person and a script meet it: what is asked of the daemon, what is printed, how it ends. The
//! daemon is a table of answers.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const EPOCH: &str = "1970-01-01T00:00:00Z";

fn tool(id: &str, state: &str, policy: &str) -> Value {
    let (server, name) = id.split_once("__").unwrap();
    json!({
        "id": id, "server": server, "name": name, "description": "Tells the time", "state": state, "reason": "new",
        "policy": policy, "available": true, "tags": [], "hash": "3fa9c1d2".repeat(8), "findings": [],
        "statistics": {"calls": 0, "failures": 0}, "first_seen": EPOCH, "last_seen": EPOCH,
        "input_schema": {"type": "object", "required": ["zone"], "properties": {
            "zone": {"type": "string"}, "digits": {"type": "integer"},
        }},
    })
}

fn server(name: &str, state: &str) -> Value {
    json!({
        "name": name, "state": state, "trusted": false, "health": "idle", "source": "client-file",
        "origin": "/home/ann/.mcp.json", "transport": {"kind": "stdio", "command": ["notes-mcp", "--all"]},
        "fingerprint": "77aa88bb".repeat(8), "tools": 0, "approved": 0, "quarantined": 0, "connections": 0,
        "first_seen": EPOCH, "last_seen": EPOCH,
    })
}

fn answer(method: &Method, path: &str, query: &str, body: &Value) -> (StatusCode, Value) {
    let details = |mut tool: Value| {
        tool["versions"] = json!([]);
        tool["differences"] = json!([]);
        (StatusCode::OK, tool)
    };
    let result = |text: &str, is_error: bool| {
        let result = json!({"content": [{"type": "text", "text": text}], "isError": is_error});
        (StatusCode::OK, json!({"result": result, "is_error": is_error, "took_ms": 1.0}))
    };
    match (method.as_str(), path) {
        ("GET", "/api/v1/tools") if query.contains("after=") => (StatusCode::OK, json!({"tools": [], "total": 1001})),
        ("GET", "/api/v1/tools") => {
            let tools: Vec<Value> = (0..1000).map(|n| tool(&format!("time__t{n:04}"), "approved", "allow")).collect();
            (StatusCode::OK, json!({"tools": tools, "total": 1001}))
        }
        ("GET", "/api/v1/servers") => (StatusCode::OK, json!({"servers": [server("notes", "proposed")]})),
        ("GET", "/api/v1/servers/notes") => (StatusCode::OK, server("notes", "proposed")),
        ("POST", "/api/v1/servers/notes/approve") => (StatusCode::OK, server("notes", "approved")),
        ("GET", "/api/v1/tools/time__now") => details(tool("time__now", "approved", "allow")),
        ("GET", "/api/v1/tools/time__set") => details(tool("time__set", "quarantined", "ask")),
        ("POST", "/api/v1/tools/time__now/call") => {
            let zone = body["arguments"]["zone"].as_str().unwrap_or_default();
            result(&format!("it is noon in {zone}"), zone == "Nowhere")
        }
        ("POST", "/api/v1/tools/time__set/call") if body["confirmed"] == true => result("set", false),
        ("POST", "/api/v1/tools/time__set/approve") => (StatusCode::OK, tool("time__set", "approved", "ask")),
        _ => (
            StatusCode::NOT_FOUND,
            json!({"status": 404, "detail": "there is no tool `time__nwo`; is `time__now` meant?"}),
        ),
    }
}

type Told = Arc<Mutex<Vec<String>>>;

async fn any(State(told): State<Told>, method: Method, uri: Uri, body: Bytes) -> Response {
    let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let note = format!("{method} {uri} {}", String::from_utf8_lossy(&body));
    told.lock().unwrap_or_else(PoisonError::into_inner).push(note.trim_end().to_owned());
    let (status, answer) = answer(&method, uri.path(), uri.query().unwrap_or_default(), &parsed);
    (status, [(http::header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}

struct Place {
    home: TempDir,
    address: SocketAddr,
    told: Told,
    _runtime: Runtime,
}

impl Place {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let told = Told::default();
        let router = Router::new().fallback(any).with_state(Arc::clone(&told));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("key"), "lares_test\n").unwrap();
        Self { home, address, told, _runtime: runtime }
    }

    fn command(&self, address: SocketAddr, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lares"));
        command.env_clear().env("HOME", self.home.path()).env("LARES_API_KEY_FILE", self.key());
        command.args(["--state-dir", self.home.path().to_str().unwrap(), "--set", &format!("tools.listen={address}")]);
        command.arg("tools").args(arguments).stdin(Stdio::null());
        command
    }

    fn key(&self) -> PathBuf {
        self.home.path().join("key")
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        shown(self.command(self.address, arguments).output().unwrap())
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn shown(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_call_takes_its_types_from_the_schema_and_its_exit_code_from_the_tool() {
    let place = Place::new();
    let (code, out, err) = place.run(&["call", "time__now", "zone=Asia/Tokyo", "digits=4"]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "it is noon in Asia/Tokyo\n", ""));
    assert_eq!(
        place.told(),
        [
            "GET /api/v1/tools/time__now",
            r#"POST /api/v1/tools/time__now/call {"arguments":{"zone":"Asia/Tokyo","digits":4},"confirmed":false}"#
        ]
    );
    let (code, out, err) = place.run(&["call", "time__now", "zone=Nowhere"]);
    assert_eq!((code, out.as_str()), (1, "it is noon in Nowhere\n"));
    assert!(err.contains("time__now says that it failed"), "{err}");

    let mut command = place.command(place.address, &["call", "time__now", "--arguments", "-", "--json"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"zone": "UTC"}"#).unwrap();
    let (code, out, _) = shown(child.wait_with_output().unwrap());
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &out["result"]["content"][0]["text"]), (0, &json!("it is noon in UTC")));
}

#[test]
fn a_call_that_cannot_be_made_says_what_to_do() {
    let place = Place::new();
    for (arguments, said) in [
        (&["call", "time__now"][..], "the tool needs more arguments: zone (string)"),
        (&["call", "time__now", "zone=a", "digits=few"], "`digits` takes integer, not `few`"),
        (&["call", "time__now", "zne=a"], "it has zone, digits"),
        (&["call", "time__nwo"], "is `time__now` meant?"),
        (&["call", "time__set", "zone=a"], "--yes says yes"),
    ] {
        let (code, out, err) = place.run(arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(said), "{err}");
    }
    assert!(place.told().iter().all(|line| line.starts_with("GET ")));
    let (code, out, _) = place.run(&["call", "time__set", "zone=a", "--yes"]);
    assert_eq!((code, out.as_str()), (0, "set\n"));
    let (code, out, _) = place.run(&["call", "time__set", "zone=a", "--dry-run"]);
    assert_eq!((code, out.as_str()), (0, "{\n  \"zone\": \"a\"\n}\n"));

    // Nothing listens on the port of the discard service.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let (code, _, err) = shown(place.command(nobody, &["list"]).output().unwrap());
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("the tools daemon does not answer on 127.0.0.1:9") && err.contains("`lares up`"), "{err}");
}

#[test]
fn an_approval_is_for_what_was_shown_and_never_by_default() {
    let place = Place::new();
    let (code, out, err) = place.run(&["approve", "time__set"]);
    assert_eq!(code, 1);
    assert!(out.contains("quarantined, asks: new") && err.contains("nobody can be asked"), "{out}{err}");
    let (code, out, _) = place.run(&["approve", "time__set", "--dry-run"]);
    assert_eq!(code, 0);
    assert!(out.ends_with("nothing was changed\n"), "{out}");
    let (code, _, err) = place.run(&["approve", "time__set", "--yes", "--hash", "00000000"]);
    assert_eq!(code, 1);
    assert!(err.contains("time__set has changed: it is 3fa9c1d23fa9 now"), "{err}");
    let (code, _, err) = place.run(&["approve", "notes", "--json"]);
    assert_eq!(code, 1);
    assert!(err.contains("add --yes, or --dry-run"), "{err}");
    assert!(place.told().iter().all(|line| line.starts_with("GET ")));

    let (code, out, _) = place.run(&["approve", "time__set", "--yes", "--hash", "3FA9C1D2"]);
    assert_eq!(code, 0);
    assert!(out.ends_with("time__set may be used (3fa9c1d23fa9)\n"), "{out}");
    let (code, out, _) = place.run(&["approve", "notes", "--yes"]);
    assert_eq!(code, 0);
    assert!(out.contains("notes-mcp --all") && out.contains("notes is used from now on"), "{out}");
    let changes: Vec<String> = place.told().into_iter().filter(|line| line.starts_with("POST ")).collect();
    let (hash, fingerprint) = ("3fa9c1d2".repeat(8), "77aa88bb".repeat(8));
    assert_eq!(
        changes,
        [
            format!(r#"POST /api/v1/tools/time__set/approve {{"hash":"{hash}","tools":false}}"#),
            format!(r#"POST /api/v1/servers/notes/approve {{"hash":"{fingerprint}","tools":false}}"#),
        ]
    );
}

#[test]
fn what_is_granted_is_shown_first_and_paths_are_meant_from_here() {
    let place = Place::new();
    let (code, _, err) = place.run(&["approve", "time__set", "--network", "host", "--yes"]);
    assert_eq!(code, 1);
    assert!(err.contains("are for a server; time__set is a tool"), "{err}");
    let (code, _, err) = place.run(&["approve", "notes", "--network", "some"]);
    assert_eq!(code, 2);
    assert!(err.contains("none, host"), "{err}");
    let inbox = place.home.path().canonicalize().unwrap().join("inbox");
    std::fs::create_dir(&inbox).unwrap();
    let mut command = place.command(
        place.address,
        &["approve", "notes", "--network", "host", "--read", "~/notes", "--write", "inbox", "--yes"],
    );
    let (code, out, _) = shown(command.current_dir(place.home.path()).output().unwrap());
    assert_eq!(code, 0);
    assert!(out.contains("TCP, as the machine has it") && out.contains(inbox.to_str().unwrap()), "{out}");
    let changes: Vec<String> = place.told().into_iter().filter(|line| line.starts_with("POST ")).collect();
    let (fingerprint, inbox) = ("77aa88bb".repeat(8), inbox.display());
    let body =
        format!(r#"{{"hash":"{fingerprint}","tools":false,"network":"host","read":["~/notes"],"write":["{inbox}"]}}"#);
    assert_eq!(changes, [format!("POST /api/v1/servers/notes/approve {body}")]);
}

#[test]
fn all_pages_are_listed_and_names_come_one_a_line() {
    let place = Place::new();
    let (code, out, _) = place.run(&["list", "--ids", "--server", "time"]);
    assert_eq!((code, out.lines().count(), out.lines().next()), (0, 1000, Some("time__t0000")));
    assert_eq!(
        place.told(),
        ["GET /api/v1/tools?server=time&limit=1000", "GET /api/v1/tools?server=time&limit=1000&after=time__t0999"]
    );
    let (code, out, _) = place.run(&["servers", "--names"]);
    assert_eq!((code, out.as_str()), (0, "notes\n"));
}

#[test]
fn the_shell_is_offered_names_from_the_daemon_and_nothing_without_it() {
    let place = Place::new();
    let complete = |address: SocketAddr, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lares"));
        command.env_clear().env("HOME", place.home.path()).env("LARES_API_KEY_FILE", place.key());
        command.env("LARES_TOOLS__LISTEN", address.to_string()).env("LARES_COMPLETE", "fish");
        let output = command.args(["--", "lares", "tools"]).args(words).stdin(Stdio::null()).output().unwrap();
        shown(output)
    };
    let (code, out, err) = complete(place.address, &["call", "time__now", "zo"]);
    assert_eq!((code, out.trim_end(), err.as_str()), (0, "zone=\tstring", ""));
    let (_, out, _) = complete(place.address, &["show", "time__t099"]);
    assert_eq!(out.lines().count(), 10, "{out}");
    assert!(out.starts_with("time__t0990\tTells the time"), "{out}");
    let (_, out, _) = complete(place.address, &["approve", "no"]);
    assert_eq!(out.trim_end(), "notes\t/home/ann/.mcp.json");
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    assert_eq!(complete(nobody, &["show", "ti"]), (0, String::new(), String::new()));

    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Command::new(env!("CARGO_BIN_EXE_lares")).args(["completions", shell]).output().unwrap();
        let (code, out, _) = shown(output);
        assert!(code == 0 && out.contains("LARES_COMPLETE"), "{shell}: {out}");
    }
}
