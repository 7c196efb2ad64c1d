//! A box with systemd as PID 1, shared by all tests of a file, each of which has it for itself while it runs.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use lares_units::{Systemd, SystemdSettings};
use tokio::sync::{Mutex, MutexGuard};

/// What the tests play with. `%i` is the instance.
const UNITS: &[(&str, &str)] = &[
    ("steady.service", "[Service]\nExecStart=/bin/sleep 1000\n"),
    ("crash.service", "[Service]\nExecStart=/bin/sh -c 'echo hello; sleep 0.2; echo last words; exit 3'\n"),
    (
        "instant.service",
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh -c 'echo instant last words; exit 4'\n",
    ),
    (
        "flaky.service",
        "[Service]\nRestart=on-failure\nRestartSec=100ms\n\
         ExecStart=/bin/sh -c 'test -e /run/flaky && exec sleep 1000; touch /run/flaky; exit 7'\n",
    ),
    (
        "limited.service",
        "[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=60\n\
         [Service]\nRestart=on-failure\nRestartSec=10ms\nExecStart=/bin/sh -c 'test -e /run/limited || exit 1; exec sleep 1000'\n",
    ),
    ("base.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n"),
    ("needy.service", "[Unit]\nRequires=base.service\nAfter=base.service\n[Service]\nExecStart=/bin/sleep 1000\n"),
    ("fat.service", "[Service]\nExecStart=/bin/sleep 1000\nMemoryMax=64M\n"),
    ("mute.service", "[Unit]\nJobRunningTimeoutSec=300ms\n[Service]\nType=notify\nExecStart=/bin/sleep 1000\n"),
    ("slow.service", "[Service]\nType=notify\nExecStart=/bin/sleep 1000\n"),
    ("long.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'seq -s \" \" 1 6000; echo end'\n"),
    ("bad.service", "[Service]\nExecStart=relative/path\n"),
    ("storm@.service", "[Service]\nExecStart=/bin/sh -c 'exit 5'\n"),
    ("idle@.service", "[Service]\nExecStart=/bin/sleep 10000\n"),
    ("alias.service", "[Service]\nExecStart=/bin/sleep 1000\n[Install]\nAlias=other.service\n"),
];

pub struct Bed {
    name: String,
    tool: PathBuf,
    state: PathBuf,
    /// Takes the box down when this process ends, however it ends.
    _undertaker: Child,
}

static BED: OnceLock<Option<Bed>> = OnceLock::new();
static TURN: Mutex<()> = Mutex::const_new(());

/// The box for this test alone; none where there cannot be one.
pub async fn take(test: &str) -> Option<(&'static Bed, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().await;
    let bed = BED.get_or_init(|| {
        let bed = Bed::start();
        if let Err(reason) = &bed {
            eprintln!("no box with systemd: {reason}");
        }
        bed.ok()
    });
    if bed.is_none() {
        println!("SKIP {test}: no box with systemd (LARES_TEST_ROOTS, root)");
    }
    Some((bed.as_ref()?, turn))
}

impl Bed {
    fn start() -> Result<Self, String> {
        let roots = std::env::var("LARES_TEST_ROOTS").map_err(|_| "LARES_TEST_ROOTS is not set")?;
        if !nix::unistd::geteuid().is_root() {
            return Err("it takes root".into());
        }
        let suite = std::env::var("LARES_TEST_SUITE").unwrap_or_else(|_| "trixie".into());
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/systemd");
        let root =
            Command::new(tests.join("root")).args([&suite, &roots]).output().map_err(|error| error.to_string())?;
        if !root.status.success() {
            return Err(String::from_utf8_lossy(&root.stderr).into_owned());
        }
        let root = String::from_utf8_lossy(&root.stdout).trim().to_owned();
        let state = tempfile::tempdir().map_err(|error| error.to_string())?.keep();
        let (name, tool) = (format!("units-{}", std::process::id()), tests.join("box"));
        let undertaker = Command::new("setsid")
            .args(["sh", "-c", "cat; \"$0\" down \"$1\"; rmdir \"$BOX_STATE\""])
            .args([tool.as_os_str(), name.as_ref()])
            .env("BOX_STATE", &state)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let bed = Self { name, tool, state, _undertaker: undertaker };
        bed.tool(&["up", &bed.name, &root], "").map_err(|error| format!("box: {error}"))?;
        for (unit, text) in UNITS {
            bed.write(&format!("/etc/systemd/system/{unit}"), text);
        }
        bed.run("systemctl mask forbidden.service && systemctl daemon-reload && systemctl enable alias.service");
        Ok(bed)
    }

    fn tool(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        use std::io::Write;
        let mut child = Command::new(&self.tool)
            .args(arguments)
            .env("BOX_STATE", &self.state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        child.stdin.take().unwrap().write_all(input.as_bytes()).map_err(|error| error.to_string())?;
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub fn write(&self, path: &str, text: &str) {
        self.tool(&["copy", &self.name, "/dev/stdin", path], text).unwrap();
    }

    /// Runs a line of shell in the box.
    pub fn run(&self, script: &str) -> String {
        self.tool(&["run", &self.name, "sh", "-c", script], "").unwrap()
    }

    /// What to connect to from outside.
    pub fn settings(&self) -> SystemdSettings {
        let pid = std::fs::read_to_string(self.state.join(&self.name).join("pid")).unwrap();
        let root = format!("/proc/{}/root", pid.trim());
        SystemdSettings {
            address: Some(format!("unix:path={root}/run/dbus/system_bus_socket")),
            journals: vec![format!("{root}/var/log/journal").into(), format!("{root}/run/log/journal").into()],
        }
    }

    pub async fn systemd(&self) -> Systemd {
        Systemd::connect(self.settings()).await.unwrap()
    }
}
