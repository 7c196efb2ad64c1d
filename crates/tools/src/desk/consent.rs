//! A person's consent to a call, where policy asks for one.
//!
//! A client of the older protocol is asked while its call waits; a stateless one gets the question as its result and calls
//! again with the answer. A tool may ask something itself after that, which makes the client, or the gateway for it, call
//! once more with the tool's answers: those rounds are the same call, and nobody is asked again. The next call is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rmcp::model::{CallToolRequestParams, CallToolResponse, ClientResult, InputRequiredResult, ServerRequest};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::definition::ToolId;
use crate::offers::OfferError;
use crate::port::CallContext;

/// Name of the question among those of a result.
const QUESTION: &str = "lares-consent";
/// Longest wait for the next round of a call; a person may have to think about what the tool asks.
const VALID: Duration = Duration::from_secs(1800);
/// Most calls remembered that wait for their next round.
const MOST: usize = 1000;
/// Most characters of the arguments that a person is shown.
const SHOWN: usize = 1000;

/// Calls that a person agreed to and that wait for their next round.
#[derive(Debug, Default)]
pub(super) struct Consents(Mutex<BTreeMap<[u8; 32], Instant>>);

/// What came of asking.
pub(super) enum Answer<'a> {
    /// A person agreed.
    Yes(Given<'a>),
    /// The question goes to the client as the result.
    Ask(Box<CallToolResponse>),
}

/// A consent, for this round of a call.
pub(super) struct Given<'a> {
    consents: &'a Consents,
    call: [u8; 32],
}

impl Given<'_> {
    /// The call has another round, which this counts for as well.
    pub(super) fn goes_on(self) {
        let mut waiting = self.consents.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, at| at.elapsed() < VALID);
        if waiting.len() < MOST {
            waiting.insert(self.call, Instant::now());
        }
    }
}

impl Consents {
    /// Gets a person's consent to a call, or the result that asks for it.
    ///
    /// # Errors
    /// When there is nobody to ask, or a person said no.
    pub(super) async fn obtain(
        &self,
        key: Uuid,
        id: &ToolId,
        params: &mut CallToolRequestParams,
        context: &CallContext,
    ) -> Result<Answer<'_>, OfferError> {
        let call = fingerprint(key, id, params);
        let yes = || Answer::Yes(Given { consents: self, call });
        if let Some(responses) = params.input_responses.as_mut()
            && let Some(response) = responses.remove(QUESTION)
        {
            if responses.is_empty() {
                params.input_responses = None;
            }
            return if agreed(&response) { Ok(yes()) } else { Err(OfferError::Declined(id.clone())) };
        }
        let next_round = params.input_responses.is_some() || params.request_state.is_some();
        if next_round && self.take(&call) {
            return Ok(yes());
        }
        if context.downstream.capabilities().elicitation.is_none() {
            return Err(OfferError::Consent(id.clone()));
        }
        let question = question(id, params);
        if context.downstream.asks_in_result() {
            let asked = json!({ QUESTION: question });
            let requests = serde_json::from_value(asked).map_err(|_| OfferError::Consent(id.clone()))?;
            let asked = InputRequiredResult::from_input_requests(requests);
            return Ok(Answer::Ask(Box::new(CallToolResponse::InputRequired(asked))));
        }
        let request: ServerRequest = serde_json::from_value(question).map_err(|_| OfferError::Consent(id.clone()))?;
        match context.downstream.request(request).await {
            Ok(ClientResult::ElicitResult(result)) => {
                let said = serde_json::to_value(result).unwrap_or_default();
                if agreed(&said) { Ok(yes()) } else { Err(OfferError::Declined(id.clone())) }
            }
            Ok(_) | Err(_) => Err(OfferError::Consent(id.clone())),
        }
    }

    /// Whether this call waits for its next round, which this is.
    fn take(&self, call: &[u8; 32]) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(call).is_some_and(|at| at.elapsed() < VALID)
    }
}

/// Whether an elicitation was answered with yes.
fn agreed(response: &Value) -> bool {
    response.get("action").and_then(Value::as_str) == Some("accept")
        && response.pointer("/content/allow").is_none_or(|allow| allow.as_bool() == Some(true))
}

/// The question, as an `elicitation/create` request.
fn question(id: &ToolId, params: &CallToolRequestParams) -> Value {
    let arguments = serde_json::to_string(&params.arguments.clone().unwrap_or_default()).unwrap_or_default();
    let mut shown: String = arguments.chars().take(SHOWN).collect();
    if shown.len() < arguments.len() {
        shown.push('…');
    }
    json!({
        "method": "elicitation/create",
        "params": {
            "mode": "form",
            "message": format!("Allow the call of {id} with {shown}?"),
            "requestedSchema": {
                "type": "object",
                "properties": {"allow": {"type": "boolean", "title": "Allow this call", "default": false}},
                "required": ["allow"],
            },
        },
    })
}

