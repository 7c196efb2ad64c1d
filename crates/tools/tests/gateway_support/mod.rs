//! A fixture behind the gateway: the tools, resources and prompts that the conformance suite of MCP asks for by name, and
//! what the tests of the gateway need besides. All of it in this process.

#![allow(dead_code, clippy::unwrap_used, deprecated, missing_docs)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use lares_config::GatewayMode;
use lares_gate::{Caller, Metrics, Role, Surface};
use lares_tools::api::{HitView, Policy, Reasons, SearchAnswer, SearchMode, SearchQuery};
use lares_tools::definition::{Definition, ServerName, ToolId};
use lares_tools::gateway::{Gateway, GatewaySettings};
use lares_tools::offers::{ListChange, OfferError, Offered, Offers, View};
use lares_tools::port::{CallContext, UpstreamError};
use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientResult, CompleteRequestParams,
    CompleteResult, GetPromptRequestParams, GetPromptResponse, InputRequiredResult, LoggingLevel,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProgressToken, Prompt, ReadResourceRequestParams,
    ReadResourceResponse, Resource, ResourceTemplate, ServerRequest,
};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;
use uuid::Uuid;

/// A PNG of one red pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// A WAV without samples.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";
/// State that the fixture accepts back.
const STATE: &str = "fixture-state";

/// Everything there is, for every caller the same.
pub struct Fixture {
    pub mode: GatewayMode,
    pub namespaces: bool,
    pub tools: RwLock<BTreeMap<String, Arc<Offered>>>,
    pub bell: broadcast::Sender<ListChange>,
    /// What was watched and let go, in order.
    pub watched: Mutex<Vec<(String, bool)>>,
    /// Metadata of the calls, in order.
    pub seen: Mutex<Vec<CallToolRequestParams>>,
    pub running: AtomicUsize,
    pub cancelled: AtomicUsize,
}

impl Fixture {
    pub fn new(mode: GatewayMode, namespaces: bool) -> Arc<Self> {
        let fixture = Self {
            mode,
            namespaces,
            tools: RwLock::default(),
            bell: broadcast::Sender::new(64),
            watched: Mutex::default(),
            seen: Mutex::default(),
            running: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
        };
        for (name, description, schema) in definitions() {
            fixture.add("fixture", name, description, schema);
        }
        Arc::new(fixture)
    }

    pub fn add(&self, server: &str, name: &str, description: &str, input_schema: Value) {
        let server: ServerName = server.parse().unwrap();
        let id = ToolId::new(&server, name).unwrap();
        let definition = Definition {
            name: name.to_owned(),
            title: None,
            description: Some(description.to_owned()),
            input_schema,
            output_schema: None,
            annotations: None,
        };
        let shown = if self.namespaces { id.to_string() } else { name.to_owned() };
        let policy = Policy::Allow;
        let offered = Offered { id: id.clone(), shown, definition: Arc::new(definition), policy, available: true };
        self.tools.write().unwrap().insert(id.to_string(), Arc::new(offered));
    }

    /// A surface as a daemon has it, without keys: the header `x-test-key` says who calls.
    pub fn router(gateway: &Gateway) -> Router {
        let routes = gateway.routes().layer(axum::middleware::from_fn(name_caller));
        Surface::on_socket("tools", Metrics::new()).routes(Role::Client, routes.into()).router()
    }

