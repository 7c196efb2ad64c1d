//! `lares serve DAEMON`: one daemon in this process, until SIGTERM or SIGINT.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use lares_agents::sandbox::Launcher;
use lares_config::Config;
use lares_store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::{Daemon, Global, exit};
use crate::{configuration, llama, logging, notify};

/// First argument that makes this binary the launcher of a confined run.
pub const LAUNCHER_COMMAND: &str = "sandbox";

/// Carries out `lares serve`.
pub async fn run(global: &Global, daemon: Daemon) -> Result<u8> {
    let config = Arc::new(configuration::load(global)?.config);
    logging::start(&config.log)?;
    let shutdown = shutdown_on_signals()?;
    match daemon {
        Daemon::Llama { model } => llama::serve(&config, &model, shutdown).await?,
        Daemon::Coordinator => {
            let Some(store) = connect(&config, &shutdown).await? else { return Ok(exit::OK) };
            let _attended = attend(config.coordinator.listen, &shutdown);
            lares_coordinator::serve(config, store, shutdown).await?;
        }
        Daemon::Ralph => {
            let Some(store) = connect(&config, &shutdown).await? else { return Ok(exit::OK) };
            let _attended = attend(config.ralph.listen, &shutdown);
            lares_ralph::serve(config, store, launcher()?, shutdown).await?;
        }
    }
    Ok(exit::OK)
}

/// The store; none when the daemon is told to stop before it answers.
async fn connect(config: &Config, shutdown: &CancellationToken) -> Result<Option<Store>> {
    tokio::select! {
        store = Store::connect(&config.store, &config.state_dir) => Ok(Some(store?)),
        () = shutdown.cancelled() => Ok(None),
    }
}

/// Tells systemd about the daemon that listens here, until this is dropped.
fn attend(listen: SocketAddr, shutdown: &CancellationToken) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(notify::attend(format!("http://{listen}/health"), shutdown.clone())))
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
