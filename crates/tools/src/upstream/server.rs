//! One server: the task that keeps its session, and what is asked of it in between.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lares_config::McpEra;
use rmcp::model::{
    ClientRequest, ErrorCode, PingRequest, RequestId, RequestMetaObject, ServerResult, SubscribeRequest,
    SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequest, UnsubscribeRequestParams,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::PoolSettings;
use super::breaker::{Breaker, Wait, jittered};
use super::lists;
use super::session::{self, Asked, Failure, Live, Session, short};
use super::traffic::{Asking, Riding, Said, Ticket};
use crate::api::Health;
use crate::port::{CallContext, Offer, Target, Transport, UpstreamError, UpstreamEvent, UpstreamStatus};

/// A session that lasted so long counts as a success; one that ends sooner is a failure like one that never began.
const STEADY: Duration = Duration::from_secs(10);
/// After so many requests in a row without an answer in time, it is asked whether the server lives.
const STRIKES: u32 = 2;
/// Longest wait for the answer to that.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A server on HTTP, which nothing else ties to us, is asked so often.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// Longest a call waits for a server that was just lost: its next try comes sooner than that.
const RETURN_WAIT: Duration = Duration::from_secs(2);
/// Calls that may wait, as a multiple of those that may run.
const WAITING_TIMES: usize = 8;
/// And so many at least.
const LEAST_WAITING: usize = 32;
/// Longest wait for a client to take what is said about its call.
const SAID_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits between two tries of a subscription.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// The longest of them.
const LISTEN_AGAIN_MOST: Duration = Duration::from_secs(60);
/// Most resources of a server that are watched.
const MAX_WATCHED: usize = 1000;
/// What a caller may say about itself is not passed on: the server's client is this house.
const OURS: [&str; 3] = [
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
];

/// How it stands with the session.
#[derive(Clone)]
enum State {
    Starting,
    Up(Arc<Live>),
    Down,
    Resting,
}

/// What [`Server::status`] says besides.
#[derive(Default)]
struct Record {
    protocol: Option<String>,
    implementation: Option<String>,
    connections: u64,
    last_error: Option<String>,
    down_since: Option<Instant>,
}

/// A server that is kept connected.
pub(super) struct Server {
    pub(super) target: Target,
    settings: Arc<PoolSettings>,
    events: broadcast::Sender<UpstreamEvent>,
    state: watch::Sender<State>,
    record: Mutex<Record>,
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Requests in a row without an answer in time.
    strikes: AtomicU32,
    /// Somebody doubts that it lives.
    doubt: Notify,
    /// Resources whose changes are asked for.
    watched: Mutex<BTreeSet<String>>,
    watched_changed: Notify,
    /// It is used no more.
    pub(super) retired: CancellationToken,
}

/// Why a session is over.
enum Over {
    Retired,
    Lost,
    Hung,
}

impl Server {
    pub(super) fn new(
        target: Target,
        settings: Arc<PoolSettings>,
        events: broadcast::Sender<UpstreamEvent>,
        retired: CancellationToken,
    ) -> Arc<Self> {
        let most = usize::try_from(target.max_concurrent.max(1)).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let record = Record { down_since: Some(Instant::now()), ..Record::default() };
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(most)),
            target,
            settings,
            events,
            state: watch::Sender::new(State::Starting),
            record: Mutex::new(record),
            waiting: AtomicUsize::new(0),
            strikes: AtomicU32::new(0),
            doubt: Notify::new(),
            watched: Mutex::default(),
            watched_changed: Notify::new(),
            retired,
        })
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resources whose changes are asked for.
    pub(super) fn watched_now(&self) -> BTreeSet<String> {
        self.watched().clone()
    }

    /// Has the first session ask for changes of these, too.
    pub(super) fn watch_also(&self, uris: BTreeSet<String>) {
        self.watched().extend(uris);
    }

    /// How it is.
    pub(super) fn status(&self) -> UpstreamStatus {
        let health = match &*self.state.borrow() {
            State::Starting => Health::Starting,
            State::Up(_) => Health::Up,
            State::Down => Health::Down,
            State::Resting => Health::Resting,
        };
        let record = self.record();
        UpstreamStatus {
            name: self.target.name.clone(),
            health,
            protocol: record.protocol.clone(),
            implementation: record.implementation.clone(),
            connections: record.connections,
            last_error: record.last_error.clone(),
            down_for: record.down_since.map(|since| since.elapsed()),
        }
    }

    /// Keeps it connected until it is retired.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut breaker = Breaker::new(self.settings.circuit_after, self.settings.circuit_open);
        let mut learned = None;
        loop {
            self.state.send_replace(State::Starting);
            let connected = tokio::select! {
                connected = self.connect(&mut learned) => connected,
                () = self.retired.cancelled() => return,
            };
            match connected {
                Ok(session) => {
                    let since = Instant::now();
                    let over = self.stay(session, &mut breaker).await;
                    if matches!(over, Over::Retired) {
                        return;
                    }
                    if since.elapsed() >= STEADY {
                        breaker.succeeded();
                    }
                }
                Err(why) => {
                    tracing::warn!(server = %self.target.name, why, "a tool server cannot be reached");
                    self.record().last_error = Some(why);
                }
            }
            let wait = match breaker.failed() {
                Wait::Soon(wait) => {
                    self.state.send_replace(State::Down);
                    wait
                }
                Wait::Rest(wait) => {
                    self.state.send_replace(State::Resting);
                    wait
                }
            };
            tokio::select! {
                () = sleep(jittered(wait)) => {}
                () = self.retired.cancelled() => return,
            }
        }
    }

    /// Connects, in the way that went well last time, else in both.
    async fn connect(&self, learned: &mut Option<McpEra>) -> Result<Session, String> {
        let first = learned.take().unwrap_or(self.target.era);
        let failed = match self.try_era(first).await {
            Ok(session) => {
                *learned = self.learned(&session);
                return Ok(session);
            }
            Err(failed) => failed,
        };
        if self.target.era != McpEra::Auto || !failed.misunderstood {
            return Err(failed.why);
        }
        // A program may end, or a server fail, because it did not know the first request.
        let second = if first == McpEra::Auto { McpEra::Sessions } else { McpEra::Auto };
        match self.try_era(second).await {
            Ok(session) => {
                *learned = self.learned(&session);
                Ok(session)
            }
            Err(again) if again.why == failed.why => Err(failed.why),
            Err(again) => Err(short(&format!("{}; and then: {}", failed.why, again.why))),
        }
    }

    fn learned(&self, session: &Session) -> Option<McpEra> {
        let auto = self.target.era == McpEra::Auto;
        auto.then_some(if session.live.stateless { McpEra::Stateless } else { McpEra::Sessions })
    }

    async fn try_era(&self, era: McpEra) -> Result<Session, session::NoSession> {
        self.record().connections += 1;
        session::connect(&self.target, era, &self.settings, &self.events).await
    }

    /// Keeps a session until it is over.
    async fn stay(self: &Arc<Self>, session: Session, breaker: &mut Breaker) -> Over {
        let live = session.live.clone();
        {
            let mut record = self.record();
            record.protocol = Some(live.info.protocol_version.to_string());
            record.implementation =
                live.info.server_info.as_ref().map(|info| short(&format!("{} {}", info.name, info.version)));
            record.down_since = None;
            record.last_error = None;
        }
        self.strikes.store(0, Ordering::Release);
        self.state.send_replace(State::Up(live.clone()));
        tracing::info!(server = %self.target.name, protocol = %live.info.protocol_version, "a tool server is up");
        let _ = self.events.send(UpstreamEvent::Up(self.target.name.clone()));

        let over = self.watch_over(&live, breaker).await;

        self.state.send_replace(State::Down);
        self.record().down_since = Some(Instant::now());
        let ended = session.end().await;
        let why = match over {
            Over::Retired => None,
            Over::Lost => Some(ended.unwrap_or_else(|| "the connection was lost".to_owned())),
            Over::Hung => Some("it answered nothing any more and was ended".to_owned()),
        };
        if let Some(why) = why {
            let why = short(&super::secret::without(&why, &live.secrets));
            tracing::warn!(server = %self.target.name, why, "a tool server is down");
            self.record().last_error = Some(why);
            let _ = self.events.send(UpstreamEvent::Down(self.target.name.clone()));
        }
        over
    }

    async fn watch_over(self: &Arc<Self>, live: &Arc<Live>, breaker: &mut Breaker) -> Over {
        let notices = async {
            if live.stateless {
                self.listen(live).await;
            } else {
                self.watch_again(live).await;
            }
            // Without notices a session goes on.
            std::future::pending::<()>().await;
        };
        let on_http = matches!(self.target.transport, Transport::Http(_));
        let look = async {
            let mut steady = false;
            loop {
                let every = if steady { PROBE_EVERY } else { STEADY };
                let doubted = tokio::select! {
                    () = self.doubt.notified() => true,
                    () = sleep(every), if on_http || !steady => false,
                };
                if !doubted && !steady {
                    steady = true;
                    breaker.succeeded();
                }
                if (doubted || on_http) && !self.lives(live).await {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.retired.cancelled() => Over::Retired,
            () = live.traffic.over.cancelled() => Over::Lost,
            () = look => if on_http { Over::Lost } else { Over::Hung },
            () = notices => Over::Lost,
        }
    }

    /// Whether it answers anything, be it an error.
    async fn lives(&self, live: &Live) -> bool {
        let request = if live.stateless { lists::probe() } else { ClientRequest::from(PingRequest::default()) };
        let answer = live.ask(request, PROBE_TIMEOUT.min(self.settings.list_timeout)).await;
        let lives = !matches!(answer, Err(Failure::Timeout(_) | Failure::Lost(_)));
        if lives {
            self.strikes.store(0, Ordering::Release);
        }
        lives
    }

    /// Keeps a subscription open with a server that has no sessions.
    async fn listen(self: &Arc<Self>, live: &Arc<Live>) {
        let mut again = LISTEN_AGAIN;
        let mut missed = false;
        loop {
            let Some(filter) = self.filter(live) else {
                self.watched_changed.notified().await;
                continue;
            };
            match timeout(self.settings.list_timeout, live.peer.listen(filter)).await {
                Ok(Ok(mut subscription)) => {
                    again = LISTEN_AGAIN;
                    if std::mem::take(&mut missed) {
                        live.traffic.changed();
                    }
                    loop {
                        let next = tokio::select! {
                            next = subscription.next() => next,
                            () = self.watched_changed.notified() => break,
                        };
                        match next {
                            Ok(Some(notification)) => live.traffic.notice(notification),
                            Ok(None) | Err(_) => {
                                missed = true;
                                break;
                            }
                        }
                    }
                    if !missed {
                        continue;
                    }
                }
                Ok(Err(rmcp::ServiceError::McpError(error))) if error.code == ErrorCode::METHOD_NOT_FOUND => return,
                Ok(Err(_)) | Err(_) => missed = true,
            }
            sleep(jittered(again)).await;
            again = (again * 2).min(LISTEN_AGAIN_MOST);
        }
    }

    /// What is listened for; `None`: nothing.
    fn filter(&self, live: &Live) -> Option<SubscriptionFilter> {
        let has = &live.info.capabilities;
        let tools = has.tools.as_ref().and_then(|tools| tools.list_changed) == Some(true);
        let prompts = has.prompts.as_ref().and_then(|prompts| prompts.list_changed) == Some(true);
        let resources = has.resources.as_ref().and_then(|resources| resources.list_changed) == Some(true);
        let watched: Vec<String> = self.watched().iter().cloned().collect();
        if !(tools || prompts || resources) && watched.is_empty() {
            return None;
        }
        let mut filter = SubscriptionFilter::new();
        filter.tools_list_changed = tools.then_some(true);
        filter.prompts_list_changed = prompts.then_some(true);
        filter.resources_list_changed = resources.then_some(true);
        filter.resource_subscriptions = (!watched.is_empty()).then_some(watched);
        Some(filter)
    }

    /// A new session knows nothing of what the last one watched.
    async fn watch_again(&self, live: &Live) {
        let watched: Vec<String> = self.watched().iter().cloned().collect();
        for uri in watched {
            let request = ClientRequest::from(SubscribeRequest::new(SubscribeRequestParams::new(uri)));
            let _ = live.ask(request, self.settings.list_timeout).await;
        }
    }

    /// Asks to be told of changes of a resource, or no more.
    pub(super) async fn watch(&self, uri: &str, watch: bool) -> Result<(), UpstreamError> {
        let live = self.live(Instant::now() + self.settings.list_timeout).await?;
        if watch && !self.watched().contains(uri) && self.watched().len() >= MAX_WATCHED {
            return Err(UpstreamError::Busy { server: self.target.name.clone() });
        }
        if !live.stateless {
            let request = if watch {
                ClientRequest::from(SubscribeRequest::new(SubscribeRequestParams::new(uri)))
            } else {
                ClientRequest::from(UnsubscribeRequest::new(UnsubscribeRequestParams::new(uri)))
            };
            let answer = live.ask(request, self.settings.list_timeout).await;
            answer.map_err(|failure| self.failed(failure, &live))?;
        }
        let changed = if watch { self.watched().insert(uri.to_owned()) } else { self.watched().remove(uri) };
        if live.stateless && changed {
            self.watched_changed.notify_one();
        }
        Ok(())
    }

    /// The session, waiting a little for one that is about to be there.
    async fn live(&self, until: Instant) -> Result<Arc<Live>, UpstreamError> {
        let mut states = self.state.subscribe();
        let soon = Instant::now() + RETURN_WAIT;
        loop {
            let state = states.borrow_and_update().clone();
            let until = match state {
                State::Up(live) => return Ok(live),
                State::Starting => until,
                State::Down => until.min(soon),
                State::Resting => break,
            };
            if !matches!(timeout_at(until, states.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        let record = self.record();
        let why = record.last_error.clone().unwrap_or_else(|| "it is not connected yet".to_owned());
        Err(UpstreamError::Unavailable { server: self.target.name.clone(), why })
    }

    /// All its lists, over the session there is.
    pub(super) async fn offer(&self) -> Result<Offer, UpstreamError> {
        let limit = self.settings.list_timeout;
        let live = self.live(Instant::now() + limit).await?;
        let offer = lists::fetch(&live, limit, self.settings.max_message()).await;
        self.count(offer.as_ref().err());
        offer.map_err(|failure| self.failed(failure, &live))
    }

    /// Carries out a call within its time, a free slot included.
    pub(super) async fn call(
        &self,
        mut request: ClientRequest,
        meta: Option<&RequestMetaObject>,
        context: CallContext,
    ) -> Result<ServerResult, UpstreamError> {
        let limit = self.target.call_timeout;
        let until = Instant::now() + limit;
        let late = || UpstreamError::Timeout { server: self.target.name.clone(), limit };
        let _slot = tokio::select! {
            slot = timeout_at(until, self.slot()) => slot.map_err(|_| late())??,
            () = context.cancelled.cancelled() => return Err(UpstreamError::Cancelled),
        };
        let live = tokio::select! {
            live = self.live(until) => live?,
            () = context.cancelled.cancelled() => return Err(UpstreamError::Cancelled),
        };
        let own = live.stateless.then(|| {
            let mut own = RequestMetaObject::new();
            own.set_client_capabilities(context.downstream.capabilities());
            own
        });
        let (ticket, mut said) =
            Ticket::new(context.downstream.clone(), meta.and_then(RequestMetaObject::get_progress_token));
        ride(&mut request, &ticket);
        let sent = tokio::select! {
            sent = timeout_at(until, live.send(request, own)) => sent.map_err(|_| late())?,
            () = context.cancelled.cancelled() => return Err(UpstreamError::Cancelled),
        };
        let (id, mut asked) = sent.map_err(|error| self.failed(Failure::from(error, false), &live))?;
        let _over = ticket.over.clone().drop_guard();
        let mut asking = ticket.asking();
        let answer = self.wait(&live, &id, &mut asked, &mut said, &mut asking, &context, until).await;
        if let Ok(answer) = &answer {
            self.count(answer.as_ref().err());
            while let Ok(said) = said.try_recv() {
                pass_on(said, &context).await;
            }
        }
        answer?.map_err(|failure| self.failed(failure, &live))
    }

    /// Waits for the answer, passing on what the server says meanwhile. What it asks the client does not count as its time.
    /// The outer error: the client gave up.
    #[expect(clippy::too_many_arguments, reason = "all of one call, and used here alone")]
    async fn wait(
        &self,
        live: &Live,
        id: &RequestId,
        asked: &mut Asked,
        said: &mut mpsc::Receiver<Said>,
        asking: &mut watch::Receiver<Asking>,
        context: &CallContext,
        until: Instant,
    ) -> Result<Result<ServerResult, Failure>, UpstreamError> {
        loop {
            let late_at = asking.borrow_and_update().late_at(until);
            tokio::select! {
                biased;
                () = context.cancelled.cancelled() => return Err(UpstreamError::Cancelled),
                Ok(()) = asking.changed() => {}
                answer = timeout_at(late_at, asked.answer()) => {
                    return Ok(match answer {
                        Err(_) => Err(Failure::Timeout(self.target.call_timeout)),
                        Ok(answer) => answer.map_err(|error| Failure::from(error, live.traffic.was_too_large(id))),
                    });
                }
                Some(said) = said.recv() => pass_on(said, context).await,
            }
        }
    }

    /// A free slot; refused when too many wait for one.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let busy = || UpstreamError::Busy { server: self.target.name.clone() };
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        /// Counts one that waits, also when it waits no more.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let most = usize::try_from(self.target.max_concurrent).unwrap_or(usize::MAX);
        let most = most.saturating_mul(WAITING_TIMES).max(LEAST_WAITING);
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&self.waiting);
        if before >= most {
            return Err(busy());
        }
        self.slots.clone().acquire_owned().await.map_err(|_| busy())
    }

    /// Notes whether a request was answered in time; after some that were not, the server has to prove that it lives.
    fn count(&self, failure: Option<&Failure>) {
        match failure {
            Some(Failure::Timeout(_)) => {
                if self.strikes.fetch_add(1, Ordering::AcqRel) + 1 >= STRIKES {
                    self.doubt.notify_one();
                }
            }
            Some(Failure::Lost(_)) => self.doubt.notify_one(),
            Some(Failure::TooLarge | Failure::Protocol(_)) | None => self.strikes.store(0, Ordering::Release),
        }
    }

    fn failed(&self, failure: Failure, live: &Live) -> UpstreamError {
        failure.of(live, self.settings.max_result)
    }
}

/// Lets the ticket travel with the request, and takes out of it what is not the server's business.
fn ride(request: &mut ClientRequest, ticket: &Arc<Ticket>) {
    let (extensions, meta) = match request {
        ClientRequest::CallToolRequest(request) => (&mut request.extensions, request.params.meta.as_mut()),
        ClientRequest::ReadResourceRequest(request) => (&mut request.extensions, request.params.meta.as_mut()),
        ClientRequest::GetPromptRequest(request) => (&mut request.extensions, request.params.meta.as_mut()),
        ClientRequest::CompleteRequest(request) => (&mut request.extensions, request.params.meta.as_mut()),
        _ => return,
    };
    extensions.insert(Riding(ticket.clone()));
    if let Some(meta) = meta {
        for name in OURS {
            meta.0.remove(name);
        }
    }
}

/// Hands a message to the client of a call, which may be slow.
async fn pass_on(said: Said, context: &CallContext) {
    let passed = async {
        match said {
            Said::Progress(params) => context.downstream.progress(params).await,
            Said::Log(params) => context.downstream.log(params).await,
        }
    };
    let _ = timeout(SAID_TIMEOUT, passed).await;
}
