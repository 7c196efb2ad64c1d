//! Notifications over a connection that is cut.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use lares_store::notify::{Item, Notification, Notifications};
use lares_store::testing::{Cluster, TestDatabase};

async fn next(notifications: &mut Notifications) -> Item {
    tokio::time::timeout(Duration::from_secs(20), notifications.recv()).await.unwrap().unwrap()
}

async fn announce(database: &TestDatabase, channel: &str, payload: &str) {
    database.client().await.execute("SELECT pg_notify($1, $2)", &[&channel, &payload]).await.unwrap();
}

fn said(channel: &str, payload: &str) -> Item {
    Item::Notification(Notification { channel: channel.to_owned(), payload: payload.to_owned() })
}

#[tokio::test]
async fn each_channel_listened_on_is_heard_whatever_its_name() {
    let database = Cluster::shared().await;
    let store = database.store().await;
    let mut notifications = store.listen(&["plain", "Odd \"name\""]).await.unwrap();
    announce(&database, "unheard", "0").await;
    announce(&database, "plain", "1").await;
    announce(&database, "Odd \"name\"", "2").await;
    assert_eq!(next(&mut notifications).await, said("plain", "1"));
    assert_eq!(next(&mut notifications).await, said("Odd \"name\"", "2"));
}

#[tokio::test]
async fn after_the_connection_was_cut_comes_a_resync_and_then_what_is_new() {
    let database = Cluster::shared().await;
    let store = database.store().await;
    let mut notifications = store.listen(&["c"]).await.unwrap();
    let cut = database
        .client()
        .await
        .query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(cut.len(), 1);
    assert_eq!(next(&mut notifications).await, Item::Resync);
    announce(&database, "c", "new").await;
    assert_eq!(next(&mut notifications).await, said("c", "new"));
}

#[tokio::test]
async fn a_reader_too_slow_for_the_queue_is_told_to_read_again() {
    let database = Cluster::shared().await;
    let store = database.store().await;
    let mut notifications = store.listen(&["c"]).await.unwrap();
    // Different payloads: PostgreSQL folds equal ones of a transaction.
    let flood = "SELECT pg_notify('c', n::text) FROM generate_series(1, 3000) n";
    database.client().await.execute(flood, &[]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut heard = 0;
    loop {
        match next(&mut notifications).await {
            Item::Resync => break,
            Item::Notification(_) => heard += 1,
        }
        assert!(heard < 3000, "everything was kept");
    }
}

#[tokio::test]
async fn dropping_the_receiver_closes_its_connection() {
    let database = Cluster::shared().await;
    let store = database.store().await;
    let client = database.client().await;
    let listeners = async || {
        let text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        client.query_one(text, &[]).await.unwrap().get::<_, i64>(0)
    };
    let notifications = store.listen(&["c"]).await.unwrap();
    assert_eq!(listeners().await, 1);
    drop(notifications);
    for _ in 0..500 {
        if listeners().await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the connection stays");
}
