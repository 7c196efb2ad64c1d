//! The whole scholar against a coordinator that answers by rote and a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Mutex;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use axum::{Json, Router};
use jiff::{SignedDuration, Timestamp};
use lares_config::Model;
use lares_store::testing::{Cluster, TestDatabase};
use tokio::time::timeout;

use super::*;
use crate::decide::Policy;
use crate::facts::{Active, Dependency, Probe};
use crate::learn::Lessons;
use crate::moment::{Moment, Now};
use crate::remedy::{Remedy, Step};
use crate::restraint::{Limits, Restraint};
use crate::symptom::Symptom;
use crate::timeline::Event;
use crate::ward::{Effect, Ward};

/// Two wordings of one failure, the first with other numbers, and one that is another.
const FIRST: &str =
    "shard 3 of index logs-2026 failed to recover after 4 tries: translog of the primary copy is truncated";
const NUMBERS: &str =
    "shard 12 of index logs-2027 failed to recover after 9 tries: translog of the primary copy is truncated";
const REWORDED: &str =
    "shard 3 of index logs-2026 failed to recover after 4 tries: translog of the replica copy is truncated";
const OTHER: &str = "cannot bring up the listener: certificate of the gateway has expired";

/// What the stub answers with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Zeros,
    Wide,
    Broken,
}

#[derive(Debug)]
struct Stub {
    width: usize,
    mood: Mutex<Mood>,
    /// Texts that were embedded, and conversations.
    texts: Mutex<Vec<String>>,
    asked: Mutex<Vec<Value>>,
}

impl Stub {
    async fn start(width: usize) -> (Arc<Self>, String) {
        let stub =
            Arc::new(Self { width, mood: Mutex::new(Mood::Well), texts: Mutex::default(), asked: Mutex::default() });
        let routes = Router::new()
            .route("/v1/embeddings", post(embed))
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::clone(&stub));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (stub, url)
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn texts(&self) -> Vec<String> {
        std::mem::take(&mut *self.texts.lock().unwrap())
    }
}

