//! Where log records go: journald under systemd, else standard error.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use lares_config::{Log, LogFormat};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Starts logging for a daemon.
pub fn start(log: &Log) -> Result<()> {
    let filter = EnvFilter::try_new(&log.level)
        .with_context(|| format!("log.level: `{}` is no filter; write for example \"info\"", log.level))?;
    let format = match log.format {
        // systemd sets it for units whose output goes to the journal.
        LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        other => other,
    };
    let text =
        || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr).boxed(),
        LogFormat::Journald => {
            let journal = tracing_journald::layer().context("log.format: journald's socket cannot be reached")?;
            // `journalctl LARES_INCIDENT=…` finds what is told of one incident.
            journal.with_field_prefix(Some("LARES".to_owned())).boxed()
        }
        _ => text().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().context("logging was started before")
}
