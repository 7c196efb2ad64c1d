//! Who may pass: a key in `Authorization: Bearer` or `X-API-Key`, and a role that is high enough.
//!
//! A request costs one SHA-256 and one lookup in memory; PostgreSQL is asked in the background only.

use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use futures_util::future::Either;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use lares_store::Store;
use lares_store::keys::{self, Role};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service};
use utoipa::openapi::OpenApi;
use uuid::Uuid;

use crate::keyring::{self, Keyring};
use crate::metrics::Metrics;
use crate::openapi;
use crate::problem::{Problem, chain};
use crate::secret::{Secret, SecretError};

/// Header for clients that cannot set `Authorization`.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// What callers are told to wait when the keys are too old to be trusted.
const STALE_RETRY: Duration = Duration::from_secs(5);

/// Who sent a request. Handlers behind [`Gate::require`] take it as an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key that was shown; nil on a Unix socket.
    pub key_id: Uuid,
    /// The name the key was given.
    pub name: String,
    /// What the key may do.
    pub role: Role,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Refusal::Missing.into())
    }
}

/// The keys of the store, held in memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    keys: watch::Receiver<Keyring>,
    max_age: Duration,
    refusals: Family<RefusalLabels, Counter>,
}

/// Why the gate does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// Nobody could use the surface, so it does not start.
    #[error("there is no API key; make one with `lares key create NAME --role admin`, then start again")]
    NoKeys,
    /// The keys could not be read.
    #[error("the API keys could not be read: {0}")]
    Unreadable(String),
}

impl Gate {
    /// Reads all keys and keeps them up to date in the background until `shutdown`: a change announced by PostgreSQL
    /// is seen at once, any other within `config.keys_refresh`.
    ///
    /// # Errors
    /// [`GateError::NoKeys`] when no key is good: a surface that nobody may use is refused, never opened to all.
    pub async fn open(
        store: Store,
        config: &lares_config::Gate,
        shutdown: CancellationToken,
    ) -> Result<Self, GateError> {
        // Listening begins before the list is read, so no change falls between the two.
        let changes = store.listen(&[keys::CHANNEL]).await.map_err(|error| GateError::Unreadable(chain(&error)))?;
        let first = keyring::read(&store).await.map_err(GateError::Unreadable)?;
        if first.is_empty() {
            return Err(GateError::NoKeys);
        }
        let (sender, keys) = watch::channel(first);
        tokio::spawn(keyring::keep(store, changes, sender, config.keys_refresh, shutdown));
        Ok(Self { keys, max_age: config.keys_max_age, refusals: Family::default() })
    }

    #[cfg(test)]
    pub(crate) fn holding(keys: Vec<keys::Key>, read_at: std::time::Instant, max_age: Duration) -> Self {
        let (_, keys) = watch::channel(Keyring::new(keys, read_at));
        Self { keys, max_age, refusals: Family::default() }
    }

    /// A layer that lets requests through whose key has `role` or a higher one, with the [`Caller`] as an extension.
    /// Others get 401, 403, or 503 when the keys are older than `keys_max_age`.
    ///
    /// [`Surface::routes`](crate::Surface::routes) applies it.
    pub fn require(&self, role: Role) -> Require {
        Require { gate: self.clone(), role }
    }

    /// Whether the keys are recent enough to decide by.
    pub(crate) fn is_fresh(&self) -> Result<(), String> {
        let age = self.keys.borrow().age();
        if age <= self.max_age {
            return Ok(());
        }
        Err(format!("the keys were read {} s ago and may have changed; is PostgreSQL reachable?", age.as_secs()))
    }

    pub(crate) fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register("gate_refusals", "Requests refused by the gate, by reason", self.refusals.clone());
        });
    }

    fn admit(&self, headers: &HeaderMap, role: Role) -> Result<Caller, Refusal> {
        let secret = presented(headers)?;
        let keys = self.keys.borrow();
        if keys.age() > self.max_age {
            return Err(Refusal::Stale);
        }
        let caller = keys.find(&secret.hash()).ok_or(Refusal::Unknown)?;
        if caller.role < role {
            return Err(Refusal::Role { has: caller.role, needs: role });
        }
        Ok(caller.clone())
    }
}

