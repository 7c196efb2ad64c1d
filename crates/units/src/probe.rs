//! Asking a unit whether it works.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};

/// One try takes at most this long. A healthy unit answers within milliseconds; a unit silent for so long serves nobody.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait before the first try on a starting unit; few programs are up sooner.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Longest wait between two tries on a starting unit: what readiness may be noticed too late by.
const INTERVAL_MAX: Duration = Duration::from_millis(500);

/// A check written by whoever composes the stack. Dropped when it takes too long.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// How to tell that a unit works.
#[derive(Clone)]
#[non_exhaustive]
pub enum Probe {
    /// It works while its process runs.
    Alive,
    /// A GET of this `http://` address answers 2xx.
    Http {
        /// The address.
        url: String,
    },
    /// Something accepts connections here.
    Tcp(SocketAddr),
    /// Something accepts connections on this Unix socket.
    UnixSocket(PathBuf),
    /// The check succeeds.
    Check(Check),
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alive => f.write_str("Alive"),
            Self::Http { url } => write!(f, "Http({url})"),
            Self::Tcp(address) => write!(f, "Tcp({address})"),
            Self::UnixSocket(path) => write!(f, "UnixSocket({})", path.display()),
            Self::Check(_) => f.write_str("Check"),
        }
    }
}

impl Probe {
    /// A probe out of an async closure.
    pub fn check<F, Fut>(check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self::Check(Arc::new(move || Box::pin(check())))
    }

    /// Whether this can work at all.
    pub(crate) fn validate(&self) -> Result<(), String> {
        match self {
            Self::Http { url } => http_target(url).map(drop),
            Self::Alive | Self::Tcp(_) | Self::UnixSocket(_) | Self::Check(_) => Ok(()),
        }
    }

    /// One try, within its time limit.
    pub(crate) async fn attempt(&self) -> Result<(), String> {
        match tokio::time::timeout(TRY_TIMEOUT, self.ask()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} s", TRY_TIMEOUT.as_secs())),
        }
    }

    async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Alive => Ok(()),
            Self::Http { url } => http_get(url).await,
            Self::Tcp(address) => match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{address}: {error}")),
            },
            Self::UnixSocket(path) => match UnixStream::connect(path).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{}: {error}", path.display())),
            },
            Self::Check(check) => check().await,
        }
    }
}

/// Wait before try number `attempt` (from 0) on a starting unit: rises by half each time.
pub(crate) fn interval(attempt: u32) -> Duration {
    let factor = 1.5_f64.powi(i32::try_from(attempt.min(32)).unwrap_or(32));
    INTERVAL_MIN.mul_f64(factor).min(INTERVAL_MAX)
}

fn http_target(url: &str) -> Result<(Uri, String), String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url}: only http:// addresses can be probed"));
    }
    let host = uri.host().ok_or_else(|| format!("{url}: no host"))?;
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    Ok((uri, address))
}

async fn http_get(url: &str) -> Result<(), String> {
    let (uri, address) = http_target(url)?;
    let say = |error: &dyn fmt::Display| format!("{url}: {error}");
    let stream = TcpStream::connect(&address).await.map_err(|error| say(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| say(&error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, &address)
        .header(USER_AGENT, "lares-units")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| say(&error))?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    let response = tokio::select! {
        biased;
        response = &mut answer => response.map_err(|error| say(&error))?,
        ended = &mut connection => match ended {
            Ok(()) => answer.await.map_err(|error| say(&error))?,
            Err(error) => return Err(say(&error)),
        },
    };
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(format!("{url}: {status}")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn http_is_ready_on_2xx_only() {
        let good = server("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!(Probe::Http { url: format!("http://{good}/health?x=1") }.attempt().await, Ok(()));
        let loading = server("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let error = Probe::Http { url: format!("http://{loading}") }.attempt().await.unwrap_err();
        assert!(error.ends_with("503 Service Unavailable"), "{error}");
        let silent = server("").await;
        assert!(Probe::Http { url: format!("http://{silent}/") }.attempt().await.is_err());
    }

    #[tokio::test]
    async fn a_socket_is_ready_when_somebody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert!(Probe::UnixSocket(path.clone()).attempt().await.is_err());
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert_eq!(Probe::UnixSocket(path).attempt().await, Ok(()));
        let address = server("").await;
        assert_eq!(Probe::Tcp(address).attempt().await, Ok(()));
    }

    #[tokio::test]
    async fn a_probe_that_hangs_is_given_up() {
        let error = Probe::check(std::future::pending).attempt().await.unwrap_err();
        assert_eq!(error, "no answer within 2 s");
    }

    #[test]
    fn an_address_that_cannot_be_probed_is_refused_before_the_start() {
        assert!(Probe::Http { url: "https://localhost/".into() }.validate().is_err());
        assert!(Probe::Http { url: "localhost:80".into() }.validate().is_err());
        assert!(Probe::Http { url: "http://[::1]:8080/health".into() }.validate().is_ok());
    }

    #[test]
    fn tries_begin_quickly_and_become_rarer() {
        assert_eq!(interval(0), Duration::from_millis(50));
        assert_eq!(interval(1), Duration::from_millis(75));
        assert_eq!(interval(u32::MAX), Duration::from_millis(500));
    }
}
