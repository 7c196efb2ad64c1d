//! Incidents, their timelines and what is learned from them, against a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lares_store::incidents::{CHANNEL, Entry, Filter, Incident, IncidentError, Lease, Lesson, State, WISHES_CHANNEL};
use lares_store::notify::Item;
use lares_store::testing::Cluster;
use lares_store::{Store, notify};
use serde_json::json;
use uuid::Uuid;

const MINUTE: Duration = Duration::from_secs(60);

fn incident(unit: &str) -> Incident {
    Incident {
        id: Uuid::now_v7(),
        unit: unit.to_owned(),
        state: State::Open,
        outcome: None,
        known_as: "port_conflict".to_owned(),
        cause: "port 8080 is held".to_owned(),
        shared: None,
        needs_person: false,
        // PostgreSQL keeps microseconds.
        opened_at: Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap(),
        closed_at: None,
        recovered_ms: None,
    }
}

fn closed(incident: &Incident, at: Timestamp) -> Incident {
    let outcome = Some("healed".to_owned());
    let closed_at = Some(Timestamp::from_microsecond(at.as_microsecond()).unwrap());
    Incident { state: State::Closed, outcome, closed_at, recovered_ms: Some(112), ..incident.clone() }
}

fn entry(seq: i32, kind: &str) -> Entry {
    Entry {
        seq,
        at: Timestamp::from_second(1_800_000_000 + i64::from(seq)).unwrap(),
        boot: Uuid::from_u128(7),
        boot_ms: 1000 + i64::from(seq),
        ms: i64::from(seq),
        kind: kind.to_owned(),
        message: format!("{kind} happened"),
        data: json!({ "kind": kind }),
        lesson: None,
    }
}

fn lesson(seq: i32, helped: bool) -> Entry {
    let lesson = Lesson { known_as: "port_conflict".to_owned(), remedy: "restart".to_owned(), helped };
    Entry { lesson: Some(lesson), ..entry(seq, "verified") }
}

async fn lease(store: &Store) -> Lease {
    store.incidents().take("here", "healer-1", MINUTE).await.unwrap().unwrap()
}

