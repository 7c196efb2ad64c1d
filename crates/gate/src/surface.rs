//! Everything one daemon serves over HTTP, put together: its own routes behind the gate, and the ones every daemon has.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Role;
use crate::auth::{Gate, Guard};
use crate::connections::{Bound, Listener, SurfaceError};
use crate::host::Hosts;
use crate::json::Json;
use crate::metrics::{self, Metrics, RequestMetrics};
use crate::openapi;
use crate::ready::{Checks, Readiness, ReadyStatus};
use crate::request::{Observer, observe};

/// Largest request body, in bytes, of a surface that does not say.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// The HTTP surface of a daemon. Routes are protected unless they are added with [`Surface::public`].
///
/// Beside them it serves `/health` and `/ready` to everybody, `/metrics` and `/openapi.json` to viewers. A surface on
/// TCP cannot be made without a [`Gate`].
pub struct Surface<G = Gate> {
    name: &'static str,
    guard: G,
    metrics: Metrics,
    about: Option<String>,
    router: Router,
    doc: OpenApi,
    checks: Checks,
    max_body: usize,
    openai_below: Option<&'static str>,
}

impl<G> fmt::Debug for Surface<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surface").field("name", &self.name).field("checks", &self.checks).finish_non_exhaustive()
    }
}

/// The guard of a surface on a Unix socket: the kernel lets only the socket's owner and root connect, so every caller
/// is an admin.
#[derive(Debug, Clone, Copy)]
pub struct Owner;

impl Guard for Owner {
    fn protect(&self, router: Router, _: Role) -> Router {
        router
    }

    fn document(&self, _: &mut OpenApi, _: Role) {}
}

impl Surface<Gate> {
    /// A surface on TCP. `name` is the daemon's, as in the configuration. Its own metrics are registered in `metrics`,
    /// so one registry serves one surface.
    pub fn new(name: &'static str, gate: Gate, metrics: Metrics) -> Self {
        gate.register(&metrics);
        let watched = gate.clone();
        let mut surface = Self::guarded_by(gate, name, metrics);
        openapi::add_key_schemes(&mut surface.doc);
        surface.ready_check("keys", move || std::future::ready(watched.is_fresh()))
    }

    /// Listens on `listen` (port 0: the system chooses) without accepting yet.
    ///
    /// # Errors
    /// When the address is taken or cannot be used.
    pub async fn bind(self, listen: SocketAddr) -> Result<Bound, SurfaceError> {
        let listener = Listener::tcp(self.name, listen).await?;
        Ok(self.bound_to(listener))
    }

    /// Listens and serves until `shutdown`; see [`Bound::run`].
    ///
    /// # Errors
    /// When the address is taken or cannot be used.
    pub async fn serve(self, listen: SocketAddr, shutdown: CancellationToken) -> Result<(), SurfaceError> {
        self.bind(listen).await?.run(shutdown).await;
        Ok(())
    }
}

impl Surface<Owner> {
    /// A surface on a Unix socket with mode 0600. It needs no keys; the caller of every request is an admin.
    pub fn on_socket(name: &'static str, metrics: Metrics) -> Self {
        Self::guarded_by(Owner, name, metrics)
    }

    /// Makes the socket without accepting yet. One left by a process that died is replaced. The file goes away with
    /// what is returned.
    ///
    /// # Errors
    /// When somebody answers on the socket, or it cannot be made.
    pub async fn bind_unix(self, path: &Path) -> Result<Bound, SurfaceError> {
        let listener = Listener::unix(self.name, path).await?;
        Ok(self.bound_to(listener))
    }

    /// Makes the socket and serves until `shutdown`; see [`Bound::run`].
    ///
    /// # Errors
    /// When somebody answers on the socket, or it cannot be made.
    pub async fn serve_unix(self, path: &Path, shutdown: CancellationToken) -> Result<(), SurfaceError> {
        self.bind_unix(path).await?.run(shutdown).await;
        Ok(())
    }
}

impl<G: Guard> Surface<G> {
    fn guarded_by(guard: G, name: &'static str, metrics: Metrics) -> Self {
        Self {
            name,
            guard,
            metrics,
            about: None,
            router: Router::new(),
            doc: openapi::begin(name),
            checks: Checks::default(),
            max_body: MAX_BODY,
            openai_below: None,
        }
    }

    /// What the surface is for, in the OpenAPI document.
    #[must_use]
    pub fn describe(mut self, about: impl Into<String>) -> Self {
        self.about = Some(about.into());
        self
    }

    /// Adds routes for callers with `role` or a higher one.
    #[must_use]
    pub fn routes(mut self, role: Role, routes: OpenApiRouter) -> Self {
        let (router, mut doc) = routes.split_for_parts();
        self.guard.document(&mut doc, role);
        let router = if router.has_routes() { self.guard.protect(router, role) } else { router };
        self.router = self.router.merge(router);
        self.doc.merge(doc);
        self
    }

