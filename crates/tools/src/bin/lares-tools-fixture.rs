//! A tool server that behaves in every way there is, and the launcher of `lares sandbox`, for tests.
//!
//! Arguments are words that each change its behaviour; the tools are the functions of [`Fixture::call`].

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// Long enough that no test waits for it.
const FOREVER: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.peek().is_some_and(|first| first == "sandbox") {
        return lares_sandbox::launcher_main(args.skip(1));
    }
    let words: Vec<String> = args.map(|word| word.to_string_lossy().into_owned()).collect();
    let fixture = Arc::new(Fixture {
        slow: words.iter().find_map(|word| word.strip_prefix("slow=")?.parse().ok()).unwrap_or(0),
        words,
        changed: AtomicBool::new(false),
        next: AtomicI64::new(0),
        asked: Mutex::default(),
        cancelled: Mutex::default(),
        listening: Mutex::default(),
    });
    fixture.serve();
    ExitCode::SUCCESS
}

struct Fixture {
    words: Vec<String>,
    /// Milliseconds until it begins to read.
    slow: u64,
    changed: AtomicBool,
    next: AtomicI64,
    /// Requests of ours that wait for the client.
    asked: Mutex<HashMap<String, Sender<Value>>>,
    cancelled: Mutex<Vec<Value>>,
    /// The subscription that is open.
    listening: Mutex<Option<Value>>,
}

impl Fixture {
    fn is(&self, word: &str) -> bool {
        self.words.iter().any(|other| other == word)
    }

