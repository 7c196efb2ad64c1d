//! Streams: at once, to the end, and cut on both sides when one side is gone.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::Value;

use crate::rig::{Rig, bytes_of, config, with_remote};
use crate::stub::{Act, Stub};

async fn rig_for(stub: &Stub) -> Rig {
    let mut config = config();
    config.coordinator.idle_timeout = Duration::from_millis(400);
    with_remote(&mut config, "one", stub.port, 2, &["m"]);
    Rig::new(&config).await
}

/// The last event of a stream, as JSON.
fn last_event(stream: &[u8]) -> Value {
    let text = String::from_utf8(stream.to_vec()).unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap()
}

#[tokio::test]
async fn pieces_are_relayed_as_they_come() {
    let stub = Stub::always(Act::stream(4, 200)).await;
    let rig = rig_for(&stub).await;
    let began = Instant::now();
    let response = rig.stream("m").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let mut body = response.into_body();
    let mut times = Vec::new();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        times.push(began.elapsed().as_millis());
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert!(times[0] >= 200 && times[0] < 390, "{times:?}");
    assert!(times[1] >= times[0] + 150 && times.len() >= 4, "{times:?}");
    assert!(text.ends_with(b"data: [DONE]\n\n"));
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.prompt_tokens, event.completion_tokens), ("ok", Some(5), Some(3)));
    assert!(event.first_byte.unwrap() < event.latency / 2);
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_ends_the_upstreams_work() {
    let stub = Stub::always(Act::stream(1000, 20)).await;
    let rig = rig_for(&stub).await;
    let mut body = rig.stream("m").await.into_body();
    assert!(body.frame().await.is_some());
    drop(body);
    stub.abandoned(1).await;
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.completion_tokens), ("cancelled", None));
    assert!(rig.door.lanes().snapshot().iter().all(|lane| lane.in_flight == 0));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_ends_the_upstreams_work() {
    let stub = Stub::always(Act::Hang).await;
    let rig = rig_for(&stub).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), rig.chat("m")).await.is_err());
    stub.abandoned(1).await;
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.status), ("cancelled", None));
    assert!(rig.door.lanes().snapshot().iter().all(|lane| lane.in_flight == 0));
}

#[tokio::test]
async fn a_client_that_leaves_after_done_was_served() {
    let mut act = Act::stream(1, 0);
    // The upstream takes its time to close.
    if let Act::Events { pieces, .. } = &mut act {
        pieces.push((5_000, String::new()));
    }
    let stub = Stub::always(act).await;
    let rig = rig_for(&stub).await;
    let mut body = rig.stream("m").await.into_body();
    let mut text = Vec::new();
    while !text.ends_with(b"data: [DONE]\n\n") {
        text.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    drop(body);
    assert_eq!(rig.only_event().await.outcome, "ok");
}

#[tokio::test]
async fn a_stream_whose_upstream_dies_ends_with_an_error_event() {
    let pieces = vec![(0, "data: {}\n\n".to_owned()), (20, "data: {\"cut".to_owned())];
    let stub = Stub::always(Act::Events { pieces, dies: true }).await;
    let rig = rig_for(&stub).await;
    let response = rig.stream("m").await;
    assert_eq!(response.status(), 200);
    let text = bytes_of(response).await;
    assert!(text.starts_with(b"data: {}\n\ndata: {\"cut\n\ndata: {\"error\":"), "{text:?}");
    assert_eq!(last_event(&text)["error"]["code"], "upstream_lost");
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.status), ("upstream_error", Some(200)));
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_event_and_frees_the_upstream() {
    let stub =
        Stub::always(Act::Events { pieces: vec![(0, "data: {}\n\n".into()), (60_000, String::new())], dies: false })
            .await;
    let rig = rig_for(&stub).await;
    let began = Instant::now();
    let text = bytes_of(rig.stream("m").await).await;
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < Duration::from_secs(3));
    assert_eq!(last_event(&text)["error"]["code"], "upstream_idle");
    stub.abandoned(1).await;
    assert_eq!(rig.only_event().await.outcome, "timeout");
}

#[tokio::test]
async fn half_a_document_is_never_taken_for_a_whole_one() {
    let stub = Stub::always(Act::HalfDocument).await;
    let rig = rig_for(&stub).await;
    let read = rig.chat("m").await.into_body().collect().await;
    assert!(read.is_err());
    assert_eq!(rig.only_event().await.outcome, "upstream_error");
}

#[tokio::test]
async fn an_error_that_the_upstream_reports_inside_a_stream_is_counted() {
    let pieces = vec![(0, "data: {\"error\":{\"code\":500,\"message\":\"out of memory\"}}\n\n".to_owned())];
    let stub = Stub::always(Act::Events { pieces, dies: false }).await;
    let rig = rig_for(&stub).await;
    let text = bytes_of(rig.stream("m").await).await;
    assert_eq!(last_event(&text)["error"]["message"], "out of memory");
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), &event.detail["error"]), ("upstream_error", &"out of memory".into()));
}
