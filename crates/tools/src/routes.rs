//! The HTTP routes of the tools daemon: thin, over [`Records`] (what the registry keeps) and [`Offers`] (what a caller may
//! search and call).

use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Path, Query, Request, State};
use http::{StatusCode, Uri};
use lares_gate::{Caller, Json, Problem};
use lares_store::audit::Entry;
use rmcp::ErrorData;
use rmcp::model::{CallToolRequestParams, CallToolResponse, ErrorCode, ServerResult};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::{
    ApproveBody, CallAnswer, CallBody, ChangeList, Discovered, QuarantineBody, RoundView, SearchAnswer, SearchQuery,
    ServerList, ServerView, Statistics, ToolDetails, ToolList, ToolQuery, ToolView,
};
use crate::definition::{ServerName, ToolId};
use crate::offers::{OfferError, Offers};
use crate::port::{CallContext, UpstreamError};
use crate::records::{RecordError, Records};

#[cfg(test)]
mod tests;

/// Entries on a page when the caller does not say.
const PAGE: usize = 100;
/// Most entries on a page.
const PAGE_MAX: usize = 1000;
/// Most hits of a search.
const HITS_MAX: usize = 100;
/// Most paths of one kind that are granted, and longest of them in bytes (PATH_MAX of Linux).
const PATHS_MAX: usize = 64;
const PATH_MAX: usize = 4096;
/// Longest reason of a quarantine, in bytes.
const REASON_MAX: usize = 1000;
/// What callers are told to wait when something is away.
const RETRY: Duration = Duration::from_secs(5);
/// Names that an error offers at most.
const NEAREST: usize = 3;
/// How alike two names are, from 0 to 1, when one is offered for the other.
const ALIKE: f64 = 0.8;
/// Longest text from a tool server in an error, in characters.
const SAID_MAX: usize = 500;

/// What the handlers work with.
#[derive(Clone)]
pub struct Services {
    /// What the registry keeps.
    pub records: Arc<dyn Records>,
    /// What a caller may search and call.
    pub offers: Arc<dyn Offers>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// Routes that only look. For viewers.
pub fn reading(services: &Services) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(discovered))
        .routes(routes!(search))
        .routes(routes!(show))
        .routes(routes!(servers))
        .routes(routes!(server))
        .routes(routes!(changes))
        .routes(routes!(statistics))
        .with_state(services.clone())
}

/// The route that calls a tool. For clients, as `/mcp` is.
pub fn calling(services: &Services) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(call)).with_state(services.clone())
}

/// Routes that change what may be used. For operators.
pub fn changing(services: &Services) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(discover_now))
        .routes(routes!(approve))
        .routes(routes!(quarantine))
        .routes(routes!(approve_server))
        .routes(routes!(reject_server))
        .with_state(services.clone())
}

/// A JSON body, or nothing, which is the default.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        // An empty body needs no content type: `curl -X POST` sends none.
        if axum::body::HttpBody::is_end_stream(&body) {
            return Ok(Self(T::default()));
        }
        let Json(value) = Json::from_request(Request::from_parts(parts, body), state).await?;
        Ok(Self(value))
    }
}

/// Tools, by id. Those that may not be used are listed, too: `state` and `policy` say so.
#[utoipa::path(get, path = "/api/v1/tools", tag = "tools", params(ToolQuery), responses(
    (status = 200, body = ToolList),
    (status = 400, description = "A parameter is wrong", body = Problem),
    (status = 404, description = "There is no such server", body = Problem),
))]
async fn list(State(services): State<Services>, caller: Caller, uri: Uri) -> Result<Json<ToolList>, Problem> {
    let mut asked: ToolQuery = query(&uri)?;
    asked.limit = Some(limit(asked.limit, PAGE, PAGE_MAX)?);
    if let Some(server) = &asked.server
        && !services.records.server_names().iter().any(|name| name.as_str() == server)
    {
        return Err(no_server(server, &services).await);
    }
    let tools = services.records.tools(&asked, &caller).await;
    Ok(Json(services.told(tools).await?))
}

/// The last round of discovery, and every tool that the caller may call now, with its definition.
#[utoipa::path(get, path = "/api/v1/tools/discover", tag = "tools", responses((status = 200, body = Discovered)))]
async fn discovered(State(services): State<Services>, caller: Caller) -> Result<Json<Discovered>, Problem> {
    let found = services.records.discovered(&caller).await;
    Ok(Json(services.told(found).await?))
}

