//! `lares up`: the whole stack on this machine, in the foreground, until Ctrl-C.

use std::fs::{File, TryLockError};
use std::io::{IsTerminal, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lares_config::Config;
use lares_healer::Healer;
use lares_store::Store;
use lares_store::events::{Event, Recorder};
use lares_units::{Change, Children, FeedItem, Settings, State, Supervisor};
use tokio_util::sync::CancellationToken;

use crate::cli::{self, Global, exit};
use crate::stack::{self, Stack};
use crate::{configuration, control, output, serve, status};

/// How long everything may take to become ready: a model from a slow disk is the longest.
const READY: Duration = Duration::from_secs(300);

/// Carries out `lares up`.
pub async fn run(global: &Global, arguments: &cli::Up) -> Result<u8> {
    let config = configuration::load(global)?.config;
    let shutdown = serve::shutdown_on_signals()?;
    let state_dir = config.state_dir.clone();
    stack::make_state_dir(&state_dir).await?;
    let _only_one = lock(&state_dir)?;

    let stack = tokio::select! {
        stack = Stack::prepare(config) => stack?,
        () = shutdown.cancelled() => return Ok(exit::OK),
    };
    if arguments.dry_run {
        output::line(&stack.describe())?;
        return Ok(exit::OK);
    }
    stack.write_configuration().await?;
    let settings = Settings { units: stack.config.units.clone(), logs: state_dir.join("logs") };
    let supervisor = Supervisor::launch(settings, stack.units()?, shutdown.clone()).await?;
    let result = attend(&supervisor, &stack, &state_dir, &shutdown).await;
    let began = Instant::now();
    supervisor.shutdown().await;
    eprintln!("stopped in {}; what is left is in {}", output::seconds(began.elapsed()), state_dir.display());
    result.map(|()| exit::OK)
}

/// Everything between start and stop.
async fn attend(supervisor: &Supervisor, stack: &Stack, state_dir: &Path, shutdown: &CancellationToken) -> Result<()> {
    let began = Instant::now();
    let control = tokio::spawn({
        let (supervisor, state_dir, shutdown) = (supervisor.clone(), state_dir.to_owned(), shutdown.clone());
        async move { control::serve(supervisor, &state_dir, shutdown).await }
    });
    let view = tokio::spawn(View::new().follow(supervisor.clone(), shutdown.clone()));
    tokio::select! {
        ready = supervisor.wait_ready(READY) => {
            if let Err(error) = ready {
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                shutdown.cancel();
                let _ = view.await;
                bail!("{error}\nthe whole logs are in {}", state_dir.join("logs").display());
            }
        }
        () = shutdown.cancelled() => return Ok(()),
    }
    let healer = tokio::spawn(heal(supervisor.clone(), stack.healed(), shutdown.clone()));
    let recorder =
        tokio::spawn(record(supervisor.clone(), stack.store_config(), state_dir.to_owned(), shutdown.clone()));
    let ready = began.elapsed();
    eprintln!("{}", status::units(&supervisor.list().await));
    eprintln!(
        "\n{} in {}. Try:  lares task submit --repo DIR --check COMMAND 'make the tests pass'\n{}",
        style("ready").green().bold(),
        output::seconds(ready),
        style("Ctrl-C stops everything.").dim()
    );
    shutdown.cancelled().await;
    let _ = view.await;
    let _ = recorder.await;
    let _ = healer.await;
    control.await.context("the control socket ended in a panic")?
}

/// Looks after the units: the supervisor starts again what ends or hangs, the healer tells why it did and does what
/// starting again does not. The stack works without it.
async fn heal(supervisor: Supervisor, config: Config, shutdown: CancellationToken) {
    let healed = async {
        let store = Store::open(&config.store, &config.state_dir).await?;
        let healer = Healer::open(Arc::new(config), store, Arc::new(Children::new(supervisor))).await?;
        healer.run(shutdown).await?;
        anyhow::Ok(())
    };
    if let Err(error) = healed.await {
        eprintln!("{} the units are not healed: {error:#}", style("warning:").yellow());
    }
}

/// One `lares up` a state directory; the lock goes with the process, however it ends.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("run/up.lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            write!(file, "{}", std::process::id())?;
            file.rewind()?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!(
                "`lares up` runs already with {} (process {pid}); `lares status` shows it, Ctrl-C there stops it",
                state_dir.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Leaves an event for each change of a unit that nobody asked for.
async fn record(
    supervisor: Supervisor,
    store: lares_config::Store,
    state_dir: std::path::PathBuf,
    shutdown: CancellationToken,
) -> Result<()> {
    let store = Store::connect(&store, &state_dir).await?;
    let recorder = Recorder::open(store, &state_dir, "up").await?;
    let mut changes = supervisor.changes();
    loop {
        let item = tokio::select! {
            item = changes.next() => item,
            () = shutdown.cancelled() => None,
        };
        let Some(item) = item else { break };
        let FeedItem::Item(change) = item else { continue };
        if change.from == State::Active && change.to == State::Activating || change.to == State::Failed {
            recorder.record(event("down", &change, Duration::ZERO));
        } else if change.to == State::Active
            && let Ok(status) = supervisor.status(change.unit.as_str()).await
            && let Some(outage) = status.last_recovery
        {
            recorder.record(event("recovered", &change, outage));
        }
    }
    // PostgreSQL stops with the other units; what it does not take now is in the spool for the next start.
    let _ = tokio::time::timeout(Duration::from_millis(500), recorder.flush()).await;
    Ok(())
}

fn event(outcome: &str, change: &Change, latency: Duration) -> Event {
    let detail =
        serde_json::json!({ "unit": change.unit, "from": change.from, "to": change.to, "cause": change.cause });
    Event { outcome: outcome.to_owned(), at: change.at, latency, detail, ..Event::new("unit") }
}

/// The live view: one line a unit on a terminal, one line a change elsewhere.
struct View {
    bars: Option<MultiProgress>,
}

impl View {
    fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    async fn follow(self, supervisor: Supervisor, shutdown: CancellationToken) {
        let mut changes = supervisor.changes();
        let units = supervisor.list().await;
        let width = units.iter().map(|unit| unit.name.as_str().len()).max().unwrap_or(0);
        let bars: Arc<Vec<(String, ProgressBar)>> = Arc::new(match &self.bars {
            None => Vec::new(),
            Some(view) => units
                .iter()
                .map(|unit| {
                    let bar = view.add(ProgressBar::new_spinner());
                    bar.set_style(waiting());
                    bar.set_prefix(format!("{:<width$}", unit.name.as_str()));
                    bar.set_message(unit.cause.clone());
                    bar.enable_steady_tick(Duration::from_millis(120));
                    (unit.name.to_string(), bar)
                })
                .collect(),
        });
        let began = Instant::now();
        loop {
            let change = tokio::select! {
                item = changes.next() => match item {
                    Some(FeedItem::Item(change)) => change,
                    Some(FeedItem::Missed(_)) => continue,
                    None => break,
                },
                () = shutdown.cancelled() => break,
            };
            let state = style(change.to);
            let state = match change.to {
                State::Active => state.green(),
                State::Failed => state.red(),
                _ => state.yellow(),
            };
            let text = format!("{state} {}", style(&change.cause).dim());
            match bars.iter().find(|(name, _)| name == change.unit.as_str()) {
                Some((_, bar)) => {
                    bar.set_style(if change.to == State::Active { settled() } else { waiting() });
                    bar.set_message(text);
                }
                None => eprintln!("{:>8.1}s  {:<width$}  {text}", began.elapsed().as_secs_f64(), change.unit.as_str()),
            }
        }
        for (_, bar) in bars.iter() {
            bar.finish_and_clear();
        }
    }
}

fn waiting() -> ProgressStyle {
    ProgressStyle::with_template("{spinner:.yellow} {prefix:.bold} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn settled() -> ProgressStyle {
    ProgressStyle::with_template("● {prefix:.bold} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}
