//! The three tools that stand for all others: `search_tools`, `get_tool_details`, `call_tool`.

use std::fmt::Write as _;
use std::sync::Arc;

use rmcp::model::{CallToolRequestParams, CallToolResult, ContentBlock, JsonObject, Tool, ToolAnnotations};
use serde_json::{Map, Value, json};

use crate::api::{Policy, SearchAnswer, SearchQuery};
use crate::offers::{Offered, Offers, View};

/// Finds tools.
pub(super) const SEARCH: &str = "search_tools";
/// Shows one.
pub(super) const DETAILS: &str = "get_tool_details";
/// Calls one.
pub(super) const CALL: &str = "call_tool";

/// What clients are told to give to their model.
pub(super) const INSTRUCTIONS: &str = "This server gives access to many more tools than its list shows: describe what you \
    need to `search_tools`, see the parameters of what it finds with `get_tool_details`, and run it with `call_tool`. \
    Search before you decide that something cannot be done, and again with other words when nothing fits.";

/// Longest query, in characters; what is longer describes more than one need.
const MAX_QUERY: usize = 1000;
/// Most hits of a search.
const MAX_LIMIT: u64 = 50;
/// Longest description of a hit, in characters.
const MAX_SENTENCE: usize = 200;
/// Names that are suggested for one that is unknown.
const SUGGESTIONS: usize = 5;
/// Names that are compared with one that is unknown.
const MAX_COMPARED: usize = 20_000;
/// From this similarity on (Jaro-Winkler, 0 to 1) a name is worth suggesting.
const SIMILAR: f64 = 0.7;

/// Whether a name is one of the three.
pub(super) fn is_ours(name: &str) -> bool {
    [SEARCH, DETAILS, CALL].contains(&name)
}

/// The three tools.
pub(super) fn tools() -> Vec<Tool> {
    [SEARCH, DETAILS, CALL].into_iter().filter_map(tool).collect()
}

/// One of the three tools.
pub(super) fn tool(name: &str) -> Option<Tool> {
    let (title, description, schema) = match name {
        SEARCH => (
            "Search tools",
            "Finds tools for what you want to do. Far more tools are available than are listed: files, version control, \
             the web, databases, whatever this machine offers. Describe the need in plain words, one need a search, for \
             example \"show what changed in a git repository\". Gives the best matches first, each with its name, what \
             it does in a sentence, and a score from 0 to 1. Next, use get_tool_details with a name to see the \
             parameters, then call_tool to run it. If nothing fits, search again with other words.",
            json!({
                "type": "object",
                "properties": {
                    "query": {"type": "string", "minLength": 1, "maxLength": MAX_QUERY,
                        "description": "What you need, in words"},
                    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT,
                        "description": "Most matches to give"},
                    "server": {"type": "string", "description": "Only tools of this server"},
                    "tag": {"type": "string", "description": "Only tools with this tag"},
                },
                "required": ["query"],
                "additionalProperties": false,
            }),
        ),
        DETAILS => (
            "Get tool details",
            "Shows one tool whole: its description and the JSON Schema of its parameters. Use it with a name from \
             search_tools before the first call of a tool.",
            json!({
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "The name, exactly as search_tools gave it"},
                },
                "required": ["name"],
                "additionalProperties": false,
            }),
        ),
        CALL => (
            "Call tool",
            "Runs a tool that search_tools found and gives its result. `arguments` must fit the tool's own schema, which \
             get_tool_details shows.",
            json!({
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "The name, exactly as search_tools gave it"},
                    "arguments": {"type": "object", "additionalProperties": true,
                        "description": "The tool's arguments, by name; leave it out if it takes none"},
                },
                "required": ["name"],
                "additionalProperties": false,
            }),
        ),
        _ => return None,
    };
    let Value::Object(schema) = schema else { return None };
    let tool = Tool::new_with_raw(name.to_owned(), Some(description.into()), Arc::new(schema)).with_title(title);
    let hints = ToolAnnotations::new();
    Some(tool.with_annotations(match name {
        CALL => hints.read_only(false).open_world(true),
        _ => hints.read_only(true).open_world(false),
    }))
}

/// A result that says what is wrong, for the model to read.
pub(super) fn mistake(text: impl Into<String>) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(text)])
}

/// `search_tools`.
pub(super) async fn search(offers: &dyn Offers, view: &View, arguments: &JsonObject) -> CallToolResult {
    let query = match query(arguments) {
        Ok(query) => query,
        Err(why) => return mistake(why),
    };
    match offers.search(view, &query).await {
        Ok(answer) => found(offers, view, &answer),
        Err(error) => mistake(error.to_string()),
    }
}

