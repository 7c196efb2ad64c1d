//! What must be true of searching whatever the tools and the questions are.
#![allow(clippy::unwrap_used)]

use lares_tools::search::{CANDIDATES, Document, Field, Filter, Found, Index, Mode, Parameter, Query, dense, text};
use proptest::prelude::*;

const WIDTH: usize = 24;

/// A vector of unit length that looks random and is the same each time.
fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut numbers = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    dense::mean(&[(0..WIDTH).map(|_| numbers()).collect()]).unwrap()
}

fn tool(server: &str, name: &str, description: &str) -> Document<String> {
    Document {
        id: format!("{server}__{name}"),
        server: server.to_owned(),
        name: name.to_owned(),
        title: String::new(),
        description: description.to_owned(),
        parameters: Vec::new(),
        tags: Vec::new(),
        state: String::new(),
    }
}

fn house() -> Vec<Document<String>> {
    let mut tools = vec![
        tool("files", "read_file", "Reads the whole content of a file"),
        tool("files", "list_directory", "Lists what is in a directory"),
        tool("files", "moveFile", "Moves or renames a file"),
        tool("git", "git_status", "Shows the working tree status"),
        tool("git", "git_log", "Shows the commit history"),
        tool("time", "get_current_time", "Get current time in a specific timezone"),
        tool("rail", "query_tickets", "查询12306余票信息"),
    ];
    tools[4].parameters =
        vec![Parameter { name: "max_count".to_owned(), description: "how many revisions".to_owned() }];
    tools[5].tags = vec!["read-only".to_owned()];
    tools[3].state = "approved".to_owned();
    tools
}

fn filled(tools: &[Document<String>]) -> Index<String> {
    let index = Index::new();
    for tool in tools {
        index.put(tool.clone(), None);
    }
    index
}

fn ask(index: &Index<String>, text: &str, vectors: &[Vec<f32>], limit: usize, filter: &Filter) -> Found<String> {
    (*index.search(&Query { text, vectors, limit, filter, fits: None })).clone()
}

fn first(text: &str) -> Option<String> {
    ask(&filled(&house()), text, &[], 10, &Filter::default()).hits.first().map(|hit| hit.id.clone())
}

#[test]
fn words_find_what_they_name() {
    let cases = [
        ("read_file", "files__read_file"),
        ("call files__read_file, please", "files__read_file"),
        ("GIT_LOG", "git__git_log"),
        ("movefile", "files__moveFile"),
        ("move a file", "files__moveFile"),
        ("listing directories", "files__list_directory"),
        ("list the direktory", "files__list_directory"),
        ("what time is it, current timezone", "time__get_current_time"),
        ("show commits", "git__git_log"),
        ("revisions", "git__git_log"),
        ("余票", "rail__query_tickets"),
    ];
    for (text, expected) in cases {
        assert_eq!(first(text).as_deref(), Some(expected), "{text}");
    }
    assert_eq!(first("of the"), None, "words that tell nothing find nothing");
    assert_eq!(first(""), None);
}

#[test]
fn an_answer_tells_why() {
    let index = filled(&house());
    let found = ask(&index, "history of Revisions", &[], 10, &Filter::default());
    assert_eq!(found.mode, Mode::Words);
    let hit = &found.hits[0];
    assert_eq!(hit.reasons.words, ["history", "revisions"]);
    assert_eq!(hit.reasons.fields, [Field::Description, Field::ParameterDescription]);
    assert!(hit.reasons.bm25 > 0.0 && hit.reasons.cosine.is_none() && !hit.reasons.named);
    assert!(ask(&index, "git_log", &[], 1, &Filter::default()).hits[0].reasons.named);
}

