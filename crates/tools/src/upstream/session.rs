//! One session with a server: connected, asked, ended.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use lares_config::McpEra;
use rmcp::ErrorData;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientRequest, ElicitationCapability, FormElicitationCapability, Implementation,
    LoggingLevel, ProtocolVersion, RequestMetaObject, RootsCapabilities, SamplingCapability, ServerPeerInfo,
    ServerResult, SetLevelRequest, SetLevelRequestParams, UrlElicitationCapability,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, Peer, PeerRequestOptions, QuitReason, RequestHandle, RoleClient,
    RunningService, ServiceError, serve_client_with_lifecycle_and_ct,
};
use rmcp::transport::Transport;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::PoolSettings;
use super::program::{self, Process};
use super::stdio::Stdio;
use super::traffic::{Handler, Tap, Traffic};
use super::{http, secret};
use crate::port::{Target, Transport as Way, UpstreamError, UpstreamEvent};

/// Longest wait for `server/discover` where `initialize` is another way.
const DISCOVER_WAIT: Duration = Duration::from_secs(10);
/// Longest wait until a server has taken a level for its log messages.
const LEVEL_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the end of a session, without its process.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for telling a server that a request is cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// Most characters of an error that are kept.
const MAX_WHY: usize = 400;

/// A session that is up.
pub(super) struct Session {
    service: RunningService<RoleClient, Handler>,
    process: Option<Process>,
    pub(super) live: Arc<Live>,
}

/// What is asked over a session.
pub(super) struct Live {
    pub(super) peer: Peer<RoleClient>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) info: Arc<ServerPeerInfo>,
    /// It speaks a revision without sessions.
    pub(super) stateless: bool,
    /// Values that must not be in a message of ours.
    pub(super) secrets: Vec<String>,
}

/// Why there is no session.
pub(super) struct NoSession {
    pub(super) why: String,
    /// The server was there and did not like what it heard, so another revision may go better.
    pub(super) misunderstood: bool,
}

/// Connects to `target` in the way of `era`.
pub(super) async fn connect(
    target: &Target,
    era: McpEra,
    settings: &PoolSettings,
    events: &tokio::sync::broadcast::Sender<UpstreamEvent>,
) -> Result<Session, NoSession> {
    let not_there = |why: String| NoSession { why: short(&why), misunderstood: false };
    let traffic = Traffic::new(target.name.clone(), events.clone());
    match &target.transport {
        Way::Stdio(program) => {
            let started = program::start(&target.name, program, settings).await.map_err(not_there)?;
            let program::Started { stdin, stdout, process, secrets } = started;
            let transport = Stdio::new(stdin, stdout, settings.max_message(), traffic.clone());
            match shake_hands(transport, era, settings.start_timeout, traffic, secrets.clone()).await {
                Ok((service, live)) => Ok(Session { service, process: Some(process), live }),
                Err(failed) => {
                    let (exit, said) = process.end(Duration::from_millis(100)).await;
                    let exit = exit.map(|exit| format!("; {exit}")).unwrap_or_default();
                    let said = if said.is_empty() { said } else { format!("; it said: {said}") };
                    let hint = program::missing(program).await.map(|hint| format!("; {hint}")).unwrap_or_default();
                    let why = secret::without(&format!("{}{exit}{hint}{said}", failed.why), &secrets);
                    Err(NoSession { why: short(&why), ..failed })
                }
            }
        }
        Way::Http(endpoint) => {
            let mut prepared =
                http::prepare(endpoint, settings.max_message(), target.max_concurrent).await.map_err(not_there)?;
            let secrets = std::mem::take(&mut prepared.secrets);
            // The older way may have to be tried too.
            let limit = if era == McpEra::Auto { settings.start_timeout / 2 } else { settings.start_timeout };
            let shaken = shake_hands(prepared.transport(traffic.clone()), era, limit, traffic, secrets.clone()).await;
            match shaken {
                Ok((service, live)) => Ok(Session { service, process: None, live }),
                Err(failed) => Err(NoSession { why: short(&secret::without(&failed.why, &secrets)), ..failed }),
            }
        }
    }
}

