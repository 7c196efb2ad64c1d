//! The routes over a registry and an offer that answer as each test says.
#![allow(clippy::unwrap_used)]

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body as HttpBody;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use jiff::Timestamp;
use lares_config::GatewayMode;
use lares_gate::Role;
use rmcp::model::{
    CallToolResult, CompleteRequestParams, CompleteResult, ContentBlock, GetPromptRequestParams, GetPromptResponse,
    Prompt, ReadResourceRequestParams, ReadResourceResponse, Resource, ResourceTemplate,
};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tower::ServiceExt;
use uuid::Uuid;

use super::*;
use crate::api::{CallStatistics, Health, Policy, Reasons, SearchMode, Source, ToolState};
use crate::api::{HitView, ServerState};
use crate::offers::{ListChange, Offered, View};

const TOOLS: [&str; 3] = ["git__git_log", "git__git_status", "time__get_current_time"];

fn tool(id: &str) -> ToolView {
    let (server, name) = id.split_once("__").unwrap();
    ToolView {
        id: id.to_owned(),
        server: server.to_owned(),
        name: name.to_owned(),
        title: None,
        description: "does something".to_owned(),
        input_schema: None,
        output_schema: None,
        annotations: None,
        state: ToolState::Quarantined,
        reason: "new".to_owned(),
        held_by: None,
        policy: Policy::Allow,
        available: true,
        tags: Vec::new(),
        hash: "aa".repeat(32),
        approved_hash: None,
        findings: Vec::new(),
        statistics: CallStatistics::default(),
        first_seen: Timestamp::UNIX_EPOCH,
        last_seen: Timestamp::UNIX_EPOCH,
        gone_since: None,
    }
}

fn server_view(name: &str) -> ServerView {
    serde_json::from_value(json!({
        "name": name, "state": ServerState::Proposed, "trusted": false, "health": Health::Idle,
        "source": Source::ClientFile, "origin": "~/.mcp.json", "transport": {"kind": "stdio", "command": ["x"]},
        "fingerprint": "bb", "tools": 0, "approved": 0, "quarantined": 0, "connections": 0,
        "first_seen": Timestamp::UNIX_EPOCH, "last_seen": Timestamp::UNIX_EPOCH,
    }))
    .unwrap()
}

/// What both fakes were told, as text.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn note(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Knows [`TOOLS`]; of `time`, nothing can be changed.
struct Registry(Arc<Told>);

impl Registry {
    fn known(id: &ToolId) -> Result<ToolView, RecordError> {
        if TOOLS.contains(&id.as_str()) { Ok(tool(id.as_str())) } else { Err(RecordError::NoTool(id.clone())) }
    }

    fn known_server(&self, name: &ServerName) -> Result<ServerView, RecordError> {
        let known = self.server_names().contains(name);
        if known { Ok(server_view(name.as_str())) } else { Err(RecordError::NoServer(name.clone())) }
    }
}

#[async_trait]
impl Records for Registry {
    async fn tools(&self, query: &ToolQuery, caller: &Caller) -> Result<ToolList, RecordError> {
        self.0.note(format!("tools {} for {}", serde_json::to_string(query).unwrap(), caller.name));
        Ok(ToolList { tools: vec![tool("git__git_log")], total: 1 })
    }

    async fn details(&self, id: &ToolId, _: &Caller) -> Result<ToolDetails, RecordError> {
        Ok(ToolDetails { tool: Self::known(id)?, versions: Vec::new(), differences: Vec::new() })
    }

    async fn approve(&self, id: &ToolId, body: &ApproveBody, caller: &Caller) -> Result<ToolView, RecordError> {
        let mut tool = Self::known(id)?;
        if body.hash.as_ref().is_some_and(|hash| *hash != tool.hash) {
            return Err(RecordError::Changed { what: id.to_string(), now: tool.hash });
        }
        tool.state = ToolState::Approved;
        self.0.note(format!("approve {id} by {}", caller.name));
        Ok(tool)
    }