#[test]
fn filters_come_before_the_ranking() {
    let index = filled(&house());
    let ids = |filter: &Filter| {
        ask(&index, "show the file status of time", &[], 10, filter)
            .hits
            .into_iter()
            .map(|hit| hit.id)
            .collect::<Vec<_>>()
    };
    let of = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&Filter { states: of(&["approved"]), ..Filter::default() }), ["git__git_status"]);
    assert_eq!(ids(&Filter { tags: of(&["read-only"]), ..Filter::default() }), ["time__get_current_time"]);
    assert!(ids(&Filter { servers: of(&["git"]), ..Filter::default() }).iter().all(|id| id.starts_with("git__")));
    let one = |id: &String| id == "files__read_file";
    let query = Query { text: "status file", vectors: &[], limit: 5, filter: &Filter::default(), fits: Some(&one) };
    assert_eq!(index.search(&query).hits.len(), 1);
}

#[test]
fn a_changed_definition_is_found_by_its_new_words_at_once() {
    let index = filled(&house());
    let ask = |text| ask(&index, text, &[], 1, &Filter::default()).hits.first().map(|hit| hit.id.clone());
    assert_eq!(ask("weather"), None);
    index.put(tool("git", "git_log", "Shows the weather"), None);
    assert_eq!(ask("weather").as_deref(), Some("git__git_log"));
    assert_eq!(ask("revisions"), None);
    assert_eq!(index.len(), (7, 0));
}

#[test]
fn meaning_finds_what_words_do_not() {
    let index = filled(&house());
    assert!(index.set_vector(&"git__git_log".to_owned(), &vector(1)));
    assert!(!index.set_vector(&"git__none".to_owned(), &vector(1)));
    assert!(!index.put(tool("x", "y", "z"), Some(&[1.0])), "as wide as the others");
    let found = ask(&index, "yesterday", &[vector(1)], 3, &Filter::default());
    assert_eq!((found.mode, found.hits[0].id.as_str()), (Mode::Hybrid, "git__git_log"));
    assert_eq!(found.hits[0].reasons.cosine, Some(1.0));
    assert_eq!(ask(&index, "yesterday", &[vec![1.0]], 3, &Filter::default()).mode, Mode::Words, "of another model");
    index.clear_vectors();
    assert_eq!(ask(&index, "yesterday", &[vector(1)], 3, &Filter::default()).mode, Mode::Words);
}

#[test]
fn a_part_of_a_question_finds_its_tool() {
    let index = filled(&house());
    index.set_vector(&"git__git_log".to_owned(), &vector(1));
    index.set_vector(&"git__git_status".to_owned(), &vector(2));
    let near = |found: &Found<String>, id: &str| found.hits.iter().position(|hit| hit.id == id);
    let vectors = [vector(2), vector(3), vector(1)];
    let whole = ask(&index, "yesterday", &vectors[..1], 9, &Filter::default());
    let parts = ask(&index, "yesterday", &vectors, 9, &Filter::default());
    assert_eq!(near(&parts, "git__git_log").max(near(&parts, "git__git_status")), Some(1));
    let score =
        |found: &Found<String>| found.hits.iter().find(|hit| hit.id == "git__git_log").map_or(0.0, |hit| hit.score);
    assert!(score(&parts) > score(&whole));
}

fn words() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "read",
        "write",
        "list",
        "file",
        "files",
        "directory",
        "commit",
        "branch",
        "time",
        "zone",
        "weather",
        "city",
        "the",
        "of",
        "query",
        "table",
        "sendMail",
        "get_user",
        "查询",
        "12",
    ]);
    prop::collection::vec(word, 0..7).prop_map(|words| words.join(" "))
}

fn tools() -> impl Strategy<Value = Vec<(Document<String>, Option<u64>)>> {
    let one = (prop::sample::select(vec!["a", "b", "c"]), words(), words(), prop::option::of(0u64..40));
    prop::collection::vec(one, 1..40).prop_map(|tools| {
        let named = tools.into_iter().enumerate();
        named.map(|(i, (server, name, text, seed))| (tool(server, &format!("{name}{i}"), &text), seed)).collect()
    })
}

