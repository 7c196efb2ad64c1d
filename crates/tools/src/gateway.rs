//! The door at `/mcp`: one MCP server, in both eras of the protocol, over everything that is offered to a caller.
//!
//! `sessions` keeps the sessions of the older era, `handler` answers requests, `finding` has the three tools that stand
//! for all others, `client` is the way back to the client during a call, `parked` keeps calls whose question a stateless
//! client answers with its next request, `changes` tells clients what became old, `page` cuts lists.
//!
//! Facts: MCP revisions 2025-11-25 and 2026-07-28, "Transports" and "Server features".

mod changes;
mod client;
mod finding;
mod handler;
mod page;
mod parked;
mod sessions;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lares_config::ToolGateway;
use lares_gate::{Caller, Problem};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::offers::{OfferError, Offers, View};

use changes::Watches;
use handler::Handler;
use parked::Parked;
use sessions::{Door, Owner, Sessions};

/// Largest message of a client, in bytes.
const MAX_BODY: usize = 2 * 1024 * 1024;
/// Longest wait for the whole of a message of a client.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Header with the id of a session (MCP 2025-11-25, Transports, "Session Management").
const SESSION: &str = "mcp-session-id";

/// Bounds of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Most sessions of clients of the older era, and most streams of changes of the newer one. The session idle longest
    /// gives way.
    pub max_sessions: usize,
    /// Sessions idle for so long end.
    pub session_idle: Duration,
}

impl From<&ToolGateway> for GatewaySettings {
    fn from(config: &ToolGateway) -> Self {
        Self {
            max_sessions: usize::try_from(config.max_sessions).unwrap_or(usize::MAX),
            session_idle: config.session_idle,
        }
    }
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("sessions", &self.sessions()).finish_non_exhaustive()
    }
}

/// What all requests share.
struct Inner {
    offers: Arc<dyn Offers>,
    sessions: Arc<Sessions>,
    parked: Parked,
    watches: Watches,
    listeners: Semaphore,
    shutdown: CancellationToken,
}

/// The routes `/mcp` and `/mcp/{toolset}`, to be put behind the gate: they take the [`Caller`] from the request.
pub fn routes(offers: Arc<dyn Offers>, settings: GatewaySettings, shutdown: CancellationToken) -> Router {
    Gateway::new(offers, settings, shutdown).routes()
}

impl Gateway {
    /// A gateway over what `offers` has. Sessions, streams and waiting calls end with `shutdown`.
    pub fn new(offers: Arc<dyn Offers>, settings: GatewaySettings, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            offers,
            sessions: Arc::new(Sessions::new(settings.max_sessions, settings.session_idle)),
            parked: Parked::default(),
            watches: Watches::default(),
            listeners: Semaphore::new(settings.max_sessions.clamp(1, Semaphore::MAX_PERMITS)),
            shutdown,
        }))
    }

    /// See [`routes`].
    pub fn routes(&self) -> Router {
        Router::new().route("/mcp", any(all)).route("/mcp/{toolset}", any(selected)).with_state(Arc::clone(&self.0))
    }

    /// Sessions of clients of the older era that are open.
    pub fn sessions(&self) -> usize {
        self.0.sessions.len()
    }

    /// Calls that wait for an answer of a stateless client.
    pub fn waiting_calls(&self) -> usize {
        self.0.parked.len()
    }
}

async fn all(State(gateway): State<Arc<Inner>>, caller: Caller, request: Request) -> Response {
    answer(&gateway, caller, None, request).await
}

async fn selected(
    State(gateway): State<Arc<Inner>>,
    Path(toolset): Path<String>,
    caller: Caller,
    request: Request,
) -> Response {
    answer(&gateway, caller, Some(toolset), request).await
}

async fn answer(gateway: &Arc<Inner>, caller: Caller, toolset: Option<String>, request: Request) -> Response {
    let view = match gateway.offers.view(&caller, toolset.as_deref()) {
        Ok(view) => Arc::new(view),
        Err(error @ OfferError::Toolset(_)) => {
            return Problem::new(StatusCode::NOT_FOUND, "no-such-toolset", error.to_string()).into_response();
        }
        Err(error) => {
            return Problem::new(StatusCode::FORBIDDEN, "not-offered", error.to_string()).into_response();
        }
    };
    let owner = Owner { key: caller.key_id, toolset };
    let (parts, body) = request.into_parts();
    // rmcp ends any session without asking; for POST and GET it asks the door below.
    if parts.method == Method::DELETE
        && let Some(id) = parts.headers.get(SESSION)
        && !id.to_str().is_ok_and(|id| gateway.sessions.is_of(id, &owner))
    {
        return StatusCode::NOT_FOUND.into_response();
    }
    let body = match read(&parts.headers, body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let is_json = is_json(&parts.headers);
    let ended = gateway.shutdown.child_token();
    let service = serving(gateway, view, owner, ended);
    let response = service.handle(Request::from_parts(parts, Body::from(body.clone()))).await;
    if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE && is_json {
        // rmcp says 415 of JSON that is no message too; JSON-RPC has errors for that.
        return not_a_message(&body);
    }
    response.map(Body::new).into_response()
}

/// rmcp's part of one request. What it keeps for longer, a session, keeps the door.
fn serving(
    gateway: &Arc<Inner>,
    view: Arc<View>,
    owner: Owner,
    ended: CancellationToken,
) -> StreamableHttpService<Handler, Door> {
    let door = Door::new(Arc::clone(&gateway.sessions), owner, ended.clone());
    let config = StreamableHttpServerConfig::default()
        // The gate has checked Host and Origin.
        .disable_allowed_hosts()
        .with_json_response(true)
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(ended.clone());
    let gateway = Arc::clone(gateway);
    StreamableHttpService::new(
        move || Ok(Handler::new(Arc::clone(&gateway), Arc::clone(&view), ended.clone())),
        Arc::new(door),
        config,
    )
}

/// Reads a body whole, within its bounds.
async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("a message to this surface has at most {MAX_BODY} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
    };
    let said = headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    let whole = async {
        let mut pieces = body.into_data_stream();
        let mut whole = Vec::with_capacity(said.unwrap_or_default());
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| Problem::bad_request("broken-body", error.to_string()))?;
            if whole.len() + piece.len() > MAX_BODY {
                return Err(too_large());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Bytes::from(whole))
    };
    tokio::time::timeout(BODY_TIME, whole).await.unwrap_or_else(|_| {
        let detail = format!("the message was not whole within {} s", BODY_TIME.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// JSON-RPC's answer to something that is no message of MCP. Batches are none since 2025-06-18.
fn not_a_message(body: &[u8]) -> Response {
    let (code, message, id) = match serde_json::from_slice::<Value>(body) {
        Err(error) => (-32700, format!("this is not JSON: {error}"), None),
        Ok(Value::Array(_)) => (-32600, "batches are not supported; send one message a request".to_owned(), None),
        Ok(value) => {
            let id = value.get("id").filter(|id| id.is_string() || id.is_i64() || id.is_u64()).cloned();
            (-32600, "this is not a message of MCP".to_owned(), id)
        }
    };
    let mut answer = json!({ "jsonrpc": "2.0", "error": { "code": code, "message": message } });
    if let Some(id) = id {
        answer["id"] = id;
    }
    let mut response = (StatusCode::BAD_REQUEST, answer.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