/// Looks for tool servers and tools now, and tells what that changed.
#[utoipa::path(post, path = "/api/v1/tools/discover", tag = "tools", responses(
    (status = 200, body = RoundView),
    (status = 503, description = "It takes too long; it goes on by itself", body = Problem),
))]
async fn discover_now(State(services): State<Services>, caller: Caller) -> Result<Json<RoundView>, Problem> {
    let round = services.records.discover_now(&caller).await;
    let round = services.told(round).await;
    services.audit(&caller, "tools.discover", "", &round).await;
    round.map(Json)
}

/// Finds tools that the caller may call, by words and by meaning, best first.
#[utoipa::path(get, path = "/api/v1/tools/search", tag = "tools", params(SearchQuery), responses(
    (status = 200, body = SearchAnswer),
    (status = 400, description = "A parameter is wrong", body = Problem),
))]
async fn search(State(services): State<Services>, caller: Caller, uri: Uri) -> Result<Json<SearchAnswer>, Problem> {
    let mut asked: SearchQuery = query(&uri)?;
    if asked.q.trim().is_empty() {
        return Err(wrong_query("q", "say in words what is needed, for example `?q=read+a+file`"));
    }
    if let Some(hits) = asked.limit {
        asked.limit = Some(limit(Some(hits), hits, HITS_MAX)?);
    }
    let offers = &services.offers;
    let view = offers.view(&caller, None).map_err(|error| offered(&error))?;
    offers.search(&view, &asked).await.map(Json).map_err(|error| offered(&error))
}

/// One tool: its definition, every version of it that was seen, and what differs from what was approved.
#[utoipa::path(get, path = "/api/v1/tools/{id}", tag = "tools",
    params(("id" = String, Path, description = "SERVER__TOOL")),
    responses((status = 200, body = ToolDetails), (status = 404, body = Problem)))]
async fn show(
    State(services): State<Services>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ToolDetails>, Problem> {
    let id = services.tool_id(&id).await?;
    let details = services.records.details(&id, &caller).await;
    Ok(Json(services.told(details).await?))
}

/// Calls a tool. The policy is the same as at `/mcp`.
///
/// Where it is `ask`, `confirmed` has to be true: whoever shows the key says that a person has agreed to this call.
#[utoipa::path(post, path = "/api/v1/tools/{id}/call", tag = "tools", request_body = CallBody,
    params(("id" = String, Path, description = "SERVER__TOOL")),
    responses(
        (status = 200, description = "Its result; `is_error` says whether the tool itself failed", body = CallAnswer),
        (status = 403, description = "Policy does not allow it", body = Problem),
        (status = 404, body = Problem),
        (status = 409, description = "It is quarantined or blocked, or a person has to agree", body = Problem),
        (status = 422, description = "The arguments do not fit", body = Problem),
        (status = 429, description = "Too many calls wait for its server", body = Problem),
        (status = 502, description = "Its server answered with an error", body = Problem),
        (status = 503, description = "Its server is not available", body = Problem),
        (status = 504, description = "Its server did not answer in time", body = Problem),
    ))]
async fn call(
    State(services): State<Services>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<CallBody>,
) -> Result<Json<CallAnswer>, Problem> {
    let id = services.tool_id(&id).await?;
    let offers = &services.offers;
    let view = offers.view(&caller, None).map_err(|error| offered(&error))?;
    let cancelled = CancellationToken::new();
    // A caller that hangs up drops this handler; the server is told that nobody waits.
    let _gone = cancelled.clone().drop_guard();
    let context = CallContext { cancelled, ..CallContext::default() };
    let params = CallToolRequestParams::new(id.as_str().to_owned()).with_arguments(body.arguments);
    let began = Instant::now();
    let answer = match offers.call(&view, params, body.confirmed, context).await {
        Ok(answer) => answer,
        Err(error @ OfferError::NoTool { .. }) => {
            // It may be there and only not in this caller's view; the hint names what it can see.
            let hinted = matches!(&error, OfferError::NoTool { hint, .. } if !hint.is_empty());
            return Err(if hinted { offered(&error) } else { services.no_tool(id.as_str()).await });
        }
        Err(error) => return Err(offered(&error)),
    };
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    let is_error = matches!(&answer, CallToolResponse::Complete(result) if result.is_error == Some(true));
    let result = serde_json::to_value(ServerResult::from(answer)).map_err(|error| Problem::internal(&error))?;
    Ok(Json(CallAnswer { result, is_error, took_ms }))
}

