//! The way back to the client while its request is worked on: progress, log messages, and what a tool server asks.

#![expect(
    deprecated,
    reason = "MCP 2026-07-28 deprecates logging, sampling and roots; servers and clients of today use them"
)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rmcp::model::{
    ClientCapabilities, ClientResult, EmptyResult, Extensions, GetExtensions, InputRequest, InputRequests,
    InputResponses, LoggingLevel, LoggingMessageNotificationParam, ProgressNotificationParam, ProgressToken,
    ProtocolVersion, RequestId, ServerRequest,
};
use rmcp::service::{OriginatingRequestId, PeerRequestOptions, RequestContext, ServiceError};
use rmcp::{ErrorData, Peer, RoleServer};
use tokio::sync::{mpsc, oneshot};

use crate::port::Downstream;

/// Longest wait for a notification to be taken. Who reads slower than that misses it.
const NOTICE_TIME: Duration = Duration::from_secs(5);
/// Longest wait for a person or a model at the client to answer.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(600);
/// From which level on a session that set none gets log messages.
const DEFAULT_LEVEL: LoggingLevel = LoggingLevel::Info;

/// From which level on a session gets log messages.
pub(super) type Level = Arc<Mutex<Option<LoggingLevel>>>;

/// Whether a request is of the stateless era: it carries all that is to be known about its client.
pub(super) fn is_stateless(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28)
}

/// Something a tool server wants to know, and where the answer goes.
pub(super) struct Question {
    pub(super) request: ServerRequest,
    pub(super) answer: oneshot::Sender<Result<ClientResult, ErrorData>>,
}

/// The client of a request.
pub(super) struct Client {
    stateless: bool,
    capabilities: ClientCapabilities,
    logs: Logs,
    way: Mutex<Way>,
    /// Where questions go whose answer comes with the client's next request.
    questions: Option<mpsc::Sender<Question>>,
}

enum Logs {
    /// As the session set it.
    Session(Level),
    /// As the request says; none without.
    Request(Option<LoggingLevel>),
}

/// The request that is open, which changes when a call goes on with the next one.
#[derive(Clone)]
struct Way {
    peer: Peer<RoleServer>,
    request: RequestId,
    token: Option<ProgressToken>,
}

impl Way {
    fn of(context: &RequestContext<RoleServer>) -> Self {
        Self { peer: context.peer.clone(), request: context.id.clone(), token: context.meta.get_progress_token() }
    }
}

impl Client {
    /// The client that sent a request. `questions`: takes what cannot be asked at once, for clients of the stateless era.
    pub(super) fn new(
        context: &RequestContext<RoleServer>,
        level: &Level,
        questions: Option<mpsc::Sender<Question>>,
    ) -> Self {
        let stateless = is_stateless(context);
        Self {
            stateless,
            capabilities: context.client_capabilities().unwrap_or_default(),
            logs: if stateless { Logs::Request(context.meta.log_level()) } else { Logs::Session(Arc::clone(level)) },
            way: Mutex::new(Way::of(context)),
            questions,
        }
    }

