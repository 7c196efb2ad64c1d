//! The control socket of `lares up`: what runs, and start, stop, restart and logs of a unit.
//!
//! It is a Unix socket with mode 0600 in the state directory, so whoever may open it owns the stack.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State as Shared};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lares_gate::{Json, Metrics, Problem, Surface};
use lares_units::{ControlError, FeedItem, LogLine, Supervisor, UnitStatus};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

/// What a running `lares up` says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overview {
    /// Where everything is.
    pub state_dir: PathBuf,
    /// Process id of `lares up`.
    pub pid: u32,
    /// Its units.
    pub units: Vec<UnitStatus>,
}

/// `lares up` does not run, or not with this state directory.
#[derive(Debug, thiserror::Error)]
#[error("`lares up` is not running with the state directory {} ({cause}); start it, or name another with --state-dir", state_dir.display())]
pub struct NotRunning {
    state_dir: PathBuf,
    cause: std::io::Error,
}

/// Where the socket is.
fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("run/control.sock")
}

#[derive(Clone)]
struct Control {
    supervisor: Supervisor,
    state_dir: PathBuf,
}

/// Serves the control socket until `shutdown`.
pub async fn serve(supervisor: Supervisor, state_dir: &Path, shutdown: CancellationToken) -> Result<()> {
    let context = Control { supervisor, state_dir: state_dir.to_owned() };
    let routes = OpenApiRouter::new()
        .route("/overview", get(overview))
        .route("/units/{unit}/start", post(start))
        .route("/units/{unit}/stop", post(stop))
        .route("/units/{unit}/restart", post(restart))
        .route("/units/{unit}/logs", get(logs))
        .with_state(context);
    let surface = Surface::on_socket("up", Metrics::new()).public(routes);
    Ok(surface.serve_unix(&socket(state_dir), shutdown).await?)
}

async fn overview(Shared(context): Shared<Control>) -> Json<Overview> {
    Json(Overview {
        state_dir: context.state_dir.clone(),
        pid: std::process::id(),
        units: context.supervisor.list().await,
    })
}

async fn start(Shared(context): Shared<Control>, UrlPath(unit): UrlPath<String>) -> Result<Json<UnitStatus>, Problem> {
    context.supervisor.start(&unit).await.map_err(|error| problem(&error))?;
    status_of(&context, &unit).await
}

async fn stop(Shared(context): Shared<Control>, UrlPath(unit): UrlPath<String>) -> Result<Json<UnitStatus>, Problem> {
    context.supervisor.stop(&unit).await.map_err(|error| problem(&error))?;
    status_of(&context, &unit).await
}

async fn restart(
    Shared(context): Shared<Control>,
    UrlPath(unit): UrlPath<String>,
) -> Result<Json<UnitStatus>, Problem> {
    context.supervisor.restart(&unit).await.map_err(|error| problem(&error))?;
    status_of(&context, &unit).await
}

async fn status_of(context: &Control, unit: &str) -> Result<Json<UnitStatus>, Problem> {
    context.supervisor.status(unit).await.map(Json).map_err(|error| problem(&error))
}

fn problem(error: &ControlError) -> Problem {
    let (status, slug) = match error {
        ControlError::Unknown { .. } => (StatusCode::NOT_FOUND, "unit-not-found"),
        ControlError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting-down"),
        _ => (StatusCode::CONFLICT, "unit-not-changed"),
    };
    Problem::new(status, slug, error.to_string())
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    lines: usize,
    #[serde(default)]
    follow: bool,
}

/// The log as JSON lines; with `follow` it does not end.
async fn logs(
    Shared(context): Shared<Control>,
    UrlPath(unit): UrlPath<String>,
    Query(query): Query<LogQuery>,
) -> Result<impl IntoResponse, Problem> {
    let (past, live) = context.supervisor.follow_from(&unit, query.lines).map_err(|error| problem(&error))?;
    let past = stream::iter(past);
    let body = if query.follow {
        let live = live.filter_map(|item| async {
            match item {
                FeedItem::Item(line) => Some(line),
                FeedItem::Missed(_) => None,
            }
        });
        Body::from_stream(past.chain(live).map(|line| json_line(&line)))
    } else {
        Body::from_stream(past.map(|line| json_line(&line)))
    };
    Ok(([(http::header::CONTENT_TYPE, "application/x-ndjson")], body))
}

fn json_line(line: &LogLine) -> Result<Bytes, serde_json::Error> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// The other end: commands that ask a running `lares up`.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
}

impl Client {
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    /// What runs where.
    pub async fn overview(&self) -> Result<Overview> {
        self.json(Method::GET, "/overview", Duration::from_secs(10)).await
    }

    /// Starts, stops or restarts a unit, and waits for it.
    pub async fn change(&self, unit: &str, verb: &str) -> Result<UnitStatus> {
        // Loading a large model from a slow disk takes minutes; the supervisor's own limit is shorter.
        self.json(Method::POST, &format!("/units/{}/{verb}", escape(unit)), Duration::from_secs(300)).await
    }

    /// A unit's log, line by line; with `follow` until the connection ends.
    pub async fn logs(
        &self,
        unit: &str,
        lines: usize,
        follow: bool,
        mut each: impl FnMut(LogLine) -> Result<()>,
    ) -> Result<()> {
        let path = format!("/units/{}/logs?lines={lines}&follow={follow}", escape(unit));
        let mut body = self.send(Method::GET, &path, Duration::from_secs(10)).await?;
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                each(serde_json::from_slice(&line).context("a log line cannot be read")?)?;
            }
        }
        Ok(())
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, method: Method, path: &str, limit: Duration) -> Result<T> {
        let answer = async {
            let body = self.send(method, path, limit).await?.collect().await?.to_bytes();
            serde_json::from_slice(&body).context("`lares up` answered something this version does not understand")
        };
        tokio::time::timeout(limit, answer).await.context("`lares up` does not answer")?
    }

    async fn send(&self, method: Method, path: &str, limit: Duration) -> Result<Incoming> {
        let stream = UnixStream::connect(socket(&self.state_dir))
            .await
            .map_err(|cause| NotRunning { state_dir: self.state_dir.clone(), cause })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request =
            Request::builder().method(method).uri(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
        let response =
            tokio::time::timeout(limit, sender.send_request(request)).await.context("`lares up` does not answer")??;
        let (parts, body) = response.into_parts();
        if !parts.status.is_success() {
            let body = body.collect().await?.to_bytes();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            bail!("{}", problem["detail"].as_str().unwrap_or("`lares up` refused without a reason"));
        }
        Ok(body)
    }
}

/// A unit's name as a part of a path; its `@` and `:` may stand there as they are.
fn escape(unit: &str) -> String {
    unit.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.:@".contains(c) { c } else { '_' }).collect()
}
