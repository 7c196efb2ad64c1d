//! `lares incident …`: what went wrong, what was done about it, and answering what is asked.

use std::fmt;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use lares_healer::api::{Incident, IncidentDetail, IncidentList, IncidentState, TimelineEntry};
use lares_healer::decide::Reason;
use uuid::Uuid;

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::daemon::{self, Daemon, path};
use crate::output::{self, Output};

/// Shortest part of an id by which an incident is looked for.
const PART: usize = 8;
/// Incidents that are looked through for a part of an id.
const SEARCHED: &str = "1000";
/// How often the timeline is looked at.
const POLL: Duration = Duration::from_millis(300);
/// How long the healer or PostgreSQL may be away before following is given up: longer than a slow restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing new for so long, while nothing is done, means that nothing is on its way to PostgreSQL either.
const QUIET: Duration = Duration::from_secs(3);
/// Where the text of an entry begins: after its time and its kind.
const INDENT: usize = 29;

/// Carries out `lares incident …`.
pub async fn run(global: &Global, command: cli::Incident) -> Result<u8> {
    let healer = Daemon::healer(&configuration::load_for_client(global)?)?;
    let output = Output { json: global.json };
    match command {
        cli::Incident::List(filter) => {
            let incidents: IncidentList = healer.get(&list_path(&filter)).await?;
            output.value(&incidents, |list| table(list, Timestamp::now()))?;
        }
        cli::Incident::Show { incident } => {
            let id = find(&healer, &incident).await?;
            let detail: IncidentDetail = healer.get(&incident_path(id, &[])).await?;
            output.value(&detail, describe)?;
        }
        cli::Incident::Approve { incident } => answer(&healer, output, &incident, "approve").await?,
        cli::Incident::Reject { incident } => answer(&healer, output, &incident, "reject").await?,
    }
    Ok(exit::OK)
}

async fn answer(healer: &Daemon, output: Output, incident: &str, verb: &str) -> Result<()> {
    let id = find(healer, incident).await?;
    let incident: Incident = healer.command(&incident_path(id, &[verb])).await?;
    output.value(&incident, |incident| {
        let done = if verb == "approve" { "approved" } else { "rejected" };
        format!("{done}: {}, incident {id}; `lares incident show {id}` tells how it goes on", incident.unit)
    })
}

fn incident_path(id: Uuid, more: &[&str]) -> String {
    let id = id.to_string();
    path(&[&["api", "v1", "incidents", id.as_str()], more].concat(), &[])
}

fn list_path(filter: &cli::IncidentFilter) -> String {
    let limit = filter.limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    let named = [("unit", &filter.unit), ("state", &filter.state)];
    query.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
    let flags = [("open", filter.open), ("needs_person", filter.needs_person)];
    query.extend(flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| (name, "true")));
    path(&["api", "v1", "incidents"], &query)
}

/// The incident that an id names, or the beginning or the end of one: an id begins with the time, so that incidents of
/// the same minute differ only behind.
async fn find(healer: &Daemon, text: &str) -> Result<Uuid> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let part: String = text.chars().filter(|c| *c != '-').flat_map(char::to_lowercase).collect();
    if part.len() < PART || !part.chars().all(|c| c.is_ascii_hexdigit()) {
        bail!(
            "`{text}` is not the id of an incident, nor {PART} digits or more of one; `lares incident list` shows them"
        );
    }
    let list: IncidentList = healer.get(&path(&["api", "v1", "incidents"], &[("limit", SEARCHED)])).await?;
    matching(&part, list.incidents.iter().map(|incident| incident.id), text)
}

fn matching(part: &str, ids: impl Iterator<Item = Uuid>, text: &str) -> Result<Uuid> {
    let fits = |id: &Uuid| {
        let id = id.simple().to_string();
        id.starts_with(part) || id.ends_with(part)
    };
    let found: Vec<Uuid> = ids.filter(fits).collect();
    match found.as_slice() {
        [id] => Ok(*id),
        [] => bail!("no incident's id begins or ends with `{text}`; `lares incident list` shows them"),
        many => bail!("{} incidents' ids begin or end with `{text}`; give more of it", many.len()),
    }
}

