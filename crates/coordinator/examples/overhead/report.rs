//! Percentiles, side by side.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// Latencies of one side, kept by window.
#[derive(Default)]
pub struct Latencies {
    windows: Vec<Vec<Duration>>,
}

/// What is printed of a distribution.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.50), ("p90", 0.90), ("p99", 0.99), ("p99.9", 0.999)];

impl Latencies {
    pub fn add(&mut self, mut window: Vec<Duration>) {
        window.sort_unstable();
        self.windows.push(window);
    }

    pub fn count(&self) -> usize {
        self.windows.iter().map(Vec::len).sum()
    }

    fn all(&self) -> Vec<Duration> {
        let mut all: Vec<_> = self.windows.iter().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    /// A table of both sides and their difference; the range is that of single windows.
    pub fn print_comparison(direct: &Self, through: &Self) {
        let (all_direct, all_through) = (direct.all(), through.all());
        println!(
            "  {:<6} {:>10} {:>13} {:>10}   range of the added latency over windows",
            "", "direct", "coordinator", "added"
        );
        for (name, quantile) in QUANTILES {
            let [a, b] = [at(&all_direct, quantile), at(&all_through, quantile)];
            let added: Vec<f64> = direct
                .windows
                .iter()
                .zip(&through.windows)
                .map(|(direct, through)| at(through, quantile) - at(direct, quantile))
                .collect();
            let least = added.iter().copied().fold(f64::INFINITY, f64::min);
            let most = added.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!("  {name:<6} {a:>7.3} ms {b:>10.3} ms {:>7.3} ms   {least:.3} to {most:.3} ms", b - a);
        }
    }
}

/// Milliseconds at a quantile of sorted latencies.
pub fn at(sorted: &[Duration], quantile: f64) -> f64 {
    let place = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted.get(place.saturating_sub(1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
}

/// CPU time a process has used, in steps of 10 ms.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the coordinator is gone")?;
    // The name of the program, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat has no name")?;
    let ticks = |field: usize| fields.split(' ').nth(field - 3).and_then(|ticks| ticks.parse::<u64>().ok());
    let ticks = ticks(14).zip(ticks(15)).map(|(user, system)| user + system).context("/proc/PID/stat is short")?;
    Ok(Duration::from_millis(ticks * 10))
}
