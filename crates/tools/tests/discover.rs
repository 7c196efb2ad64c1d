//! Discovery on this very machine: real files, sockets and tool servers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use lares_config::{ToolDiscovery, Tools};
use lares_tools::api::Source;
use lares_tools::discover::{self, Around, Machine, ReadError};
use rmcp::ServerHandler;
use rmcp::model::{ErrorCode, ErrorData, Implementation, ProtocolVersion, ServerCapabilities, ServerConfig};
use rmcp::service::{MaybeSendFuture, RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Speaks 2026-07-28 and nothing else.
#[derive(Clone)]
struct Stateless;

impl ServerHandler for Stateless {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("stateless", "1"))
    }

    fn supported_protocol_versions(&self) -> std::borrow::Cow<'static, [ProtocolVersion]> {
        std::borrow::Cow::Borrowed(&[ProtocolVersion::V_2026_07_28])
    }
}

/// Does not know `server/discover`.
#[derive(Clone)]
struct Sessions;

impl ServerHandler for Sessions {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn discover(
        &self,
        _: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<rmcp::model::DiscoverResult, ErrorData>> + MaybeSendFuture + '_ {
        std::future::ready(Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "Method not found", None)))
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn mcp<S: ServerHandler + Clone>(
    server: S,
    manager: &Arc<LocalSessionManager>,
) -> StreamableHttpService<S, LocalSessionManager> {
    let config = StreamableHttpServerConfig::default().with_sse_keep_alive(None);
    StreamableHttpService::new(move || Ok(server.clone()), Arc::clone(manager), config)
}

fn tools(ports: &[SocketAddr], files: &[PathBuf]) -> Tools {
    let discovery = ToolDiscovery {
        ports: ports.iter().map(|address| address.port().to_string()).collect(),
        client_files: files.to_vec(),
        units: false,
        ..ToolDiscovery::default()
    };
    Tools { discovery, ..Tools::default() }
}

fn machine() -> Machine {
    Machine::of(None, BTreeSet::new())
}

#[tokio::test]
async fn tool_servers_of_both_eras_are_found_by_their_ports_and_other_programs_are_not() {
    let (new, old) = (Arc::new(LocalSessionManager::default()), Arc::new(LocalSessionManager::default()));
    let stateless = serve(Router::new().nest_service("/mcp", mcp(Stateless, &new))).await;
    let sessions = serve(Router::new().fallback_service(mcp(Sessions, &old))).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let pages = Router::new()
        .fallback(|State(requests): State<Arc<AtomicUsize>>, method: Method| async move {
            requests.fetch_add(1, Ordering::SeqCst);
            if method == Method::GET { (StatusCode::OK, "hello") } else { (StatusCode::METHOD_NOT_ALLOWED, "no") }
        })
        .with_state(Arc::clone(&requests));
    let pages = serve(pages).await;
    let json = serve(Router::new().fallback(|| async { axum::Json(serde_json::json!({"status": "fine"})) })).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (silent_at, rude_at) = (silent.local_addr().unwrap(), rude.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = rude.accept().await {
            let _ = stream.write_all(b"220 mail ready\r\n").await;
        }
    });
    let config = tools(&[stateless, sessions, pages, json, silent_at, rude_at], &[]);

    let began = Instant::now();
    let round = discover::look(&config, &machine()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    assert_eq!(round.problems, Vec::<String>::new());
    let urls: BTreeSet<String> =
        round.found.iter().map(|found| found.shown()["url"].as_str().unwrap().to_owned()).collect();
    assert_eq!(urls, BTreeSet::from([format!("http://{stateless}/mcp"), format!("http://{sessions}/mcp")]));
    assert!(round.found.iter().all(|found| found.source == Source::Port && !found.trusted));
    assert!(requests.load(Ordering::SeqCst) <= 2, "a plain server is asked once a path");
    for manager in [new, old] {
        assert!(manager.sessions.read().await.is_empty(), "a session stayed open");
    }
    drop(silent);
}

