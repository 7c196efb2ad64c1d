//! Tokens a second of a real llama-server, direct and through the coordinator.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lares_coordinator::usage::Tee;

use crate::env;
use crate::report::at;

/// Answers a side, after one to warm up.
const ROUNDS: usize = 8;
/// Tokens of each answer.
const TOKENS: u32 = 128;

#[derive(Default)]
struct Side {
    rates: Vec<f64>,
    first_bytes: Vec<Duration>,
}

/// Asks both in turns for the same answer and prints the rates.
pub async fn compare(direct: &str, through: &str, model: &str, caller: &str) -> Result<()> {
    let llama_key = std::env::var(env::LLAMA).unwrap_or_default();
    let client = reqwest::Client::new();
    let mut sides = [Side::default(), Side::default()];
    for round in 0..=ROUNDS {
        for side in [round % 2, (round + 1) % 2] {
            let (base, key) = if side == 0 { (direct, llama_key.as_str()) } else { (through, caller) };
            let (rate, first_byte) = ask(&client, base, key, model, round).await?;
            eprintln!(
                "round {round} of {ROUNDS}, {}: {rate:.1} tokens/s",
                if side == 0 { "direct" } else { "coordinator" }
            );
            if round > 0 {
                sides[side].rates.push(rate);
                sides[side].first_bytes.push(first_byte);
            }
        }
    }
    println!("\n{ROUNDS} streamed answers of {TOKENS} tokens a side, in turns:");
    for (name, side) in ["direct", "coordinator"].into_iter().zip(&mut sides) {
        side.rates.sort_by(f64::total_cmp);
        side.first_bytes.sort_unstable();
        let (least, most) = (side.rates[0], side.rates[side.rates.len() - 1]);
        println!(
            "  {name:<12} {:>7.2} tokens/s (median; {least:.2} to {most:.2})   first byte {:.1} ms",
            side.rates[side.rates.len() / 2],
            at(&side.first_bytes, 0.5)
        );
    }
    Ok(())
}

/// Tokens a second between the first byte and the last, and the time to the first.
async fn ask(client: &reqwest::Client, base: &str, key: &str, model: &str, round: usize) -> Result<(f64, Duration)> {
    let prompt = format!("Write a long story about a house with {} rooms.", round + 2);
    let body = serde_json::json!({
        "model": model, "stream": true, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": true,
        "messages": [{"role": "user", "content": prompt}]
    });
    let began = Instant::now();
    let request = client.post(format!("{base}/chat/completions")).bearer_auth(key).json(&body);
    let mut response = request.send().await?;
    if !response.status().is_success() {
        bail!("{base} answered {}: {}", response.status(), response.text().await?);
    }
    let (mut tee, mut first) = (Tee::events(), None);
    while let Some(piece) = response.chunk().await? {
        first.get_or_insert_with(|| began.elapsed());
        tee.feed(&piece);
    }
    let first = first.context("an empty answer")?;
    let tokens = tee.tokens().completion.context("the answer does not say how many tokens it has")?;
    Ok((tokens as f64 / (began.elapsed() - first).as_secs_f64(), first))
}