fn query(arguments: &JsonObject) -> Result<SearchQuery, String> {
    let text = |name: &str| match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("`{name}` must be text")),
    };
    let q = text("query")?.ok_or_else(|| "`query` is missing: say in words what you need".to_owned())?;
    if q.chars().count() > MAX_QUERY {
        return Err(format!("`query` is longer than {MAX_QUERY} characters: search for one need at a time"));
    }
    let limit = match arguments.get("limit") {
        None | Some(Value::Null) => None,
        Some(limit) => {
            let limit = limit.as_u64().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            let limit = limit.ok_or_else(|| format!("`limit` must be a whole number from 1 to {MAX_LIMIT}"))?;
            usize::try_from(limit).ok()
        }
    };
    Ok(SearchQuery { q, limit, server: text("server")?, tag: text("tag")? })
}

fn found(offers: &dyn Offers, view: &View, answer: &SearchAnswer) -> CallToolResult {
    let mut text = String::new();
    let mut hits = Vec::with_capacity(answer.hits.len());
    for hit in &answer.hits {
        // What may not be called any more since it was found is left out.
        let Ok(tool) = offers.tool(view, &hit.id) else { continue };
        let what = first_sentence(tool.definition.description.as_deref().unwrap_or_default());
        let score = (f64::from(hit.score) * 100.0).round() / 100.0;
        let mut entry = json!({ "name": tool.shown, "description": what, "score": score });
        let _ = write!(text, "{}. {} ({score:.2})", hits.len() + 1, tool.shown);
        if !what.is_empty() {
            let _ = write!(text, ": {what}");
        }
        if tool.policy == Policy::Ask {
            entry["asksFirst"] = Value::Bool(true);
            text.push_str(" [a person is asked first]");
        }
        if !tool.available {
            entry["available"] = Value::Bool(false);
            text.push_str(" [its server does not answer now]");
        }
        text.push('\n');
        hits.push(entry);
    }
    let next = match hits.first().and_then(|hit| hit["name"].as_str()) {
        Some(name) => format!(
            "Next: {DETAILS} {} shows the parameters, {CALL} runs it. If none fits, search again with other words.",
            json!({ "name": name })
        ),
        None => "No tool fits. Search again with other words, or with fewer.".to_owned(),
    };
    text.push_str(&next);
    let mut result = CallToolResult::structured(json!({ "tools": hits, "next": next }));
    // The lines cost a model fewer tokens than JSON.
    result.content = vec![ContentBlock::text(text)];
    result
}

/// `get_tool_details`.
pub(super) fn details(offers: &dyn Offers, view: &View, arguments: &JsonObject) -> CallToolResult {
    let Some(name) = arguments.get("name").and_then(Value::as_str) else {
        return mistake("`name` is missing: give a name from search_tools");
    };
    let tool = match offers.tool(view, name) {
        Ok(tool) => tool,
        Err(error) => return mistake(unknown(offers, view, name, &error.to_string())),
    };
    let shown = as_tool(&tool);
    let mut value = serde_json::to_value(&shown).unwrap_or_default();
    if let Value::Object(value) = &mut value {
        if tool.policy == Policy::Ask {
            value.insert("asksFirst".to_owned(), Value::Bool(true));
        }
        if !tool.available {
            value.insert("available".to_owned(), Value::Bool(false));
        }
    }
    CallToolResult::structured(value)
}

/// The call that `call_tool` stands for.
///
/// # Errors
/// What is wrong with the arguments, for the model to read.
pub(super) fn call(mut params: CallToolRequestParams) -> Result<CallToolRequestParams, String> {
    let mut given = params.arguments.take().unwrap_or_default();
    let Some(Value::String(name)) = given.shift_remove("name") else {
        return Err("`name` is missing: give a name from search_tools".to_owned());
    };
    let arguments = match given.shift_remove("arguments") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        // Some models write the object as text.
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map_err(|_| "`arguments` must be an object with the tool's arguments by name".to_owned())?,
        Some(_) => return Err("`arguments` must be an object with the tool's arguments by name".to_owned()),
    };
    if let Some(stray) = given.keys().next() {
        return Err(format!("`{stray}` does not belong here: what the tool takes goes into `arguments`"));
    }
    params.name = name.into();
    params.arguments = Some(arguments);
    Ok(params)
}

/// What to say of a name that is none: the names nearest to it.
pub(super) fn unknown(offers: &dyn Offers, view: &View, name: &str, why: &str) -> String {
    let near = nearest(&offers.tools(view), name);
    let near = near.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match near.is_empty() {
        true => format!("{why}. Use {SEARCH} to find the right name."),
        false => format!("{why}. Near to it: {near}. Use {SEARCH} to find others."),
    }
}