/// Lets the present definition of a tool be used.
#[utoipa::path(post, path = "/api/v1/tools/{id}/approve", tag = "tools", request_body = ApproveBody,
    params(("id" = String, Path, description = "SERVER__TOOL")),
    responses(
        (status = 200, body = ToolView),
        (status = 404, body = Problem),
        (status = 409, description = "It has changed since it was looked at, or is gone", body = Problem),
        (status = 422, description = "It says what to grant, which is for servers", body = Problem),
    ))]
async fn approve(
    State(services): State<Services>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<ApproveBody>,
) -> Result<Json<ToolView>, Problem> {
    let id = services.tool_id(&id).await?;
    if body.grant().is_some() {
        return Err(ungrantable("network", "a tool is granted nothing; its server is"));
    }
    let approved = services.records.approve(&id, &body, &caller).await;
    let approved = services.told(approved).await;
    services.audit(&caller, "tool.approve", id.as_str(), &approved).await;
    approved.map(Json)
}

/// Puts a tool aside: nobody may call it until it is approved again.
#[utoipa::path(post, path = "/api/v1/tools/{id}/quarantine", tag = "tools", request_body = QuarantineBody,
    params(("id" = String, Path, description = "SERVER__TOOL")),
    responses(
        (status = 200, body = ToolView),
        (status = 404, body = Problem),
        (status = 422, description = "The reason is too long", body = Problem),
    ))]
async fn quarantine(
    State(services): State<Services>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<QuarantineBody>,
) -> Result<Json<ToolView>, Problem> {
    let id = services.tool_id(&id).await?;
    if body.reason.len() > REASON_MAX {
        let detail = format!("is {} bytes long; at most {REASON_MAX} are taken", body.reason.len());
        let said = format!("reason: {detail}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-reason", said).error("reason", detail));
    }
    let put_aside = services.records.quarantine(&id, &body, &caller).await;
    let put_aside = services.told(put_aside).await;
    let action = if body.block { "tool.block" } else { "tool.quarantine" };
    services.audit(&caller, action, id.as_str(), &put_aside).await;
    put_aside.map(Json)
}

/// All tool servers that are declared or were found.
#[utoipa::path(get, path = "/api/v1/servers", tag = "servers", responses((status = 200, body = ServerList)))]
async fn servers(State(services): State<Services>) -> Result<Json<ServerList>, Problem> {
    let servers = services.records.servers().await;
    Ok(Json(services.told(servers).await?))
}

/// One tool server.
#[utoipa::path(get, path = "/api/v1/servers/{name}", tag = "servers", params(("name" = String, Path)),
    responses((status = 200, body = ServerView), (status = 404, body = Problem)))]
async fn server(State(services): State<Services>, Path(name): Path<String>) -> Result<Json<ServerView>, Problem> {
    let name = server_name(&name, &services).await?;
    let server = services.records.server(&name).await;
    Ok(Json(services.told(server).await?))
}

/// Lets a tool server be started or connected to, and its program touch what is granted. Its tools wait to be approved,
/// unless `tools` is true.
#[utoipa::path(post, path = "/api/v1/servers/{name}/approve", tag = "servers", request_body = ApproveBody,
    params(("name" = String, Path)),
    responses(
        (status = 200, body = ServerView),
        (status = 404, body = Problem),
        (status = 409, description = "It has changed since it was looked at, or cannot be granted that", body = Problem),
        (status = 422, description = "A path is none that can be granted", body = Problem),
    ))]
async fn approve_server(
    State(services): State<Services>,
    caller: Caller,
    Path(name): Path<String>,
    Body(body): Body<ApproveBody>,
) -> Result<Json<ServerView>, Problem> {
    let name = server_name(&name, &services).await?;
    for (field, paths) in [("read", &body.read), ("write", &body.write)] {
        paths.as_deref().map_or(Ok(()), |paths| grantable(field, paths))?;
    }
    let approved = services.records.approve_server(&name, &body, &caller).await;
    let approved = services.told(approved).await;
    services.audit(&caller, "server.approve", name.as_str(), &approved).await;
    approved.map(Json)
}