    async fn quarantine(&self, id: &ToolId, body: &QuarantineBody, _: &Caller) -> Result<ToolView, RecordError> {
        self.0.note(format!("quarantine {id}: {} {}", body.reason, body.block));
        Self::known(id)
    }

    async fn servers(&self) -> Result<ServerList, RecordError> {
        Ok(ServerList { servers: vec![server_view("git"), server_view("time")] })
    }

    async fn server(&self, name: &ServerName) -> Result<ServerView, RecordError> {
        self.known_server(name)
    }

    async fn approve_server(
        &self,
        name: &ServerName,
        body: &ApproveBody,
        _: &Caller,
    ) -> Result<ServerView, RecordError> {
        self.0.note(format!("approve server {name} tools={}", body.tools));
        self.known_server(name)
    }

    async fn reject_server(&self, name: &ServerName, _: &Caller) -> Result<ServerView, RecordError> {
        self.known_server(name)?;
        Err(RecordError::Conflict(format!("the configuration declares `{name}`")))
    }

    async fn changes(&self, before: Option<i64>, limit: usize) -> Result<ChangeList, RecordError> {
        self.0.note(format!("changes before {before:?} limit {limit}"));
        Ok(ChangeList { changes: Vec::new(), next_before: None })
    }

    async fn statistics(&self) -> Result<Statistics, RecordError> {
        Ok(serde_json::from_value(json!({
            "tools": {"approved": 3}, "servers": {"up": 2}, "calls": CallStatistics::default(),
            "searches": CallStatistics::default(), "embedded": 3, "most_used": [],
        }))
        .unwrap())
    }

    async fn discovered(&self, _: &Caller) -> Result<Discovered, RecordError> {
        let round = RoundView { round: 4, ..RoundView::default() };
        Ok(Discovered { round, count: 1, tools: vec![tool("git__git_log")], servers: Vec::new() })
    }

    async fn discover_now(&self, _: &Caller) -> Result<RoundView, RecordError> {
        Err(RecordError::Unavailable("the round goes on".to_owned()))
    }

    fn tool_ids(&self) -> Vec<ToolId> {
        TOOLS.iter().map(|id| id.parse().unwrap()).collect()
    }

    fn server_names(&self) -> Vec<ServerName> {
        ["git", "time"].iter().map(|name| name.parse().unwrap()).collect()
    }

    async fn audit(&self, entry: Entry) {
        self.0.note(format!("audit {} {} {} {}", entry.name, entry.action, entry.target, entry.outcome));
    }
}

/// Calls end as the tool's name says.
struct Offer {
    told: Arc<Told>,
    changes: broadcast::Sender<ListChange>,
}

fn nothing<T>(what: &'static str) -> Result<T, OfferError> {
    Err(OfferError::NotFound { what, name: "any".to_owned() })
}

#[async_trait]
impl Offers for Offer {
    fn view(&self, caller: &Caller, toolset: Option<&str>) -> Result<View, OfferError> {
        let (caller, toolset) = (caller.clone(), toolset.map(str::to_owned));
        Ok(View { caller, toolset, mode: GatewayMode::Search, namespaces: true })
    }

    fn tools(&self, _: &View) -> Vec<Arc<Offered>> {
        Vec::new()
    }

    fn tool(&self, _: &View, name: &str) -> Result<Arc<Offered>, OfferError> {
        Err(OfferError::NoTool { name: name.to_owned(), hint: String::new() })
    }

    async fn search(&self, view: &View, query: &SearchQuery) -> Result<SearchAnswer, OfferError> {
        self.told.note(format!("search {} by {}", serde_json::to_string(query).unwrap(), view.caller.name));
        let hit = HitView {
            id: "git__git_log".to_owned(),
            server: "git".to_owned(),
            name: "git_log".to_owned(),
            description: "Shows commits".to_owned(),
            score: 0.9,
            reasons: Reasons { bm25: 3.5, cosine: None, words: vec!["log".to_owned()] },
            policy: Policy::Allow,
            available: true,
        };
        let (query, mode) = (query.q.clone(), SearchMode::Words);
        Ok(SearchAnswer { query, mode, model: None, took_ms: 0.1, hits: vec![hit] })
    }