    /// Serves the gateway on a port of its own.
    pub async fn serve(self: &Arc<Self>, settings: GatewaySettings) -> Served {
        let shutdown = tokio_util::sync::CancellationToken::new();
        let offers: Arc<dyn Offers> = Arc::<Self>::clone(self);
        let gateway = Gateway::new(offers, settings, shutdown.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let router = Self::router(&gateway);
        let until = shutdown.clone();
        tokio::spawn(
            async move { axum::serve(listener, router).with_graceful_shutdown(until.cancelled_owned()).await },
        );
        Served { url, gateway, _end: shutdown.drop_guard() }
    }
}

/// A gateway that is served until this is dropped.
pub struct Served {
    pub url: String,
    pub gateway: Gateway,
    _end: tokio_util::sync::DropGuard,
}

async fn name_caller(mut request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let name = request.headers().get("x-test-key").and_then(|name| name.to_str().ok()).unwrap_or("anna").to_owned();
    let key_id = Uuid::from_u128(name.bytes().fold(1, |id, byte| id * 257 + u128::from(byte)));
    request.extensions_mut().insert(Caller { key_id, name, role: Role::Client });
    next.run(request).await
}

fn definitions() -> Vec<(&'static str, &'static str, Value)> {
    let nothing = || json!({"type": "object", "properties": {}});
    let text = |name: &str| json!({"type": "object", "properties": {name: {"type": "string"}}, "required": [name]});
    vec![
        ("test_simple_text", "Gives a simple text. It takes nothing.", nothing()),
        ("test_image_content", "Gives an image.", nothing()),
        ("test_audio_content", "Gives a sound.", nothing()),
        ("test_embedded_resource", "Gives an embedded resource.", nothing()),
        ("test_multiple_content_types", "Gives content of several types.", nothing()),
        ("test_error_handling", "Always fails.", nothing()),
        ("test_tool_with_progress", "Says how far it is.", nothing()),
        ("test_tool_with_logging", "Writes log messages.", nothing()),
        ("test_logging_tool", "Writes a log message.", nothing()),
        ("test_sampling", "Asks the client's model.", text("prompt")),
        ("test_elicitation", "Asks the client's person.", text("message")),
        ("test_elicitation_sep1034_defaults", "Asks with defaults.", nothing()),
        ("test_elicitation_sep1330_enums", "Asks with enumerations.", nothing()),
        ("test_streaming_elicitation", "Asks by its result.", nothing()),
        ("test_missing_capability", "Needs a client with sampling.", nothing()),
        ("test_trigger_tool_change", "Changes the list of tools.", nothing()),
        ("test_trigger_prompt_change", "Changes the list of prompts.", nothing()),
        ("test_input_required_result_elicitation", "Asks for a name.", nothing()),
        ("test_input_required_result_sampling", "Asks for a capital.", nothing()),
        ("test_input_required_result_list_roots", "Asks for roots.", nothing()),
        ("test_input_required_result_request_state", "Asks with a state.", nothing()),
        ("test_input_required_result_multiple_inputs", "Asks for three things.", nothing()),
        ("test_input_required_result_multi_round", "Asks twice.", nothing()),
        ("test_input_required_result_tampered_state", "Checks its state.", nothing()),
        ("test_input_required_result_capabilities", "Asks for what the client can do.", nothing()),
        ("slow", "Takes a minute, unless it is cancelled.", nothing()),
        ("untyped", "Has a schema without a type.", json!({"properties": {"x": {"type": "integer"}}})),
        ("protocol_error", "Fails with an error of the protocol.", text("code")),
        ("dead", "Belongs to a server that is not there.", nothing()),
        (
            "region_query",
            "Has a parameter that goes into a header too.",
            json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"},
                "sql": {"type": "string"}}, "required": ["region", "sql"]}),
        ),
        (
            "json_schema_2020_12_tool",
            "Tool with JSON Schema 2020-12 features",
            json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "$defs": {"address": {"$anchor": "addressDef", "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
                "properties": {
                    "name": {"type": "string"},
                    "address": {"$ref": "#/$defs/address"},
                    "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                    "phone": {"type": "string"},
                    "email": {"type": "string"},
                },
                "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
                "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
                "then": {"required": ["phone"]},
                "else": {"required": ["email"]},
                "additionalProperties": false,
            }),
        ),
    ]
}

fn done(content: impl Into<Value>) -> Result<CallToolResponse, OfferError> {
    let content: Value = content.into();
    let result: CallToolResult = serde_json::from_value(json!({"resultType": "complete", "content": content})).unwrap();
    Ok(result.into())
}

fn says(text: impl Into<String>) -> Result<CallToolResponse, OfferError> {
    done(json!([{"type": "text", "text": text.into()}]))
}

fn refuses(error: ErrorData) -> OfferError {
    UpstreamError::Protocol { server: "fixture".parse().unwrap(), error: Box::new(error) }.into()
}

fn asks(requests: Value, state: Option<&str>) -> InputRequiredResult {
    let requests = serde_json::from_value(requests).unwrap();
    InputRequiredResult::new(Some(requests), state.map(ToOwned::to_owned))
}

