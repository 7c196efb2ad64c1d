//! Asking local models, through the coordinator.

use std::net::IpAddr;
use std::time::Duration;

use lares_config::{Config, Model};
use lares_gate::{Client, ClientError};
use serde_json::{Value, json};

/// Longest that embeddings take.
const EMBED: Duration = Duration::from_secs(10);
/// Longest that an answer in words takes.
const COMPLETE: Duration = Duration::from_secs(60);
/// Most tokens of an answer.
const TOKENS: u32 = 300;
/// Most characters of a text that is embedded: even if each were a token, it fits into 512.
const TEXT: usize = 400;

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
pub(super) struct Models(Client);

impl Models {
    pub(super) fn new(config: &Config) -> Result<Self, ClientError> {
        Ok(Self(Client::new(&config.coordinator_url(), Some(config.agent_key_file()), "lares-healer")?))
    }

    /// The embeddings of texts, each of this width and of unit length.
    pub(super) async fn embed(&self, model: &str, texts: &[&str], width: usize) -> Result<Vec<Vec<f32>>, ClientError> {
        let texts = texts.iter().map(|text| text.chars().take(TEXT).collect()).collect();
        self.0.embed(model, texts, width, EMBED).await
    }

    /// An answer in words, as short and as sober as the model can.
    pub(super) async fn complete(&self, model: &str, system: &str, user: &str) -> Result<String, ClientError> {
        let body = json!({
            "model": model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "stream": false,
        });
        let route = "/chat/completions";
        let answer: Value = self.0.post(route, &body, COMPLETE).await?;
        match answer.pointer("/choices/0/message/content").and_then(Value::as_str) {
            Some(text) => Ok(text.to_owned()),
            None => Err(ClientError::Useless { url: self.0.url(route), why: "no text in it".to_owned() }),
        }
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
