//! Tools, their servers and their history, against a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use lares_store::Store;
use lares_store::testing::Cluster;
use lares_store::tools::{CallCount, ChangeWrite, ServerRecord, ToolWrite, VERSIONS};
use serde_json::{Value, json};

fn server(name: &str) -> ServerRecord {
    ServerRecord {
        name: name.to_owned(),
        source: "configuration".to_owned(),
        origin: format!("tools.servers.{name}"),
        transport: json!({"kind": "stdio", "command": ["x\u{0}y"]}),
        fingerprint: "f1".to_owned(),
        approved_fingerprint: Some("f1".to_owned()),
        granted: Some(json!({"network": "none", "read": ["/srv"], "write": []})),
        state: "approved".to_owned(),
        trusted: false,
        first_seen: Timestamp::UNIX_EPOCH,
        last_seen: Timestamp::UNIX_EPOCH,
        gone_since: None,
    }
}

fn tool(id: &str, hash: &str, approved_by: Option<&str>) -> ToolWrite {
    ToolWrite {
        id: id.to_owned(),
        state: if approved_by.is_some() { "approved" } else { "quarantined" }.to_owned(),
        reason: "new".to_owned(),
        held_by: None,
        hash: hash.to_owned(),
        definition: json!({"name": id, "description": hash}),
        findings: json!([]),
        tags: vec!["files".to_owned()],
        approved_by: approved_by.map(str::to_owned),
    }
}

fn change(kind: &'static str, tool: &str) -> ChangeWrite {
    ChangeWrite {
        kind,
        server: "a".to_owned(),
        tool: Some(tool.to_owned()),
        actor: "discovery\0".to_owned(),
        ..ChangeWrite::default()
    }
}

async fn list(store: &Store, present: &[ToolWrite], changes: &[ChangeWrite]) {
    let ids: Vec<String> = present.iter().map(|tool| tool.id.clone()).collect();
    store.tools().put_listing("a", &ids, present, changes).await.unwrap();
}

async fn with_server() -> Store {
    let store = Cluster::shared().await.store().await;
    store.tools().put_servers(&[server("a")], &[]).await.unwrap();
    store
}

#[tokio::test]
async fn a_changed_definition_stands_beside_the_approved_one() {
    let store = with_server().await;
    let tools = store.tools();
    list(&store, &[tool("a__x", "h1", Some("me")), tool("a__y", "h1", None)], &[]).await;
    list(&store, &[tool("a__x", "h2", None)], &[change("tool-changed", "a__x")]).await;
    let all = tools.all().await.unwrap();
    assert_eq!(all.len(), 2);
    let (x, y) = (&all[0], &all[1]);
    assert_eq!((x.hash.as_str(), x.approved_hash.as_deref(), x.state.as_str()), ("h2", Some("h1"), "quarantined"));
    assert_eq!(x.definition["description"], "h2");
    assert_eq!(x.approved_definition.as_ref().unwrap()["description"], "h1");
    assert!(x.gone_since.is_none() && y.gone_since.is_some() && y.approved_hash.is_none());
    let versions = tools.versions("a__x").await.unwrap();
    assert_eq!(versions.iter().map(|v| v.hash.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
    assert_eq!(versions[0].approved_by.as_deref(), Some("me"));
    assert!(versions[1].approved_at.is_none());

    // Approving it later leaves one that is gone gone.
    tools.put_tools("a", &[tool("a__x", "h2", Some("you")), tool("a__y", "h1", Some("you"))], &[]).await.unwrap();
    let all = tools.all().await.unwrap();
    assert_eq!((all[0].approved_hash.as_deref(), all[0].approved_definition.is_none()), (Some("h2"), true));
    assert!(all[1].gone_since.is_some());
    // And back.
    list(&store, &[tool("a__y", "h1", None)], &[]).await;
    let all = tools.all().await.unwrap();
    assert!(all[0].gone_since.is_some() && all[1].gone_since.is_none());
    assert_eq!(all[1].approved_hash.as_deref(), Some("h1"), "what was approved stays known");
}

#[tokio::test]
async fn a_server_cannot_fill_the_table_by_changing_itself() {
    let store = with_server().await;
    let tools = store.tools();
    list(&store, &[tool("a__x", "good", Some("me"))], &[]).await;
    for n in 0..40 {
        list(&store, &[tool("a__x", &format!("h{n}"), None)], &[]).await;
    }
    let versions = tools.versions("a__x").await.unwrap();
    assert!(versions.len() <= usize::try_from(VERSIONS).unwrap() + 1, "{}", versions.len());
    let has = |hash: &str| versions.iter().any(|v| v.hash == hash);
    assert!(has("good") && has("h39") && !has("h1"));
    assert_eq!(tools.all().await.unwrap()[0].approved_definition.as_ref().unwrap()["description"], "good");
}

#[tokio::test]
async fn changes_are_read_backwards_page_by_page() {
    let store = with_server().await;
    let tools = store.tools();
    list(&store, &[], &[change("tool-added", "a__1"), change("tool-added", "a__2")]).await;
    tools.put_servers(&[server("b")], &[change("server-found", "a__3")]).await.unwrap();
    let first = tools.changes(None, 2).await.unwrap();
    let named =
        |list: &[lares_store::tools::ChangeRecord]| list.iter().map(|c| c.tool.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(named(&first), ["a__3", "a__2"]);
    assert_eq!(first[0].actor, "discovery\u{fffd}");
    assert_eq!(named(&tools.changes(Some(first[1].id), 10).await.unwrap()), ["a__1"]);
}

#[tokio::test]
async fn calls_add_up() {
    let store = with_server().await;
    let tools = store.tools();
    list(&store, &[tool("a__x", "h", Some("me"))], &[]).await;
    let mut count = CallCount::default();
    count.add(3.0, false, Timestamp::from_second(5).unwrap());
    count.add(900.0, true, Timestamp::from_second(7).unwrap());
    let counts = BTreeMap::from([("a__x".to_owned(), count.clone()), ("a__none".to_owned(), count.clone())]);
    tools.count_calls(&counts).await.unwrap();
    tools.count_calls(&counts).await.unwrap();
    let found = tools.all().await.unwrap().remove(0).count;
    let mut wanted = count.clone();
    wanted.merge(&count);
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn a_server_keeps_its_first_sight_and_goes_with_its_tools() {
    let store = with_server().await;
    let tools = store.tools();
    list(&store, &[tool("a__x", "h", None)], &[]).await;
    let later = ServerRecord {
        first_seen: Timestamp::from_second(9).unwrap(),
        last_seen: Timestamp::from_second(9).unwrap(),
        state: "rejected".to_owned(),
        ..server("a")
    };
    tools.put_servers(&[later], &[]).await.unwrap();
    let found = tools.servers().await.unwrap().remove(0);
    assert_eq!((found.first_seen, found.state.as_str()), (Timestamp::UNIX_EPOCH, "rejected"));
    assert_eq!(found.last_seen.as_second(), 9);
    assert_ne!(found.transport, Value::Null);
    tools.remove_server("a").await.unwrap();
    assert!(tools.all().await.unwrap().is_empty() && tools.versions("a__x").await.unwrap().is_empty());
}
