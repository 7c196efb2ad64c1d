//! The private cluster: made once, survives being killed, stops cleanly.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use lares_config::Config;
use lares_store::cluster::{Cluster, Error};
use lares_store::keys::Key;
use lares_store::testing::Keeper;
use lares_store::{Role, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A state directory that another user can pass through.
fn state() -> (TempDir, Config) {
    let dir = tempfile::Builder::new().prefix("lares-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let config = Config { state_dir: dir.path().join("state"), ..Config::default() };
    (dir, config)
}

/// Longest wait for a server, on a disk that others keep busy.
const START: Duration = Duration::from_secs(150);

/// Runs the cluster, again when it ends at once, as the supervisor does: what is left of a killed one is in its way.
async fn start(cluster: &Cluster, dir: &Path) -> Keeper {
    let waiting = Instant::now();
    loop {
        let keeper = Keeper::start(&cluster.command(), &[], dir);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(1) || postmaster(cluster).is_some() {
            if cluster.is_ready().await.is_ok() {
                return keeper;
            }
            let log = || std::fs::read_to_string(dir.join("postgres.log")).unwrap_or_default();
            assert!(waiting.elapsed() < START, "{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        keeper.stop();
    }
}

/// The process that runs the cluster, if it does.
fn postmaster(cluster: &Cluster) -> Option<Pid> {
    let file = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(file.lines().next()?.parse().ok()?);
    kill(pid, None).is_ok().then_some(pid)
}

#[tokio::test]
async fn what_was_written_survives_kill_9_of_postgres() {
    let (dir, config) = state();
    let cluster = Cluster::prepare(&config).await.unwrap();
    let keeper = start(&cluster, dir.path()).await;
    let key = Key::new("survivor", Role::Admin, [7; 32]);
    let store = Store::connect(&config.store, &config.state_dir).await.unwrap();
    store.keys().insert(&key).await.unwrap();

    kill(postmaster(&cluster).unwrap(), Signal::SIGKILL).unwrap();
    keeper.stop();
    let again = Cluster::prepare(&config).await.unwrap();
    assert_eq!(again.command(), cluster.command());
    let _keeper = start(&again, dir.path()).await;
    let store = Store::connect(&config.store, &config.state_dir).await.unwrap();
    assert_eq!(store.keys().list().await.unwrap()[0].name, "survivor");
    // The URL says the same as an empty configuration does.
    let by_url = lares_config::Store { url: cluster.url(), ..lares_config::Store::default() };
    Store::connect(&by_url, Path::new("/nowhere")).await.unwrap().ping().await.unwrap();
}

#[tokio::test]
async fn it_listens_on_a_socket_that_only_its_user_reaches_and_stops_on_its_signal() {
    let (_dir, config) = state();
    let cluster = Cluster::prepare(&config).await.unwrap();
    let command = cluster.command();
    let mut child = command.to_tokio().current_dir("/").kill_on_drop(true).spawn().unwrap();
    let pid = Pid::from_raw(child.id().unwrap().try_into().unwrap());
    let waiting = Instant::now();
    while cluster.is_ready().await.is_err() {
        assert!(waiting.elapsed() < START);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let run = config.state_dir.join("postgres/run").metadata().unwrap();
    assert_eq!(run.permissions().mode() & 0o777, 0o700);
    let data = cluster.data_dir().metadata().unwrap();
    assert_eq!(data.permissions().mode() & 0o777, 0o700);
    if let Some((uid, _)) = command.user {
        assert_eq!((run.uid(), data.uid()), (uid, uid));
    }
    let store = Store::connect(&config.store, &config.state_dir).await.unwrap();
    store.ping().await.unwrap();
    kill(pid, command.stop_signal).unwrap();
    // With a client still connected.
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(!cluster.data_dir().join("postmaster.pid").exists());
    assert!(store.ping().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn an_initdb_that_was_cut_off_is_done_again() {
    let (_dir, config) = state();
    let home = config.state_dir.join("postgres");
    let unfinished = home.join("data.new-0192/base");
    std::fs::create_dir_all(&unfinished).unwrap();
    // As the umask of a careful administrator would have left it.
    for dir in [&config.state_dir, &home] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o711)).unwrap();
    }
    let cluster = Cluster::prepare(&config).await.unwrap();
    assert!(!unfinished.exists());
    assert!(cluster.data_dir().join("PG_VERSION").exists());
    let made = cluster.data_dir().metadata().unwrap().ino();
    Cluster::prepare(&config).await.unwrap();
    assert_eq!(cluster.data_dir().metadata().unwrap().ino(), made);
}

#[tokio::test]
async fn data_of_another_major_version_is_refused_with_both_versions() {
    let (_dir, config) = state();
    let cluster = Cluster::prepare(&config).await.unwrap();
    std::fs::write(cluster.data_dir().join("PG_VERSION"), "9\n").unwrap();
    let e = Cluster::prepare(&config).await.unwrap_err();
    assert!(matches!(&e, Error::OtherVersion { cluster, .. } if cluster == "9"), "{e}");
}

#[tokio::test]
async fn a_directory_the_user_cannot_pass_is_named() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIP a_directory_the_user_cannot_pass_is_named: only root runs PostgreSQL as another user");
        return;
    }
    let (dir, config) = state();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let e = Cluster::prepare(&config).await.unwrap_err();
    let closed = dir.path().canonicalize().unwrap();
    assert!(matches!(&e, Error::NotPassable { component, .. } if *component == closed), "{e}");
}

#[tokio::test]
async fn missing_binaries_are_reported_with_the_place_searched() {
    let (dir, mut config) = state();
    config.store.cluster.bin_dir = Some(dir.path().to_owned());
    let e = Cluster::prepare(&config).await.unwrap_err();
    assert!(e.to_string().contains(dir.path().to_str().unwrap()), "{e}");
}

#[tokio::test]
async fn a_cluster_that_is_not_running_is_reported_within_the_time_allowed() {
    let (_dir, mut config) = state();
    Cluster::prepare(&config).await.unwrap();
    config.store.connect_timeout = Duration::from_millis(300);
    let started = Instant::now();
    let e = Store::connect(&config.store, &config.state_dir).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(e.is_temporary(), "{e}");
}
