//! Watches units of systemd: prints every event as it comes, and at the end what watching cost.
//!
//! `watch [--address ADDRESS] [--journal DIRECTORY] [--seconds N] PATTERN...`

use std::error::Error;
use std::time::{Duration, Instant};

use lares_units::port::Manager;
use lares_units::{FeedItem, Systemd, SystemdSettings};
use nix::sys::resource::{UsageWho, getrusage};

fn memory(what: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("no such line")?;
    Ok(line.split_ascii_whitespace().nth(1).ok_or("no number")?.parse()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut settings = SystemdSettings::default();
    let (mut seconds, mut patterns) = (u64::MAX, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("an option lacks its value");
        match argument.as_str() {
            "--address" => settings.address = Some(value()?),
            "--journal" => settings.journals = vec![value()?.into()],
            "--seconds" => seconds = value()?.parse()?,
            _ => patterns.push(argument),
        }
    }
    let systemd = Systemd::connect(settings).await?;
    let (mut events, mut entries) = (systemd.events(), systemd.entries().await?);
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let units: Vec<_> = systemd.list(&patterns).await?.into_iter().map(|listed| listed.unit).collect();
    let began = Instant::now();
    systemd.watch(&units).await?;
    println!("watching {} units after {} ms", units.len(), began.elapsed().as_millis());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (getrusage(UsageWho::RUSAGE_SELF)?, Instant::now());
    let end = tokio::time::sleep(Duration::from_secs(seconds));
    tokio::pin!(end);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(FeedItem::Item(event)) => println!("{:?}", event.kind),
                Some(FeedItem::Missed(count)) => println!("missed {count} events"),
                None => break,
            },
            entry = entries.next() => match entry {
                Some(FeedItem::Item(entry)) => println!("{:?} {}", entry.unit, entry.line()),
                Some(FeedItem::Missed(count)) => println!("missed {count} entries"),
                None => break,
            },
            () = &mut end => break,
        }
    }
    let after = getrusage(UsageWho::RUSAGE_SELF)?;
    let spent = |usage: &nix::sys::resource::Usage| {
        let sum = usage.user_time() + usage.system_time();
        sum.tv_sec() as f64 + sum.tv_usec() as f64 / 1e6
    };
    let cpu = spent(&after) - spent(&before);
    let switches = after.voluntary_context_switches() - before.voluntary_context_switches();
    println!(
        "cost: {:.1} ms of processor time in {:.1} s ({:.3} % of a core), {switches} wake-ups, {} kB resident, {} kB at most",
        cpu * 1e3,
        began.elapsed().as_secs_f64(),
        100.0 * cpu / began.elapsed().as_secs_f64(),
        memory("VmRSS")?,
        memory("VmHWM")?,
    );
    Ok(())
}