fn nearest(tools: &[Arc<Offered>], name: &str) -> Vec<String> {
    // Names of any length would make the comparison slow.
    let name: String = name.to_lowercase().chars().take(200).collect();
    let bare = name.rsplit("__").next().unwrap_or(&name);
    let mut near: Vec<(f64, &str)> = tools
        .iter()
        .take(MAX_COMPARED)
        .map(|tool| {
            let whole = strsim::jaro_winkler(&tool.shown.to_lowercase(), &name);
            let last = strsim::jaro_winkler(&tool.id.name().to_lowercase(), bare);
            (whole.max(last), tool.shown.as_str())
        })
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    near.into_iter().take(SUGGESTIONS).map(|(_, name)| name.to_owned()).collect()
}

/// A tool as MCP lists it, under the name of the view.
pub(super) fn as_tool(offered: &Offered) -> Tool {
    let definition = &offered.definition;
    let mut schema = definition.input_schema.as_object().cloned().unwrap_or_default();
    // 2025-11-25 wants an object; servers leave it out.
    schema.entry("type").or_insert_with(|| "object".into());
    let description = definition.description.clone().map(Into::into);
    let mut tool = Tool::new_with_raw(offered.shown.clone(), description, Arc::new(schema));
    tool.title.clone_from(&definition.title);
    tool.output_schema = definition.output_schema.as_ref().and_then(Value::as_object).cloned().map(Arc::new);
    tool.annotations = definition.annotations.as_ref().and_then(|hints| serde_json::from_value(hints.clone()).ok());
    tool
}

/// The first sentence of a description, on one line and bounded.
fn first_sentence(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim();
    let end = line.match_indices(['.', '!', '?', '。']).map(|(at, mark)| at + mark.len()).find(|end| {
        // Not the dot of `e.g.`, `1.5` or `file.txt`: a sentence ends before a space and a capital, or with the line.
        let mut rest = line[*end..].chars();
        match (rest.next(), rest.next()) {
            (None, _) => true,
            (Some(' '), next) => next.is_none_or(|next| !next.is_lowercase()),
            (Some(_), _) => line[..*end].ends_with('。'),
        }
    });
    let sentence = &line[..end.unwrap_or(line.len())];
    match sentence.char_indices().nth(MAX_SENTENCE) {
        Some((cut, _)) => format!("{}…", sentence[..cut].trim_end()),
        None => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_sentence_of_a_description() {
        for (text, sentence) in [
            ("", ""),
            ("Reads a file", "Reads a file"),
            ("  Reads a file. Then closes it.", "Reads a file."),
            ("Reads e.g. file.txt in 1.5 s. Slow!", "Reads e.g. file.txt in 1.5 s."),
            ("Adds numbers\nand more.", "Adds numbers"),
            ("读取文件。然后关闭。", "读取文件。"),
        ] {
            assert_eq!(first_sentence(text), sentence, "{text}");
        }
        assert_eq!(first_sentence(&"ä".repeat(500)).chars().count(), MAX_SENTENCE + 1);
    }

    #[test]
    fn call_tool_takes_arguments_as_models_write_them() {
        let call = |arguments: Value| {
            let arguments = arguments.as_object().cloned().unwrap();
            call(CallToolRequestParams::new(CALL).with_arguments(arguments))
        };
        for given in
            [json!({"name": "a__b", "arguments": {"x": 1}}), json!({"name": "a__b", "arguments": "{\"x\": 1}"})]
        {
            let params = call(given).unwrap();
            assert_eq!((params.name.as_ref(), Value::from(params.arguments.unwrap())), ("a__b", json!({"x": 1})));
        }
        assert_eq!(call(json!({"name": "a__b"})).unwrap().arguments.unwrap().len(), 0);
        for (wrong, says) in [
            (json!({}), "name"),
            (json!({"name": 7}), "name"),
            (json!({"name": "a", "arguments": [1]}), "arguments"),
            (json!({"name": "a", "arguments": "x"}), "arguments"),
            (json!({"name": "a", "x": 1}), "`x`"),
        ] {
            assert!(call(wrong).unwrap_err().contains(says));
        }
    }

    proptest! {
        #[test]
        fn a_sentence_is_one_short_line(text in "(?s).{0,400}") {
            let sentence = first_sentence(&text);
            prop_assert!(sentence.chars().count() <= MAX_SENTENCE + 1 && !sentence.contains('\n'));
        }
    }
}
