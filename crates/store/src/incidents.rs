//! Incidents of units and their timelines, what remedies are worth, pauses, and generations that went wrong.
//!
//! A healer holds its host by a lease with a fence, as a worker holds a task; every entry it writes names the fence, so
//! that of two healers on one host only one acts. Entries are numbered within their incident, and writing one again
//! changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{Error, Store};

/// Channel that tells readers of a new entry; the payload is the incident's id.
pub const CHANNEL: &str = "lares_incidents";
/// Channel that tells the healer of a pause that began or ended, or of an approval; the payload is the unit's name.
pub const WISHES_CHANNEL: &str = "lares_wishes";

/// Why a query about incidents did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncidentError {
    /// There is no such incident.
    #[error("there is no incident {0}; `lares incident list` shows those that exist")]
    NotFound(Uuid),
    /// Another healer took the host over; the one that asked must not act any more.
    #[error("the lease of host {0} is lost: another healer took it over")]
    Fenced(String),
    /// An entry that comes before these is missing.
    #[error("entry {found} of incident {id} does not follow entry {last}")]
    Gap {
        /// The incident.
        id: Uuid,
        /// Number of the first new entry.
        found: i32,
        /// Number of the last one that is there.
        last: i32,
    },
    /// PostgreSQL refused, could not be reached, or holds what this version cannot read.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<tokio_postgres::Error> for IncidentError {
    fn from(e: tokio_postgres::Error) -> Self {
        Self::Store(e.into())
    }
}

impl IncidentError {
    /// Whether trying again may help: PostgreSQL could not be reached, is busy or shuts down.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_temporary())
    }
}

type Result<T, E = IncidentError> = std::result::Result<T, E>;

/// Where an incident stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// What to do is to be decided.
    Open,
    /// Nothing is done for now.
    Held,
    /// A person is asked.
    Asking,
    /// A remedy is under way.
    Healing,
    /// Whether it helped shows now.
    Verifying,
    /// It has ended.
    Closed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Open, Self::Held, Self::Asking, Self::Healing, Self::Verifying, Self::Closed];

    /// The name it has in the store and over HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Held => "held",
            Self::Asking => "asking",
            Self::Healing => "healing",
            Self::Verifying => "verifying",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no state of an incident.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a state of an incident; use open, held, asking, healing, verifying or closed")]
pub struct UnknownState(String);

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(s: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == s).ok_or_else(|| UnknownState(s.to_owned()))
    }
}

/// What a healer shows with each write: its host, and the number it got when it took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The host: what tells the units of one machine from those of another in the same database.
    pub host: String,
    /// Number of the take-over.
    pub fence: i64,
}

/// An incident as its last entry left it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Its id (UUID version 7).
    pub id: Uuid,
    /// The unit.
    pub unit: String,
    /// Where it stands.
    pub state: State,
    /// How it ended; set when it is closed.
    pub outcome: Option<String>,
    /// Pattern or fingerprint the failure is known by; empty: neither.
    pub known_as: String,
    /// The cause, in a sentence.
    pub cause: String,
    /// What it has in common with other incidents.
    pub shared: Option<serde_json::Value>,
    /// Whether a person was told.
    pub needs_person: bool,
    /// When it began.
    pub opened_at: Timestamp,
    /// When it ended.
    pub closed_at: Option<Timestamp>,
    /// Milliseconds from the first symptom until the unit was up again, once that is verified.
    pub recovered_ms: Option<i64>,
}

impl Incident {
    fn from_row(row: &Row) -> Result<Self> {
        let state: &str = row.try_get("state")?;
        let id = row.try_get("id")?;
        let state = state.parse().map_err(|e| Error::Unreadable { table: "incidents", what: format!("{id}: {e}") })?;
        Ok(Self {
            id,
            unit: row.try_get("unit")?,
            state,
            outcome: row.try_get("outcome")?,
            known_as: row.try_get("known_as")?,
            cause: row.try_get("cause")?,
            shared: row.try_get("shared")?,
            needs_person: row.try_get("needs_person")?,
            opened_at: row.try_get("opened_at")?,
            closed_at: row.try_get("closed_at")?,
            recovered_ms: row.try_get("recovered_ms")?,
        })
    }
}

