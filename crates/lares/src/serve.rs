//! `lares serve DAEMON`: one daemon in this process, until SIGTERM or SIGINT.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use lares_agents::sandbox::Launcher;
use lares_config::Config;
use lares_healer::Healer;
use lares_store::Store;
use lares_units::{Systemd, SystemdSettings};
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
    let mut log = config.log.clone();
    if matches!(daemon, Daemon::Helper) {
        // What it believes and what it writes down are nobody's to change but root's.
        configuration::only_roots(global)?;
        log.level.push_str(",lares_healer::helper=info");
    }
    if matches!(daemon, Daemon::Tools) {
        // At `info` the library logs what servers tell their clients. A person's own filter for it wins.
        log.level.insert_str(0, "rmcp=warn,");
    }
    logging::start(&log)?;
    let shutdown = shutdown_on_signals()?;
    match daemon {
        Daemon::Healer => healer(config, shutdown).await?,
        Daemon::Helper => lares_healer::helper::serve(config, shutdown).await?,
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
        Daemon::Tools => {
            let Some(store) = connect(&config, &shutdown).await? else { return Ok(exit::OK) };
            let _attended = attend(config.tools.listen, &shutdown);
            lares_tools::serve(config, store, launcher()?, shutdown).await?;
        }
    }
    Ok(exit::OK)
}

/// The healer, which needs systemd and, to start, nothing else: PostgreSQL may be what is to be healed.
async fn healer(config: Arc<Config>, shutdown: CancellationToken) -> Result<()> {
    let store = Store::open(&config.store, &config.state_dir).await?;
    let systemd = Systemd::connect(SystemdSettings::default())
        .await
        .context("the healer watches units of systemd and finds none here; `lares up` looks after its own")?;
    let healer = Healer::open(config, store, Arc::new(systemd)).await?;
    let alive = healer.alive();
    let sign = move || {
        let alive = alive.clone();
        async move { alive.ask().await }
    };
    let _attended = AbortOnDropHandle::new(tokio::spawn(notify::attend_by(sign, shutdown.clone())));
    Ok(healer.run(shutdown).await?)
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
