//! Listening, accepting and ending: from an address to served connections, and to none within a few seconds.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{Extensions, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use nix::unistd::Uid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::Role;
use crate::auth::Caller;

/// Longest wait for the head of a request, and for the next request on a connection that is kept open.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long answers under way may take after shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(8);
/// Most connections at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after an accept failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest wait to find out whether somebody answers on an old socket.
const SOCKET_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a surface cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurfaceError {
    /// Somebody else listens there.
    #[error(
        "{name} cannot listen on {address}: the port is taken; `ss -ltnp 'sport = :{}'` shows by whom. \
         Stop that, or set another `{name}.listen`",
        address.port()
    )]
    PortTaken {
        /// The surface.
        name: &'static str,
        /// The address that is taken.
        address: SocketAddr,
    },
    /// The system does not let us listen there.
    #[error(
        "{name} cannot listen on {address}: {source}; set `{name}.listen` to an address this machine has and may use"
    )]
    Address {
        /// The surface.
        name: &'static str,
        /// The address that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody answers on the socket.
    #[error("{name} already runs: something answers on {}; stop it first", path.display())]
    SocketTaken {
        /// The surface.
        name: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// The path of the socket cannot be used.
    #[error("{name} cannot make its socket {}: {source}", path.display())]
    Socket {
        /// The surface.
        name: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A surface that listens and does not accept yet.
#[derive(Debug)]
pub struct Bound {
    name: &'static str,
    listener: Listener,
    router: Router,
}

#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    pub(crate) async fn tcp(name: &'static str, address: SocketAddr) -> Result<Self, SurfaceError> {
        TcpListener::bind(address).await.map(Self::Tcp).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => SurfaceError::PortTaken { name, address },
            _ => SurfaceError::Address { name, address, source },
        })
    }

    /// The socket is made under another name, closed to others, and then renamed: at no moment can anybody else
    /// connect, and a socket left by a crash is replaced.
    pub(crate) async fn unix(name: &'static str, path: &Path) -> Result<Self, SurfaceError> {
        let failed = |source| SurfaceError::Socket { name, path: path.to_owned(), source };
        match tokio::fs::symlink_metadata(path).await {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(failed(io::Error::other("there is a file of that name which is no socket; remove it")));
            }
            Ok(_) => {
                if matches!(timeout(SOCKET_PROBE_TIMEOUT, UnixStream::connect(path)).await, Ok(Ok(_)) | Err(_)) {
                    return Err(SurfaceError::SocketTaken { name, path: path.to_owned() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        let _ = tokio::fs::remove_file(&unfinished).await;
        let listener = UnixListener::bind(&unfinished).map_err(failed)?;
        let closed = std::fs::Permissions::from_mode(0o600);
        tokio::fs::set_permissions(&unfinished, closed).await.map_err(failed)?;
        let inode = tokio::fs::symlink_metadata(&unfinished).await.map_err(failed)?.ino();
        tokio::fs::rename(&unfinished, path).await.map_err(failed)?;
        Ok(Self::Unix(listener, SocketFile { path: path.to_owned(), inode }))
    }

    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(listener) => listener.local_addr().is_ok_and(|address| address.ip().is_loopback()),
            Self::Unix(..) => false,
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Tokens of a streamed answer are small and must not wait for each other.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream, peer))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let uid = Uid::from_raw(stream.peer_cred()?.uid());
                if uid != Uid::effective() && !uid.is_root() {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        format!("user {uid} is not the owner"),
                    ));
                }
                let owner = Caller { key_id: Uuid::nil(), name: format!("uid {uid}"), role: Role::Admin };
                Ok(Stream::Unix(stream, owner))
            }
        }
    }
}

/// Removes the socket's file in the end, unless another process has put its own there.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream, Caller),
}

impl Bound {
    pub(crate) fn new(name: &'static str, listener: Listener, router: Router) -> Self {
        Self { name, listener, router }
    }

    /// Where it listens; the port is the one the system chose when 0 was asked for. `None` on a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// Serves until `shutdown`. Then nothing new is accepted, answers under way get 8 s, and what is left is cut.
    ///
    /// Answers that never end by themselves (server-sent events) watch the same token and end their stream.
    /// Dropping the future cuts everything at once.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { name, listener, router } = self;
        let graceful = GracefulShutdown::new();
        let cut = CancellationToken::new();
        let _cut_in_the_end = cut.clone().drop_guard();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        match &listener {
            Listener::Tcp(tcp) => tracing::info!(surface = name, address = ?tcp.local_addr().ok(), "listening"),
            Listener::Unix(_, file) => tracing::info!(surface = name, path = %file.path.display(), "listening"),
        }
        loop {
            let next = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            };
            match shutdown.run_until_cancelled(next).await {
                None | Some((Err(_), _)) => break,
                Some((Ok(slot), Ok(stream))) => {
                    let connection = Connection {
                        router: router.clone(),
                        watcher: graceful.watcher(),
                        cut: cut.clone(),
                        _slot: slot,
                    };
                    match stream {
                        Stream::Tcp(stream, peer) => connection.spawn(stream, move |extensions| {
                            extensions.insert(ConnectInfo(peer));
                        }),
                        Stream::Unix(stream, owner) => connection.spawn(stream, move |extensions| {
                            extensions.insert(owner.clone());
                        }),
                    }
                }
                Some((Ok(_), Err(error))) => {
                    tracing::debug!(surface = name, %error, "a connection was not accepted");
                    if !is_of_the_connection(&error) {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        let open = graceful.count();
        if timeout(SHUTDOWN_GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!(surface = name, "answers still under way after {} s are cut", SHUTDOWN_GRACE.as_secs());
        }
        tracing::info!(surface = name, connections = open, "stopped");
    }
}

/// Whether the next accept may succeed right away.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected, PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected | PermissionDenied
    )
}

