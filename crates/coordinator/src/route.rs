//! Which upstreams serve which model name, and which of several gets the next request.
//!
//! The table is made once from the configuration. What changes while requests run (load, back-offs) lives in
//! [`crate::queue`]; the choice itself is the pure [`least_loaded`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lares_config::Config;
use tokio::time::Instant;

use crate::Error;
use crate::queue::Lane;
use crate::request::Endpoint;
use crate::upstream::Upstream;

/// Names this much alike (Jaro-Winkler, 0 to 1) are suggested: one typing error apart, or the same stem.
const ALIKE: f64 = 0.75;

/// Upstreams that serve one name, as places in [`Routes::upstreams`], each with the name it knows the model by.
#[derive(Debug)]
pub struct Candidates {
    targets: Vec<(usize, String)>,
    turn: AtomicUsize,
}

impl Candidates {
    /// Candidates in the order in which ties are broken.
    pub fn new(targets: Vec<(usize, String)>) -> Self {
        Self { targets, turn: AtomicUsize::new(0) }
    }

    /// The lanes to them.
    pub fn lanes(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|(lane, _)| *lane)
    }

    /// The name under which the upstream of this lane knows the model.
    pub fn upstream_model(&self, lane: usize) -> Option<&str> {
        self.targets.iter().find(|(target, _)| *target == lane).map(|(_, model)| model.as_str())
    }

    /// Whether a request for these may go to `lane` now: a live one, or any when all are in a back-off.
    pub fn may_use(&self, lane: usize, lanes: &[Lane], now: Instant) -> bool {
        self.lanes().any(|target| target == lane)
            && (lanes[lane].is_live(now) || !self.lanes().any(|target| lanes[target].is_live(now)))
    }
}

/// The free candidate with the smallest share of its capacity in use; ties go round. None when all are full.
pub fn least_loaded(candidates: &Candidates, lanes: &[Lane], now: Instant) -> Option<usize> {
    let any_live = candidates.lanes().any(|lane| lanes[lane].is_live(now));
    let start = candidates.turn.fetch_add(1, Ordering::Relaxed);
    let count = candidates.targets.len();
    (0..count)
        .map(|step| candidates.targets[(start % count + step) % count].0)
        .filter(|lane| lanes[*lane].is_free() && (lanes[*lane].is_live(now) || !any_live))
        .min_by(|a, b| {
            let (a, b) = (&lanes[*a], &lanes[*b]);
            // a.in_flight / a.capacity against b's, without division.
            (a.in_flight * b.capacity).cmp(&(b.in_flight * a.capacity))
        })
}

/// What is told about a model in `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The local model's key or the upstream's name.
    pub owner: String,
    /// Whether it is a local model.
    pub local: bool,
    /// Tokens of context each request gets, where known.
    pub context: Option<u32>,
    /// Requests served at the same time by all its upstreams.
    pub slots: u32,
    /// Whether it serves embeddings; not known of remote models.
    pub embeddings: Option<bool>,
}

/// One name clients may ask for.
#[derive(Debug)]
pub struct Route {
    /// What is told about it.
    pub facts: Facts,
    completions: Option<Arc<Candidates>>,
    embeddings: Option<Arc<Candidates>>,
}

/// Why a request cannot be routed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRoute {
    /// No such name; the nearest one that exists, if any is alike.
    Unknown {
        /// The nearest name.
        nearest: Option<String>,
    },
    /// The model is there but not for this endpoint.
    WrongEndpoint {
        /// Names that would do.
        instead: Vec<String>,
    },
}

/// The table of all models and upstreams.
#[derive(Debug)]
pub struct Routes {
    /// All upstreams; a lane is a place in this list.
    pub upstreams: Vec<Upstream>,
    models: BTreeMap<String, Route>,
}

/// What the table is made from: one served name of one upstream.
struct Offer<'a> {
    name: &'a str,
    lane: usize,
    upstream_model: &'a str,
    facts: Facts,
}

