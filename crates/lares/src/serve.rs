//! `lares serve DAEMON`: one daemon in this process, until SIGTERM or SIGINT.

use std::sync::Arc;

use anyhow::{Context, Result};
use lares_agents::sandbox::Launcher;
use lares_store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::{Daemon, Global, exit};
use crate::{configuration, llama, logging, notify};

/// First argument that makes this binary the launcher of a confined run.
pub const LAUNCHER_COMMAND: &str = "sandbox";

/// Carries out `lares serve`.
pub async fn run(global: &Global, daemon: Daemon) -> Result<u8> {
    let config = Arc::new(configuration::load(global)?.config);
    logging::start(&config.log)?;
    let shutdown = shutdown_on_signals()?;
    let listen = match &daemon {
        Daemon::Llama { model } => {
            llama::serve(&config, model, shutdown).await?;
            return Ok(exit::OK);
        }
        Daemon::Coordinator => config.coordinator.listen,
        Daemon::Ralph => config.ralph.listen,
    };
    let store = tokio::select! {
        store = Store::connect(&config.store, &config.state_dir) => store?,
        () = shutdown.cancelled() => return Ok(exit::OK),
    };
    let attended = tokio::spawn(notify::attend(format!("http://{listen}/health"), shutdown.clone()));
    match daemon {
        Daemon::Ralph => lares_ralph::serve(config, store, launcher()?, shutdown).await?,
        _ => lares_coordinator::serve(config, store, shutdown).await?,
    }
    attended.abort();
    Ok(exit::OK)
}

/// This binary, as the launcher of confined runs.
fn launcher() -> Result<Launcher> {
    let program = std::env::current_exe().context("cannot find this program's own file, which starts confined runs")?;
    Ok(Launcher { program, args: vec![LAUNCHER_COMMAND.into()] })
}

/// A token that is cancelled by the first SIGTERM, SIGINT or SIGHUP.
pub fn shutdown_on_signals() -> Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut signals = signal(kind).context("cannot listen for signals")?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(shutdown)
}