struct Connection {
    router: Router,
    watcher: Watcher,
    cut: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn spawn<S, M>(self, stream: S, mark: M)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        M: Fn(&mut Extensions) + Send + 'static,
    {
        let Self { router, watcher, cut, _slot: slot } = self;
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            mark(request.extensions_mut());
            router.clone().oneshot(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = watcher.watch(connection);
        tokio::spawn(async move {
            let _slot = slot;
            if let Some(Err(error)) = cut.run_until_cancelled(connection).await {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::response::Response;
    use axum::routing::get;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    const WAIT: Duration = Duration::from_secs(20);

    async fn serve(router: Router) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = Listener::tcp("example", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let bound = Bound::new("example", listener, router);
        let (address, shutdown) = (bound.local_addr().unwrap(), CancellationToken::new());
        (address, shutdown.clone(), tokio::spawn(bound.run(shutdown)))
    }

    /// Sends `text` and reads until the other side closes.
    async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, text: &str) -> String {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A connection that is cut may end in a reset; what came before it is what counts.
        let _ = timeout(WAIT, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const LAST_REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_slow_answer_ends_after_shutdown_and_nobody_else_gets_in() {
        let slow = get(|| async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            "the whole answer"
        });
        let (address, shutdown, running) = serve(Router::new().route("/", slow)).await;
        let mut early = TcpStream::connect(address).await.unwrap();
        let answer = tokio::spawn(async move { exchange(&mut early, REQUEST).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(TcpStream::connect(address).await.is_err(), "still accepting");
        assert!(!running.is_finished());
        assert!(answer.await.unwrap().ends_with("the whole answer"));
        timeout(Duration::from_secs(2), running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_cut_after_the_grace() {
        let endless = get(|| async {
            let pieces = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Ok::<_, io::Error>("more "), ()))
            });
            Response::new(Body::from_stream(pieces))
        });
        let (address, shutdown, running) = serve(Router::new().route("/", endless)).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = tokio::spawn(async move { exchange(&mut stream, REQUEST).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        shutdown.cancel();
        timeout(WAIT, running).await.unwrap().unwrap();
        let took = began.elapsed();
        assert!(took >= SHUTDOWN_GRACE && took < SHUTDOWN_GRACE + Duration::from_secs(2), "{took:?}");
        assert!(answer.await.unwrap().contains("more "));
    }

    #[tokio::test]
    async fn a_request_whose_head_does_not_come_is_given_up() {
        let (address, shutdown, running) = serve(Router::new()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let began = Instant::now();
        exchange(&mut stream, "GET / HTTP/1.1\r\nHost: loc").await;
        let took = began.elapsed();
        assert!(
            took >= HEAD_TIMEOUT - Duration::from_secs(1) && took < HEAD_TIMEOUT + Duration::from_secs(5),
            "{took:?}"
        );
        shutdown.cancel();
        timeout(WAIT, running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_what_to_do() {
        let listener = Listener::tcp("coordinator", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let Listener::Tcp(tcp) = &listener else { unreachable!("it was made for TCP") };
        let address = tcp.local_addr().unwrap();
        let error = Listener::tcp("coordinator", address).await.unwrap_err();
        assert!(matches!(error, SurfaceError::PortTaken { .. }));
        let said = error.to_string();
        assert!(said.contains(&address.to_string()) && said.contains("coordinator.listen"), "{said}");
        let nowhere = SocketAddr::from(([192, 0, 2, 1], 8092));
        let error = Listener::tcp("coordinator", nowhere).await.unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:8092"), "{error}");
    }

    #[tokio::test]
    async fn a_socket_is_closed_to_others_replaced_when_dead_and_refused_when_alive() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::unix("control", &path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let router =
            Router::new().route("/", get(|caller: Caller| async move { format!("{} {}", caller.name, caller.role) }));
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Bound::new("control", listener, router).run(shutdown.clone()));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let answer = exchange(&mut stream, LAST_REQUEST).await;
        assert!(answer.ends_with(&format!("uid {} admin", Uid::effective())), "{answer}");
        let error = Listener::unix("control", &path).await.unwrap_err();
        assert!(matches!(error, SurfaceError::SocketTaken { .. }), "{error}");
        shutdown.cancel();
        timeout(WAIT, running).await.unwrap().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the socket is gone");
        std::fs::write(&path, "a letter").unwrap();
        assert!(Listener::unix("control", &path).await.unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
    }
}