fn form(message: &str, field: &str, kind: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message,
        "requestedSchema": {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}}})
}

fn sample(text: &str) -> Value {
    json!({"method": "sampling/createMessage", "params": {"maxTokens": 100,
        "messages": [{"role": "user", "content": {"type": "text", "text": text}}]}})
}

async fn ask(context: &CallContext, request: Value) -> Result<ClientResult, OfferError> {
    let request: ServerRequest = serde_json::from_value(request).unwrap();
    context.downstream.request(request).await.map_err(refuses)
}

async fn log(context: &CallContext, text: &str) {
    context.downstream.log(LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(text))).await;
}

/// Counts a call under way.
struct Under<'a>(&'a AtomicUsize);

impl<'a> Under<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fixture {
    async fn run(
        &self,
        name: &str,
        params: CallToolRequestParams,
        context: &CallContext,
    ) -> Result<CallToolResponse, OfferError> {
        let argument = |name: &str| {
            let value = params.arguments.as_ref().and_then(|arguments| arguments.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let pause = || tokio::time::sleep(Duration::from_millis(50));
        match name {
            "test_simple_text" => says("This is a simple text response for testing."),
            "test_image_content" => done(json!([{"type": "image", "data": PNG, "mimeType": "image/png"}])),
            "test_audio_content" => done(json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}])),
            "test_embedded_resource" => {
                done(json!([{"type": "resource", "resource": {"uri": "test://embedded-resource",
                "mimeType": "text/plain", "text": "This is an embedded resource content."}}]))
            }
            "test_multiple_content_types" => done(json!([
                {"type": "text", "text": "Multiple content types test:"},
                {"type": "image", "data": PNG, "mimeType": "image/png"},
                {"type": "resource", "resource": {"uri": "test://mixed-content-resource",
                    "mimeType": "application/json", "text": "{\"test\":\"data\",\"value\":123}"}},
            ])),
            "test_error_handling" => {
                let text = "This tool intentionally returns an error for testing";
                Ok(CallToolResult::error(vec![rmcp::model::ContentBlock::text(text)]).into())
            }
            "test_tool_with_progress" => {
                for progress in [0.0, 50.0, 100.0] {
                    // The token is the tool server's; the gateway puts the client's own in its place.
                    let token = ProgressToken(rmcp::model::NumberOrString::String("upstream".into()));
                    let params = ProgressNotificationParam::new(token, progress).with_total(100.0);
                    context.downstream.progress(params).await;
                    pause().await;
                }
                says("done")
            }
            "test_tool_with_logging" => {
                log(context, "Tool execution started").await;
                pause().await;
                log(context, "Tool processing data").await;
                pause().await;
                log(context, "Tool execution completed").await;
                says("done")
            }
            "test_logging_tool" => {
                log(context, "A message").await;
                says("done")
            }
            "test_sampling" => match ask(context, sample(&argument("prompt"))).await? {
                ClientResult::CreateMessageResult(result) => {
                    says(format!("LLM response: {}", serde_json::to_string(&*result).unwrap()))
                }
                other => says(format!("{other:?}")),
            },
            "test_elicitation" => {
                let schema = json!({"type": "object", "required": ["username", "email"], "properties": {
                    "username": {"type": "string", "description": "User's response"},
                    "email": {"type": "string", "description": "User's email address"}}});
                self.elicit(context, &argument("message"), schema).await
            }
            "test_elicitation_sep1034_defaults" => {
                let schema = json!({"type": "object", "properties": {
                    "name": {"type": "string", "default": "John Doe"},
                    "age": {"type": "integer", "default": 30},
                    "score": {"type": "number", "default": 95.5},
                    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                    "verified": {"type": "boolean", "default": true}}});
                self.elicit(context, "Check", schema).await
            }
            "test_elicitation_sep1330_enums" => {
                let titled = |second: &str| json!([{"const": "value1", "title": "First Option"}, {"const": "value2", "title": second}]);
                let schema = json!({"type": "object", "properties": {
                    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
                    "titledSingle": {"type": "string", "oneOf": titled("Second Option")},
                    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
                    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2"]}},
                    "titledMulti": {"type": "array", "items": {"anyOf": titled("Second Choice")}}}});
                self.elicit(context, "Choose", schema).await
            }
            "test_missing_capability" => {
                if context.downstream.capabilities().sampling.is_some() {
                    return says("The client does sampling.");
                }
                let needed: ClientCapabilities = serde_json::from_value(json!({"sampling": {}})).unwrap();
                Err(refuses(ErrorData::missing_required_client_capability(needed)))
            }
            "test_trigger_tool_change" => {
                self.bell.send(ListChange::Tools).ok();
                says("changed")
            }
            "test_trigger_prompt_change" => {
                self.bell.send(ListChange::Prompts).ok();
                says("changed")
            }
            "slow" => {
                let _under = Under::begin(&self.running);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(60)) => says("slept"),
                    () = context.cancelled.cancelled() => {
                        self.cancelled.fetch_add(1, Ordering::SeqCst);
                        Err(UpstreamError::Cancelled.into())
                    }
                }
            }
            "protocol_error" => {
                let code = argument("code").parse().unwrap_or(-32000);
                Err(refuses(ErrorData::new(rmcp::model::ErrorCode(code), "as wanted", None)))
            }
            "dead" => {
                Err(UpstreamError::Unavailable { server: "fixture".parse().unwrap(), why: "it ended".to_owned() }
                    .into())
            }
            name if name.starts_with("test_input_required_result_") || name == "test_streaming_elicitation" => {
                Self::ask_by_result(name, &params, context)
            }
            other => says(format!("{other} {}", Value::Object(params.arguments.unwrap_or_default()))),
        }
    }

    async fn elicit(
        &self,
        context: &CallContext,
        message: &str,
        schema: Value,
    ) -> Result<CallToolResponse, OfferError> {
        let request = json!({"method": "elicitation/create",
            "params": {"mode": "form", "message": message, "requestedSchema": schema}});
        match ask(context, request).await? {
            ClientResult::ElicitResult(answer) => {
                says(format!("Elicitation completed: {}", serde_json::to_string(&answer).unwrap()))
            }
            other => says(format!("{other:?}")),
        }
    }

    fn ask_by_result(
        name: &str,
        params: &CallToolRequestParams,
        context: &CallContext,
    ) -> Result<CallToolResponse, OfferError> {
        let answer = |name: &str| {
            let answer = params.input_responses.as_ref().and_then(|answers| answers.get(name));
            answer.filter(|answer| answer.is_object())
        };
        let state = params.request_state.as_deref();
        let wrong = || Err(refuses(ErrorData::invalid_params("this requestState is not one of this server", None)));
        let person = form("What is your name?", "name", "string");
        let roots = json!({"method": "roots/list", "params": {}});
        let asked = match name {
            "test_input_required_result_sampling" => match answer("capital_question") {
                Some(answer) => return says(answer.to_string()),
                None => asks(json!({"capital_question": sample("What is the capital of France?")}), None),
            },
            "test_input_required_result_list_roots" => match answer("client_roots") {
                Some(answer) => return says(answer.to_string()),
                None => asks(json!({"client_roots": roots}), None),
            },
            "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
                match (answer("confirm"), state) {
                    (Some(_), Some(STATE)) => return says("state-ok"),
                    (Some(_), _) => return wrong(),
                    _ => asks(json!({"confirm": form("Please confirm", "ok", "boolean")}), Some(STATE)),
                }
            }
            "test_input_required_result_multiple_inputs" => {
                let answers = ["user_name", "greeting", "client_roots"].map(|name| answer(name).is_some());
                if answers == [true; 3] && state == Some(STATE) {
                    return says("all there");
                }
                let all =
                    json!({"user_name": person, "greeting": sample("Generate a greeting"), "client_roots": roots});
                asks(all, Some(STATE))
            }
            "test_input_required_result_multi_round" => match (answer("step1"), answer("step2"), state) {
                (_, Some(_), Some("round-2")) => return says("both steps"),
                (Some(_), _, Some("round-1")) => asks(
                    json!({"step2": form("Step 2: What is your favorite color?", "color", "string")}),
                    Some("round-2"),
                ),
                (None, None, _) => {
                    asks(json!({"step1": form("Step 1: What is your name?", "name", "string")}), Some("round-1"))
                }
                _ => return wrong(),
            },
            "test_input_required_result_capabilities" => {
                let can = context.downstream.capabilities();
                let mut all = Map::new();
                if can.sampling.is_some() {
                    all.insert("sample".to_owned(), sample("Hello"));
                }
                if can.elicitation.is_some() {
                    all.insert("person".to_owned(), person);
                }
                asks(Value::Object(all), None)
            }
            _ => match answer("user_name") {
                Some(answer) => {
                    let name = answer.pointer("/content/name").and_then(Value::as_str).unwrap_or("nobody");
                    return says(format!("Hello, {name}!"));
                }
                None => asks(json!({"user_name": person}), None),
            },
        };
        Ok(asked.into())
    }
}

