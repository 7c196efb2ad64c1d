//! The built-in agent against a scripted server: what it sends, what it makes of each kind of answer.
#![allow(clippy::unwrap_used)]

mod broken;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use broken::{ALL, CHECK, PROMPT, git};
use lares_agents::backend::{Backend, BackendError, CheckReport, Outcome, Run};
use lares_agents::builtin::{Builtin, Settings};
use lares_config::EditFormat;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What the server does with one request.
#[derive(Clone)]
enum Reply {
    Answer(String),
    /// Ends for want of room.
    Truncated(String),
    /// Closes the connection in the middle.
    Broken,
    Status(u16, &'static str),
    Silence,
}

/// A request as it came: its head and its body.
type Requests = Arc<Mutex<Vec<(String, Value)>>>;

struct Server {
    url: String,
    requests: Requests,
}

impl Server {
    async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let requests = Requests::default();
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            for reply in replies {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream, reply, &seen).await;
            }
        });
        Self { url, requests }
    }

    fn bodies(&self) -> Vec<Value> {
        self.requests.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }
}

async fn serve(mut stream: TcpStream, reply: Reply, seen: &Requests) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap();
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse::<usize>().ok())
            .unwrap_or(0);
        if body.len() >= length {
            break (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null));
        }
    };
    seen.lock().unwrap().push((head, body));
    let chunk = |delta: &str, finish: Value| {
        format!("data: {}\n\n", json!({"choices": [{"delta": {"content": delta}, "finish_reason": finish}]}))
    };
    let stream_head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let whole = |text: &str, finish: &str| {
        let pieces: String = text.split_inclusive('\n').map(|line| chunk(line, Value::Null)).collect();
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}});
        format!("{stream_head}{pieces}{}data: {usage}\n\ndata: [DONE]\n\n", chunk("", json!(finish)))
    };
    let answer = match reply {
        Reply::Answer(text) => whole(&text, "stop"),
        Reply::Truncated(text) => whole(&text, "length"),
        Reply::Broken => format!("{stream_head}{}", chunk("def half(", Value::Null)),
        Reply::Status(status, body) => {
            format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\nretry-after: 0\r\n\r\n{body}",
                body.len()
            )
        }
        Reply::Silence => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return;
        }
    };
    stream.write_all(answer.as_bytes()).await.unwrap();
    let _ = stream.shutdown().await;
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.to_owned(),
        key_file: None,
        model: "coder-0.5b".to_owned(),
        edit_format: EditFormat::Auto,
        max_prompt: 12 << 10,
        max_answer_tokens: 2048,
        answer_timeout: Duration::from_secs(30),
        window: Some(8192),
        billions: None,
    }
}

/// A broken repository, and a run on it after its check failed.
fn shapes() -> (tempfile::TempDir, Run) {
    let directory = tempfile::tempdir().unwrap();
    let repository = ALL.iter().find(|repository| repository.name == "wrong operator").unwrap();
    repository.write(directory.path());
    let mut run = Run::new(Uuid::now_v7(), PROMPT, directory.path(), CHECK);
    run.last_check = Some(CheckReport {
        exit: 1,
        output: "FAIL: test_rectangle (test_shapes.ShapesTest)\nAssertionError: 8 != 15\n".to_owned(),
        timed_out: false,
    });
    (directory, run)
}

async fn outcome(replies: Vec<Reply>, run: &Run) -> (Result<Outcome, BackendError>, Server) {
    let server = Server::start(replies).await;
    let agent = Builtin::new(settings(&server.url)).unwrap();
    let outcome = agent.run(run, &CancellationToken::new()).await;
    (outcome, server)
}

fn fixed(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("shapes.py")).unwrap().replace("width + height", "width * height")
}

fn is_untouched(directory: &Path) -> bool {
    git(directory, &["status", "--porcelain"]).is_empty()
}

fn fenced(path: &str, text: &str) -> Reply {
    Reply::Answer(format!("{path}\n```python\n{text}```\n"))
}

