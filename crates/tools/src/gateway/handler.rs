//! What the door answers. One handler a session of the older era, one a request of the newer.

#![expect(deprecated, reason = "MCP 2026-07-28 deprecates logging and resources/subscribe; clients of today use them")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lares_config::GatewayMode;
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, CustomRequest,
    CustomResult, DiscoverResult, ErrorCode, GetPromptRequestParams, GetPromptResponse, Implementation,
    InputRequiredResult, InputResponses, JsonObject, ListPromptsResult, ListResourceTemplatesResult,
    ListResourcesResult, ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
    RequestMetaObject, ResourceUpdatedNotificationParam, ResultType, ServerCapabilities, ServerConfig,
    SetLevelRequestMethod, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool,
    UnsubscribeRequestParams,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, Peer, RoleServer, ServerHandler};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::offers::{OfferError, View};
use crate::port::{CallContext, UpstreamError};

use super::changes::{Batch, Watch};
use super::client::{Client, Level, is_stateless};
use super::parked::{Next, Parked, Running};
use super::{Inner, finding, page};

/// How long clients may take a list for fresh without asking or listening, in milliseconds.
const LIST_TTL_MS: u64 = 10_000;
/// Most rounds of questions of one call, as other implementations have it (rmcp's `DEFAULT_MRTR_MAX_ROUNDS`).
const MAX_ROUNDS: u32 = 10;
/// Wait before a call that was only told to come again comes again; it grows with each round.
const AGAIN: Duration = Duration::from_millis(100);
/// Most resources that one client watches.
const MAX_WATCHED: usize = 256;
/// Longest wait until a client has taken a notification.
const NOTICE_TIME: Duration = Duration::from_secs(10);
/// What the keys of a hop's own metadata begin with (MCP 2026-07-28, "General fields").
const HOP: &str = "io.modelcontextprotocol/";

/// One client, as it sees what is offered.
pub(super) struct Handler {
    gateway: Arc<Inner>,
    view: Arc<View>,
    level: Level,
    watched: Arc<Mutex<HashMap<String, Watch>>>,
    listens: AtomicBool,
    /// The session or the request is over.
    ended: CancellationToken,
}

/// Why a call gave no result.
enum Stop {
    Offer(OfferError),
    Protocol(ErrorData),
}

impl From<OfferError> for Stop {
    fn from(error: OfferError) -> Self {
        Self::Offer(error)
    }
}

impl From<ErrorData> for Stop {
    fn from(error: ErrorData) -> Self {
        Self::Protocol(error)
    }
}

impl Handler {
    pub(super) fn new(gateway: Arc<Inner>, view: Arc<View>, ended: CancellationToken) -> Self {
        Self { gateway, view, level: Level::default(), watched: Arc::default(), listens: AtomicBool::new(false), ended }
    }

    fn finds(&self) -> bool {
        self.view.mode != GatewayMode::List
    }

