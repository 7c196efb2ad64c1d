//! Against a real llama-server, when the environment names one: `LARES_TEST_LLAMA_SERVER` and `LARES_TEST_MODEL`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use lares_config::Model;
use lares_coordinator::request::Endpoint;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard};

use crate::rig::{Rig, bytes_of, config, json_of, with_local};
use crate::stub::Stub;

static TURN: Mutex<()> = Mutex::const_new(());

/// Waited for by each test that starts a llama-server: two cores do not bear several at once.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A llama-server with a key on a free port; killed when dropped.
pub struct Llama {
    pub port: u16,
    pub dir: tempfile::TempDir,
    _child: Child,
}

impl Llama {
    pub async fn start(name: &str, more: &[&str]) -> Option<Self> {
        let (Ok(server), Ok(model)) = (std::env::var("LARES_TEST_LLAMA_SERVER"), std::env::var("LARES_TEST_MODEL"))
        else {
            eprintln!("SKIP {name}: LARES_TEST_LLAMA_SERVER and LARES_TEST_MODEL are not set");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("keys/llama.key");
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        std::fs::write(&key_file, "test-key\n").unwrap();
        let port = Stub::dead_port();
        let child = Command::new(server)
            .args(["--model", &model, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--ctx-size", "1024", "--parallel", "1", "--threads", "2", "--api-key-file"])
            .arg(key_file)
            .args(more)
            // As the product starts it: threads that spin starve the tests beside them.
            .env("OMP_WAIT_POLICY", "passive")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Some(Self { port, dir, _child: child })
    }

    /// The door is opened at once: it has to bridge the loading of the model.
    async fn rig(&self, model: Model) -> Rig {
        let mut config = config();
        config.state_dir = self.dir.path().to_path_buf();
        with_local(&mut config, "tiny", self.port, Model { aliases: vec!["alias".into()], ..model });
        Rig::new(&config).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_llama_server_chats_streams_and_stops_when_the_client_leaves() {
    let _turn = turn().await;
    let Some(llama) = Llama::start("a_real_llama_server_chats", &[]).await else { return };
    let rig = llama.rig(Model::default()).await;
    let ask = |stream: bool, max_tokens: u32| {
        json!({"model": "alias", "stream": stream, "max_tokens": max_tokens, "temperature": 0,
               "messages": [{"role": "user", "content": "Say hello."}]})
        .to_string()
    };
    let response = rig.ask(Endpoint::ChatCompletions, ask(false, 16)).await;
    assert_eq!(response.status(), 200);
    let answer = json_of(response).await;
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{answer}");

    let asked = Instant::now();
    let response = rig.ask(Endpoint::ChatCompletions, ask(true, 16)).await;
    let text = String::from_utf8(bytes_of(response).await.to_vec()).unwrap();
    let short = asked.elapsed();
    assert!(text.starts_with("data: ") && text.trim_end().ends_with("data: [DONE]"), "{text}");

    let schema =
        json!({"type": "object", "properties": {"word": {"type": "string", "maxLength": 16}}, "required": ["word"]});
    let constrained = json!({"model": "tiny", "max_tokens": 64, "temperature": 0, "messages": [{"role": "user", "content": "One word."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}});
    let answer = json_of(rig.ask(Endpoint::ChatCompletions, constrained.to_string()).await).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(content).unwrap()["word"].is_string(), "{content}");

    let too_long = json!({"model": "tiny", "prompt": "word ".repeat(2000)}).to_string();
    let response = rig.ask(Endpoint::Completions, too_long).await;
    assert_eq!(response.status(), 400);

    for event in &rig.events()[..3] {
        assert_eq!(event.outcome, "ok", "{event:?}");
        assert!(
            event.prompt_tokens.is_some_and(|n| n > 5) && event.completion_tokens.is_some_and(|n| n > 0),
            "{event:?}"
        );
    }

    // The only slot is busy with a long answer; when its client leaves, the next request does not have to wait for it.
    // How long that answer would take is told by the short one: the machine may be busy.
    let bound = Duration::from_secs(10).max(short * (900 / 16) / 2);
    let long = rig.ask(Endpoint::ChatCompletions, ask(true, 900)).await;
    assert_eq!(long.status(), 200);
    drop(long);
    let next = rig.ask(Endpoint::ChatCompletions, ask(false, 4));
    let response = tokio::time::timeout(bound, next).await.expect("the slot was not freed");
    assert_eq!(response.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_llama_server_embeds() {
    let _turn = turn().await;
    let Some(llama) = Llama::start("a_real_llama_server_embeds", &["--embeddings", "--pooling", "mean"]).await else {
        return;
    };
    let rig = llama.rig(Model { embeddings: true, ..Model::default() }).await;
    let response = rig.ask(Endpoint::Embeddings, json!({"model": "alias", "input": ["one", "two"]}).to_string()).await;
    assert_eq!(response.status(), 200);
    let answer = json_of(response).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 2);
    let event = rig.only_event().await;
    assert!(event.prompt_tokens.is_some_and(|n| n >= 2), "{event:?}");
    assert_eq!(event.completion_tokens, None);
}