/// Each word points its own way.
async fn embed(
    State(stub): State<Arc<Stub>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (http::StatusCode, Json<Value>) {
    assert_eq!(headers["authorization"], "Bearer the-key");
    assert_eq!(body["model"], "mini");
    let mood = *stub.mood.lock().unwrap();
    if mood == Mood::Broken {
        return (http::StatusCode::BAD_GATEWAY, Json(json!({"error": {"message": "no model"}})));
    }
    let mut data = Vec::new();
    for (index, text) in body["input"].as_array().unwrap().iter().enumerate() {
        let text = text.as_str().unwrap();
        stub.texts.lock().unwrap().push(text.to_owned());
        let mut vector = vec![0.0_f32; if mood == Mood::Wide { stub.width + 1 } else { stub.width }];
        for word in text.split_whitespace().filter(|_| mood != Mood::Zeros) {
            let place = Template::of(word).fingerprint().0 % stub.width as u64;
            vector[usize::try_from(place).unwrap()] += 1.0;
        }
        data.push(json!({"index": index, "embedding": vector}));
    }
    (http::StatusCode::OK, Json(json!({ "data": data })))
}

async fn chat(State(stub): State<Arc<Stub>>, Json(body): Json<Value>) -> Json<Value> {
    stub.asked.lock().unwrap().push(body);
    Json(json!({"choices": [{"message": {"content": "The translog\u{1b}[0m is damaged.\n"}}]}))
}

struct Bench {
    _directory: tempfile::TempDir,
    database: TestDatabase,
    store: Store,
    stub: Arc<Stub>,
    config: Config,
}

impl Bench {
    async fn new(width: usize) -> Self {
        let database = Cluster::shared().await;
        let (stub, url) = Stub::start(width).await;
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config { state_dir: directory.path().to_owned(), ..Config::default() };
        std::fs::create_dir(directory.path().join("keys")).unwrap();
        std::fs::write(config.agent_key_file(), "the-key\n").unwrap();
        config.ralph.coordinator_url = url;
        config.store.vectors.dimensions = u32::try_from(width).unwrap();
        config.models.insert("mini".into(), Model { port: 1, embeddings: true, ..Model::default() });
        Self { _directory: directory, store: database.store().await, database, stub, config }
    }

    fn scholar(&self) -> Scholar {
        Scholar::start(&Arc::new(self.config.clone()), self.store.clone())
    }

    async fn known(&self, line: &str) -> Option<Failure> {
        let fingerprint = unknown(line).fingerprint;
        self.store.failures().known().await.unwrap().into_iter().find(|failure| failure.fingerprint == fingerprint)
    }

    /// Waits until a failure is as it should be.
    async fn wait(&self, line: &str, is: impl Fn(&Failure) -> bool) -> Failure {
        let wait = async {
            loop {
                if let Some(failure) = self.known(line).await.filter(&is) {
                    return failure;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match timeout(Duration::from_secs(20), wait).await {
            Ok(failure) => failure,
            Err(_) => panic!("{:?}", self.known(line).await),
        }
    }
}

fn unknown(line: &str) -> Unknown {
    Unknown { fingerprint: Template::of(line).fingerprint().to_string(), line: line.to_owned() }
}

fn name(line: &str) -> String {
    unknown(line).fingerprint
}

async fn answer(scholar: &mut Scholar) -> Answer {
    timeout(Duration::from_secs(20), scholar.answer()).await.unwrap().unwrap()
}

/// A machine of two units, `app` and `db` that it needs, with the loop's part of the work.
struct Machine {
    ward: Ward,
    clusters: Clusters,
    now: Now,
    down: BTreeSet<&'static str>,
    line: &'static str,
    runs: u32,
    /// Entries of the present incident.
    entries: Vec<Event>,
}

const APP: &str = "app.service";
const DB: &str = "db.service";

impl Machine {
    fn new() -> Self {
        let mut ward = Ward::new(Restraint::new(Limits::of(&lares_config::Healer::default())), Lessons::new(3));
        ward.watch(APP, Policy::default(), vec![DB.to_owned()]);
        ward.watch(DB, Policy::default(), Vec::new());
        let now = Now { moment: Moment::from_millis(1_000_000), wall: Timestamp::UNIX_EPOCH, random: 7 };
        Self { ward, clusters: Clusters::default(), now, down: BTreeSet::new(), line: "", runs: 0, entries: Vec::new() }
    }

    fn facts(&self, new: bool) -> Facts {
        let is = |unit| if self.down.contains(unit) { Active::Failed } else { Active::Active };
        let down = is(APP) == Active::Failed;
        Facts {
            active: is(APP),
            result: "exit-code".into(),
            exit_status: Some(1),
            invocation: self.runs.to_string(),
            symptoms: if new { vec![Symptom::ExitCode { status: 1 }] } else { Vec::new() },
            said: if down { vec!["starting".into(), self.line.to_owned()] } else { Vec::new() },
            fingerprint: down.then(|| name(self.line)),
            dependencies: vec![Dependency {
                unit: DB.to_owned(),
                needs: Vec::new(),
                active: is(DB),
                invocation: self.runs.to_string(),
                probe: Probe::None,
                ours: true,
            }],
            ..Facts::healthy(APP)
        }
    }

    /// What the loop does with facts.
    fn look(&mut self, new: bool, scholar: &mut Scholar) {
        let mut facts = self.facts(new);
        let unknown = Unknown::of(&facts);
        self.clusters.rename(&mut facts);
        let effects = self.ward.observed(facts, &self.now);
        if let Some(unknown) = unknown.filter(|_| new) {
            assert!(scholar.study(unknown));
        }
        self.carry_out(effects, scholar);
    }

    fn carry_out(&mut self, effects: Vec<Effect>, scholar: &mut Scholar) {
        for effect in effects {
            match effect {
                Effect::Record { entry, .. } => self.entries.push(entry.event),
                Effect::Look { .. } => self.look(false, scholar),
                Effect::Act { incident, attempt, step, action } => {
                    if let Step::Start { unit } | Step::Restart { unit } = &action {
                        self.down.retain(|down| down != unit);
                        self.runs += 1;
                    }
                    let effects = self.ward.acted(incident, attempt, step, None, &self.now);
                    self.carry_out(effects, scholar);
                }
            }
        }
    }

    /// The unit fails with this line, and an hour passes. Gives the incident's entries.
    fn fails(&mut self, line: &'static str, down: &[&'static str], scholar: &mut Scholar) -> Vec<Event> {
        (self.line, self.down) = (line, down.iter().copied().collect());
        self.entries.clear();
        self.look(true, scholar);
        for _ in 0..240 {
            self.now.moment = self.now.moment + Duration::from_secs(15);
            self.now.wall += SignedDuration::from_secs(15);
            let effects = self.ward.tick(&self.now);
            self.carry_out(effects, scholar);
        }
        assert!(self.ward.incident(APP).is_none(), "{:?}", self.entries);
        std::mem::take(&mut self.entries)
    }
}

fn helped(entries: &[Event]) -> (&Remedy, &str) {
    let found = entries.iter().find_map(|event| match event {
        Event::Verified { remedy, known_as, .. } => Some((remedy, known_as.as_str())),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{entries:?}"))
}

fn proposed(entries: &[Event]) -> Vec<&str> {
    let proposals = entries.iter().filter_map(|event| match event {
        Event::Proposed { remedy } => Some(remedy.as_str()),
        _ => None,
    });
    proposals.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_helped_against_a_failure_is_proposed_for_those_that_are_like_it() {
    let bench = Bench::new(1024).await;
    let (mut scholar, mut machine) = (bench.scholar(), Machine::new());
    // What it needs is down, and its being brought up helps.
    let first = machine.fails(FIRST, &[APP, DB], &mut scholar);
    let dependencies = Remedy::RestartDependencies { units: vec![DB.into()] };
    assert_eq!(helped(&first), (&dependencies, name(FIRST).as_str()));
    assert!(proposed(&first).is_empty());
    let lines = first.iter().find_map(|event| match event {
        Event::Evidence { lines, .. } => Some(lines.clone()),
        _ => None,
    });
    assert_eq!(lines.unwrap(), ["starting", FIRST]);
    bench.wait(FIRST, |failure| failure.cluster.is_some()).await;

    // The same with other numbers, and this time nothing shows what it lacks.
    let second = machine.fails(NUMBERS, &[APP], &mut scholar);
    assert_eq!(proposed(&second), ["restart_dependencies"]);
    assert_eq!(helped(&second), (&Remedy::Restart, name(FIRST).as_str()));
    let failure = bench.wait(FIRST, |failure| failure.seen == 2).await;
    assert_eq!(failure.cluster, Some(name(FIRST)));
    assert_eq!(bench.store.failures().known().await.unwrap().len(), 1);

    // In other words it is found to be the same, and another one is not.
    machine.fails(REWORDED, &[APP], &mut scholar);
    machine.fails(OTHER, &[APP], &mut scholar);
    let learnt = answer(&mut scholar).await;
    assert_eq!(learnt, Answer::Learned { fingerprint: name(REWORDED), cluster: name(FIRST) });
    let Answer::Learned { fingerprint, cluster } = learnt else { return };
    machine.clusters.learn(fingerprint, cluster);
    assert_eq!(bench.wait(OTHER, |failure| failure.cluster.is_some()).await.cluster, Some(name(OTHER)));

    // A person allows it, and it is used.
    let incidents = bench.store.incidents();
    incidents.approve("here", APP, &name(FIRST), "restart_dependencies", true).await.unwrap();
    for stat in incidents.stats("here").await.unwrap() {
        machine.ward.lessons().count(&stat.unit, &stat.known_as, &stat.remedy).approved = stat.approved;
    }
    let third = machine.fails(REWORDED, &[APP], &mut scholar);
    assert!(proposed(&third).is_empty());
    assert_eq!(helped(&third), (&dependencies, name(FIRST).as_str()));
    let other = machine.fails(OTHER, &[APP], &mut scholar);
    assert_eq!(helped(&other), (&Remedy::Restart, name(OTHER).as_str()));

    // The next one knows from the start.
    let mut clusters = Clusters::default();
    clusters.load(bench.store.failures().clusters().await.unwrap());
    let mut facts = Facts { fingerprint: Some(name(REWORDED)), ..Facts::healthy(APP) };
    clusters.rename(&mut facts);
    assert_eq!(facts.fingerprint, Some(name(FIRST)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_embedding_leaves_a_failure_without_a_cluster() {
    let bench = Bench::new(64).await;
    let mut scholar = bench.scholar();
    for (times, mood) in [(1, Mood::Zeros), (2, Mood::Wide), (3, Mood::Broken)] {
        bench.stub.is(mood);
        assert!(scholar.study(unknown("password=hunter2 is refused")));
        let failure = bench.wait("password=hunter2 is refused", |failure| failure.seen == times).await;
        assert_eq!((failure.cluster, failure.template.as_str()), (None, "password=<secret> is refused"), "{mood:?}");
    }
    bench.stub.is(Mood::Well);
    bench.stub.texts();
    assert!(scholar.study(unknown("password=hunter2 is refused")));
    let failure = bench.wait("password=hunter2 is refused", |failure| failure.cluster.is_some()).await;
    assert_eq!((failure.model.as_deref(), failure.cluster), (Some("mini@/64"), Some(failure.fingerprint)));
    assert_eq!(bench.stub.texts(), ["password=<secret> is refused"]);
    let points = bench.store.vectors_table().load(Collection::ErrorSolutions).await.unwrap();
    assert_eq!(points.len(), 1);
    assert_eq!(points[0].payload["model"], "mini@/64");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_embeds_everything_again_and_changes_no_cluster() {
    let mut bench = Bench::new(1024).await;
    // Before there was a model.
    bench.config.models.clear();
    let mut by_words = bench.scholar();
    for line in [FIRST, REWORDED] {
        assert!(by_words.study(unknown(line)));
    }
    let failure = bench.wait(REWORDED, |failure| failure.cluster.is_some()).await;
    assert_eq!((failure.cluster, failure.model), (Some(name(FIRST)), None));
    drop(by_words);
    bench.config.models.insert("mini".into(), Model { port: 1, embeddings: true, ..Model::default() });
    let first = bench.scholar();
    bench.wait(REWORDED, |failure| failure.model.as_deref() == Some("mini@/1024")).await;
    bench.wait(FIRST, |failure| failure.model.as_deref() == Some("mini@/1024")).await;
    drop(first);
    // A model of another width under the same name.
    let mut narrow = Bench::new(256).await;
    narrow.store = bench.store.clone();
    narrow.database = bench.database.clone();
    let mut scholar = narrow.scholar();
    assert!(scholar.study(unknown(OTHER)));
    for (line, cluster) in [(FIRST, FIRST), (REWORDED, FIRST), (OTHER, OTHER)] {
        let failure = narrow.wait(line, |failure| failure.model.as_deref() == Some("mini@/256")).await;
        assert_eq!(failure.cluster, Some(name(cluster)));
    }
    let points = narrow.store.vectors_table().load(Collection::ErrorSolutions).await.unwrap();
    assert_eq!(points.iter().map(|point| point.vector.len()).collect::<Vec<_>>(), [256; 3]);
    // Whatever emptied the collection, it is filled again.
    let ids: Vec<Uuid> = points.iter().map(|point| point.id).collect();
    drop(scholar);
    narrow.store.vectors_table().delete(Collection::ErrorSolutions, &ids).await.unwrap();
    let mut scholar = narrow.scholar();
    assert!(scholar.study(unknown(OTHER)));
    narrow.wait(OTHER, |failure| failure.seen == 2).await;
    assert_eq!(narrow.store.vectors_table().load(Collection::ErrorSolutions).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_model_writes_what_it_thinks_and_nothing_else() {
    let mut bench = Bench::new(64).await;
    bench.config.models.insert("coder".into(), Model { port: 2, ..Model::default() });
    assert!(!bench.scholar().diagnoses());
    bench.config.healer.diagnosis_model = Some("coder".into());
    let mut scholar = bench.scholar();
    let mut machine = Machine::new();
    (machine.line, machine.down) = (FIRST, [APP].into());
    machine.look(true, &mut scholar);
    let before = machine.ward.incident(APP).unwrap().clone();
    let lines = vec!["api_key=abc".to_owned(), FIRST.to_owned()];
    let case = Case { incident: before.id, unit: APP.into(), result: "exit-code".into(), lines };
    assert!(scholar.ask(case.clone()));
    let Answer::Diagnosed { incident, model, text } = answer(&mut scholar).await else { panic!("no diagnosis") };
    assert_eq!((incident, model.as_str(), text.as_str()), (before.id, "coder", "The translog is damaged."));
    let asked = bench.stub.asked.lock().unwrap().pop().unwrap();
    assert_eq!((&asked["temperature"], &asked["max_tokens"]), (&json!(0), &json!(300)));
    let told = asked["messages"][1]["content"].as_str().unwrap();
    assert!(told.contains("api_key=<secret>") && told.contains("shard <n> of index logs-<n>"), "{told}");

    let effects = machine.ward.note(incident, Event::Diagnosed { model, text }, &machine.now);
    let [Effect::Record { entry, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(entry.event.to_string(), "coder thinks: The translog is damaged.");
    let after = machine.ward.incident(APP).unwrap();
    assert_eq!((after.phase(), after.look_at, after.seq), (before.phase(), before.look_at, before.seq + 1));
    // It came too late.
    let gone = Event::Diagnosed { model: String::new(), text: String::new() };
    assert_eq!(machine.ward.note(Uuid::nil(), gone, &machine.now), []);
}

#[test]
fn each_failure_has_a_point_of_its_own() {
    let numbers = (0..64).map(|bit| 1_u64 << bit).chain([0, u64::MAX]);
    let points: BTreeSet<Uuid> = numbers.map(|number| point_of(&format!("{number:016x}"))).collect();
    assert_eq!(points.len(), 66);
}

#[tokio::test]
async fn what_is_too_much_is_dropped_and_counted() {
    let bench = Bench::new(64).await;
    let mut scholar = bench.scholar();
    // On one thread nothing is taken out meanwhile.
    let taken = (0..100).filter(|_| scholar.study(unknown(FIRST))).count();
    assert_eq!((taken, scholar.dropped), (UNKNOWNS, 100 - UNKNOWNS as u64));
}
