//! What every implementation of vector search must do, and what only one does.
#![allow(clippy::unwrap_used)]

use lares_config::VectorsBackend;
use lares_store::testing::Cluster;
use lares_store::vectors::{self, Collection, Error, Filter, Match, Memory, Point, Qdrant, Vectors};
use serde_json::json;
use uuid::Uuid;

const PLACE: Collection = Collection::CodebaseContext;

fn point(number: u128, vector: [f32; 3], language: &str) -> Point {
    let payload = json!({"language": language, "n": i64::try_from(number).unwrap(), "ok": number.is_multiple_of(2)});
    Point { id: Uuid::from_u128(number), vector: vector.into(), payload: payload.as_object().unwrap().clone() }
}

/// Runs against empty collections three wide.
async fn conforms(vectors: &dyn Vectors) {
    let e = vectors.count(Collection::BestPractices).await.unwrap_err();
    assert!(matches!(e, Error::NoCollection(Collection::BestPractices)), "{e}");
    vectors.ensure_collection(PLACE).await.unwrap();
    vectors.ensure_collection(PLACE).await.unwrap();
    vectors.ensure_collection(Collection::SkillsPatterns).await.unwrap();
    assert_eq!(vectors.count(PLACE).await.unwrap(), 0);
    assert_eq!(vectors.search(PLACE, &[1.0, 0.0, 0.0], 5, None).await.unwrap(), []);

    // Cosine: the direction counts, the length does not.
    let points =
        vec![point(1, [100.0, 0.0, 0.0], "rust"), point(2, [0.1, 0.1, 0.0], "rust"), point(3, [-1.0, 0.0, 0.0], "nix")];
    vectors.upsert(PLACE, points.clone()).await.unwrap();
    assert_eq!(vectors.count(PLACE).await.unwrap(), 3);
    assert_eq!(vectors.count(Collection::SkillsPatterns).await.unwrap(), 0);
    let hits = vectors.search(PLACE, &[2.0, 0.0, 0.0], 10, None).await.unwrap();
    assert_eq!(hits.iter().map(|hit| hit.id.as_u128()).collect::<Vec<_>>(), [1, 2, 3]);
    for (hit, score) in hits.iter().zip([1.0, 0.5_f32.sqrt(), -1.0]) {
        assert!((hit.score - score).abs() < 1e-5, "{} for {score}", hit.score);
    }
    assert_eq!(hits[0].payload, points[0].payload);
    assert_eq!(vectors.search(PLACE, &[2.0, 0.0, 0.0], 1, None).await.unwrap().len(), 1);
    assert_eq!(vectors.search(PLACE, &[2.0, 0.0, 0.0], 0, None).await.unwrap(), []);

    let nix = Filter::new().and("language", Match::Text("nix".to_owned()));
    let two = Filter::new().and("n", Match::Integer(2)).and("ok", Match::Bool(true));
    let none = two.clone().and("language", Match::Text("nix".to_owned()));
    for (filter, expected) in [(nix, vec![3]), (two, vec![2]), (none, vec![]), (Filter::new(), vec![1, 2, 3])] {
        let hits = vectors.search(PLACE, &[1.0, 0.0, 0.0], 10, Some(&filter)).await.unwrap();
        assert_eq!(hits.iter().map(|hit| hit.id.as_u128()).collect::<Vec<_>>(), expected, "{filter:?}");
    }

    // The same identity replaces.
    vectors.upsert(PLACE, vec![point(3, [0.0, 0.0, 1.0], "go"), point(3, [0.0, 1.0, 0.0], "zig")]).await.unwrap();
    assert_eq!(vectors.count(PLACE).await.unwrap(), 3);
    let hits = vectors.search(PLACE, &[0.0, 1.0, 0.0], 1, None).await.unwrap();
    assert_eq!((hits[0].id.as_u128(), &hits[0].payload["language"]), (3, &json!("zig")));

    // One that cannot be compared keeps out all that came with it.
    for (bad, name) in
        [([0.0, 0.0, 0.0], "zero"), ([f32::NAN, 0.0, 1.0], "nan"), ([f32::INFINITY, 0.0, 1.0], "infinite")]
    {
        let e = vectors.upsert(PLACE, vec![point(8, [1.0, 1.0, 1.0], name), point(9, bad, name)]).await.unwrap_err();
        assert!(matches!(e, Error::Zero | Error::NotFinite), "{name}: {e}");
        assert!(vectors.search(PLACE, &bad, 1, None).await.is_err(), "{name}");
    }
    let narrow = Point { vector: vec![1.0, 2.0], ..point(9, [1.0; 3], "narrow") };
    let e = vectors.upsert(PLACE, vec![narrow]).await.unwrap_err();
    assert!(matches!(e, Error::Width { expected: 3, found: 2 }), "{e}");
    assert!(matches!(vectors.search(PLACE, &[1.0; 4], 1, None).await, Err(Error::Width { .. })));
    assert_eq!(vectors.count(PLACE).await.unwrap(), 3);

    let ids = [1, 3, 99].map(Uuid::from_u128);
    vectors.delete(PLACE, &ids).await.unwrap();
    vectors.delete(PLACE, &[]).await.unwrap();
    assert_eq!(vectors.count(PLACE).await.unwrap(), 1);
    let hits = vectors.search(PLACE, &[1.0, 0.0, 0.0], 10, None).await.unwrap();
    assert_eq!(hits.iter().map(|hit| hit.id.as_u128()).collect::<Vec<_>>(), [2]);
    assert!(vectors.upsert(Collection::BestPractices, points).await.is_err());
}

