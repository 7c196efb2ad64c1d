//! Keeps the healer's place in PostgreSQL: takes and renews the lease of this machine, brings there what the book
//! holds, and tells the loop what people wish.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lares_store::Store;
use lares_store::incidents::{Entry, Incident, IncidentError, Lease, Pause, Stat, WISHES_CHANNEL};
use lares_store::notify::{Item, Notifications};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::book::{Book, KEPT};
use crate::observe::PROFILE;
use crate::remedy::Remedy;
use crate::timeline::Event;

/// How long the lease lasts when it is not renewed, and how often it is.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// How long a healer that starts waits for PostgreSQL before it heals without.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before the next try when PostgreSQL cannot be reached or another healer acts.
const AGAIN: Duration = Duration::from_secs(1);
/// Lines brought over at once.
const BATCH: usize = 200;
/// Longest that the last lines may take on the way out.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the loop hears from here.
#[derive(Debug)]
pub(crate) enum News {
    /// What PostgreSQL knows: at the start, when it can be reached again, and when something of it has changed.
    Known(Box<Known>),
    /// What people wish has changed: pauses and approvals, read anew.
    Wishes {
        /// Pauses in force.
        pauses: Vec<Pause>,
        /// What remedies are worth.
        stats: Vec<Stat>,
    },
}

/// What PostgreSQL knows of this machine.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Incidents that are open, and those that ended within the hour.
    pub(crate) incidents: Vec<(Incident, Vec<Entry>)>,
    /// Pauses in force.
    pub(crate) pauses: Vec<Pause>,
    /// What remedies are worth.
    pub(crate) stats: Vec<Stat>,
    /// Generations of the system that going back from was proposed for.
    pub(crate) bad: Vec<u64>,
    /// Unknown failures that go by the name of another one: fingerprint and that name.
    pub(crate) clusters: Vec<(String, String)>,
}

/// Whether this healer may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not known yet.
    Unknown,
    /// It has the machine, or nobody can be asked.
    Ours,
    /// Another healer has it.
    Taken,
}

/// One healer's place.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) book: Arc<Book>,
    pub(crate) host: String,
    pub(crate) place: watch::Sender<Place>,
    pub(crate) news: mpsc::Sender<News>,
    /// Becomes true when the store can be used for the first time.
    pub(crate) prepared: watch::Sender<bool>,
    /// Rings when wishes are to be read again though PostgreSQL did not announce any.
    pub(crate) wishes: Arc<tokio::sync::Notify>,
}

