//! The embedder with a real model: `LARES_TEST_EMBED_MODEL` is the all-MiniLM-L6-v2 that `lares model pull` makes.
//!
//! What is expected was computed with the model's published weights by a second implementation of BERT in numpy, in
//! double precision, and by the tokenizer that is published with it.

#![cfg(feature = "embed")]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lares_llama::embed::{EmbedError, Embedder, EmbedderOptions};

fn model(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("LARES_TEST_EMBED_MODEL").map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        println!("SKIP {test}: LARES_TEST_EMBED_MODEL names no file (`make fixtures` fetches all-minilm-l6-v2)");
    }
    path
}

fn open(test: &str) -> Option<Embedder> {
    let options = EmbedderOptions { timeout: Duration::from_secs(120), ..EmbedderOptions::default() };
    Some(Embedder::open(&model(test)?, options).unwrap())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

async fn all(embedder: &Embedder, texts: &[&str]) -> Vec<Vec<f32>> {
    embedder.embed(texts.iter().map(|text| (*text).to_owned()).collect()).await.unwrap()
}

/// Pairs of texts and their cosine.
const PAIRS: &[(&str, &str, f32)] = &[
    ("That is a happy person", "That is a very happy person", 0.9429),
    ("That is a happy person", "Today is a sunny day", 0.2569),
    ("find the current time in Tokyo", "get_current_time: Get current time in a specific timezone", 0.5399),
    ("find the current time in Tokyo", "git_diff: Shows the differences between branches or commits", 0.0696),
    ("Créez un dépôt Git", "creez un depot git", 1.0000),
    ("İstanbul’da “hava” nasıl? – ½ €5", "istanbul'da \"hava\" nasil? - 1/2 5", 0.8672),
    ("北京天气怎么样？", "weather in Beijing", 0.3838),
    ("한국어 문장입니다", "a sentence in Korean", 0.7123),
    ("हिन्दी में नमस्ते", "hello in Hindi", 0.5757),
    ("camelCaseIdentifier snake_case_name", "camel case identifier snake case name", 0.9005),
    (
        "decode QUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJD",
        "decode base64",
        0.4643,
    ),
    ("zero\u{200b}width\u{ad}text", "zerowidthtext", 1.0000),
    ("👩\u{200d}👩\u{200d}👧 ❤\u{fe0f} family", "family", 0.6494),
    ("", "hello", 0.5098),
];

/// The first four numbers of the vector of "read_file: Read the contents of a file".
const FIRST: [f32; 4] = [0.01531, 0.04384, -0.06858, 0.00064];

#[tokio::test(flavor = "multi_thread")]
async fn cosines_are_those_of_the_published_model() {
    let Some(embedder) = open("cosines_are_those_of_the_published_model") else { return };
    assert_eq!((embedder.dimensions(), embedder.max_tokens()), (384, 256));
    assert!(embedder.model_id().starts_with("sha256:") && embedder.model_id().len() == 71, "{}", embedder.model_id());
    for (one, other, expected) in PAIRS {
        let vectors = all(&embedder, &[one, other]).await;
        let got = cosine(&vectors[0], &vectors[1]);
        assert!((got - expected).abs() < 0.01, "{one:?} and {other:?}: {got} instead of {expected}");
        assert!(vectors.iter().all(|v| (cosine(v, v) - 1.0).abs() < 1e-4));
    }
    let vector = &all(&embedder, &["read_file: Read the contents of a file"]).await[0];
    assert!(vector.iter().zip(FIRST).all(|(a, b)| (a - b).abs() < 0.002), "{:?}", &vector[..4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_256_word_pieces_changes_nothing() {
    let Some(embedder) = open("what_comes_after_256_word_pieces_changes_nothing") else { return };
    let (full, cut) = ("tool ".repeat(254), "tool ".repeat(253));
    let vectors = all(&embedder, &[&full, &format!("{full} and a giraffe"), &cut]).await;
    assert!(cosine(&vectors[0], &vectors[1]) > 0.9999);
    assert!(cosine(&vectors[0], &vectors[2]) < 0.999_99);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_get_the_vectors_of_their_own_texts() {
    let Some(embedder) = open("many_callers_get_the_vectors_of_their_own_texts") else { return };
    let text = |caller: usize, i: usize| format!("{} number {i} of {caller}", ["read", "write", "list"][i % 3]);
    let mut alone = Vec::new();
    for caller in 0..6 {
        alone.push(all(&embedder, &[&text(caller, 0), &text(caller, 39)]).await);
    }
    let together =
        (0..6).map(|caller| {
            let (embedder, texts) = (embedder.clone(), (0..40).map(|i| text(caller, i)).collect());
            async move {
                if caller % 2 == 0 { embedder.embed(texts).await } else { embedder.embed_in_background(texts).await }
            }
        });
    for (vectors, alone) in futures_util::future::join_all(together).await.into_iter().zip(alone) {
        let vectors = vectors.unwrap();
        assert_eq!(vectors.len(), 40);
        assert!(cosine(&vectors[0], &alone[0]) > 0.999 && cosine(&vectors[39], &alone[1]) > 0.999);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_goes_before_the_background() {
    let Some(embedder) = open("a_search_goes_before_the_background") else { return };
    let long = "Creates or updates a file of a repository and commits it on a branch. ".repeat(8);
    let background = {
        let embedder = embedder.clone();
        tokio::spawn(async move {
            let vectors = embedder.embed_in_background(vec![long; 192]).await.unwrap();
            (Instant::now(), vectors.len())
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    for _ in 0..5 {
        all(&embedder, &["find a tool"]).await;
    }
    let searched = Instant::now();
    let (ended, count) = background.await.unwrap();
    assert_eq!(count, 192);
    assert!(searched < ended, "five searches waited for 192 texts of the background");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_work_does_not_keep_others_waiting() {
    let Some(embedder) = open("dropped_work_does_not_keep_others_waiting") else { return };
    let texts = vec!["a text that nobody waits for any more ".repeat(20); 200];
    let dropped = tokio::time::timeout(Duration::from_millis(20), embedder.embed(texts)).await;
    assert!(dropped.is_err());
    assert_eq!(all(&embedder, &["next"]).await.len(), 1);
    assert!(embedder.embed(Vec::new()).await.unwrap().is_empty());
}

#[test]
fn what_is_no_embedding_model_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.gguf");
    std::fs::write(&path, b"GGUF and nothing").unwrap();
    let error = Embedder::open(&path, EmbedderOptions::default()).unwrap_err();
    assert!(matches!(error, EmbedError::File { .. }), "{error}");
    let missing = Embedder::open(&dir.path().join("none.gguf"), EmbedderOptions::default()).unwrap_err();
    assert!(missing.to_string().contains("none.gguf"), "{missing}");
    let Some(chat) = std::env::var_os("LARES_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file()) else {
        println!("SKIP what_is_no_embedding_model_is_refused_with_a_reason: LARES_TEST_MODEL names no file");
        return;
    };
    let error = Embedder::open(&chat, EmbedderOptions::default()).unwrap_err();
    assert!(matches!(error, EmbedError::NotAnEncoder { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_tokens_make_another_model_id() {
    let Some(path) = model("fewer_tokens_make_another_model_id") else { return };
    let whole = Embedder::open(&path, EmbedderOptions::default()).unwrap();
    let short = Embedder::open(&path, EmbedderOptions { max_tokens: Some(16), ..EmbedderOptions::default() }).unwrap();
    assert_eq!(short.model_id(), format!("{}/16", whole.model_id()));
    let text = "a text of more than sixteen word pieces, whose end is left out by the second of two embedders";
    let (one, other) = (all(&whole, &[text]).await, all(&short, &[text]).await);
    assert!(cosine(&one[0], &other[0]) < 0.999);
}
