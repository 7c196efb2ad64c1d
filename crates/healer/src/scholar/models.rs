//! Asking local models, through the coordinator.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lares_config::{Config, Model};
use lares_store::vectors::Embeddings;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest that embeddings take.
const EMBED: Duration = Duration::from_secs(10);
/// Longest that an answer in words takes.
const COMPLETE: Duration = Duration::from_secs(60);
/// Most tokens of an answer.
const TOKENS: u32 = 300;
/// Most bytes of an answer: sixteen embeddings 4096 wide take 1.5 MB.
const BYTES: usize = 8 << 20;
/// Most characters of an error that are passed on.
const WHY: usize = 300;
/// Most characters of a text that is embedded: even if each were a token, it fits into 512.
const TEXT: usize = 400;

/// Why a model was of no help.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModelError {
    /// The key for the coordinator.
    #[error("the key for the coordinator, {}: {source}", path.display())]
    Key { path: PathBuf, source: std::io::Error },
    /// No HTTP.
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[source] reqwest::Error),
    /// No answer.
    #[error("{url} does not answer: {why}")]
    Unreachable { url: String, why: String },
    /// An answer that says no.
    #[error("{url} answers {status}: {why}")]
    Refused { url: String, status: u16, why: String },
    /// An answer that makes no sense.
    #[error("{url} answers what cannot be used: {why}")]
    Useless { url: String, why: String },
}

/// A model of this machine, under the name that the coordinator offers it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) name: String,
    /// Changes when another model takes the name.
    pub(super) id: String,
}

impl Local {
    fn of(name: &str, model: &Model) -> Self {
        let source = [&model.sha256, &model.source, &model.url].into_iter().flatten().next().cloned();
        let file = || model.path.as_ref().map(|path| path.display().to_string());
        let id = format!("{name}@{}", source.or_else(file).unwrap_or_default());
        Self { name: name.to_owned(), id }
    }

    /// The model that embeds: the configured one, else the first that can. `None`: there is none on this machine.
    pub(super) fn for_embeddings(config: &Config) -> Option<Self> {
        match &config.healer.embedding_model {
            Some(name) => named(config, name, "healer.embedding_model", true),
            None => {
                let mut all = config.models.iter().filter(|(name, model)| is_offered(config, name, model));
                all.find(|(_, model)| model.embeddings).map(|(name, model)| Self::of(name, model))
            }
        }
    }

    /// The model that writes diagnoses.
    pub(super) fn for_diagnoses(config: &Config) -> Option<Self> {
        named(config, config.healer.diagnosis_model.as_ref()?, "healer.diagnosis_model", false)
    }
}

/// Whether requests for this name stay on this machine: the coordinator sends them to whoever offers it.
fn is_offered(config: &Config, name: &str, model: &Model) -> bool {
    let elsewhere = config.coordinator.upstreams.values().any(|upstream| upstream.models.contains_key(name));
    model.port != 0 && !elsewhere && is_here(&config.ralph.coordinator_url)
}

