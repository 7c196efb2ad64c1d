//! One OpenAI-compatible server: where it is, its key, and how bytes get there and back.
//!
//! Plain HTTP, which is every local model, goes over hyper's pooled client; `https` goes over reqwest, which brings
//! TLS and honours the proxy variables.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use lares_config::{Model, Upstream as Remote};
use lares_gate::chain;

use crate::Error;
use crate::request::Endpoint;

/// Longest wait for a TCP connection (and the TLS handshake).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept. llama-server closes its side after 5 s: ours goes first, so that no request
/// meets a connection that is just being closed.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// Longest wait for `/health`.
const HEALTH_TIMEOUT: Duration = Duration::from_millis(1500);
/// Most that is read of the body of an error or of `/health`.
pub(crate) const MAX_ERROR_BODY: usize = 64 << 10;

/// Headers of a client that are passed on. Everything else stays here: credentials above all, and what describes the
/// connection rather than the request.
const PASSED_ON: [HeaderName; 4] = [
    http::header::ACCEPT,
    http::header::USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// One OpenAI-compatible server.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    local: bool,
    capacity: usize,
    https: bool,
    endpoints: [Uri; Endpoint::ALL.len()],
    health: Option<Uri>,
    /// Marked as sensitive, so that Debug does not show it.
    authorization: Option<HeaderValue>,
}

impl Upstream {
    /// The llama-server of a local model on its port of 127.0.0.1. It was started with the key in `key_file` if that
    /// file is there.
    ///
    /// # Errors
    /// When the key file cannot be used.
    pub async fn local(name: &str, model: &Model, key_file: &Path) -> Result<Self, Error> {
        let origin = format!("http://127.0.0.1:{}", model.port);
        let key = match tokio::fs::read_to_string(key_file).await {
            Ok(key) => Some(key),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(Error::KeyFile { upstream: name.to_owned(), path: key_file.to_owned(), source });
            }
        };
        let mut this = Self::at(name, &format!("{origin}/v1"), model.slots, key.as_deref())?;
        this.local = true;
        this.health = format!("{origin}/health").parse().ok();
        Ok(this)
    }

    /// A server of the configuration's `coordinator.upstreams`.
    ///
    /// # Errors
    /// When the URL or the key file cannot be used.
    pub async fn remote(name: &str, config: &Remote) -> Result<Self, Error> {
        let key = match &config.api_key_file {
            Some(path) => Some(tokio::fs::read_to_string(path).await.map_err(|source| Error::KeyFile {
                upstream: name.to_owned(),
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        Self::at(name, &config.url, config.max_in_flight, key.as_deref())
    }

    fn at(name: &str, url: &str, capacity: u32, key: Option<&str>) -> Result<Self, Error> {
        let bad = |why: &str| Error::Upstream { upstream: name.to_owned(), url: url.to_owned(), why: why.to_owned() };
        let base = url.trim_end_matches('/');
        let parsed: Uri = base.parse().map_err(|_| bad("it must be a URL such as http://HOST:PORT/v1"))?;
        let https = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("it must begin with http:// or https:// and a host")),
        };
        if parsed.query().is_some() {
            return Err(bad("it must end in the path, up to and including /v1"));
        }
        if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad("credentials belong into `api_key_file`"));
        }
        let endpoint = |endpoint: Endpoint| format!("{base}{}", endpoint.path()).parse::<Uri>();
        let [chat, completions, embeddings] = Endpoint::ALL.map(endpoint);
        let no_path = |_| bad("its path cannot be extended");
        let authorization = key
            .map(|key| match key.trim() {
                "" => Err(bad("its key file is empty")),
                key => HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| bad("its key file holds no key")),
            })
            .transpose()?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self {
            name: name.to_owned(),
            local: false,
            capacity: capacity.max(1) as usize,
            https,
            endpoints: [chat.map_err(no_path)?, completions.map_err(no_path)?, embeddings.map_err(no_path)?],
            health: None,
            authorization,
        })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a llama-server of this machine, which is started again when it ends.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// Most requests at the same time.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn request(&self, endpoint: Endpoint, client: &HeaderMap, request_id: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoints[endpoint as usize].clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for name in &PASSED_ON {
            if let Some(value) = client.get(name) {
                headers.insert(name, value.clone());
            }
        }
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert(HeaderName::from_static("x-request-id"), id);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }
}

/// Why no answer came.
#[derive(Debug)]
pub(crate) enum SendError {
    /// There is no connection; nothing of the request was sent.
    Connect(String),
    /// The connection broke before the answer began.
    Lost(String),
}

/// The connections to all upstreams.
#[derive(Debug, Clone)]
pub struct Clients {
    plain: Client<HttpConnector, Full<Bytes>>,
    tls: Option<reqwest::Client>,
}

