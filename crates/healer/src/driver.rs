//! The loop: signals, probes, orders and time go into the [`Ward`], and what comes out of it is written down and done.
//!
//! ```text
//! signals ─┐
//! probes  ─┼─→ look (observe) ─→ ward ─→ entries ─→ book ─→ steps (hands)
//! orders  ─┘         ↑____________________________________________│
//! ```
//!
//! One task owns everything; whatever takes time runs beside it and comes back as an [`Input`].

mod acts;
mod hears;
mod looks;
mod orders;
mod times;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lares_store::incidents::Pause;
use lares_units::FeedItem;
use lares_units::port::{Listed, Manager, ManagerError, UnitId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::book::Book;
use crate::classify::Classifier;
use crate::clock;
use crate::decide::Policy;
use crate::desk::{Board, Order, Refusal};
use crate::hands::{End, Hands};
use crate::keeper::{Known, News};
use crate::metrics::HealerMetrics;
use crate::observe::{self, Observed};
use crate::outlook::Outlook;
use crate::page::{Line, Page};
use crate::probes::Prober;
use crate::remedy::Step;
use crate::scholar::{Clusters, Scholar};
use crate::symptom::Symptom;
use crate::timeline::{self, Event as Happening};
use crate::track::Tracked;
use crate::ward::{Effect, Stored, Ward};

/// Longest that one look takes.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// Probes at the same time.
const PROBES: usize = 64;
/// How often everything is compared with what signals told.
const BACKSTOP: Duration = Duration::from_secs(30);
/// Inputs taken in before their entries are written: one write to the disk for all of them.
const TOGETHER: usize = 64;

/// What the loop is made of.
pub(crate) struct Parts {
    pub(crate) manager: Arc<dyn Manager>,
    pub(crate) classifier: Arc<Classifier>,
    pub(crate) settings: Arc<observe::Settings>,
    pub(crate) policies: BTreeMap<String, Policy>,
    pub(crate) hands: Hands,
    pub(crate) book: Arc<Book>,
    pub(crate) metrics: HealerMetrics,
    pub(crate) board: watch::Sender<Arc<Board>>,
    pub(crate) orders: mpsc::Receiver<Order>,
    pub(crate) news: mpsc::Receiver<News>,
    /// Rung when wishes have to be read again.
    pub(crate) wishes: Arc<tokio::sync::Notify>,
    pub(crate) scholar: Scholar,
    /// Pauses as they were known last, kept for when PostgreSQL cannot be asked.
    pub(crate) pauses: crate::wishes::PausesFile,
}

/// Something that ran beside the loop has ended.
#[derive(Debug)]
enum Input {
    Seen {
        unit: String,
        seen: Result<Observed, String>,
        unknown_unit: bool,
    },
    Asked {
        unit: String,
        dry_run: bool,
        by: String,
        seen: Result<Observed, String>,
        answer: Answer<Outlook>,
    },
    Acted {
        incident: Uuid,
        attempt: u32,
        step: usize,
        action: Step,
        end: End,
    },
    Probed {
        unit: String,
        answer: Result<(), String>,
    },
    /// What a unit needs is listened to from now on.
    Watched {
        unit: String,
        listed: Vec<Listed>,
    },
}

/// The receiving ends, for a loop that comes after this one.
pub(crate) type Ends = (mpsc::Receiver<Order>, mpsc::Receiver<News>);

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// The loop's state.
pub(crate) struct Driver {
    parts: Parts,
    ward: Ward,
    boot: Uuid,
    prober: Prober,
    units: BTreeMap<String, Tracked>,
    pages: BTreeMap<Uuid, Page>,
    /// Names that unknown failures go by.
    clusters: Clusters,
    /// The failure that an open incident was studied for last, and those that a model was asked about.
    studied: BTreeMap<Uuid, String>,
    diagnosed: BTreeMap<Uuid, BTreeSet<String>>,
    pauses: BTreeMap<String, Pause>,
    /// Ports that units were moved to.
    moved: BTreeMap<String, u16>,
    beside: JoinSet<Input>,
    /// Units that wait for a look.
    queue: VecDeque<String>,
    looks: usize,
    probes: usize,
    /// When which unit is probed next.
    due: BTreeSet<(Instant, String)>,
    /// Looks that failed and when they are tried again.
    later: BTreeSet<(Instant, String)>,
    effects: Vec<Effect>,
    /// Lines that could not be written, and when that is tried again.
    unwritten: Vec<Line>,
    write_again: Option<Instant>,
    board_due: Option<Instant>,
    hearing: bool,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("units", &self.units.len()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Nothing is watched before [`Driver::run`].
    pub(crate) fn new(parts: Parts, ward: Ward, prober: Prober) -> Self {
        let units = parts
            .settings
            .units
            .iter()
            .filter_map(|(name, config)| {
                let id = UnitId::new(name.as_str()).ok()?;
                let grace = parts.policies.get(name).map_or(Duration::ZERO, |policy| policy.verify_timeout);
                Some((name.clone(), Tracked::new(id, Some(config.clone()), grace)))
            })
            .collect();
        let pauses = parts.pauses.read().into_iter().map(|pause| (pause.unit.clone(), pause)).collect();
        Self {
            parts,
            ward,
            boot: clock::boot(),
            prober,
            units,
            pages: BTreeMap::new(),
            clusters: Clusters::default(),
            studied: BTreeMap::new(),
            diagnosed: BTreeMap::new(),
            pauses,
            moved: BTreeMap::new(),
            beside: JoinSet::new(),
            queue: VecDeque::new(),
            looks: 0,
            probes: 0,
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            effects: Vec::new(),
            unwritten: Vec::new(),
            write_again: None,
            board_due: None,
            hearing: true,
        }
    }

    /// Takes up what was under way: from the book, and what PostgreSQL knows besides.
    pub(crate) fn resume(&mut self, lines: Vec<Line>, known: Option<Known>) {
        let mut timelines: BTreeMap<Uuid, (String, Uuid, BTreeMap<u32, timeline::Entry>)> = BTreeMap::new();
        for line in lines {
            let found = timelines
                .entry(line.incident.id)
                .or_insert_with(|| (line.incident.unit.clone(), line.boot, BTreeMap::new()));
            found.1 = line.boot;
            found.2.extend(line.entries.into_iter().map(|entry| (entry.seq, entry)));
        }
        if let Some(known) = known {
            for (incident, entries) in &known.incidents {
                let found = timelines
                    .entry(incident.id)
                    .or_insert_with(|| (incident.unit.clone(), Uuid::nil(), BTreeMap::new()));
                for row in entries {
                    match crate::page::from_row(row) {
                        Ok(entry) => {
                            if !found.2.contains_key(&entry.seq) {
                                found.1 = row.boot;
                                found.2.insert(entry.seq, entry);
                            }
                        }
                        Err(error) => {
                            tracing::error!(incident = %incident.id, seq = row.seq, %error, "an entry of the store cannot be read; the incident is taken up without it");
                        }
                    }
                }
            }
            self.wishes(known.pauses, &known.stats);
            self.clusters.load(known.clusters);
            known.bad.into_iter().for_each(|generation| self.ward.was_proposed(generation));
        }
        let now = clock::now();
        let stored: Vec<Stored> = timelines
            .into_iter()
            .map(|(id, (unit, boot, entries))| Stored {
                id,
                unit,
                timeline: entries.into_values().collect(),
                same_boot: boot == self.boot,
            })
            .collect();
        for stored in &stored {
            self.remember(stored);
        }
        let effects = self.ward.restore(&stored, &now);
        self.take(effects);
    }

    /// What of a stored timeline is remembered beside the ward.
    fn remember(&mut self, stored: &Stored) {
        let mut page = Page::new(stored.id, &stored.unit);
        for entry in &stored.timeline {
            page.add(entry);
            if matches!(entry.event, Happening::Diagnosed { .. }) {
                let known_as = page.incident().known_as().to_owned();
                self.diagnosed.entry(stored.id).or_default().insert(known_as);
            }
            let Some(unit) = self.units.get_mut(&stored.unit).filter(|_| stored.same_boot) else { continue };
            match &entry.event {
                Happening::Symptoms { symptoms, .. } if symptoms.contains(&Symptom::OomKill { main: true }) => {
                    unit.was_killed(entry.moment);
                }
                Happening::Acting {
                    action: Step::Stop { unit: named } | Step::ResetFailed { unit: named },
                    invocation,
                    ..
                } if *named == stored.unit => {
                    unit.stopped = Some(invocation.clone());
                }
                Happening::Acting { action: Step::SetPort { unit, to, .. }, .. } => {
                    self.moved.insert(unit.clone(), *to);
                }
                _ => {}
            }
        }
        if page.is_closed() {
            self.diagnosed.remove(&stored.id);
        } else {
            self.pages.insert(stored.id, page);
        }
    }

    /// Heals until `shutdown` or until the service manager is gone for good.
    ///
    /// # Errors
    /// When the service manager cannot be asked at the start.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<Ends, ManagerError> {
        let manager = Arc::clone(&self.parts.manager);
        let mut events = manager.events();
        let mut entries = manager.entries().await?;
        let ids: Vec<UnitId> = self.watched();
        let listed = manager.watch(&ids).await?;
        self.compare(&listed);
        // The wishes of people come before everything else, and they show when a unit is looked at.
        let all: Vec<String> = self.healed().map(str::to_owned).collect();
        for unit in all {
            self.look(&unit);
        }
        let mut backstop = Instant::now() + BACKSTOP;
        self.board_due = Some(Instant::now());
        while !shutdown.is_cancelled() {
            self.begin_looks();
            let wake = self.wake(backstop);
            tokio::select! {
                () = shutdown.cancelled() => break,
                item = events.next() => match item {
                    Some(FeedItem::Item(event)) => self.hear(event).await,
                    Some(FeedItem::Missed(count)) => {
                        tracing::warn!(count, "signals of systemd were missed; every unit is looked at");
                        self.compare_all().await;
                    }
                    None => break,
                },
                item = entries.next() => if let Some(FeedItem::Item(entry)) = item {
                    self.read(&entry);
                },
                Some(input) = self.beside.join_next(), if !self.beside.is_empty() => self.put_in(input),
                Some(order) = self.parts.orders.recv() => self.order(order),
                Some(news) = self.parts.news.recv() => self.news(news),
                Some(answer) = self.parts.scholar.answer() => self.learnt(answer),
                () = sleep_until(wake) => {}
            }
            // What has come meanwhile goes into the same write.
            for _ in 0..TOGETHER {
                let Some(input) = self.beside.try_join_next() else { break };
                self.put_in(input);
            }
            let now = Instant::now();
            if now >= backstop {
                backstop = now + BACKSTOP;
                self.compare_all().await;
            }
            self.on_time(now);
            self.carry_out().await;
            self.show(now);
        }
        // A last try; why it fails was told.
        let _ = self.write(Vec::new()).await;
        Ok((self.parts.orders, self.parts.news))
    }

    fn watched(&self) -> Vec<UnitId> {
        self.units.values().map(|unit| unit.id.clone()).collect()
    }

    /// Names of the units that may be acted on.
    fn healed(&self) -> impl Iterator<Item = &str> {
        self.units.iter().filter(|(_, unit)| unit.config.is_some()).map(|(name, _)| name.as_str())
    }

    fn wake(&self, backstop: Instant) -> Instant {
        let times = [
            self.due.first().filter(|_| self.probes < PROBES).map(|(at, _)| *at),
            self.later.first().map(|(at, _)| *at),
            self.board_due,
            self.write_again,
            self.ward.next_tick().map(|at| Instant::now() + at.since(clock::now().moment)),
        ];
        times.into_iter().flatten().min().map_or(backstop, |first| first.min(backstop))
    }
}