impl Keeper {
    /// Keeps it until `shutdown`, then gives it back.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut lease = None;
        let mut away = false;
        let work = async {
            let started = Instant::now();
            loop {
                if let Err(error) = self.session(&mut lease, &mut away, started + PATIENCE).await {
                    match error {
                        IncidentError::Fenced(_) => {
                            lease = None;
                            self.set(Place::Taken);
                        }
                        // Told once, however long it takes.
                        error if std::mem::replace(&mut away, true) => {
                            tracing::debug!(error = %lares_gate::chain(&error), "PostgreSQL is still away");
                        }
                        error => {
                            tracing::warn!(error = %lares_gate::chain(&error), "PostgreSQL is away; incidents wait in the book");
                        }
                    }
                }
                if *self.place.borrow() == Place::Unknown && started.elapsed() >= PATIENCE {
                    tracing::warn!("heals without PostgreSQL until it can be reached");
                    self.set(Place::Ours);
                }
                sleep(AGAIN.mul_f64(rand::random_range(0.75..1.25))).await;
            }
        };
        shutdown.run_until_cancelled(work).await;
        if let Some(lease) = lease {
            let leave = async {
                self.ship(&lease).await?;
                self.store.incidents().release(&lease).await
            };
            if let Ok(Err(error)) = timeout(FAREWELL, leave).await {
                tracing::warn!(%error, "what is not in PostgreSQL yet waits in the book");
            }
        }
    }

    fn set(&self, place: Place) {
        self.place.send_if_modified(|now| std::mem::replace(now, place) != place);
    }

    /// Works with PostgreSQL until that fails. `away`: whether it was, until it is there. `first`: when to give up waiting for it at the start.
    async fn session(&self, lease: &mut Option<Lease>, away: &mut bool, first: Instant) -> Result<(), IncidentError> {
        if !*self.prepared.borrow() {
            if *self.place.borrow() == Place::Unknown {
                let Ok(done) = timeout_at(first, self.store.prepare()).await else { return Ok(()) };
                done?;
            } else {
                self.store.prepare().await?;
            }
            self.prepared.send_replace(true);
        }
        let mut notifications = self.store.listen(&[WISHES_CHANNEL]).await?;
        let owner = self.book.id().to_string();
        let held = loop {
            match self.store.incidents().take(&self.host, &owner, LEASE).await? {
                Some(held) => break held,
                None => self.set(Place::Taken),
            }
            sleep(AGAIN).await;
        };
        *lease = Some(held.clone());
        *away = false;
        // What the book holds comes before what PostgreSQL knows, so that the latter is whole.
        self.ship(&held).await?;
        self.tell_all().await?;
        self.set(Place::Ours);
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = self.book.bell.notified() => self.ship(&held).await?,
                () = self.wishes.notified() => self.tell_wishes().await?,
                item = notifications.recv() => match item {
                    Some(Item::Notification(_) | Item::Resync) => {
                        settle(&mut notifications).await;
                        self.tell_wishes().await?;
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(renewed + RENEW) => {}
            }
            if renewed.elapsed() >= RENEW {
                self.store.incidents().renew(&held, LEASE).await?;
                renewed = Instant::now();
            }
        }
    }

    async fn tell_all(&self) -> Result<(), IncidentError> {
        let incidents = self.store.incidents();
        let known = Known {
            incidents: incidents.to_resume(&self.host, KEPT.unsigned_abs()).await?,
            pauses: incidents.pauses(&self.host).await?,
            stats: incidents.stats(&self.host).await?,
            bad: self.bad_generations().await?,
            clusters: self.store.failures().clusters().await?,
        };
        self.tell(News::Known(Box::new(known))).await;
        Ok(())
    }

    /// Those that are still the systems they were: numbers are given again after old generations are deleted.
    async fn bad_generations(&self) -> Result<Vec<u64>, IncidentError> {
        let mut bad = Vec::new();
        for (generation, system) in self.store.incidents().bad_generations(&self.host).await? {
            if let Ok(generation) = u64::try_from(generation)
                && system_of(generation).await.is_some_and(|now| now == system)
            {
                bad.push(generation);
            }
        }
        Ok(bad)
    }

    async fn tell_wishes(&self) -> Result<(), IncidentError> {
        let incidents = self.store.incidents();
        let (pauses, stats) = (incidents.pauses(&self.host).await?, incidents.stats(&self.host).await?);
        self.tell(News::Wishes { pauses, stats }).await;
        Ok(())
    }

    async fn tell(&self, news: News) {
        // Without a loop nobody needs to know.
        let _ = self.news.send(news).await;
    }

    /// Brings over everything that waits.
    async fn ship(&self, lease: &Lease) -> Result<(), IncidentError> {
        loop {
            let book = Arc::clone(&self.book);
            let read = spawn_blocking(move || book.waiting(BATCH)).await;
            let (lines, end) = match read {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => {
                    tracing::error!(%error, "incidents cannot be brought to PostgreSQL");
                    return Ok(());
                }
                Err(_) => return Ok(()),
            };
            let count = lines.len();
            for line in lines {
                self.bring(lease, line).await?;
            }
            let book = Arc::clone(&self.book);
            if let Ok(Err(error)) = spawn_blocking(move || book.shipped(end, count, Timestamp::now())).await {
                tracing::error!(%error, "the book cannot be tidied");
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }

    async fn bring(&self, lease: &Lease, line: crate::page::Line) -> Result<(), IncidentError> {
        let incidents = self.store.incidents();
        let Ok(rows) = line.rows() else { return Ok(()) };
        for entry in &line.entries {
            if let Event::Asked { remedy: Remedy::Rollback { from, .. } } = &entry.event
                && let Some(system) = system_of(*from).await
                && let Ok(generation) = i64::try_from(*from)
            {
                incidents.mark_bad(&self.host, generation, &system, line.incident.id).await?;
            }
        }
        match incidents.append(lease, &line.incident, &rows).await {
            Err(IncidentError::Gap { id, .. }) => {
                // PostgreSQL was put back to an earlier state: it gets the whole incident again.
                let book = Arc::clone(&self.book);
                let all = spawn_blocking(move || book.all_of(id)).await;
                let Ok(Ok(all)) = all else { return Ok(()) };
                let rows: Vec<Entry> = all.iter().filter_map(|line| line.rows().ok()).flatten().collect();
                match incidents.append(lease, &line.incident, &rows).await {
                    Err(error @ IncidentError::Gap { .. }) => {
                        tracing::error!(%error, "the beginning of an incident is lost; it stays in the journal only");
                        Ok(())
                    }
                    other => other,
                }
            }
            // Trying again would be refused again, and hold up all that comes after it.
            Err(error) if !matches!(error, IncidentError::Fenced(_)) && !error.is_transient() => {
                tracing::error!(incident = %line.incident.id, error = %lares_gate::chain(&error), "PostgreSQL refuses an incident; it stays in the journal only");
                Ok(())
            }
            other => other,
        }
    }
}

/// Store path of a generation's system.
async fn system_of(generation: u64) -> Option<String> {
    let link = format!("{PROFILE}-{generation}-link");
    tokio::fs::canonicalize(link).await.ok()?.into_os_string().into_string().ok()
}

/// Several announcements that come together are one.
async fn settle(notifications: &mut Notifications) {
    while let Ok(Some(_)) = timeout(Duration::from_millis(20), notifications.recv()).await {}
}
