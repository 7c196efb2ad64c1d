//! Sessions are reused: rounds of discovery open nothing. Alone in its program, whose descriptors are counted.
#![allow(clippy::unwrap_used)]

#[path = "upstream_support/mod.rs"]
mod support;

use std::time::Instant;

use lares_tools::api::Health;
use lares_tools::port::Upstreams;
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_rounds_start_nothing_and_leak_nothing() {
    let names = ["a", "b", "c", "d"];
    let words = |server: &str| fixture(if server < "c" { &["both"] } else { &["sessions"] });
    let bed = Bed::new(names.map(|server| target(server, words(server))).into()).await;
    for server in names {
        bed.wait(server, Health::Up).await;
        bed.pool.offer(&name(server)).await.unwrap();
    }
    let (processes, open) = (descendants().len(), descriptors());
    let started = Instant::now();
    let rounds = names.map(|server| {
        let pool = bed.pool.clone();
        tokio::spawn(async move {
            for _ in 0..2_500 {
                assert_eq!(pool.offer(&name(server)).await.unwrap().tools.len(), 12);
            }
        })
    });
    for server in rounds {
        server.await.unwrap();
    }
    eprintln!("10,000 rounds in {:?}; {processes} processes, {open} descriptors before", started.elapsed());
    eprintln!("{} processes, {} descriptors after", descendants().len(), descriptors());
    assert_eq!((descendants().len(), descriptors()), (processes, open));
    for server in names {
        assert_eq!(bed.status(server).connections, 1);
    }
    bed.pool.close().await;
    assert!(descendants().is_empty(), "{:?}", descendants());
}