impl Clients {
    /// For these upstreams. TLS is set up only if one needs it.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn new(upstreams: &[Upstream]) -> Result<Self, Error> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let plain = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(KEEP_IDLE)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .build(connector);
        let tls = if upstreams.iter().any(|upstream| upstream.https) {
            // Reads the system's certificates from disk.
            let built = tokio::task::spawn_blocking(|| {
                reqwest::Client::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .tcp_nodelay(true)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
            });
            Some(
                built
                    .await
                    .map_err(|error| Error::Tls(error.to_string()))?
                    .map_err(|error| Error::Tls(chain(&error)))?,
            )
        } else {
            None
        };
        Ok(Self { plain, tls })
    }

    /// Sends a request and waits for the head of the answer. Dropping the future, or later the body, closes the
    /// connection, which is how the upstream learns that nobody waits any more.
    pub(crate) async fn send(
        &self,
        upstream: &Upstream,
        endpoint: Endpoint,
        client: &HeaderMap,
        request_id: &str,
        body: Bytes,
    ) -> Result<Response<Answer>, SendError> {
        let request = upstream.request(endpoint, client, request_id, body);
        match &self.tls {
            Some(tls) if upstream.https => {
                let request = reqwest::Request::try_from(request.map(reqwest::Body::wrap))
                    .map_err(|e| SendError::Connect(chain(&e)))?;
                let sent = tls.execute(request).await;
                sent.map(|response| Response::<reqwest::Body>::from(response).map(Answer::Tls)).map_err(|error| {
                    if error.is_connect() { SendError::Connect(chain(&error)) } else { SendError::Lost(chain(&error)) }
                })
            }
            _ => {
                let sent = self.plain.request(request).await;
                sent.map(|response| response.map(Answer::Plain)).map_err(|error| {
                    if error.is_connect() { SendError::Connect(chain(&error)) } else { SendError::Lost(chain(&error)) }
                })
            }
        }
    }

    /// Asks a local upstream's `/health`; nothing is known of others without asking a model.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn health(&self, upstream: &Upstream) -> Result<(), String> {
        let Some(health) = &upstream.health else { return Ok(()) };
        let asked = tokio::time::timeout(HEALTH_TIMEOUT, self.plain.get(health.clone())).await;
        let response = asked
            .map_err(|_| format!("no answer within {} ms", HEALTH_TIMEOUT.as_millis()))?
            .map_err(|error| chain(&error))?;
        let status = response.status();
        // Read to the end, so that the connection can be used again.
        let rest = Limited::new(response.into_body(), MAX_ERROR_BODY).collect();
        let body = tokio::time::timeout(HEALTH_TIMEOUT, rest).await;
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::SERVICE_UNAVAILABLE => Err("it is loading its model".to_owned()),
            status => Err(match body {
                Ok(Ok(body)) => {
                    let text = String::from_utf8_lossy(&body.to_bytes()).chars().take(200).collect::<String>();
                    format!("it answered {status}: {text}")
                }
                _ => format!("it answered {status}"),
            }),
        }
    }
}

/// The body of an upstream's answer.
#[derive(Debug)]
pub(crate) enum Answer {
    Plain(Incoming),
    Tls(reqwest::Body),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match self.get_mut() {
            Self::Plain(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|error| chain(&error))))
            }
            Self::Tls(body) => {
                Pin::new(body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|error| chain(&error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Tls(body) => body.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn endpoints_follow_the_base_url() {
        let upstream = Upstream::at("box", "http://host:9000/api/v1/", 0, None).unwrap();
        assert_eq!(upstream.endpoints[Endpoint::ChatCompletions as usize], "http://host:9000/api/v1/chat/completions");
        assert_eq!(upstream.endpoints[Endpoint::Embeddings as usize], "http://host:9000/api/v1/embeddings");
        assert_eq!(upstream.capacity(), 1);
    }

    #[test]
    fn bad_urls_say_what_is_wrong() {
        for (url, said) in [
            ("host:9000/v1", "http://"),
            ("ftp://host/v1", "http://"),
            ("http://user:pass@host/v1", "api_key_file"),
            ("http://host/v1?x=1", "up to and including /v1"),
            ("http://", "and a host"),
        ] {
            let error = Upstream::at("box", url, 1, None).unwrap_err().to_string();
            assert!(error.contains(said), "{url}: {error}");
        }
    }

    #[test]
    fn the_key_is_sent_and_the_clients_is_not() {
        let upstream = Upstream::at("box", "https://host/v1", 1, Some("sk-secret\n")).unwrap();
        assert!(!format!("{upstream:?}").contains("sk-secret"));
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer lares_x"),
            ("x-api-key", "lares_x"),
            ("cookie", "a=b"),
            ("connection", "keep-alive, x-private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("accept-encoding", "gzip"),
            ("accept", "text/event-stream"),
        ] {
            client.insert(name, value.parse().unwrap());
        }
        let request = upstream.request(Endpoint::Completions, &client, "id-1", Bytes::new());
        let mut sent: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        sent.sort_unstable();
        assert_eq!(sent, ["accept", "authorization", "content-type", "x-request-id"]);
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer sk-secret");
    }

    #[tokio::test]
    async fn the_client_for_https_sends_and_receives_the_same_bytes() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        // Without TLS on the wire, which is rustls's business, all of the way is the same.
        let upstream = Upstream { https: true, ..Upstream::at("box", &url, 1, Some("sk-secret")).unwrap() };
        let clients = Clients::new(std::slice::from_ref(&upstream)).await.unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"{\"model\": 1.0}") {
                stream.read_buf(&mut received).await.unwrap();
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 8\r\n\r\ndata: 1\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(received).unwrap()
        });
        let body = Bytes::from_static(b"{\"model\": 1.0}");
        let response =
            clients.send(&upstream, Endpoint::ChatCompletions, &HeaderMap::new(), "id-1", body).await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "data: 1\n");
        let received = served.await.unwrap().to_lowercase();
        assert!(received.starts_with("post /v1/chat/completions http/1.1\r\n"), "{received}");
        assert!(
            received.contains("authorization: bearer sk-secret\r\n") && received.contains("content-length: 14\r\n")
        );
    }
}
