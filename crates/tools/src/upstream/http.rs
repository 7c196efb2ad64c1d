//! Reaching a tool server over streamable HTTP: an HTTP client that goes nowhere else than where it was sent.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::{HeaderName, HeaderValue};
use http_client::redirect::Policy;
use rmcp::model::{ClientJsonRpcMessage, RequestId};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use rustls::{ClientConfig, RootCertStore};
use sse_stream::Sse;

use super::address::{Resolver, url};
use super::secret;
use super::traffic::Traffic;
use crate::port::Endpoint;

/// Longest wait for a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that are not used are closed after so long.
const IDLE_CONNECTION: Duration = Duration::from_secs(60);
/// Most bytes kept of a page that says what went wrong.
const MAX_ERROR_PAGE: usize = 4 << 10;
/// Requests beside the calls: lists, a probe, a subscription.
const OTHER_REQUESTS: usize = 8;

/// How TLS is spoken: with ring, and the certificates this machine trusts. Read once; it takes some milliseconds.
fn tls() -> Result<Arc<ClientConfig>, String> {
    static TLS: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = TLS.get() {
        return Ok(config.clone());
    }
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if known == 0 {
        tracing::warn!("this machine has no trusted certificates: no tool server is reached over https");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TLS.get_or_init(|| Arc::new(config)).clone())
}

/// What a connection over HTTP is made from; it connects when the first message is sent.
pub(super) struct Prepared {
    client: http_client::Client,
    config: StreamableHttpClientTransportConfig,
    /// Values that must not be in a message of ours.
    pub(super) secrets: Vec<String>,
}

impl Prepared {
    /// The transport, which says in `traffic` what was too large.
    pub(super) fn transport(self, traffic: Arc<Traffic>) -> StreamableHttpClientTransport<Watched> {
        StreamableHttpClientTransport::with_client(Watched { client: self.client, traffic }, self.config)
    }
}

/// Checks the URL, reads the headers and makes the client.
pub(super) async fn prepare(endpoint: &Endpoint, max_result: usize, max_concurrent: u32) -> Result<Prepared, String> {
    let url = url(&endpoint.url, endpoint.loopback).map_err(|refused| refused.to_string())?;
    let mut headers = HashMap::new();
    let mut secrets: Vec<String> = url.query().map(str::to_owned).into_iter().collect();
    let from_files = secret::read_all(&endpoint.header_files).await?;
    for (name, value) in endpoint.headers.iter().chain(&from_files) {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| format!("`{name}` cannot name an HTTP header"))?;
        let mut header = HeaderValue::try_from(value.as_str())
            .map_err(|_| format!("the value of header `{name}` holds what a header cannot"))?;
        header.set_sensitive(true);
        headers.insert(name, header);
        secrets.push(value.clone());
    }
    let tls = tokio::task::spawn_blocking(tls).await.map_err(|error| error.to_string())??;
    let client = http_client::Client::builder()
        .tls_backend_preconfigured(ClientConfig::clone(&tls))
        .dns_resolver(Resolver { allowed: endpoint.loopback })
        // A proxy would connect wherever it likes, and a redirect leads away from what was checked.
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_CONNECTION)
        .referer(false)
        .user_agent(concat!("lares/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| format!("the HTTP client cannot be made: {error}"))?;
    let most = usize::try_from(max_concurrent).unwrap_or(usize::MAX).saturating_add(OTHER_REQUESTS);
    let config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(headers)
        .max_concurrent_requests(most)
        .max_sse_event_size(max_result)
        .max_json_response_size(max_result)
        .max_error_response_size(MAX_ERROR_PAGE);
    Ok(Prepared { client, config, secrets })
}

/// The HTTP client, with an eye on events that are too large: they end a stream, and only here is it known why.
#[derive(Clone)]
pub(super) struct Watched {
    client: http_client::Client,
    traffic: Arc<Traffic>,
}

type EventStream = BoxStream<'static, Result<Sse, SseError>>;
type Failure = StreamableHttpError<http_client::Error>;
type Headers = HashMap<HeaderName, HeaderValue>;

impl Watched {
    fn watch(&self, id: Option<RequestId>, answer: StreamableHttpPostResponse) -> StreamableHttpPostResponse {
        let Some(id) = id else { return answer };
        let StreamableHttpPostResponse::Sse(stream, session) = answer else { return answer };
        let traffic = self.traffic.clone();
        let watched = stream.inspect(move |event| {
            if event.as_ref().is_err_and(|error| error.to_string().contains("maximum size")) {
                traffic.too_large(id.clone());
            }
        });
        StreamableHttpPostResponse::Sse(watched.boxed(), session)
    }
}

impl StreamableHttpClient for Watched {
    type Error = http_client::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session_id, auth_header, custom_headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: Headers,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let id = match &message {
            ClientJsonRpcMessage::Request(request) => Some(request.id.clone()),
            _ => None,
        };
        let answer = self
            .client
            .post_message_with_response_limits(uri, message, session_id, auth_header, custom_headers, limits)
            .await;
        if let (Err(StreamableHttpError::ResponseBodyTooLarge { .. }), Some(id)) = (&answer, &id) {
            self.traffic.too_large(id.clone());
        }
        Ok(self.watch(id, answer?))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<(), Failure> {
        self.client.delete_session(uri, session_id, auth_header, custom_headers).await
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
    ) -> Result<EventStream, Failure> {
        self.client.get_stream(uri, session_id, last_event_id, auth_header, custom_headers).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: Headers,
        most: usize,
    ) -> Result<EventStream, Failure> {
        self.client
            .get_stream_with_max_sse_event_size(uri, session_id, last_event_id, auth_header, custom_headers, most)
            .await
    }
}
