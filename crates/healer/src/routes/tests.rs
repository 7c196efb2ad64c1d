//! The routes against a real PostgreSQL, with a loop that answers as each test says.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use lares_gate::{Gate, Metrics, Role, Secret, Surface};
use lares_store::Store;
use lares_store::incidents::{self, Entry, Lease, State as Standing};
use lares_store::keys::Key;
use lares_store::testing::{Cluster, TestDatabase};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::api::{IncidentState, PausedUntil, WatchedUnit};
use crate::decide::{History, Policy};
use crate::desk::{Board, ORDERS};
use crate::facts::{Active, Facts, Load, Probe};
use crate::observe::Observed;
use crate::outlook::Outlook;
use crate::symptom::Symptom;

const HOST: &str = "here";

/// What the loop was told, as text.
type Told = Arc<Mutex<Vec<String>>>;

struct Place {
    store: Store,
    lease: Lease,
    url: String,
    client: reqwest::Client,
    operator: String,
    viewer: String,
    told: Told,
    _database: TestDatabase,
    _end: DropGuard,
}

impl Place {
    /// Three units on the board, the last one of `lares up`. `answered`: what the loop says to answers.
    async fn new(answered: impl Fn(Uuid) -> Result<(), Refusal> + Send + 'static) -> Self {
        let database = Cluster::shared().await;
        let store = database.store().await;
        let mut secrets = Vec::new();
        for (name, role) in [("op", Role::Operator), ("look", Role::Viewer)] {
            let secret = Secret::generate().unwrap();
            store.keys().insert(&Key::new(name, role, secret.hash())).await.unwrap();
            secrets.push(secret.expose().to_owned());
        }
        let units = ["app.service", "db.service", "ralph"].map(|name| (name.to_owned(), watched(name)));
        let board = Board { units: BTreeMap::from(units), acting: true, hearing: true, unshipped: 3 };
        let (board, shown) = watch::channel(Arc::new(board));
        let (orders, given) = mpsc::channel(ORDERS);
        let told = Told::default();
        tokio::spawn(obey(given, Arc::clone(&told), board, answered));
        let desk = Arc::new(Desk { store: store.clone(), host: HOST.to_owned(), orders, board: shown });
        let shutdown = CancellationToken::new();
        let gate = Gate::open(store.clone(), &lares_config::Gate::default(), shutdown.clone()).await.unwrap();
        let bound = Surface::new("healer", gate, Metrics::new())
            .routes(Role::Viewer, reading(&desk))
            .routes(Role::Operator, changing(&desk))
            .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .await
            .unwrap();
        let url = format!("http://{}", bound.local_addr().unwrap());
        tokio::spawn(bound.run(shutdown.clone()));
        let lease = store.incidents().take(HOST, "healer-1", Duration::from_secs(60)).await.unwrap().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let (viewer, operator) = (secrets.pop().unwrap(), secrets.pop().unwrap());
        let _end = shutdown.drop_guard();
        Self { store, lease, url, client, operator, viewer, told, _database: database, _end }
    }

    async fn send(&self, method: &str, path: &str, key: Option<&str>, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, Some(&self.viewer), None).await
    }

    async fn post(&self, path: &str) -> (u16, Value) {
        self.send("POST", path, Some(&self.operator), None).await
    }

    async fn pause(&self, unit: &str, body: Value) -> (u16, Value) {
        self.send("POST", &format!("/api/v1/units/{unit}/pause"), Some(&self.operator), Some(body)).await
    }

    async fn keep(&self, incident: &incidents::Incident, entries: &[(&str, Value)]) {
        let entries: Vec<Entry> = (1..).zip(entries).map(|(seq, (kind, data))| entry(seq, kind, data)).collect();
        self.store.incidents().append(&self.lease, incident, &entries).await.unwrap();
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn audited(&self) -> Vec<String> {
        let rows = self.store.audit().recent(100).await.unwrap();
        rows.into_iter()
            .rev()
            .map(|row| format!("{} {} {} {}", row.name, row.action, row.target, row.outcome))
            .collect()
    }
}

