//! The whole healer over the child-process supervisor and a real PostgreSQL.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lares_config::{Config, HealedUnit, HealthProbe};
use lares_healer::Healer;
use lares_store::Store;
use lares_store::incidents::{Entry, Filter, Incident, State};
use lares_store::keys::{Key, Role};
use lares_store::testing::{Cluster, TestDatabase};
use lares_units::{Children, Settings, Supervisor, UnitName, UnitSpec};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What answers a unit's probe, for as long as it is well.
async fn clinic(well: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let status = if well.load(Ordering::Relaxed) { "204 No Content" } else { "503 Service Unavailable" };
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
        }
    });
    address
}

struct House {
    database: TestDatabase,
    supervisor: Supervisor,
    well: Arc<AtomicBool>,
    config: Arc<Config>,
    directory: TempDir,
}

struct Running {
    stop: CancellationToken,
    healer: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.healer).await.unwrap().unwrap();
    }
}

impl House {
    /// One unit, `app`, that runs until it is ended and is asked by a probe.
    async fn new() -> Self {
        let database = Cluster::shared().await;
        let directory = tempfile::tempdir().unwrap();
        let well = Arc::new(AtomicBool::new(true));
        let address = clinic(Arc::clone(&well)).await;
        let settings = Settings { units: lares_config::Units::default(), logs: directory.path().join("logs") };
        let spec = UnitSpec::new(UnitName::new("app").unwrap(), "sleep").args(["1000"]);
        let supervisor = Supervisor::launch(settings, vec![spec], CancellationToken::new()).await.unwrap();
        supervisor.wait_ready(PATIENCE).await.unwrap();
        let mut config = Config { state_dir: directory.path().to_owned(), ..Config::default() };
        config.healer.listen = "127.0.0.1:0".parse().unwrap();
        config.healer.verify_hold = Duration::from_millis(300);
        // A unit that never answered the healer is given so long.
        config.healer.verify_timeout = Duration::from_secs(3);
        config.store = database.config();
        let probe = HealthProbe {
            http: Some(format!("http://{address}/health")),
            interval: Duration::from_millis(100),
            ..HealthProbe::default()
        };
        config.healer.units = BTreeMap::from([("app".to_owned(), HealedUnit { probe, ..HealedUnit::default() })]);
        let store = database.store().await;
        let secret = lares_gate::secret::Secret::generate().unwrap();
        store.keys().insert(&Key::new("admin", Role::Admin, secret.hash())).await.unwrap();
        Self { database, supervisor, well, config: Arc::new(config), directory }
    }

    async fn heal(&self) -> Running {
        self.heal_with(Arc::clone(&self.config)).await
    }

    async fn heal_with(&self, config: Arc<Config>) -> Running {
        let manager = Arc::new(Children::new(self.supervisor.clone()));
        let store = Store::open(&self.config.store, self.directory.path()).await.unwrap();
        let healer = Healer::open(config, store, manager).await.unwrap();
        let stop = CancellationToken::new();
        let (stopped, alive) = (stop.clone(), healer.alive());
        let healer = tokio::spawn(async move { healer.run(stopped).await.unwrap() });
        tokio::time::timeout(PATIENCE, alive.ask()).await.unwrap().unwrap();
        Running { stop, healer }
    }

    async fn pid(&self) -> Option<u32> {
        self.supervisor.status("app").await.unwrap().pid
    }

