//! The healer's HTTP routes: thin, over the store and the loop that heals.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use http::{StatusCode, Uri};
use lares_gate::{Caller, Json, Problem};
use lares_store::audit;
use lares_store::incidents::{Filter, IncidentError};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::api::{
    HealQuery, Healing, Incident, IncidentDetail, IncidentList, ListIncidents, PAUSE_MAX, Pause, PauseRequest,
    REASON_MAX, Resumed, Statistics, Units, full_name,
};
use crate::decide::{Decision, Reason};
use crate::desk::{Desk, Order, Refusal};

#[cfg(test)]
mod tests;

/// Incidents on a page when the caller does not say.
const PAGE: u32 = 50;
/// Longest wait for the loop: it looks at the unit first, and systemd or a full disk may be slow.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest wait for the board to show the incident that an order has opened.
const SHOWN: Duration = Duration::from_secs(1);
/// What callers are told to wait when something is away.
const RETRY: Duration = Duration::from_secs(5);
/// Names of watched units that an error lists at most.
const NAMES: usize = 10;
/// How alike two names are, from 0 to 1, when one is offered for the other.
const ALIKE: f64 = 0.7;
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Routes that only look.
pub(crate) fn reading(desk: &Arc<Desk>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(units))
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(statistics))
        .with_state(Arc::clone(desk))
}

/// Routes that change something.
pub(crate) fn changing(desk: &Arc<Desk>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(heal))
        .routes(routes!(approve))
        .routes(routes!(reject))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .with_state(Arc::clone(desk))
}

/// All units that are watched, as they are now.
#[utoipa::path(get, path = "/api/v1/units", tag = "units", responses((status = 200, body = Units)))]
async fn units(State(desk): State<Arc<Desk>>) -> Json<Units> {
    let board = Arc::clone(&desk.board.borrow());
    let units = board.units.values().cloned().collect();
    Json(Units { units, acting: board.acting, hearing: board.hearing, unshipped: board.unshipped })
}

/// Incidents of this machine, newest first.
#[utoipa::path(get, path = "/api/v1/incidents", tag = "incidents", params(ListIncidents), responses(
    (status = 200, body = IncidentList),
    (status = 400, description = "A parameter is wrong", body = Problem),
))]
async fn list(State(desk): State<Arc<Desk>>, uri: Uri) -> Result<Json<IncidentList>, Problem> {
    let query: ListIncidents = query(&uri)?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=1000).contains(&limit) {
        return Err(Problem::bad_request("invalid-query", "limit has to be from 1 to 1000").error("limit", "1 to 1000"));
    }
    let filter = Filter {
        host: Some(desk.host.clone()),
        unit: query.unit.as_deref().map(|unit| desk.full_name(unit)),
        state: query.state.map(Into::into),
        open: query.open,
        needs_person: query.needs_person,
        before: query.before,
        limit,
    };
    let found = desk.store.incidents().list(&filter).await.map_err(problem)?;
    let next_before = (found.len() == limit as usize).then(|| found.last().map(|incident| incident.id)).flatten();
    Ok(Json(IncidentList { incidents: found.into_iter().map(Into::into).collect(), next_before }))
}

/// One incident with its timeline.
#[utoipa::path(get, path = "/api/v1/incidents/{id}", tag = "incidents", params(("id" = Uuid, Path)), responses(
    (status = 200, body = IncidentDetail),
    (status = 404, body = Problem),
))]
async fn show(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Json<IncidentDetail>, Problem> {
    let id = incident_id(&id)?;
    let incidents = desk.store.incidents();
    let incident = incidents.get(id).await.map_err(problem)?.into();
    let timeline = incidents.timeline(id, 0).await.map_err(problem)?;
    Ok(Json(IncidentDetail { incident, timeline: timeline.into_iter().map(Into::into).collect() }))
}

/// How well healing does on this machine.
#[utoipa::path(get, path = "/api/v1/statistics", tag = "incidents", responses((status = 200, body = Statistics)))]
async fn statistics(State(desk): State<Arc<Desk>>) -> Result<Json<Statistics>, Problem> {
    let (incidents, host) = (desk.store.incidents(), &desk.host);
    let units = desk.board.borrow().units.len();
    Ok(Json(Statistics {
        units,
        last_day: incidents.statistics(host, DAY).await.map_err(problem)?.into(),
        last_month: incidents.statistics(host, MONTH).await.map_err(problem)?.into(),
        remedies: incidents.stats(host).await.map_err(problem)?.into_iter().map(Into::into).collect(),
    }))
}

/// Looks at a unit now and heals it if something is wrong.
///
/// An incident that was handed over to a person is tried again. The answer comes as soon as it is decided what follows;
/// the timeline of the incident tells how it goes.
#[utoipa::path(post, path = "/api/v1/heal/{unit}", tag = "units",
    params(("unit" = String, Path, description = "`.service` may be left out"), HealQuery),
    responses(
        (status = 200, description = "What is wrong and what follows", body = Healing),
        (status = 404, description = "The unit is not watched", body = Problem),
        (status = 503, description = "systemd or the loop does not answer, or another healer acts", body = Problem),
    ))]