#[tokio::test]
async fn an_answer_becomes_a_change_and_a_report_of_it() {
    let (directory, mut run) = shapes();
    run.seed = Some(7);
    let new = fixed(directory.path());
    let key = directory.path().with_extension("key");
    std::fs::write(&key, "lares_secret\n").unwrap();
    let server = Server::start(vec![fenced("shapes.py", &new)]).await;
    let agent = Builtin::new(Settings { key_file: Some(key.clone()), ..settings(&server.url) }).unwrap();
    let outcome = agent.run(&run, &CancellationToken::new()).await.unwrap();
    std::fs::remove_file(key).unwrap();
    assert_eq!(agent.name(), "builtin");
    assert_eq!(outcome.changed, [Path::new("shapes.py")]);
    assert_eq!(outcome.summary, "changed shapes.py (+1 −1)");
    assert_eq!((outcome.usage.prompt_tokens, outcome.usage.completion_tokens), (100, 20));
    assert_eq!((outcome.transcript.len(), outcome.empty), (1, None));
    assert_eq!(git(directory.path(), &["status", "--porcelain"]), " M shapes.py\n");
    assert_eq!(std::fs::read_to_string(directory.path().join("shapes.py")).unwrap(), new);
    let (head, body) = server.requests.lock().unwrap()[0].clone();
    assert!(head.starts_with("POST /v1/chat/completions") && head.contains("Bearer lares_secret"), "{head}");
    assert_eq!(body["model"], "coder-0.5b");
    assert_eq!((&body["temperature"], &body["seed"], &body["stream"]), (&json!(0.0), &json!(7), &json!(true)));
    let prompt = body["messages"][1]["content"].as_str().unwrap();
    assert!(
        prompt.contains("8 != 15") && prompt.contains("def rectangle_area") && prompt.contains("def test_rectangle")
    );
    assert!(prompt.len() < 4096 && !prompt.contains("lares_secret"));
}

