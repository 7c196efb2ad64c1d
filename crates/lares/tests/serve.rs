//! `lares setup` and `lares serve` as systemd runs them: the notification protocol, signals, exit codes.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lares_store::testing;
use support::{Stack, lares, processes_of, real_parts, signal, state_dir, text, turn};

/// How long a daemon may be silent before systemd would kill it.
const WATCHDOG: Duration = Duration::from_millis(900);

/// systemd's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// The next message that has this line; panics when there is none in time.
    #[track_caller]
    fn hears(&self, line: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut heard = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 1024];
            let count = match self.socket.recv(&mut buffer) {
                Ok(count) => count,
                // A child of another test ended.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if message.lines().any(|said| said == line) {
                return;
            }
            heard.push(message);
        }
        panic!("no {line} within {patience:?}, only {heard:?}");
    }

    /// What systemd sets for a unit with `Type=notify` and `WatchdogSec=`.
    fn start(&self, command: &mut Command) -> Service {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Service(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

struct Service(Child);

impl Service {
    fn exit_code(&mut self, patience: Duration) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < patience, "still there after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn command(state: &Path, arguments: &[&str]) -> Command {
    let mut command = lares();
    command.arg("--config").arg(state.join("lares.toml")).arg("--state-dir").arg(state).args(arguments);
    command
}

fn status_of(address: &str, path: &str) -> String {
    let url = format!("http://{address}{path}");
    let output =
        Command::new("curl").args(["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url]).output().unwrap();
    text(&output)
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::await_holding_lock, reason = "nothing else runs on this thread, and the others are to wait")]
async fn daemons_tell_systemd_that_they_are_ready_alive_and_ending() {
    let _turn = turn();
    let database = testing::Cluster::shared().await;
    let store = database.store().await;
    let state = state_dir();
    let [coordinator, ralph] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let toml = format!(
        "[store]\nurl = \"{}\"\n[coordinator]\nlisten = \"{coordinator}\"\n[ralph]\nlisten = \"{ralph}\"\n\
         [coordinator.upstreams.far]\nurl = \"http://127.0.0.1:9/v1\"\nmodels = {{ a = \"b\" }}\n",
        database.config().url
    );
    std::fs::write(state.path().join("lares.toml"), toml).unwrap();

    // Twice: it is run at every boot.
    for _ in 0..2 {
        let output = command(state.path(), &["setup"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("keys/admin.key"), "{}", text(&output));
    }
    let mut keys = Vec::new();
    for name in ["admin", "agent", "llama"] {
        let file = state.path().join(format!("keys/{name}.key"));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        keys.push(std::fs::read_to_string(&file).unwrap());
    }
    let output = command(state.path(), &["setup"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(std::fs::read_to_string(state.path().join("keys/admin.key")).unwrap(), keys[0], "a key stays");
    let names = || async { store.keys().list().await.unwrap().into_iter().map(|key| key.name).collect::<Vec<_>>() };
    let ours = names().await;
    assert_eq!(ours.len(), 2, "{ours:?}");

    // Another machine on the same database has keys of its own, and takes nobody's away.
    if nix::unistd::geteuid().is_root() {
        let other = state_dir();
        let file = std::fs::read_to_string(state.path().join("lares.toml")).unwrap();
        std::fs::write(other.path().join("lares.toml"), file).unwrap();
        let setup = command(other.path(), &["setup"]);
        let mut elsewhere = Command::new("unshare");
        elsewhere.args(["--uts", "sh", "-c", "hostname elsewhere && exec \"$@\"", "sh"]);
        elsewhere.arg(setup.get_program()).args(setup.get_args());
        let output = elsewhere.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert!(names().await.contains(&"agent@elsewhere".to_owned()));
        let usable = store.keys().list().await.unwrap().into_iter().filter(|key| key.revoked_at.is_none()).count();
        assert_eq!(usable, 4);
    } else {
        eprintln!("SKIP keys-of-two-machines: only root can give itself another host name");
    }

    for (daemon, address) in [("coordinator", &coordinator), ("ralph", &ralph)] {
        let manager = Manager::new(&state.path().join("run"));
        let mut service = manager.start(&mut command(state.path(), &["serve", daemon]));
        manager.hears("READY=1", Duration::from_secs(30));
        assert_eq!(status_of(address, "/health"), "200", "{daemon} is as ready as it says");
        for _ in 0..3 {
            manager.hears("WATCHDOG=1", WATCHDOG);
        }
        // A daemon that hangs says nothing, which is what the watchdog waits for.
        signal(service.0.id(), "STOP");
        while manager.socket.set_nonblocking(true).is_ok() && manager.socket.recv(&mut [0; 64]).is_ok() {}
        manager.socket.set_nonblocking(false).unwrap();
        manager.socket.set_read_timeout(Some(WATCHDOG * 2)).unwrap();
        assert!(manager.socket.recv(&mut [0; 64]).is_err(), "{daemon} talks while it is stopped");
        signal(service.0.id(), "CONT");
        manager.hears("WATCHDOG=1", WATCHDOG * 4);
        signal(service.0.id(), "TERM");
        manager.hears("STOPPING=1", Duration::from_secs(5));
        assert_eq!(service.exit_code(Duration::from_secs(10)), Some(0), "{daemon}");
        std::fs::remove_file(&manager.path).unwrap();
    }
}

#[test]
fn a_model_is_served_as_a_unit_and_its_end_is_the_units() {
    let Some((model, server, _turn)) = real_parts("serve-llama") else { return };
    let state = state_dir();
    let port = free_port();
    let more = format!("port = {port}\ncontext_size = 1024\n");
    let toml = format!("{}{}", Stack::base(&server), Stack::model("coder", &model, &more));
    std::fs::write(state.path().join("lares.toml"), toml).unwrap();
    let credentials = state.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("llama.key"), "a-key-from-systemd").unwrap();
    std::fs::create_dir(state.path().join("run")).unwrap();
    let manager = Manager::new(&state.path().join("run"));
    let mut serve = command(state.path(), &["serve", "llama", "coder"]);
    serve.env("CREDENTIALS_DIRECTORY", &credentials);
    let address = format!("127.0.0.1:{port}");

    let mut service = manager.start(&mut serve);
    manager.hears("READY=1", Duration::from_secs(120));
    manager.hears("WATCHDOG=1", WATCHDOG);
    assert_eq!(status_of(&address, "/health"), "200");
    assert_eq!(status_of(&address, "/props"), "401", "nobody without the key");
    signal(service.0.id(), "TERM");
    manager.hears("STOPPING=1", Duration::from_secs(5));
    assert_eq!(service.exit_code(Duration::from_secs(10)), Some(0));
    assert_eq!(processes_of(state.path()), Vec::<String>::new());

    // Killed from outside, it takes the unit with it, so that systemd knows.
    let mut service = manager.start(&mut serve);
    manager.hears("READY=1", Duration::from_secs(120));
    let children = format!("/proc/{0}/task/{0}/children", service.0.id());
    let child: u32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    signal(child, "KILL");
    assert_eq!(service.exit_code(Duration::from_secs(10)), Some(1));
}

#[test]
fn setup_without_a_database_says_what_to_do_and_keeps_its_keys() {
    let state = state_dir();
    let nowhere = "[store]\nurl = \"postgresql://lares@127.0.0.1:9/lares\"\nconnect_timeout = \"500ms\"\n";
    std::fs::write(state.path().join("lares.toml"), nowhere).unwrap();
    let output = command(state.path(), &["setup"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("set store.url to one that runs"), "{}", text(&output));
    assert!(state.path().join("keys/llama.key").is_file());
    let output = command(state.path(), &["serve", "llama", "coder"]).output().unwrap();
    assert!(text(&output).contains("there is no model at all"), "{}", text(&output));
}

#[test]
fn a_model_that_cannot_be_served_says_what_to_do() {
    let state = state_dir();
    let server = state.path().join("llama-server");
    std::fs::write(&server, "#!/bin/sh\necho 'version: 9000 (abc)'\n").unwrap();
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
    let toml = format!(
        "{}[models.coder]\nsource = \"qwen2.5-coder-0.5b-instruct\"\nport = 18080\n\
         [models.free]\nsource = \"qwen2.5-coder-0.5b-instruct\"\n",
        Stack::base(&server)
    );
    std::fs::write(state.path().join("lares.toml"), toml).unwrap();
    for (model, says) in [
        ("coder", "`lares model pull coder` fetches it"),
        ("free", "models.free.port: set a port"),
        ("other", "there is no models.other in the configuration; there is coder, free"),
    ] {
        let output = command(state.path(), &["serve", "llama", model]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(says), "{model}: {}", text(&output));
    }
}