/// Whether these are paths that mean the same to everybody.
fn grantable(field: &str, paths: &[PathBuf]) -> Result<(), Problem> {
    if paths.len() > PATHS_MAX {
        return Err(ungrantable(field, &format!("at most {PATHS_MAX} paths are taken")));
    }
    let clear = |path: &FilePath| {
        let text = path.to_string_lossy();
        (path.is_absolute() || path.starts_with("~"))
            && text.len() <= PATH_MAX
            && !text.chars().any(char::is_control)
            && !path.components().any(|part| part == Component::ParentDir)
    };
    match paths.iter().find(|path| !clear(path)) {
        None => Ok(()),
        Some(path) => {
            let path = short(&path.to_string_lossy());
            Err(ungrantable(field, &format!("`{path}` has to be absolute or begin with `~/`, without `..`")))
        }
    }
}

fn ungrantable(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-grant", format!("{field}: {detail}")).error(field, detail)
}

/// Says that a tool server is not wanted: it is ended, and its tools are not offered any more.
#[utoipa::path(post, path = "/api/v1/servers/{name}/reject", tag = "servers", params(("name" = String, Path)),
    responses(
        (status = 200, body = ServerView),
        (status = 404, body = Problem),
        (status = 409, description = "The configuration declares it", body = Problem),
    ))]
async fn reject_server(
    State(services): State<Services>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<ServerView>, Problem> {
    let name = server_name(&name, &services).await?;
    let rejected = services.records.reject_server(&name, &caller).await;
    let rejected = services.told(rejected).await;
    services.audit(&caller, "server.reject", name.as_str(), &rejected).await;
    rejected.map(Json)
}

/// Query of `GET /api/v1/changes`.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
struct ChangesQuery {
    /// Only changes before this number.
    before: Option<i64>,
    /// Most changes in the answer, 1 to 1000; 100 unless said.
    limit: Option<usize>,
}

/// What changed when, newest first: servers and tools that came, went, or became others, and who decided what.
#[utoipa::path(get, path = "/api/v1/changes", tag = "tools", params(ChangesQuery), responses(
    (status = 200, body = ChangeList),
    (status = 400, description = "A parameter is wrong", body = Problem),
))]
async fn changes(State(services): State<Services>, uri: Uri) -> Result<Json<ChangeList>, Problem> {
    let asked: ChangesQuery = query(&uri)?;
    let limit = limit(asked.limit, PAGE, PAGE_MAX)?;
    let changes = services.records.changes(asked.before, limit).await;
    Ok(Json(services.told(changes).await?))
}

/// Tools by state, servers by health, calls and searches with their times.
#[utoipa::path(get, path = "/api/v1/statistics", tag = "tools", responses((status = 200, body = Statistics)))]
async fn statistics(State(services): State<Services>) -> Result<Json<Statistics>, Problem> {
    let statistics = services.records.statistics().await;
    Ok(Json(services.told(statistics).await?))
}

impl Services {
    async fn tool_id(&self, text: &str) -> Result<ToolId, Problem> {
        match text.parse() {
            Ok(id) => Ok(id),
            Err(_) => Err(self.no_tool(text).await),
        }
    }

    async fn no_tool(&self, asked: &str) -> Problem {
        let names = self.records.tool_ids().into_iter().map(String::from).collect();
        let hint = hint(asked, names, "`lares tools list` shows those there are").await;
        Problem::not_found("tool-not-found", format!("there is no tool `{}`; {hint}", short(asked)))
    }

    /// What the registry said, its errors made ones that callers understand.
    async fn told<T>(&self, result: Result<T, RecordError>) -> Result<T, Problem> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let said = error.to_string();
        Err(match error {
            RecordError::NoTool(id) => self.no_tool(id.as_str()).await,
            RecordError::NoServer(name) => no_server(name.as_str(), self).await,
            RecordError::Changed { .. } => {
                Problem::conflict("definition-changed", format!("{said}; look at it again before you approve it"))
            }
            RecordError::Conflict(_) => Problem::conflict("wrong-state", said),
            RecordError::Unavailable(_) => Problem::unavailable("not-ready", said).retry_after(RETRY),
            RecordError::Store(error) => error.into(),
        })
    }

    /// Leaves a trace of what a caller did in the audit log.
    async fn audit<T>(&self, caller: &Caller, action: &str, target: &str, result: &Result<T, Problem>) {
        let outcome = result.as_ref().map_or_else(Problem::slug, |_| "ok");
        self.records.audit(Entry::new(Some(caller.key_id), caller.name.clone(), action, target, outcome)).await;
    }
}

async fn server_name(text: &str, services: &Services) -> Result<ServerName, Problem> {
    match text.parse() {
        Ok(name) => Ok(name),
        Err(_) => Err(no_server(text, services).await),
    }
}

