//! The built-in agent, made for models of 0.5 to 7 billion parameters.
//!
//! One iteration is: pick the files that matter → ask once → read the answer → apply it, all or nothing. Small models
//! do best with a short prompt, whole files in fenced blocks and no tools, so that is what they are asked for.

mod apply;
mod client;
mod failure;
mod fragment;
mod listing;
mod parse;
mod prompt;
mod resolve;
mod select;
mod size;
mod wording;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lares_config::{Config, EditFormat};
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError, Exchange, Outcome, Run, Usage};
use client::{Answer, Client, Request};
use prompt::{Budget, Prompt};

/// Tokens of context assumed when neither the caller, the configuration nor the server says: what llama-server gives
/// by default.
const ASSUMED_WINDOW: u32 = 4096;
/// How often the model is asked within an iteration: once more when the answer could not be used.
const ATTEMPTS: u32 = 2;
/// Least temperature when an answer to the same prompt led nowhere: at 0 a model says the same again.
const AGAIN_TEMPERATURE: f32 = 0.7;

/// How the built-in agent asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Base URL of the coordinator up to and including `/v1`.
    pub url: String,
    /// File with the key for it. `None`: no key is sent.
    pub key_file: Option<PathBuf>,
    /// The model, by a name the coordinator knows.
    pub model: String,
    /// Form of edits.
    pub edit_format: EditFormat,
    /// Most bytes of a prompt.
    pub max_prompt: usize,
    /// Most tokens of an answer.
    pub max_answer_tokens: u32,
    /// Longest wait for a whole answer.
    pub answer_timeout: Duration,
    /// Tokens of context of the model, when known.
    pub window: Option<u32>,
    /// Parameters of the model in billions, when known and not in its name.
    pub billions: Option<f64>,
}

impl Settings {
    /// The settings a configuration gives.
    ///
    /// # Errors
    /// [`BackendError::Setup`] when no model is configured.
    pub fn from_config(config: &Config) -> Result<Self, BackendError> {
        let model = config.builtin_model().ok_or_else(|| {
            BackendError::Setup(
                "no model for the built-in agent: set agents.builtin.model, or add one under [models]".to_owned(),
            )
        })?;
        let builtin = &config.agents.builtin;
        let local =
            config.models.iter().find(|(name, local)| *name == model || local.aliases.iter().any(|a| a == model));
        Ok(Self {
            url: config.coordinator_url(),
            key_file: Some(config.agent_key_file()),
            model: model.to_owned(),
            edit_format: builtin.edit_format,
            max_prompt: builtin.max_prompt.as_usize(),
            max_answer_tokens: builtin.max_answer_tokens,
            answer_timeout: builtin.answer_timeout,
            window: local.map(|(_, local)| local.context_size),
            billions: local.and_then(|(_, local)| {
                let path = local.path.as_ref().and_then(|path| path.file_name()?.to_str());
                [local.source.as_deref(), path, local.url.as_deref()].into_iter().flatten().find_map(size::from_name)
            }),
        })
    }
}

/// The built-in agent.
#[derive(Debug)]
pub struct Builtin {
    settings: Settings,
    client: Client,
}

impl Builtin {
    /// The name tasks choose it by.
    pub const NAME: &str = "builtin";

    /// An agent with these settings. The key file is read when it is needed, so it may be made later.
    ///
    /// # Errors
    /// [`BackendError::Setup`] when no HTTP client can be made.
    pub fn new(settings: Settings) -> Result<Self, BackendError> {
        let client = Client::new(&settings.url, settings.key_file.clone())?;
        Ok(Self { settings, client })
    }

    /// Tokens of context, and the parameters of the model in billions, as far as anybody knows.
    async fn model(&self, run: &Run) -> (u32, Option<f64>) {
        let named = size::from_name(&self.settings.model).or(self.settings.billions);
        let known = run.window.or(self.settings.window);
        if let (Some(window), Some(_)) = (known, named) {
            return (window, named);
        }
        let described = self.client.describe(&self.settings.model).await;
        (known.or(described.window).unwrap_or(ASSUMED_WINDOW), named.or(described.billions))
    }