#[async_trait]
impl Offers for Fixture {
    fn view(&self, caller: &Caller, toolset: Option<&str>) -> Result<View, OfferError> {
        match toolset {
            None | Some("some") => Ok(View {
                caller: caller.clone(),
                toolset: toolset.map(ToOwned::to_owned),
                mode: self.mode,
                namespaces: self.namespaces,
            }),
            Some(other) => Err(OfferError::Toolset(other.to_owned())),
        }
    }

    fn tools(&self, _: &View) -> Vec<Arc<Offered>> {
        self.tools.read().unwrap().values().cloned().collect()
    }

    fn tool(&self, _: &View, name: &str) -> Result<Arc<Offered>, OfferError> {
        let tools = self.tools.read().unwrap();
        let found = tools.get(name).or_else(|| tools.values().find(|tool| tool.shown == name));
        found.cloned().ok_or_else(|| OfferError::NoTool { name: name.to_owned(), hint: String::new() })
    }

    async fn search(&self, _: &View, query: &SearchQuery) -> Result<SearchAnswer, OfferError> {
        let words: Vec<String> = query.q.to_lowercase().split_whitespace().map(ToOwned::to_owned).collect();
        let tools = self.tools.read().unwrap();
        let mut hits: Vec<HitView> = tools
            .values()
            .filter_map(|tool| {
                let text = format!("{} {}", tool.shown, tool.definition.description.as_deref()?).to_lowercase();
                let found = words.iter().filter(|word| text.contains(*word)).count();
                (found > 0).then(|| HitView {
                    id: tool.id.to_string(),
                    server: tool.id.server().to_string(),
                    name: tool.id.name().to_owned(),
                    description: tool.definition.description.clone().unwrap_or_default(),
                    score: found as f32 / words.len() as f32,
                    reasons: Reasons::default(),
                    policy: tool.policy,
                    available: tool.available,
                })
            })
            .collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(query.limit.unwrap_or(10));
        Ok(SearchAnswer { query: query.q.clone(), mode: SearchMode::Words, model: None, took_ms: 0.1, hits })
    }

