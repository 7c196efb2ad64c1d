//! The HTTP side: thin handlers over [`Door`], and their place in the OpenAPI document.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lares_gate::{Caller, Json};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::forward::Door;
use crate::refusal::Refusal;
use crate::request::Endpoint;
use crate::route::{Facts, Route};

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    door: Arc<Door>,
    /// When this process began, in seconds since 1970: OpenAI's list wants a date for each model.
    since: i64,
}

/// The routes under `/v1`.
pub fn routes(door: Arc<Door>) -> OpenApiRouter {
    let shared = Shared { door, since: jiff::Timestamp::now().as_second() };
    OpenApiRouter::new()
        .routes(routes!(models))
        .routes(routes!(model))
        .routes(routes!(chat_completions))
        .routes(routes!(completions))
        .routes(routes!(embeddings))
        // Names such as `Qwen/Coder` come unescaped from some clients.
        .route("/v1/models/{owner}/{name}", get(model_in_two_parts))
        .with_state(shared)
}

/// The models this door answers for.
#[derive(Debug, Serialize, ToSchema)]
struct ModelList {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    /// Every name, aliases included.
    data: Vec<ModelEntry>,
}

/// One name a request may ask for.
#[derive(Debug, Serialize, ToSchema)]
struct ModelEntry {
    /// The name.
    id: String,
    /// Always `model`.
    #[schema(example = "model")]
    object: &'static str,
    /// When this daemon began, in seconds since 1970.
    created: i64,
    /// The local model or the upstream that serves it.
    owned_by: String,
    /// Tokens of context each request gets (prompt and answer together), where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    /// What Lares knows beyond OpenAI's fields.
    lares: ModelFacts,
}

/// What Lares knows of a model.
#[derive(Debug, Serialize, ToSchema)]
struct ModelFacts {
    /// Tokens of context each request gets; null when not known.
    context: Option<u32>,
    /// Requests served at the same time.
    slots: u32,
    /// Whether it serves embeddings; null when not known.
    embeddings: Option<bool>,
    /// Whether it runs on this machine.
    local: bool,
}

impl ModelEntry {
    fn new(id: &str, route: &Route, created: i64) -> Self {
        let Facts { owner, local, context, slots, embeddings } = route.facts.clone();
        Self {
            id: id.to_owned(),
            object: "model",
            created,
            owned_by: owner,
            context_length: context,
            lares: ModelFacts { context, slots, embeddings, local },
        }
    }
}

/// The models that can be asked.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses((status = 200, body = ModelList)))]
async fn models(State(shared): State<Shared>) -> Json<ModelList> {
    let data = shared.door.routes().iter().map(|(id, route)| ModelEntry::new(id, route, shared.since)).collect();
    Json(ModelList { object: "list", data })
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai", params(("id" = String, Path, description = "Its name")),
    responses((status = 200, body = ModelEntry), (status = 404, description = "There is no such model")))]
async fn model(State(shared): State<Shared>, Path(id): Path<String>) -> Response {
    one_model(&shared, &id)
}

async fn model_in_two_parts(State(shared): State<Shared>, Path((owner, name)): Path<(String, String)>) -> Response {
    one_model(&shared, &format!("{owner}/{name}"))
}

fn one_model(shared: &Shared, id: &str) -> Response {
    let routes = shared.door.routes();
    match routes.get(id) {
        Some(route) => Json(ModelEntry::new(id, route, shared.since)).into_response(),
        None => {
            let there_is: Vec<_> = routes.iter().map(|(name, _)| name).collect();
            Refusal::unknown_model(id, routes.nearest(id).as_deref(), &there_is).into_response()
        }
    }
}

/// Chat: OpenAI's request, passed on as it is but for the model's name. With `stream`, server-sent events.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = serde_json::Value,
    responses((status = 200, description = "OpenAI's answer", body = serde_json::Value)))]
async fn chat_completions(State(shared): State<Shared>, caller: Caller, request: Request) -> Response {
    shared.door.answer(Endpoint::ChatCompletions, &caller, request).await
}

/// Completion of a text. With `stream`, server-sent events.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", request_body = serde_json::Value,
    responses((status = 200, description = "OpenAI's answer", body = serde_json::Value)))]
async fn completions(State(shared): State<Shared>, caller: Caller, request: Request) -> Response {
    shared.door.answer(Endpoint::Completions, &caller, request).await
}

/// Embeddings of one text or several.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = serde_json::Value,
    responses((status = 200, description = "OpenAI's answer", body = serde_json::Value)))]
async fn embeddings(State(shared): State<Shared>, caller: Caller, request: Request) -> Response {
    shared.door.answer(Endpoint::Embeddings, &caller, request).await
}