#[tokio::test]
async fn memory_conforms() {
    let store = Cluster::shared().await.store().await;
    conforms(&Memory::open(store, 3).await.unwrap()).await;
}

#[tokio::test]
async fn qdrant_conforms() {
    let Ok(url) = std::env::var("LARES_TEST_QDRANT_URL") else {
        eprintln!("SKIP qdrant_conforms: LARES_TEST_QDRANT_URL is not set");
        return;
    };
    let admin = qdrant_client::Qdrant::from_url(&url).skip_compatibility_check().build().unwrap();
    let clear = async || {
        for collection in Collection::ALL {
            admin.delete_collection(collection.as_str()).await.unwrap();
        }
    };
    clear().await;
    let config = lares_config::Vectors { backend: VectorsBackend::Qdrant, url, dimensions: 3, api_key_file: None };
    conforms(&Qdrant::connect(&config).await.unwrap()).await;
    let wider = lares_config::Vectors { dimensions: 4, ..config };
    let e = Qdrant::connect(&wider).await.unwrap().ensure_collection(PLACE).await.unwrap_err();
    assert!(matches!(e, Error::OtherCollection { .. }), "{e}");
    clear().await;
}

#[tokio::test]
async fn a_qdrant_that_is_not_there_is_an_error_that_names_its_url() {
    let config = lares_config::Vectors {
        backend: VectorsBackend::Qdrant,
        url: "http://127.0.0.1:1".to_owned(),
        ..lares_config::Vectors::default()
    };
    let e = Qdrant::connect(&config).await.unwrap_err();
    assert!(e.to_string().contains("http://127.0.0.1:1 (store.vectors.url)"), "{e}");
}

#[tokio::test]
async fn memory_has_after_a_restart_what_it_had_before() {
    let store = Cluster::shared().await.store().await;
    let config = lares_config::Vectors { dimensions: 3, ..lares_config::Vectors::default() };
    let before = vectors::open(&config, &store).await.unwrap();
    let many = (0..2500).map(|n| point(n, [1.0, f32::from(u16::try_from(n).unwrap()), 0.5], "rust")).collect();
    before.upsert(PLACE, many).await.unwrap();
    before.delete(PLACE, &[Uuid::from_u128(7)]).await.unwrap();
    let query = [1.0, 3.0, 0.0];
    let hits = before.search(PLACE, &query, 20, None).await.unwrap();
    let after = vectors::open(&config, &store).await.unwrap();
    assert_eq!(after.count(PLACE).await.unwrap(), 2499);
    assert_eq!(after.search(PLACE, &query, 20, None).await.unwrap(), hits);
}

#[tokio::test]
async fn vectors_of_another_embedding_model_are_refused_at_the_start() {
    let store = Cluster::shared().await.store().await;
    let three = Memory::open(store.clone(), 3).await.unwrap();
    three.ensure_collection(PLACE).await.unwrap();
    three.upsert(PLACE, vec![point(1, [1.0; 3], "rust")]).await.unwrap();
    let e = Memory::open(store, 4).await.unwrap().ensure_collection(PLACE).await.unwrap_err();
    assert!(matches!(e, Error::OtherCollection { .. }), "{e}");
}