    /// Waits for an incident that is as wanted, and gives it with its timeline.
    async fn incident(&self, what: &str, wanted: impl Fn(&Incident) -> bool) -> (Incident, Vec<Entry>) {
        let store = self.database.store().await;
        let began = Instant::now();
        loop {
            let found = store.incidents().list(&Filter { limit: 10, ..Filter::default() }).await.unwrap();
            if let Some(incident) = found.iter().find(|incident| wanted(incident)) {
                let timeline = store.incidents().timeline(incident.id, 0).await.unwrap();
                return (incident.clone(), timeline);
            }
            assert!(began.elapsed() < PATIENCE, "no incident that {what}: {found:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn kinds(timeline: &[Entry]) -> Vec<&str> {
    timeline.iter().map(|entry| entry.kind.as_str()).collect()
}

#[tokio::test]
async fn a_unit_that_runs_and_does_not_answer_is_restarted_once_and_verified() {
    let house = House::new().await;
    let healer = house.heal().await;
    let before = house.pid().await;
    house.well.store(false, Ordering::Relaxed);
    let (_, timeline) = house.incident("verifies", |incident| incident.state == State::Verifying).await;
    assert_eq!(kinds(&timeline)[..5], ["symptoms", "considered", "decided", "acting", "acted"], "{timeline:#?}");
    assert_ne!(house.pid().await, before);
    house.well.store(true, Ordering::Relaxed);
    let (incident, timeline) = house.incident("is healed", |i| i.outcome.as_deref() == Some("healed")).await;
    assert!(incident.recovered_ms.is_some() && !incident.needs_person, "{incident:?}");
    let started = timeline.iter().filter(|entry| entry.kind == "acting").count();
    assert_eq!(started, 1, "{timeline:#?}");
    let worth = house.database.store().await.incidents().stats(&host()).await.unwrap();
    assert!(worth.iter().any(|stat| (stat.remedy.as_str(), stat.helped) == ("restart", 1)), "{worth:?}");
    healer.end().await;
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn of_two_healers_one_acts_and_the_other_takes_over_when_it_ends() {
    let house = House::new().await;
    let first = house.heal().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let second = Config { state_dir: elsewhere.path().to_owned(), ..(*house.config).clone() };
    let second = house.heal_with(Arc::new(second)).await;
    house.well.store(false, Ordering::Relaxed);
    let (incident, _) = house.incident("verifies", |incident| incident.state == State::Verifying).await;
    house.well.store(true, Ordering::Relaxed);
    let id = incident.id;
    let (_, timeline) = house.incident("is healed", |i| i.id == id && i.outcome.as_deref() == Some("healed")).await;
    assert_eq!(timeline.iter().filter(|entry| entry.kind == "acting").count(), 1, "{timeline:#?}");
    first.end().await;
    // The cooldown of the first one counts for the second.
    house.well.store(false, Ordering::Relaxed);
    let held = |i: &Incident| i.id != id && i.state == State::Held;
    let (_, timeline) = house.incident("is held", held).await;
    assert!(timeline.iter().any(|entry| entry.message.contains("the last remedy was not long ago")), "{timeline:#?}");
    second.end().await;
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn what_the_supervisor_starts_again_is_recorded_and_left_to_it() {
    let house = House::new().await;
    let healer = house.heal().await;
    let pid = nix::unistd::Pid::from_raw(house.pid().await.unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let (_, timeline) = house.incident("ended", |incident| incident.outcome.as_deref() == Some("came_back")).await;
    assert!(timeline[0].message.contains("killed by signal 9"), "{timeline:#?}");
    assert!(!kinds(&timeline).contains(&"acting"), "{timeline:#?}");
    healer.end().await;
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn a_healer_that_is_started_again_goes_on_with_what_it_had_decided() {
    let house = House::new().await;
    let healer = house.heal().await;
    house.well.store(false, Ordering::Relaxed);
    let (incident, _) = house.incident("verifies", |incident| incident.state == State::Verifying).await;
    healer.end().await;
    house.well.store(true, Ordering::Relaxed);
    let again = house.heal().await;
    let id = incident.id;
    let (_, timeline) = house.incident("is healed", |i| i.id == id && i.outcome.as_deref() == Some("healed")).await;
    let started = timeline.iter().filter(|entry| entry.kind == "acting").count();
    assert_eq!(started, 1, "{timeline:#?}");
    again.end().await;
    house.supervisor.shutdown().await;
}

#[tokio::test]
async fn what_happens_while_postgresql_is_away_comes_there_later() {
    let cluster = Cluster::start().await;
    let house = House { database: cluster.database("healer").await, ..House::new().await };
    let mut config = (*house.config).clone();
    config.store = house.database.config();
    config.store.connect_timeout = Duration::from_millis(500);
    let house = House { config: Arc::new(config), ..house };
    let store = house.database.store().await;
    let secret = lares_gate::secret::Secret::generate().unwrap();
    store.keys().insert(&Key::new("admin", Role::Admin, secret.hash())).await.unwrap();
    drop(store);
    let healer = house.heal().await;
    cluster.stop().await;
    let before = house.pid().await;
    house.well.store(false, Ordering::Relaxed);
    let began = Instant::now();
    while house.pid().await == before {
        assert!(began.elapsed() < PATIENCE, "nothing is healed without PostgreSQL");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    house.well.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.restart().await;
    let (_, timeline) = house.incident("is healed", |i| i.outcome.as_deref() == Some("healed")).await;
    assert_eq!(
        timeline.iter().map(|entry| entry.seq).collect::<Vec<_>>(),
        (1..).take(timeline.len()).collect::<Vec<_>>()
    );
    healer.end().await;
    house.supervisor.shutdown().await;
}

fn host() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}