async fn no_server(asked: &str, services: &Services) -> Problem {
    let names = services.records.server_names().into_iter().map(String::from).collect();
    let hint = hint(asked, names, "`lares tools servers` shows those there are").await;
    Problem::not_found("server-not-found", format!("there is no tool server `{}`; {hint}", short(asked)))
}

/// Which names may be meant, or `otherwise`.
async fn hint(asked: &str, names: Vec<String>, otherwise: &str) -> String {
    let asked = short(asked);
    // With tens of thousands of names this takes long enough to keep others waiting.
    let nearest = tokio::task::spawn_blocking(move || nearest(&asked, names)).await.unwrap_or_default();
    if nearest.is_empty() {
        return otherwise.to_owned();
    }
    let nearest: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
    format!("is {} meant?", nearest.join(" or "))
}

/// The names that are most like `asked`, the nearest first. The tool's own name counts, too: people leave out the server.
fn nearest(asked: &str, names: Vec<String>) -> Vec<String> {
    let alike = |name: &str| {
        let own =
            name.split_once(crate::definition::SEPARATOR).map_or(0.0, |(_, own)| strsim::jaro_winkler(own, asked));
        strsim::jaro_winkler(name, asked).max(own)
    };
    let mut scored: Vec<(f64, String)> = names.into_iter().map(|name| (alike(&name), name)).collect();
    scored.retain(|(score, _)| *score >= ALIKE);
    scored.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.cmp(other)));
    scored.into_iter().take(NEAREST).map(|(_, name)| name).collect()
}

/// Foreign text, short enough for an error, in one line.
fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(SAID_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SAID_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    Query::<T>::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|rejection| Problem::bad_request("invalid-query", rejection.body_text()))
}

fn limit(asked: Option<usize>, otherwise: usize, most: usize) -> Result<usize, Problem> {
    match asked {
        None => Ok(otherwise),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(wrong_query("limit", &format!("has to be from 1 to {most}"))),
    }
}

fn wrong_query(field: &str, detail: &str) -> Problem {
    Problem::bad_request("invalid-query", format!("{field}: {detail}")).error(field, detail)
}

/// Why a caller does not get what it asked for, as HTTP says it.
fn offered(error: &OfferError) -> Problem {
    let said = error.to_string();
    match error {
        OfferError::Toolset(_) => Problem::not_found("toolset-not-found", said),
        OfferError::NoTool { .. } => Problem::not_found("tool-not-found", said),
        OfferError::Held { .. } => Problem::conflict("tool-held", said),
        OfferError::Denied { .. } => Problem::new(StatusCode::FORBIDDEN, "call-denied", said),
        OfferError::Consent(id) => Problem::conflict(
            "consent-needed",
            format!("policy wants a person's consent for `{id}`; ask one, then send `confirmed: true`"),
        )
        .error("confirmed", "has to be true"),
        OfferError::Declined(_) => Problem::new(StatusCode::FORBIDDEN, "call-declined", said),
        OfferError::NotFound { .. } => Problem::not_found("not-found", said),
        OfferError::Query(_) => Problem::bad_request("invalid-query", said),
        OfferError::Upstream(error) => upstream(error),
    }
}

fn upstream(error: &UpstreamError) -> Problem {
    let said = short(&error.to_string());
    match error {
        UpstreamError::Unknown(_) => Problem::not_found("server-not-found", said),
        UpstreamError::Unavailable { .. } => {
            Problem::unavailable("server-unavailable", format!("{said}. `lares tools servers` shows how it is"))
                .retry_after(RETRY)
        }
        UpstreamError::Timeout { .. } => Problem::new(StatusCode::GATEWAY_TIMEOUT, "call-timed-out", said),
        UpstreamError::Busy { .. } => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "server-busy", said).retry_after(RETRY)
        }
        UpstreamError::TooLarge { .. } => Problem::new(StatusCode::BAD_GATEWAY, "result-too-large", said),
        UpstreamError::Protocol { error, .. } if is_about_arguments(error) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-arguments", said)
        }
        UpstreamError::Protocol { .. } => Problem::new(StatusCode::BAD_GATEWAY, "server-error", said),
        UpstreamError::Cancelled => Problem::unavailable("call-cancelled", "the call was cancelled"),
    }
}

fn is_about_arguments(error: &ErrorData) -> bool {
    error.code == ErrorCode::INVALID_PARAMS
}