async fn shake_hands<T: Transport<RoleClient> + 'static>(
    transport: T,
    era: McpEra,
    limit: Duration,
    traffic: Arc<Traffic>,
    secrets: Vec<String>,
) -> Result<(RunningService<RoleClient, Handler>, Arc<Live>), NoSession> {
    let discover_wait = (era == McpEra::Auto).then(|| DISCOVER_WAIT.min(limit / 3));
    let handler = Handler { traffic: traffic.clone(), config: introduction() };
    let shaking = serve_client_with_lifecycle_and_ct(
        handler,
        Tap::new(transport, traffic.clone(), discover_wait),
        lifecycle(era),
        CancellationToken::new(),
    );
    let service = match timeout(limit, shaking).await {
        Ok(Ok(service)) => service,
        Ok(Err(error)) => {
            // A connection that could not be made has nothing to do with the revision.
            let misunderstood = !matches!(error, ClientInitializeError::TransportError { .. });
            return Err(NoSession { why: format!("no session: {}", why_not(&error)), misunderstood });
        }
        Err(_) => {
            return Err(NoSession { why: format!("it was not ready within {limit:?}"), misunderstood: true });
        }
    };
    let Some(info) = service.peer().peer_info() else {
        return Err(NoSession { why: "it said nothing about itself".to_owned(), misunderstood: true });
    };
    let stateless = !info.protocol_version.has_initialize();
    let live = Arc::new(Live { peer: service.peer().clone(), traffic, info, stateless, secrets });
    if !stateless && live.info.capabilities.logging.is_some() {
        tokio::spawn(want_logs(Arc::clone(&live)));
    }
    Ok((service, live))
}

/// Asks a server of the older era for all its log messages: the session is shared, and what each client wants of them is
/// kept to where they are passed on.
async fn want_logs(live: Arc<Live>) {
    let request = SetLevelRequest::new(SetLevelRequestParams::new(LoggingLevel::Debug));
    if let Err(failure) = live.ask(request.into(), LEVEL_WAIT).await {
        tracing::debug!(server = %live.traffic.server, ?failure, "a server does not take a level for its log messages");
    }
}

fn lifecycle(era: McpEra) -> ClientLifecycleMode {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    match era {
        McpEra::Auto => ClientLifecycleMode::Auto {
            preferred_versions,
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        },
        McpEra::Sessions => ClientLifecycleMode::Initialize,
        McpEra::Stateless => ClientLifecycleMode::Discover { preferred_versions },
    }
}

/// Who we are and what our clients may be able to do. Whether the client of one call can is found out when it is asked.
fn introduction() -> ClientConfig {
    let mut capabilities = ClientCapabilities::default();
    capabilities.elicitation = Some(
        ElicitationCapability::new()
            .with_form(FormElicitationCapability::default())
            .with_url(UrlElicitationCapability::default()),
    );
    capabilities.sampling = Some(SamplingCapability::default());
    capabilities.roots = Some(RootsCapabilities::default());
    ClientConfig::new(capabilities, Implementation::new("lares", env!("CARGO_PKG_VERSION")))
        .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
}

impl Session {
    /// Ends it: the server is told, its process ended. How that went, for a program.
    pub(super) async fn end(mut self) -> Option<String> {
        self.live.traffic.over.cancel();
        let closing: Result<Result<Option<QuitReason>, JoinError>, _> =
            timeout(END_TIMEOUT * 2, self.service.close_with_timeout(END_TIMEOUT)).await;
        if !matches!(closing, Ok(Ok(Some(_)))) {
            tracing::debug!(server = %self.live.traffic.server, "a session did not end in time");
        }
        let (exit, said) = self.process.take()?.end_politely().await;
        let exit = exit.unwrap_or_else(|| "it had to be killed".to_owned());
        Some(if said.is_empty() { exit } else { format!("{exit}; it said: {said}") })
    }
}

/// A request that is cancelled at the server when nobody waits for it any more.
pub(super) struct Asked {
    handle: Option<RequestHandle<RoleClient>>,
    /// The session is over.
    over: CancellationToken,
}

impl Asked {
    /// The answer.
    pub(super) async fn answer(&mut self) -> Result<ServerResult, ServiceError> {
        let Some(handle) = self.handle.as_mut() else { return Err(ServiceError::TransportClosed) };
        let answer = tokio::select! {
            biased;
            answer = &mut handle.rx => answer.unwrap_or(Err(ServiceError::TransportClosed)),
            () = self.over.cancelled() => Err(ServiceError::TransportClosed),
        };
        self.handle = None;
        answer
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let (Some(handle), Ok(runtime)) = (self.handle.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(timeout(CANCEL_TIMEOUT, handle.cancel(Some("nobody waits for it any more".to_owned()))));
        }
    }
}

