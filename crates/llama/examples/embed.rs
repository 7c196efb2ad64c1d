//! How quickly texts are embedded: `cargo run --release -p lares-llama --features embed --example embed -- MODEL.gguf`.
//!
//! Short texts are searches of 8 to 20 word pieces, long ones descriptions of tools of 60 to 200. Latency is of one text
//! at a time; texts/s is of the background, which takes several at once.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use lares_llama::embed::{Embedder, EmbedderOptions};

/// Texts of each kind.
const TEXTS: usize = 200;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: embed MODEL.gguf");
        return ExitCode::from(2);
    };
    println!("{:>7}  {:<5}  {:>9}  {:>9}  {:>8}", "threads", "texts", "p50 ms", "p99 ms", "texts/s");
    for threads in [1, 2] {
        if let Err(error) = measure(Path::new(&path), threads).await {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure(path: &Path, threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    let options = EmbedderOptions { threads, timeout: Duration::from_secs(300), ..EmbedderOptions::default() };
    let embedder = Embedder::open(path, options)?;
    for (name, texts) in [("short", short()), ("long", long())] {
        embedder.embed(texts.iter().take(5).cloned().collect()).await?;
        let mut times = Vec::with_capacity(texts.len());
        for text in &texts {
            let start = Instant::now();
            embedder.embed(vec![text.clone()]).await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or(f64::NAN);
        let start = Instant::now();
        let count = embedder.embed_in_background(texts).await?.len();
        let rate = count as f64 / start.elapsed().as_secs_f64();
        println!("{threads:>7}  {name:<5}  {:>9.2}  {:>9.2}  {rate:>8.0}", at(50), at(99));
    }
    Ok(())
}

fn short() -> Vec<String> {
    let verbs = ["find", "list all", "create a new", "delete the old", "show me the latest"];
    let things =
        ["pull request of a repository", "file in a folder", "row of the orders table", "message in a channel"];
    let text = |i: usize| format!("{} {} number {i}", verbs[i % verbs.len()], things[i % things.len()]);
    (0..TEXTS).map(text).collect()
}

fn long() -> Vec<String> {
    let sentence = "Reads the complete contents of a file below one of the allowed directories and returns them as text, \
                    with the encoding found, or an error that says why it could not be read. Parameters: path (string, \
                    required), head and tail (integer, lines from the start or the end). ";
    (0..TEXTS).map(|i| format!("read_file_{i}: {}", sentence.repeat(1 + i % 3))).collect()
}