async fn next(notifications: &mut notify::Notifications) -> notify::Notification {
    match tokio::time::timeout(Duration::from_secs(10), notifications.recv()).await.unwrap() {
        Some(Item::Notification(notification)) => notification,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn entries_come_back_as_written_once_and_are_announced() {
    let store = Cluster::shared().await.store().await;
    let (incidents, lease) = (store.incidents(), lease(&store).await);
    let mut notifications = store.listen(&[CHANNEL]).await.unwrap();
    let one = incident("app.service");
    let odd = Entry { message: "nul \0 byte".to_owned(), data: json!({ "line": "a\0b" }), ..entry(2, "evidence") };
    let entries = [entry(1, "symptoms"), odd, lesson(3, false)];
    incidents.append(&lease, &one, &entries).await.unwrap();
    // The answer was lost: the same again, and the rest.
    let healed = closed(&one, Timestamp::now());
    incidents.append(&lease, &one, &entries).await.unwrap();
    let more = [entries.to_vec(), vec![lesson(4, true), entry(5, "closed")]].concat();
    incidents.append(&lease, &healed, &more).await.unwrap();
    incidents.append(&lease, &healed, &more).await.unwrap();

    assert_eq!(incidents.get(one.id).await.unwrap(), healed);
    let timeline = incidents.timeline(one.id, 0).await.unwrap();
    assert_eq!(timeline.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert_eq!(timeline[0], entry(1, "symptoms"));
    assert_eq!(timeline[1].data, json!({ "line": "a\u{fffd}b" }));
    assert_eq!(incidents.timeline(one.id, 3).await.unwrap().len(), 2);
    let stats = incidents.stats("here").await.unwrap();
    assert_eq!((stats.len(), stats[0].helped, stats[0].failed, stats[0].approved), (1, 1, 1, false));
    for _ in 0..2 {
        assert_eq!(next(&mut notifications).await.payload, one.id.to_string());
    }
    let e = incidents.get(Uuid::nil()).await.unwrap_err();
    assert!(matches!(e, IncidentError::NotFound(_)), "{e}");
}

#[tokio::test]
async fn an_older_write_that_comes_late_changes_nothing_and_a_gap_is_refused() {
    let store = Cluster::shared().await.store().await;
    let (incidents, lease) = (store.incidents(), lease(&store).await);
    let one = incident("app.service");
    let healed = closed(&one, Timestamp::now());
    incidents.append(&lease, &healed, &[entry(1, "symptoms"), entry(2, "closed")]).await.unwrap();
    incidents.append(&lease, &one, &[entry(1, "symptoms")]).await.unwrap();
    assert_eq!(incidents.get(one.id).await.unwrap(), healed);
    let e = incidents.append(&lease, &healed, &[entry(4, "late")]).await.unwrap_err();
    assert!(matches!(e, IncidentError::Gap { found: 4, last: 2, .. }), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_healers_on_one_host_one_writes() {
    let store = Cluster::shared().await.store().await;
    let incidents = store.incidents();
    let first = incidents.take("here", "healer-1", Duration::from_millis(300)).await.unwrap().unwrap();
    assert_eq!(incidents.take("here", "healer-2", MINUTE).await.unwrap(), None);
    assert!(incidents.take("there", "healer-2", MINUTE).await.unwrap().is_some());
    incidents.renew(&first, Duration::from_millis(50)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Silent for too long, but nobody took the host: still its.
    let one = incident("app.service");
    incidents.append(&first, &one, &[entry(1, "symptoms")]).await.unwrap();
    let second = incidents.take("here", "healer-2", MINUTE).await.unwrap().unwrap();
    assert!(second.fence > first.fence);
    for e in [
        incidents.append(&first, &one, &[entry(2, "acting")]).await.unwrap_err(),
        incidents.renew(&first, MINUTE).await.unwrap_err(),
        incidents.release(&first).await.unwrap_err(),
    ] {
        assert!(matches!(&e, IncidentError::Fenced(host) if host == "here"), "{e}");
    }
    incidents.append(&second, &one, &[entry(2, "acting")]).await.unwrap();
    incidents.release(&second).await.unwrap();
    assert!(incidents.take("here", "healer-3", MINUTE).await.unwrap().is_some());

    let mut starting = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = store.clone();
        starting.spawn(async move { store.incidents().take("new", &format!("h{n}"), MINUTE).await.unwrap().is_some() });
    }
    assert_eq!(starting.join_all().await.into_iter().filter(|got| *got).count(), 1);
}

#[tokio::test]
async fn a_unit_has_one_open_incident_and_lists_are_filtered() {
    let store = Cluster::shared().await.store().await;
    let (incidents, lease) = (store.incidents(), lease(&store).await);
    let old = incident("app.service");
    incidents.append(&lease, &closed(&old, Timestamp::now()), &[entry(1, "symptoms")]).await.unwrap();
    let older = incident("app.service");
    let open = Incident { needs_person: true, state: State::Held, ..incident("app.service") };
    incidents.append(&lease, &open, &[entry(1, "symptoms")]).await.unwrap();
    assert!(incidents.append(&lease, &older, &[entry(1, "symptoms")]).await.is_err());
    let other = incident("db.service");
    incidents.append(&lease, &other, &[entry(1, "symptoms")]).await.unwrap();

    let list = async |filter: Filter| {
        let found = incidents.list(&Filter { limit: 10, ..filter }).await.unwrap();
        found.into_iter().map(|incident| incident.id).collect::<Vec<_>>()
    };
    assert_eq!(list(Filter::default()).await, [other.id, open.id, old.id]);
    let of_app = Filter { unit: Some("app.service".to_owned()), ..Filter::default() };
    assert_eq!(list(of_app).await, [open.id, old.id]);
    assert_eq!(list(Filter { open: true, ..Filter::default() }).await, [other.id, open.id]);
    assert_eq!(list(Filter { needs_person: true, ..Filter::default() }).await, [open.id]);
    assert_eq!(list(Filter { state: Some(State::Closed), ..Filter::default() }).await, [old.id]);
    assert_eq!(list(Filter { before: Some(open.id), ..Filter::default() }).await, [old.id]);
    let of_host = |host: &str| Filter { host: Some(host.to_owned()), ..Filter::default() };
    assert_eq!(list(of_host("here")).await, [other.id, open.id, old.id]);
    assert!(list(of_host("there")).await.is_empty());
    assert_eq!(incidents.host(open.id).await.unwrap(), "here");
    assert!(matches!(incidents.host(Uuid::nil()).await.unwrap_err(), IncidentError::NotFound(_)));
}

#[tokio::test]
async fn a_newer_incident_of_a_unit_ends_one_that_nobody_knows_of_any_more() {
    let store = Cluster::shared().await.store().await;
    let (incidents, lease) = (store.incidents(), lease(&store).await);
    let (forgotten, new) = (incident("lost.service"), incident("lost.service"));
    incidents.append(&lease, &forgotten, &[entry(1, "symptoms")]).await.unwrap();
    incidents.append(&lease, &new, &[entry(1, "symptoms")]).await.unwrap();
    let ended = incidents.get(forgotten.id).await.unwrap();
    assert_eq!((ended.state, ended.outcome.as_deref()), (State::Closed, Some("superseded")));
    assert_eq!(incidents.get(new.id).await.unwrap().state, State::Open);
}

#[tokio::test]
async fn statistics_count_by_outcome_and_pattern_within_their_window() {
    let store = Cluster::shared().await.store().await;
    let (incidents, here) = (store.incidents(), lease(&store).await);
    let there = incidents.take("there", "healer-2", MINUTE).await.unwrap().unwrap();
    let now = Timestamp::now();
    let heard = |us: i64| Entry { data: json!({ "kind": "symptoms", "heard_after_us": us }), ..entry(1, "symptoms") };
    // Recovered after 100, 200, … 500 ms, each heard of ten times as many microseconds later.
    for n in 1..=5 {
        let healed = Incident { recovered_ms: Some(100 * n), ..closed(&incident("app.service"), now) };
        let entries = [heard(1000 * n), entry(2, "not_verified"), entry(3, "verified"), entry(4, "closed")];
        incidents.append(&here, &healed, &entries).await.unwrap();
    }
    let left = closed(&Incident { known_as: String::new(), ..incident("app.service") }, now);
    let left = Incident { outcome: Some("left_alone".to_owned()), recovered_ms: None, ..left };
    let odd = Entry { data: json!({ "heard_after_us": "soon" }), ..entry(1, "symptoms") };
    incidents.append(&here, &left, &[odd]).await.unwrap();
    let open = Incident { needs_person: true, ..incident("app.service") };
    incidents.append(&here, &open, &[entry(1, "symptoms"), entry(2, "not_verified")]).await.unwrap();
    let old = Incident { opened_at: now - SignedDuration::from_hours(25), ..incident("old.service") };
    incidents.append(&here, &closed(&old, now), &[entry(1, "symptoms")]).await.unwrap();
    incidents.append(&there, &incident("app.service"), &[entry(1, "symptoms")]).await.unwrap();

    let day = incidents.statistics("here", Duration::from_secs(24 * 3600)).await.unwrap();
    assert_eq!((day.incidents, day.open, day.needs_person), (7, 1, 1));
    assert_eq!(day.outcomes.into_iter().collect::<Vec<_>>(), [("healed".to_owned(), 5), ("left_alone".to_owned(), 1)]);
    let [port, unknown] = day.patterns.as_slice() else { panic!("{:?}", day.patterns) };
    assert_eq!((port.known_as.as_str(), port.incidents, port.healed), ("port_conflict", 6, 5));
    assert_eq!((port.helped, port.failed), (5, 6));
    assert_eq!((port.recovered_median_ms, port.recovered_p95_ms), (Some(300.0), Some(480.0)));
    assert_eq!((port.detected_median_us, port.detected_p95_us), (Some(3000.0), Some(4800.0)));
    assert_eq!((unknown.known_as.as_str(), unknown.incidents, unknown.healed, unknown.helped), ("", 1, 0, 0));
    assert_eq!((unknown.recovered_median_ms, unknown.detected_p95_us), (None, None));

    let two_days = incidents.statistics("here", Duration::from_secs(48 * 3600)).await.unwrap();
    assert_eq!((two_days.incidents, two_days.patterns[0].incidents), (8, 7));
    let none = incidents.statistics("elsewhere", Duration::from_secs(3600)).await.unwrap();
    assert_eq!(none, lares_store::incidents::Statistics::default());
}

#[tokio::test]
async fn a_healer_that_starts_gets_what_is_open_and_what_ended_lately_of_its_host() {
    let store = Cluster::shared().await.store().await;
    let (incidents, here) = (store.incidents(), lease(&store).await);
    let there = incidents.take("there", "healer-2", MINUTE).await.unwrap().unwrap();
    let (old, late, open, foreign) = (incident("a"), incident("b"), incident("c"), incident("d"));
    let now = Timestamp::now();
    let long_ago = closed(&old, now - SignedDuration::from_hours(2));
    incidents.append(&here, &long_ago, &[entry(1, "symptoms")]).await.unwrap();
    incidents.append(&here, &closed(&late, now), &[entry(1, "symptoms"), entry(2, "closed")]).await.unwrap();
    incidents.append(&here, &open, &[entry(1, "symptoms")]).await.unwrap();
    incidents.append(&there, &foreign, &[entry(1, "symptoms")]).await.unwrap();
    let found = incidents.to_resume("here", Duration::from_secs(3600)).await.unwrap();
    let ids: Vec<(Uuid, usize)> = found.iter().map(|(incident, timeline)| (incident.id, timeline.len())).collect();
    assert_eq!(ids, [(late.id, 2), (open.id, 1)]);
}

#[tokio::test]
async fn pauses_and_approvals_reach_the_healer_and_a_pause_ends_by_itself() {
    let store = Cluster::shared().await.store().await;
    let incidents = store.incidents();
    let mut wishes = store.listen(&[WISHES_CHANNEL]).await.unwrap();
    let pause = incidents.pause("here", "app", Some(Duration::from_millis(200)), "ops", "upgrade").await.unwrap();
    assert_eq!(incidents.pauses("here").await.unwrap(), std::slice::from_ref(&pause));
    assert!(incidents.pauses("there").await.unwrap().is_empty());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(incidents.pauses("here").await.unwrap().is_empty());
    let again = incidents.pause("here", "app", None, "ops", "for good").await.unwrap();
    assert_eq!(again.until, None);
    assert_eq!(incidents.pauses("here").await.unwrap().len(), 1);
    assert!(incidents.resume("here", "app").await.unwrap());
    assert!(!incidents.resume("here", "app").await.unwrap());
    incidents.approve("here", "app", "f1", "restart_dependencies", true).await.unwrap();
    assert!(incidents.stats("here").await.unwrap()[0].approved);
    for _ in 0..4 {
        assert_eq!(next(&mut wishes).await.payload, "app");
    }
}

#[tokio::test]
async fn a_bad_generation_is_remembered_by_its_system() {
    let store = Cluster::shared().await.store().await;
    let (incidents, id) = (store.incidents(), Uuid::now_v7());
    for _ in 0..2 {
        incidents.mark_bad("here", 8, "/nix/store/a-system", id).await.unwrap();
    }
    assert_eq!(incidents.bad_generations("here").await.unwrap(), [(8, "/nix/store/a-system".to_owned())]);
    assert_eq!(incidents.bad_generations("there").await.unwrap(), []);
}