/// The key a request shows.
fn presented(headers: &HeaderMap) -> Result<Secret, Refusal> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let bearer = match (shown.next(), shown.next()) {
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Refusal::Scheme),
        (Some(value), None) => bearer(value)?,
    };
    let value = match (bearer, headers.get(X_API_KEY)) {
        (Some(key), _) => key,
        (None, Some(value)) => value.to_str().map_err(|_| Refusal::Malformed(SecretError::Alphabet))?.trim(),
        (None, None) => return Err(Refusal::Missing),
    };
    if value.is_empty() {
        return Err(Refusal::Missing);
    }
    Secret::parse(value).map_err(Refusal::Malformed)
}

fn bearer(value: &HeaderValue) -> Result<Option<&str>, Refusal> {
    let value = value.to_str().map_err(|_| Refusal::Malformed(SecretError::Alphabet))?.trim();
    let (scheme, key) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.is_empty() {
        return Ok(None);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Scheme);
    }
    Ok(Some(key.trim()))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

/// Why a request may not pass.
#[derive(Debug)]
enum Refusal {
    Missing,
    Scheme,
    Malformed(SecretError),
    Unknown,
    Role { has: Role, needs: Role },
    Stale,
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Scheme | Self::Malformed(_) => "malformed",
            Self::Unknown => "unknown",
            Self::Role { .. } => "role",
            Self::Stale => "stale",
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let unauthorized = |slug, detail: String, challenge| {
            Self::new(StatusCode::UNAUTHORIZED, slug, detail)
                .header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
        };
        const PLAIN: &str = r#"Bearer realm="lares""#;
        const INVALID: &str = r#"Bearer realm="lares", error="invalid_token""#;
        match refusal {
            Refusal::Missing => unauthorized(
                "missing-api-key",
                "send an API key as `Authorization: Bearer lares_…` or `X-API-Key: lares_…`".to_owned(),
                PLAIN,
            ),
            Refusal::Scheme => unauthorized(
                "malformed-api-key",
                "one `Authorization` header of the form `Bearer lares_…` is expected".to_owned(),
                PLAIN,
            ),
            Refusal::Malformed(error) => unauthorized("malformed-api-key", error.to_string(), INVALID),
            Refusal::Unknown => unauthorized(
                "invalid-api-key",
                "this API key is not known here, or was revoked; `lares key list` shows the ones that are good".to_owned(),
                INVALID,
            ),
            Refusal::Role { has, needs } => Self::new(
                StatusCode::FORBIDDEN,
                "role-too-low",
                format!("this needs a key with role `{needs}`; the key you sent has role `{has}`"),
            ),
            Refusal::Stale => Self::unavailable(
                "keys-too-old",
                "the list of API keys is too old to trust because PostgreSQL could not be reached; nobody passes until it can",
            )
            .retry_after(STALE_RETRY),
        }
    }
}

/// The layer made by [`Gate::require`].
#[derive(Debug, Clone)]
pub struct Require {
    gate: Gate,
    role: Role,
}

impl<S> Layer<S> for Require {
    type Service = Required<S>;

    fn layer(&self, inner: S) -> Required<S> {
        Required { inner, require: self.clone() }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub struct Required<S> {
    inner: S,
    require: Require,
}

impl<S> Service<Request> for Required<S>
where
    S: Service<Request, Response = Response>,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let Require { gate, role } = &self.require;
        match gate.admit(request.headers(), *role) {
            Ok(caller) => {
                tracing::Span::current().record("caller", caller.name.as_str());
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(refusal) => {
                let reason = refusal.reason();
                gate.refusals.get_or_create(&RefusalLabels { reason }).inc();
                tracing::info!(reason, "request refused");
                Either::Right(ready(Ok(Problem::from(refusal).into_response())))
            }
        }
    }
}

/// What stands before the protected routes of a surface. Implemented by [`Gate`] and by
/// [`Owner`](crate::Owner), and by nothing else, since no other module can name it.
pub trait Guard: Send + Sync + 'static {
    /// Puts every route of `router` behind the guard.
    fn protect(&self, router: Router, role: Role) -> Router;
    /// Says in `doc` what the guard asks for.
    fn document(&self, doc: &mut OpenApi, role: Role);
}