    /// Adds routes for everybody.
    #[must_use]
    pub fn public(mut self, routes: OpenApiRouter) -> Self {
        let (router, doc) = routes.split_for_parts();
        self.router = self.router.merge(router);
        self.doc.merge(doc);
        self
    }

    /// Gives every error below this path (a missing key, an unknown route, a panic, a handler's own) the shape of
    /// OpenAI's API, which its client libraries turn into their exceptions.
    #[must_use]
    pub fn openai_errors_below(mut self, prefix: &'static str) -> Self {
        self.openai_below = Some(prefix);
        self
    }

    /// Largest request body in bytes; 2 MiB when it is not set.
    #[must_use]
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Adds a dependency to `/ready`. The check says what is wrong with it; it gets 2 s.
    ///
    /// What it says is shown to everybody: no secrets, no connection strings.
    #[must_use]
    pub fn ready_check<C, F>(mut self, name: &'static str, check: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.add(name, check);
        self
    }

    /// All routes with everything that stands before them, for tests without a socket.
    pub fn router(self) -> Router {
        self.into_router(Hosts::Loopback)
    }

    fn bound_to(self, listener: Listener) -> Bound {
        let hosts = if listener.is_loopback() { Hosts::Loopback } else { Hosts::Any };
        Bound::new(self.name, listener, self.into_router(hosts))
    }

    fn into_router(self, hosts: Hosts) -> Router {
        let own = Arc::new(Own {
            name: self.name,
            started: Instant::now(),
            checks: self.checks,
            metrics: self.metrics.clone(),
            doc: OnceLock::new(),
        });
        let open = OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).with_state(Arc::clone(&own));
        let (open, open_doc) = open.split_for_parts();
        let guarded =
            OpenApiRouter::new().routes(routes!(print_metrics)).routes(routes!(document)).with_state(Arc::clone(&own));
        let (guarded, mut guarded_doc) = guarded.split_for_parts();
        self.guard.document(&mut guarded_doc, Role::Viewer);

        let mut doc = self.doc;
        doc.info.description = self.about;
        doc.merge(open_doc);
        doc.merge(guarded_doc);
        openapi::add_default_problem(&mut doc);
        if let Some(prefix) = self.openai_below {
            openapi::shape_as_openai(&mut doc, prefix);
        }
        own.doc.get_or_init(|| doc.to_json().unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string())));

        let observer = Observer {
            metrics: RequestMetrics::register(&self.metrics),
            hosts,
            max_body: self.max_body,
            openai_below: self.openai_below,
        };
        self.router
            .merge(open)
            .merge(self.guard.protect(guarded, Role::Viewer))
            .layer(DefaultBodyLimit::max(self.max_body))
            .layer(axum::middleware::from_fn_with_state(observer, observe))
    }
}

/// What the routes that every surface has work with.
#[derive(Debug)]
struct Own {
    name: &'static str,
    started: Instant,
    checks: Checks,
    metrics: Metrics,
    doc: OnceLock<String>,
}

/// The answer of `/health`.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// Always `alive`: a process that is not does not answer.
    #[schema(example = "alive")]
    status: &'static str,
    /// The daemon.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// Whole seconds since it began to serve.
    uptime_seconds: u64,
}

/// Whether the process is alive. Says nothing about what it depends on.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, body = Health)))]
async fn health(State(own): State<Arc<Own>>) -> Json<Health> {
    Json(Health {
        status: "alive",
        name: own.name,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: own.started.elapsed().as_secs(),
    })
}

/// Whether everything that requests depend on is there. Answers within about 2 s.
#[utoipa::path(get, path = "/ready", tag = "operation", responses(
    (status = 200, description = "Ready", body = Readiness),
    (status = 503, description = "Not ready; the checks say why", body = Readiness),
))]
async fn ready(State(own): State<Arc<Own>>) -> Response {
    let readiness = own.checks.run().await;
    let status = match readiness.status {
        ReadyStatus::Ready => StatusCode::OK,
        ReadyStatus::NotReady => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(readiness)).into_response()
}

