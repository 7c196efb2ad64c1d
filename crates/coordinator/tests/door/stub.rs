//! An upstream that does what a test wants: answers late, dies before or after the first byte, hangs, is busy.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What the stub does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// A JSON answer.
    Json(u16, Value),
    /// An answer that is not JSON.
    Text(u16, &'static str),
    /// Server-sent events, each after so many milliseconds; then the end, or a broken connection.
    Events { pieces: Vec<(u64, String)>, dies: bool },
    /// A document that stops half way.
    HalfDocument,
    /// The connection is closed without an answer.
    Die,
    /// The connection is closed after the head of the answer.
    DieAfterHead,
    /// No answer, ever.
    Hang,
    /// The same, later.
    After(Duration, Box<Act>),
}

impl Act {
    pub fn chat() -> Self {
        let usage = json!({"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13});
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"});
        Self::Json(200, json!({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}))
    }

    pub fn late(self, millis: u64) -> Self {
        Self::After(Duration::from_millis(millis), Box::new(self))
    }

    pub fn loading() -> Self {
        let error = json!({"code": 503, "message": "Loading model", "type": "unavailable_error"});
        Self::Json(503, json!({"error": error}))
    }

    /// A stream of so many pieces, one every `gap_ms`.
    pub fn stream(count: usize, gap_ms: u64) -> Self {
        let mut pieces: Vec<_> = (0..count)
            .map(|n| (gap_ms, format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{n}\"}}}}]}}\n\n")))
            .collect();
        let timings = "data: {\"choices\":[],\"timings\":{\"cache_n\":1,\"prompt_n\":4,\"predicted_n\":3}}\n\n";
        pieces.push((0, timings.to_owned()));
        pieces.push((0, "data: [DONE]\n\n".to_owned()));
        Self::Events { pieces, dies: false }
    }
}

#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

type Script = Arc<dyn Fn(usize) -> Act + Send + Sync>;

struct Inner {
    script: Script,
    received: Mutex<Vec<Received>>,
    /// Answers whose client left before their end.
    abandoned: AtomicUsize,
}

/// A running stub; ends when dropped.
pub struct Stub {
    pub port: u16,
    inner: Arc<Inner>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Stub {
    /// `script` says what is done with the n-th request, counted from 0.
    pub async fn start(script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self::start_at(0, script).await
    }

    pub async fn always(act: Act) -> Self {
        Self::start(move |_| act.clone()).await
    }

    pub async fn start_at(port: u16, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner =
            Arc::new(Inner { script: Arc::new(script), received: Mutex::default(), abandoned: AtomicUsize::new(0) });
        let served = Arc::clone(&inner);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&served);
                let service = service_fn(move |request| answer(Arc::clone(&inner), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { port, inner, accepting }
    }

    pub fn received(&self) -> Vec<Received> {
        self.inner.received.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.inner.received.lock().unwrap().len()
    }

    /// Waits until the stub noticed that so many clients left.
    pub async fn abandoned(&self, count: usize) {
        let noticed = async {
            while self.inner.abandoned.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("the stub noticed no client leaving");
    }

    /// Waits until so many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let noticed = async {
            while self.count() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), noticed).await.expect("fewer requests than expected");
    }
}

/// Counts a client that left, unless told that all went well.
struct Watch {
    inner: Arc<Inner>,
    over: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.over {
            self.inner.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type StubBody = UnsyncBoxBody<Bytes, std::io::Error>;

async fn answer(inner: Arc<Inner>, request: Request<Incoming>) -> Result<Response<StubBody>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let whole = |text: String| Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
    if parts.uri.path() == "/health" {
        return Ok(Response::new(whole("{\"status\":\"ok\"}".to_owned())));
    }
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let received = Received { path: parts.uri.path().to_owned(), headers: parts.headers, body };
    let nth = {
        let mut all = inner.received.lock().unwrap();
        all.push(received);
        all.len() - 1
    };
    let mut watch = Watch { inner: Arc::clone(&inner), over: false };
    let mut act = (inner.script)(nth);
    while let Act::After(pause, then) = act {
        tokio::time::sleep(pause).await;
        act = *then;
    }
    let response = Response::builder().header("content-type", "application/json").header("server", "stub");
    let died = || std::io::Error::other("died on purpose");
    // A moment later, since hyper throws away what it has not written yet.
    let dying = || async move {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Err::<Frame<Bytes>, _>(died())
    };
    let answer = match act {
        Act::Json(status, value) => response.status(status).body(whole(value.to_string())),
        Act::Text(status, text) => {
            Response::builder().status(status).header("content-type", "text/html").body(whole(text.to_owned()))
        }
        Act::Die => {
            watch.over = true;
            return Err(died());
        }
        Act::DieAfterHead => response.body(StreamBody::new(stream::once(dying())).boxed_unsync()),
        Act::HalfDocument => {
            let half = stream::once(async { Ok(Frame::data(Bytes::from_static(b"{\"half\":"))) });
            response.body(StreamBody::new(half.chain(stream::once(dying()))).boxed_unsync())
        }
        Act::Hang => std::future::pending().await,
        Act::Events { pieces, dies } => {
            let state = (pieces.into_iter(), Watch { inner: Arc::clone(&inner), over: false }, dies);
            let body = stream::unfold(Some(state), move |state| async move {
                let (mut pieces, mut watch, dies) = state?;
                match pieces.next() {
                    Some((pause, text)) => {
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                        Some((Ok(Frame::data(Bytes::from(text))), Some((pieces, watch, dies))))
                    }
                    None => {
                        watch.over = true;
                        if !dies {
                            return None;
                        }
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        Some((Err(std::io::Error::other("died on purpose")), None))
                    }
                }
            });
            Response::builder()
                .header("content-type", "text/event-stream; charset=utf-8")
                .body(StreamBody::new(body).boxed_unsync())
        }
        Act::After(..) => unreachable!("unwrapped above"),
    };
    watch.over = true;
    Ok(answer.unwrap())
}