impl Guard for Gate {
    fn protect(&self, router: Router, role: Role) -> Router {
        router.route_layer(self.require(role))
    }

    fn document(&self, doc: &mut OpenApi, role: Role) {
        openapi::require_key(doc, role);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{body, key};
    use axum::body::Body;
    use axum::routing::get;
    use std::time::Instant;
    use tower::ServiceExt;

    const HOUR: Duration = Duration::from_secs(3600);

    fn app(gate: &Gate) -> Router {
        Router::new()
            .route("/", get(|caller: Caller| async move { caller.name }))
            .route_layer(gate.require(Role::Operator))
    }

    async fn ask(gate: &Gate, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app(gate).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_key_with_the_role_or_a_higher_one_passes_in_either_header() {
        let (operator, o) = key("olga", Role::Operator);
        let (admin, a) = key("anna", Role::Admin);
        let gate = Gate::holding(vec![o, a], Instant::now(), HOUR);
        for (secret, name) in [(&operator, "olga"), (&admin, "anna")] {
            let bearer = format!("bearer {}", secret.expose());
            for header in [("Authorization", bearer.as_str()), ("X-API-Key", secret.expose())] {
                let response = ask(&gate, &[header]).await;
                assert_eq!(response.status(), 200);
                assert_eq!(body(response).await, name);
            }
        }
    }

    #[tokio::test]
    async fn every_refusal_says_why_and_is_counted() {
        let (viewer, v) = key("vera", Role::Viewer);
        let (revoked, mut r) = key("rita", Role::Admin);
        r.revoked_at = Some(r.created_at);
        let gate = Gate::holding(vec![v, r], Instant::now(), HOUR);
        let (viewer, revoked) = (format!("Bearer {}", viewer.expose()), format!("Bearer {}", revoked.expose()));
        let unknown = format!("Bearer {}", Secret::generate().unwrap().expose());
        let mistyped = unknown[..unknown.len() - 1].to_owned();
        for (headers, status, slug, said) in [
            (vec![], 401, "missing-api-key", "Authorization: Bearer"),
            (vec![("authorization", "Bearer ")], 401, "missing-api-key", "Bearer"),
            (vec![("authorization", "Basic YTpi")], 401, "malformed-api-key", "Bearer"),
            (
                vec![("authorization", viewer.as_str()), ("authorization", viewer.as_str())],
                401,
                "malformed-api-key",
                "one",
            ),
            (vec![("authorization", mistyped.as_str())], 401, "malformed-api-key", "mistyped"),
            (vec![("x-api-key", "sk-123")], 401, "malformed-api-key", "lares_"),
            (vec![("authorization", unknown.as_str())], 401, "invalid-api-key", "lares key list"),
            (vec![("authorization", revoked.as_str())], 401, "invalid-api-key", "revoked"),
            (vec![("authorization", viewer.as_str())], 403, "role-too-low", "operator"),
        ] {
            let response = ask(&gate, &headers).await;
            assert_eq!(response.status(), status, "{slug}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), status == 401);
            let problem = response.extensions().get::<Problem>().unwrap().clone();
            assert_eq!(problem.slug(), slug);
            assert!(problem.detail().contains(said), "{}", problem.detail());
            let body = body(response).await;
            assert!(headers.iter().all(|(_, sent)| sent.len() < 20 || !body.contains(&sent[7..])), "a key comes back");
        }
        let metrics = Metrics::new();
        gate.register(&metrics);
        for line in [
            r#"lares_gate_refusals_total{reason="missing"} 2"#,
            r#"lares_gate_refusals_total{reason="malformed"} 4"#,
            r#"lares_gate_refusals_total{reason="unknown"} 2"#,
            r#"lares_gate_refusals_total{reason="role"} 1"#,
        ] {
            assert!(metrics.encode().contains(line), "{line}");
        }
    }

    #[tokio::test]
    async fn keys_that_are_too_old_let_nobody_pass() {
        let (secret, key) = key("anna", Role::Admin);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        let gate = Gate::holding(vec![key], long_ago, Duration::from_secs(1));
        let response = ask(&gate, &[("x-api-key", secret.expose())]).await;
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(http::header::RETRY_AFTER));
        assert!(gate.is_fresh().unwrap_err().contains("PostgreSQL"));
    }
}