impl Live {
    /// Sends a request; the server's id for it, and the answer to wait for.
    pub(super) async fn send(
        &self,
        request: ClientRequest,
        meta: Option<RequestMetaObject>,
    ) -> Result<(rmcp::model::RequestId, Asked), ServiceError> {
        let mut options = PeerRequestOptions::no_options();
        options.meta = meta;
        let handle = self.peer.send_request_with_option(request, options).await?;
        Ok((handle.id.clone(), Asked { handle: Some(handle), over: self.traffic.over.clone() }))
    }

    /// Asks something and waits no longer than `limit`.
    pub(super) async fn ask(&self, request: ClientRequest, limit: Duration) -> Result<ServerResult, Failure> {
        let until = Instant::now() + limit;
        let sent = tokio::time::timeout_at(until, self.send(request, None)).await;
        let (id, mut asked) = match sent {
            Err(_) => return Err(Failure::Timeout(limit)),
            Ok(sent) => sent.map_err(|error| Failure::from(error, false))?,
        };
        match tokio::time::timeout_at(until, asked.answer()).await {
            Err(_) => Err(Failure::Timeout(limit)),
            Ok(answer) => answer.map_err(|error| Failure::from(error, self.traffic.was_too_large(&id))),
        }
    }
}

/// Why a request has no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// It took too long.
    Timeout(Duration),
    /// The answer is larger than is taken.
    TooLarge,
    /// The server said no.
    Protocol(ErrorData),
    /// The session is over, or about to be.
    Lost(String),
}

impl Failure {
    /// What `rmcp` says, in our terms.
    pub(super) fn from(error: ServiceError, too_large: bool) -> Self {
        match error {
            _ if too_large => Self::TooLarge,
            ServiceError::McpError(error) => Self::Protocol(error),
            ServiceError::UnexpectedResponse => Self::Protocol(unexpected()),
            ServiceError::TransportClosed | ServiceError::Cancelled { .. } => {
                Self::Lost("the connection was lost".to_owned())
            }
            ServiceError::TransportSend(error) => Self::Lost(chain(error.error.as_ref())),
            other => Self::Lost(other.to_string()),
        }
    }

    /// As an error of the port.
    pub(super) fn of(self, live: &Live, max_result: u64) -> UpstreamError {
        let server = live.traffic.server.clone();
        match self {
            Self::Timeout(limit) => UpstreamError::Timeout { server, limit },
            Self::TooLarge => UpstreamError::TooLarge { server, limit: max_result },
            Self::Protocol(error) => UpstreamError::Protocol { server, error: Box::new(error) },
            Self::Lost(why) => UpstreamError::Unavailable { server, why: short(&secret::without(&why, &live.secrets)) },
        }
    }
}

/// The server's answer has a shape that nothing asked for.
pub(super) fn unexpected() -> ErrorData {
    ErrorData::internal_error("the tool server's answer does not fit the question", None)
}

/// What went wrong at the handshake, in a line.
fn why_not(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::TransportError { error, .. } => chain(error.error.as_ref()),
        ClientInitializeError::ConnectionClosed(_) => "it closed the connection".to_owned(),
        ClientInitializeError::JsonRpcError(error) => error.message.to_string(),
        ClientInitializeError::LegacyFallbackFailed { discover, fallback } => {
            format!("{}; asked with server/discover: {}", why_not(fallback), why_not(discover))
        }
        ClientInitializeError::ExpectedInitResponse(_) | ClientInitializeError::ExpectedInitResult(_) => {
            "its answer to the first request is none".to_owned()
        }
        other => other.to_string(),
    }
}

/// An error with what caused it, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = cause_of(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = cause_of(error);
    }
    text
}

/// The next deeper cause; `rmcp` shows that of the HTTP client, and does not count it as its own.
fn cause_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<StreamableHttpError<http_client::Error>>() {
        Some(StreamableHttpError::Client(error)) => Some(error),
        _ => error.source(),
    }
}

/// `text` on one line and not too long.
pub(super) fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WHY).collect();
    if text.chars().nth(MAX_WHY).is_some() { format!("{line} …") } else { line }
}