#[tokio::test]
async fn a_session_that_was_opened_to_ask_is_closed_again() {
    type Log = Arc<std::sync::Mutex<Vec<String>>>;
    let log: Log = Arc::default();
    let answer = |State(log): State<Log>, method: Method, headers: HeaderMap, body: String| async move {
        let session = headers.get("mcp-session-id").map_or("", |id| id.to_str().unwrap());
        log.lock().unwrap().push(format!("{method} {session}"));
        if body.contains("\"initialize\"") {
            let event = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":{},\"serverInfo\":{\"name\":\"x\",\"version\":\"1\"}}}\n\n";
            let kind = [("content-type", "text/event-stream"), ("mcp-session-id", "s-1")];
            return (StatusCode::OK, kind, event);
        }
        (StatusCode::BAD_REQUEST, [("content-type", "text/plain"), ("x", "y")], "no session")
    };
    let address = serve(Router::new().route("/mcp", axum::routing::any(answer)).with_state(Arc::clone(&log))).await;
    let round = discover::look(&tools(&[address], &[]), &machine()).await;
    assert_eq!(round.found.len(), 1);
    assert_eq!(*log.lock().unwrap(), ["POST ", "POST ", "DELETE s-1"]);
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").await;
                while stream.write_all(&[b' '; 65536]).await.is_ok() {
                    counted.fetch_add(65536, Ordering::SeqCst);
                }
            });
        }
    });
    let began = Instant::now();
    let round = discover::look(&tools(&[address], &[]), &machine()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(round.found, []);
    assert!(sent.load(Ordering::SeqCst) < 64 << 20, "{sent:?}");
}

#[tokio::test]
async fn the_houses_own_ports_are_not_asked() {
    let manager = Arc::new(LocalSessionManager::default());
    let own = serve(Router::new().nest_service("/mcp", mcp(Stateless, &manager))).await;
    let machine = Machine::of(None, BTreeSet::from([own.port()]));
    assert_eq!(discover::look(&tools(&[own], &[]), &machine).await.found, []);
    let house = discover::house_ports(&lares_config::Config::default());
    assert!(house.is_superset(&BTreeSet::from([8091, 8092, 8098, 8099, 8100])), "{house:?}");
}

#[tokio::test]
async fn files_that_are_no_files_never_block() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let good = at("good.json");
    fs::write(&good, r#"{"mcpServers": {"git": {"command": "uvx"}}}"#).unwrap();
    std::os::unix::fs::symlink(&good, at("link.json")).unwrap();
    nix::unistd::mkfifo(&at("fifo.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(at("directory.json")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.json")).unwrap();
    std::os::unix::fs::symlink(at("loop.json"), at("loop.json")).unwrap();
    fs::write(at("large.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    let names = ["fifo.json", "directory.json", "socket.json", "loop.json", "large.json", "absent.json"];
    let mut files: Vec<PathBuf> = names.iter().map(|name| at(name)).collect();
    files.extend([at("link.json"), "/dev/zero".into(), good.join("below")]);

    let began = Instant::now();
    let round = discover::look(&tools(&[], &files), &machine()).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(round.found.len(), 1);
    assert_eq!(round.problems.len(), 6, "{:#?}", round.problems);
    for (name, why) in [
        ("fifo.json", "not a regular file"),
        ("directory.json", "not a regular file"),
        ("socket.json", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("loop.json", "cannot be read"),
        ("large.json", "larger than 1048576 bytes"),
    ] {
        let named = round.problems.iter().any(|problem| problem.contains(name) && problem.contains(why));
        assert!(named, "{name}: {:#?}", round.problems);
    }
    let limit = machine().read(&good, 3).await;
    assert_eq!(limit, Err(ReadError::TooLarge(3)));
}

#[tokio::test]
async fn this_machine_tells_its_sockets_and_its_units() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listening = machine().listening().await.unwrap();
    assert!(listening.iter().any(|socket| socket.address == address && socket.socket != 0), "{listening:?}");
    let units = machine().units().await;
    if Path::new("/run/systemd/system").is_dir() {
        let units = units.unwrap();
        assert!(units.iter().any(|unit| !unit.files.is_empty()), "{units:?}");
    } else {
        assert_eq!(units, Ok(Vec::new()));
    }
}
