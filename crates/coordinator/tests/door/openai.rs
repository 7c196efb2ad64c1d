//! OpenAI's own Python client, when the environment names a Python that has it: `LARES_TEST_OPENAI_PYTHON`, beside what
//! the tests of llama-server need.

use lares_config::Model;
use tokio::process::Command;

use crate::llama::{Llama, turn};
use crate::rig::{config, with_local};
use crate::served::Served;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openai_client_is_satisfied() {
    let name = "the_openai_client_is_satisfied";
    let Ok(python) = std::env::var("LARES_TEST_OPENAI_PYTHON") else {
        eprintln!("SKIP {name}: LARES_TEST_OPENAI_PYTHON is not set");
        return;
    };
    let _turn = turn().await;
    let Some(chat) = Llama::start(name, &["--jinja"]).await else { return };
    let Some(embedding) = Llama::start(name, &["--embeddings", "--pooling", "mean"]).await else { return };
    let mut config = config();
    config.state_dir = chat.dir.path().to_path_buf();
    with_local(&mut config, "chat-model", chat.port, Model { context_size: 1024, ..Model::default() });
    with_local(&mut config, "embedder", embedding.port, Model { embeddings: true, ..Model::default() });
    let served = Served::start(config).await;
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_client.py"))
        .env("LARES_TEST_URL", format!("{}/v1", served.base))
        .env("LARES_TEST_KEY", &served.key)
        .env("LARES_TEST_CHAT_MODEL", "chat-model")
        .env("LARES_TEST_EMBEDDING_MODEL", "embedder")
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(served.stop().await.iter().any(|event| event.outcome == "cancelled"), "the stream that was closed early");
}