    async fn call(
        &self,
        view: &View,
        params: CallToolRequestParams,
        _: bool,
        context: CallContext,
    ) -> Result<CallToolResponse, OfferError> {
        self.seen.lock().unwrap().push(params.clone());
        let tool = self.tool(view, &params.name)?;
        self.run(tool.id.name(), params, &context).await
    }

    fn resources(&self, _: &View) -> Vec<Resource> {
        let all = json!([
            {"uri": "test://static-binary", "name": "Binary", "description": "An image", "mimeType": "image/png"},
            {"uri": "test://static-text", "name": "Text", "description": "A text", "mimeType": "text/plain"},
            {"uri": "test://watched-resource", "name": "Watched", "description": "One that changes", "mimeType": "text/plain"},
        ]);
        serde_json::from_value(all).unwrap()
    }

    fn templates(&self, _: &View) -> Vec<ResourceTemplate> {
        let all = json!([{"uriTemplate": "test://template/{id}/data", "name": "Data", "description": "Data by id",
            "mimeType": "application/json"}]);
        serde_json::from_value(all).unwrap()
    }

    fn prompts(&self, _: &View) -> Vec<Prompt> {
        let all = json!([
            {"name": "test_simple_prompt", "description": "A simple prompt"},
            {"name": "test_prompt_with_arguments", "description": "A prompt with arguments", "arguments": [
                {"name": "arg1", "description": "First", "required": true},
                {"name": "arg2", "description": "Second", "required": true}]},
            {"name": "test_prompt_with_embedded_resource", "description": "A prompt with a resource", "arguments": [
                {"name": "resourceUri", "description": "Its URI", "required": true}]},
            {"name": "test_prompt_with_image", "description": "A prompt with an image"},
            {"name": "test_input_required_result_prompt", "description": "A prompt that asks first"},
        ]);
        serde_json::from_value(all).unwrap()
    }