    fn serve(self: &Arc<Self>) {
        if self.is("dies-at-once") {
            eprintln!("there is no configuration");
            std::process::exit(3);
        }
        std::thread::sleep(Duration::from_millis(self.slow));
        if self.is("garbage") {
            print("Welcome to my server!\n{\"jsonrpc\": \"2.0\", \"id\": \n\n[1, 2]");
        }
        if self.is("garbage-only") {
            loop {
                print("this is not the protocol");
            }
        }
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
            let fixture = self.clone();
            if message["method"] == "tools/call" && message["params"]["name"] == "deaf" {
                std::thread::sleep(FOREVER);
            }
            std::thread::spawn(move || fixture.message(&message));
        }
        if self.is("stays") {
            std::thread::sleep(FOREVER);
        }
    }

    fn message(&self, message: &Value) {
        let id = &message["id"];
        let Some(method) = message["method"].as_str() else {
            let waiting = self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&id.to_string());
            if let Some(waiting) = waiting {
                let _ = waiting.send(message.clone());
            }
            return;
        };
        match method {
            "notifications/cancelled" => {
                self.cancelled
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(message["params"]["requestId"].clone());
                return;
            }
            _ if id.is_null() => return,
            _ => {}
        }
        let params = &message["params"];
        let answer = match method {
            "server/discover" => match () {
                () if self.is("dies") => std::process::exit(4),
                () if self.is("mute") => return,
                () if self.is("sessions") => Err("no such method"),
                () => Ok(json!({
                    "resultType": "complete", "supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private",
                    "capabilities": capabilities(), "instructions": "Ask nicely.",
                    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "fixture", "version": "2"}},
                })),
            },
            "initialize" if !self.is("stateless") => Ok(json!({
                "protocolVersion": "2025-11-25", "capabilities": capabilities(), "instructions": "Ask nicely.",
                "serverInfo": {"name": "fixture", "version": "1"},
            })),
            "ping" | "resources/subscribe" | "resources/unsubscribe" => Ok(json!({})),
            "subscriptions/listen" => {
                let meta = json!({"io.modelcontextprotocol/subscriptionId": id});
                let filter = params["notifications"].clone();
                *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.clone());
                send(&json!({
                    "jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
                    "params": {"_meta": meta, "notifications": filter},
                }));
                return;
            }
            "tools/list" => self.list(params),
            "resources/list" => Ok(json!({"resources": [{"uri": "file:///a", "name": "a"}], "ttlMs": 90000})),
            "resources/read" => Ok(json!({"contents": [{"uri": params["uri"], "text": "hello"}]})),
            "prompts/list" => Ok(json!({"prompts": [{"name": "greet"}]})),
            "prompts/get" => Ok(json!({"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}]})),
            "completion/complete" => Ok(json!({"completion": {"values": ["one", "two"]}})),
            "tools/call" => match self.call(id, params) {
                Some(result) => Ok(result),
                None => return,
            },
            _ => Err("no such method"),
        };
        match answer {
            Ok(result) => send(&json!({"jsonrpc": "2.0", "id": id, "result": result})),
            Err(why) => {
                send(&json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": why}}));
            }
        }
    }

    fn list(&self, params: &Value) -> Result<Value, &'static str> {
        if self.is("hang-list") {
            std::thread::sleep(FOREVER);
        }
        let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
        if self.is("endless-list") {
            let page: u64 = params["cursor"].as_str().and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
            return Ok(json!({"tools": [tool(&format!("t{page}"))], "nextCursor": (page + 1).to_string()}));
        }
        if self.is("circular-list") {
            return Ok(json!({"tools": [tool("again")], "nextCursor": "same"}));
        }
        if self.is("broken-list") {
            return Ok(json!({"tools": [tool("fine"), {"name": 7}, "nonsense"]}));
        }
        let mut tools: Vec<Value> =
            ["echo", "hang", "die", "huge", "change", "ask", "work", "env", "cancelled", "deaf", "children", "read"]
                .map(tool)
                .into();
        if self.is("reaches") {
            tools.extend(["connect", "write"].map(tool));
        }
        if self.changed.load(Ordering::Acquire) {
            tools.push(tool("added"));
        }
        Ok(json!({"tools": tools, "ttlMs": 60000}))
    }

    fn call(&self, id: &Value, params: &Value) -> Option<Value> {
        let arguments = &params["arguments"];
        let text = |text: &str| Some(json!({"content": [{"type": "text", "text": text}]}));
        match params["name"].as_str().unwrap_or_default() {
            "echo" => {
                std::thread::sleep(Duration::from_millis(arguments["after"].as_u64().unwrap_or(0)));
                text(arguments["text"].as_str().unwrap_or_default())
            }
            "hang" => None,
            "die" => {
                eprintln!("the wheels came off, {}", std::env::var("SECRET").unwrap_or_default());
                std::process::exit(9)
            }
            // The id at the end, as one of the usual libraries writes it.
            "huge" => {
                let bytes = arguments["bytes"].as_u64().unwrap_or(0);
                let filler = "x".repeat(usize::try_from(bytes).unwrap_or(0));
                let (before, after) = if arguments["first"] == true {
                    (format!("\"id\":{id},"), String::new())
                } else {
                    (String::new(), format!(",\"id\":{id}"))
                };
                print(&format!(
                    "{{{before}\"result\":{{\"content\":[{{\"type\":\"text\",\"text\":\"{filler}\"}}]}},\"jsonrpc\":\"2.0\"{after}}}"
                ));
                None
            }
            "change" => {
                self.changed.store(true, Ordering::Release);
                let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let params = match listening {
                    Some(id) => json!({"_meta": {"io.modelcontextprotocol/subscriptionId": id}}),
                    None => json!({}),
                };
                for _ in 0..arguments["times"].as_u64().unwrap_or(1) {
                    send(&json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": params}));
                }
                text("changed")
            }
            "ask" => {
                let answer = self.ask(&json!({
                    "method": "elicitation/create",
                    "params": {"message": "Really?", "requestedSchema": {"type": "object", "properties": {}}},
                }));
                let answer = answer.recv_timeout(FOREVER).unwrap_or_default();
                std::thread::sleep(Duration::from_millis(arguments["then"].as_u64().unwrap_or(0)));
                text(&answer.to_string())
            }
            "work" => {
                let token = &params["_meta"]["progressToken"];
                for step in 1..=20 {
                    send(&json!({
                        "jsonrpc": "2.0", "method": "notifications/progress",
                        "params": {"progressToken": token, "progress": step, "total": 20},
                    }));
                }
                send(&json!({
                    "jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "working"},
                }));
                text(&params["_meta"].to_string())
            }
            "env" => {
                let all: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
                text(&all.join("\n"))
            }
            "cancelled" => {
                text(&Value::from(self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).clone()).to_string())
            }
            "children" => {
                let child = std::process::Command::new("sleep").arg(arguments["for"].to_string()).spawn();
                text(&child.map_or(0, |child| child.id()).to_string())
            }
            "read" => text(
                &std::fs::read_to_string(arguments["path"].as_str().unwrap_or_default())
                    .unwrap_or_else(|error| format!("refused: {error}")),
            ),
            "connect" => {
                let port = u16::try_from(arguments["port"].as_u64().unwrap_or(0)).unwrap_or(0);
                match std::net::TcpStream::connect(("127.0.0.1", port)) {
                    Ok(_) => text("connected"),
                    Err(error) => text(&format!("refused: {error}")),
                }
            }
            "write" => {
                let file = std::env::home_dir().unwrap_or_default().join("fetched");
                match std::fs::write(&file, arguments["text"].as_str().unwrap_or_default()) {
                    Ok(()) => text(&file.to_string_lossy()),
                    Err(error) => text(&format!("refused: {error}")),
                }
            }
            _ => Some(json!({"content": [], "isError": true})),
        }
    }

    fn ask(&self, request: &Value) -> Receiver<Value> {
        let id = json!(format!("q{}", self.next.fetch_add(1, Ordering::AcqRel)));
        let (answer, answered) = channel();
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_string(), answer);
        send(&json!({"jsonrpc": "2.0", "id": id, "method": request["method"], "params": request["params"]}));
        answered
    }
}

fn capabilities() -> Value {
    json!({
        "tools": {"listChanged": true}, "resources": {"subscribe": true}, "prompts": {}, "completions": {}, "logging": {},
    })
}

fn send(message: &Value) {
    print(&message.to_string());
}

/// One write under the lock of standard output; a client that is gone ends this process.
fn print(line: &str) {
    let mut out = io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