/// One entry of a timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place, from 1 on without a gap.
    pub seq: i32,
    /// When, for people.
    pub at: Timestamp,
    /// Boot that wrote it.
    pub boot: Uuid,
    /// Milliseconds since that boot.
    pub boot_ms: i64,
    /// Milliseconds since the incident began.
    pub ms: i64,
    /// What it is about.
    pub kind: String,
    /// A line for a person.
    pub message: String,
    /// The same for a program.
    pub data: serde_json::Value,
    /// What it teaches about a remedy. Counted when the entry is new; not kept with it.
    #[serde(skip)]
    pub lesson: Option<Lesson>,
}

impl Entry {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            seq: row.try_get("seq")?,
            at: row.try_get("at")?,
            boot: row.try_get("boot")?,
            boot_ms: row.try_get("boot_ms")?,
            ms: row.try_get("ms")?,
            kind: row.try_get("kind")?,
            message: row.try_get("message")?,
            data: row.try_get("data")?,
            lesson: None,
        })
    }
}

/// Whether a remedy helped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesson {
    /// Pattern or fingerprint.
    pub known_as: String,
    /// Name of the remedy.
    pub remedy: String,
    /// Whether it helped.
    pub helped: bool,
}

/// What a remedy is worth against one failure of one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The unit.
    pub unit: String,
    /// Pattern or fingerprint.
    pub known_as: String,
    /// Name of the remedy.
    pub remedy: String,
    /// Times it was verified.
    pub helped: i32,
    /// Times it was not.
    pub failed: i32,
    /// Whether a person allowed it.
    pub approved: bool,
}

/// What came of the incidents of a while.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Incidents that began in it.
    pub incidents: i64,
    /// Those of them that have not ended.
    pub open: i64,
    /// Those of them that a person was told of.
    pub needs_person: i64,
    /// Those of them that have ended, by how.
    pub outcomes: BTreeMap<String, i64>,
    /// The same by what they are known by, the most frequent first, at most [`PATTERNS`].
    pub patterns: Vec<PatternStatistics>,
}

/// Most patterns and fingerprints that [`Statistics`] names: unknown failures may be many.
pub const PATTERNS: i64 = 100;

/// What came of the incidents that are known by one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PatternStatistics {
    /// Pattern or fingerprint; empty: neither.
    pub known_as: String,
    /// Incidents.
    pub incidents: i64,
    /// Those of them that a remedy healed.
    pub healed: i64,
    /// Remedies that helped, and that was verified.
    pub helped: i64,
    /// Remedies that did not help.
    pub failed: i64,
    /// Milliseconds from the beginning until the unit was up again, of those healed: half of them took no longer.
    pub recovered_median_ms: Option<f64>,
    /// 95 of 100 took no longer.
    pub recovered_p95_ms: Option<f64>,
    /// Microseconds from the service manager's own stamp of the first symptom until it was heard of, where known.
    pub detected_median_us: Option<f64>,
    /// 95 of 100 took no longer.
    pub detected_p95_us: Option<f64>,
}

/// A unit that somebody wants left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The unit.
    pub unit: String,
    /// Until when; `None`: until it is resumed.
    pub until: Option<Timestamp>,
    /// Who wants it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// Which incidents to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this host.
    pub host: Option<String>,
    /// Only of this unit.
    pub unit: Option<String>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only those that have not ended.
    pub open: bool,
    /// Only those a person was told of.
    pub needs_person: bool,
    /// Only those older than this one.
    pub before: Option<Uuid>,
    /// At most so many (at least 1, at most 1000).
    pub limit: u32,
}

/// Queries about incidents.
#[derive(Debug, Clone, Copy)]
pub struct Incidents<'a> {
    pub(crate) store: &'a Store,
}

