//! Telemetry is not lost: not while PostgreSQL is away, not across a crash of the daemon, not by a line gone bad.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lares_store::Store;
use lares_store::events::{Event, Recorder, SpoolError};
use lares_store::testing::Cluster;
use serde_json::json;
use uuid::Uuid;

fn record(recorder: &Recorder, count: usize) -> BTreeSet<Uuid> {
    (0..count)
        .map(|n| {
            let event = Event { detail: json!({"n": n}), ..Event::new("request") };
            let id = event.id;
            recorder.record(event);
            id
        })
        .collect()
}

async fn stored(store: &Store) -> BTreeSet<Uuid> {
    store.events().recent(None, 1_000_000).await.unwrap().into_iter().map(|e| e.id).collect()
}

/// Waits until PostgreSQL has just these.
async fn expect(store: &Store, ids: &BTreeSet<Uuid>) {
    let waiting = Instant::now();
    loop {
        let found = stored(store).await;
        if found == *ids {
            return;
        }
        assert!(waiting.elapsed() < Duration::from_secs(30), "{} of {}", found.len(), ids.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn spool(state_dir: &Path, name: &str) -> std::path::PathBuf {
    state_dir.join("spool").join(name)
}

#[tokio::test]
async fn a_flush_brings_everything_recorded_before_it_to_postgresql() {
    let store = Cluster::shared().await.store().await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    let ids = record(&recorder, 2345);
    assert!(recorder.flush().await);
    assert_eq!(stored(&store).await, ids);
    assert_eq!((recorder.dropped(), recorder.rejected(), recorder.spooled_bytes()), (0, 0, 0));
    assert!(recorder.flush().await);
}

#[tokio::test]
async fn nothing_is_lost_while_postgresql_is_away() {
    let cluster = Cluster::start().await;
    let mut config = cluster.database("telemetry").await.config();
    config.connect_timeout = Duration::from_secs(1);
    let store = Store::connect(&config, cluster.state_dir()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    let mut ids = record(&recorder, 700);
    expect(&store, &ids).await;
    cluster.stop().await;
    ids.extend(record(&recorder, 1500));
    assert!(!recorder.flush().await);
    assert!(recorder.spooled_bytes() > 0);
    ids.extend(record(&recorder, 300));
    cluster.restart().await;
    expect(&store, &ids).await;
    assert_eq!(recorder.dropped(), 0);
}

#[tokio::test]
async fn what_a_daemon_left_in_its_spool_the_next_one_ships() {
    let cluster = Cluster::start().await;
    let mut config = cluster.database("telemetry").await.config();
    config.connect_timeout = Duration::from_secs(1);
    let store = Store::connect(&config, cluster.state_dir()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    cluster.stop().await;
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    let mut ids = record(&recorder, 800);
    // Without a flush, and without PostgreSQL.
    drop(recorder);
    cluster.restart().await;
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    ids.extend(record(&recorder, 10));
    expect(&store, &ids).await;
}

#[tokio::test]
async fn a_crash_between_shipping_and_removing_writes_no_event_twice() {
    let store = Cluster::shared().await.store().await;
    let dir = tempfile::tempdir().unwrap();
    let event = Event::new("request");
    let line = serde_json::to_string(&event).unwrap() + "\n";
    store.events().insert_batch(std::slice::from_ref(&event)).await.unwrap();
    std::fs::create_dir(dir.path().join("spool")).unwrap();
    std::fs::write(spool(dir.path(), "t.shipping.jsonl"), &line).unwrap();
    std::fs::write(spool(dir.path(), "t.jsonl"), &line).unwrap();
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    assert!(recorder.flush().await);
    assert_eq!(stored(&store).await, BTreeSet::from([event.id]));
    assert!(!spool(dir.path(), "t.shipping.jsonl").exists());
}

#[tokio::test]
async fn a_bad_line_is_put_aside_and_does_not_keep_the_others() {
    let store = Cluster::shared().await.store().await;
    let dir = tempfile::tempdir().unwrap();
    let good = [Event::new("request"), Event::new("request")];
    // Parses, but is out of PostgreSQL's range.
    let refused = Event { at: Timestamp::MIN, ..Event::new("request") };
    let line = |event: &Event| serde_json::to_string(event).unwrap();
    let text =
        [&line(&good[0]), "{\"from\": \"another version\"}", &line(&refused), &line(&good[1]), "{\"torn"].join("\n");
    std::fs::create_dir(dir.path().join("spool")).unwrap();
    std::fs::write(spool(dir.path(), "t.jsonl"), text).unwrap();
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    assert!(recorder.flush().await);
    assert_eq!(stored(&store).await, good.iter().map(|e| e.id).collect());
    assert_eq!(recorder.rejected(), 2);
    let aside = std::fs::read_to_string(spool(dir.path(), "t.rejected.jsonl")).unwrap();
    assert!(aside.contains("another version") && aside.contains(&refused.id.to_string()), "{aside}");
    assert_eq!(aside.lines().count(), 2);
}

#[tokio::test]
async fn text_that_postgresql_cannot_hold_is_kept_with_a_replacement() {
    let store = Cluster::shared().await.store().await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(store.clone(), dir.path(), "t").await.unwrap();
    recorder.record(Event { detail: json!({"a\0": ["b\0"]}), outcome: "c\0".to_owned(), ..Event::new("request") });
    assert!(recorder.flush().await);
    let event = &store.events().recent(None, 1).await.unwrap()[0];
    assert_eq!((event.detail.clone(), event.outcome.as_str()), (json!({"a\u{fffd}": ["b\u{fffd}"]}), "c\u{fffd}"));
}

#[tokio::test]
async fn daemons_of_one_name_have_a_spool_each_and_what_one_leaves_the_other_ships() {
    let store = Cluster::shared().await.store().await;
    let dir = tempfile::tempdir().unwrap();
    let first = Recorder::open(store.clone(), dir.path(), "ralph").await.unwrap();
    let second = Recorder::open(store.clone(), dir.path(), "ralph").await.unwrap();
    let mut ids = record(&first, 50);
    ids.extend(record(&second, 50));
    assert!(first.flush().await && second.flush().await);
    assert_eq!(stored(&store).await, ids);
    drop(second);
    let left = Event::new("request");
    std::fs::write(spool(dir.path(), "ralph.7.jsonl"), serde_json::to_string(&left).unwrap() + "\n").unwrap();
    ids.insert(left.id);
    expect(&store, &ids).await;
    assert_eq!(first.dropped(), 0);
}

#[tokio::test]
async fn a_spool_over_its_bound_drops_and_counts() {
    let cluster = Cluster::start().await;
    let mut config = cluster.database("telemetry").await.config();
    config.connect_timeout = Duration::from_millis(200);
    let store = Store::connect(&config, cluster.state_dir()).await.unwrap();
    cluster.stop().await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(store, dir.path(), "t").await.unwrap();
    let text = "x".repeat(500_000);
    for _ in 0..200 {
        recorder.record(Event { detail: json!({"text": text}), ..Event::new("request") });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = Instant::now();
    while recorder.dropped() == 0 {
        assert!(waiting.elapsed() < Duration::from_secs(30), "{} bytes", recorder.spooled_bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(recorder.spooled_bytes() <= 64 * 1024 * 1024);
    assert!(recorder.dropped() < 200);
}

#[tokio::test]
async fn a_name_that_is_no_file_name_is_refused() {
    let store = Cluster::shared().await.store().await;
    for name in ["", "../x", "a.1", "A"] {
        let e = Recorder::open(store.clone(), Path::new("/nowhere"), name).await.unwrap_err();
        assert!(matches!(e, SpoolError::BadName(_)), "{name}");
    }
}
