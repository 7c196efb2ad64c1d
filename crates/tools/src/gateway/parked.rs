//! Calls that wait for an answer of a stateless client.
//!
//! A tool server of the older era asks while its call runs. A client of the newer era can only be asked by a result, and
//! answers with its next request. In between the call stays here, running.

#![expect(deprecated, reason = "MCP 2026-07-28 deprecates sampling and roots; servers of today use them")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientResult, ElicitResult, InputRequest, InputRequiredResult,
    ListRootsResult, ServerRequest,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use uuid::Uuid;

use crate::offers::{OfferError, View};

use super::client::{ANSWER_TIME, Client, Question};

/// Name of the question in a result.
const QUESTION: &str = "question";
/// What the state of a call that waits here begins with.
const PREFIX: &str = "lares-call:";
/// Most calls that wait; the one that waits longest gives way.
const MOST: usize = 256;

/// A call under way. Dropping it cancels it.
pub(super) struct Running {
    pub(super) task: JoinHandle<Result<CallToolResponse, OfferError>>,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) client: Arc<Client>,
    /// What was asked for, to recognize it.
    pub(super) params: CallToolRequestParams,
    pub(super) _cancel: DropGuard,
}

struct Waiting {
    running: Running,
    question: Question,
    key: Uuid,
    toolset: Option<String>,
    since: Instant,
}

/// The calls that wait.
#[derive(Default)]
pub(super) struct Parked(Mutex<HashMap<String, Waiting>>);

/// How a call goes on.
pub(super) enum Next {
    /// It runs.
    Runs(Running),
    /// It still waits for an answer.
    Waits(CallToolResponse),
}

impl Parked {
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a state is of a call that waits, or waited, here.
    pub(super) fn is_state(state: Option<&str>) -> bool {
        state.is_some_and(|state| state.starts_with(PREFIX))
    }

    /// Puts a call aside until its question is answered, and gives the result that asks it.
    ///
    /// # Errors
    /// When the question is none that a client answers.
    pub(super) fn put(&self, view: &View, running: Running, question: Question) -> Result<CallToolResponse, ErrorData> {
        let request = match question.request.clone() {
            ServerRequest::CreateMessageRequest(request) => InputRequest::CreateMessage(request),
            ServerRequest::ElicitRequest(request) => InputRequest::Elicitation(request),
            ServerRequest::ListRootsRequest(request) => InputRequest::ListRoots(request),
            _ => return Err(ErrorData::internal_error("the tool server asks for something unknown", None)),
        };
        let state = format!("{PREFIX}{}", Uuid::now_v7());
        let (key, toolset) = (view.caller.key_id, view.toolset.clone());
        let waiting = Waiting { running, question, key, toolset, since: Instant::now() };
        let mut calls = self.lock();
        calls.retain(|_, waiting| waiting.since.elapsed() < ANSWER_TIME);
        while calls.len() >= MOST {
            let Some(oldest) = calls.iter().min_by_key(|(_, waiting)| waiting.since).map(|(state, _)| state.clone())
            else {
                break;
            };
            calls.remove(&oldest);
        }
        calls.insert(state.clone(), waiting);
        let requests = BTreeMap::from([(QUESTION.to_owned(), request)]);
        Ok(CallToolResponse::InputRequired(InputRequiredResult::new(Some(requests), Some(state))))
    }

    /// Goes on with the call whose state `params` names, with the answer they have. Without a good answer the question is
    /// asked again.
    ///
    /// # Errors
    /// `-32602` when there is no such call for this caller, or it was another one.
    pub(super) fn go_on(&self, view: &View, mut params: CallToolRequestParams) -> Result<Next, ErrorData> {
        let gone =
            || ErrorData::invalid_params("this call does not wait any more; call again without requestState", None);
        let state = params.request_state.as_deref().ok_or_else(gone)?;
        let Waiting { running, question, .. } = {
            let mut calls = self.lock();
            let is_own = |waiting: &Waiting| {
                waiting.key == view.caller.key_id
                    && waiting.toolset == view.toolset
                    && waiting.since.elapsed() < ANSWER_TIME
                    && waiting.running.params.name == params.name
                    && waiting.running.params.arguments == params.arguments
            };
            if !calls.get(state).is_some_and(is_own) {
                return Err(gone());
            }
            calls.remove(state).ok_or_else(gone)?
        };
        let answer = params.input_responses.as_mut().and_then(|responses| responses.remove(QUESTION));
        match answer.and_then(|answer| understand(&question.request, answer)) {
            Some(answer) => {
                // The tool server may have given up; then the call says so.
                let _ = question.answer.send(Ok(answer));
                Ok(Next::Runs(running))
            }
            None => self.put(view, running, question).map(Next::Waits),
        }
    }
}

/// An answer in the form that belongs to the question.
fn understand(request: &ServerRequest, answer: Value) -> Option<ClientResult> {
    match request {
        ServerRequest::ElicitRequest(_) => {
            serde_json::from_value::<ElicitResult>(answer).ok().map(ClientResult::ElicitResult)
        }
        ServerRequest::ListRootsRequest(_) => {
            serde_json::from_value::<ListRootsResult>(answer).ok().map(ClientResult::ListRootsResult)
        }
        ServerRequest::CreateMessageRequest(_) => {
            serde_json::from_value(answer).ok().map(|result| ClientResult::CreateMessageResult(Box::new(result)))
        }
        _ => None,
    }
}