    /// From now on another request of the same client is the open one.
    pub(super) fn go_on(&self, context: &RequestContext<RoleServer>) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = Way::of(context);
    }

    /// Whether there is anything that it answers.
    pub(super) fn answers(capabilities: &ClientCapabilities) -> bool {
        capabilities.elicitation.is_some() || capabilities.sampling.is_some() || capabilities.roots.is_some()
    }

    /// From which level on it gets log messages; `None`: it gets none.
    pub(super) fn level(&self) -> Option<LoggingLevel> {
        match &self.logs {
            Logs::Session(level) => Some(level.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(DEFAULT_LEVEL)),
            Logs::Request(level) => *level,
        }
    }

    /// Asks all that a result asks for, one after another.
    ///
    /// # Errors
    /// When the client cannot do one of them, or is gone.
    pub(super) async fn fulfil(&self, asked: InputRequests) -> Result<InputResponses, ErrorData> {
        let mut responses = InputResponses::new();
        for (name, request) in asked {
            let request = match request {
                InputRequest::CreateMessage(request) => ServerRequest::CreateMessageRequest(request),
                InputRequest::Elicitation(request) => ServerRequest::ElicitRequest(request),
                InputRequest::ListRoots(request) => ServerRequest::ListRootsRequest(request),
                _ => return Err(ErrorData::internal_error("the tool server asks for something unknown", None)),
            };
            let answer = self.request(request).await?;
            let answer = serde_json::to_value(answer).map_err(|e| ErrorData::internal_error(e.to_string(), None))?;
            responses.insert(name, answer);
        }
        Ok(responses)
    }

    fn way(&self) -> Way {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn missing(&self, request: &ServerRequest) -> Option<&'static str> {
        let (has, what) = match request {
            ServerRequest::ElicitRequest(_) => (self.capabilities.elicitation.is_some(), "elicitation"),
            ServerRequest::CreateMessageRequest(_) => (self.capabilities.sampling.is_some(), "sampling"),
            ServerRequest::ListRootsRequest(_) => (self.capabilities.roots.is_some(), "roots"),
            _ => (false, "requests of this kind"),
        };
        (!has).then_some(what)
    }
}

#[async_trait]
impl Downstream for Client {
    fn capabilities(&self) -> ClientCapabilities {
        self.capabilities.clone()
    }

    fn asks_in_result(&self) -> bool {
        self.stateless
    }

    async fn progress(&self, mut params: ProgressNotificationParam) {
        let Way { peer, token: Some(token), .. } = self.way() else { return };
        params.progress_token = token;
        if !matches!(tokio::time::timeout(NOTICE_TIME, peer.notify_progress(params)).await, Ok(Ok(()))) {
            tracing::debug!("the client did not take a progress notification");
        }
    }

    async fn log(&self, params: LoggingMessageNotificationParam) {
        if self.level().is_none_or(|level| (params.level as u8) < level as u8) {
            return;
        }
        let peer = self.way().peer;
        if !matches!(tokio::time::timeout(NOTICE_TIME, peer.notify_logging_message(params)).await, Ok(Ok(()))) {
            tracing::debug!("the client did not take a log message");
        }
    }

    async fn request(&self, mut request: ServerRequest) -> Result<ClientResult, ErrorData> {
        if matches!(request, ServerRequest::PingRequest(_)) {
            return Ok(ClientResult::EmptyResult(EmptyResult {}));
        }
        if let Some(missing) = self.missing(&request) {
            return Err(ErrorData::invalid_request(format!("the client does not answer {missing}"), None));
        }
        // What came with the request over another connection means nothing on this one.
        *request.extensions_mut() = Extensions::default();
        if self.stateless {
            let silent = || ErrorData::invalid_request("the client cannot be asked during this request", None);
            let questions = self.questions.as_ref().ok_or_else(silent)?;
            let (answer, answered) = oneshot::channel();
            questions.send(Question { request, answer }).await.map_err(|_| silent())?;
            return match tokio::time::timeout(ANSWER_TIME, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(ErrorData::internal_error("the client did not answer", None)),
            };
        }
        let Way { peer, request: open, .. } = self.way();
        // Says on which stream it goes, since this is not the task that rmcp runs the handler in.
        request.extensions_mut().insert(OriginatingRequestId(open));
        let options = PeerRequestOptions::with_timeout(ANSWER_TIME);
        let sent = peer.send_request_with_option(request, options).await.map_err(failure)?;
        sent.await_response().await.map_err(failure)
    }
}

fn failure(error: ServiceError) -> ErrorData {
    match error {
        ServiceError::McpError(error) => error,
        error => ErrorData::internal_error(format!("the client did not answer: {error}"), None),
    }
}
