//! The daemon: one machine's healer, its place in PostgreSQL and its HTTP surface.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lares_config::{Config, HealedUnit};
use lares_gate::{Gate, Metrics, Role, Surface, SurfaceError};
use lares_store::Store;
use lares_units::port::{Manager, ManagerError};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::book::{Book, BookError};
use crate::classify::Classifier;
use crate::decide::Policy;
use crate::desk::{Board, Desk, ORDERS, Order, Refusal};
use crate::driver::{Driver, Parts};
use crate::hands::Hands;
use crate::helper;
use crate::keeper::{Keeper, Known, News, Place};
use crate::learn::Lessons;
use crate::metrics::HealerMetrics;
use crate::observe;
use crate::page::Line;
use crate::patterns::{Error as PatternError, Patterns};
use crate::probes::Prober;
use crate::restraint::{Limits, Restraint};
use crate::routes;
use crate::scholar::Scholar;
use crate::ward::Ward;
use crate::wishes::PausesFile;

/// News that may wait for the loop.
const NEWS: usize = 16;
/// Pause before the keys are read again when there was none, or PostgreSQL went away meanwhile.
const KEYS_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for what runs beside the loop when it ends.
const FAREWELL: Duration = Duration::from_secs(4);

/// Why the healer does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Incidents cannot be written down.
    #[error(transparent)]
    Book(#[from] BookError),
    /// A pattern makes no sense.
    #[error("{}: {source}", path.display())]
    Patterns {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PatternError,
    },
    /// The service manager cannot be asked.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The address cannot be used.
    #[error(transparent)]
    Surface(#[from] SurfaceError),
    /// Probes over HTTP cannot be made.
    #[error("probes over HTTP cannot be made: {0}")]
    Prober(#[from] reqwest::Error),
}

/// Whether the healer is alive: its loop goes round, or waits for another healer to end.
#[derive(Debug, Clone)]
pub struct Alive {
    pulse: mpsc::Sender<Order>,
}

impl Alive {
    /// Asks the loop for a sign of life.
    ///
    /// # Errors
    /// When there is none, with the reason.
    pub async fn ask(&self) -> Result<(), String> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.pulse.send(Order::Pulse { answer }).await.map_err(|_| "the healer has ended".to_owned())?;
        answered.await.map_err(|_| "the healer has ended".to_owned())
    }
}

/// A healer that is ready to run.
#[derive(Debug)]
pub struct Healer {
    config: Arc<Config>,
    store: Store,
    manager: Arc<dyn Manager>,
    book: Arc<Book>,
    lines: Vec<Line>,
    classifier: Arc<Classifier>,
    orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
}

impl Healer {
    /// Reads what is to be healed and what was under way. PostgreSQL is not needed yet.
    ///
    /// # Errors
    /// When the patterns or the state directory cannot be used, or another healer uses the latter.
    pub async fn open(config: Arc<Config>, store: Store, manager: Arc<dyn Manager>) -> Result<Self, ServeError> {
        let classifier = match &config.healer.patterns_file {
            Some(path) => Patterns::with_file(path)
                .and_then(Classifier::new)
                .map_err(|source| ServeError::Patterns { path: path.clone(), source })?,
            None => Classifier::builtin(),
        };
        let dir = config.state_dir.join("healer");
        let opened = spawn_blocking(move || Book::open(&dir)).await;
        let (book, lines) = opened.map_err(|error| ManagerError::Protocol(error.to_string()))??;
        let orders = mpsc::channel(ORDERS);
        Ok(Self { config, store, manager, book, lines, classifier: Arc::new(classifier), orders })
    }

    /// What tells whether it lives.
    pub fn alive(&self) -> Alive {
        Alive { pulse: self.orders.0.clone() }
    }

    /// Heals until `shutdown`.
    ///
    /// A step under way when it ends goes on in systemd; the next start finds out how it went.
    ///
    /// # Errors
    /// When something it cannot do without is missing.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let ended = shutdown.child_token();
        let _end = ended.clone().drop_guard();
        let host = host();
        let (place, mut placed) = watch::channel(Place::Unknown);
        let (prepared, mut is_prepared) = watch::channel(false);
        let (tell, mut news) = mpsc::channel(NEWS);
        let (board, shown) = watch::channel(Arc::new(Board::default()));
        let wishes = Arc::new(Notify::new());
        let keeper = Keeper {
            store: self.store.clone(),
            book: Arc::clone(&self.book),
            host: host.clone(),
            place,
            news: tell,
            prepared,
            wishes: Arc::clone(&wishes),
        };
        // It outlives the loop, whose last entries it brings away.
        let leave = CancellationToken::new();
        let _left = leave.clone().drop_guard();
        let keeping = AbortOnDropHandle::new(tokio::spawn(keeper.run(leave.clone())));

        let metrics = HealerMetrics::new(self.classifier.patterns().iter().map(|pattern| pattern.name.as_str()));
        let desk = Desk { store: self.store.clone(), host, orders: self.orders.0.clone(), board: shown.clone() };
        let (config, surfaced, counted) = (Arc::clone(&self.config), ended.clone(), metrics.clone());
        let surface = async move {
            // Keys are in PostgreSQL: before it is there, nobody can be let in.
            if is_prepared.wait_for(|prepared| *prepared).await.is_err() {
                return Ok(());
            }
            serve(&config, desk, &counted, surfaced).await
        };
        let mut surface = AbortOnDropHandle::new(tokio::spawn(surface));
        let mut served = None;

        let settings = Arc::new(observe::Settings::of(&self.config, observe::PROFILE.into()));
        let mut orders = self.orders.1;
        let mut lines = Some(self.lines);
        loop {
            let place = *placed.borrow_and_update();
            match place {
                Place::Ours => {}
                Place::Unknown | Place::Taken => {
                    tokio::select! {
                        () = ended.cancelled() => break,
                        changed = placed.changed() => if changed.is_err() { break },
                        // Until it is known who acts, whoever asks waits.
                        Some(order) = orders.recv(), if place == Place::Taken => stand_by(order),
                        done = &mut surface => {
                            served = Some(done);
                            break;
                        }
                    }
                    continue;
                }
            }
            // What was said before the loop is there.
            let mut known = None;
            while let Ok(said) = news.try_recv() {
                match said {
                    News::Known(all) => known = Some(*all),
                    News::Wishes { pauses, stats } => {
                        let before = known.take().unwrap_or_else(Known::default);
                        known = Some(Known { pauses, stats, ..before });
                    }
                }
            }
            let lines = match lines.take() {
                Some(lines) => lines,
                None => read_again(&self.book).await?,
            };
            let stop = ended.child_token();
            let parts = Parts {
                manager: Arc::clone(&self.manager),
                classifier: Arc::clone(&self.classifier),
                settings: Arc::clone(&settings),
                policies: policies(&self.config),
                hands: Hands {
                    manager: Arc::clone(&self.manager),
                    helper: helper::Client::new(self.config.healer.helper.clone()),
                },
                book: Arc::clone(&self.book),
                metrics: metrics.clone(),
                board: board.clone(),
                orders,
                news,
                wishes: Arc::clone(&wishes),
                scholar: Scholar::start(&self.config, self.store.clone()),
                pauses: PausesFile(self.config.state_dir.join("healer/pauses.json")),
            };
            let mut driver = Driver::new(parts, ward(&self.config), Prober::new()?);
            driver.resume(lines, known);
            let mut driving = std::pin::pin!(driver.run(stop.clone()));
            let over = loop {
                tokio::select! {
                    over = &mut driving => break over,
                    changed = placed.wait_for(|place| *place == Place::Taken), if !stop.is_cancelled() => {
                        if changed.is_ok() {
                            tracing::warn!("another healer acts on this machine; this one waits for it to end");
                        }
                        stop.cancel();
                    }
                    done = &mut surface, if served.is_none() => {
                        served = Some(done);
                        stop.cancel();
                    }
                }
            };
            (orders, news) = over?;
            if ended.is_cancelled() || served.is_some() {
                break;
            }
        }
        ended.cancel();
        leave.cancel();
        // Nothing is lost when they take longer: the book is on the disk.
        let _ = timeout(FAREWELL, keeping).await;
        let served = match served {
            Some(done) => Some(done),
            None => timeout(FAREWELL, surface).await.ok(),
        };
        match served {
            Some(Ok(outcome)) => outcome,
            // It was told to end, or ended by a fault that was told of already.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

/// Answers an order while another healer acts.
fn stand_by(order: Order) {
    match order {
        Order::Heal { answer, .. } => drop(answer.send(Err(Refusal::Standby))),
        Order::Answer { answer, .. } => drop(answer.send(Err(Refusal::Standby))),
        Order::Pulse { answer } => drop(answer.send(())),
        Order::Wishes => {}
    }
}

async fn read_again(book: &Arc<Book>) -> Result<Vec<Line>, ServeError> {
    let book = Arc::clone(book);
    let read = spawn_blocking(move || book.all()).await;
    Ok(read.map_err(|error| ManagerError::Protocol(error.to_string()))??)
}

async fn serve(
    config: &Config,
    desk: Desk,
    counted: &HealerMetrics,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    // Nobody is let in before there is a key; units are healed meanwhile.
    let mut told = false;
    let gate = loop {
        match Gate::open(desk.store.clone(), &config.gate, shutdown.clone()).await {
            Ok(gate) => break gate,
            Err(error) if told => tracing::debug!(%error, "nobody is let in yet"),
            Err(error) => tracing::warn!(%error, "nobody is let in yet; trying again until somebody can be"),
        }
        told = true;
        if shutdown.run_until_cancelled(tokio::time::sleep(KEYS_AGAIN)).await.is_none() {
            return Ok(());
        }
    };
    let metrics = Metrics::new();
    counted.register(&metrics, desk.board.clone());
    let (pinged, board) = (desk.store.clone(), desk.board.clone());
    let desk = Arc::new(desk);
    Surface::new("healer", gate, metrics)
        .describe("What is wrong with the units of this machine, and what is done about it.")
        .routes(Role::Viewer, routes::reading(&desk))
        .routes(Role::Operator, routes::changing(&desk))
        .ready_check("store", move || {
            let store = pinged.clone();
            async move { store.ping().await.map_err(|_| "PostgreSQL does not answer".to_owned()) }
        })
        .ready_check("systemd", move || {
            let board = board.borrow().clone();
            std::future::ready(match (board.acting, board.hearing) {
                (true, true) => Ok(()),
                (true, false) => Err("systemd cannot be heard".to_owned()),
                (false, _) => Err("another healer acts on this machine".to_owned()),
            })
        })
        .serve(config.healer.listen, shutdown)
        .await?;
    Ok(())
}

/// This machine, as the store knows it.
fn host() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "localhost".to_owned())
}

fn policies(config: &Config) -> BTreeMap<String, Policy> {
    let of = |unit: &HealedUnit| Policy::of(&config.healer, unit);
    config.healer.units.iter().map(|(name, unit)| (name.clone(), of(unit))).collect()
}

fn ward(config: &Config) -> Ward {
    let healer = &config.healer;
    let mut ward = Ward::new(Restraint::new(Limits::of(healer)), Lessons::new(healer.approve_after));
    for (name, unit) in &healer.units {
        ward.watch(name, Policy::of(healer, unit), unit.dependencies.clone());
    }
    ward
}