/// Counters and histograms in the OpenMetrics text format, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text"),
))]
async fn print_metrics(State(own): State<Arc<Own>>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], own.metrics.encode()).into_response()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", responses((status = 200, body = serde_json::Value)))]
async fn document(State(own): State<Arc<Own>>) -> Response {
    let doc = own.doc.get().cloned().unwrap_or_default();
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], doc).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::problem::Problem;
    use crate::secret::Secret;
    use crate::testing::{body, key};
    use axum::body::{Body, Bytes};
    use http::Request;
    use lares_store::keys::Key;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use std::time::Duration;
    use tower::ServiceExt;

    #[derive(Debug, Deserialize, Serialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    struct Order {
        count: u8,
    }

    /// Says back what was ordered.
    #[utoipa::path(post, path = "/v1/orders", request_body = Order, responses((status = 200, body = Order)))]
    async fn order(Json(order): Json<Order>) -> Result<Json<Order>, Problem> {
        match order.count {
            0 => Err(Problem::conflict("nothing-ordered", "order at least one").error("count", "is zero")),
            13 => panic!("a bug"),
            _ => Ok(Json(order)),
        }
    }

    #[utoipa::path(get, path = "/raw/{number}", params(("number" = u8, Path)), responses((status = 200)))]
    async fn raw(_number: axum::extract::Path<u8>) -> StatusCode {
        StatusCode::NOT_FOUND
    }

    #[utoipa::path(post, path = "/length", request_body = String, responses((status = 200)))]
    async fn length(bytes: Bytes) -> String {
        bytes.len().to_string()
    }

    fn surface(keys: Vec<Key>) -> Surface {
        let gate = Gate::holding(keys, Instant::now(), Duration::from_secs(60));
        Surface::new("example", gate, Metrics::new())
            .describe("A surface for tests.")
            .openai_errors_below("/v1")
            .max_body(64)
            .routes(Role::Client, OpenApiRouter::new().routes(routes!(order)))
            .routes(Role::Operator, OpenApiRouter::new().routes(routes!(raw)).routes(routes!(length)))
    }

    struct Fixture {
        router: Router,
        admin: Secret,
    }

    impl Fixture {
        fn new() -> Self {
            let (admin, key) = key("anna", Role::Admin);
            Self { router: surface(vec![key]).router(), admin }
        }

        async fn send(&self, method: &str, path: &str, sent: Option<Value>) -> Response {
            let request = Request::builder().method(method).uri(path).header("x-api-key", self.admin.expose());
            let request = request.header(CONTENT_TYPE, "application/json");
            let sent = sent.map_or_else(Body::empty, |sent| Body::from(sent.to_string()));
            self.router.clone().oneshot(request.body(sent).unwrap()).await.unwrap()
        }

        async fn get(&self, path: &str) -> Response {
            self.send("GET", path, None).await
        }
    }

    async fn value(response: Response) -> Value {
        serde_json::from_str(&body(response).await).unwrap()
    }

    async fn without_key(router: &Router, path: &str) -> Response {
        router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn health_and_ready_are_open_and_all_else_is_not() {
        let fixture = Fixture::new();
        let health = without_key(&fixture.router, "/health").await;
        assert_eq!(health.status(), 200);
        let mut health = value(health).await;
        health["version"] = json!("VERSION");
        insta::assert_snapshot!(health, @r#"{"status":"alive","name":"example","version":"VERSION","uptime_seconds":0}"#);
        let ready = without_key(&fixture.router, "/ready").await;
        assert_eq!(ready.status(), 200);
        insta::assert_snapshot!(value(ready).await, @r#"{"status":"ready","checks":[{"name":"keys","state":"ok"}]}"#);
        for path in ["/metrics", "/openapi.json", "/raw/1"] {
            let refused = without_key(&fixture.router, path).await;
            assert_eq!(refused.status(), 401, "{path}");
            assert_eq!(refused.headers()[CONTENT_TYPE], "application/problem+json");
        }
    }

    #[tokio::test]
    async fn a_failing_check_makes_it_503_with_every_check_named() {
        let (_, key) = key("anna", Role::Admin);
        let surface = surface(vec![key]).ready_check("store", || async { Err("no answer".to_owned()) });
        let ready = without_key(&surface.router(), "/ready").await;
        assert_eq!(ready.status(), 503);
        insta::assert_snapshot!(value(ready).await, @r#"{"status":"not-ready","checks":[{"name":"keys","state":"ok"},{"name":"store","state":"failed","detail":"no answer"}]}"#);
    }

    #[tokio::test]
    async fn below_v1_every_error_has_the_shape_of_openai() {
        let fixture = Fixture::new();
        for (method, path, sent, status, kind, code) in [
            ("POST", "/v1/orders", Some(json!({"count": 0})), 409, "invalid_request_error", "nothing_ordered"),
            ("POST", "/v1/orders", Some(json!({"count": "x"})), 400, "invalid_request_error", "invalid_body"),
            ("POST", "/v1/orders", Some(json!({"count": 13})), 500, "server_error", "internal_error"),
            ("GET", "/v1/orders", None, 405, "invalid_request_error", "method_not_allowed"),
            ("GET", "/v1/nothing", None, 404, "not_found_error", "not_found"),
            ("POST", "/v1/orders", Some(json!("x".repeat(70))), 413, "invalid_request_error", "body_too_large"),
        ] {
            let response = fixture.send(method, path, sent).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(response.headers().contains_key("allow"), status == 405);
            let error = value(response).await["error"].take();
            assert_eq!((&error["type"], &error["code"]), (&json!(kind), &json!(code)));
            assert!(!error["message"].as_str().unwrap().is_empty());
            assert_eq!(error["param"].is_string(), matches!(status, 400 | 409), "{error}");
        }
        let post = Request::post("/v1/orders").body(Body::empty()).unwrap();
        let refused = fixture.router.clone().oneshot(post).await.unwrap();
        assert_eq!(refused.status(), 401);
        assert!(refused.headers().contains_key("www-authenticate"));
        assert_eq!(value(refused).await["error"]["type"], "authentication_error");
    }

    #[tokio::test]
    async fn elsewhere_every_error_is_a_problem() {
        let fixture = Fixture::new();
        for (method, path, sent, status, slug) in [
            ("GET", "/nothing", None, 404, "not-found"),
            ("GET", "/v10", None, 404, "not-found"),
            ("POST", "/raw/1", None, 405, "method-not-allowed"),
            ("GET", "/raw/1", None, 404, "not-found"),
            ("GET", "/raw/x", None, 400, "bad-request"),
            ("POST", "/length", Some(json!("x".repeat(70))), 413, "body-too-large"),
        ] {
            let response = fixture.send(method, path, sent).await;
            assert_eq!(response.status(), status, "{method} {path}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            let problem = value(response).await;
            assert_eq!(problem["type"], format!("urn:lares:problem:{slug}"), "{method} {path}");
            assert_eq!(problem["status"], status);
        }
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_measured_while_it_is_read() {
        let fixture = Fixture::new();
        let pieces = futures_util::stream::iter((0..9).map(|_| Ok::<_, std::io::Error>("12345678")));
        let request = Request::post("/length").header("x-api-key", fixture.admin.expose());
        let request = request.body(Body::from_stream(pieces)).unwrap();
        let response = fixture.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 413);
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_a_500_and_the_next_request_is_served() {
        let fixture = Fixture::new();
        assert_eq!(fixture.send("POST", "/v1/orders", Some(json!({"count": 13}))).await.status(), 500);
        let response = fixture.send("POST", "/v1/orders", Some(json!({"count": 2}))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(value(response).await, json!({"count": 2}));
    }

    #[tokio::test]
    async fn answers_carry_the_request_id() {
        let fixture = Fixture::new();
        let request = Request::get("/health").header("x-request-id", "mine-7").body(Body::empty()).unwrap();
        let response = fixture.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()["x-request-id"], "mine-7");
        assert!(fixture.get("/nothing").await.headers().contains_key("x-request-id"));
    }

    #[tokio::test]
    async fn metrics_count_by_route_and_refusals_by_reason() {
        let fixture = Fixture::new();
        for number in ["1", "2", "3"] {
            fixture.get(&format!("/raw/{number}")).await;
        }
        fixture.get("/no/such/path").await;
        without_key(&fixture.router, "/raw/1").await;
        let response = fixture.get("/metrics").await;
        assert_eq!(response.headers()[CONTENT_TYPE], metrics::CONTENT_TYPE);
        let page = body(response).await;
        for line in [
            r#"lares_http_requests_total{method="GET",route="/raw/{number}",status="404"} 3"#,
            r#"lares_http_requests_total{method="GET",route="/raw/{number}",status="401"} 1"#,
            r#"lares_http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
            r#"lares_gate_refusals_total{reason="missing"} 1"#,
            "lares_http_requests_in_flight 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
    }

    #[tokio::test]
    async fn rebound_names_are_turned_away_before_the_key_is_looked_at() {
        let fixture = Fixture::new();
        let request = Request::get("/health").header("host", "evil.example:8092").body(Body::empty()).unwrap();
        assert_eq!(fixture.router.clone().oneshot(request).await.unwrap().status(), 421);
    }

    #[tokio::test]
    async fn the_openapi_document_says_what_each_route_needs() {
        let fixture = Fixture::new();
        let mut doc = value(fixture.get("/openapi.json").await).await;
        doc["info"]["version"] = json!("VERSION");
        insta::assert_snapshot!(serde_json::to_string_pretty(&doc).unwrap());
    }

    #[tokio::test]
    async fn on_a_socket_every_caller_may_do_everything() {
        let routes = OpenApiRouter::new().routes(routes!(order));
        let router = Surface::on_socket("control", Metrics::new()).routes(Role::Admin, routes).router();
        assert_eq!(without_key(&router, "/metrics").await.status(), 200);
        let doc = value(without_key(&router, "/openapi.json").await).await;
        assert!(doc["components"].get("securitySchemes").is_none());
    }
}