/// One call of one caller, whatever was answered to it so far.
fn fingerprint(key: Uuid, id: &ToolId, params: &CallToolRequestParams) -> [u8; 32] {
    let arguments = serde_json::to_string(&params.arguments).unwrap_or_default();
    let mut hasher = Sha256::new();
    hasher.update(key.as_bytes());
    hasher.update((id.as_str().len() as u64).to_be_bytes());
    hasher.update(id.as_str());
    hasher.update(arguments);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    #![expect(deprecated, reason = "MCP 2026-07-28 deprecates logging; clients of today use it")]
    use std::sync::Arc;

    use async_trait::async_trait;
    use rmcp::ErrorData;
    use rmcp::model::{ClientCapabilities, LoggingMessageNotificationParam, ProgressNotificationParam};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::port::Downstream;

    /// A client that answers so.
    struct Client {
        answer: Value,
        in_result: bool,
    }

    #[async_trait]
    impl Downstream for Client {
        fn capabilities(&self) -> ClientCapabilities {
            serde_json::from_value(json!({"elicitation": {}})).unwrap()
        }

        fn asks_in_result(&self) -> bool {
            self.in_result
        }

        async fn progress(&self, _: ProgressNotificationParam) {}

        async fn log(&self, _: LoggingMessageNotificationParam) {}

        async fn request(&self, request: ServerRequest) -> Result<ClientResult, ErrorData> {
            assert!(matches!(request, ServerRequest::ElicitRequest(_)), "{request:?}");
            Ok(ClientResult::ElicitResult(serde_json::from_value(self.answer.clone()).unwrap()))
        }
    }

    fn context(answer: Value, in_result: bool) -> CallContext {
        CallContext { downstream: Arc::new(Client { answer, in_result }), cancelled: CancellationToken::new() }
    }

    async fn ask(
        consents: &Consents,
        params: &mut CallToolRequestParams,
        context: &CallContext,
    ) -> Result<bool, String> {
        let id = "git__push".parse().unwrap();
        match consents.obtain(Uuid::nil(), &id, params, context).await {
            Ok(Answer::Yes(given)) => {
                given.goes_on();
                Ok(true)
            }
            Ok(Answer::Ask(_)) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn a_client_of_sessions_is_asked_while_its_call_waits() {
        let consents = Consents::default();
        let params = || CallToolRequestParams::new("git__push");
        let yes = json!({"action": "accept", "content": {"allow": true}});
        assert_eq!(ask(&consents, &mut params(), &context(yes, false)).await, Ok(true));
        for no in [
            json!({"action": "accept", "content": {"allow": false}}),
            json!({"action": "decline"}),
            json!({"action": "cancel"}),
        ] {
            let said = ask(&consents, &mut params(), &context(no, false)).await.unwrap_err();
            assert!(said.contains("declined"), "{said}");
        }
        let said = ask(&consents, &mut params(), &CallContext::default()).await.unwrap_err();
        assert!(said.contains("lares tools call"), "{said}");
    }

    #[tokio::test]
    async fn a_client_of_sessions_is_asked_once_however_often_the_tool_asks() {
        let consents = Consents::default();
        let client = context(json!({"action": "accept", "content": {"allow": true}}), false);
        let mut params = CallToolRequestParams::new("git__push");
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(true));
        // The gateway asked the client for the tool, and goes on with the answers; by now the client would say no.
        params.input_responses = serde_json::from_value(json!({"branch": {"action": "accept"}})).unwrap();
        let no = context(json!({"action": "decline"}), false);
        for _ in 0..3 {
            assert_eq!(ask(&consents, &mut params, &no).await, Ok(true));
        }
        params.input_responses = None;
        assert!(ask(&consents, &mut params, &no).await.unwrap_err().contains("declined"));
    }

    #[tokio::test]
    async fn a_call_that_is_over_has_no_further_round() {
        let consents = Consents::default();
        let client = context(json!({"action": "accept", "content": {"allow": true}}), false);
        let id = "git__push".parse().unwrap();
        let mut params = CallToolRequestParams::new("git__push");
        assert!(matches!(consents.obtain(Uuid::nil(), &id, &mut params, &client).await, Ok(Answer::Yes(_))));
        params.input_responses = serde_json::from_value(json!({"branch": {"action": "accept"}})).unwrap();
        let no = context(json!({"action": "decline"}), false);
        assert!(ask(&consents, &mut params, &no).await.unwrap_err().contains("declined"));
    }

    #[tokio::test]
    async fn a_stateless_client_calls_again_with_the_answer_which_counts_for_this_call_alone() {
        let consents = Consents::default();
        let client = context(Value::Null, true);
        let mut params = CallToolRequestParams::new("git__push");
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(false), "the question is the result");
        let answers =
            json!({QUESTION: {"action": "accept", "content": {"allow": true}}, "other": {"action": "accept"}});
        params.input_responses = serde_json::from_value(answers).unwrap();
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(true));
        assert_eq!(params.input_responses.clone().unwrap().keys().collect::<Vec<_>>(), ["other"], "the tool's own");
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(true), "the tool's question was answered");
        let mut fresh = CallToolRequestParams::new("git__push");
        assert_eq!(ask(&consents, &mut fresh, &client).await, Ok(false), "the next call is asked for anew");
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(true), "which is nothing to the one that goes on");
        params.arguments = serde_json::from_value(json!({"force": true})).unwrap();
        assert_eq!(ask(&consents, &mut params, &client).await, Ok(false), "another call");
    }
}
