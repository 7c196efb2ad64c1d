//! Sessions of the older era (2025-11-25 and before): each belongs to the key that opened it, there are at most so many,
//! and none outlives its last use by long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::StreamExt as _;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::WorkerTransport;
use rmcp::transport::streamable_http_server::SessionManager;
use rmcp::transport::streamable_http_server::session::local::{
    LocalSessionHandle, LocalSessionWorker, SessionConfig, SessionError, create_local_session,
};
use rmcp::transport::streamable_http_server::session::{ServerSseMessage, SessionId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest wait until a session that is closed has heard of it. Its end does not depend on it.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Whom a session belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    /// The key.
    pub(super) key: Uuid,
    /// The toolset of the path it was opened at.
    pub(super) toolset: Option<String>,
}

/// The sessions that are open.
#[derive(Debug)]
pub(super) struct Sessions {
    open: Mutex<HashMap<SessionId, Session>>,
    most: usize,
    config: SessionConfig,
}

#[derive(Debug)]
struct Session {
    owner: Owner,
    handle: LocalSessionHandle,
    /// Requests whose answer is on its way.
    running: usize,
    used: Instant,
    /// Ends all that belongs to the session.
    ended: CancellationToken,
}

impl Sessions {
    pub(super) fn new(most: usize, idle: Duration) -> Self {
        let mut config = SessionConfig::default();
        config.keep_alive = Some(idle);
        Self { open: Mutex::default(), most: most.max(1), config }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn is_of(&self, id: &str, owner: &Owner) -> bool {
        self.lock().get(id).is_some_and(|session| session.owner == *owner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: SessionId, session: Session) {
        let mut open = self.lock();
        while open.len() >= self.most {
            // One that waits for an answer gives way only when all do.
            let oldest = open.iter().min_by_key(|(_, session)| (session.running > 0, session.used));
            let Some(oldest) = oldest.map(|(id, _)| Arc::clone(id)) else { break };
            if let Some(session) = open.remove(&oldest) {
                tracing::info!(session = %oldest, "a session gave way to a new one (tools.gateway.max_sessions)");
                session.ended.cancel();
            }
        }
        open.insert(id, session);
    }

    fn remove(&self, id: &str) -> Option<Session> {
        let session = self.lock().remove(id)?;
        session.ended.cancel();
        Some(session)
    }

    fn count(&self, id: &str, change: impl FnOnce(&mut usize)) {
        if let Some(session) = self.lock().get_mut(id) {
            change(&mut session.running);
            session.used = Instant::now();
        }
    }
}

/// A request's answer on its way: its session is in use.
struct Running {
    sessions: Arc<Sessions>,
    id: SessionId,
}

impl Running {
    fn begin(sessions: &Arc<Sessions>, id: &SessionId) -> Self {
        sessions.count(id, |running| *running += 1);
        Self { sessions: Arc::clone(sessions), id: Arc::clone(id) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sessions.count(&self.id, |running| *running = running.saturating_sub(1));
    }
}

/// The sessions as one request may see them: those of its key and toolset.
pub(super) struct Door {
    sessions: Arc<Sessions>,
    owner: Owner,
    /// Ends what this request opens.
    ended: CancellationToken,
}

impl Door {
    pub(super) fn new(sessions: Arc<Sessions>, owner: Owner, ended: CancellationToken) -> Self {
        Self { sessions, owner, ended }
    }

    fn handle(&self, id: &SessionId) -> Result<LocalSessionHandle, DoorError> {
        let mut open = self.sessions.lock();
        let session = open.get_mut(id).filter(|session| session.owner == self.owner).ok_or(DoorError::Gone)?;
        session.used = Instant::now();
        Ok(session.handle.clone())
    }
}

/// Why a session cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    /// It is not there, or somebody else's.
    #[error("there is no such session")]
    Gone,
    /// The event to go on after is none.
    #[error("`{0}` is not the id of an event")]
    Event(String),
    /// It does not work.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl SessionManager for Door {
    type Error = DoorError;
    type Transport = WorkerTransport<LocalSessionWorker>;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), DoorError> {
        let id: SessionId = Uuid::now_v7().to_string().into();
        let (handle, worker) = create_local_session(Arc::clone(&id), self.sessions.config.clone());
        let transport = WorkerTransport::spawn_with_ct(worker, self.ended.child_token());
        let session =
            Session { owner: self.owner.clone(), handle, running: 0, used: Instant::now(), ended: self.ended.clone() };
        self.sessions.add(Arc::clone(&id), session);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, DoorError> {
        Ok(self.handle(id)?.initialize(message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, DoorError> {
        Ok(self.handle(id).is_ok())
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), DoorError> {
        if !self.sessions.is_of(id, &self.owner) {
            return Ok(());
        }
        if let Some(session) = self.sessions.remove(id) {
            // It ends with its token; this only tells it sooner. It may be gone, or stuck at a client that reads nothing.
            let _ = tokio::time::timeout(CLOSE_TIME, session.handle.close()).await;
        }
        Ok(())
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, DoorError> {
        let handle = self.handle(id)?;
        let running = Running::begin(&self.sessions, id);
        let receiver = handle.establish_request_wise_channel().await?;
        handle.push_message(message, receiver.http_request_id).await?;
        Ok(drain(receiver.inner).map(move |message| {
            let _ = &running;
            message
        }))
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), DoorError> {
        Ok(self.handle(id)?.push_message(message, None).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, DoorError> {
        Ok(drain(self.handle(id)?.establish_common_channel().await?.inner))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, DoorError> {
        let event = last_event_id.parse().map_err(|_| DoorError::Event(last_event_id))?;
        Ok(drain(self.handle(id)?.resume(event).await?.inner))
    }
}

fn drain(
    mut receiver: tokio::sync::mpsc::Receiver<ServerSseMessage>,
) -> impl Stream<Item = ServerSseMessage> + Send + Sync + 'static {
    futures_util::stream::poll_fn(move |context| receiver.poll_recv(context))
}
