//! A throw-away PostgreSQL for tests: one cluster a test process, a fresh database a call, nothing left behind.
//!
//! `initdb` runs once a machine and its result is copied, so a test waits a few tenths of a second. A keeper process
//! waits at the end of a pipe; when the test process ends, however it ends, the pipe closes, and the keeper stops
//! PostgreSQL and removes its directory. Everything here panics on failure, as tests do.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::{Store, cluster};

/// Longest wait for PostgreSQL to answer after a start, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(120);

/// Age of a directory without a server from which on no test can be using it.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Stops the program when told to or when its standard input ends, and then removes a directory unless told to keep it.
/// TERM comes first because a program that has not set its handlers yet ignores QUIT, as a shell's background job.
const KEEPER: &str = r#"
log=$1 dir=$2; shift 2
"$@" >>"$log" 2>&1 </dev/null &
pid=$!
word=; read -r word || :
kill -TERM "$pid" 2>/dev/null; kill -QUIT "$pid" 2>/dev/null
wait "$pid"
[ "$word" = keep ] || rm -rf "$dir"
"#;

/// A PostgreSQL server that ends with this process.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
}

impl Keeper {
    /// Runs a cluster's command. When this process ends, or the keeper is dropped, the server is stopped and `dir` with
    /// everything in it removed; the server's log is `dir/postgres.log`.
    pub fn start(command: &cluster::Command, more_args: &[&str], dir: &Path) -> Self {
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", KEEPER, "keeper"]).arg(dir.join("postgres.log")).arg(dir);
        if let Some((uid, gid)) = command.user {
            keeper.args(["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups"]);
        }
        keeper.arg(&command.program).args(&command.args).args(more_args);
        keeper.envs(command.env.iter().map(|(k, v)| (k, v)));
        for name in &command.env_remove {
            keeper.env_remove(name);
        }
        // A group of its own: who kills the test's group lets the keeper finish.
        keeper.process_group(0).current_dir("/");
        let child = keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child }
    }

    /// Stops the server and keeps the directory.
    pub fn stop(mut self) {
        self.child.stdin.take().unwrap().write_all(b"keep\n").unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A PostgreSQL cluster for tests, without fsync.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    cluster: cluster::Cluster,
    keeper: Mutex<Option<Keeper>>,
}

impl Cluster {
    /// A fresh database in the cluster that all tests of this process share.
    pub async fn shared() -> TestDatabase {
        static SHARED: OnceCell<Arc<Cluster>> = OnceCell::const_new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let cluster = SHARED.get_or_init(Self::start).await;
        cluster.database(&format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed))).await
    }

    /// A cluster of one's own, for tests that stop it.
    pub async fn start() -> Arc<Self> {
        let dir = tokio::task::spawn_blocking(make_dir).await.unwrap();
        let config = lares_config::Config { state_dir: dir.clone(), ..lares_config::Config::default() };
        let cluster = cluster::Cluster::prepare(&config).await.unwrap();
        let started = Arc::new(Self { dir, cluster, keeper: Mutex::new(None) });
        started.restart().await;
        started
    }

    /// Stops PostgreSQL at once; what was committed stays.
    pub async fn stop(&self) {
        let keeper = self.keeper.lock().unwrap().take().unwrap();
        tokio::task::spawn_blocking(|| keeper.stop()).await.unwrap();
    }

    /// Starts PostgreSQL after [`Self::stop`], and waits until it answers.
    pub async fn restart(&self) {
        let (command, dir) = (self.cluster.command(), self.dir.clone());
        let quick = ["-c", "fsync=off", "-c", "full_page_writes=off"];
        let keeper = tokio::task::spawn_blocking(move || Keeper::start(&command, &quick, &dir)).await.unwrap();
        *self.keeper.lock().unwrap() = Some(keeper);
        let waiting = Instant::now();
        while let Err(e) = self.connect("postgres").await {
            if waiting.elapsed() > START {
                let log = std::fs::read_to_string(self.dir.join("postgres.log")).unwrap_or_default();
                panic!("PostgreSQL does not start: {e}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A fresh database.
    pub async fn database(self: &Arc<Self>, name: &str) -> TestDatabase {
        let client = self.connect("postgres").await.unwrap();
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("host={} user=lares dbname={name}", self.dir.join("postgres/run").display());
        let config = lares_config::Store { url, ..lares_config::Store::default() };
        TestDatabase { cluster: self.clone(), config }
    }

    /// Directory of the cluster, removed in the end: a `state_dir`.
    pub fn state_dir(&self) -> &Path {
        &self.dir
    }

    async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut settings = tokio_postgres::Config::new();
        settings.host_path(self.dir.join("postgres/run")).user("lares").dbname(database);
        let (client, connection) = settings.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keeper.lock().unwrap().take().is_none() {
            // Stopped, so nobody else removes it.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// One database, of one test.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    cluster: Arc<Cluster>,
    config: lares_config::Store,
}

impl TestDatabase {
    /// Connects and migrates.
    pub async fn store(&self) -> Store {
        Store::connect(&self.config, &self.cluster.dir).await.unwrap()
    }

    /// Where it is, for daemons under test.
    pub fn config(&self) -> lares_config::Store {
        self.config.clone()
    }

    /// The connection string, for `psql` and drivers.
    pub fn url(&self) -> &str {
        &self.config.url
    }

    /// A directory that is removed in the end.
    pub fn state_dir(&self) -> &Path {
        &self.cluster.dir
    }

    /// A connection outside any store, also before there are tables.
    pub async fn client(&self) -> deadpool_postgres::Object {
        let settings = crate::connect::settings(&self.config, &self.cluster.dir).await.unwrap();
        crate::connect::pool(&settings, &self.config).unwrap().get().await.unwrap()
    }
}

/// A directory with a copy of the cluster that is made once a machine.
fn make_dir() -> PathBuf {
    let me = nix::unistd::Uid::effective();
    let base = std::env::temp_dir().join(format!("lares-testing-{me}"));
    let made = std::fs::DirBuilder::new().mode(0o711).create(&base);
    assert!(made.is_ok() || base.is_dir(), "{made:?}");
    assert_eq!(base.metadata().unwrap().uid(), me.as_raw(), "{} belongs to somebody else", base.display());
    // Whatever the umask.
    std::fs::set_permissions(&base, PermissionsExt::from_mode(0o711)).unwrap();
    let template = base.join("template");
    if !template.join("postgres/data").exists() {
        make_template(template.clone());
    }
    sweep(&base);
    let dir = tempfile::Builder::new().prefix("").rand_bytes(8).tempdir_in(&base).unwrap().keep();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o711)).unwrap();
    let copied = Command::new("cp").arg("-a").arg(template.join("postgres")).arg(&dir).status().unwrap();
    assert!(copied.success());
    dir
}

/// Removes what a test left that was killed while its server was stopped.
fn sweep(base: &Path) {
    for dir in std::fs::read_dir(base).unwrap().flatten().map(|entry| entry.path()) {
        let age = dir.metadata().and_then(|meta| meta.modified()).ok().and_then(|made| made.elapsed().ok());
        let running = dir.join("postgres/data/postmaster.pid").exists();
        if !running && !dir.ends_with("template") && age.is_some_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

fn make_template(state_dir: PathBuf) {
    // On a thread of its own, since this one may belong to a runtime already.
    std::thread::spawn(move || {
        let config = lares_config::Config { state_dir, ..lares_config::Config::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(cluster::Cluster::prepare(&config)).unwrap();
    })
    .join()
    .unwrap();
}