async fn heal(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(unit): Path<String>,
    uri: Uri,
) -> Result<Json<Healing>, Problem> {
    let HealQuery { dry_run } = query(&uri)?;
    let unit = desk.watched(&unit)?;
    let by = caller.name.clone();
    let asked = desk.ask(|answer| Order::Heal { unit: unit.clone(), dry_run, by, answer }).await;
    if !dry_run {
        desk.audit(&caller, "unit.heal", &unit, outcome(&asked)).await;
    }
    let outlook = asked?;
    let well = matches!(outlook.decision, Decision::Hold { reason: Reason::Healthy | Reason::ChildKilled, .. });
    let patience = if dry_run || well { Duration::ZERO } else { SHOWN };
    Ok(Json(Healing { incident: desk.incident_of(&unit, patience).await, outlook }))
}

/// Agrees to what an incident asks, or to another try of one that was handed over to a person.
///
/// Where the timeline proposes a remedy that helped against the same unknown failure before, that one is used without
/// asking from now on; this works after the incident has ended, too.
#[utoipa::path(post, path = "/api/v1/incidents/{id}/approve", tag = "incidents", params(("id" = Uuid, Path)), responses(
    (status = 200, body = Incident),
    (status = 404, body = Problem),
    (status = 409, description = "There is nothing to agree to", body = Problem),
    (status = 503, description = "The loop does not answer, or another healer acts", body = Problem),
))]
async fn approve(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Incident>, Problem> {
    desk.answer(&caller, incident_id(&id)?, true).await.map(Json)
}

/// Does not agree to what an incident asks. A proposed remedy goes on being one, or is one again.
#[utoipa::path(post, path = "/api/v1/incidents/{id}/reject", tag = "incidents", params(("id" = Uuid, Path)), responses(
    (status = 200, body = Incident),
    (status = 404, body = Problem),
    (status = 409, description = "There is nothing to reject", body = Problem),
    (status = 503, description = "The loop does not answer, or another healer acts", body = Problem),
))]
async fn reject(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Incident>, Problem> {
    desk.answer(&caller, incident_id(&id)?, false).await.map(Json)
}

/// Leaves a unit alone for a while, or until it is resumed. A second pause takes the place of the first.
#[utoipa::path(post, path = "/api/v1/units/{unit}/pause", tag = "units", request_body = PauseRequest,
    params(("unit" = String, Path, description = "`.service` may be left out")),
    responses(
        (status = 200, body = Pause),
        (status = 400, description = "Not JSON", body = Problem),
        (status = 404, description = "The unit is not watched", body = Problem),
        (status = 422, description = "A field is wrong", body = Problem),
    ))]
async fn pause(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(unit): Path<String>,
    Json(request): Json<PauseRequest>,
) -> Result<Json<Pause>, Problem> {
    let unit = desk.watched(&unit)?;
    let lasting = request.lasting.as_deref().map(pause_length).transpose()?;
    let reason = request.reason.unwrap_or_default();
    if reason.len() > REASON_MAX {
        return Err(wrong_pause("reason", format!("is {} bytes long; at most {REASON_MAX} are taken", reason.len())));
    }
    let paused = desk.store.incidents().pause(&desk.host, &unit, lasting, &caller.name, reason.trim()).await;
    let paused = paused.map_err(problem)?;
    desk.wish_changed(&unit);
    desk.audit(&caller, "unit.pause", &unit, "ok").await;
    Ok(Json(paused.into()))
}

