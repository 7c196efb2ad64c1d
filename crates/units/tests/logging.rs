//! What units say is kept, and no amount of it holds anything up.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{House, PATIENCE, shell};
use lares_config::ByteSize;
use lares_units::{FeedItem, LogStream, State};

#[tokio::test]
async fn both_outputs_arrive_marked_and_in_the_file() {
    let house =
        House::of(vec![shell("unit", "echo out; echo err >&2; printf 'no end'; exec sleep 1000 >&- 2>&-")]).await;
    house.said("unit", "no end").await;
    let lines = house.supervisor.logs("unit", 1000).unwrap();
    let find = |text: &str| lines.iter().find(|line| line.text == text).map(|line| line.stream);
    assert_eq!(find("out"), Some(LogStream::Stdout));
    assert_eq!(find("err"), Some(LogStream::Stderr));
    assert!(lines.iter().any(|line| line.stream == LogStream::Supervisor && line.text == "active: ready"));
    house.supervisor.shutdown().await;
    let file = std::fs::read_to_string(house.directory.path().join("logs/unit.log")).unwrap();
    for part in [" out out\n", " err err\n", " out no end\n", " sup active: ready\n"] {
        assert!(file.contains(part), "{file}");
    }
}

#[tokio::test]
async fn a_flood_of_lines_stalls_nothing() {
    let flood = "import sys
line = 'x' * 80
for start in range(0, 200_000, 1000):
    sys.stdout.write(''.join(f'{number} {line}\\n' for number in range(start, start + 1000)))
sys.stdout.write('end of flood\\n'); sys.stdout.flush()
import time; time.sleep(1000)";
    let spec = lares_units::UnitSpec::new(common::name("flood"), "python3").args(["-c", flood]);
    let start = Instant::now();
    let house = House::of(vec![spec, shell("quiet", "exec sleep 1000")]).await;
    let mut slow_reader = house.supervisor.follow("flood").unwrap();
    let mut slowest_answer = Duration::ZERO;
    while !house.supervisor.logs("flood", 1).unwrap().iter().any(|line| line.text == "end of flood") {
        assert!(start.elapsed() < PATIENCE, "the flood does not end");
        let asked = Instant::now();
        house.status("quiet").await;
        slowest_answer = slowest_answer.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = start.elapsed();
    eprintln!("200000 lines in {took:?}; the slowest answer meanwhile took {slowest_answer:?}");
    assert!(took < Duration::from_secs(4), "less than 50000 lines a second: {took:?}");
    assert!(slowest_answer < Duration::from_secs(1), "{slowest_answer:?}");
    assert_eq!(house.supervisor.logs("flood", 5000).unwrap().len(), 1000);
    assert!(matches!(slow_reader.next().await, Some(FeedItem::Missed(missed)) if missed > 100_000));
    house.supervisor.restart("quiet").await.unwrap();
    house.supervisor.shutdown().await;
    let written: u64 = ["flood.log", "flood.log.1"]
        .iter()
        .filter_map(|file| std::fs::metadata(house.directory.path().join("logs").join(file)).ok())
        .map(|file| file.len())
        .sum();
    assert!(written <= 2 * ByteSize::mib(10).0, "{written}");
    assert!(written > ByteSize::mib(1).0, "{written}");
}

#[tokio::test]
async fn a_log_is_rotated_at_its_size() {
    let units = lares_config::Units { log_max: ByteSize(2000), ..lares_config::Units::default() };
    let house = House::with(
        units,
        vec![shell("unit", "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000")],
    )
    .await;
    house.said("unit", "line 199").await;
    house.supervisor.shutdown().await;
    for file in ["unit.log", "unit.log.1"] {
        let size = std::fs::metadata(house.directory.path().join("logs").join(file)).unwrap().len();
        assert!((1..=2000).contains(&size), "{file}: {size}");
    }
    assert_eq!(std::fs::read_dir(house.directory.path().join("logs")).unwrap().count(), 2);
}

#[tokio::test]
async fn a_full_disk_stops_neither_unit_nor_ring() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("logs")).unwrap();
    std::os::unix::fs::symlink("/dev/full", directory.path().join("logs/unit.log")).unwrap();
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let house = House::within(directory, lares_config::Units::default(), vec![shell("unit", script)]).await;
    house.said("unit", "line 30").await;
    let status = house.status("unit").await;
    assert_eq!((status.state, status.restarts), (State::Active, 0));
    assert!(status.log_lines_dropped >= 30, "{status:?}");
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn a_follower_gets_every_line_once() {
    let script = "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done; exec sleep 1000";
    let house = House::of(vec![shell("unit", script)]).await;
    house.said("unit", "3").await;
    let (before, mut feed) = house.supervisor.follow_from("unit", 1000).unwrap();
    let mut texts: Vec<String> =
        before.iter().filter(|line| line.stream == LogStream::Stdout).map(|line| line.text.clone()).collect();
    while texts.last().is_none_or(|last| last != "499") {
        match tokio::time::timeout(PATIENCE, feed.next()).await.unwrap() {
            Some(FeedItem::Item(line)) if line.stream == LogStream::Stdout => texts.push(line.text.clone()),
            Some(FeedItem::Item(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(texts, (0..500).map(|number| number.to_string()).collect::<Vec<_>>());
    house.supervisor.shutdown().await;
}
