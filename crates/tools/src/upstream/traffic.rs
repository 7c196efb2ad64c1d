//! What goes to and fro on a session: which call a message of the server belongs to, and the handshake's loose ends.
//!
//! Messages are looked at between the transport and `rmcp`, because there they are still in order: a progress report must
//! not overtake the one before it, nor come after the result.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{
    ClientConfig, ClientNotification, ClientRequest, ClientResult, ErrorCode, GetExtensions, GetMeta,
    LoggingMessageNotificationParam, NumberOrString, ProgressNotificationParam, ProgressToken, RequestId,
    ServerJsonRpcMessage, ServerNotification, ServerRequest,
};
use rmcp::service::{
    InboundStreamOrigin, NotificationContext, RequestContext, RoleClient, RxJsonRpcMessage, Service, TxJsonRpcMessage,
};
use rmcp::transport::Transport;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::definition::ServerName;
use crate::port::{Downstream, UpstreamEvent};

/// Messages about a call that wait for its client; more are dropped, oldest kept.
const SAID_QUEUE: usize = 64;
/// A server that says again and again that its lists changed is heard once in so long.
const CHANGED_EVERY: Duration = Duration::from_millis(100);
/// Most ids of answers that were too large are remembered, should nobody ask.
const MAX_OVERSIZED: usize = 64;

/// Longest that a question of a server is with the client of its call: beyond what the gateway waits for a person.
const ANSWER_TIME: Duration = Duration::from_secs(660);
/// Longest that all questions of one call take together.
const ASKING_TIME: Duration = Duration::from_secs(3600);

/// What a server says about a call while it works.
pub(super) enum Said {
    Progress(ProgressNotificationParam),
    Log(LoggingMessageNotificationParam),
}

/// One call that runs. It travels with the request, so that the server's id for it is known before the server sees it.
pub(super) struct Ticket {
    downstream: Arc<dyn Downstream>,
    /// What the client of ours calls its progress.
    token: Option<ProgressToken>,
    said: mpsc::Sender<Said>,
    /// The questions of the server that its client has to answer first.
    asking: watch::Sender<Asking>,
    /// The call is over.
    pub(super) over: CancellationToken,
}

/// The clock of a call stands still while a person, or the client's model, has to answer: the server cannot go on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asking {
    /// Questions without an answer.
    open: usize,
    /// Since when there is one.
    since: Option<Instant>,
    /// How long there was one before that.
    stood: Duration,
}

impl Asking {
    /// When a call is late that would be at `until` if nobody had been asked.
    pub(super) fn late_at(&self, until: Instant) -> Instant {
        match self.since {
            None => until + self.stood,
            // Nobody asks for ever.
            Some(since) => (since + ASKING_TIME.saturating_sub(self.stood)).max(until + self.stood),
        }
    }

    fn begin(&mut self) {
        if self.open == 0 {
            self.since = Some(Instant::now());
        }
        self.open += 1;
    }

    fn end(&mut self) {
        self.open = self.open.saturating_sub(1);
        if self.open == 0
            && let Some(since) = self.since.take()
        {
            self.stood = (self.stood + since.elapsed()).min(ASKING_TIME);
        }
    }
}

/// A question that is open as long as this is held.
struct Question<'a>(&'a Ticket);

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.0.asking.send_modify(Asking::end);
    }
}

impl Ticket {
    pub(super) fn new(
        downstream: Arc<dyn Downstream>,
        token: Option<ProgressToken>,
    ) -> (Arc<Self>, mpsc::Receiver<Said>) {
        let (said, hear) = mpsc::channel(SAID_QUEUE);
        let asking = watch::Sender::default();
        (Arc::new(Self { downstream, token, said, asking, over: CancellationToken::new() }), hear)
    }

    /// How it stands with its questions, from now on.
    pub(super) fn asking(&self) -> watch::Receiver<Asking> {
        self.asking.subscribe()
    }

    fn question(&self) -> Question<'_> {
        self.asking.send_modify(Asking::begin);
        Question(self)
    }
}

/// A [`Ticket`] among a request's extensions.
#[derive(Clone)]
pub(super) struct Riding(pub(super) Arc<Ticket>);

#[derive(Default)]
struct Table {
    /// Requests that were sent and not answered; those that are calls have a ticket.
    requests: HashMap<RequestId, Option<Arc<Ticket>>>,
    tokens: HashMap<ProgressToken, RequestId>,
    oversized: HashSet<RequestId>,
}