#[tokio::test]
async fn an_unusable_answer_is_asked_for_once_more() {
    let (directory, run) = shapes();
    let new = fixed(directory.path());
    let prose = Reply::Answer("The function should multiply.".to_owned());
    let (outcome, server) = outcome(vec![prose, fenced("shapes.py", &new)], &run).await;
    let outcome = outcome.unwrap();
    assert_eq!((outcome.changed.len(), outcome.transcript.len()), (1, 2));
    assert!(outcome.transcript[0].verdict.contains("only prose"));
    let second = server.bodies()[1]["messages"][1]["content"].as_str().unwrap().to_owned();
    assert!(second.contains("could not be used: the answer holds no code block"), "{second}");
    assert!(server.bodies()[1]["temperature"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn answers_that_cannot_be_used_change_nothing_and_say_why() {
    for (reply, why) in [
        (Reply::Answer("I am done.".to_owned()), "only prose"),
        (Reply::Answer(String::new()), "empty"),
        (Reply::Truncated("shapes.py\n```python\nimport math\n\ndef rect".to_owned()), "cut off"),
        (fenced("test_shapes.py", "pass\n"), "must stay"),
        (fenced("../outside.py", "x = 1\n"), "not one inside"),
        (fenced("/etc/evil.py", "x = 1\n"), "not one inside"),
        (fenced(".git/hooks/pre-commit.sh", "touch /evil\n"), "belongs to git"),
        (fenced("shapes.py", "import math\n# ... rest of the code unchanged\n"), "leaves out"),
        (fenced("main.py", "print(1)\n"), "nobody asked"),
    ] {
        let (directory, run) = shapes();
        let (outcome, _) = outcome(vec![reply.clone(), reply], &run).await;
        let outcome = outcome.unwrap();
        let said = outcome.empty.unwrap();
        assert!(said.contains(why), "{said} instead of {why}");
        assert!(outcome.changed.is_empty() && is_untouched(directory.path()), "{why}");
        assert!(!directory.path().join("../outside.py").exists());
    }
}

#[tokio::test]
async fn protected_files_stay_even_when_the_task_names_them() {
    let (directory, mut run) = shapes();
    run.prompt = "Edit shapes.py".to_owned();
    run.protected = vec!["shapes.py".into()];
    let new = fixed(directory.path());
    let (outcome, _) = outcome(vec![fenced("shapes.py", &new), fenced("shapes.py", &new)], &run).await;
    assert!(outcome.unwrap().empty.unwrap().contains("must stay as it is"));
    assert!(is_untouched(directory.path()));
}

#[tokio::test]
async fn a_file_the_tests_miss_is_made() {
    let (directory, mut run) = shapes();
    git(directory.path(), &["rm", "-q", "shapes.py"]);
    git(directory.path(), &["commit", "-q", "-m", "gone"]);
    run.last_check.as_mut().unwrap().output = "ModuleNotFoundError: No module named 'shapes'\n".to_owned();
    let code = "def rectangle_area(width, height):\n    return width * height\n";
    let (outcome, server) = outcome(vec![fenced("shapes.py", code)], &run).await;
    assert_eq!(outcome.unwrap().changed, [Path::new("shapes.py")]);
    assert!(server.bodies()[0]["messages"][1]["content"].as_str().unwrap().contains("Write the file shapes.py"));
}

#[tokio::test]
async fn a_server_that_comes_back_is_waited_for() {
    let (directory, run) = shapes();
    let new = fixed(directory.path());
    let replies =
        vec![Reply::Status(503, "{\"error\":{\"message\":\"loading\"}}"), Reply::Broken, fenced("shapes.py", &new)];
    let (outcome, server) = outcome(replies, &run).await;
    assert_eq!(outcome.unwrap().transcript.len(), 1);
    assert_eq!(server.bodies().len(), 3);
}

#[tokio::test]
async fn a_refusal_is_an_error_in_the_servers_words() {
    let (_directory, run) = shapes();
    let (outcome, _) =
        outcome(vec![Reply::Status(400, "{\"error\":{\"message\":\"the request exceeds the context\"}}")], &run).await;
    let error = outcome.unwrap_err();
    assert!(
        matches!(&error, BackendError::Refused { status: 400, message } if message == "the request exceeds the context")
    );
    assert!(!error.is_transient());
}

#[tokio::test]
async fn cancelling_and_the_end_of_time_stop_at_once() {
    let (directory, mut run) = shapes();
    let server = Server::start(vec![Reply::Silence]).await;
    let agent = Builtin::new(settings(&server.url)).unwrap();
    let shutdown = CancellationToken::new();
    let started = Instant::now();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        shutdown.cancel();
    };
    let (outcome, ()) = tokio::join!(agent.run(&run, &shutdown), cancel);
    assert!(matches!(outcome, Err(BackendError::Cancelled)));
    run.timeout = Duration::from_millis(300);
    let server = Server::start(vec![Reply::Silence]).await;
    let agent = Builtin::new(settings(&server.url)).unwrap();
    let outcome = agent.run(&run, &CancellationToken::new()).await;
    assert!(matches!(outcome, Err(BackendError::TimedOut(_))));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(is_untouched(directory.path()));
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let (_directory, run) = shapes();
    let server = Server::start(Vec::new()).await;
    let agent = Builtin::new(Settings { key_file: Some("/no/agent.key".into()), ..settings(&server.url) }).unwrap();
    let error = agent.run(&run, &CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("/no/agent.key"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let mut nowhere = run.clone();
    nowhere.worktree = empty.path().to_owned();
    let agent = Builtin::new(settings(&server.url)).unwrap();
    let error = agent.run(&nowhere, &CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("not a git repository"), "{error}");
    git(empty.path(), &["init", "-q"]);
    nowhere.prompt = "Do something.".to_owned();
    let error = agent.run(&nowhere, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, BackendError::NothingToEdit { .. }), "{error}");
}