    fn lists(&self) -> bool {
        self.view.mode != GatewayMode::Search
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<String, Watch>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes on to a tool server of the metadata of a request: not what was between the client and us.
    fn meta(&self, client: &Client, context: &RequestContext<RoleServer>) -> Option<RequestMetaObject> {
        let kept = context.meta.iter().filter(|(key, _)| !key.starts_with(HOP));
        let mut meta =
            RequestMetaObject::from(kept.map(|(key, value)| (key.clone(), value.clone())).collect::<JsonObject>());
        if let Some(level) = client.level() {
            meta.set_log_level(level);
        }
        Some(meta).filter(|meta| !meta.is_empty())
    }

    fn context(client: &Arc<Client>, cancelled: CancellationToken) -> CallContext {
        CallContext { downstream: Arc::<Client>::clone(client), cancelled }
    }

    /// Calls a tool, whichever way its questions have to go.
    async fn call(
        &self,
        mut params: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, Stop> {
        if !is_stateless(context) {
            let client = Arc::new(Client::new(context, &self.level, None));
            params.meta = self.meta(&client, context);
            let mut round = 0;
            loop {
                let call = Self::context(&client, context.ct.clone());
                let asked = match self.gateway.offers.call(&self.view, params.clone(), false, call).await? {
                    CallToolResponse::InputRequired(asked) => asked,
                    done => return Ok(done),
                };
                (params.input_responses, params.request_state) = ask(&client, asked, &mut round).await?;
            }
        }
        let running = if Parked::is_state(params.request_state.as_deref()) {
            match self.gateway.parked.go_on(&self.view, params)? {
                Next::Runs(running) => {
                    running.client.go_on(context);
                    running
                }
                Next::Waits(asked) => return Ok(asked),
            }
        } else if Client::answers(&context.client_capabilities().unwrap_or_default()) {
            self.begin(params, context)
        } else {
            let client = Arc::new(Client::new(context, &self.level, None));
            params.meta = self.meta(&client, context);
            let call = Self::context(&client, context.ct.clone());
            return Ok(self.gateway.offers.call(&self.view, params, false, call).await?);
        };
        self.follow(running, context).await
    }

    /// Begins a call that can outlive its request.
    fn begin(&self, mut params: CallToolRequestParams, context: &RequestContext<RoleServer>) -> Running {
        let (sender, questions) = mpsc::channel(1);
        let client = Arc::new(Client::new(context, &self.level, Some(sender)));
        params.meta = self.meta(&client, context);
        let cancelled = self.gateway.shutdown.child_token();
        let call = Self::context(&client, cancelled.clone());
        let (gateway, view, asked) = (Arc::clone(&self.gateway), Arc::clone(&self.view), params.clone());
        let work = async move { gateway.offers.call(&view, asked, false, call).await };
        let task = tokio::spawn(work.in_current_span());
        Running { task, questions, client, params, _cancel: cancelled.drop_guard() }
    }

    /// Waits for the result of a call, or for its next question.
    async fn follow(
        &self,
        mut running: Running,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, Stop> {
        tokio::select! {
            biased;
            done = &mut running.task => match done {
                Ok(done) => Ok(done?),
                Err(error) => {
                    tracing::error!(%error, "a call of a tool did not come to its end");
                    Err(ErrorData::internal_error("the call failed because of a bug in Lares", None).into())
                }
            },
            Some(question) = running.questions.recv() => {
                Ok(self.gateway.parked.put(&self.view, running, question)?)
            }
            () = context.ct.cancelled() => Err(OfferError::Upstream(UpstreamError::Cancelled).into()),
        }
    }

    /// Tells the client of a session what became old, until one of both is over.
    async fn tell(&self, peer: Peer<RoleServer>) {
        if self.listens.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut changes = self.gateway.offers.changes();
        let (lists, watched, ended) = (self.lists(), Arc::clone(&self.watched), self.ended.clone());
        let work = async move {
            while let Some(batch) = Batch::next(&mut changes).await {
                let updated = batch.updated(watched.lock().unwrap_or_else(PoisonError::into_inner).keys());
                let told = async {
                    if batch.tools && lists {
                        peer.notify_tool_list_changed().await?;
                    }
                    if batch.resources {
                        peer.notify_resource_list_changed().await?;
                    }
                    if batch.prompts {
                        peer.notify_prompt_list_changed().await?;
                    }
                    for uri in updated {
                        peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await?;
                    }
                    Ok::<_, rmcp::ServiceError>(())
                };
                if tokio::time::timeout(NOTICE_TIME, told).await.is_err() {
                    tracing::debug!("a client does not take notifications");
                }
                if peer.is_transport_closed() {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = ended.cancelled() => {}
            }
        });
    }
}

/// Gets the answers a result asks for from a client of the older era.
async fn ask(
    client: &Client,
    asked: InputRequiredResult,
    round: &mut u32,
) -> Result<(Option<InputResponses>, Option<String>), ErrorData> {
    *round += 1;
    if *round > MAX_ROUNDS {
        return Err(ErrorData::internal_error("the tool server asks on and on", None));
    }
    let responses = match asked.input_requests {
        Some(requests) => Some(client.fulfil(requests).await?),
        None => {
            tokio::time::sleep(AGAIN * *round).await;
            None
        }
    };
    Ok((responses, asked.request_state))
}

/// An error of the protocol for what is not a call of a tool.
fn refusal(error: OfferError) -> ErrorData {
    let said = error.to_string();
    match error {
        OfferError::NotFound { what: "resource", name } => {
            ErrorData::resource_not_found(said, Some(serde_json::json!({ "uri": name })))
        }
        OfferError::NotFound { .. } | OfferError::NoTool { .. } | OfferError::Toolset(_) | OfferError::Query(_) => {
            ErrorData::invalid_params(said, None)
        }
        OfferError::Held { .. } | OfferError::Denied { .. } | OfferError::Consent(_) | OfferError::Declined(_) => {
            ErrorData::invalid_request(said, None)
        }
        OfferError::Upstream(UpstreamError::Protocol { error, .. }) => passed_on(*error),
        OfferError::Upstream(_) => ErrorData::internal_error(said, None),
    }
}

/// The error of a tool server as it came, but for the codes that would make the client doubt its own request to us.
fn passed_on(mut error: ErrorData) -> ErrorData {
    if [ErrorCode::HEADER_MISMATCH, ErrorCode::UNSUPPORTED_PROTOCOL_VERSION].contains(&error.code) {
        error.code = ErrorCode::INTERNAL_ERROR;
    }
    error
}

fn cursor(request: Option<&PaginatedRequestParams>) -> Option<&str> {
    request.and_then(|request| request.cursor.as_deref())
}

/// Lists depend on the key, so nobody else may be given a kept one.
macro_rules! page_of {
    ($result:ident, $entries:expr, $next:expr) => {{
        let mut result =
            $result::with_all_items($entries).with_ttl_ms(LIST_TTL_MS).with_cache_scope(CacheScope::Private);
        result.next_cursor = $next;
        result
    }};
}

/// What a server of the older era answers has no `resultType`, which the newer one requires. It is set on everything that is
/// passed on; `rmcp` takes it off again for clients of the older era.
impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let mut capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_completions()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_tools()
            .build();
        if let Some(tools) = capabilities.tools.as_mut().filter(|_| self.lists()) {
            tools.list_changed = Some(true);
        }
        let name = Implementation::new("lares", env!("CARGO_PKG_VERSION")).with_title("Lares tools");
        let info = ServerConfig::new(capabilities).with_server_info(name);
        if self.finds() { info.with_instructions(finding::INSTRUCTIONS) } else { info }
    }

    async fn discover(&self, _: RequestContext<RoleServer>) -> Result<DiscoverResult, ErrorData> {
        let versions = self.supported_protocol_versions().into_owned();
        Ok(DiscoverResult::from_server_info(versions, self.get_info()).with_ttl_ms(LIST_TTL_MS))
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.tell(context.peer).await;
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if is_stateless(&context) {
            return Err(ErrorData::method_not_found::<SetLevelRequestMethod>());
        }
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = Some(request.level);
        Ok(())
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let cursor = cursor(request.as_ref());
        let mut offered = if self.lists() { self.gateway.offers.tools(&self.view) } else { Vec::new() };
        if self.finds() {
            offered.retain(|tool| !finding::is_ours(&tool.shown));
        }
        let (offered, next) = page::cut(offered, |tool| tool.shown.as_str(), "tools", cursor)?;
        let ours = if self.finds() && cursor.is_none() { finding::tools() } else { Vec::new() };
        let tools = ours.into_iter().chain(offered.iter().map(|tool| finding::as_tool(tool))).collect();
        Ok(page_of!(ListToolsResult, tools, next))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        if self.finds()
            && let Some(tool) = finding::tool(name)
        {
            return Some(tool);
        }
        self.gateway.offers.tool(&self.view, name).ok().map(|tool| finding::as_tool(&tool))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let offers = self.gateway.offers.as_ref();
        let ours = self.finds() && finding::is_ours(&request.name);
        let (request, name) = match request.name.as_ref() {
            finding::SEARCH if ours => {
                let arguments = request.arguments.unwrap_or_default();
                return Ok(finding::search(offers, &self.view, &arguments).await.into());
            }
            finding::DETAILS if ours => {
                let arguments = request.arguments.unwrap_or_default();
                return Ok(finding::details(offers, &self.view, &arguments).into());
            }
            finding::CALL if ours => match finding::call(request) {
                Ok(request) => {
                    let name = request.name.clone();
                    (request, name)
                }
                Err(why) => return Ok(finding::mistake(why).into()),
            },
            _ => {
                let name = request.name.clone();
                (request, name)
            }
        };
        match self.call(request, &context).await {
            Ok(CallToolResponse::Task(_)) => {
                Err(ErrorData::internal_error("the tool server answered with a task, which is not passed on", None))
            }
            Ok(CallToolResponse::Complete(mut result)) => {
                result.result_type = Some(ResultType::COMPLETE);
                Ok(result.into())
            }
            Ok(response) => Ok(response),
            Err(Stop::Protocol(error)) => Err(error),
            Err(Stop::Offer(error @ OfferError::NoTool { .. })) => {
                let why = error.to_string();
                if ours {
                    Ok(finding::mistake(finding::unknown(offers, &self.view, &name, &why)).into())
                } else {
                    Err(ErrorData::invalid_params(format!("Unknown tool: {why}"), None))
                }
            }
            Err(Stop::Offer(OfferError::Upstream(UpstreamError::Protocol { error, .. }))) => Err(passed_on(*error)),
            Err(Stop::Offer(error @ OfferError::Upstream(UpstreamError::Cancelled))) => Err(refusal(error)),
            // The model can do something about these, or tell a person.
            Err(Stop::Offer(error)) => Ok(finding::mistake(error.to_string()).into()),
        }
    }

    async fn list_resources(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let all = self.gateway.offers.resources(&self.view);
        let (page, next) = page::cut(all, |resource| resource.uri.as_str(), "resources", cursor(request.as_ref()))?;
        Ok(page_of!(ListResourcesResult, page, next))
    }

    async fn list_resource_templates(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let all = self.gateway.offers.templates(&self.view);
        let (page, next) = page::cut(all, |t| t.uri_template.as_str(), "templates", cursor(request.as_ref()))?;
        Ok(page_of!(ListResourceTemplatesResult, page, next))
    }

    async fn list_prompts(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let all = self.gateway.offers.prompts(&self.view);
        let (page, next) = page::cut(all, |prompt| prompt.name.as_str(), "prompts", cursor(request.as_ref()))?;
        Ok(page_of!(ListPromptsResult, page, next))
    }

    async fn read_resource(
        &self,
        mut params: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let client = Arc::new(Client::new(&context, &self.level, None));
        params.meta = self.meta(&client, &context);
        let mut round = 0;
        loop {
            let call = Self::context(&client, context.ct.clone());
            match self.gateway.offers.read_resource(&self.view, params.clone(), call).await.map_err(refusal)? {
                ReadResourceResponse::InputRequired(asked) if !is_stateless(&context) => {
                    (params.input_responses, params.request_state) = ask(&client, asked, &mut round).await?;
                }
                ReadResourceResponse::Complete(mut read) => {
                    read.cache_scope = Some(CacheScope::Private);
                    read.result_type = Some(ResultType::COMPLETE);
                    return Ok(read.into());
                }
                asked => return Ok(asked),
            }
        }
    }

    async fn get_prompt(
        &self,
        mut params: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let client = Arc::new(Client::new(&context, &self.level, None));
        params.meta = self.meta(&client, &context);
        let mut round = 0;
        loop {
            let call = Self::context(&client, context.ct.clone());
            match self.gateway.offers.get_prompt(&self.view, params.clone(), call).await.map_err(refusal)? {
                GetPromptResponse::InputRequired(asked) if !is_stateless(&context) => {
                    (params.input_responses, params.request_state) = ask(&client, asked, &mut round).await?;
                }
                GetPromptResponse::Complete(mut got) => {
                    got.result_type = Some(ResultType::COMPLETE);
                    return Ok(got.into());
                }
                asked => return Ok(asked),
            }
        }
    }

    async fn complete(
        &self,
        mut params: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let client = Arc::new(Client::new(&context, &self.level, None));
        params.meta = self.meta(&client, &context);
        let call = Self::context(&client, context.ct.clone());
        let mut completed = self.gateway.offers.complete(&self.view, params, call).await.map_err(refusal)?;
        completed.result_type = Some(ResultType::COMPLETE);
        Ok(completed)
    }

    async fn subscribe(&self, request: SubscribeRequestParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        let has_room = {
            let watched = self.watched();
            if watched.contains_key(&request.uri) {
                return Ok(());
            }
            watched.len() < MAX_WATCHED
        };
        if !has_room {
            let said = format!("a session watches at most {MAX_WATCHED} resources");
            return Err(ErrorData::invalid_params(said, None));
        }
        let watch = Watch::begin(&self.gateway, &self.view, &request.uri).await.map_err(refusal)?;
        self.watched().insert(request.uri, watch);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.watched().remove(&request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let mut accepted = requested.clone();
        if let Some(uris) = &mut accepted.resource_subscriptions {
            uris.truncate(MAX_WATCHED);
        }
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        // One too many ends at once, which the protocol has as the end of a stream that the server closes.
        let Ok(_permit) = self.gateway.listeners.try_acquire() else { return Ok(()) };
        let mut changes = self.gateway.offers.changes();
        let accepted = context.accepted().clone();
        let mut watched = HashMap::new();
        for uri in accepted.resource_subscriptions.unwrap_or_default() {
            match Watch::begin(&self.gateway, &self.view, &uri).await {
                Ok(watch) => drop(watched.insert(uri, watch)),
                Err(error) => tracing::debug!(%error, uri, "a resource cannot be watched"),
            }
        }
        let sink = context.sink().clone();
        let work = async {
            while let Some(batch) = Batch::next(&mut changes).await {
                let told = async {
                    if batch.tools && accepted.tools_list_changed == Some(true) {
                        sink.notify_tool_list_changed().await?;
                    }
                    if batch.resources && accepted.resources_list_changed == Some(true) {
                        sink.notify_resource_list_changed().await?;
                    }
                    if batch.prompts && accepted.prompts_list_changed == Some(true) {
                        sink.notify_prompt_list_changed().await?;
                    }
                    for uri in batch.updated(watched.keys()) {
                        sink.notify_resource_updated(uri).await?;
                    }
                    Ok::<_, rmcp::service::SubscriptionSendError>(())
                };
                match tokio::time::timeout(NOTICE_TIME, told).await {
                    Ok(Ok(())) => {}
                    // The client has to read all lists again when it comes back.
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = context.cancelled() => {}
            () = self.ended.cancelled() => {}
        }
        Ok(())
    }

    /// What rmcp does not understand: an unknown method, or a known one with parameters that do not fit.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let both = ["tools/call", "resources/read", "prompts/get", "completion/complete"];
        let older = ["initialize", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];
        let newer = ["subscriptions/listen"];
        let ours = if is_stateless(&context) { newer.as_slice() } else { older.as_slice() };
        let method = request.method;
        if both.contains(&method.as_str()) || ours.contains(&method.as_str()) {
            return Err(ErrorData::invalid_params(format!("the parameters of {method} do not fit"), None));
        }
        Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method, None))
    }
}