/// The loop: everything that is healed is broken, and its incident shows a moment later.
async fn obey(
    mut orders: mpsc::Receiver<Order>,
    told: Told,
    board: watch::Sender<Arc<Board>>,
    answered: impl Fn(Uuid) -> Result<(), Refusal>,
) {
    while let Some(order) = orders.recv().await {
        let said = match order {
            Order::Heal { unit, dry_run, by, answer } => {
                let said = format!("heal {unit} dry_run={dry_run} by {by}");
                if unit == "db.service" {
                    // Goes away without an answer, as a loop that is stopped does.
                    drop(answer);
                } else {
                    answer.send(Ok(broken(&unit))).unwrap();
                    if !dry_run {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        open_on(&board, &unit, Uuid::from_u128(7));
                    }
                }
                said
            }
            Order::Answer { incident, approved, by, answer } => {
                answer.send(answered(incident)).unwrap();
                format!("answer approved={approved} by {by}")
            }
            Order::Wishes => "wishes".to_owned(),
            Order::Pulse { answer } => {
                answer.send(()).unwrap();
                "pulse".to_owned()
            }
        };
        told.lock().unwrap_or_else(PoisonError::into_inner).push(said);
    }
}

fn open_on(board: &watch::Sender<Arc<Board>>, unit: &str, incident: Uuid) {
    board.send_modify(|board| {
        let mut changed = Board::clone(board);
        changed.units.get_mut(unit).unwrap().incident = Some(incident);
        *board = Arc::new(changed);
    });
}

fn watched(unit: &str) -> WatchedUnit {
    WatchedUnit {
        unit: unit.to_owned(),
        load: Load::Loaded,
        active: Active::Active,
        probe: Probe::Red { times: 2 },
        restarts: 4,
        incident: None,
        doing: None,
        paused: Some(PausedUntil { until: None, by: "op".to_owned(), reason: "upgrade".to_owned() }),
    }
}

fn broken(unit: &str) -> Outlook {
    let facts = Facts {
        active: Active::Failed,
        symptoms: vec![Symptom::ExitCode { status: 1 }],
        result: "exit-code".to_owned(),
        ..Facts::healthy(unit)
    };
    Outlook::of(Observed { facts, unknown: Vec::new() }, &Policy::default(), &History::default())
}

fn incident(unit: &str) -> incidents::Incident {
    incidents::Incident {
        id: Uuid::now_v7(),
        unit: unit.to_owned(),
        state: Standing::Held,
        outcome: None,
        known_as: "f1".to_owned(),
        cause: "it ended and nothing tells why".to_owned(),
        shared: None,
        needs_person: false,
        opened_at: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap(),
        closed_at: None,
        recovered_ms: None,
    }
}

fn closed(incident: incidents::Incident) -> incidents::Incident {
    let closed_at = Some(incident.opened_at);
    let outcome = Some("healed".to_owned());
    incidents::Incident { state: Standing::Closed, outcome, closed_at, recovered_ms: Some(112), ..incident }
}

fn entry(seq: i32, kind: &str, data: &Value) -> Entry {
    Entry {
        seq,
        at: Timestamp::now(),
        boot: Uuid::from_u128(7),
        boot_ms: 1000,
        ms: i64::from(seq),
        kind: kind.to_owned(),
        message: format!("{kind} happened"),
        data: data.clone(),
        lesson: None,
    }
}

fn slug(answer: &Value) -> &str {
    answer["type"].as_str().unwrap().trim_start_matches("urn:lares:problem:")
}