impl Routes {
    /// Reads the upstreams' key files and builds the table.
    ///
    /// # Errors
    /// [`Error`] when an upstream's URL or key file cannot be used.
    pub async fn from_config(config: &Config) -> Result<Self, Error> {
        let mut upstreams = Vec::new();
        let mut offers = Vec::new();
        let llama_key = config.llama_key_file();
        for (name, model) in config.models.iter().filter(|(_, model)| model.port != 0) {
            let lane = upstreams.len();
            upstreams.push(Upstream::local(name, model, &llama_key).await?);
            for served in std::iter::once(name).chain(&model.aliases) {
                offers.push(Offer {
                    name: served,
                    lane,
                    upstream_model: name,
                    facts: Facts {
                        owner: name.clone(),
                        local: true,
                        context: Some(model.context_size),
                        slots: model.slots.max(1),
                        embeddings: Some(model.embeddings),
                    },
                });
            }
        }
        for (name, upstream) in &config.coordinator.upstreams {
            let lane = upstreams.len();
            upstreams.push(Upstream::remote(name, upstream).await?);
            for (served, known_as) in &upstream.models {
                offers.push(Offer {
                    name: served,
                    lane,
                    upstream_model: known_as,
                    facts: Facts {
                        owner: name.clone(),
                        local: false,
                        context: None,
                        slots: upstream.max_in_flight.max(1),
                        embeddings: None,
                    },
                });
            }
        }
        Ok(Self { upstreams, models: table(&offers) })
    }

    /// The candidates for a request.
    ///
    /// # Errors
    /// [`NoRoute`] when nothing serves this name at this endpoint.
    pub fn find(&self, model: &str, endpoint: Endpoint) -> Result<&Arc<Candidates>, NoRoute> {
        let Some(route) = self.models.get(model) else {
            return Err(NoRoute::Unknown { nearest: self.nearest(model) });
        };
        route.serving(endpoint).ok_or_else(|| NoRoute::WrongEndpoint {
            instead: self
                .models
                .iter()
                .filter(|(_, other)| other.serving(endpoint).is_some())
                .map(|(name, _)| name.clone())
                .collect(),
        })
    }

    /// One model by name.
    pub fn get(&self, model: &str) -> Option<&Route> {
        self.models.get(model)
    }

    /// All models by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Route)> {
        self.models.iter().map(|(name, route)| (name.as_str(), route))
    }

    /// The existing name most like this one.
    pub fn nearest(&self, model: &str) -> Option<String> {
        let wanted = model.to_lowercase();
        self.models
            .keys()
            .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
            .filter(|(likeness, _)| *likeness >= ALIKE)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, name)| name.clone())
    }
}

impl Route {
    fn serving(&self, endpoint: Endpoint) -> Option<&Arc<Candidates>> {
        match endpoint {
            Endpoint::Embeddings => self.embeddings.as_ref(),
            Endpoint::ChatCompletions | Endpoint::Completions => self.completions.as_ref(),
        }
    }
}

