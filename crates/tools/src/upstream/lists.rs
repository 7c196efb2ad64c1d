//! Fetching what a server offers: every list, page after page, within bounds.

use std::collections::HashSet;
use std::time::Duration;

use rmcp::model::{
    ClientRequest, ErrorCode, ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest, ListToolsRequest,
    PaginatedRequestParams, Prompt, Resource, ResourceTemplate, ServerResult, Tool,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::session::{Failure, Live, unexpected};
use crate::port::Offer;

/// Most entries of a list.
const MAX_ENTRIES: usize = 10_000;
/// Most pages of a list.
const MAX_PAGES: usize = 200;
/// Largest list in bytes, as a multiple of the largest message.
const LARGEST_MESSAGES: usize = 8;

/// One page.
struct Page<T> {
    entries: Vec<T>,
    next: Option<String>,
    ttl: Option<u64>,
}

/// Fetches all lists that the server says it has, in `limit` in all.
pub(super) async fn fetch(live: &Live, limit: Duration, max_message: usize) -> Result<Offer, Failure> {
    let until = Instant::now() + limit;
    let mut fetcher =
        Fetcher { live, limit, until, max_bytes: max_message.saturating_mul(LARGEST_MESSAGES), ttl: None };
    let has = &live.info.capabilities;
    let mut offer = Offer { instructions: live.info.instructions.clone(), ..Offer::default() };
    if has.tools.is_some() {
        offer.tools = fetcher
            .all(
                "tools",
                |params| ClientRequest::from(ListToolsRequest { params, ..Default::default() }),
                |result| match result {
                    ServerResult::ListToolsResult(page) => {
                        Some(Page::<Tool> { entries: page.tools, next: page.next_cursor, ttl: page.ttl_ms })
                    }
                    other => lenient(other, "tools"),
                },
            )
            .await?;
    }
    if has.resources.is_some() {
        let resources = fetcher
            .all(
                "resources",
                |params| ClientRequest::from(ListResourcesRequest { params, ..Default::default() }),
                |result| match result {
                    ServerResult::ListResourcesResult(page) => {
                        Some(Page::<Resource> { entries: page.resources, next: page.next_cursor, ttl: page.ttl_ms })
                    }
                    other => lenient(other, "resources"),
                },
            )
            .await;
        offer.resources = or_none(resources)?;
        let templates = fetcher
            .all(
                "resource templates",
                |params| ClientRequest::from(ListResourceTemplatesRequest { params, ..Default::default() }),
                |result| match result {
                    ServerResult::ListResourceTemplatesResult(page) => Some(Page::<ResourceTemplate> {
                        entries: page.resource_templates,
                        next: page.next_cursor,
                        ttl: page.ttl_ms,
                    }),
                    other => lenient(other, "resourceTemplates"),
                },
            )
            .await;
        offer.templates = or_none(templates)?;
    }
    if has.prompts.is_some() {
        let prompts = fetcher
            .all(
                "prompts",
                |params| ClientRequest::from(ListPromptsRequest { params, ..Default::default() }),
                |result| match result {
                    ServerResult::ListPromptsResult(page) => {
                        Some(Page::<Prompt> { entries: page.prompts, next: page.next_cursor, ttl: page.ttl_ms })
                    }
                    other => lenient(other, "prompts"),
                },
            )
            .await;
        offer.prompts = or_none(prompts)?;
    }
    offer.ttl = fetcher.ttl.map(Duration::from_millis);
    Ok(offer)
}

/// The shortest request that proves the server still answers.
pub(super) fn probe() -> ClientRequest {
    ClientRequest::from(ListToolsRequest::default())
}

struct Fetcher<'a> {
    live: &'a Live,
    limit: Duration,
    until: Instant,
    max_bytes: usize,
    /// The shortest of all pages.
    ttl: Option<u64>,
}

impl Fetcher<'_> {
    async fn all<T: Serialize>(
        &mut self,
        what: &str,
        request: impl Fn(Option<PaginatedRequestParams>) -> ClientRequest,
        read: impl Fn(ServerResult) -> Option<Page<T>>,
    ) -> Result<Vec<T>, Failure> {
        let mut entries: Vec<T> = Vec::new();
        let mut seen = HashSet::new();
        let mut bytes = 0_usize;
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let params = cursor.take().map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
            let left = self.until.saturating_duration_since(Instant::now());
            let result = self.live.ask(request(params), left).await.map_err(|failure| match failure {
                Failure::Timeout(_) => Failure::Timeout(self.limit),
                other => other,
            })?;
            let page = read(result).ok_or_else(|| Failure::Protocol(unexpected()))?;
            self.ttl = match (self.ttl, page.ttl) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            bytes = bytes.saturating_add(page.entries.iter().map(size).sum());
            entries.extend(page.entries);
            if bytes > self.max_bytes {
                return Err(Failure::TooLarge);
            }
            if entries.len() > MAX_ENTRIES {
                return self.cut(what, entries, "too many entries");
            }
            let Some(next) = page.next.filter(|next| !next.is_empty()) else { return Ok(entries) };
            if !seen.insert(next.clone()) {
                return self.cut(what, entries, "the same page again");
            }
            cursor = Some(next);
        }
        self.cut(what, entries, "too many pages")
    }

    /// What came of a list that does not end is used; a warning says that it is not all.
    fn cut<T>(&self, what: &str, mut entries: Vec<T>, why: &str) -> Result<Vec<T>, Failure> {
        entries.truncate(MAX_ENTRIES);
        tracing::warn!(
            server = %self.live.traffic.server, list = what, why, kept = entries.len(),
            "a list of a tool server does not end"
        );
        Ok(entries)
    }
}

fn size(entry: &impl Serialize) -> usize {
    /// Counts what is written.
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What cannot be written as JSON did not come as JSON.
    let _ = serde_json::to_writer(&mut count, entry);
    count.0
}

/// A page in which some entries are not what they should be: those are left out.
fn lenient<T: DeserializeOwned>(result: ServerResult, key: &str) -> Option<Page<T>> {
    let ServerResult::CustomResult(custom) = result else { return None };
    let Value::Object(mut page) = custom.0 else { return None };
    let Some(Value::Array(listed)) = page.remove(key) else { return None };
    let count = listed.len();
    let entries: Vec<T> = listed.into_iter().filter_map(|entry| serde_json::from_value(entry).ok()).collect();
    if entries.len() < count {
        tracing::warn!(list = key, dropped = count - entries.len(), "a tool server lists what is not valid");
    }
    let next = page.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
    Some(Page { entries, next, ttl: page.get("ttlMs").and_then(Value::as_u64) })
}

/// A list that a server says it has and then does not know is an empty one.
fn or_none<T>(listed: Result<Vec<T>, Failure>) -> Result<Vec<T>, Failure> {
    match listed {
        Err(Failure::Protocol(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => Ok(Vec::new()),
        other => other,
    }
}