/// The open incident of a unit and the number of its last entry. None, too, while PostgreSQL is away.
pub async fn last_entry(healer: &Daemon, unit: &str) -> Result<Option<(Uuid, i32)>> {
    let query = [("unit", unit), ("open", "true"), ("limit", "1")];
    let list: IncidentList = match healer.get(&path(&["api", "v1", "incidents"], &query)).await {
        Err(daemon::Error::Refused(_)) => return Ok(None),
        list => list?,
    };
    let Some(incident) = list.incidents.first() else { return Ok(None) };
    let detail: IncidentDetail = healer.get(&incident_path(incident.id, &[])).await?;
    Ok(detail.timeline.last().map(|entry| (incident.id, entry.seq)))
}

/// What is written of the newest incident of a unit.
pub async fn story(healer: &Daemon, unit: &str) -> Result<Option<String>> {
    let query = [("unit", unit), ("limit", "1")];
    let list: IncidentList = healer.get(&path(&["api", "v1", "incidents"], &query)).await?;
    let Some(incident) = list.incidents.first() else { return Ok(None) };
    let detail: IncidentDetail = healer.get(&incident_path(incident.id, &[])).await?;
    let lines: Vec<String> = detail.timeline.iter().map(line).collect();
    Ok(Some(lines.join("\n")))
}

/// Why following an incident ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// The unit is well.
    Well(Incident),
    /// A person is asked.
    Asks(Incident),
    /// Nothing more is done before a person does something.
    HandedOver(Incident),
    /// Somebody's wish stands against acting.
    LeftAlone(Incident),
    /// It goes on; whoever waited wanted to wait no longer.
    GoesOn(Incident),
}

impl Followed {
    /// Where it ended; none while it goes on by itself.
    fn of(incident: &Incident, gives_up: bool) -> Option<Self> {
        let incident = || incident.clone();
        Some(match (incident().state, incident().outcome.as_deref()) {
            (IncidentState::Closed, Some("left_alone")) => Self::LeftAlone(incident()),
            (IncidentState::Closed, _) => Self::Well(incident()),
            (IncidentState::Asking, _) => Self::Asks(incident()),
            (IncidentState::Held, _) if gives_up => Self::HandedOver(incident()),
            _ => return None,
        })
    }

    /// The incident as it was last.
    pub fn incident(&self) -> &Incident {
        match self {
            Self::Well(incident)
            | Self::Asks(incident)
            | Self::HandedOver(incident)
            | Self::LeftAlone(incident)
            | Self::GoesOn(incident) => incident,
        }
    }
}

impl fmt::Display for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Incident { id, unit, .. } = self.incident();
        match self {
            Self::Well(incident) => {
                let healed = incident.outcome.as_deref() == Some("healed");
                let how = if healed { "healed" } else { "came back without a remedy" };
                write!(f, "{}", style(how).green().bold())?;
                match incident.recovered_ms.and_then(|ms| u64::try_from(ms).ok()) {
                    Some(ms) => write!(f, ": {unit} was up again after {}", output::seconds(Duration::from_millis(ms))),
                    None => write!(f, ": {unit}"),
                }
            }
            Self::Asks(_) => write!(
                f,
                "{}: `lares incident approve {id}` agrees, `lares incident reject {id}` does not",
                style("a person is asked").yellow().bold()
            ),
            Self::HandedOver(_) => write!(
                f,
                "{}: {unit}; `lares heal {unit}` tries again when the cause is gone",
                style("a person is needed").red().bold()
            ),
            Self::LeftAlone(_) => write!(f, "{}: {unit}", style("left alone").yellow().bold()),
            Self::GoesOn(incident) => write!(
                f,
                "{}: {unit} is {} still; `lares incident show {id}` tells how it goes on",
                style("not healed yet").yellow().bold(),
                incident.state
            ),
        }
    }
}