#[tokio::test]
async fn a_key_is_needed_to_look_and_an_operators_to_change() {
    let place = Place::new(|_| Ok(())).await;
    let id = Uuid::nil();
    let looks = ["/api/v1/units", "/api/v1/incidents", &format!("/api/v1/incidents/{id}"), "/api/v1/statistics"];
    for path in looks {
        assert_eq!(place.send("GET", path, None, None).await.0, 401, "{path}");
    }
    let changes = [
        "/api/v1/heal/app",
        "/api/v1/units/app/pause",
        "/api/v1/units/app/resume",
        &format!("/api/v1/incidents/{id}/approve"),
        &format!("/api/v1/incidents/{id}/reject"),
    ];
    for path in changes {
        assert_eq!(place.send("POST", path, None, Some(json!({}))).await.0, 401, "{path}");
        assert_eq!(place.send("POST", path, Some(&place.viewer), Some(json!({}))).await.0, 403, "{path}");
    }
    assert!(place.told().is_empty());
    let document = place.get("/openapi.json").await.1;
    for path in ["/api/v1/heal/{unit}", "/api/v1/incidents/{id}", "/api/v1/units/{unit}/pause"] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

#[tokio::test]
async fn the_board_is_shown_as_it_is() {
    let place = Place::new(|_| Ok(())).await;
    let (status, body) = place.get("/api/v1/units").await;
    assert_eq!(status, 200);
    let units: Units = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(
        units,
        Units {
            units: vec![watched("app.service"), watched("db.service"), watched("ralph")],
            acting: true,
            hearing: true,
            unshipped: 3
        }
    );
    assert_eq!(body["units"][0]["probe"], json!({ "state": "red", "times": 2 }));
    assert_eq!(body["units"][0]["active"], "active");
}

#[tokio::test]
async fn only_units_on_the_board_are_healed_or_paused() {
    let place = Place::new(|_| Ok(())).await;
    let calls = ["/api/v1/heal/nginx", "/api/v1/units/nginx/resume"];
    for path in calls {
        let (status, problem) = place.post(path).await;
        assert_eq!((status, slug(&problem)), (404, "unit-not-watched"));
        let said = problem["detail"].as_str().unwrap();
        for part in ["nginx.service is not watched", "`healer.units`", "app.service, db.service, ralph"] {
            assert!(said.contains(part), "{said}");
        }
    }
    assert_eq!(place.pause("nginx", json!({})).await.0, 404);
    let (_, problem) = place.post("/api/v1/heal/apps.service").await;
    assert!(problem["detail"].as_str().unwrap().contains("is app.service meant?"), "{problem}");
    assert!(place.told().is_empty());
    assert!(place.store.incidents().pauses(HOST).await.unwrap().is_empty());
}

#[tokio::test]
async fn healing_answers_with_the_outlook_and_the_incident_it_opened() {
    let place = Place::new(|_| Ok(())).await;
    let (status, body) = place.post("/api/v1/heal/app?dry_run=true").await;
    assert_eq!(status, 200);
    let healing: Healing = serde_json::from_value(body.clone()).unwrap();
    assert_eq!((healing.incident, &healing.outlook), (None, &broken("app.service")));
    assert_eq!(body["decision"]["decision"], "act");
    assert_eq!(body["steps"][0][0], json!({ "step": "reset_failed", "unit": "app.service" }));
    assert_eq!(place.post("/api/v1/heal/ralph?dry_run=true").await.1["facts"]["unit"], "ralph");
    let (_, body) = place.post("/api/v1/heal/app.service").await;
    assert_eq!(body["incident"], json!(Uuid::from_u128(7)));
    assert_eq!(place.post("/api/v1/heal/app?dryrun=true").await.0, 400);
    let (status, problem) = place.post("/api/v1/heal/db").await;
    assert_eq!((status, slug(&problem)), (503, "healer-stopping"));
    assert_eq!(
        place.told(),
        [
            "heal app.service dry_run=true by op",
            "heal ralph dry_run=true by op",
            "heal app.service dry_run=false by op",
            "heal db.service dry_run=false by op",
        ]
    );
    // Looking at it is no change.
    assert_eq!(place.audited().await, ["op unit.heal app.service ok", "op unit.heal db.service healer-stopping"]);
}

#[tokio::test]
async fn a_pause_is_kept_told_and_ended() {
    let place = Place::new(|_| Ok(())).await;
    let (status, body) = place.pause("app", json!({ "for": "1h", "reason": " upgrade " })).await;
    assert_eq!(status, 200);
    let pause: Pause = serde_json::from_value(body).unwrap();
    assert_eq!((pause.unit.as_str(), pause.by.as_str(), pause.reason.as_str()), ("app.service", "op", "upgrade"));
    let lasting = pause.until.unwrap().duration_since(pause.since).as_secs();
    assert!((3599..=3601).contains(&lasting), "{lasting}");
    assert_eq!(place.store.incidents().pauses(HOST).await.unwrap().len(), 1);
    assert_eq!(place.pause("app", json!({})).await.1["until"], Value::Null);
    assert_eq!(place.post("/api/v1/units/app/resume").await.1["was_paused"], true);
    assert_eq!(place.post("/api/v1/units/app/resume").await.1["was_paused"], false);
    assert!(place.store.incidents().pauses(HOST).await.unwrap().is_empty());
    for (body, field) in [
        (json!({ "for": "1 hour ago" }), "for"),
        (json!({ "for": "0s" }), "for"),
        (json!({ "for": "400d" }), "for"),
        (json!({ "reason": "x".repeat(REASON_MAX + 1) }), "reason"),
    ] {
        let (status, problem) = place.pause("app", body).await;
        assert_eq!((status, slug(&problem)), (422, "invalid-pause"), "{problem}");
        assert_eq!(problem["errors"][0]["field"], field);
    }
    assert!((400..500).contains(&place.pause("app", json!({ "until": "1h" })).await.0));
    assert_eq!(place.told(), ["wishes"; 4]);
    let audited = place.audited().await;
    assert_eq!(audited[0], "op unit.pause app.service ok");
    assert_eq!(audited.len(), 4);
}

#[tokio::test]
async fn incidents_are_listed_by_what_is_asked_for_and_shown_with_their_timeline() {
    let place = Place::new(|_| Ok(())).await;
    let old = closed(incident("app.service"));
    place.keep(&old, &[("symptoms", json!({ "kind": "symptoms" })), ("closed", json!({}))]).await;
    let held = incidents::Incident { needs_person: true, ..incident("app.service") };
    place.keep(&held, &[("symptoms", json!({}))]).await;
    let other = incident("db.service");
    place.keep(&other, &[("symptoms", json!({}))]).await;
    let there = place.store.incidents().take("there", "h2", Duration::from_secs(60)).await.unwrap().unwrap();
    let foreign = incident("app.service");
    place.store.incidents().append(&there, &foreign, &[entry(1, "symptoms", &json!({}))]).await.unwrap();

    for (query, found) in [
        ("", vec![other.id, held.id, old.id]),
        ("?unit=app", vec![held.id, old.id]),
        ("?open=true", vec![other.id, held.id]),
        ("?needs_person=true", vec![held.id]),
        ("?state=closed", vec![old.id]),
        (&format!("?before={}", held.id), vec![old.id]),
    ] {
        let (status, body) = place.get(&format!("/api/v1/incidents{query}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        let list: IncidentList = serde_json::from_value(body).unwrap();
        assert_eq!(list.incidents.iter().map(|i| i.id).collect::<Vec<_>>(), found, "{query}");
        assert_eq!(list.next_before, None);
    }
    let page: IncidentList = serde_json::from_value(place.get("/api/v1/incidents?limit=2").await.1).unwrap();
    assert_eq!(page.next_before, Some(held.id));
    for wrong in ["?state=ill", "?limit=0", "?page=2", "?before=x"] {
        assert_eq!(place.get(&format!("/api/v1/incidents{wrong}")).await.0, 400, "{wrong}");
    }

    let (_, body) = place.get(&format!("/api/v1/incidents/{}", old.id)).await;
    let detail: IncidentDetail = serde_json::from_value(body).unwrap();
    assert_eq!(detail.incident, old.clone().into());
    assert_eq!(detail.incident.state, IncidentState::Closed);
    let kinds: Vec<(i32, &str)> = detail.timeline.iter().map(|e| (e.seq, e.kind.as_str())).collect();
    assert_eq!(kinds, [(1, "symptoms"), (2, "closed")]);
    assert_eq!(detail.timeline[0].message, "symptoms happened");
    for absent in ["none".to_owned(), Uuid::nil().to_string()] {
        let (status, problem) = place.get(&format!("/api/v1/incidents/{absent}")).await;
        assert_eq!((status, slug(&problem)), (404, "incident-not-found"));
        assert!(problem["detail"].as_str().unwrap().contains("lares incident list"));
    }
}

#[tokio::test]
async fn an_open_incident_is_answered_by_the_loop_and_an_ended_one_is_not() {
    let place = Place::new(|_| Ok(())).await;
    let open = incident("app.service");
    place.keep(&open, &[("asked", json!({}))]).await;
    let ended = closed(incident("db.service"));
    place.keep(&ended, &[("closed", json!({}))]).await;
    let (status, body) = place.post(&format!("/api/v1/incidents/{}/approve", open.id)).await;
    assert_eq!((status, body["id"].clone()), (200, json!(open.id)));
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/reject", open.id)).await.0, 200);
    let (status, problem) = place.post(&format!("/api/v1/incidents/{}/approve", ended.id)).await;
    assert_eq!((status, slug(&problem)), (409, "incident-closed"));
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/approve", Uuid::nil())).await.0, 404);
    assert_eq!(place.told(), ["answer approved=true by op", "answer approved=false by op"]);
    let audited = place.audited().await;
    assert_eq!(audited[2], format!("op incident.approve {} incident-closed", ended.id));
    assert!(place.store.incidents().stats(HOST).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_the_loop_refuses_is_told_with_its_reason() {
    let place = Place::new(|id| Err(Refusal::UnderWay(id))).await;
    let open = incident("app.service");
    place.keep(&open, &[("acting", json!({}))]).await;
    let (status, problem) = place.post(&format!("/api/v1/incidents/{}/approve", open.id)).await;
    assert_eq!((status, slug(&problem)), (409, "remedy-under-way"));
    let place = Place::new(|_| Err(Refusal::Standby)).await;
    place.keep(&open, &[("asked", json!({}))]).await;
    let (status, problem) = place.post(&format!("/api/v1/incidents/{}/approve", open.id)).await;
    assert_eq!((status, slug(&problem)), (503, "standby"));
}

#[tokio::test]
async fn a_proposed_remedy_is_allowed_and_taken_back_even_after_the_end() {
    let place = Place::new(|id| Err(Refusal::NotOpen(id))).await;
    let proposal = ("proposed", json!({ "kind": "proposed", "remedy": "restart_dependencies" }));
    let ended = closed(incident("app.service"));
    place.keep(&ended, &[("symptoms", json!({})), proposal.clone(), ("closed", json!({}))]).await;
    let approved = async || {
        let stats = place.store.incidents().stats(HOST).await.unwrap();
        stats.into_iter().map(|s| (s.unit, s.known_as, s.remedy, s.approved)).collect::<Vec<_>>()
    };
    let allowed = |yes| vec![("app.service".to_owned(), "f1".to_owned(), "restart_dependencies".to_owned(), yes)];
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/approve", ended.id)).await.0, 200);
    assert_eq!(approved().await, allowed(true));
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/reject", ended.id)).await.0, 200);
    assert_eq!(approved().await, allowed(false));
    // The loop has nothing to ask of an open one, but the proposal is answered all the same.
    let open = incident("app.service");
    place.keep(&open, std::slice::from_ref(&proposal)).await;
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/approve", open.id)).await.0, 200);
    assert_eq!(approved().await, allowed(true));
    // Answered before: nothing is left to say.
    let answered = closed(incident("db.service"));
    place.keep(&answered, &[proposal, ("answered", json!({ "approved": false })), ("closed", json!({}))]).await;
    assert_eq!(place.post(&format!("/api/v1/incidents/{}/approve", answered.id)).await.0, 409);
    assert_eq!(approved().await.len(), 1);
    assert_eq!(place.told(), ["wishes", "wishes", "wishes", "answer approved=true by op"]);
}

#[tokio::test]
async fn an_incident_of_another_machine_is_answered_there() {
    let place = Place::new(|_| Ok(())).await;
    let there = place.store.incidents().take("there", "h2", Duration::from_secs(60)).await.unwrap().unwrap();
    let foreign = incident("app.service");
    place.store.incidents().append(&there, &foreign, &[entry(1, "asked", &json!({}))]).await.unwrap();
    let (status, problem) = place.post(&format!("/api/v1/incidents/{}/approve", foreign.id)).await;
    assert_eq!((status, slug(&problem)), (409, "incident-elsewhere"));
    assert!(place.told().is_empty());
}

#[tokio::test]
async fn statistics_tell_what_came_of_incidents() {
    let place = Place::new(|_| Ok(())).await;
    let heard = ("symptoms", json!({ "kind": "symptoms", "heard_after_us": 1500 }));
    let ended = closed(incident("app.service"));
    place.keep(&ended, &[heard, ("not_verified", json!({})), ("verified", json!({}))]).await;
    place.store.incidents().approve(HOST, "app.service", "f1", "restart", true).await.unwrap();
    let (status, body) = place.get("/api/v1/statistics").await;
    assert_eq!(status, 200);
    let statistics: Statistics = serde_json::from_value(body).unwrap();
    assert_eq!(statistics.units, 3);
    assert_eq!(statistics.last_day, statistics.last_month);
    let day = statistics.last_day;
    assert_eq!((day.incidents, day.open, day.outcomes["healed"]), (1, 0, 1));
    let pattern = &day.patterns[0];
    assert_eq!((pattern.helped, pattern.failed, pattern.success_rate), (1, 1, Some(0.5)));
    assert_eq!((pattern.recovered_median_ms, pattern.detected_p95_ms), (Some(112.0), Some(1.5)));
    let [remedy] = statistics.remedies.as_slice() else { panic!("{:?}", statistics.remedies) };
    assert_eq!((remedy.remedy.as_str(), remedy.approved, remedy.success_rate), ("restart", true, None));
}
