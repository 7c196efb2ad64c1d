//! Failures that no pattern knows, against a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use lares_store::testing::Cluster;

#[tokio::test]
async fn a_failure_is_counted_and_keeps_its_first_sample() {
    let store = Cluster::shared().await.store().await;
    let failures = store.failures();
    let long = format!("nul \0 {}", "ä".repeat(600));
    let first = failures.seen("f1", "worker <n> died", &long).await.unwrap();
    assert_eq!((first.seen, first.cluster.as_deref(), first.model.as_deref()), (1, None, None));
    assert_eq!(first.sample.chars().count(), 500);
    assert!(first.sample.starts_with("nul \u{fffd} ä"), "{}", first.sample);
    let second = failures.seen("f1", "another", "another").await.unwrap();
    assert_eq!((second.seen, &second.template, &second.sample), (2, &first.template, &first.sample));
    assert!(second.last_seen >= first.last_seen && second.first_seen == first.first_seen);
    assert_eq!(failures.known().await.unwrap(), [second]);
}

#[tokio::test]
async fn the_first_answer_to_which_it_is_like_stands() {
    let store = Cluster::shared().await.store().await;
    let failures = store.failures();
    for fingerprint in ["f1", "f2", "f3"] {
        failures.seen(fingerprint, fingerprint, fingerprint).await.unwrap();
    }
    assert_eq!(failures.assign("f1", "f1", None).await.unwrap().as_deref(), Some("f1"));
    assert_eq!(failures.assign("f2", "f1", Some("mini")).await.unwrap().as_deref(), Some("f1"));
    // Compared again, by another machine or another model.
    assert_eq!(failures.assign("f2", "f2", Some("maxi")).await.unwrap().as_deref(), Some("f1"));
    assert_eq!(failures.assign("none", "f1", None).await.unwrap(), None);
    assert_eq!(failures.cluster("f2").await.unwrap().as_deref(), Some("f1"));
    assert_eq!(failures.cluster("f3").await.unwrap(), None);
    assert_eq!(failures.cluster("none").await.unwrap(), None);
    assert_eq!(failures.clusters().await.unwrap(), [("f2".to_owned(), "f1".to_owned())]);
    let models: Vec<_> = failures.known().await.unwrap().into_iter().map(|f| (f.fingerprint, f.model)).collect();
    let owned = |text: &str| text.to_owned();
    assert_eq!(models, [(owned("f3"), None), (owned("f2"), Some(owned("maxi"))), (owned("f1"), None)]);
}

#[tokio::test]
async fn those_not_seen_for_longest_are_forgotten() {
    let store = Cluster::shared().await.store().await;
    let failures = store.failures();
    for fingerprint in ["f1", "f2", "f3", "f1"] {
        failures.seen(fingerprint, fingerprint, fingerprint).await.unwrap();
    }
    assert_eq!(failures.forget(10).await.unwrap(), Vec::<String>::new());
    assert_eq!(failures.forget(2).await.unwrap(), ["f2"]);
    let left: Vec<_> = failures.known().await.unwrap().into_iter().map(|f| f.fingerprint).collect();
    assert_eq!(left, ["f1", "f3"]);
}