impl Incidents<'_> {
    /// Takes a host whose healer fell silent, or that nobody has. `None` while another has it. `owner` names the
    /// process: one that takes its own host again gets a new fence.
    pub async fn take(&self, host: &str, owner: &str, lease: Duration) -> Result<Option<Lease>> {
        let client = self.store.client().await?;
        let row = client
            .query_opt(
                "INSERT INTO healer_leases AS l (host, owner, lease_until)
                 VALUES ($1, $2, clock_timestamp() + $3::bigint * interval '1 millisecond')
                 ON CONFLICT (host) DO UPDATE
                 SET owner = excluded.owner, fence = l.fence + 1, lease_until = excluded.lease_until
                 WHERE l.owner = excluded.owner OR l.lease_until < clock_timestamp()
                 RETURNING fence",
                &[&host, &owner, &millis(lease)],
            )
            .await?;
        row.map(|row| Ok(Lease { host: host.to_owned(), fence: row.try_get(0)? })).transpose()
    }

    /// Keeps the host for so long from now on.
    pub async fn renew(&self, lease: &Lease, extend: Duration) -> Result<()> {
        let client = self.store.client().await?;
        let changed = client
            .execute(
                "UPDATE healer_leases SET lease_until = clock_timestamp() + $3::bigint * interval '1 millisecond'
                 WHERE host = $1 AND fence = $2",
                &[&lease.host, &lease.fence, &millis(extend)],
            )
            .await?;
        held(changed, lease)
    }

    /// Gives the host back, so that the next healer need not wait.
    pub async fn release(&self, lease: &Lease) -> Result<()> {
        let client = self.store.client().await?;
        let changed = client
            .execute(
                "UPDATE healer_leases SET lease_until = '-infinity' WHERE host = $1 AND fence = $2",
                &[&lease.host, &lease.fence],
            )
            .await?;
        held(changed, lease)
    }

    /// Appends entries to an incident, all or none, and sets what the last one leaves it as. Entries that are there
    /// already are passed over, lessons included; so a call whose answer was lost is simply made again.
    pub async fn append(&self, lease: &Lease, incident: &Incident, entries: &[Entry]) -> Result<()> {
        let (Some(first), Some(newest)) = (entries.first(), entries.last()) else { return Ok(()) };
        let mut client = self.store.client().await?;
        let tx = client.transaction().await?;
        // The lock keeps another healer from taking the host over until this is written.
        let held_now = tx
            .execute(
                "SELECT 1 FROM healer_leases WHERE host = $1 AND fence = $2 FOR SHARE",
                &[&lease.host, &lease.fence],
            )
            .await?;
        held(held_now, lease)?;
        let last: Option<i32> = tx
            .query_opt("SELECT last_seq FROM incidents WHERE id = $1 FOR UPDATE", &[&incident.id])
            .await?
            .map(|row| row.try_get(0))
            .transpose()?;
        let last = last.unwrap_or(0);
        if first.seq > last + 1 {
            return Err(IncidentError::Gap { id: incident.id, found: first.seq, last });
        }
        if last == 0 {
            // A unit has one open incident; an older one belongs to a healer that lost its memory of it.
            tx.execute(
                "UPDATE incidents SET state = 'closed', outcome = 'superseded', closed_at = $4
                 WHERE host = $1 AND unit = $2 AND id < $3 AND closed_at IS NULL",
                &[&lease.host, &incident.unit, &incident.id, &incident.opened_at],
            )
            .await?;
        }
        tx.execute(
            "INSERT INTO incidents AS i (id, host, unit, state, outcome, known_as, cause, shared, needs_person,
                                         opened_at, closed_at, recovered_ms, last_seq)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             ON CONFLICT (id) DO UPDATE
             SET state = excluded.state, outcome = excluded.outcome, known_as = excluded.known_as,
                 cause = excluded.cause, shared = excluded.shared, needs_person = excluded.needs_person,
                 closed_at = excluded.closed_at, recovered_ms = excluded.recovered_ms, last_seq = excluded.last_seq
             WHERE i.last_seq < excluded.last_seq",
            &[
                &incident.id,
                &lease.host,
                &incident.unit,
                &incident.state.as_str(),
                &incident.outcome,
                &clean(&incident.known_as),
                &clean(&incident.cause),
                &incident.shared,
                &incident.needs_person,
                &incident.opened_at,
                &incident.closed_at,
                &incident.recovered_ms,
                &newest.seq,
            ],
        )
        .await?;
        for entry in entries.iter().filter(|entry| entry.seq > last) {
            tx.execute(
                "INSERT INTO incident_events (incident_id, seq, at, boot, boot_ms, ms, kind, message, data)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    &incident.id,
                    &entry.seq,
                    &entry.at,
                    &entry.boot,
                    &entry.boot_ms,
                    &entry.ms,
                    &entry.kind,
                    &clean(&entry.message),
                    &clean_json(&entry.data),
                ],
            )
            .await?;
            if let Some(lesson) = &entry.lesson {
                let (helped, failed) = (i32::from(lesson.helped), i32::from(!lesson.helped));
                tx.execute(
                    "INSERT INTO remedy_stats AS s (host, unit, known_as, remedy, helped, failed)
                     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (host, unit, known_as, remedy)
                     DO UPDATE SET helped = s.helped + excluded.helped, failed = s.failed + excluded.failed",
                    &[&lease.host, &incident.unit, &clean(&lesson.known_as), &lesson.remedy, &helped, &failed],
                )
                .await?;
            }
        }
        if newest.seq > last {
            tx.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &incident.id.to_string()]).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The incident.
    pub async fn get(&self, id: Uuid) -> Result<Incident> {
        let client = self.store.client().await?;
        let row = client.query_opt("SELECT * FROM incidents WHERE id = $1", &[&id]).await?;
        Incident::from_row(&row.ok_or(IncidentError::NotFound(id))?)
    }

    /// Its timeline after entry `seq` (0: all of it).
    pub async fn timeline(&self, id: Uuid, seq: i32) -> Result<Vec<Entry>> {
        let client = self.store.client().await?;
        let rows = client
            .query("SELECT * FROM incident_events WHERE incident_id = $1 AND seq > $2 ORDER BY seq", &[&id, &seq])
            .await?;
        rows.iter().map(Entry::from_row).collect()
    }

    /// The host whose unit it is about.
    pub async fn host(&self, id: Uuid) -> Result<String> {
        let client = self.store.client().await?;
        let row = client.query_opt("SELECT host FROM incidents WHERE id = $1", &[&id]).await?;
        Ok(row.ok_or(IncidentError::NotFound(id))?.try_get(0)?)
    }

    /// Incidents, newest first.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Incident>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT * FROM incidents
                 WHERE ($1::text IS NULL OR unit = $1) AND ($2::text IS NULL OR state = $2)
                   AND (NOT $3 OR closed_at IS NULL) AND (NOT $4 OR needs_person)
                   AND ($5::uuid IS NULL OR id < $5) AND ($7::text IS NULL OR host = $7)
                 ORDER BY id DESC LIMIT $6",
                &[
                    &filter.unit,
                    &filter.state.map(State::as_str),
                    &filter.open,
                    &filter.needs_person,
                    &filter.before,
                    &i64::from(filter.limit.clamp(1, 1000)),
                    &filter.host,
                ],
            )
            .await?;
        rows.iter().map(Incident::from_row).collect()
    }

    /// What a healer that starts has to know: the incidents of its host that are open, and those that ended within
    /// `window`, each with its timeline. Oldest first.
    pub async fn to_resume(&self, host: &str, window: Duration) -> Result<Vec<(Incident, Vec<Entry>)>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT * FROM incidents WHERE host = $1 AND (closed_at IS NULL
                    OR closed_at > clock_timestamp() - $2::bigint * interval '1 millisecond') ORDER BY id",
                &[&host, &millis(window)],
            )
            .await?;
        let mut incidents =
            rows.iter().map(|row| Ok((Incident::from_row(row)?, Vec::new()))).collect::<Result<Vec<_>>>()?;
        let ids: Vec<Uuid> = incidents.iter().map(|(incident, _)| incident.id).collect();
        let rows = client
            .query("SELECT * FROM incident_events WHERE incident_id = ANY($1) ORDER BY incident_id, seq", &[&ids])
            .await?;
        for row in &rows {
            let id: Uuid = row.try_get("incident_id")?;
            if let Some((_, timeline)) = incidents.iter_mut().find(|(incident, _)| incident.id == id) {
                timeline.push(Entry::from_row(row)?);
            }
        }
        Ok(incidents)
    }

    /// What remedies are worth on a host.
    pub async fn stats(&self, host: &str) -> Result<Vec<Stat>> {
        let client = self.store.client().await?;
        let rows = client
            .query("SELECT * FROM remedy_stats WHERE host = $1 ORDER BY unit, known_as, remedy", &[&host])
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Stat {
                    unit: row.try_get("unit")?,
                    known_as: row.try_get("known_as")?,
                    remedy: row.try_get("remedy")?,
                    helped: row.try_get("helped")?,
                    failed: row.try_get("failed")?,
                    approved: row.try_get("approved")?,
                })
            })
            .collect()
    }

    /// What came of the incidents of a host that began within `window` until now.
    pub async fn statistics(&self, host: &str, window: Duration) -> Result<Statistics> {
        let client = self.store.client().await?;
        // The window begins at the same moment for both queries.
        let since: Timestamp = client
            .query_one("SELECT clock_timestamp() - $1::bigint * interval '1 millisecond'", &[&millis(window)])
            .await?
            .try_get(0)?;
        let mut statistics = Statistics::default();
        let rows = client
            .query(
                "SELECT outcome, count(*), count(*) FILTER (WHERE needs_person) FROM incidents
                 WHERE host = $1 AND opened_at >= $2 GROUP BY outcome",
                &[&host, &since],
            )
            .await?;
        for row in &rows {
            let (outcome, count): (Option<String>, i64) = (row.try_get(0)?, row.try_get(1)?);
            statistics.incidents += count;
            statistics.needs_person += row.try_get::<_, i64>(2)?;
            match outcome {
                Some(outcome) => _ = statistics.outcomes.insert(outcome, count),
                None => statistics.open += count,
            }
        }
        let rows = client
            .query(
                "WITH told AS (
                     SELECT i.id, i.known_as, i.outcome, i.recovered_ms::float8 AS recovered_ms,
                            count(*) FILTER (WHERE e.kind = 'verified') AS helped,
                            count(*) FILTER (WHERE e.kind = 'not_verified') AS failed,
                            max(CASE WHEN e.seq = 1 AND jsonb_typeof(e.data -> 'heard_after_us') = 'number'
                                     THEN (e.data -> 'heard_after_us')::float8 END) AS detected_us
                     FROM incidents i LEFT JOIN incident_events e ON e.incident_id = i.id
                     WHERE i.host = $1 AND i.opened_at >= $2 GROUP BY i.id)
                 SELECT known_as, count(*) AS incidents, count(*) FILTER (WHERE outcome = 'healed') AS healed,
                        sum(helped)::bigint AS helped, sum(failed)::bigint AS failed,
                        percentile_cont(0.5) WITHIN GROUP (ORDER BY recovered_ms) AS recovered_median_ms,
                        percentile_cont(0.95) WITHIN GROUP (ORDER BY recovered_ms) AS recovered_p95_ms,
                        percentile_cont(0.5) WITHIN GROUP (ORDER BY detected_us) AS detected_median_us,
                        percentile_cont(0.95) WITHIN GROUP (ORDER BY detected_us) AS detected_p95_us
                 FROM told GROUP BY known_as ORDER BY count(*) DESC, known_as LIMIT $3",
                &[&host, &since, &PATTERNS],
            )
            .await?;
        for row in &rows {
            statistics.patterns.push(PatternStatistics {
                known_as: row.try_get("known_as")?,
                incidents: row.try_get("incidents")?,
                healed: row.try_get("healed")?,
                helped: row.try_get("helped")?,
                failed: row.try_get("failed")?,
                recovered_median_ms: row.try_get("recovered_median_ms")?,
                recovered_p95_ms: row.try_get("recovered_p95_ms")?,
                detected_median_us: row.try_get("detected_median_us")?,
                detected_p95_us: row.try_get("detected_p95_us")?,
            });
        }
        Ok(statistics)
    }

    /// Allows a remedy against an unknown failure, or takes that back.
    pub async fn approve(&self, host: &str, unit: &str, known_as: &str, remedy: &str, approved: bool) -> Result<()> {
        let client = self.store.client().await?;
        client
            .execute(
                "WITH set AS (INSERT INTO remedy_stats (host, unit, known_as, remedy, approved)
                              VALUES ($1, $2, $3, $4, $5) ON CONFLICT (host, unit, known_as, remedy)
                              DO UPDATE SET approved = excluded.approved RETURNING unit)
                 SELECT pg_notify('lares_wishes', unit) FROM set",
                &[&host, &unit, &clean(known_as), &remedy, &approved],
            )
            .await?;
        Ok(())
    }

    /// Leaves a unit alone for so long (`None`: until it is resumed). A second pause takes the place of the first.
    pub async fn pause(
        &self,
        host: &str,
        unit: &str,
        lasting: Option<Duration>,
        by: &str,
        reason: &str,
    ) -> Result<Pause> {
        let client = self.store.client().await?;
        let row = client
            .query_one(
                "WITH set AS (INSERT INTO pauses (host, unit, until, by, reason)
                              VALUES ($1, $2, clock_timestamp() + $3::bigint * interval '1 millisecond', $4, $5)
                              ON CONFLICT (host, unit) DO UPDATE SET until = excluded.until, by = excluded.by,
                                  reason = excluded.reason, since = clock_timestamp() RETURNING *)
                 SELECT set.*, pg_notify('lares_wishes', unit) FROM set",
                &[&host, &unit, &lasting.map(millis), &clean(by), &clean(reason)],
            )
            .await?;
        pause_from_row(&row)
    }

    /// Ends a pause. Returns whether there was one.
    pub async fn resume(&self, host: &str, unit: &str) -> Result<bool> {
        let client = self.store.client().await?;
        let ended = client
            .execute(
                "WITH gone AS (DELETE FROM pauses WHERE host = $1 AND unit = $2 RETURNING unit)
                 SELECT pg_notify('lares_wishes', unit) FROM gone",
                &[&host, &unit],
            )
            .await?;
        Ok(ended > 0)
    }

    /// The pauses in force on a host.
    pub async fn pauses(&self, host: &str) -> Result<Vec<Pause>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT * FROM pauses WHERE host = $1 AND (until IS NULL OR until > clock_timestamp()) ORDER BY unit",
                &[&host],
            )
            .await?;
        rows.iter().map(pause_from_row).collect()
    }

    /// Remembers a system generation that units failed with, by the store path of the system.
    pub async fn mark_bad(&self, host: &str, generation: i64, system: &str, incident: Uuid) -> Result<()> {
        let client = self.store.client().await?;
        client
            .execute(
                "INSERT INTO generations_bad (host, generation, system, incident) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (host, system) DO UPDATE SET generation = excluded.generation",
                &[&host, &generation, &system, &incident],
            )
            .await?;
        Ok(())
    }

    /// The generations of a host that are remembered as bad, each with the store path of its system.
    pub async fn bad_generations(&self, host: &str) -> Result<Vec<(i64, String)>> {
        let client = self.store.client().await?;
        let query = "SELECT generation, system FROM generations_bad WHERE host = $1 ORDER BY generation";
        let rows = client.query(query, &[&host]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

fn pause_from_row(row: &Row) -> Result<Pause> {
    Ok(Pause {
        unit: row.try_get("unit")?,
        until: row.try_get("until")?,
        by: row.try_get("by")?,
        reason: row.try_get("reason")?,
        since: row.try_get("since")?,
    })
}

fn held(changed: u64, lease: &Lease) -> Result<()> {
    if changed == 0 { Err(IncidentError::Fenced(lease.host.clone())) } else { Ok(()) }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// PostgreSQL's text holds no NUL; lines of a journal may.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn clean_json(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => items.iter().map(clean_json).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (clean(name), clean_json(value))).collect(),
        other => other.clone(),
    }
}