/// Ends a pause.
#[utoipa::path(post, path = "/api/v1/units/{unit}/resume", tag = "units",
    params(("unit" = String, Path, description = "`.service` may be left out")),
    responses(
        (status = 200, body = Resumed),
        (status = 404, description = "The unit is not watched", body = Problem),
    ))]
async fn resume(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(unit): Path<String>,
) -> Result<Json<Resumed>, Problem> {
    let unit = desk.watched(&unit)?;
    let was_paused = desk.store.incidents().resume(&desk.host, &unit).await.map_err(problem)?;
    desk.wish_changed(&unit);
    desk.audit(&caller, "unit.resume", &unit, "ok").await;
    Ok(Json(Resumed { unit, was_paused }))
}

impl Desk {
    /// The name that is meant: units of `lares up` have no kind.
    fn full_name(&self, name: &str) -> String {
        if self.board.borrow().units.contains_key(name) { name.to_owned() } else { full_name(name) }
    }

    /// The full name of a unit that is watched.
    fn watched(&self, name: &str) -> Result<String, Problem> {
        let board = Arc::clone(&self.board.borrow());
        let full = self.full_name(name);
        if board.units.contains_key(&full) {
            return Ok(full);
        }
        // The end that all have in common would make all alike.
        let stem = |unit: &str| unit.strip_suffix(".service").unwrap_or(unit).to_owned();
        let alike = |unit: &String| strsim::jaro_winkler(&stem(unit), &stem(&full));
        let nearest =
            board.units.keys().max_by(|a, b| alike(a).total_cmp(&alike(b))).filter(|unit| alike(unit) > ALIKE);
        let hint = match nearest {
            Some(unit) => format!("; is {unit} meant?"),
            None if board.units.is_empty() => "; none is".to_owned(),
            None => {
                let names: Vec<&str> = board.units.keys().take(NAMES).map(String::as_str).collect();
                let more = if board.units.len() > NAMES { ", …" } else { "" };
                format!("; those that are: {}{more}", names.join(", "))
            }
        };
        Err(not_watched(format!("{full} is not watched: add it to `healer.units` of the configuration{hint}")))
    }

