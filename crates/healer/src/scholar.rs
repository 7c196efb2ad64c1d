//! What is learned of failures that no pattern knows, beside the loop: which of them are alike, and what a local model
//! has to say of them.
//!
//! ```text
//! loop ─ Unknown ─→ study ─ failures (PostgreSQL), error-solutions (vectors), embeddings (coordinator) ─→ Learned
//!      └ Case ────→ diagnosis ─ one chat completion ────────────────────────────────────────────────────→ Diagnosed
//! ```
//!
//! Counts and proposals are of clusters: all failures that are alike go by the fingerprint of the first. Nothing here
//! decides anything, and the loop never waits for it.

mod diagnosis;
mod models;
pub(crate) mod secrets;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lares_config::{Config, VectorsBackend};
use lares_gate::ClientError;
use lares_store::Store;
use lares_store::failures::{Failure, KNOWN};
use lares_store::vectors::{self, Collection, Filter, Match, Memory, Point, Qdrant, Vectors};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub(crate) use diagnosis::Case;
use models::{Local, Models};

use crate::facts::Facts;
use crate::fingerprint::Template;

/// Failures and cases that may wait; further ones are dropped and come again the next time they are seen.
const UNKNOWNS: usize = 64;
const CASES: usize = 4;
const ANSWERS: usize = 64;
/// Failures whose embeddings point at least so much the same way (cosine) are one.
const ALIKE: f32 = 0.90;
/// Neighbours that are looked at.
const NEAREST: usize = 8;
/// Texts embedded by one request.
const BATCH: usize = 16;
/// Pause before what failed is tried again, and the longest that it grows to.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_MAX: Duration = Duration::from_secs(1800);
/// Longest line that is remembered of a failure, in characters.
const LINE: usize = 500;
/// What points of failures are marked by among those of the collection.
const KIND: &str = "failure";

/// A failure that no pattern knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Fingerprint of the line it is known by.
    pub(crate) fingerprint: String,
    /// That line.
    pub(crate) line: String,
}

impl Unknown {
    /// What there is to learn of these facts. They must not have been renamed to their cluster yet.
    pub(crate) fn of(facts: &Facts) -> Option<Self> {
        let fingerprint = facts.fingerprint.clone().filter(|_| facts.matched.is_none())?;
        Some(Self { fingerprint, line: facts.said.last()?.clone() })
    }
}

/// What comes back to the loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A failure goes by the name of another one from now on.
    Learned {
        /// Its fingerprint.
        fingerprint: String,
        /// That of the first failure that is like it.
        cluster: String,
    },
    /// A model wrote what it makes of an incident.
    Diagnosed {
        /// The incident.
        incident: Uuid,
        /// Name of the model.
        model: String,
        /// Its words.
        text: String,
    },
}

/// The names that failures go by, where that is another one than their own.
#[derive(Debug, Default)]
pub(crate) struct Clusters(BTreeMap<String, String>);

impl Clusters {
    /// Takes in what the store knows.
    pub(crate) fn load(&mut self, known: Vec<(String, String)>) {
        known.into_iter().for_each(|(fingerprint, cluster)| self.learn(fingerprint, cluster));
    }

    /// Takes in one.
    pub(crate) fn learn(&mut self, fingerprint: String, cluster: String) {
        let full = i64::try_from(self.0.len()).is_ok_and(|count| count >= KNOWN);
        if fingerprint != cluster && (!full || self.0.contains_key(&fingerprint)) {
            self.0.insert(fingerprint, cluster);
        }
    }

    /// Lets facts go by the name of their cluster.
    pub(crate) fn rename(&self, facts: &mut Facts) {
        if let Some(fingerprint) = &mut facts.fingerprint
            && let Some(cluster) = self.0.get(fingerprint)
        {
            fingerprint.clone_from(cluster);
        }
    }
}