    async fn read_resource(
        &self,
        _: &View,
        params: ReadResourceRequestParams,
        _: CallContext,
    ) -> Result<ReadResourceResponse, OfferError> {
        let uri = params.uri.as_str();
        let content = match uri {
            "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
            "test://static-text" | "test://watched-resource" => {
                json!({"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."})
            }
            _ => match uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data")) {
                Some(id) => {
                    let text = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
                    json!({"uri": uri, "mimeType": "application/json", "text": text.to_string()})
                }
                None => return Err(OfferError::NotFound { what: "resource", name: params.uri }),
            },
        };
        let result = json!({"resultType": "complete", "contents": [content], "ttlMs": 60_000, "cacheScope": "public"});
        Ok(ReadResourceResponse::Complete(serde_json::from_value(result).unwrap()))
    }

    async fn get_prompt(
        &self,
        _: &View,
        params: GetPromptRequestParams,
        _: CallContext,
    ) -> Result<GetPromptResponse, OfferError> {
        let argument = |name: &str| {
            let value = params.arguments.as_ref().and_then(|arguments| arguments.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let user = |content: Value| json!({"role": "user", "content": content});
        let text = |text: &str| user(json!({"type": "text", "text": text}));
        let messages = match params.name.as_str() {
            "test_simple_prompt" => json!([text("This is a simple prompt for testing.")]),
            "test_prompt_with_arguments" => {
                let (one, two) = (argument("arg1"), argument("arg2"));
                json!([text(&format!("Prompt with arguments: arg1='{one}', arg2='{two}'"))])
            }
            "test_prompt_with_embedded_resource" => {
                let resource = json!({"uri": argument("resourceUri"), "mimeType": "text/plain",
                    "text": "Embedded resource content for testing."});
                let message = user(json!({"type": "resource", "resource": resource}));
                json!([message, text("Please process the embedded resource above.")])
            }
            "test_prompt_with_image" => {
                let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
                json!([user(image), text("Please analyze the image above.")])
            }
            "test_input_required_result_prompt" => {
                let answer = params.input_responses.as_ref().and_then(|answers| answers.get("user_context"));
                match answer {
                    Some(answer) => json!([text(&answer.to_string())]),
                    None => {
                        let question = form("What context should the prompt use?", "context", "string");
                        return Ok(asks(json!({"user_context": question}), None).into());
                    }
                }
            }
            _ => return Err(OfferError::NotFound { what: "prompt", name: params.name.clone() }),
        };
        let result = json!({"resultType": "complete", "messages": messages});
        Ok(GetPromptResponse::Complete(serde_json::from_value(result).unwrap()))
    }

    async fn complete(
        &self,
        _: &View,
        params: CompleteRequestParams,
        _: CallContext,
    ) -> Result<CompleteResult, OfferError> {
        let values: Vec<String> = ["paris", "park"]
            .into_iter()
            .filter(|v| v.starts_with(&params.argument.value))
            .map(ToOwned::to_owned)
            .collect();
        let result = json!({"resultType": "complete", "completion": {"values": values, "hasMore": false}});
        Ok(serde_json::from_value(result).unwrap())
    }

    async fn watch_resource(&self, _: &View, uri: &str, watch: bool) -> Result<(), OfferError> {
        if !uri.starts_with("test://") {
            return Err(OfferError::NotFound { what: "resource", name: uri.to_owned() });
        }
        self.watched.lock().unwrap().push((uri.to_owned(), watch));
        Ok(())
    }

    fn changes(&self) -> broadcast::Receiver<ListChange> {
        self.bell.subscribe()
    }
}
