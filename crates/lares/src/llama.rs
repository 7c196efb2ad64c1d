//! `lares serve llama MODEL`: one llama-server under systemd. What `lares up` finds out before it starts one (the file,
//! the flags this binary understands, whether it fits) is found out here, and llama-server speaks no notification
//! protocol, so this process stays beside it.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lares_config::Config;
use lares_llama::catalog::{self, Origin};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{notify, stack};

/// Longest wait for llama-server to end by itself; then it is killed.
const STOP: Duration = Duration::from_secs(5);
/// Name of the systemd credential with the key that llama-server asks for.
const CREDENTIAL: &str = "llama.key";

/// Serves `model` until `shutdown`.
///
/// # Errors
/// When the model cannot be served, or its llama-server ended by itself.
pub async fn serve(config: &Config, name: &str, shutdown: CancellationToken) -> Result<()> {
    let Some(model) = config.models.get(name) else {
        let known: Vec<_> = config.models.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "no model at all".to_owned() } else { known.join(", ") };
        bail!("there is no models.{name} in the configuration; there is {known}");
    };
    if model.port == 0 {
        bail!("models.{name}.port: set a port; only `lares up` chooses one");
    }
    let file = there(config, name, model)?;
    let engine = stack::Engine::find(config).await?;
    let served = engine.served(name, model, file, &key_file(config)).await?;
    // The other models' share is known only where a budget says what all may take together.
    let mut predicted = vec![(name.to_owned(), served.prediction)];
    if config.llama.memory_budget.is_some() {
        for (other, model) in config.models.iter().filter(|(other, _)| *other != name) {
            if let Ok(file) = there(config, other, model) {
                predicted.push((other.clone(), stack::predict(model, &file).await?));
            }
        }
        lares_llama::memory::check_fit(&predicted, config.llama.memory_budget, None)?;
    }
    let available = spawn_blocking(lares_llama::machine::available_memory).await?;
    lares_llama::memory::check_fit(&predicted[..1], None, available)?;

    let mut command = Command::new(served.program());
    command.args(&served.args).stdin(Stdio::null()).kill_on_drop(true);
    for name in notify::VARIABLES {
        command.env_remove(name);
    }
    if let Some((name, value)) = stack::wait_policy() {
        command.env(name, value);
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", served.program().display()))?;
    tracing::info!(model = name, port = model.port, pid = child.id(), "llama-server starts");
    let attended = tokio::spawn(notify::attend(format!("http://127.0.0.1:{}/health", model.port), shutdown.clone()));
    let ended = follow(child, &shutdown).await;
    attended.abort();
    match ended? {
        Some(status) => bail!("llama-server ended with {status}; its last lines say why"),
        None => Ok(()),
    }
}

/// How it ended by itself, or nothing when it was asked to.
async fn follow(mut child: Child, shutdown: &CancellationToken) -> Result<Option<ExitStatus>> {
    tokio::select! {
        status = child.wait() => return Ok(Some(status.context("cannot wait for llama-server")?)),
        () = shutdown.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if timeout(STOP, child.wait()).await.is_err() {
        tracing::warn!("llama-server did not stop within {} s and is killed", STOP.as_secs());
        child.kill().await.context("cannot kill llama-server")?;
    }
    Ok(None)
}

/// The model's file, which must be there: a service that fetches gigabytes before it starts looks like one that hangs.
fn there(config: &Config, name: &str, model: &lares_config::Model) -> Result<PathBuf> {
    let path = match catalog::origin(name, model)? {
        Origin::File(path) => return Ok(path),
        Origin::Artifact(artifact) => artifact.path(&config.models_dir()),
    };
    if path.is_file() {
        return Ok(path);
    }
    bail!("the file of model `{name}` is not there yet ({}); `lares model pull {name}` fetches it", path.display())
}

/// systemd's copy of the key when it gave one, else the key in the state directory.
fn key_file(config: &Config) -> PathBuf {
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| PathBuf::from(directory).join(CREDENTIAL))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| config.llama_key_file())
}
