//! Asking whoever listens on a loopback port whether it speaks MCP: `server/discover` (2026-07-28) and `initialize`
//! (2025-11-25) at `/mcp` and `/`. A session that an answer opened is closed again.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Longest that one request takes, connecting included.
const REQUEST: Duration = Duration::from_secs(1);
/// Longest that one port takes.
const PORT: Duration = Duration::from_secs(3);
/// Largest answer.
const LARGEST: usize = 256 << 10;
/// Where MCP is served by the libraries' examples and by nearly every server.
const PATHS: [&str; 2] = ["/mcp", "/"];
const SESSION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
const STATELESS: &str = "2026-07-28";
const SESSIONS: &str = "2025-11-25";

/// The path at which MCP is spoken there.
pub(super) async fn speaks_mcp(address: SocketAddr) -> Option<String> {
    let asking = async {
        for path in PATHS {
            match ask(address, path).await {
                Heard::Mcp => return Some(path.to_owned()),
                Heard::Elsewhere => {}
                Heard::Nothing => return None,
            }
        }
        None
    };
    timeout(PORT, asking).await.ok().flatten()
}

/// What one path answers.
enum Heard {
    Mcp,
    /// It speaks HTTP, and no MCP here.
    Elsewhere,
    /// It is silent, or speaks something else.
    Nothing,
}

async fn ask(address: SocketAddr, path: &str) -> Heard {
    let discover = json!({
        "jsonrpc": "2.0", "id": 1, "method": "server/discover",
        "params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": STATELESS,
            "io.modelcontextprotocol/clientInfo": client(),
            "io.modelcontextprotocol/clientCapabilities": {},
        }},
    });
    match post(address, path, STATELESS, &discover).await {
        None => return Heard::Nothing,
        Some(answer) => {
            if answer.session.is_some() {
                close(address, path, answer.session).await;
            }
            let versions = ["/result/supportedVersions", "/error/data/supported"];
            if versions.iter().any(|at| answer.message.as_ref().is_some_and(|said| is_list(said, at))) {
                return Heard::Mcp;
            }
            // Nothing is there, or nothing takes a POST; a second one would only be noise in somebody's log.
            let nowhere = [
                StatusCode::NOT_FOUND,
                StatusCode::METHOD_NOT_ALLOWED,
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
            ];
            if nowhere.contains(&answer.status) && answer.message.is_none() || answer.html {
                return Heard::Elsewhere;
            }
        }
    }
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": SESSIONS, "capabilities": {}, "clientInfo": client()},
    });
    let Some(answer) = post(address, path, SESSIONS, &initialize).await else { return Heard::Nothing };
    let agreed = answer.message.as_ref().and_then(|said| said.pointer("/result"));
    let mcp = agreed.is_some_and(|result| {
        result.get("protocolVersion").is_some_and(Value::is_string)
            && result.get("capabilities").is_some_and(Value::is_object)
    });
    if answer.session.is_some() {
        close(address, path, answer.session).await;
    }
    if mcp { Heard::Mcp } else { Heard::Elsewhere }
}

fn client() -> Value {
    json!({"name": "lares", "version": env!("CARGO_PKG_VERSION")})
}

fn is_list(message: &Value, pointer: &str) -> bool {
    message.pointer(pointer).and_then(Value::as_array).is_some_and(|list| list.iter().any(Value::is_string))
}

struct Answer {
    status: StatusCode,
    session: Option<String>,
    html: bool,
    /// The JSON-RPC answer in it.
    message: Option<Value>,
}

async fn post(address: SocketAddr, path: &str, version: &str, body: &Value) -> Option<Answer> {
    let mut request = request(Method::POST, address, path, version)?
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, text/event-stream");
    if version == STATELESS {
        request = request.header("mcp-method", "server/discover");
    }
    let request = request.body(Full::from(body.to_string())).ok()?;
    let asking = async {
        let (response, _connection) = send(address, request).await?;
        let text = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (kind, session) = (text("content-type").to_ascii_lowercase(), Some(text(SESSION)));
        Some(Answer {
            status: response.status(),
            session: session.filter(|session| !session.is_empty() && session.len() <= 256),
            html: kind.starts_with("text/html"),
            message: message(response, &kind).await,
        })
    };
    timeout(REQUEST, asking).await.ok().flatten()
}

/// Ends a session that a question opened. Whether that is understood is the other's affair.
async fn close(address: SocketAddr, path: &str, session: Option<String>) {
    let Some(session) = session else { return };
    let request = request(Method::DELETE, address, path, SESSIONS)
        .map(|request| request.header(SESSION, session))
        .and_then(|request| request.body(Full::default()).ok());
    if let Some(request) = request {
        let _ = timeout(REQUEST, send(address, request)).await;
    }
}

fn request(method: Method, address: SocketAddr, path: &str, version: &str) -> Option<http::request::Builder> {
    let request = Request::builder().method(method).uri(path).header(VERSION, version);
    Some(
        request
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("lares/", env!("CARGO_PKG_VERSION"))),
    )
}

type Sent = (Response<Incoming>, AbortOnDropHandle<()>);

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Option<Sent> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // What goes wrong here is told by the request that waits for it.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.ok()?;
    Some((response, connection))
}

/// The JSON-RPC answer of a body: all of JSON, or the first one of an event stream, which may stay open.
async fn message(response: Response<Incoming>, kind: &str) -> Option<Value> {
    let stream = kind.starts_with("text/event-stream");
    if !stream && !kind.starts_with("application/json") {
        return None;
    }
    let mut body = response.into_body();
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        read.extend_from_slice(&data);
        if read.len() > LARGEST {
            return None;
        }
        if stream && let Some(found) = events(&read).find_map(|event| answer(event.as_bytes())) {
            return Some(found);
        }
    }
    if stream { None } else { answer(&read) }
}

fn answer(json: &[u8]) -> Option<Value> {
    let message: Value = serde_json::from_slice(json).ok()?;
    let rpc = message.get("jsonrpc").is_some_and(|version| version == "2.0");
    (rpc && (message.get("result").is_some() || message.get("error").is_some())).then_some(message)
}

/// The data of the events that have come whole.
fn events(read: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(read).replace("\r\n", "\n");
    let whole = text.rfind("\n\n").map_or(0, |end| end + 2);
    let events: Vec<String> = text[..whole].split("\n\n").map(data).filter(|data| !data.is_empty()).collect();
    events.into_iter()
}

fn data(event: &str) -> String {
    let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
    lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_counts_once_it_is_whole() {
        let text = b"id: 0\r\ndata:\r\n\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata: half";
        assert_eq!(events(text).collect::<Vec<_>>(), ["{\"a\":\n1}"]);
        assert_eq!(events(b"data: half\n").count(), 0);
    }

    #[test]
    fn only_json_rpc_is_an_answer() {
        assert!(answer(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#).is_some());
        for other in ["{}", "[]", "{\"result\":{}}", r#"{"jsonrpc":"2.0","method":"x"}"#, "not json"] {
            assert!(answer(other.as_bytes()).is_none(), "{other}");
        }
    }
}
