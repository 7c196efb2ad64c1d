//! Keys, the audit log and events in a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lares_store::audit::Entry;
use lares_store::events::{Count, Event};
use lares_store::keys::{self, Key};
use lares_store::notify::Item;
use lares_store::testing::Cluster;
use lares_store::{Error, Role};
use serde_json::json;
use uuid::Uuid;

#[tokio::test]
async fn a_key_is_listed_until_and_after_it_is_revoked_and_its_name_is_free_again() {
    let store = Cluster::shared().await.store().await;
    let first = Key::new("ci", Role::Client, [1; 32]);
    store.keys().insert(&first).await.unwrap();
    let same_name = Key::new("ci", Role::Viewer, [2; 32]);
    let e = store.keys().insert(&same_name).await.unwrap_err();
    assert!(matches!(&e, Error::KeyNameTaken(name) if name == "ci"), "{e}");

    assert!(store.keys().revoke(first.id).await.unwrap());
    assert!(!store.keys().revoke(first.id).await.unwrap());
    assert!(!store.keys().revoke(Uuid::now_v7()).await.unwrap());
    store.keys().insert(&same_name).await.unwrap();

    let listed = store.keys().list().await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[0].id, listed[0].role, listed[0].hash), (first.id, Role::Client, [1; 32]));
    assert!(listed[0].revoked_at.is_some());
    assert_eq!((listed[1].id, listed[1].revoked_at), (same_name.id, None));
}

#[tokio::test]
async fn a_change_of_keys_is_announced() {
    let store = Cluster::shared().await.store().await;
    let mut notifications = store.listen(&[keys::CHANNEL]).await.unwrap();
    let key = Key::new("a", Role::Admin, [1; 32]);
    store.keys().insert(&key).await.unwrap();
    store.keys().revoke(key.id).await.unwrap();
    for _ in 0..2 {
        let item = tokio::time::timeout(Duration::from_secs(10), notifications.recv()).await.unwrap();
        assert!(matches!(item, Some(Item::Notification(n)) if n.channel == keys::CHANNEL));
    }
}

#[tokio::test]
async fn the_audit_log_shows_the_newest_first_and_keeps_a_line_once() {
    let store = Cluster::shared().await.store().await;
    let key = Uuid::now_v7();
    let mut lines = Vec::new();
    for target in ["one", "two\0", "three"] {
        let line = Entry::new(Some(key), "ops", "task.cancel", target, "ok");
        store.audit().insert(&line).await.unwrap();
        store.audit().insert(&line).await.unwrap();
        lines.push(line);
    }
    let recent = store.audit().recent(2).await.unwrap();
    let targets: Vec<&str> = recent.iter().map(|line| line.target.as_str()).collect();
    assert_eq!(targets, ["three", "two\u{fffd}"]);
    assert_eq!((recent[0].id, recent[0].key_id), (lines[2].id, Some(key)));
}

fn request(outcome: &str) -> Event {
    Event { outcome: outcome.to_owned(), ..Event::new("request") }
}

#[tokio::test]
async fn an_event_comes_back_as_it_was_written_and_once() {
    let store = Cluster::shared().await.store().await;
    let task = Uuid::now_v7();
    let full = Event {
        subject: Some(task),
        model: Some("m".to_owned()),
        upstream: Some("u".to_owned()),
        status: Some(200),
        prompt_tokens: Some(i64::MAX),
        completion_tokens: Some(0),
        latency: Duration::from_micros(1_234_567),
        first_byte: Some(Duration::from_micros(1)),
        detail: json!({"stream": true, "n": [1, 2.5, null], "text": "ü\n"}),
        ..request("ok")
    };
    let events = [full.clone(), request("timeout")];
    store.events().insert_batch(&events).await.unwrap();
    store.events().insert_batch(&events).await.unwrap();
    store.events().insert_batch(&[]).await.unwrap();
    assert_eq!(store.events().of_subject(task, 10).await.unwrap(), [full]);
    assert_eq!(store.events().recent(Some("request"), 10).await.unwrap().len(), 2);
    assert_eq!(store.events().recent(Some("unit"), 10).await.unwrap(), []);
    assert_eq!(store.events().recent(None, 1).await.unwrap(), [events[1].clone()]);
}

#[tokio::test]
async fn events_are_counted_by_kind_and_outcome_since_a_moment() {
    let store = Cluster::shared().await.store().await;
    let old = Event { at: Timestamp::now() - SignedDuration::from_hours(2), ..request("ok") };
    let unit = Event { outcome: "restarted".to_owned(), ..Event::new("unit") };
    store.events().insert_batch(&[old, request("ok"), request("ok"), request("timeout"), unit]).await.unwrap();
    let counts = store.events().counts(Timestamp::now() - SignedDuration::from_hours(1)).await.unwrap();
    let count = |kind: &str, outcome: &str, count| Count { kind: kind.to_owned(), outcome: outcome.to_owned(), count };
    assert_eq!(counts, [count("request", "ok", 2), count("request", "timeout", 1), count("unit", "restarted", 1)]);
}