/// Prints what is written into a timeline after entry `seen`, until the incident ends or needs a person, at most for
/// `wait`.
pub async fn follow(healer: &Daemon, output: Output, id: Uuid, mut seen: i32, wait: Duration) -> Result<Followed> {
    let bar = ProgressBar::hidden();
    if !output.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or(ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    let (began, mut heard, mut away) = (Instant::now(), Instant::now(), None);
    let mut last = None;
    loop {
        match healer.get::<IncidentDetail>(&incident_path(id, &[])).await {
            Ok(IncidentDetail { incident, timeline }) => {
                away = None;
                for entry in timeline.iter().filter(|entry| entry.seq > seen) {
                    heard = Instant::now();
                    let text = if output.json { serde_json::to_string(entry)? } else { line(entry) };
                    bar.suspend(|| output::line(&text))?;
                }
                seen = timeline.last().map_or(seen, |entry| seen.max(entry.seq));
                bar.set_message(format!("{} is {}", incident.unit, incident.state));
                let gives_up = incident.needs_person && !passes(&timeline) && heard.elapsed() >= QUIET;
                if let Some(end) = Followed::of(&incident, gives_up) {
                    bar.finish_and_clear();
                    return Ok(end);
                }
                last = Some(incident);
            }
            // It is on its way to PostgreSQL, or PostgreSQL or the healer comes back soon.
            Err(daemon::Error::Unreachable { .. } | daemon::Error::Refused(_) | daemon::Error::NotFound(_))
                if away.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        if began.elapsed() >= wait {
            bar.finish_and_clear();
            match last {
                Some(incident) => return Ok(Followed::GoesOn(incident)),
                None => bail!("incident {id} does not show: entries wait for PostgreSQL; `lares heal` tells how many"),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the reason why nothing is done goes away by itself.
fn passes(timeline: &[TimelineEntry]) -> bool {
    let held = timeline.iter().rev().find(|entry| entry.kind == "held");
    let reason = held.and_then(|entry| serde_json::from_value::<Reason>(entry.data.get("reason")?.clone()).ok());
    matches!(
        reason,
        Some(
            Reason::BelowThreshold
                | Reason::ChildKilled
                | Reason::Changing
                | Reason::LeftToManager
                | Reason::Rebuilding
                | Reason::JobQueued
                | Reason::DependencyBusy
                | Reason::Retrying
                | Reason::LockHeld
                | Reason::Cooldown
                | Reason::Backoff
                | Reason::HourlyLimit
                | Reason::Budget
                | Reason::ChainBusy
        )
    )
}

/// An entry as a line of text; what a program wrote gets lines of its own.
fn line(entry: &TimelineEntry) -> String {
    let time = output::seconds(Duration::from_millis(u64::try_from(entry.ms).unwrap_or(0)));
    let kind = match entry.kind.as_str() {
        "verified" => style(format!("{:<12}", entry.kind)).green(),
        "not_verified" | "handed_over" | "asked" | "proposed" => style(format!("{:<12}", entry.kind)).yellow(),
        "decided" | "acting" | "acted" => style(format!("{:<12}", entry.kind)).cyan(),
        other => style(format!("{other:<12}")).dim(),
    };
    let said: Vec<&str> = match (entry.kind.as_str(), entry.data["lines"].as_array()) {
        ("evidence", Some(lines)) => {
            let known_as = entry.data["known_as"].as_str().unwrap_or_default();
            let known_as = if known_as.is_empty() { "nothing that is known" } else { known_as };
            std::iter::once(known_as).chain(lines.iter().filter_map(|line| line.as_str())).collect()
        }
        _ => entry.message.lines().collect(),
    };
    let said: Vec<String> = said.into_iter().map(output::plain).collect();
    format!("{} {kind}  {}", style(format!("+ {time:>12}")).dim(), said.join(&format!("\n{:INDENT$}", "")))
}

fn table(list: &IncidentList, now: Timestamp) -> String {
    if list.incidents.is_empty() {
        return "no incidents".to_owned();
    }
    let rows = list.incidents.iter().map(|incident| {
        let open = incident.state != IncidentState::Closed;
        let state = match &incident.outcome {
            Some(outcome) => outcome.clone(),
            None if incident.needs_person => format!("{}, needs a person", incident.state),
            None => incident.state.to_string(),
        };
        let state = match incident.outcome.as_deref() {
            Some("healed" | "came_back") => style(state).green(),
            _ if open && incident.needs_person => style(state).red(),
            _ => style(state).yellow(),
        };
        [
            incident.id.to_string(),
            incident.unit.clone(),
            state.to_string(),
            ago(incident.opened_at, now),
            took(incident).unwrap_or_else(|| "-".to_owned()),
            output::plain(&incident.cause.chars().take(60).collect::<String>()),
        ]
    });
    let mut text = output::table(["incident", "unit", "state", "began", "took", "cause"], rows);
    if list.next_before.is_some() {
        text.push_str("\n\nthere are older ones; -n shows more");
    }
    text
}

/// `3 min ago`, as exact as one reads it.
fn ago(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_secs().max(0) {
        s @ 0..60 => format!("{s} s ago"),
        s @ 60..3600 => format!("{} min ago", s / 60),
        s @ 3600..86_400 => format!("{} h ago", s / 3600),
        s => format!("{} d ago", s / 86_400),
    }
}

/// How long until the unit was up again.
fn took(incident: &Incident) -> Option<String> {
    let ms = u64::try_from(incident.recovered_ms?).ok()?;
    Some(output::seconds(Duration::from_millis(ms)))
}

fn describe(detail: &IncidentDetail) -> String {
    let incident = &detail.incident;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<9} {}", output::plain(value));
    };
    field("incident", &incident.id.to_string());
    field("unit", &incident.unit);
    let ended = incident.outcome.as_ref().map(|outcome| format!(": {outcome}")).unwrap_or_default();
    let up = took(incident).map(|took| format!(", up again after {took}")).unwrap_or_default();
    field("state", &format!("{}{ended}{up}", incident.state));
    if !incident.known_as.is_empty() {
        field("known as", &incident.known_as);
    }
    if !incident.cause.is_empty() {
        field("cause", &incident.cause);
    }
    field("began", &output::time(incident.opened_at));
    if incident.needs_person {
        field("person", "was told");
    }
    text.push('\n');
    for entry in &detail.timeline {
        text.push_str(&line(entry));
        text.push('\n');
    }
    if let Some(next) = next(detail) {
        let _ = write!(text, "\n{next}");
    }
    text
}

/// What a person may do now.
fn next(detail: &IncidentDetail) -> Option<String> {
    let Incident { id, unit, state, needs_person, .. } = &detail.incident;
    let last = detail.timeline.iter().rev().find(|entry| matches!(entry.kind.as_str(), "proposed" | "answered"));
    if *state == IncidentState::Asking {
        return Some(format!("`lares incident approve {id}` agrees, `lares incident reject {id}` does not"));
    }
    if let Some(remedy) = last.filter(|entry| entry.kind == "proposed").and_then(|entry| entry.data["remedy"].as_str())
    {
        let remedy = output::plain(remedy);
        return Some(format!("`lares incident approve {id}` allows {remedy} against this failure from now on"));
    }
    (*state == IncidentState::Held && *needs_person).then(|| format!("`lares heal {unit}` tries again"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn incident(state: IncidentState) -> Incident {
        let closed = state == IncidentState::Closed;
        Incident {
            id: Uuid::from_u128(0x0199_a000_0000_7000_8000_0000_0000_0042),
            unit: "app.service".to_owned(),
            state,
            outcome: closed.then(|| "healed".to_owned()),
            known_as: "port_conflict".to_owned(),
            cause: "port 8080 is held by process 41 (python3), left by an earlier run of this unit".to_owned(),
            shared: None,
            needs_person: state == IncidentState::Held,
            opened_at: Timestamp::UNIX_EPOCH,
            closed_at: closed.then_some(Timestamp::UNIX_EPOCH),
            recovered_ms: closed.then_some(1234),
        }
    }

    fn entry(seq: i32, ms: i64, kind: &str, message: &str, data: Value) -> TimelineEntry {
        TimelineEntry { seq, at: Timestamp::UNIX_EPOCH, ms, kind: kind.to_owned(), message: message.to_owned(), data }
    }

    fn story() -> Vec<TimelineEntry> {
        let lines =
            json!({ "known_as": "port_conflict", "lines": ["bind: address already in use", "\u{1b}[31mgave up\n"] });
        vec![
            entry(1, 0, "symptoms", "exited with status 1", json!({})),
            entry(2, 12, "evidence", "port_conflict: bind: address already in use | gave up", lines),
            entry(3, 13, "considered", "port 8080 is held by process 41 (python3)", json!({})),
            entry(4, 13, "decided", "attempt 1, end_orphan: end process 41, start app.service", json!({})),
            entry(5, 1234, "acted", "done", json!({})),
            entry(6, 250_000, "verified", "end_orphan helped; up after 1234 ms", json!({})),
        ]
    }

    #[test]
    fn a_story_is_read_from_top_to_bottom() {
        let detail = IncidentDetail { incident: incident(IncidentState::Closed), timeline: story() };
        let text = describe(&detail);
        // When it began is shown in the time zone of whoever looks.
        let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("began")).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn what_a_person_may_do_is_said() {
        let of = |state, timeline| next(&IncidentDetail { incident: incident(state), timeline });
        let proposed = || entry(1, 0, "proposed", "", json!({ "remedy": "restart_dependencies" }));
        let answered = || entry(2, 0, "answered", "", json!({ "approved": true }));
        assert!(of(IncidentState::Asking, Vec::new()).is_some_and(|said| said.contains("incident reject")));
        assert!(of(IncidentState::Closed, vec![proposed()]).is_some_and(|said| said.contains("restart_dependencies")));
        assert_eq!(of(IncidentState::Closed, vec![proposed(), answered()]), None);
        assert_eq!(of(IncidentState::Held, Vec::new()).as_deref(), Some("`lares heal app.service` tries again"));
        assert_eq!(of(IncidentState::Healing, Vec::new()), None);
    }

    #[test]
    fn the_list_tells_what_needs_a_person() {
        let all = [IncidentState::Held, IncidentState::Healing, IncidentState::Closed];
        let list = IncidentList { incidents: all.map(incident).into(), next_before: Some(Uuid::nil()) };
        let now = Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(200);
        insta::assert_snapshot!(table(&list, now));
    }

    #[test]
    fn an_id_may_be_shortened_at_either_end_as_long_as_one_fits() {
        let ids = || [0x0199_a000_0000_7000_8000_0000_0000_0042, 0x0199_a000_0000_7000_8000_0000_0000_0043];
        let ids = || ids().into_iter().map(Uuid::from_u128);
        assert!(matching("0000000042", ids(), "x").is_ok_and(|id| Some(id) == ids().next()));
        let many = matching("0199a000", ids(), "0199a000").map_err(|e| e.to_string());
        assert_eq!(many, Err("2 incidents' ids begin or end with `0199a000`; give more of it".to_owned()));
        assert!(matching("ffffffff", ids(), "ffffffff").is_err());
    }

    #[test]
    fn following_ends_where_a_person_is_needed() {
        let of = |state, gives_up| Followed::of(&incident(state), gives_up);
        assert!(matches!(of(IncidentState::Closed, false), Some(Followed::Well(_))));
        assert!(matches!(of(IncidentState::Asking, false), Some(Followed::Asks(_))));
        assert!(matches!(of(IncidentState::Held, true), Some(Followed::HandedOver(_))));
        for goes_on in [of(IncidentState::Held, false), of(IncidentState::Healing, true), of(IncidentState::Open, true)]
        {
            assert_eq!(goes_on, None);
        }
        let left = Incident { outcome: Some("left_alone".to_owned()), ..incident(IncidentState::Closed) };
        assert_eq!(Followed::of(&left, false), Some(Followed::LeftAlone(left.clone())));
        let ends = [
            Followed::Well(incident(IncidentState::Closed)),
            Followed::Asks(incident(IncidentState::Asking)),
            Followed::HandedOver(incident(IncidentState::Held)),
            Followed::LeftAlone(left),
            Followed::GoesOn(incident(IncidentState::Verifying)),
        ];
        insta::assert_snapshot!(ends.map(|end| end.to_string()).join("\n"));
    }

    #[test]
    fn a_reason_that_goes_away_is_waited_for() {
        let held = |reason: &str| vec![entry(1, 0, "held", "", json!({ "reason": reason }))];
        assert!(passes(&held("cooldown")));
        assert!(!passes(&held("port_held")));
        assert!(!passes(&[]));
    }
}
