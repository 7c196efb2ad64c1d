//! What every cache must do.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lares_store::cache::{self, Cache, Error, InProcess, MAX_VALUE, Redis};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);

async fn conforms(cache: &dyn Cache) {
    cache.ping().await.unwrap();
    assert_eq!(cache.get("a").await.unwrap(), None);
    assert!(!cache.delete("a").await.unwrap());
    cache.set("a", "1".into(), LONG).await.unwrap();
    cache.set("b", Bytes::from_static(b"\0\xff\r\n"), LONG).await.unwrap();
    assert_eq!(cache.get("a").await.unwrap().unwrap(), "1");
    assert_eq!(cache.get("b").await.unwrap().unwrap(), &b"\0\xff\r\n"[..]);
    cache.set("a", "".into(), LONG).await.unwrap();
    assert_eq!(cache.get("a").await.unwrap().unwrap(), "");
    assert!(cache.delete("a").await.unwrap());
    assert_eq!(cache.get("a").await.unwrap(), None);

    // A value ends with its time, and a new one has its own.
    cache.set("short", "1".into(), Duration::from_millis(50)).await.unwrap();
    cache.set("longer", "1".into(), Duration::from_millis(50)).await.unwrap();
    cache.set("longer", "2".into(), LONG).await.unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(cache.get("short").await.unwrap(), None);
    assert!(!cache.delete("short").await.unwrap());
    assert_eq!(cache.get("longer").await.unwrap().unwrap(), "2");
    cache.set("longer", "3".into(), Duration::ZERO).await.unwrap();
    assert_eq!(cache.get("longer").await.unwrap(), None);
    for ttl in [Duration::from_nanos(1), Duration::MAX] {
        cache.set("extreme", "1".into(), ttl).await.unwrap();
    }
    assert_eq!(cache.get("extreme").await.unwrap().unwrap(), "1");

    let largest = Bytes::from(vec![7; MAX_VALUE]);
    cache.set("large", largest.clone(), LONG).await.unwrap();
    assert_eq!(cache.get("large").await.unwrap().unwrap(), largest);
    let e = cache.set("large", vec![7; MAX_VALUE + 1].into(), LONG).await.unwrap_err();
    assert!(matches!(e, Error::TooLarge(n) if n == MAX_VALUE + 1));
}

/// A server on a socket in a directory of its own, which ends with this process however it ends.
struct Server {
    program: &'static str,
    child: Child,
    dir: TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let names = ["valkey-server", "redis-server"];
        let on_path = |name: &&&str| {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
        };
        let program = names.iter().find(on_path)?;
        let dir = tempfile::tempdir().unwrap();
        Some(Self { program, child: Self::spawn(program, dir.path()), dir })
    }

    fn spawn(program: &str, dir: &Path) -> Child {
        // The shell ends the server when its standard input does, which is when this process ends.
        let script = r#""$@" >/dev/null 2>&1 </dev/null & read -r word; kill -KILL $!; wait"#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "keeper", program, "--port", "0", "--save", "", "--appendonly", "no"]);
        command.arg("--unixsocket").arg(dir.join("s")).arg("--dir").arg(dir).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.path().join("s").display())
    }

    async fn connect(&self) -> Redis {
        let waiting = Instant::now();
        while !self.dir.path().join("s").exists() {
            assert!(waiting.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Redis::connect(&self.url()).await.unwrap()
    }

    fn stop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        std::fs::remove_file(self.dir.path().join("s")).unwrap();
        self.child = Self::spawn(self.program, self.dir.path());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test]
async fn in_process_conforms() {
    conforms(&InProcess::new(100)).await;
}

#[tokio::test]
async fn redis_conforms_and_comes_back_after_the_server_did() {
    let Some(mut server) = Server::start() else {
        eprintln!("SKIP redis_conforms: neither valkey-server nor redis-server is on PATH");
        return;
    };
    let cache = server.connect().await;
    conforms(&cache).await;
    let shared = Redis::connect(&server.url()).await.unwrap();
    cache.set("shared", "1".into(), LONG).await.unwrap();
    assert_eq!(shared.get("shared").await.unwrap().unwrap(), "1");

    server.stop();
    let started = Instant::now();
    let e = cache.get("shared").await.unwrap_err();
    assert!(matches!(e, Error::Redis(_)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    server.restart();
    let waiting = Instant::now();
    while cache.get("shared").await.is_err() {
        assert!(waiting.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    conforms(&cache).await;
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_showing_it() {
    let config = lares_config::Cache {
        backend: lares_config::CacheBackend::Redis,
        url: "http://me:hunter2@host".to_owned(),
        ..lares_config::Cache::default()
    };
    let Err(e) = cache::open(&config).await else { panic!("connected") };
    assert!(matches!(e, Error::BadUrl), "{e}");
    assert!(!e.to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_reported_soon() {
    let started = Instant::now();
    let e = Redis::connect("redis://127.0.0.1:1").await.unwrap_err();
    assert!(matches!(e, Error::Redis(_)), "{e}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
