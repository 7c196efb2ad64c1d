//! Bounds: of the queue, of time, of size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use lares_config::ByteSize;
use lares_coordinator::request::Endpoint;
use lares_llama::testing::reserved_port;

use crate::rig::{Rig, body, bytes_of, config, json_of, with_remote};
use crate::stub::{Act, Stub};

#[tokio::test]
async fn one_request_over_the_queues_bound_is_429() {
    let stub = Stub::always(Act::chat().late(400)).await;
    let mut config = config();
    config.coordinator.max_queued = 2;
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let mut answers = join_all((0..4).map(|_| rig.chat("m"))).await;
    answers.sort_by_key(axum::response::Response::status);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    let refused = answers.pop().unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(json_of(refused).await["error"]["type"], "rate_limit_error");
    assert_eq!(rig.events().iter().filter(|event| event.outcome == "rejected").count(), 1);
}

#[tokio::test]
async fn waiting_in_the_queue_ends_with_503() {
    let stub = Stub::always(Act::Hang).await;
    let mut config = config();
    config.coordinator.queue_timeout = Duration::from_millis(200);
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Arc::new(Rig::new(&config).await);
    let hanging = Arc::clone(&rig);
    let first = tokio::spawn(async move { hanging.chat("m").await });
    stub.arrived(1).await;
    let response = rig.chat("m").await;
    assert_eq!(response.status(), 503);
    assert_eq!(json_of(response).await["error"]["code"], "queue_timeout");
    let event = rig.only_event().await;
    assert_eq!((event.outcome.as_str(), event.upstream), ("rejected", None));
    first.abort();
    stub.abandoned(1).await;
}

#[tokio::test]
async fn a_caller_with_many_requests_does_not_starve_another() {
    let stub = Stub::always(Act::chat().late(60)).await;
    let mut config = config();
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let ask = |key: u128| {
        let rig = &rig;
        async move {
            let text = body("m", false).replace("hello", if key == 1 { "greedy" } else { "modest" });
            bytes_of(rig.ask_as(key, Endpoint::ChatCompletions, Request::new(Body::from(text))).await).await
        }
    };
    let greedy = join_all((0..8).map(|_| ask(1)));
    let modest = async {
        tokio::time::sleep(Duration::from_millis(90)).await;
        ask(2).await
    };
    tokio::join!(greedy, modest);
    let order: Vec<bool> =
        stub.received().iter().map(|r| String::from_utf8_lossy(&r.body).contains("modest")).collect();
    let place = order.iter().position(|modest| *modest).unwrap();
    assert!(place <= 3, "served as number {place} of {}", order.len());
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_never_sent() {
    let stub = Stub::always(Act::chat().late(300)).await;
    let mut config = config();
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let impatient = tokio::time::timeout(Duration::from_millis(100), async {
        stub.arrived(1).await;
        rig.chat("m").await
    });
    let (first, impatient) = tokio::join!(rig.chat("m"), impatient);
    assert!(impatient.is_err());
    drop(bytes_of(first).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stub.count(), 1);
    assert_eq!(rig.door.lanes().queued(), 0);
    let mut outcomes: Vec<_> = rig.events().into_iter().map(|event| event.outcome).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["cancelled", "ok"]);
}

#[tokio::test]
async fn an_upstream_that_sends_nothing_is_504_and_is_let_go() {
    let stub = Stub::always(Act::Hang).await;
    let mut config = config();
    config.coordinator.first_byte_timeout = Duration::from_millis(200);
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let began = Instant::now();
    let response = rig.chat("m").await;
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(response.status(), 504);
    assert_eq!(json_of(response).await["error"]["code"], "upstream_timeout");
    stub.abandoned(1).await;
    assert_eq!(stub.count(), 1, "a timeout is not tried again");
    assert_eq!(rig.only_event().await.outcome, "timeout");
}

#[tokio::test]
async fn bodies_over_the_bound_are_413_with_or_without_a_length() {
    let stub = Stub::always(Act::chat()).await;
    let mut config = config();
    config.coordinator.max_body = ByteSize::kib(4);
    with_remote(&mut config, "one", stub.port, 1, &["m"]);
    let rig = Rig::new(&config).await;
    let fits = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(4000));
    let pieces = fits.clone().into_bytes().chunks(100).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>();
    assert_eq!(rig.ask(Endpoint::Completions, Body::from_stream(stream::iter(pieces))).await.status(), 200);
    assert_eq!(stub.received()[0].body, fits);
    let large = "x".repeat(5000);
    let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 1000])).boxed();
    for body in [
        Body::from(large.clone()),
        Body::from_stream(stream::iter([Ok::<_, std::io::Error>(large)])),
        Body::from_stream(endless),
    ] {
        let response = rig.ask(Endpoint::Completions, body).await;
        assert_eq!(response.status(), 413);
        assert_eq!(json_of(response).await["error"]["code"], "body_too_large");
    }
    assert_eq!(stub.count(), 1);
    assert_eq!(rig.events().iter().filter(|event| event.status == Some(413)).count(), 3);
}

#[tokio::test]
async fn bad_requests_leave_an_event_too() {
    let mut config = config();
    with_remote(&mut config, "one", reserved_port(), 1, &["m"]);
    let rig = Rig::new(&config).await;
    for (body, parameter) in
        [("{", None), ("{\"stream\":true}", Some("model")), ("{\"model\":\"m\",\"stream\":2}", Some("stream"))]
    {
        let response = rig.ask(Endpoint::ChatCompletions, body).await;
        assert_eq!(response.status(), 400);
        assert_eq!(json_of(response).await["error"]["param"].as_str(), parameter);
    }
    assert_eq!(rig.events().iter().filter(|event| event.outcome == "client_error").count(), 3);
}
