//! The load, and the stub it goes to: an open loop at a fixed rate, then as fast as it goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::env;
use crate::report::{Latencies, cpu_time};

/// Requests a second of the fixed load.
const RATE: u32 = 1_000;
/// Length of one window. Short enough that a disturbance from outside hits both sides.
const WINDOW: Duration = Duration::from_secs(1);
/// Windows a side, after one to warm up.
const WINDOWS: u32 = 10;
/// Connections of the saturated load, and how long it lasts a side.
const CONNECTIONS: usize = 64;
const SATURATED: Duration = Duration::from_secs(4);

/// A chat of the size agents send: 4 KB in, 1 KB out.
fn request_body() -> Bytes {
    let content = "let answer = ask(question)?; ".repeat(140);
    let body =
        serde_json::json!({"model": "stub", "messages": [{"role": "user", "content": content}], "temperature": 0});
    Bytes::from(body.to_string())
}

fn answer_body() -> Bytes {
    let content = "fn answer() -> u32 { 42 } ".repeat(36);
    let choice =
        serde_json::json!({"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"});
    let usage = serde_json::json!({"prompt_tokens": 1000, "completion_tokens": 250, "total_tokens": 1250});
    Bytes::from(serde_json::json!({"object": "chat.completion", "choices": [choice], "usage": usage}).to_string())
}

/// One side of the comparison.
struct Target {
    name: &'static str,
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    key: HeaderValue,
    body: Bytes,
}

impl Target {
    fn new(name: &'static str, port: u16, key: &str) -> Result<Arc<Self>> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Arc::new(Self {
            name,
            client: Client::builder(TokioExecutor::new()).build(connector),
            uri: format!("http://127.0.0.1:{port}/v1/chat/completions").parse()?,
            key: HeaderValue::from_str(&format!("Bearer {key}"))?,
            body: request_body(),
        }))
    }

    async fn ask(&self) -> Result<()> {
        let mut request = Request::post(self.uri.clone()).body(Full::new(self.body.clone()))?;
        request.headers_mut().insert(http::header::AUTHORIZATION, self.key.clone());
        request.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = self.client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK {
            bail!("{}: {status} {}", self.name, String::from_utf8_lossy(&body));
        }
        Ok(())
    }
}

/// Measures and prints.
pub fn run(stub_port: u16, coordinator_port: u16, coordinator_pid: u32) -> Result<()> {
    let key = std::env::var(env::CALLER).with_context(|| format!("{} is not set", env::CALLER))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        serve_stub(stub_port).await?;
        let direct = Target::new("direct", stub_port, &key)?;
        let through = Target::new("coordinator", coordinator_port, &key)?;

        let (mut of_direct, mut of_through) = (Latencies::default(), Latencies::default());
        let mut cpu = Duration::ZERO;
        for window in 0..=WINDOWS {
            // Which side goes first changes, so that neither always follows the other.
            for turn in [window % 2, (window + 1) % 2] {
                let is_direct = turn == 0;
                let before = cpu_time(coordinator_pid)?;
                let latencies = open_loop(if is_direct { &direct } else { &through }).await?;
                if window == 0 {
                    continue;
                }
                if is_direct {
                    of_direct.add(latencies);
                } else {
                    cpu += cpu_time(coordinator_pid)?.saturating_sub(before);
                    of_through.add(latencies);
                }
            }
        }
        println!(
            "\n{RATE} requests/s, open loop, {WINDOWS} windows of {} s a side in turns, \
             {} KB in, {} KB out; latency from the moment a request was due:",
            WINDOW.as_secs(),
            request_body().len() >> 10,
            answer_body().len() >> 10
        );
        Latencies::print_comparison(&of_direct, &of_through);
        let each = cpu.as_secs_f64() / of_through.count() as f64;
        println!(
            "CPU of the coordinator: {:.0} µs a request, so about {:.0} requests/s on one core",
            each * 1e6,
            1.0 / each
        );

        println!("\nas fast as it goes, {CONNECTIONS} connections, {} s a side:", SATURATED.as_secs());
        for target in [&direct, &through] {
            let before = cpu_time(coordinator_pid)?;
            let rate = saturate(target).await?;
            let busy = cpu_time(coordinator_pid)?.saturating_sub(before).as_secs_f64() / SATURATED.as_secs_f64();
            println!("  {:<12} {rate:>8.0} requests/s   coordinator's core {:>3.0} % busy", target.name, busy * 100.0);
        }
        println!(
            "  (load and stub share the other core: while the coordinator's is not fully busy, they are the limit)"
        );
        Ok(())
    })
}

/// Sends at the fixed rate whatever comes back, and measures from when each request was due, so that a stall is seen by
/// all that had to wait for it.
async fn open_loop(target: &Arc<Target>) -> Result<Vec<Duration>> {
    let count = (f64::from(RATE) * WINDOW.as_secs_f64()) as u32;
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    let (due, mut dues) = tokio::sync::mpsc::unbounded_channel::<Instant>();
    // A thread of its own: the runtime's timer is only good to a millisecond.
    let pacer = std::thread::spawn(move || {
        let start = Instant::now() + Duration::from_millis(5);
        for nth in 0..count {
            let at = start + WINDOW * nth / count;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send(at).is_err() {
                return;
            }
        }
    });
    while let Some(at) = dues.recv().await {
        let (target, answers) = (Arc::clone(target), answers.clone());
        tokio::spawn(async move {
            let answer = target.ask().await.map(|()| at.elapsed());
            let _ = answers.send(answer);
        });
    }
    drop(answers);
    let mut latencies = Vec::with_capacity(count as usize);
    while let Some(latency) = answered.recv().await {
        latencies.push(latency?);
    }
    pacer.join().map_err(|_| anyhow::anyhow!("the pacer panicked"))?;
    Ok(latencies)
}

async fn saturate(target: &Arc<Target>) -> Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let (failures, failed) = mpsc::channel();
    let until = Instant::now() + SATURATED;
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (target, done, failures) = (Arc::clone(target), Arc::clone(&done), failures.clone());
            tokio::spawn(async move {
                while Instant::now() < until {
                    match target.ask().await {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(error) => return drop(failures.send(error)),
                    };
                }
            })
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    if let Ok(error) = failed.try_recv() {
        return Err(error);
    }
    Ok(done.load(Ordering::Relaxed) as f64 / SATURATED.as_secs_f64())
}

async fn serve_stub(port: u16) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let answer = answer_body();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let _ = request.into_body().collect().await;
                    let mut response = Response::new(Full::new(answer));
                    let json = HeaderValue::from_static("application/json");
                    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(())
}