    /// Gives the loop an order and waits for its answer.
    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Order) -> Result<T, Problem> {
        let (answer, answered) = oneshot::channel();
        let asked = timeout(ANSWER, async {
            self.orders.send(order(answer)).await.ok()?;
            answered.await.ok()
        });
        match asked.await {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(Some(Err(refusal))) => Err(refused(&refusal)),
            Ok(None) => {
                Err(Problem::unavailable("healer-stopping", "the healer is about to stop; try again")
                    .retry_after(RETRY))
            }
            Err(_) => Err(Problem::unavailable(
                "healer-busy",
                format!("the healer did not get to it within {} s; its log says what it waits for", ANSWER.as_secs()),
            )
            .retry_after(RETRY)),
        }
    }

    /// The loop looks at the store by itself, too: this only makes it look at once.
    fn wish_changed(&self, unit: &str) {
        if let Err(error) = self.orders.try_send(Order::Wishes) {
            tracing::warn!(unit, %error, "the loop is told of a pause by PostgreSQL only");
        }
    }

    /// The open incident of a unit. One that was opened a moment ago may take a moment to show.
    async fn incident_of(&self, unit: &str, patience: Duration) -> Option<Uuid> {
        let mut board = self.board.clone();
        let shown = board.wait_for(|board| board.units.get(unit).is_some_and(|unit| unit.incident.is_some()));
        if let Ok(Ok(board)) = timeout(patience, shown).await {
            return board.units.get(unit)?.incident;
        }
        self.board.borrow().units.get(unit)?.incident
    }

    /// Answers an incident, and what it proposed.
    async fn answer(&self, caller: &Caller, id: Uuid, approved: bool) -> Result<Incident, Problem> {
        let action = if approved { "incident.approve" } else { "incident.reject" };
        let answered = self.try_answer(id, approved, &caller.name).await;
        self.audit(caller, action, &id.to_string(), outcome(&answered)).await;
        answered?;
        self.store.incidents().get(id).await.map(Into::into).map_err(problem)
    }

    async fn try_answer(&self, id: Uuid, approved: bool, by: &str) -> Result<(), Problem> {
        let incidents = self.store.incidents();
        let incident = incidents.get(id).await.map_err(problem)?;
        let host = incidents.host(id).await.map_err(problem)?;
        if host != self.host {
            let said = format!("incident {id} is of another machine, {host}; answer it there");
            return Err(Problem::conflict("incident-elsewhere", said));
        }
        let proposed = if incident.known_as.is_empty() { None } else { self.proposed(id).await? };
        if let Some(remedy) = &proposed {
            let told = incidents.approve(&self.host, &incident.unit, &incident.known_as, remedy, approved).await;
            told.map_err(problem)?;
            self.wish_changed(&incident.unit);
        }
        if incident.closed_at.is_some() {
            return match proposed {
                Some(_) => Ok(()),
                None => Err(Problem::conflict(
                    "incident-closed",
                    format!(
                        "incident {id} has ended and asks nothing; `lares incident list --open` shows those that are open"
                    ),
                )),
            };
        }
        let by = by.to_owned();
        match self.ask(|answer| Order::Answer { incident: id, approved, by, answer }).await {
            // The remedy was allowed or refused for the next time, which is what the person wanted.
            Err(problem) if proposed.is_some() && problem.status() == StatusCode::CONFLICT => Ok(()),
            other => other,
        }
    }

    /// The remedy that a timeline proposed and nobody has answered.
    async fn proposed(&self, id: Uuid) -> Result<Option<String>, Problem> {
        let timeline = self.store.incidents().timeline(id, 0).await.map_err(problem)?;
        let last = timeline.iter().rev().find(|entry| matches!(entry.kind.as_str(), "proposed" | "answered"));
        Ok(last.and_then(|entry| entry.data.get("remedy")?.as_str().map(str::to_owned)))
    }

    /// Leaves a trace of what a caller did in the audit log.
    async fn audit(&self, caller: &Caller, action: &str, subject: &str, outcome: &str) {
        let entry = audit::Entry::new(Some(caller.key_id), caller.name.clone(), action, subject, outcome);
        if let Err(error) = self.store.audit().insert(&entry).await {
            tracing::warn!(subject, action, by = caller.name, %error, "the audit log did not take an entry");
        }
    }
}

fn outcome<T>(result: &Result<T, Problem>) -> &str {
    result.as_ref().map_or_else(Problem::slug, |_| "ok")
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    Query::<T>::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|rejection| Problem::bad_request("invalid-query", rejection.body_text()))
}

fn incident_id(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| {
        Problem::not_found(
            "incident-not-found",
            format!("`{text}` is not the id of an incident; `lares incident list` shows them"),
        )
    })
}

fn pause_length(text: &str) -> Result<Duration, Problem> {
    match lares_config::duration::parse(text) {
        Ok(length) if length.is_zero() || length > PAUSE_MAX => {
            Err(wrong_pause("for", "has to be longer than nothing and at most 366 days".to_owned()))
        }
        Ok(length) => Ok(length),
        Err(error) => Err(wrong_pause("for", error)),
    }
}

fn wrong_pause(field: &str, detail: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-pause", format!("{field}: {detail}")).error(field, detail)
}

fn not_watched(detail: String) -> Problem {
    Problem::not_found("unit-not-watched", detail)
}

fn refused(refusal: &Refusal) -> Problem {
    let said = refusal.to_string();
    match refusal {
        Refusal::NotWatched(_) => not_watched(said),
        Refusal::NotOpen(_) => Problem::conflict("incident-closed", said),
        Refusal::UnderWay(_) => Problem::conflict("remedy-under-way", said),
        Refusal::Manager(_) => Problem::unavailable("manager-unavailable", said).retry_after(RETRY),
        Refusal::Standby => Problem::unavailable("standby", said).retry_after(RETRY),
    }
}

fn problem(error: IncidentError) -> Problem {
    match error {
        IncidentError::NotFound(_) => Problem::not_found("incident-not-found", error.to_string()),
        IncidentError::Store(error) => error.into(),
        error => Problem::internal(&error),
    }
}