/// The traffic of one session.
pub(super) struct Traffic {
    pub(super) server: ServerName,
    events: broadcast::Sender<UpstreamEvent>,
    table: Mutex<Table>,
    change_pending: AtomicBool,
    /// The session is over.
    pub(super) over: CancellationToken,
}

impl Traffic {
    pub(super) fn new(server: ServerName, events: broadcast::Sender<UpstreamEvent>) -> Arc<Self> {
        Arc::new(Self {
            server,
            events,
            table: Mutex::default(),
            change_pending: AtomicBool::new(false),
            over: CancellationToken::new(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to this request was larger than is taken.
    pub(super) fn too_large(&self, id: RequestId) {
        let mut table = self.table();
        if table.oversized.len() < MAX_OVERSIZED {
            table.oversized.insert(id);
        }
    }

    /// Whether that is why this request failed.
    pub(super) fn was_too_large(&self, id: &RequestId) -> bool {
        self.table().oversized.remove(id)
    }

    /// Requests without an answer.
    pub(super) fn outstanding(&self) -> Vec<RequestId> {
        self.table().requests.keys().cloned().collect()
    }

    fn sent(&self, request: &ClientRequest, id: &RequestId) {
        let ticket = request.extensions().get::<Riding>().map(|riding| riding.0.clone());
        let mut table = self.table();
        if ticket.is_some()
            && let Some(token) = request.get_meta().get_progress_token()
        {
            table.tokens.insert(token, id.clone());
        }
        table.requests.insert(id.clone(), ticket);
    }

    fn over(&self, id: &RequestId) {
        let mut table = self.table();
        let plain = plain(id);
        if let Some(Some(ticket)) = table.requests.remove(&plain) {
            ticket.over.cancel();
            table.tokens.retain(|_, of| *of != plain);
        }
    }

    /// The call a message belongs to: the one whose stream it came on, else the only one there is.
    fn call(&self, origin: Option<&InboundStreamOrigin>) -> Option<Arc<Ticket>> {
        let table = self.table();
        if let Some(InboundStreamOrigin::OutboundRequest(id)) = origin {
            return table.requests.get(id).cloned().flatten();
        }
        let mut calls = table.requests.values().flatten();
        let only = calls.next().cloned();
        if calls.next().is_some() { None } else { only }
    }

    fn call_of_token(&self, token: &ProgressToken) -> Option<Arc<Ticket>> {
        let table = self.table();
        table.tokens.get(token).and_then(|id| table.requests.get(id)).cloned().flatten()
    }

    /// Takes what belongs to a call, or is for nobody; gives back what `rmcp` is to see.
    fn received(self: &Arc<Self>, notification: ServerNotification) -> Option<ServerNotification> {
        let (ticket, said) = match notification {
            ServerNotification::ProgressNotification(progress) => {
                let mut params = progress.params;
                let ticket = self.call_of_token(&params.progress_token)?;
                if let Some(token) = &ticket.token {
                    params.progress_token = token.clone();
                }
                (ticket, Said::Progress(params))
            }
            ServerNotification::LoggingMessageNotification(log) => {
                let ticket = self.call(None)?;
                (ticket, Said::Log(log.params))
            }
            other => return Some(other),
        };
        if ticket.said.try_send(said).is_err() {
            tracing::debug!(server = %self.server, "a client is slower than the messages of a tool server");
        }
        None
    }

    /// Something of the server's changed: said once for many.
    pub(super) fn changed(self: &Arc<Self>) {
        if self.change_pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let traffic = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CHANGED_EVERY).await;
            traffic.change_pending.store(false, Ordering::Release);
            let _ = traffic.events.send(UpstreamEvent::Changed(traffic.server.clone()));
        });
    }

    /// A notification that concerns the server, not a call.
    pub(super) fn notice(self: &Arc<Self>, notification: ServerNotification) {
        match notification {
            ServerNotification::ToolListChangedNotification(_)
            | ServerNotification::ResourceListChangedNotification(_)
            | ServerNotification::PromptListChangedNotification(_) => self.changed(),
            ServerNotification::ResourceUpdatedNotification(update) => {
                let event = UpstreamEvent::ResourceUpdated(self.server.clone(), update.params.uri);
                let _ = self.events.send(event);
            }
            _ => {}
        }
    }
}

/// A server may send back a number as text.
fn plain(id: &RequestId) -> RequestId {
    match id {
        NumberOrString::String(text) => {
            text.parse().map_or_else(|_| NumberOrString::String(text.clone()), NumberOrString::Number)
        }
        NumberOrString::Number(number) => NumberOrString::Number(*number),
    }
}

/// A transport whose traffic is looked at.
pub(super) struct Tap<T> {
    inner: T,
    traffic: Arc<Traffic>,
    handshake: Handshake,
    /// Longest wait for the answer to `server/discover`, where there is another way.
    discover_wait: Option<Duration>,
}

/// Where the handshake stands.
enum Handshake {
    /// This request waits for its answer; with a time at which it counts as refused. Answers to earlier ones come late
    /// and are for nobody.
    Waits(RequestId, Option<Instant>),
    /// Nothing of it is open.
    Quiet,
}

impl<T> Tap<T> {
    pub(super) fn new(inner: T, traffic: Arc<Traffic>, discover_wait: Option<Duration>) -> Self {
        Self { inner, traffic, handshake: Handshake::Quiet, discover_wait }
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Tap<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        match &item {
            TxJsonRpcMessage::<RoleClient>::Request(request) => {
                self.handshake = match &request.request {
                    ClientRequest::DiscoverRequest(_) => {
                        let until = self.discover_wait.map(|wait| Instant::now() + wait);
                        Handshake::Waits(request.id.clone(), until)
                    }
                    ClientRequest::InitializeRequest(_) => Handshake::Waits(request.id.clone(), None),
                    _ => Handshake::Quiet,
                };
                self.traffic.sent(&request.request, &request.id);
            }
            TxJsonRpcMessage::<RoleClient>::Notification(notification) => {
                if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                    && let Some(id) = &cancelled.params.request_id
                {
                    self.traffic.over(id);
                }
            }
            _ => {}
        }
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let message = match &self.handshake {
                Handshake::Waits(id, Some(until)) => {
                    let (id, until) = (id.clone(), *until);
                    tokio::select! {
                        message = self.inner.receive() => message,
                        () = tokio::time::sleep_until(until) => {
                            self.handshake = Handshake::Waits(id.clone(), None);
                            let silent = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no answer to server/discover", None);
                            return Some(ServerJsonRpcMessage::error(silent, Some(id)));
                        }
                    }
                }
                _ => self.inner.receive().await,
            };
            let Some(message) = message else {
                self.traffic.over.cancel();
                return None;
            };
            let answers = match &message {
                ServerJsonRpcMessage::Response(response) => Some(&response.id),
                ServerJsonRpcMessage::Error(error) => error.id.as_ref(),
                _ => None,
            };
            if let Some(id) = answers {
                if let Handshake::Waits(waits, _) = &self.handshake
                    && *waits != plain(id)
                {
                    continue;
                }
                self.traffic.over(id);
            }
            match message {
                ServerJsonRpcMessage::Notification(mut notification) => {
                    if let Some(rest) = self.traffic.received(notification.notification) {
                        notification.notification = rest;
                        return Some(ServerJsonRpcMessage::Notification(notification));
                    }
                }
                other => return Some(other),
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.inner.close()
    }
}

impl<T> Drop for Tap<T> {
    fn drop(&mut self) {
        self.traffic.over.cancel();
    }
}

/// Answers what a server asks, by asking the client of the call it belongs to.
pub(super) struct Handler {
    pub(super) traffic: Arc<Traffic>,
    pub(super) config: ClientConfig,
}

impl Service<RoleClient> for Handler {
    async fn handle_request(
        &self,
        request: ServerRequest,
        context: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        match request {
            ServerRequest::PingRequest(_) => return Ok(ClientResult::empty(())),
            ServerRequest::CreateMessageRequest(_)
            | ServerRequest::ListRootsRequest(_)
            | ServerRequest::ElicitRequest(_) => {}
            _ => {
                return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "this client does not know that method", None));
            }
        }
        let Some(ticket) = self.traffic.call(context.extensions.get()) else {
            return Err(ErrorData::invalid_request(
                "this request belongs to no call, or it cannot be told to which of several",
                None,
            ));
        };
        let gone = || ErrorData::invalid_request("the call this request belongs to is over", None);
        let _question = ticket.question();
        tokio::select! {
            answer = timeout(ANSWER_TIME, ticket.downstream.request(request)) => {
                answer.unwrap_or_else(|_| Err(ErrorData::internal_error("the client did not answer", None)))
            }
            () = ticket.over.cancelled() => Err(gone()),
            () = context.ct.cancelled() => Err(gone()),
            () = self.traffic.over.cancelled() => Err(gone()),
        }
    }

    async fn handle_notification(
        &self,
        notification: ServerNotification,
        _: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        self.traffic.notice(notification);
        Ok(())
    }

    fn get_info(&self) -> ClientConfig {
        self.config.clone()
    }
}