    async fn work(&self, run: &Run, outcome: &mut Outcome) -> Result<(), BackendError> {
        let (window, billions) = self.model(run).await;
        let whole = match self.settings.edit_format {
            EditFormat::WholeFile => true,
            EditFormat::SearchReplace => false,
            EditFormat::Auto => billions.is_none_or(|billions| billions < size::SEARCH_REPLACE_FROM),
        };
        let selection = select::select(run).await?;
        let budget = Budget {
            max_prompt: self.settings.max_prompt,
            window,
            max_answer: self.settings.max_answer_tokens,
            whole,
            small: billions.is_none_or(|billions| billions < size::SEVERAL_FILES_FROM),
        };
        // Later iterations look at the next file in question, and never say the same again.
        let mut turn = run.iteration.saturating_sub(1);
        let mut again = run.iteration > 1 && run.diff.trim().is_empty();
        let mut reminder = String::new();
        for attempt in 0..ATTEMPTS {
            let prompt = Prompt::build(run, &selection, &budget, turn)?;
            let text = format!("{}{reminder}", prompt.text);
            let started = Instant::now();
            let request = Request {
                model: &self.settings.model,
                system: wording::SYSTEM,
                user: &text,
                temperature: if again { run.temperature.max(AGAIN_TEMPERATURE) } else { run.temperature },
                seed: run.seed.map(|seed| seed.wrapping_add(attempt)),
                max_tokens: prompt.max_answer,
                timeout: self.settings.answer_timeout,
            };
            let answer = self.client.ask(&request).await?;
            outcome.usage += answer.usage;
            let verdict = take(run, &prompt, &answer).await?;
            outcome.transcript.push(Exchange {
                model: self.settings.model.clone(),
                prompt: text,
                answer: answer.text,
                finish_reason: answer.finish_reason,
                usage: answer.usage,
                seconds: started.elapsed().as_secs_f64(),
                verdict: match &verdict {
                    Ok(applied) => applied.summary.clone(),
                    Err(rejected) => rejected.why.clone(),
                },
            });
            match verdict {
                Ok(applied) => {
                    outcome.summary = applied.summary;
                    outcome.changed = applied.changed;
                    outcome.empty = None;
                    return Ok(());
                }
                Err(rejected) => {
                    again = true;
                    // A model that finds nothing to change in one file may find it in the next.
                    turn += u32::from(rejected.unchanged);
                    reminder = wording::reminder(prompt.whole, &rejected.why);
                    outcome.summary = format!("nothing changed: {}", rejected.why);
                    outcome.empty = Some(rejected.why);
                }
            }
        }
        Ok(())
    }
}

/// Why an answer changed nothing.
struct Rejected {
    why: String,
    /// It gave the files as they are.
    unchanged: bool,
}

impl Rejected {
    fn new(why: &impl ToString) -> Self {
        Self { why: why.to_string(), unchanged: false }
    }
}

/// Reads an answer and applies it; inside, why it could not be used.
async fn take(run: &Run, prompt: &Prompt, answer: &Answer) -> Result<Result<apply::Applied, Rejected>, BackendError> {
    let edits = match parse::parse(&answer.text, answer.truncated()) {
        Ok(edits) => edits,
        Err(why) => return Ok(Err(Rejected::new(&why))),
    };
    let changes = match resolve::resolve(edits, &prompt.offer) {
        Ok(changes) => changes,
        Err(why) => {
            let unchanged = matches!(why, resolve::Unusable::Unchanged(_));
            return Ok(Err(Rejected { unchanged, ..Rejected::new(&why) }));
        }
    };
    let (worktree, protected) = (run.worktree.clone(), run.protected.clone());
    let applied = tokio::task::spawn_blocking(move || apply::apply(&worktree, changes, &protected)).await;
    match applied {
        Ok(Ok(applied)) => Ok(Ok(applied)),
        Ok(Err(apply::ApplyError::Io { path, source })) => Err(BackendError::Worktree { path, source }),
        Ok(Err(refused)) => Ok(Err(Rejected::new(&refused))),
        Err(panic) => Err(BackendError::Setup(format!("applying the answer failed: {panic}"))),
    }
}

#[async_trait]
impl Backend for Builtin {
    fn name(&self) -> &str {
        Self::NAME
    }

    async fn run(&self, run: &Run, shutdown: &CancellationToken) -> Result<Outcome, BackendError> {
        let mut outcome = Outcome { usage: Usage::default(), ..Outcome::default() };
        let result = tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(BackendError::Cancelled),
            result = tokio::time::timeout(run.timeout, self.work(run, &mut outcome)) => {
                result.unwrap_or(Err(BackendError::TimedOut(run.timeout)))
            }
        };
        result.map(|()| outcome)
    }
}
