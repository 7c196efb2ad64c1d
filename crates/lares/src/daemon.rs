//! Talking to a daemon over HTTP as a client: the key, the errors it answers with, and what to do about them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lares_config::Config;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{daemon} does not answer on {address}: {cause}. {}", hint(daemon))]
    Unreachable { daemon: &'static str, address: SocketAddr, cause: String },
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Refused(String),
    #[error("{daemon} answered something this version does not understand: {cause}")]
    Strange { daemon: &'static str, cause: String },
    #[error(
        "no key: {} cannot be read ({cause}). `lares up` makes one there; elsewhere set LARES_API_KEY_FILE to the file with your key",
        path.display()
    )]
    NoKey { path: PathBuf, cause: std::io::Error },
}

const HEALER: &str = "the healer";
const TOOLS: &str = "the tools daemon";

/// What to look at when a daemon does not answer.
fn hint(daemon: &str) -> &'static str {
    if daemon == HEALER {
        return "`lares status` shows whether it runs; `lares heal dry-run` works without it";
    }
    if daemon == TOOLS {
        return "`lares up` runs it with everything else, `lares serve tools` alone, under systemd `systemctl start \
                lares-tools`; `lares status` shows what runs";
    }
    "Is `lares up` running? `lares status` shows what is"
}

/// A path of a URL with its query, whatever the parts hold.
pub fn path(segments: &[&str], query: &[(&str, &str)]) -> String {
    let mut text: String = segments.iter().map(|segment| format!("/{}", encoded(segment))).collect();
    for (index, (name, value)) in query.iter().enumerate() {
        let sign = if index == 0 { '?' } else { '&' };
        text.push_str(&format!("{sign}{}={}", encoded(name), encoded(value)));
    }
    text
}

fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A daemon as its clients see it.
pub struct Daemon {
    name: &'static str,
    address: SocketAddr,
    key: String,
    http: reqwest::Client,
}

impl Daemon {
    /// ralph, at the address the configuration gives.
    pub fn ralph(config: &Config) -> Result<Self, Error> {
        Self::new("ralph", config.ralph.listen, config)
    }

    /// The healer, at the address the configuration gives.
    pub fn healer(config: &Config) -> Result<Self, Error> {
        Self::new(HEALER, config.healer.listen, config)
    }

    /// The tools daemon, at the address the configuration gives.
    pub fn tools(config: &Config) -> Result<Self, Error> {
        Self::new(TOOLS, config.tools.listen, config)
    }

    fn new(name: &'static str, address: SocketAddr, config: &Config) -> Result<Self, Error> {
        let path = std::env::var_os("LARES_API_KEY_FILE").map_or_else(|| config.admin_key_file(), PathBuf::from);
        Ok(Self { name, address, key: read_key(&path)?, http: client(name)? })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address)).bearer_auth(&self.key)
    }

    /// Asks and reads the JSON of the answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(self.request(Method::GET, path).timeout(Duration::from_secs(30))).await
    }

    /// Sends JSON and reads the JSON of the answer.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Error> {
        self.json(self.request(Method::POST, path).timeout(Duration::from_secs(60)).json(body)).await
    }

    /// Sends JSON and reads the JSON of the answer, which may take as long as `limit`.
    pub async fn post_within<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, Error> {
        self.json(self.request(Method::POST, path).timeout(limit).json(body)).await
    }

    /// Asks for something that has no body, and reads the JSON of the answer.
    pub async fn command<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(self.request(Method::POST, path).timeout(Duration::from_secs(60))).await
    }

    /// Asks and reads the answer as text.
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        let response = self.send(self.request(Method::GET, path).timeout(Duration::from_secs(30))).await?;
        response.text().await.map_err(|error| self.strange(&error))
    }

    /// Opens a stream of server-sent events, from after the event with this id.
    pub async fn events(&self, path: &str, after: Option<&str>) -> Result<Response, Error> {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        self.send(request).await
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.send(request).await?;
        response.json().await.map_err(|error| self.strange(&error))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| Error::Unreachable {
            daemon: self.name,
            address: self.address,
            cause: innermost(&error),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        let message = problem_text(status, &body);
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Denied(message),
            StatusCode::NOT_FOUND => Error::NotFound(message),
            _ => Error::Refused(message),
        })
    }

    fn strange(&self, error: &reqwest::Error) -> Error {
        Error::Strange { daemon: self.name, cause: innermost(error) }
    }
}

/// A client that never goes through a proxy: daemons are on this machine.
fn client(daemon: &'static str) -> Result<reqwest::Client, Error> {
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| Error::Strange { daemon, cause: innermost(&error) })
}

fn read_key(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|cause| Error::NoKey { path: path.to_owned(), cause })
}

/// The sentence of an RFC 9457 answer, with the fields it complains about.
fn problem_text(status: StatusCode, body: &str) -> String {
    let Ok(problem) = serde_json::from_str::<serde_json::Value>(body) else {
        return format!("{status}: {}", body.chars().take(300).collect::<String>());
    };
    let field = |name: &str| problem.get(name).and_then(|value| value.as_str());
    let mut text = field("detail").or_else(|| field("title")).unwrap_or(body).to_owned();
    for error in problem.get("errors").and_then(|errors| errors.as_array()).into_iter().flatten() {
        let part = |names: &[&str]| names.iter().find_map(|name| error.get(name).and_then(|value| value.as_str()));
        match (part(&["field", "pointer", "name"]), part(&["message", "detail"])) {
            (Some(field), Some(message)) => text.push_str(&format!("\n  {field}: {message}")),
            (None, Some(message)) => text.push_str(&format!("\n  {message}")),
            _ => {}
        }
    }
    text
}

/// The cause at the bottom of a chain of errors: the others only repeat that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_part_of_a_path() {
        assert_eq!(
            path(&["api", "a/../b?c"], &[("unit", r"x\x2d@1.service"), ("open", "true")]),
            "/api/a%2F..%2Fb%3Fc?unit=x%5Cx2d%401.service&open=true"
        );
    }

    #[test]
    fn a_problem_is_told_with_its_fields() {
        let body = r#"{"title":"Invalid","detail":"the task cannot be taken","errors":[{"field":"repo","message":"is not a git repository"}]}"#;
        assert_eq!(
            problem_text(StatusCode::BAD_REQUEST, body),
            "the task cannot be taken\n  repo: is not a git repository"
        );
        assert_eq!(problem_text(StatusCode::BAD_GATEWAY, "<html>"), "502 Bad Gateway: <html>");
    }
}
