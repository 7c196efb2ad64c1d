//! The gateway as clients see it, with rmcp's client of both eras.

#![allow(clippy::unwrap_used, deprecated)]

mod gateway_support;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gateway_support::Fixture;
use lares_config::GatewayMode;
use lares_tools::gateway::GatewaySettings;
use lares_tools::offers::ListChange;
use rmcp::model::{
    CallToolRequestParams, CallToolResult, ClientCapabilities, ClientConfig, CreateMessageRequestParams,
    CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction, Implementation, ListRootsResult,
    ProtocolVersion, ResourceUpdatedNotificationParam, SubscribeRequestParams, SubscriptionFilter,
    UnsubscribeRequestParams,
};
use rmcp::service::{NotificationContext, RequestContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, ErrorData, RoleClient};
use serde_json::{Value, json};

const SETTINGS: GatewaySettings = GatewaySettings { max_sessions: 16, session_idle: Duration::from_secs(600) };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    Sessions,
    Stateless,
}

const ERAS: [Era; 2] = [Era::Sessions, Era::Stateless];

/// A client that answers everything and remembers what it was told.
#[derive(Clone, Default)]
struct Person {
    told: Arc<Mutex<Vec<String>>>,
}

impl Person {
    fn hears(&self, what: impl Into<String>) {
        self.told.lock().unwrap().push(what.into());
    }

    fn heard(&self, what: &str) -> usize {
        self.told.lock().unwrap().iter().filter(|told| *told == what).count()
    }
}

impl ClientHandler for Person {
    fn get_info(&self) -> ClientConfig {
        let can = ClientCapabilities::builder().enable_elicitation().enable_sampling().enable_roots().build();
        ClientConfig::new(can, Implementation::new("person", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        self.hears(format!("elicitation {}", serde_json::to_value(&request).unwrap()["message"]));
        let content = json!({"username": "u", "email": "e", "name": "Alice", "ok": true, "color": "blue"});
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(content))
    }

    async fn create_message(
        &self,
        _: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        self.hears("sampling");
        let result = json!({"role": "assistant", "content": {"type": "text", "text": "Paris"}, "model": "m"});
        Ok(serde_json::from_value(result).unwrap())
    }

    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        self.hears("roots");
        Ok(serde_json::from_value(json!({"roots": [{"uri": "file:///tmp", "name": "tmp"}]})).unwrap())
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.hears("tools");
    }

    async fn on_prompt_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.hears("prompts");
    }

    async fn on_resource_updated(&self, params: ResourceUpdatedNotificationParam, _: NotificationContext<RoleClient>) {
        self.hears(params.uri);
    }
}

async fn connect(url: &str, era: Era) -> (Person, RunningService<RoleClient, Person>) {
    // rmcp's HTTP client wants one although it only speaks plain HTTP here. It is there after the first time.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let person = Person::default();
    let lifecycle = match era {
        Era::Sessions => ClientLifecycleMode::Initialize,
        Era::Stateless => ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] },
    };
    let transport = StreamableHttpClientTransport::from_uri(url.to_owned());
    let client = person.clone().serve_with_lifecycle(transport, lifecycle).await.unwrap();
    (person, client)
}

async fn call(client: &RunningService<RoleClient, Person>, name: &str, arguments: Value) -> CallToolResult {
    let params = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments.as_object().cloned().unwrap());
    tokio::time::timeout(Duration::from_secs(10), client.call_tool(params)).await.unwrap().unwrap()
}