/// Whether a coordinator is the one of this machine. Empty: it is.
fn is_here(url: &str) -> bool {
    let Ok(parsed) = url.parse::<reqwest::Url>() else { return url.is_empty() };
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A configured model. What units say stays on this machine, so others are refused.
fn named(config: &Config, wanted: &str, key: &str, embeddings: bool) -> Option<Local> {
    let is_it = |name: &String, model: &Model| name == wanted || model.aliases.iter().any(|alias| alias == wanted);
    match config.models.iter().find(|(name, model)| is_it(name, model)) {
        Some((_, model)) if model.embeddings != embeddings => {
            let what = if embeddings { "makes no embeddings" } else { "makes embeddings only" };
            tracing::warn!(model = wanted, "the model of {key} {what}; it is not asked");
            None
        }
        Some((name, model)) if is_offered(config, wanted, model) => {
            Some(Local { name: wanted.to_owned(), ..Local::of(name, model) })
        }
        _ => {
            tracing::warn!(
                model = wanted,
                "{key} is no model that only this machine serves (models.NAME with a port); what units say is sent to no other"
            );
            None
        }
    }
}

/// The coordinator.
#[derive(Debug, Clone)]
pub(super) struct Models {
    http: reqwest::Client,
    url: String,
    key_file: PathBuf,
}

impl Models {
    pub(super) fn new(config: &Config) -> Result<Self, ModelError> {
        let url = config.coordinator_url().trim_end_matches('/').to_owned();
        // Asked seldom: no connection is kept, and none goes through a proxy to a model of this machine. Certificates take
        // some megabytes.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .tls_built_in_root_certs(url.starts_with("https:"))
            .connect_timeout(CONNECT)
            .user_agent("lares-healer")
            .build()
            .map_err(ModelError::Client)?;
        Ok(Self { http, url, key_file: config.agent_key_file() })
    }

    /// The embeddings of texts, each of this width and of unit length.
    pub(super) async fn embed(&self, model: &str, texts: &[&str], width: usize) -> Result<Vec<Vec<f32>>, ModelError> {
        let texts: Vec<String> = texts.iter().map(|text| text.chars().take(TEXT).collect()).collect();
        let url = format!("{}/embeddings", self.url);
        let body = json!({"model": model, "input": texts, "encoding_format": "float"});
        let answer: Embeddings = self.ask(&url, &body, EMBED).await?;
        answer.in_order(texts.len(), width).map_err(|why| ModelError::Useless { url, why })
    }

    /// An answer in words, as short and as sober as the model can.
    pub(super) async fn complete(&self, model: &str, system: &str, user: &str) -> Result<String, ModelError> {
        let url = format!("{}/chat/completions", self.url);
        let body = json!({
            "model": model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "stream": false,
        });
        let answer: Value = self.ask(&url, &body, COMPLETE).await?;
        match answer.pointer("/choices/0/message/content").and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(ModelError::Useless { url, why: "no text in it".to_owned() }),
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        body: &Value,
        longest: Duration,
    ) -> Result<T, ModelError> {
        // Read each time, as keys are replaced while daemons run.
        let key = tokio::fs::read_to_string(&self.key_file)
            .await
            .map_err(|source| ModelError::Key { path: self.key_file.clone(), source })?;
        let unreachable = |why: String| ModelError::Unreachable { url: url.to_owned(), why };
        let asked = async {
            let answer = self.http.post(url).bearer_auth(key.trim()).json(body).send().await;
            let mut answer = answer.map_err(|error| unreachable(lares_gate::chain(&error)))?;
            let status = answer.status();
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(lares_gate::chain(&error)))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > BYTES {
                    let why = format!("more than {BYTES} bytes");
                    return Err(ModelError::Useless { url: url.to_owned(), why });
                }
            }
            Ok((status, bytes))
        };
        let asked = timeout(longest, asked).await;
        let (status, bytes) =
            asked.unwrap_or_else(|_| Err(unreachable(format!("not within {} s", longest.as_secs()))))?;
        if !status.is_success() {
            let why = String::from_utf8_lossy(&bytes).chars().take(WHY).collect();
            return Err(ModelError::Refused { url: url.to_owned(), status: status.as_u16(), why });
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| ModelError::Useless { url: url.to_owned(), why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lares_config::Upstream;

    use super::*;

    fn model(embeddings: bool) -> Model {
        Model { port: 8101, embeddings, aliases: vec![format!("alias-{embeddings}")], ..Model::default() }
    }

    fn config() -> Config {
        let mut config = Config::default();
        config.models.insert("coder".into(), model(false));
        config.models.insert("mini".into(), Model { sha256: Some("abc".into()), ..model(true) });
        config.models.insert("unserved".into(), Model { port: 0, ..model(true) });
        config
    }

    #[test]
    fn only_models_of_this_machine_are_asked() {
        let mut config = config();
        let name = |local: Option<Local>| local.map(|local| local.name);
        assert_eq!(Local::for_embeddings(&config).unwrap(), Local { name: "mini".into(), id: "mini@abc".into() });
        assert_eq!(Local::for_diagnoses(&config), None);
        for (wanted, found) in [("coder", true), ("alias-false", true), ("mini", false), ("gpt", false)] {
            config.healer.diagnosis_model = Some(wanted.into());
            assert_eq!(name(Local::for_diagnoses(&config)), found.then(|| wanted.to_owned()), "{wanted}");
        }
        for (wanted, found) in [("mini", true), ("alias-true", true), ("coder", false), ("unserved", false)] {
            config.healer.embedding_model = Some(wanted.into());
            assert_eq!(name(Local::for_embeddings(&config)), found.then(|| wanted.to_owned()), "{wanted}");
        }
        // The coordinator would share requests for the name between this machine and the other.
        let both =
            Upstream { models: [("mini".to_owned(), "text-embedding".to_owned())].into(), ..Upstream::default() };
        config.coordinator.upstreams.insert("elsewhere".into(), both);
        config.healer.embedding_model = Some("mini".into());
        assert_eq!(Local::for_embeddings(&config), None);
        config.healer.embedding_model = None;
        assert_eq!(Local::for_embeddings(&config), None);
        config.coordinator.upstreams.clear();
        for (url, found) in [
            ("", true),
            ("http://127.0.0.1:8080/v1", true),
            ("http://[::1]/v1", true),
            ("http://box.lan:8080/v1", false),
        ] {
            config.ralph.coordinator_url = url.to_owned();
            assert_eq!(Local::for_embeddings(&config).is_some(), found, "{url}");
        }
    }
}
