//! Both ways to embed, with one real model: `LARES_TEST_EMBED_MODEL` in this process, and served by
//! `LARES_TEST_LLAMA_SERVER`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lares_config::{Config, Embedding};
use lares_llama::testing::{llama_server, reserved_port};
use lares_tools::embedding::open;
use tokio::process::Child;

fn named(test: &str, variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        println!("SKIP {test}: {variable} names no file");
    }
    path
}

/// llama-server with the model and a key, once it answers.
async fn serve(server: &Path, model: &Path, key_file: &Path, port: u16) -> Child {
    let mut child = llama_server(server)
        .args(["--embeddings", "--host", "127.0.0.1", "--port", &port.to_string(), "--threads", "2", "--model"])
        .arg(model)
        .arg("--api-key-file")
        .arg(key_file)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let health = format!("http://127.0.0.1:{port}/health");
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
    while !http.get(&health).send().await.is_ok_and(|answer| answer.status().is_success()) {
        assert!(child.try_wait().unwrap().is_none(), "llama-server ended");
        assert!(started.elapsed() < Duration::from_secs(60), "llama-server is not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    child
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn a_server_gives_the_vectors_that_the_model_gives_in_this_process() {
    let test = "a_server_gives_the_vectors_that_the_model_gives_in_this_process";
    let (Some(server), Some(model)) = (named(test, "LARES_TEST_LLAMA_SERVER"), named(test, "LARES_TEST_EMBED_MODEL"))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, "sesame\n").unwrap();
    let port = reserved_port();
    let _serving = serve(&server, &model, &key_file, port).await;

    let mut config = Config::default();
    config.tools.search.model = model.display().to_string();
    let here = open(&config).await.unwrap().unwrap();
    config.tools.search.embedding = Embedding::Endpoint;
    config.tools.search.model = "minilm".to_owned();
    config.tools.search.url = Some(format!("http://127.0.0.1:{port}/v1/"));
    config.tools.search.api_key_file = Some(key_file.clone());
    let there = open(&config).await.unwrap().unwrap();
    assert_ne!(here.model(), there.model(), "vectors of two origins are not mixed");

    let long: String = (0..400).map(|n| format!("{n}-{} ", n * 7)).collect();
    let texts = [
        "Reads the whole content of a file",
        "read_file: path",
        "What time is it in Zürich?",
        "查询12306余票信息",
        "🦀 crate::module::Type<'_>",
        &long,
        "Shows the working tree status",
    ];
    let texts = || texts.map(str::to_owned).to_vec();
    let (by_us, by_it) = (here.documents(texts()).await.unwrap(), there.documents(texts()).await.unwrap());
    assert_eq!(by_it.len(), 7);
    for (place, (one, other)) in by_us.iter().zip(&by_it).enumerate() {
        let alike = cosine(one, other);
        println!("{place}: {alike:.4}");
        // The text longer than the model's context is cut at another place.
        assert!(alike > if place == 5 { 0.7 } else { 0.995 }, "{place}: {alike}");
    }
    assert_eq!(there.query(texts()).await.unwrap().len(), 7);

    std::fs::write(&key_file, "wrong\n").unwrap();
    let error = there.query(texts()).await.unwrap_err().to_string();
    assert!(error.contains("answers 401"), "{error}");
}