    async fn call(
        &self,
        view: &View,
        params: CallToolRequestParams,
        confirmed: bool,
        context: CallContext,
    ) -> Result<CallToolResponse, OfferError> {
        let arguments = serde_json::to_string(&params.arguments).unwrap();
        self.told.note(format!("call {} {arguments} confirmed={confirmed} by {}", params.name, view.caller.name));
        let id: ToolId = params.name.parse().unwrap();
        let server = id.server();
        let error = match id.name() {
            "slow" => {
                context.cancelled.cancelled().await;
                UpstreamError::Cancelled.into()
            }
            "fine" => return Ok(CallToolResult::success(vec![ContentBlock::text("done")]).into()),
            "fails" => return Ok(CallToolResult::error(vec![ContentBlock::text("no such file")]).into()),
            "held" => OfferError::Held { id, reason: "its description changed".to_owned() },
            "denied" => OfferError::Denied { id, caller: view.caller.name.clone() },
            "asks" => OfferError::Consent(id),
            "declined" => OfferError::Declined(id),
            "away" => UpstreamError::Unavailable { server, why: "exit code 1".to_owned() }.into(),
            "late" => UpstreamError::Timeout { server, limit: Duration::from_secs(60) }.into(),
            "busy" => UpstreamError::Busy { server }.into(),
            "large" => UpstreamError::TooLarge { server, limit: 4096 }.into(),
            "refuses" => {
                let error = Box::new(ErrorData::invalid_params("bad \u{1b}[2Jpath", None));
                UpstreamError::Protocol { server, error }.into()
            }
            "breaks" => {
                let error = Box::new(ErrorData::internal_error("x".repeat(9000), None));
                UpstreamError::Protocol { server, error }.into()
            }
            _ => OfferError::NoTool { name: id.to_string(), hint: String::new() },
        };
        Err(error)
    }

    fn resources(&self, _: &View) -> Vec<Resource> {
        Vec::new()
    }

    fn templates(&self, _: &View) -> Vec<ResourceTemplate> {
        Vec::new()
    }

    fn prompts(&self, _: &View) -> Vec<Prompt> {
        Vec::new()
    }

    async fn read_resource(
        &self,
        _: &View,
        _: ReadResourceRequestParams,
        _: CallContext,
    ) -> Result<ReadResourceResponse, OfferError> {
        nothing("resource")
    }

    async fn get_prompt(
        &self,
        _: &View,
        _: GetPromptRequestParams,
        _: CallContext,
    ) -> Result<GetPromptResponse, OfferError> {
        nothing("prompt")
    }

    async fn complete(&self, _: &View, _: CompleteRequestParams, _: CallContext) -> Result<CompleteResult, OfferError> {
        nothing("prompt")
    }

    async fn watch_resource(&self, _: &View, _: &str, _: bool) -> Result<(), OfferError> {
        nothing("resource")
    }

    fn changes(&self) -> broadcast::Receiver<ListChange> {
        self.changes.subscribe()
    }
}

struct Place {
    router: Router,
    told: Arc<Told>,
}

impl Place {
    fn new() -> Self {
        let told = Arc::<Told>::default();
        let offers = Offer { told: Arc::clone(&told), changes: broadcast::Sender::new(1) };
        let services = Services { records: Arc::new(Registry(Arc::clone(&told))), offers: Arc::new(offers) };
        let caller = Caller { key_id: Uuid::nil(), name: "ann".to_owned(), role: Role::Operator };
        let routes = reading(&services).merge(calling(&services)).merge(changing(&services));
        let router = Router::from(routes).layer(axum::Extension(caller));
        Self { router, told }
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value, HeaderMap) {
        let mut request = Request::builder().method(method).uri(path);
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                HttpBody::from(body.to_string())
            }
            None => HttpBody::empty(),
        };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), serde_json::from_slice(&bytes).unwrap_or_default(), parts.headers)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, body, _) = self.send(Method::GET, path, None).await;
        (status, body)
    }

    async fn post(&self, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, body, _) = self.send(Method::POST, path, body).await;
        (status, body)
    }
}

