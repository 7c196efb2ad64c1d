//! The coordinator as the daemon runs it, with one upstream.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lares_config::{Config, Upstream};
use lares_store::Store;
use tokio_util::sync::CancellationToken;

use crate::env;

/// More than are ever in flight: what is measured is the way through, not the queue.
const CAPACITY: u32 = 4096;

/// Serves until standard input ends.
pub fn run(upstream: &str, model: &str, port: u16) -> Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let state_dir = PathBuf::from(variable(env::STATE)?);
    let mut config = Config { state_dir: state_dir.clone(), ..Config::default() };
    config.store.url = variable(env::STORE)?;
    config.coordinator.listen = SocketAddr::from(([127, 0, 0, 1], port));
    let mut only = Upstream {
        url: upstream.to_owned(),
        models: [(model.to_owned(), model.to_owned())].into(),
        max_in_flight: CAPACITY,
        ..Upstream::default()
    };
    if let Ok(key) = std::env::var(env::LLAMA) {
        let file = state_dir.join("llama.key");
        std::fs::write(&file, key)?;
        only.api_key_file = Some(file);
    }
    config.coordinator.upstreams.insert("upstream".to_owned(), only);
    // As many threads as cores this process may use: one, when it is pinned.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = Store::connect(&config.store, &state_dir).await?;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            stop.cancel();
        });
        lares_coordinator::serve(Arc::new(config), store, shutdown).await?;
        Ok(())
    })
}
