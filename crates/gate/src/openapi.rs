//! The OpenAPI document of a surface: what the routes say about themselves, and what all of them have in common.

use lares_store::keys::Role;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::{FieldError, OpenAiError, OpenAiErrorDetails, Problem};
use crate::request::is_below;

const BEARER: &str = "bearer";
const API_KEY: &str = "api_key";
const PROBLEM_JSON: &str = "application/problem+json";

/// The document before any route is in it.
pub(crate) fn begin(name: &str) -> OpenApi {
    let info = InfoBuilder::new().title(format!("Lares {name}")).version(env!("CARGO_PKG_VERSION")).build();
    let components = ComponentsBuilder::new()
        .schema(Problem::name(), Problem::schema())
        .schema(FieldError::name(), FieldError::schema())
        .build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// Says how keys are shown.
pub(crate) fn add_key_schemes(doc: &mut OpenApi) {
    let components = doc.components.get_or_insert_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("lares_…").build();
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer));
    components.add_security_scheme(API_KEY, SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))));
}

/// Says of every operation in `doc` that it needs a key with `role`, and what comes back without one.
pub(crate) fn require_key(doc: &mut OpenApi, role: Role) {
    for operation in doc.paths.paths.values_mut().flat_map(operations) {
        operation.security = Some(vec![
            SecurityRequirement::new(BEARER, Vec::<String>::new()),
            SecurityRequirement::new(API_KEY, Vec::<String>::new()),
        ]);
        let needs = format!("Needs a key with role `{role}` or higher.");
        operation.description = Some(match operation.description.take() {
            Some(said) if !said.is_empty() => format!("{said}\n\n{needs}"),
            _ => needs,
        });
        for (status, meaning) in [
            ("401", "No key, a mistyped one, or one that is not known"),
            ("403", "The role of the key is too low"),
            ("503", "The keys cannot be checked, or something the answer depends on is away"),
        ] {
            operation.responses.responses.entry(status.to_owned()).or_insert_with(|| problem(meaning));
        }
    }
}

/// Says of every operation in `doc` what comes back when anything else goes wrong.
pub(crate) fn add_default_problem(doc: &mut OpenApi) {
    for operation in doc.paths.paths.values_mut().flat_map(operations) {
        let responses = &mut operation.responses.responses;
        responses.entry("default".to_owned()).or_insert_with(|| problem("What went wrong, and what to do about it"));
    }
}

/// Says of every operation below `prefix` that its errors have the shape of OpenAI's API.
pub(crate) fn shape_as_openai(doc: &mut OpenApi, prefix: &str) {
    let components = doc.components.get_or_insert_default();
    components.schemas.extend([
        (OpenAiError::name().into_owned(), OpenAiError::schema()),
        (OpenAiErrorDetails::name().into_owned(), OpenAiErrorDetails::schema()),
    ]);
    let below = doc.paths.paths.iter_mut().filter(|(path, _)| is_below(path, prefix)).map(|(_, item)| item);
    for response in below.flat_map(operations).flat_map(|operation| operation.responses.responses.values_mut()) {
        if let RefOr::T(response) = response
            && response.content.shift_remove(PROBLEM_JSON).is_some()
        {
            let shape = ContentBuilder::new().schema(Some(Ref::from_schema_name(OpenAiError::name()))).build();
            response.content.insert("application/json".to_owned(), shape);
        }
    }
}

fn problem(meaning: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    ResponseBuilder::new().description(meaning).content(PROBLEM_JSON, content).build().into()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().filter_map(Option::as_mut)
}