fn table(offers: &[Offer<'_>]) -> BTreeMap<String, Route> {
    let mut by_name: BTreeMap<&str, Vec<&Offer<'_>>> = BTreeMap::new();
    for offer in offers {
        let same = by_name.entry(offer.name).or_default();
        // A model that lists its own name among its aliases is still one upstream.
        if same.iter().all(|other| other.lane != offer.lane) {
            same.push(offer);
        }
    }
    let candidates = |offers: &[&Offer<'_>], embeddings: bool| {
        let targets: Vec<_> = offers
            .iter()
            .filter(|offer| offer.facts.embeddings.is_none_or(|only| only == embeddings))
            .map(|offer| (offer.lane, offer.upstream_model.to_owned()))
            .collect();
        (!targets.is_empty()).then(|| Arc::new(Candidates::new(targets)))
    };
    by_name
        .into_iter()
        .map(|(name, same)| {
            let mut facts = same[0].facts.clone();
            facts.slots = same.iter().map(|offer| offer.facts.slots).sum();
            // Whichever upstream a request lands on, this much context is there.
            facts.context = same.iter().filter_map(|offer| offer.facts.context).min();
            facts.local = same.iter().any(|offer| offer.facts.local);
            if same.iter().any(|offer| offer.facts.embeddings != facts.embeddings) {
                facts.embeddings = None;
            }
            let route = Route { facts, completions: candidates(&same, false), embeddings: candidates(&same, true) };
            (name.to_owned(), route)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use lares_config::{Model, Upstream as Remote};
    use proptest::prelude::*;

    use super::*;

    fn config(dir: &std::path::Path) -> Config {
        let mut config = Config { state_dir: dir.to_path_buf(), ..Config::default() };
        let chat = Model { port: 8080, aliases: vec!["coder".into()], slots: 2, ..Model::default() };
        let embed = Model { port: 8081, embeddings: true, ..Model::default() };
        config.models = [("qwen".into(), chat), ("minilm".into(), embed), ("unused".into(), Model::default())].into();
        let remote = Remote {
            url: "http://10.0.0.1:9000/v1/".into(),
            models: [("coder".to_owned(), "Qwen/Coder".to_owned())].into(),
            ..Remote::default()
        };
        config.coordinator.upstreams.insert("box".into(), remote);
        config
    }

    async fn routes() -> Routes {
        Routes::from_config(&config(std::path::Path::new("/nonexistent"))).await.unwrap()
    }

    #[tokio::test]
    async fn names_and_aliases_lead_to_their_upstreams() {
        let routes = routes().await;
        let names: Vec<_> = routes.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["coder", "minilm", "qwen"]);
        let coder = routes.find("coder", Endpoint::ChatCompletions).unwrap();
        let targets: Vec<_> =
            coder.lanes().map(|lane| (routes.upstreams[lane].name(), coder.upstream_model(lane).unwrap())).collect();
        assert_eq!(targets, [("qwen", "qwen"), ("box", "Qwen/Coder")]);
        assert_eq!(routes.get("coder").unwrap().facts.slots, 10);
        assert_eq!(routes.get("coder").unwrap().facts.context, Some(8192));
    }

    #[tokio::test]
    async fn an_unknown_name_suggests_the_nearest() {
        let routes = routes().await;
        let unknown = routes.find("Qwem", Endpoint::ChatCompletions).unwrap_err();
        assert_eq!(unknown, NoRoute::Unknown { nearest: Some("qwen".into()) });
        let unknown = routes.find("gpt-4o", Endpoint::ChatCompletions).unwrap_err();
        assert_eq!(unknown, NoRoute::Unknown { nearest: None });
    }

    #[tokio::test]
    async fn embeddings_and_chat_models_are_not_mixed_up() {
        let routes = routes().await;
        let wrong = routes.find("minilm", Endpoint::ChatCompletions).unwrap_err();
        assert_eq!(wrong, NoRoute::WrongEndpoint { instead: vec!["coder".into(), "qwen".into()] });
        let wrong = routes.find("qwen", Endpoint::Embeddings).unwrap_err();
        assert_eq!(wrong, NoRoute::WrongEndpoint { instead: vec!["coder".into(), "minilm".into()] });
        // What a remote model can do is not known, so it is asked.
        let coder = routes.find("coder", Endpoint::Embeddings).unwrap();
        assert_eq!(coder.lanes().map(|lane| routes.upstreams[lane].name()).collect::<Vec<_>>(), ["box"]);
    }

    #[test]
    fn ties_go_round() {
        let candidates = Candidates::new(vec![(0, String::new()), (1, String::new()), (2, String::new())]);
        let lanes = vec![Lane::new(4), Lane::new(4), Lane::new(4)];
        let chosen: Vec<_> = (0..6).map(|_| least_loaded(&candidates, &lanes, Instant::now()).unwrap()).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
    }

    proptest! {
        #[test]
        fn the_choice_is_free_and_no_free_one_is_less_loaded(
            loads in prop::collection::vec((1..9usize, 0..12usize), 1..6),
            turn in any::<usize>(),
        ) {
            let lanes: Vec<Lane> = loads
                .iter()
                .map(|(capacity, in_flight)| {
                    let mut lane = Lane::new(*capacity);
                    lane.in_flight = *in_flight;
                    lane
                })
                .collect();
            let candidates = Candidates::new((0..lanes.len()).map(|lane| (lane, String::new())).collect());
            candidates.turn.store(turn, Ordering::Relaxed);
            let share = |lane: &Lane| lane.in_flight as f64 / lane.capacity as f64;
            match least_loaded(&candidates, &lanes, Instant::now()) {
                None => prop_assert!(lanes.iter().all(|lane| !lane.is_free())),
                Some(chosen) => {
                    prop_assert!(lanes[chosen].is_free());
                    for other in lanes.iter().filter(|lane| lane.is_free()) {
                        prop_assert!(share(&lanes[chosen]) <= share(other) + 1e-9);
                    }
                }
            }
        }
    }
}