fn slug(body: &Value) -> &str {
    body["type"].as_str().and_then(|kind| kind.strip_prefix("urn:lares:problem:")).unwrap_or("none")
}

#[tokio::test]
async fn what_is_asked_reaches_the_registry_with_who_asks() {
    let place = Place::new();
    let (status, body) = place.get("/api/v1/tools?server=git&state=quarantined&gone=true&after=git__a&limit=5").await;
    assert_eq!((status, &body["total"]), (200, &json!(1)));
    assert_eq!(body["tools"][0]["state"], "quarantined");
    let (status, _) = place.get("/api/v1/tools").await;
    assert_eq!(status, 200);
    let (status, _) = place.get("/api/v1/changes?before=7").await;
    assert_eq!(status, 200);
    assert_eq!(
        place.told.all(),
        [
            r#"tools {"server":"git","state":"quarantined","gone":true,"after":"git__a","limit":5} for ann"#,
            r#"tools {"gone":false,"limit":100} for ann"#,
            "changes before Some(7) limit 100",
        ]
    );
    let (_, body) = place.get("/api/v1/tools/discover").await;
    assert_eq!((&body["count"], &body["round"]["round"]), (&json!(1), &json!(4)));
    let (_, body) = place.get("/api/v1/servers").await;
    assert_eq!(body["servers"][1]["name"], "time");
    let (_, body) = place.get("/api/v1/servers/git").await;
    assert_eq!(body["origin"], "~/.mcp.json");
    let (_, body) = place.get("/api/v1/statistics").await;
    assert_eq!(body["embedded"], 3);
    let (_, body) = place.get("/api/v1/tools/git__git_log").await;
    assert_eq!((&body["id"], &body["versions"]), (&json!("git__git_log"), &json!([])));
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_named() {
    let place = Place::new();
    for (path, said) in [
        ("/api/v1/tools?limit=0", "1 to 1000"),
        ("/api/v1/tools?limit=1001", "1 to 1000"),
        ("/api/v1/tools?limit=many", "limit"),
        ("/api/v1/tools?state=good", "unknown variant"),
        ("/api/v1/tools?sate=approved", "sate"),
        ("/api/v1/changes?limit=0", "1 to 1000"),
        ("/api/v1/tools/search", "say in words"),
        ("/api/v1/tools/search?q=%20", "say in words"),
        ("/api/v1/tools/search?q=a&limit=101", "1 to 100"),
    ] {
        let (status, body) = place.get(path).await;
        assert_eq!((status, slug(&body)), (400, "invalid-query"), "{path}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(said), "{path}: {body}");
    }
    assert_eq!(place.told.all(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_granted_is_looked_at_before_anybody_decides() {
    let place = Place::new();
    for (path, body, said) in [
        ("tools/git__git_log/approve", json!({"network": "host"}), "its server"),
        ("servers/git/approve", json!({"read": ["notes"]}), "absolute"),
        ("servers/git/approve", json!({"write": ["/srv/../etc"]}), "without `..`"),
        ("servers/git/approve", json!({"write": ["/srv/\u{1b}[2J"]}), "absolute"),
        ("servers/git/approve", json!({"read": vec!["/srv"; 65]}), "at most 64"),
    ] {
        let (status, answer) = place.post(&format!("/api/v1/{path}"), Some(body)).await;
        assert_eq!((status, slug(&answer)), (422, "invalid-grant"), "{path}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(said), "{answer}");
    }
    assert!(!place.told.all().iter().any(|told| told.starts_with("approve")), "{:?}", place.told.all());
    let body = json!({"network": "host", "read": ["~/notes", "/srv"]});
    assert_eq!(place.post("/api/v1/servers/git/approve", Some(body)).await.0, 200);
}

#[tokio::test]
async fn what_is_not_there_comes_with_the_nearest_names() {
    let place = Place::new();
    for (method, path, kind, said) in [
        (Method::GET, "/api/v1/tools/git__git_stat", "tool-not-found", "`git__git_stat`; is `git__git_status`"),
        (Method::GET, "/api/v1/tools/git_status", "tool-not-found", "is `git__git_status`"),
        (Method::POST, "/api/v1/tools/get_current_tim/approve", "tool-not-found", "is `time__get_current_time` meant?"),
        (Method::POST, "/api/v1/tools/zzz/call", "tool-not-found", "`lares tools list` shows"),
        (Method::POST, "/api/v1/tools/git__git_lo/call", "tool-not-found", "is `git__git_log`"),
        (Method::GET, "/api/v1/tools?server=gitt", "server-not-found", "is `git` meant?"),
        (Method::GET, "/api/v1/servers/Tme", "server-not-found", "there is no tool server `Tme`"),
        (Method::POST, "/api/v1/servers/qqq/approve", "server-not-found", "`lares tools servers` shows"),
    ] {
        let (status, body, _) = place.send(method, path, None).await;
        assert_eq!((status, slug(&body)), (404, kind), "{path}: {body}");
        assert!(body["detail"].as_str().unwrap().contains(said), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_search_goes_to_what_the_caller_may_see() {
    let place = Place::new();
    let (status, body) = place.get("/api/v1/tools/search?q=show+commits&limit=3&tag=vcs").await;
    assert_eq!((status, &body["mode"]), (200, &json!("words")));
    assert_eq!(body["hits"][0]["reasons"]["words"], json!(["log"]));
    assert_eq!(place.told.all(), [r#"search {"q":"show commits","limit":3,"tag":"vcs"} by ann"#]);
}

#[tokio::test]
async fn a_call_gives_the_result_and_whether_the_tool_failed() {
    let place = Place::new();
    let body = json!({"arguments": {"path": "/tmp", "deep": {"n": 1}}, "confirmed": true});
    let (status, body) = place.post("/api/v1/tools/fs__fine/call", Some(body)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["is_error"], &body["result"]["content"][0]["text"]), (&json!(false), &json!("done")));
    assert!(body["took_ms"].as_f64().unwrap() >= 0.0);
    let (status, body) = place.post("/api/v1/tools/fs__fails/call", None).await;
    assert_eq!((status, &body["is_error"]), (200, &json!(true)));
    assert_eq!(
        place.told.all(),
        [
            r#"call fs__fine {"path":"/tmp","deep":{"n":1}} confirmed=true by ann"#,
            "call fs__fails {} confirmed=false by ann",
        ]
    );
}

#[tokio::test]
async fn a_call_that_is_not_carried_out_says_why() {
    let place = Place::new();
    for (name, status, kind, said) in [
        ("held", 409, "tool-held", "its description changed"),
        ("denied", 403, "call-denied", "`ann`"),
        ("asks", 409, "consent-needed", "confirmed: true"),
        ("declined", 403, "call-declined", "declined"),
        ("away", 503, "server-unavailable", "exit code 1"),
        ("late", 504, "call-timed-out", "60s"),
        ("busy", 429, "server-busy", "busy"),
        ("large", 502, "result-too-large", "4096"),
        ("refuses", 422, "invalid-arguments", "bad  [2Jpath"),
        ("breaks", 502, "server-error", "…"),
    ] {
        let (got, body, headers) = place.send(Method::POST, &format!("/api/v1/tools/s__{name}/call"), None).await;
        assert_eq!((got, slug(&body)), (status, kind), "{body}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains(said) && detail.chars().count() < 1000, "{detail}");
        assert_eq!(headers.contains_key(RETRY_AFTER), matches!(status, 429 | 503), "{name}");
    }
    let (status, body) = place.post("/api/v1/tools/s__fine/call", Some(json!({"argument": {}}))).await;
    assert_eq!((status, slug(&body)), (400, "invalid-body"), "{body}");
    let (status, body) = place.post("/api/v1/tools/s__fine/call", Some(json!({"arguments": [1]}))).await;
    assert_eq!((status, slug(&body)), (400, "invalid-body"), "{body}");
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_call() {
    let place = Place::new();
    let call = place.post("/api/v1/tools/s__slow/call", None);
    assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    assert_eq!(place.told.all(), ["call s__slow {} confirmed=false by ann"]);
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_how_it_ended() {
    let place = Place::new();
    let stale = json!({"hash": "bb".repeat(32)});
    for (path, body, status, kind) in [
        ("/api/v1/tools/git__git_log/approve", None, 200, "none"),
        ("/api/v1/tools/git__git_log/approve", Some(stale), 409, "definition-changed"),
        ("/api/v1/tools/git__nothing/approve", None, 404, "tool-not-found"),
        ("/api/v1/tools/git__git_log/quarantine", Some(json!({"reason": "odd"})), 200, "none"),
        ("/api/v1/tools/git__git_log/quarantine", Some(json!({"block": true})), 200, "none"),
        ("/api/v1/tools/git__git_log/quarantine", Some(json!({"reason": "x".repeat(1001)})), 422, "invalid-reason"),
        ("/api/v1/servers/git/approve", Some(json!({"tools": true})), 200, "none"),
        ("/api/v1/servers/git/reject", None, 409, "wrong-state"),
        ("/api/v1/tools/discover", None, 503, "not-ready"),
    ] {
        let (got, body) = place.post(path, body).await;
        assert_eq!((got, slug(&body)), (status, kind), "{path}: {body}");
    }
    assert_eq!(
        place.told.all(),
        [
            "approve git__git_log by ann",
            "audit ann tool.approve git__git_log ok",
            "audit ann tool.approve git__git_log definition-changed",
            "audit ann tool.approve git__nothing tool-not-found",
            "quarantine git__git_log: odd false",
            "audit ann tool.quarantine git__git_log ok",
            "quarantine git__git_log:  true",
            "audit ann tool.block git__git_log ok",
            "approve server git tools=true",
            "audit ann server.approve git ok",
            "audit ann server.reject git wrong-state",
            "audit ann tools.discover  not-ready",
        ]
    );
}

#[tokio::test]
async fn each_route_is_among_those_of_its_role() {
    let told = Arc::<Told>::default();
    let offers = Offer { told: Arc::clone(&told), changes: broadcast::Sender::new(1) };
    let services = Services { records: Arc::new(Registry(told)), offers: Arc::new(offers) };
    let paths = |router: OpenApiRouter| {
        let paths = router.into_openapi().paths.paths;
        let mut all: Vec<String> = paths
            .into_iter()
            .flat_map(|(path, item)| {
                let method = |there: bool, name: &str| there.then(|| format!("{name} {path}"));
                [method(item.get.is_some(), "GET"), method(item.post.is_some(), "POST")].into_iter().flatten()
            })
            .collect();
        all.sort();
        all
    };
    assert!(paths(reading(&services)).iter().all(|route| route.starts_with("GET ")));
    assert_eq!(paths(calling(&services)), ["POST /api/v1/tools/{id}/call"]);
    assert_eq!(
        paths(changing(&services)),
        [
            "POST /api/v1/servers/{name}/approve",
            "POST /api/v1/servers/{name}/reject",
            "POST /api/v1/tools/discover",
            "POST /api/v1/tools/{id}/approve",
            "POST /api/v1/tools/{id}/quarantine",
        ]
    );
}