fn put(index: &Index<String>, (document, seed): &(Document<String>, Option<u64>)) {
    assert!(index.put(document.clone(), seed.map(vector).as_deref()));
}

fn query_vectors(query: &str, seed: Option<u64>) -> Vec<Vec<f32>> {
    seed.map_or(Vec::new(), |seed| (seed..).take(text::query_texts(query).len()).map(vector).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_tools_does_not_matter_and_remove_undoes_put(
        tools in tools(), query in words(), seed in prop::option::of(0u64..40), gone in any::<prop::sample::Index>(),
    ) {
        let vectors = query_vectors(&query, seed);
        let (straight, reversed) = (Index::new(), Index::new());
        tools.iter().for_each(|tool| put(&straight, tool));
        // A tool that comes, goes and comes again leaves nothing behind.
        let extra = (tool("d", "list files of weather", "read the time zone of a city"), seed);
        put(&reversed, &extra);
        tools.iter().rev().for_each(|tool| put(&reversed, tool));
        let gone = gone.get(&tools);
        prop_assert!(reversed.remove(&gone.0.id));
        prop_assert!(reversed.remove(&extra.0.id) && !reversed.remove(&extra.0.id));
        put(&reversed, gone);
        let ask = |index| ask(index, &query, &vectors, 20, &Filter::default());
        prop_assert_eq!(ask(&straight), ask(&reversed));
        prop_assert_eq!(straight.len(), reversed.len());
    }

    #[test]
    fn answers_keep_to_the_limit_and_the_filter(
        tools in tools(), query in "\\PC{0,60}", seed in prop::option::of(0u64..40), limit in 0usize..12,
    ) {
        let index = Index::new();
        tools.iter().for_each(|tool| put(&index, tool));
        let filter = Filter { servers: vec!["a".to_owned(), "b".to_owned()], ..Filter::default() };
        let vectors = query_vectors(&query, seed);
        let found = ask(&index, &query, &vectors, limit, &filter);
        prop_assert!(found.hits.len() <= limit);
        prop_assert!(found.hits.iter().all(|hit| hit.id.starts_with("a__") || hit.id.starts_with("b__")));
        prop_assert!(found.hits.iter().all(|hit| hit.score.is_finite() && (0.0..=1.0).contains(&hit.score)));
        prop_assert!(found.hits.is_sorted_by(|a, b| a.score >= b.score));
        prop_assert_eq!(&found, &ask(&index, &query, &vectors, limit, &filter), "the answer that was kept");
    }

    #[test]
    fn vectors_kept_elsewhere_give_the_same_answer(tools in tools(), query in words(), seed in 0u64..40) {
        let index = Index::new();
        tools.iter().for_each(|tool| put(&index, tool));
        let vectors = query_vectors(&query, Some(seed));
        let filter = Filter { servers: vec!["a".to_owned(), "b".to_owned()], ..Filter::default() };
        // Another store adds up from the other end.
        let elsewhere: Vec<Vec<(String, f32)>> = vectors
            .iter()
            .map(|query| {
                let mut list: Vec<(String, f32)> = tools
                    .iter()
                    .filter(|(tool, _)| tool.server != "c")
                    .filter_map(|(tool, seed)| Some((tool.id.clone(), vector((*seed)?))))
                    .map(|(id, of)| (id, of.iter().zip(query).rev().map(|(a, b)| a * b).sum::<f32>()))
                    .collect();
                list.sort_by(|a, b| b.1.total_cmp(&a.1));
                list.truncate(CANDIDATES);
                list
            })
            .collect();
        let query = Query { text: &query, vectors: &vectors, limit: 20, filter: &filter, fits: None };
        let (own, other) = (index.search(&query), index.hits_from_dense(&query, &elsewhere));
        prop_assert_eq!(own.mode, other.mode);
        let ids = |found: &Found<String>| found.hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>();
        prop_assert_eq!(ids(&own), ids(&other));
    }
}