/// The loop's end.
#[derive(Debug)]
pub(crate) struct Scholar {
    unknowns: mpsc::Sender<Unknown>,
    /// None: no model is to be asked.
    cases: Option<mpsc::Sender<Case>>,
    answers: mpsc::Receiver<Answer>,
    dropped: u64,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Scholar {
    /// Begins to study. It ends when this is dropped.
    pub(crate) fn start(config: &Arc<Config>, store: Store) -> Self {
        let (unknowns, asked) = mpsc::channel(UNKNOWNS);
        let (answer, answers) = mpsc::channel(ANSWERS);
        let diagnoses = Local::for_diagnoses(config);
        let embeddings = Local::for_embeddings(config);
        // Without a model there is nobody to ask, and the certificates of the system need not be in memory.
        let models = (diagnoses.is_some() || embeddings.is_some()).then(|| Models::new(config)).transpose();
        let models = models.unwrap_or_else(|error| {
            tracing::error!(%error, "no model can be asked");
            None
        });
        let mut tasks = Vec::new();
        let cases = models.clone().zip(diagnoses).map(|(models, model)| {
            let (cases, asked) = mpsc::channel(CASES);
            tasks.push(diagnosis::diagnose(models, model, asked, answer.clone()));
            cases
        });
        let by = match models.zip(embeddings) {
            Some((models, model)) => Compared::ByMeaning(Box::new(Meaning {
                models,
                id: format!("{}/{}", model.id, config.store.vectors.dimensions),
                name: model.name,
                width: usize::try_from(config.store.vectors.dimensions).unwrap_or(usize::MAX),
                config: config.store.vectors.clone(),
                opened: None,
            })),
            None => Compared::ByWords,
        };
        let study = Study { store, by, answers: answer };
        let mut tasks: Vec<_> = tasks.into_iter().map(|task| AbortOnDropHandle::new(tokio::spawn(task))).collect();
        tasks.push(AbortOnDropHandle::new(tokio::spawn(study.run(asked))));
        Self { unknowns, cases, answers, dropped: 0, _tasks: tasks }
    }

    /// Whether a model is asked about failures that nobody knows.
    pub(crate) fn diagnoses(&self) -> bool {
        self.cases.is_some()
    }

    /// Has a failure studied. `false`: too many wait, or none is studied any more.
    pub(crate) fn study(&mut self, unknown: Unknown) -> bool {
        let taken = self.unknowns.try_send(unknown).is_ok();
        self.count(taken);
        taken
    }

    /// Has a model asked about an incident. `false`: too many wait, or none is asked.
    pub(crate) fn ask(&mut self, case: Case) -> bool {
        let Some(cases) = &self.cases else { return false };
        let taken = cases.try_send(case).is_ok();
        self.count(taken);
        taken
    }

    fn count(&mut self, taken: bool) {
        if !taken {
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                tracing::warn!(
                    dropped = self.dropped,
                    "more unknown failures than can be studied; the next time they are seen they are tried again"
                );
            }
        }
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

/// Why a failure was not studied.
#[derive(Debug, thiserror::Error)]
enum StudyError {
    #[error(transparent)]
    Store(#[from] lares_store::Error),
    #[error("error-solutions: {0}")]
    Vectors(#[from] vectors::Error),
    #[error(transparent)]
    Model(#[from] ClientError),
}

/// How failures are compared.
enum Compared {
    ByMeaning(Box<Meaning>),
    ByWords,
}

/// Comparing by embeddings.
struct Meaning {
    models: Models,
    /// The name the coordinator knows the model by.
    name: String,
    /// What vectors of this model and this width are marked by.
    id: String,
    width: usize,
    config: lares_config::Vectors,
    opened: Option<Arc<dyn Vectors>>,
}

struct Study {
    store: Store,
    by: Compared,
    answers: mpsc::Sender<Answer>,
}

impl Study {
    async fn run(mut self, mut asked: mpsc::Receiver<Unknown>) {
        let mut pause = AGAIN;
        // What was left, and what another model embedded, comes first: else the new ones find no neighbours.
        let mut review = Some(Instant::now());
        loop {
            let due = review.unwrap_or_else(Instant::now);
            // A timer that is due takes a moment to say so.
            let done = if review.take_if(|at| *at <= Instant::now()).is_some() {
                self.review().await
            } else {
                tokio::select! {
                    () = sleep_until(due), if review.is_some() => continue,
                    unknown = asked.recv() => match unknown {
                        Some(unknown) => self.study(&unknown).await,
                        None => return,
                    },
                }
            };
            match done {
                Ok(()) if review.is_none() => pause = AGAIN,
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(error = %lares_gate::chain(&error), again_s = pause.as_secs(), "an unknown failure could not be compared with others");
                    if review.is_none() {
                        review = Some(Instant::now() + pause.mul_f64(rand::random_range(0.75..1.25)));
                        pause = (pause * 2).min(AGAIN_MAX);
                    }
                }
            }
        }
    }

    async fn study(&mut self, unknown: &Unknown) -> Result<(), StudyError> {
        let line = secrets::hide(&unknown.line);
        let template = Template::of(&line);
        let sample: String = line.chars().take(LINE).collect();
        let failure = self.store.failures().seen(&unknown.fingerprint, template.as_str(), &sample).await?;
        match failure.cluster.clone() {
            Some(cluster) => self.tell(failure.fingerprint, cluster).await,
            None => self.place(failure).await?,
        }
        Ok(())
    }

    /// What was not compared, and what this model has not embedded. Clusters that there are stay: what helped against
    /// them is counted by their names.
    async fn review(&mut self) -> Result<(), StudyError> {
        let forgotten = self.store.failures().forget(KNOWN).await?;
        let known = self.store.failures().known().await?;
        if let Compared::ByMeaning(meaning) = &mut self.by {
            let vectors = meaning.open(&self.store).await?;
            let points: Vec<Uuid> = forgotten.iter().map(|fingerprint| point_of(fingerprint)).collect();
            vectors.delete(Collection::ErrorSolutions, &points).await?;
            let emptied = vectors.count(Collection::ErrorSolutions).await? == 0;
            let other = |failure: &&Failure| emptied || failure.model.as_deref() != Some(meaning.id.as_str());
            let stale: Vec<&Failure> = known.iter().filter(|failure| failure.cluster.is_some()).filter(other).collect();
            for failures in stale.chunks(BATCH) {
                meaning.embed_again(&*vectors, failures).await?;
                for failure in failures {
                    let cluster = failure.cluster.as_ref().unwrap_or(&failure.fingerprint);
                    self.store.failures().assign(&failure.fingerprint, cluster, Some(&meaning.id)).await?;
                }
            }
            if !stale.is_empty() {
                tracing::info!(
                    failures = stale.len(),
                    model = meaning.id,
                    "embedded again what is known of unknown failures"
                );
            }
        }
        // The oldest first, so that clusters go by the first of theirs.
        for failure in known.into_iter().rev().filter(|failure| failure.cluster.is_none()) {
            self.place(failure).await?;
        }
        Ok(())
    }

    /// Finds those that a failure is like.
    async fn place(&mut self, failure: Failure) -> Result<(), StudyError> {
        let failures = self.store.failures();
        let (cluster, model) = match &mut self.by {
            Compared::ByMeaning(meaning) => {
                let vectors = meaning.open(&self.store).await?;
                let [vector] = &meaning.embed(&[&failure]).await?[..] else { return Ok(()) };
                let mut cluster = None;
                for near in meaning.neighbours(&*vectors, vector).await? {
                    cluster = failures.cluster(&near).await?;
                    if cluster.is_some() {
                        break;
                    }
                }
                // Before the failure is marked as embedded: a vector that is missing would never be made.
                vectors.upsert(Collection::ErrorSolutions, vec![meaning.point(&failure, vector.clone())]).await?;
                (cluster, Some(meaning.id.as_str()))
            }
            Compared::ByWords => {
                let known = failures.known().await?;
                let likeness = |other: &Failure| words::dice(&failure.template, &other.template);
                let alike = known
                    .into_iter()
                    .filter(|other| other.fingerprint != failure.fingerprint)
                    .filter_map(|other| Some((likeness(&other), other.cluster?)))
                    .filter(|(likeness, _)| *likeness >= words::ALIKE)
                    .max_by(|one, other| one.0.total_cmp(&other.0));
                (alike.map(|(_, cluster)| cluster), None)
            }
        };
        let cluster = cluster.unwrap_or_else(|| failure.fingerprint.clone());
        if let Some(cluster) = failures.assign(&failure.fingerprint, &cluster, model).await? {
            self.tell(failure.fingerprint, cluster).await;
        }
        Ok(())
    }

    async fn tell(&self, fingerprint: String, cluster: String) {
        if fingerprint != cluster {
            // Without a loop nobody needs to know.
            let _ = self.answers.send(Answer::Learned { fingerprint, cluster }).await;
        }
    }
}

impl Meaning {
    /// The collection, alone: the others may be large.
    async fn open(&mut self, store: &Store) -> Result<Arc<dyn Vectors>, StudyError> {
        if let Some(opened) = &self.opened {
            return Ok(Arc::clone(opened));
        }
        let opened: Arc<dyn Vectors> = match self.config.backend {
            VectorsBackend::Memory => {
                self.drop_other_widths(store).await?;
                Arc::new(Memory::open(store.clone(), self.config.dimensions).await?)
            }
            VectorsBackend::Qdrant => Arc::new(Qdrant::connect(&self.config).await?),
        };
        opened.ensure_collection(Collection::ErrorSolutions).await?;
        self.opened = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Vectors of a model that was configured before are made anew, so they need not be in the way.
    async fn drop_other_widths(&self, store: &Store) -> Result<(), StudyError> {
        let table = store.vectors_table();
        let points = table.load(Collection::ErrorSolutions).await?;
        let is_old =
            |point: &&Point| point.vector.len() != self.width && point.payload.get("kind") == Some(&json!(KIND));
        let old: Vec<Uuid> = points.iter().filter(is_old).map(|point| point.id).collect();
        if !old.is_empty() {
            table.delete(Collection::ErrorSolutions, &old).await?;
        }
        Ok(())
    }

    async fn embed(&self, failures: &[&Failure]) -> Result<Vec<Vec<f32>>, ClientError> {
        let texts: Vec<&str> = failures.iter().map(|failure| failure.template.as_str()).collect();
        self.models.embed(&self.name, &texts, self.width).await
    }

    async fn embed_again(&self, vectors: &dyn Vectors, failures: &[&Failure]) -> Result<(), StudyError> {
        let embedded = self.embed(failures).await?;
        let points = failures.iter().zip(embedded).map(|(failure, vector)| self.point(failure, vector)).collect();
        Ok(vectors.upsert(Collection::ErrorSolutions, points).await?)
    }

    /// Fingerprints of those near enough, the nearest first. Vectors of two models cannot be compared.
    async fn neighbours(&self, vectors: &dyn Vectors, vector: &[f32]) -> Result<Vec<String>, StudyError> {
        let filter = Filter::new().and("kind", Match::Text(KIND.to_owned())).and("model", Match::Text(self.id.clone()));
        let hits = vectors.search(Collection::ErrorSolutions, vector, NEAREST, Some(&filter)).await?;
        let near = hits.into_iter().filter(|hit| hit.score >= ALIKE);
        Ok(near.filter_map(|hit| hit.payload.get("fingerprint")?.as_str().map(str::to_owned)).collect())
    }

    fn point(&self, failure: &Failure, vector: Vec<f32>) -> Point {
        let fields = [
            ("kind", KIND),
            ("fingerprint", &failure.fingerprint),
            ("template", &failure.template),
            ("model", &self.id),
        ];
        let payload: Map<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        Point { id: point_of(&failure.fingerprint), vector, payload }
    }
}

/// The point of a failure: the same on every machine, and none that another kind of point has.
fn point_of(fingerprint: &str) -> Uuid {
    let number = u64::from_str_radix(fingerprint, 16).unwrap_or_default().to_be_bytes();
    // Bytes 6 and 8 have the marks of a UUID in them.
    let mut bytes = *b"......lares-fa..";
    bytes[..6].copy_from_slice(&number[..6]);
    bytes[14..].copy_from_slice(&number[6..]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests;