fn text(result: &CallToolResult) -> String {
    result.content.iter().filter_map(|content| Some(content.as_text()?.text.clone())).collect()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_model_searches_looks_and_calls() {
    let fixture = Fixture::new(GatewayMode::Search, true);
    let served = fixture.serve(SETTINGS).await;
    for era in ERAS {
        let (_, client) = connect(&served.url, era).await;
        let info = client.peer_info().unwrap();
        assert!(info.instructions.as_deref().unwrap().contains("search_tools"), "{era:?}");
        let names: Vec<_> = client.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name).collect();
        assert_eq!(names, ["search_tools", "get_tool_details", "call_tool"]);

        let found = call(&client, "search_tools", json!({"query": "gives simple text", "limit": 2})).await;
        let hits = &found.structured_content.as_ref().unwrap()["tools"];
        assert_eq!(
            hits[0],
            json!({"name": "fixture__test_simple_text", "description": "Gives a simple text.", "score": 1.0})
        );
        assert_eq!(hits.as_array().unwrap().len(), 2);
        let said = text(&found);
        assert!(said.starts_with("1. fixture__test_simple_text (1.00): Gives a simple text.\n2. "), "{said}");
        assert!(said.contains(r#"get_tool_details {"name":"fixture__test_simple_text"}"#), "{said}");
        let none = call(&client, "search_tools", json!({"query": "zzz"})).await;
        assert!(text(&none).contains("other words") && none.is_error != Some(true));

        let details = call(&client, "get_tool_details", json!({"name": "fixture__untyped"})).await;
        let details = details.structured_content.unwrap();
        assert_eq!(details["inputSchema"], json!({"properties": {"x": {"type": "integer"}}, "type": "object"}));

        let done = call(&client, "call_tool", json!({"name": "fixture__untyped", "arguments": {"x": 1}})).await;
        assert_eq!((text(&done).as_str(), done.is_error), (r#"untyped {"x":1}"#, None));

        for (name, arguments, says) in [
            ("search_tools", json!({}), "query"),
            ("search_tools", json!({"query": "x", "limit": 0}), "limit"),
            ("search_tools", json!({"query": "x".repeat(2000)}), "longer"),
            ("get_tool_details", json!({}), "name"),
            ("get_tool_details", json!({"name": "fixture__untypd"}), "`fixture__untyped`"),
            ("call_tool", json!({"name": "untyped_", "arguments": {}}), "`fixture__untyped`"),
            ("call_tool", json!({"name": "call_tool", "arguments": {}}), "search_tools"),
        ] {
            let mistake = call(&client, name, arguments).await;
            assert_eq!(mistake.is_error, Some(true), "{name}");
            assert!(text(&mistake).contains(says), "{}", text(&mistake));
        }
        client.cancel().await.unwrap();
    }
    eventually("sessions end with their clients", || served.gateway.sessions() == 0).await;
}

#[tokio::test]
async fn lists_come_in_pages_under_the_names_of_the_view() {
    for (mode, namespaces, ours) in
        [(GatewayMode::List, true, 0), (GatewayMode::Both, true, 3), (GatewayMode::Both, false, 3)]
    {
        let fixture = Fixture::new(mode, namespaces);
        for n in 0..450 {
            fixture.add("many", &format!("tool-{n}"), "One of many.", json!({"type": "object"}));
        }
        // The names of the three are theirs; this one is still there for `call_tool`.
        fixture.add("many", "search_tools", "Not the search.", json!({"type": "object"}));
        let served = fixture.serve(SETTINGS).await;
        for era in ERAS {
            let (_, client) = connect(&served.url, era).await;
            let tools = client.list_all_tools().await.unwrap();
            let names: BTreeSet<_> = tools.iter().map(|tool| tool.name.to_string()).collect();
            let offered = fixture.tools.read().unwrap().len();
            let hidden = usize::from(!namespaces);
            assert_eq!((tools.len(), names.len()), (offered + ours - hidden, offered + ours - hidden));
            assert!(names.contains(if namespaces { "many__tool-7" } else { "tool-7" }));
            assert!(tools.iter().all(|tool| tool.input_schema["type"] == "object"));
            if ours > 0 {
                let arguments = json!({"name": "many__search_tools", "arguments": {}});
                assert_eq!(text(&call(&client, "call_tool", arguments).await), "search_tools {}");
            }
            client.cancel().await.unwrap();
        }
    }
}

#[tokio::test]
async fn questions_reach_the_client_whatever_the_eras_of_both_ends() {
    let fixture = Fixture::new(GatewayMode::Both, true);
    let served = fixture.serve(SETTINGS).await;
    for era in ERAS {
        let (person, client) = connect(&served.url, era).await;
        for through in [false, true] {
            for (name, arguments, says) in [
                // Asked during the call, as servers of the older era do.
                ("test_elicitation", json!({"message": "Who?"}), r#""username":"u""#),
                ("test_sampling", json!({"prompt": "Capital?"}), "Paris"),
                // Asked by the result, as servers of the newer era do.
                ("test_input_required_result_elicitation", json!({}), "Hello, Alice!"),
                ("test_input_required_result_multiple_inputs", json!({}), "all there"),
                ("test_input_required_result_multi_round", json!({}), "both steps"),
            ] {
                let name = format!("fixture__{name}");
                let result = if through {
                    call(&client, "call_tool", json!({"name": name, "arguments": arguments})).await
                } else {
                    call(&client, &name, arguments).await
                };
                assert!(text(&result).contains(says), "{era:?} {name}: {}", text(&result));
            }
        }
        assert_eq!((person.heard("sampling"), person.heard("roots")), (4, 2), "{era:?}");
        assert_eq!(person.heard("elicitation \"Who?\""), 2, "{era:?}");
        client.cancel().await.unwrap();
    }
    assert_eq!(served.gateway.waiting_calls(), 0);
}

#[tokio::test]
async fn resources_prompts_and_completion_pass_through() {
    let fixture = Fixture::new(GatewayMode::Search, true);
    let served = fixture.serve(SETTINGS).await;
    for era in ERAS {
        let (_, client) = connect(&served.url, era).await;
        assert_eq!(client.list_all_resources().await.unwrap().len(), 3);
        assert_eq!(client.list_all_resource_templates().await.unwrap().len(), 1);
        assert_eq!(client.list_all_prompts().await.unwrap().len(), 5);
        let read = rmcp::model::ReadResourceRequestParams::new("test://template/5/data");
        let read = serde_json::to_value(client.read_resource(read).await.unwrap()).unwrap();
        assert!(read["contents"][0]["text"].as_str().unwrap().contains("Data for ID: 5"));
        let missing = rmcp::model::ReadResourceRequestParams::new("test://missing");
        let error = format!("{:?}", client.read_resource(missing).await.unwrap_err());
        let code = if era == Era::Sessions { "-32002" } else { "-32602" };
        assert!(error.contains(code) && error.contains("test://missing"), "{error}");
        let prompt = rmcp::model::GetPromptRequestParams::new("test_simple_prompt");
        assert_eq!(client.get_prompt(prompt).await.unwrap().messages.len(), 1);
        let completed = client.complete_prompt_simple("test_prompt_with_arguments", "arg1", "pari").await.unwrap();
        assert_eq!(completed, ["paris"]);
        client.cancel().await.unwrap();
    }
}

#[tokio::test]
async fn sessions_hear_once_of_many_changes_and_of_what_they_watch() {
    let fixture = Fixture::new(GatewayMode::List, true);
    let served = fixture.serve(SETTINGS).await;
    let (person, client) = connect(&served.url, Era::Sessions).await;
    client.subscribe(SubscribeRequestParams::new("test://watched-resource")).await.unwrap();
    assert!(client.subscribe(SubscribeRequestParams::new("other://x")).await.is_err());
    // The stream for what is told unasked opens beside.
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..5 {
        fixture.bell.send(ListChange::Tools).unwrap();
    }
    for uri in ["test://watched-resource", "test://static-text"] {
        fixture.bell.send(ListChange::Resource(uri.to_owned())).unwrap();
    }
    eventually("both are heard", || person.heard("tools") == 1 && person.heard("test://watched-resource") == 1).await;
    client.unsubscribe(UnsubscribeRequestParams::new("test://watched-resource")).await.unwrap();
    fixture.bell.send(ListChange::Resource("test://watched-resource".to_owned())).unwrap();
    fixture.bell.send(ListChange::Prompts).unwrap();
    eventually("prompts are heard", || person.heard("prompts") == 1).await;
    assert_eq!((person.heard("test://watched-resource"), person.heard("test://static-text")), (1, 0));
    eventually("it is let go", || fixture.watched.lock().unwrap().len() == 2).await;
    assert_eq!(person.heard("tools"), 1);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn who_sees_three_tools_is_not_told_of_others() {
    let fixture = Fixture::new(GatewayMode::Search, true);
    let served = fixture.serve(SETTINGS).await;
    let (person, client) = connect(&served.url, Era::Sessions).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    fixture.bell.send(ListChange::Tools).unwrap();
    fixture.bell.send(ListChange::Prompts).unwrap();
    eventually("prompts are heard", || person.heard("prompts") == 1).await;
    assert_eq!(person.heard("tools"), 0);
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_stateless_client_listens_on_a_stream_of_its_own() {
    let fixture = Fixture::new(GatewayMode::List, true);
    let served = fixture.serve(SETTINGS).await;
    let (_, client) = connect(&served.url, Era::Stateless).await;
    let wanted =
        SubscriptionFilter::builder().tools_list_changed().resource_subscription("test://watched-resource").build();
    let mut stream = client.listen(wanted).await.unwrap();
    eventually("it is watched", || fixture.watched.lock().unwrap().len() == 1).await;
    for change in [ListChange::Tools, ListChange::Prompts, ListChange::Resource("test://watched-resource".to_owned())] {
        fixture.bell.send(change).unwrap();
    }
    let mut heard = Vec::new();
    for _ in 0..2 {
        let message = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.unwrap();
        heard.push(format!("{message:?}"));
    }
    assert!(heard.iter().any(|message| message.contains("ToolListChanged")), "{heard:?}");
    assert!(heard.iter().any(|message| message.contains("test://watched-resource")), "{heard:?}");
    drop(stream);
    client.cancel().await.unwrap();
    eventually("it is let go", || fixture.watched.lock().unwrap().len() == 2).await;
    assert_eq!(served.gateway.sessions(), 0);
}
