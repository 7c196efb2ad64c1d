//! Against a real llama-server and a real model, named by LARES_TEST_LLAMA_SERVER and LARES_TEST_MODEL: its options,
//! its context per slot, its keys, its memory.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lares_config::{KvType, Model, Toggle};
use lares_llama::client::{is_ready, props};
use lares_llama::gguf::Metadata;
use lares_llama::memory::{Prediction, predict};
use lares_llama::options::{Placement, render};
use lares_llama::server::Server;
use lares_llama::testing::{llama_server, reserved_port};
use tokio::process::Child;

/// The server and the model to test with, or `None` after saying what is skipped.
fn parts(test: &str) -> Option<(PathBuf, PathBuf)> {
    let named = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        if path.is_none() {
            eprintln!("SKIP {test}: {name} is not set");
        }
        path
    };
    named("LARES_TEST_LLAMA_SERVER").zip(named("LARES_TEST_MODEL"))
}

struct Running {
    child: Child,
    base: String,
    log: PathBuf,
    metadata: Metadata,
    _dir: tempfile::TempDir,
}

impl Running {
    async fn start(binary: &Path, file: &Path, model: &Model, key: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_file = key.map(|key| {
            let path = dir.path().join("key");
            std::fs::write(&path, format!("{key}\n")).unwrap();
            path
        });
        let port = reserved_port();
        let server = Server::probe(binary).await.unwrap();
        let metadata = Metadata::read(file).unwrap();
        let placement = Placement { name: "test", file, port, cores: 2, api_key_file: key_file.as_deref() };
        let arguments = render(model, &metadata, &server, &placement).unwrap();
        let log = dir.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let child =
            llama_server(binary).args(&arguments).stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let mut running = Self { child, base: format!("http://127.0.0.1:{port}"), log, metadata, _dir: dir };
        let started = Instant::now();
        while !is_ready(&running.base).await.unwrap_or(false) {
            let ended = running.child.try_wait().unwrap();
            let text = std::fs::read_to_string(&running.log).unwrap();
            assert!(ended.is_none(), "{ended:?} with {arguments:?}\n{text}");
            assert!(started.elapsed() < Duration::from_secs(120), "not ready with {arguments:?}\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        running
    }

    /// `RssAnon` and `RssFile`, in bytes.
    fn resident(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
        };
        (field("RssAnon:"), field("RssFile:"))
    }

    async fn post(&self, route: &str, body: serde_json::Value, key: Option<&str>) -> (u16, serde_json::Value) {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(240)).no_proxy().build().unwrap();
        let request = client.post(format!("{}{route}", self.base)).json(&body);
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

#[tokio::test]
async fn each_slot_has_the_whole_context_and_the_name_and_the_key_hold() {
    let Some((binary, file)) = parts("each_slot_has_the_whole_context_and_the_name_and_the_key_hold") else { return };
    for slots in [1, 4] {
        let model = Model { context_size: 2048, slots, ..Model::default() };
        let running = Running::start(&binary, &file, &model, Some("sesame")).await;
        let served = props(&running.base, Some("sesame")).await.unwrap();
        assert_eq!((served.context_per_slot, served.slots), (2048, slots));
        assert_eq!(Path::new(&served.model_path), file);
        assert!(props(&running.base, None).await.unwrap_err().to_string().contains("401"));
        let chat = serde_json::json!({
            "model": "test", "max_tokens": 4, "messages": [{"role": "user", "content": "Say yes."}],
        });
        assert_eq!(running.post("/v1/chat/completions", chat.clone(), None).await.0, 401);
        let (status, answer) = running.post("/v1/chat/completions", chat, Some("sesame")).await;
        assert_eq!((status, answer["model"].as_str()), (200, Some("test")), "{answer}");
        running.stop().await;
    }
}

#[tokio::test]
async fn nothing_a_build_no_longer_knows_is_passed() {
    let Some((binary, file)) = parts("nothing_a_build_no_longer_knows_is_passed") else { return };
    let server = Server::probe(&binary).await.unwrap();
    assert!(server.flags().len() > 50, "{} flags", server.flags().len());
    assert!(!server.version.text.is_empty());
    let metadata = Metadata::read(&file).unwrap();
    let placement = Placement { name: "test", file: &file, port: 1, cores: 2, api_key_file: None };
    let model = Model { lock_memory: true, ..Model::default() };
    let arguments = render(&model, &metadata, &server, &placement).unwrap();
    for gone in ["--mlock", "--defrag-thold", "--no-mmap"] {
        let known = server.flag(gone).is_some_and(|flag| !flag.text.contains("DEPRECATED"));
        assert!(known || arguments.iter().all(|a| a != gone), "{arguments:?}");
    }
}

#[tokio::test]
async fn an_embedding_model_takes_a_text_as_long_as_its_context() {
    let Some((binary, file)) = parts("an_embedding_model_takes_a_text_as_long_as_its_context") else { return };
    let model = Model { context_size: 512, embeddings: true, ..Model::default() };
    let running = Running::start(&binary, &file, &model, None).await;
    let body = serde_json::json!({"model": "test", "input": "word ".repeat(300)});
    let (status, answer) = running.post("/v1/embeddings", body, None).await;
    assert_eq!(status, 200, "{answer}");
    let vector = answer["data"][0]["embedding"].as_array().unwrap();
    assert_eq!(vector.len(), running.metadata.embedding_length as usize);
    running.stop().await;
}

#[tokio::test]
async fn memory_is_predicted_within_15_percent() {
    let Some((binary, file)) = parts("memory_is_predicted_within_15_percent") else { return };
    let base = Model { context_size: 8192, ..Model::default() };
    let cases = [
        Model { context_size: 2048, ..base.clone() },
        Model { micro_batch_size: 512, ..base.clone() },
        Model { slots: 4, ..base.clone() },
        Model { kv_type: KvType::Q8_0, ..base.clone() },
        Model { flash_attention: Toggle::Off, ..base },
    ];
    eprintln!(
        "{:>7} {:>5} {:>6} {:>5} {:>5} | {:>9} {:>9} {:>6}",
        "context", "slots", "ubatch", "kv", "flash", "predicted", "resident", "error"
    );
    for model in cases {
        let running = Running::start(&binary, &file, &model, None).await;
        let prompt = "word and other ".repeat(200);
        let body = serde_json::json!({"prompt": prompt, "n_predict": 4});
        assert_eq!(running.post("/completion", body, None).await.0, 200);
        let (anonymous, mapped) = running.resident();
        let prediction: Prediction = predict(&model, &running.metadata);
        let (predicted, real) = (prediction.resident() as f64, (anonymous + mapped) as f64);
        let error = predicted / real - 1.0;
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
        eprintln!(
            "{:>7} {:>5} {:>6} {:>5} {:>5} | {:>9} {:>9} {:>+5.1} %",
            model.context_size,
            model.slots,
            model.micro_batch_size,
            format!("{:?}", model.kv_type),
            format!("{:?}", model.flash_attention),
            mib(predicted),
            mib(real),
            error * 100.0
        );
        assert!((-0.05..0.15).contains(&error), "{prediction:?} for {anonymous} + {mapped}");
        running.stop().await;
    }
}
