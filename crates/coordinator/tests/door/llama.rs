//! Against a real llama-server, when the environment names one: `LARES_TEST_LLAMA_SERVER` and `LARES_TEST_MODEL`.

use std::path::Path;
use std::time::{Duration, Instant};

use lares_config::Model;
use lares_coordinator::request::Endpoint;
use lares_gate::Client;
use lares_llama::gguf::Metadata;
use lares_llama::testing::{llama_server, reserved_port};
use serde_json::json;
use tokio::process::Child;
use tokio::sync::{Mutex, MutexGuard};

use crate::rig::{Rig, bytes_of, config, json_of, with_local};
use crate::served::Served;

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
        let port = reserved_port();
        let child = llama_server(Path::new(&server))
            .args(["--model", &model, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--ctx-size", "1024", "--parallel", "1", "--threads", "2", "--api-key-file"])
            .arg(key_file)
            .args(more)
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
    let (few, many) = (16, 900);
    let ask = |stream: bool, max_tokens: u32| {
        json!({"model": "alias", "stream": stream, "max_tokens": max_tokens, "temperature": 0,
               "messages": [{"role": "user", "content": "Say hello."}]})
        .to_string()
    };
    let response = rig.ask(Endpoint::ChatCompletions, ask(false, few)).await;
    assert_eq!(response.status(), 200);
    let answer = json_of(response).await;
    assert!(!answer["choices"][0]["message"]["content"].as_str().unwrap().is_empty(), "{answer}");

    let asked = Instant::now();
    let response = rig.ask(Endpoint::ChatCompletions, ask(true, few)).await;
    let text = String::from_utf8(bytes_of(response).await.to_vec()).unwrap();
    let short = asked.elapsed();
    assert!(text.starts_with("data: ") && text.trim_end().ends_with("data: [DONE]"), "{text}");

    let schema =
        json!({"type": "object", "properties": {"word": {"type": "string", "maxLength": 16}}, "required": ["word"]});
    let constrained = json!({"model": "tiny", "max_tokens": 64, "temperature": 0,
        "messages": [{"role": "user", "content": "One word."}],
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
    let bound = Duration::from_secs(10).max(short * (many / few) / 2);
    let long = rig.ask(Endpoint::ChatCompletions, ask(true, many)).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_too_long_for_a_real_model_is_cut_by_who_asks_through_the_door() {
    let _turn = turn().await;
    let name = "a_text_too_long_for_a_real_model_is_cut";
    let Some(llama) = Llama::start(name, &["--embeddings", "--pooling", "mean"]).await else { return };
    let mut config = config();
    config.state_dir = llama.dir.path().to_path_buf();
    with_local(&mut config, "embedder", llama.port, Model { embeddings: true, ..Model::default() });
    let served = Served::start(config).await;
    let key_file = llama.dir.path().join("client.key");
    std::fs::write(&key_file, &served.key).unwrap();
    let client = Client::new(&format!("{}/v1", served.base), Some(key_file), "test").unwrap();
    let model = std::env::var("LARES_TEST_MODEL").unwrap();
    let width = Metadata::read(Path::new(&model)).unwrap().embedding_length as usize;
    let longest = Duration::from_secs(120);

    let alone = client.embed("embedder", vec!["one".into()], width, longest).await.unwrap();
    let texts = vec!["one".to_owned(), "🦀".repeat(2000), "two".to_owned()];
    let vectors = client.embed("embedder", texts, width, longest).await.unwrap();
    assert_eq!(vectors.len(), 3);
    let alike = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(alike(&alone[0], &vectors[0]) > 0.99, "its neighbour changed nothing");
    assert!(alike(&vectors[0], &vectors[2]) < 0.999, "each has its own");
    let refused = served.stop().await.iter().filter(|event| event.outcome != "ok").count();
    assert!((1..10).contains(&refused), "{refused} refusals");
}
