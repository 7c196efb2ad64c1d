//! The loop: signals, probes, orders and time go into the [`Ward`], and what comes out of it is written down and done.
//!
//! ```text
//! signals ─┐
//! probes  ─┼─→ look (observe) ─→ ward ─→ entries ─→ book ─→ steps (hands)
//! orders  ─┘         ↑____________________________________________│
//! ```
//!
//! One task owns everything; whatever takes time runs beside it and comes back as an [`Input`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lares_store::incidents::{Pause, Stat};
use lares_units::FeedItem;
use lares_units::port::{self, Event, EventKind, JobOutcome, Listed, LoadState, Manager, ManagerError, UnitId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{PausedUntil, WatchedUnit};
use crate::book::{Book, BookError};
use crate::classify::Classifier;
use crate::clock;
use crate::decide::Policy;
use crate::desk::{Board, Order, Refusal};
use crate::diagnose::Cause;
use crate::facts::{Active, Facts, Load, Noticed};
use crate::hands::{End, Hands};
use crate::helper;
use crate::incident::Phase;
use crate::keeper::{Known, News};
use crate::metrics::HealerMetrics;
use crate::moment::{Moment, Now};
use crate::observe::{self, Context, Observed, Observer};
use crate::outlook::Outlook;
use crate::page::{Line, Page};
use crate::probes::Prober;
use crate::remedy::Step;
use crate::scholar::{self, Answer as Learnt, Clusters, Scholar, Unknown};
use crate::symptom::Symptom;
use crate::timeline::{self, Event as Happening};
use crate::track::Tracked;
use crate::ward::{Effect, Stored, Ward};

/// Looks at the same time: each asks systemd twice and reads the end of a journal.
const LOOKS: usize = 16;
/// Longest that one look takes.
const LOOK_LIMIT: Duration = Duration::from_secs(20);
/// Probes at the same time.
const PROBES: usize = 64;
/// How often a unit that is to become well is probed.
const EAGER: Duration = Duration::from_millis(250);
/// How often everything is compared with what signals told.
const BACKSTOP: Duration = Duration::from_secs(30);
/// Pause before a look that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So often in a row facts are dropped because something was heard while they were gathered.
const OUTDATED: u32 = 3;
/// How often the board is made anew at most.
const BOARD: Duration = Duration::from_millis(100);
/// What systemd says when a process of a unit was killed for want of memory, by the kernel or by systemd-oomd.
const OUT_OF_MEMORY: [&str; 2] = ["fe6faa94e7774663a0da52717891d8ef", "d989611b15e44c9dbf31e3c81256e4ed"];
/// A model is asked so often about one incident: at its beginning, and when the unit fails in other words.
const DIAGNOSES: usize = 2;
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
            self.ward.next_tick().map(|at| Instant::now() + at.since(clock::now().moment)),
        ];
        times.into_iter().flatten().min().map_or(backstop, |first| first.min(backstop))
    }

    // ---- What comes in ----

    async fn hear(&mut self, event: Event) {
        let heard = event.heard;
        match event.kind {
            EventKind::Changed(change) => {
                let now = clock::now().moment;
                let noticed = match change.at {
                    Some(at) => {
                        let (began, ago) = clock::stamped(at);
                        let after = ago.saturating_sub(heard.elapsed());
                        let heard_after_us = (!change.found_late).then(|| micros(after));
                        Noticed { began, heard_after_us }
                    }
                    None => Noticed { began: now, heard_after_us: None },
                };
                let name = change.unit.to_string();
                let Some(unit) = self.units.get_mut(&name) else { return };
                let before = unit.active;
                let look = unit.changed(&change, noticed);
                let active = unit.active;
                self.dirty();
                if look {
                    self.look(&name);
                }
                if active == Active::Active && before != Active::Active {
                    self.probe_soon(&name);
                    self.look_at_dependents(&name);
                }
            }
            EventKind::JobRemoved { unit, outcome, .. } => {
                let name = unit.to_string();
                let Some(unit) = self.units.get_mut(&name) else { return };
                if outcome == JobOutcome::Dependency {
                    let began = clock::now().moment;
                    unit.see(Symptom::DependencyFailed, Noticed { began, heard_after_us: None });
                    self.look(&name);
                } else if self.ward.incident(&name).is_some() {
                    self.look(&name);
                }
            }
            EventKind::Appeared(unit) | EventKind::Gone(unit) => {
                // To look at a unit that is not there makes systemd load and forget it, which is told of again.
                if self.units.get(unit.as_str()).is_some_and(|unit| unit.load != Load::NotFound) {
                    self.look(unit.as_str());
                }
            }
            EventKind::Disconnected { reason } => {
                tracing::warn!(reason, "systemd cannot be heard; trying again until it can");
                self.hearing = false;
                self.dirty();
            }
            EventKind::Resynchronised { gap } => {
                tracing::info!(gap_ms = gap.as_millis(), "systemd can be heard again");
                self.hearing = true;
                self.compare_all().await;
            }
            EventKind::ReloadEnded | EventKind::Missed(_) => self.compare_all().await,
            _ => {}
        }
    }

    /// A line of the journal. Only what systemd itself says of a child that was killed is of interest while units are
    /// well; everything else is read when something is wrong.
    fn read(&mut self, entry: &port::Entry) {
        let told = entry.origin == port::Origin::Manager
            && entry.field("MESSAGE_ID").is_some_and(|id| OUT_OF_MEMORY.contains(&id));
        let Some(unit) = entry.unit.as_ref().filter(|_| told).map(UnitId::to_string) else { return };
        if let Some(tracked) = self.units.get_mut(&unit).filter(|tracked| tracked.active == Active::Active) {
            let began = clock::now().moment;
            tracked.see(Symptom::OomKill { main: false }, Noticed { began, heard_after_us: None });
            self.look(&unit);
        }
    }

    fn put_in(&mut self, input: Result<Input, tokio::task::JoinError>) {
        match input {
            Ok(Input::Seen { unit, seen, unknown_unit }) => self.seen(&unit, seen, unknown_unit),
            Ok(Input::Asked { unit, dry_run, by, seen, answer }) => self.asked(&unit, dry_run, &by, seen, answer),
            Ok(Input::Acted { incident, attempt, step, action, end }) => {
                self.acted(incident, attempt, step, &action, end);
            }
            Ok(Input::Probed { unit, answer }) => self.probed(&unit, answer),
            Ok(Input::Watched { unit, listed }) => {
                self.compare(&listed);
                // For what happened in between.
                self.look(&unit);
            }
            Err(error) => {
                // A fault of ours must not leave a unit without a watch.
                tracing::error!(%error, "a look, a probe or a step ended by a fault of the healer");
                self.looks = 0;
                self.probes = 0;
                for unit in self.units.values_mut() {
                    (unit.looking, unit.probing) = (false, false);
                }
                let all: Vec<String> = self.healed().map(str::to_owned).collect();
                all.iter().for_each(|unit| self.look(unit));
            }
        }
    }

    fn seen(&mut self, name: &str, seen: Result<Observed, String>, unknown_unit: bool) {
        self.looks = self.looks.saturating_sub(1);
        let now = clock::now();
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.looking = false;
        let again = std::mem::take(&mut unit.look_again);
        unit.outdated = if again { unit.outdated + 1 } else { 0 };
        match seen {
            // What was heard meanwhile is about a later state than these facts.
            Ok(_) if again && unit.outdated <= OUTDATED => {}
            Ok(observed) => {
                let unknown = Unknown::of(&observed.facts);
                let facts = self.completed(name, observed, &now);
                self.watch_what_it_needs(&facts);
                let (result, said) = (facts.result.clone(), facts.said.clone());
                let effects = self.ward.observed(facts, &now);
                self.take(effects);
                if let Some(unknown) = unknown {
                    self.study(name, unknown, result, said);
                }
            }
            Err(_) if unknown_unit => {
                let facts = Facts { load: Load::NotFound, active: Active::Inactive, ..Facts::healthy(name) };
                unit.load = Load::NotFound;
                unit.active = Active::Inactive;
                let effects = self.ward.observed(facts, &now);
                self.take(effects);
            }
            Err(why) => {
                tracing::warn!(unit = name, why, "cannot look at a unit; trying again");
                self.later.insert((Instant::now() + LOOK_AGAIN, name.to_owned()));
            }
        }
        if again {
            self.look(name);
        }
        self.dirty();
    }

    /// Facts as the ward gets them: what was looked up, and what is remembered.
    fn completed(&mut self, name: &str, observed: Observed, now: &Now) -> Facts {
        let mut facts = observed.facts;
        for why in observed.unknown {
            tracing::debug!(unit = name, why, "not everything could be found out");
        }
        facts.told_port = self.told_port(name);
        self.clusters.rename(&mut facts);
        if let Some(unit) = self.units.get_mut(name) {
            unit.complete(&mut facts, now.moment);
        }
        facts
    }

    /// Has an unknown failure studied, once for each incident that it is seen in.
    fn study(&mut self, name: &str, unknown: Unknown, result: String, said: Vec<String>) {
        let Some(incident) = self.ward.incident(name) else { return };
        let id = incident.id;
        let fingerprint = unknown.fingerprint.clone();
        let asked = self.diagnosed.get(&id);
        let asks = matches!(incident.cause(), Some(Cause::Crashed | Cause::CrashLoop))
            && self.parts.scholar.diagnoses()
            && asked.is_none_or(|asked| asked.len() < DIAGNOSES && !asked.contains(&fingerprint));
        if self.studied.get(&id) != Some(&fingerprint) && self.parts.scholar.study(unknown) {
            self.studied.insert(id, fingerprint.clone());
        }
        if asks && self.parts.scholar.ask(scholar::Case { incident: id, unit: name.to_owned(), result, lines: said }) {
            self.diagnosed.entry(id).or_default().insert(fingerprint);
        }
    }

    /// Something was found out about an unknown failure.
    fn learnt(&mut self, answer: Learnt) {
        match answer {
            Learnt::Learned { fingerprint, cluster } => {
                let renamed = self.pages.values().map(Page::incident).filter(|open| open.known_as() == fingerprint);
                let units: Vec<String> = renamed.map(|open| open.unit.clone()).collect();
                self.clusters.learn(fingerprint, cluster);
                units.iter().for_each(|unit| self.look(unit));
            }
            Learnt::Diagnosed { incident, model, text } => {
                let effects = self.ward.note(incident, Happening::Diagnosed { model, text }, &clock::now());
                self.take(effects);
            }
        }
    }

    /// Units that take the port of this one from a variable.
    fn told_port(&self, name: &str) -> Vec<String> {
        let told = self
            .units
            .iter()
            .filter(|(_, unit)| unit.config.as_ref().is_some_and(|config| config.port_variables.contains_key(name)));
        told.map(|(other, _)| other.clone()).collect()
    }

    fn acted(&mut self, incident: Uuid, attempt: u32, step: usize, action: &Step, end: End) {
        let now = clock::now();
        if let (Step::SetPort { unit, to, .. }, End::Done) = (action, &end) {
            self.moved.insert(unit.clone(), *to);
        }
        let effects = match end {
            End::Done => self.ward.acted(incident, attempt, step, None, &now),
            End::Failed(why) => self.ward.acted(incident, attempt, step, Some(why), &now),
            End::Unseen(why) => {
                tracing::warn!(%incident, step = %action, why, "how a step went could not be seen");
                self.ward.lost_sight(incident, attempt, step, &now)
            }
        };
        self.take(effects);
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Heal { unit, dry_run, by, answer } => {
                let Some(tracked) = self.units.get(&unit).filter(|tracked| tracked.config.is_some()) else {
                    // Whoever asked may be gone.
                    let _ = answer.send(Err(Refusal::NotWatched(unit)));
                    return;
                };
                let look = self.observation(tracked.id.clone());
                self.beside.spawn(async move {
                    let seen = look.await.map_err(|error| error.to_string());
                    Input::Asked { unit, dry_run, by, seen, answer }
                });
            }
            Order::Answer { incident, approved, by, answer } => {
                let _ = answer.send(self.answer(incident, approved, &by));
            }
            Order::Wishes => self.parts.wishes.notify_one(),
            // Whoever asked may be gone.
            Order::Pulse { answer } => drop(answer.send(())),
        }
    }

    fn answer(&mut self, incident: Uuid, approved: bool, by: &str) -> Result<(), Refusal> {
        let page = self.pages.get(&incident).ok_or(Refusal::NotOpen(incident))?;
        let open = self.ward.incident(&page.incident().unit).filter(|open| open.id == incident);
        match open.ok_or(Refusal::NotOpen(incident))?.phase() {
            Phase::Open | Phase::Held { .. } | Phase::Asking { .. } => {
                let effects = self.ward.answered(incident, approved, by, &clock::now());
                self.take(effects);
                Ok(())
            }
            _ => Err(Refusal::UnderWay(incident)),
        }
    }

    fn asked(&mut self, name: &str, dry_run: bool, by: &str, seen: Result<Observed, String>, answer: Answer<Outlook>) {
        let now = clock::now();
        let outlook = match seen {
            Ok(observed) if dry_run => {
                let mut facts = observed.facts.clone();
                if let Some(unit) = self.units.get(name) {
                    facts.probe = unit.probe;
                }
                self.clusters.rename(&mut facts);
                self.outlook(Observed { facts, ..observed }, now.moment)
            }
            Ok(observed) => {
                let unknown = observed.unknown.clone();
                let facts = self.completed(name, observed, &now);
                let outlook = self.outlook(Observed { facts: facts.clone(), unknown }, now.moment);
                let effects = match self.ward.incident(name) {
                    // A question stays a question: to heal is not to agree.
                    Some(incident) if matches!(incident.phase(), Phase::Open | Phase::Held { .. }) => {
                        let id = incident.id;
                        self.ward.answered(id, true, by, &now)
                    }
                    _ => self.ward.observed(facts, &now),
                };
                self.take(effects);
                outlook
            }
            Err(why) => Err(Refusal::Manager(why)),
        };
        let _ = answer.send(outlook);
    }

    fn outlook(&self, observed: Observed, now: Moment) -> Result<Outlook, Refusal> {
        let name = observed.facts.unit.clone();
        self.ward.outlook(observed, now).ok_or(Refusal::NotWatched(name))
    }

    fn news(&mut self, news: News) {
        match news {
            News::Known(known) => {
                // Incidents of the store are taken up at the start only; what is open now is in the book.
                let Known { pauses, stats, clusters, .. } = *known;
                self.wishes(pauses, &stats);
                self.clusters.load(clusters);
            }
            News::Wishes { pauses, stats } => self.wishes(pauses, &stats),
        }
    }

    fn wishes(&mut self, pauses: Vec<Pause>, stats: &[Stat]) {
        for stat in stats {
            let count = self.ward.lessons().count(&stat.unit, &stat.known_as, &stat.remedy);
            let counted = |number: i32| u32::try_from(number).unwrap_or(0);
            count.helped = count.helped.max(counted(stat.helped));
            count.failed = count.failed.max(counted(stat.failed));
            count.approved = stat.approved;
        }
        self.parts.pauses.write(&pauses);
        let pauses: BTreeMap<String, Pause> = pauses.into_iter().map(|pause| (pause.unit.clone(), pause)).collect();
        let changed: Vec<String> = self
            .pauses
            .keys()
            .chain(pauses.keys())
            .filter(|unit| self.pauses.get(*unit) != pauses.get(*unit))
            .cloned()
            .collect();
        self.pauses = pauses;
        for unit in changed {
            self.look(&unit);
        }
        self.dirty();
    }

    // ---- Looking ----

    /// Has a unit looked at soon; several wishes to look are one.
    fn look(&mut self, name: &str) {
        let Some(unit) = self.units.get_mut(name).filter(|unit| unit.config.is_some()) else { return };
        if unit.looking {
            unit.look_again = true;
        } else {
            unit.looking = true;
            self.queue.push_back(name.to_owned());
        }
    }

    fn begin_looks(&mut self) {
        while self.looks < LOOKS
            && let Some(name) = self.queue.pop_front()
        {
            let Some(unit) = self.units.get(&name) else { continue };
            self.looks += 1;
            let look = self.observation(unit.id.clone());
            self.beside.spawn(async move {
                let seen = look.await;
                let unknown_unit = matches!(seen, Err(ManagerError::Unknown(_)));
                Input::Seen { unit: name, seen: seen.map_err(|error| error.to_string()), unknown_unit }
            });
        }
    }

    fn observation(&self, unit: UnitId) -> impl Future<Output = Result<Observed, ManagerError>> + Send + 'static {
        let manager = Arc::clone(&self.parts.manager);
        let classifier = Arc::clone(&self.parts.classifier);
        let settings = Arc::clone(&self.parts.settings);
        let now = jiff::Timestamp::now();
        let in_force = |pause: &&Pause| pause.until.is_none_or(|until| until > now);
        let context = Context {
            probes: self.units.iter().map(|(name, unit)| (name.clone(), unit.probe)).collect(),
            paused: self.pauses.values().filter(in_force).map(|pause| pause.unit.clone()).collect(),
            stopped_by_us: self
                .units
                .iter()
                .filter_map(|(name, unit)| Some((name.clone(), unit.stopped.clone()?)))
                .collect(),
            recent: self.parts.policies.get(unit.as_str()).map_or(Duration::from_secs(10), |policy| policy.verify_hold),
        };
        async move {
            let observer = Observer::new(&*manager, &classifier, &settings);
            match timeout(LOOK_LIMIT, observer.observe(&unit, &context)).await {
                Ok(seen) => seen,
                Err(_) => Err(ManagerError::Unavailable(format!(
                    "looking at {unit} took longer than {} s",
                    LOOK_LIMIT.as_secs()
                ))),
            }
        }
    }

    /// Those that need a unit and wait for it.
    fn look_at_dependents(&mut self, name: &str) {
        let waiting: Vec<String> = self
            .healed()
            .filter(|unit| *unit != name && self.ward.incident(unit).is_some())
            .map(str::to_owned)
            .collect();
        for unit in waiting {
            if self.ward.does_need(&unit, name) {
                if let Some(unit) = self.units.get_mut(&unit) {
                    unit.gets_time();
                }
                self.look(&unit);
            }
        }
    }

    /// Units that it turns out to need are listened to, too.
    fn watch_what_it_needs(&mut self, facts: &Facts) {
        let new: Vec<UnitId> = facts
            .dependencies
            .iter()
            .filter(|needed| !self.units.contains_key(&needed.unit))
            .filter_map(|needed| UnitId::new(needed.unit.as_str()).ok())
            .collect();
        self.ward.needs(&facts.unit, facts.dependencies.iter().map(|needed| needed.unit.clone()).collect());
        for needed in &facts.dependencies {
            self.ward.needs(&needed.unit, needed.needs.clone());
        }
        if new.is_empty() {
            return;
        }
        for id in &new {
            self.units.insert(id.to_string(), Tracked::new(id.clone(), None, Duration::ZERO));
        }
        let manager = Arc::clone(&self.parts.manager);
        let unit = facts.unit.clone();
        self.beside.spawn(async move {
            // What cannot be watched now is compared by the backstop.
            let listed = manager.watch(&new).await.unwrap_or_default();
            Input::Watched { unit, listed }
        });
    }

    /// Compares what is remembered with what the service manager says, in one question.
    async fn compare_all(&mut self) {
        let ids = self.watched();
        match self.parts.manager.watch(&ids).await {
            Ok(listed) => {
                self.compare(&listed);
                let held: Vec<String> = self.pages.values().map(|page| page.incident().unit.clone()).collect();
                held.iter().for_each(|unit| self.look(unit));
            }
            Err(error) => tracing::debug!(%error, "units cannot be compared now"),
        }
    }

    fn compare(&mut self, listed: &[Listed]) {
        let mut odd = Vec::new();
        for found in listed {
            let name = found.unit.to_string();
            let Some(unit) = self.units.get_mut(&name) else { continue };
            let active = observe::active(&found.standing.active);
            let was = std::mem::replace(&mut unit.active, active);
            let other = |ours, theirs| (unit.load == ours) != (found.load == theirs);
            if was != active || other(Load::Masked, LoadState::Masked) || other(Load::NotFound, LoadState::NotFound) {
                odd.push(name);
            }
        }
        for name in odd {
            self.look(&name);
            self.probe_soon(&name);
        }
    }

    // ---- Probes and time ----

    fn probe_soon(&mut self, name: &str) {
        if self.units.get(name).is_some_and(|unit| unit.active == Active::Active && unit.is_probed()) {
            self.due.retain(|(_, unit)| unit != name);
            self.due.insert((Instant::now(), name.to_owned()));
        }
    }

    fn probed(&mut self, name: &str, answer: Result<(), String>) {
        let Some(unit) = self.units.get_mut(name) else { return };
        self.probes = self.probes.saturating_sub(1);
        let green = answer.is_ok();
        let look = unit.probed(answer, clock::now().moment);
        let (active, probe) = (unit.active, unit.config.as_ref().map(|config| config.probe.clone()));
        if look {
            self.look(name);
            if green {
                self.look_at_dependents(name);
            }
        }
        let Some(probe) = probe.filter(|_| active == Active::Active) else { return };
        let eager = !green && self.awaited(name);
        let pause = if eager { EAGER.min(probe.interval) } else { probe.interval };
        // Spread, so that many probes do not come together.
        let pause = pause.mul_f64(rand::random_range(0.95..1.0));
        self.due.insert((Instant::now() + pause, name.to_owned()));
        self.dirty();
    }

    /// The port that a unit was moved to, for as long as that holds.
    fn where_it_is(&mut self, name: &str) -> Option<u16> {
        let moved = self.moved.get(name).copied()?;
        if helper::is_moved(name) {
            return Some(moved);
        }
        self.moved.remove(name);
        None
    }

    /// Whether somebody waits for this unit to become well.
    fn awaited(&self, name: &str) -> bool {
        self.ward.incident(name).is_some()
            || self.pages.values().any(|page| self.ward.does_need(&page.incident().unit, name))
    }

    fn on_time(&mut self, now: Instant) {
        while self.probes < PROBES
            && let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, name)) = self.due.pop_first()
        {
            let moved = self.where_it_is(&name);
            let Some(unit) = self.units.get_mut(&name) else { continue };
            let Some(probe) = unit.config.as_ref().map(|config| config.probe.clone()) else { continue };
            if unit.probing || unit.active != Active::Active {
                continue;
            }
            unit.probing = true;
            self.probes += 1;
            let prober = self.prober.clone();
            self.beside.spawn(async move {
                let answer = prober.ask(&probe, moved).await;
                Input::Probed { unit: name, answer }
            });
        }
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, name)) = self.later.pop_first()
        {
            self.look(&name);
        }
        let moment = clock::now();
        if self.ward.next_tick().is_some_and(|at| at <= moment.moment) {
            let effects = self.ward.tick(&moment);
            self.take(effects);
        }
        let over: Vec<String> = self
            .pauses
            .values()
            .filter(|pause| pause.until.is_some_and(|until| until <= moment.wall))
            .map(|pause| pause.unit.clone())
            .collect();
        for unit in over {
            self.pauses.remove(&unit);
            self.look(&unit);
            self.dirty();
        }
    }

    // ---- What goes out ----

    fn take(&mut self, effects: Vec<Effect>) {
        self.effects.extend(effects);
    }

    /// Writes entries down, and then does what they say.
    async fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            let effects = std::mem::take(&mut self.effects);
            let lines = self.lines(&effects);
            let written = self.write(lines).await;
            for effect in effects {
                match effect {
                    Effect::Record { .. } => {}
                    Effect::Look { unit } => self.look(&unit),
                    Effect::Act { incident, attempt, step, action } => match &written {
                        Ok(()) => self.begin(incident, attempt, step, action),
                        Err(why) => {
                            let now = clock::now();
                            let effects = self.ward.acted(incident, attempt, step, Some(why.clone()), &now);
                            self.take(effects);
                        }
                    },
                }
            }
            if written.is_err() {
                // What follows from the failure is written when there is room again.
                break;
            }
        }
    }

    /// Entries that belong together, a line for each incident.
    fn lines(&mut self, effects: &[Effect]) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for effect in effects {
            let Effect::Record { incident, unit, entry } = effect else { continue };
            let page = self.pages.entry(*incident).or_insert_with(|| Page::new(*incident, unit));
            page.add(entry);
            self.parts.metrics.heard(&entry.event, page.incident().known_as());
            tell(*incident, unit, entry);
            let row = page.row();
            match lines.iter_mut().find(|line| line.incident.id == *incident) {
                Some(line) => {
                    line.incident = row;
                    line.entries.push(entry.clone());
                }
                None => lines.push(Line { incident: row, boot: self.boot, entries: vec![entry.clone()] }),
            }
            if page.is_closed() {
                self.pages.remove(incident);
                self.studied.remove(incident);
                self.diagnosed.remove(incident);
            }
        }
        if !lines.is_empty() {
            self.dirty();
        }
        lines
    }

    async fn write(&self, lines: Vec<Line>) -> Result<(), String> {
        if lines.is_empty() {
            return Ok(());
        }
        let book = Arc::clone(&self.parts.book);
        let written = spawn_blocking(move || book.write(&lines)).await;
        let outcome: Result<(), BookError> = match written {
            Ok(outcome) => outcome,
            Err(error) => return Err(error.to_string()),
        };
        outcome.map_err(|error| {
            tracing::error!(%error, "nothing is done that cannot be written down");
            error.to_string()
        })
    }

    fn begin(&mut self, incident: Uuid, attempt: u32, step: usize, action: Step) {
        let Some(name) = self.pages.get(&incident).map(|page| page.incident().unit.clone()) else { return };
        match &action {
            // Afterwards it is inactive without a failure, as if somebody had stopped it.
            Step::Stop { unit } | Step::ResetFailed { unit } => {
                if let Some(unit) = self.units.get_mut(unit) {
                    unit.about_to_end();
                }
            }
            Step::Start { unit } | Step::Restart { unit } => {
                if let Some(unit) = self.units.get_mut(unit) {
                    unit.stopped = None;
                }
            }
            _ => {}
        }
        let hands = self.parts.hands.clone();
        // What the ward waits for has to end before it gives up waiting.
        let limit = self.parts.policies.get(&name).map_or(LOOK_LIMIT, |policy| policy.step_timeout);
        let patience = limit.saturating_sub(Duration::from_secs(2));
        self.beside.spawn(async move {
            let end = hands.carry_out(&name, &action, patience).await;
            Input::Acted { incident, attempt, step, action, end }
        });
    }

    fn dirty(&mut self) {
        if self.board_due.is_none() {
            self.board_due = Some(Instant::now() + BOARD);
        }
    }

    /// Shows the units as they are, when that has changed.
    fn show(&mut self, now: Instant) {
        if self.board_due.is_none_or(|at| at > now) {
            return;
        }
        let unshipped = self.parts.book.unshipped();
        self.board_due = (unshipped > 0).then(|| now + BOARD * 10);
        let shown = self.units.iter().filter(|(_, unit)| unit.config.is_some()).map(|(name, unit)| {
            let incident = self.ward.incident(name);
            let paused = self.pauses.get(name).map(|pause| PausedUntil {
                until: pause.until,
                by: pause.by.clone(),
                reason: pause.reason.clone(),
            });
            let watched = WatchedUnit {
                unit: name.clone(),
                load: unit.load,
                active: unit.active,
                probe: unit.probe,
                restarts: unit.restarts,
                incident: incident.map(|incident| incident.id),
                doing: incident.map(|incident| incident.phase().to_string()),
                paused,
            };
            (name.clone(), watched)
        });
        let board = Board { units: shown.collect(), acting: true, hearing: self.hearing, unshipped };
        self.parts.board.send_replace(Arc::new(board));
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The same in the journal: `journalctl LARES_INCIDENT=…` tells the story.
fn tell(incident: Uuid, unit: &str, entry: &timeline::Entry) {
    let (kind, ms, seq) = (entry.event.kind(), entry.ms, entry.seq);
    match &entry.event {
        Happening::HandedOver { .. } | Happening::Asked { .. } => {
            tracing::warn!(%incident, unit, kind, ms, seq, "{unit}: {}", entry.event);
        }
        _ => tracing::info!(%incident, unit, kind, ms, seq, "{unit}: {}", entry.event),
    }
}
