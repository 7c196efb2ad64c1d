//! Starting a process group so that it cannot outlive the supervisor, signalling it, and reaping it with all that is left of it.
//!
//! Every process is started through `setpriv --pdeathsig`, so that the kernel sends it its stop signal when the supervisor dies,
//! however it dies. The kernel sends that signal when the *thread* that started the process ends, not its process. Threads of
//! an async runtime come and go; therefore one thread that lives as long as the supervisor starts everything.
//!
//! Two gaps are known. A supervisor killed within the millisecond between the start of `setpriv` and its `prctl` leaves
//! that one process behind. And the signal reaches the main process of a unit only: what it started has to end with it, as
//! it has to when the main process dies for any other reason without a supervisor to clean up.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, Uid, User};
use tokio::sync::oneshot;
use tracing::warn;

use crate::error::SetupError;
use crate::spec::UnitSpec;
use crate::status::Exit;
use crate::usage;

/// Variables of the service manager that the supervisor itself answers to, and no unit may answer in its place.
const NOT_INHERITED: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"];
/// Longest wait for what is left of a group to vanish after SIGKILL. Only a process waiting in the kernel takes longer.
const LEFTOVERS_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two looks at what is left of a group.
const LEFTOVERS_INTERVAL: Duration = Duration::from_millis(5);

/// A handle to the thread that starts processes. The thread ends with the last handle, and then the kernel stops whatever still runs.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    /// Bounded by the number of units: each has at most one request under way.
    requests: mpsc::Sender<Request>,
}

struct Request {
    spec: Arc<UnitSpec>,
    answer: oneshot::Sender<Result<Child, String>>,
}

/// A running process group: its main process is its leader.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) group: Group,
    pub(crate) exited: oneshot::Receiver<Exited>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// How and when a main process ended. When this is told, its group is empty.
#[derive(Debug)]
pub(crate) struct Exited {
    pub(crate) exit: Exit,
    pub(crate) noticed: Instant,
}

/// The right to signal a process group; without effect once its leader is reaped, when the number may belong to somebody else.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) pid: u32,
    alive: Arc<Mutex<Option<Pid>>>,
}

impl Group {
    pub(crate) fn signal(&self, signal: Signal) {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = *alive
            && let Err(error) = killpg(group, signal)
            && error != Errno::ESRCH
        {
            warn!(pid = self.pid, %signal, %error, "cannot signal a process group");
        }
    }
}

impl Spawner {
    /// Finds `setpriv` and starts the thread.
    pub(crate) async fn start() -> Result<Self, SetupError> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let (report, found) = oneshot::channel();
        let serve = move || {
            let setpriv = match find_setpriv() {
                Ok(setpriv) => setpriv,
                Err(error) => {
                    let _ = report.send(Err(error));
                    return;
                }
            };
            let _ = report.send(Ok(()));
            for Request { spec, answer } in inbox {
                if let Err(Ok(unwanted)) = answer.send(spawn(&setpriv, &spec)) {
                    unwanted.group.signal(Signal::SIGKILL);
                }
            }
        };
        thread::Builder::new().name("units-spawner".into()).spawn(serve).map_err(SetupError::Thread)?;
        found.await.unwrap_or(Err(SetupError::SetprivMissing))?;
        Ok(Self { requests })
    }

    /// Asks for the process of a unit; the answer says in words why there is none.
    pub(crate) fn spawn(&self, spec: Arc<UnitSpec>) -> oneshot::Receiver<Result<Child, String>> {
        let (answer, receiver) = oneshot::channel();
        // Without the thread the answer is dropped here, which the receiver sees.
        let _ = self.requests.send(Request { spec, answer });
        receiver
    }
}

fn find_setpriv() -> Result<PathBuf, SetupError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let setpriv = on_path(OsStr::new("setpriv"), &path).ok_or(SetupError::SetprivMissing)?;
    let help = Command::new(&setpriv).arg("--help").stdin(Stdio::null()).output();
    let fit = help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--pdeathsig"));
    if fit { Ok(setpriv) } else { Err(SetupError::SetprivUnfit { path: setpriv }) }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn on_path(name: &OsStr, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path).filter(|directory| directory.is_absolute()).map(|d| d.join(name)).find(|p| is_executable(p))
}

/// The program as an absolute path, so that what is started does not depend on who looks it up.
fn find_program(spec: &UnitSpec) -> Result<PathBuf, String> {
    let program = spec.program.as_path();
    if program.components().count() == 1 && !program.is_absolute() {
        let path = spec.env.get(OsStr::new("PATH")).cloned().or_else(|| env::var_os("PATH")).unwrap_or_default();
        return on_path(program.as_os_str(), &path).ok_or_else(|| format!("{} is not on PATH", program.display()));
    }
    let base = match &spec.cwd {
        Some(cwd) => cwd.clone(),
        None => env::current_dir().map_err(|error| format!("the working directory: {error}"))?,
    };
    let program = base.join(program);
    if is_executable(&program) { Ok(program) } else { Err(format!("{} is no executable file", program.display())) }
}

fn command(setpriv: &Path, spec: &UnitSpec) -> Result<Command, String> {
    let program = find_program(spec)?;
    let mut arguments: Vec<OsString> = vec!["--pdeathsig".into(), spec.stop_signal.signal().as_str().into()];
    if let Some(user) = spec.user {
        // Only a uid that the user database knows has groups to take.
        let known = matches!(User::from_uid(Uid::from_raw(user.uid)), Ok(Some(_)));
        let groups = if known { "--init-groups" } else { "--clear-groups" };
        let ids = [format!("--reuid={}", user.uid), format!("--regid={}", user.gid), groups.into()];
        arguments.extend(ids.map(OsString::from));
    }
    let mut command = Command::new(setpriv);
    command.args(arguments).arg("--").arg(program).args(&spec.args);
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let env: &BTreeMap<OsString, OsString> = &spec.env;
    command.envs(env).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(cwd) = &spec.cwd {
        if !cwd.is_dir() {
            return Err(format!("the working directory {} does not exist", cwd.display()));
        }
        command.current_dir(cwd);
    }
    Ok(command)
}

fn spawn(setpriv: &Path, spec: &UnitSpec) -> Result<Child, String> {
    let mut child = command(setpriv, spec)?.spawn().map_err(|error| format!("{}: {error}", setpriv.display()))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("the process has no output".into());
    };
    let pid = child.id();
    let leader = i32::try_from(pid).map(Pid::from_raw).map_err(|_| format!("process number {pid} is out of range"))?;
    let group = Group { pid, alive: Arc::new(Mutex::new(Some(leader))) };
    let (report, exited) = oneshot::channel();
    let watched = group.clone();
    let watch = move || {
        let _ = report.send(reap(child, leader, &watched));
    };
    if let Err(error) = thread::Builder::new().name("units-reaper".into()).spawn(watch) {
        group.signal(Signal::SIGKILL);
        return Err(format!("cannot start the thread that waits for it: {error}"));
    }
    Ok(Child { group, exited, stdout: stdout.into(), stderr: stderr.into() })
}

/// Waits for the main process, ends what is left of its group, and only then reaps it: until then nobody else can get its number.
fn reap(mut child: process::Child, leader: Pid, group: &Group) -> Exited {
    let died = loop {
        match waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => {}
            other => break other,
        }
    };
    let noticed = Instant::now();
    if died.is_ok() {
        end_leftovers(leader, group.pid);
    }
    let mut alive = group.alive.lock().unwrap_or_else(PoisonError::into_inner);
    *alive = None;
    let exit = match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code { code },
            (None, Some(signal)) => Exit::Signal { signal },
            (None, None) => Exit::Unknown { error: status.to_string() },
        },
        Err(error) => Exit::Unknown { error: error.to_string() },
    };
    Exited { exit, noticed }
}

fn end_leftovers(group: Pid, leader: u32) {
    let deadline = Instant::now() + LEFTOVERS_TIMEOUT;
    loop {
        // Fails when nothing but the dead leader is left, or belongs to nobody that may be signalled; the look below decides.
        let _ = killpg(group, Signal::SIGKILL);
        let left = usage::processes().iter().filter(|p| p.group == leader && p.pid != leader && p.is_running()).count();
        if left == 0 {
            return;
        }
        if Instant::now() > deadline {
            warn!(group = leader, left, "processes are still there after SIGKILL");
            return;
        }
        thread::sleep(LEFTOVERS_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::UnitName;

    fn unit(program: &str) -> UnitSpec {
        UnitSpec::new(UnitName::new("x").unwrap(), program)
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        assert_eq!(find_program(&unit("lares-no-such-program")), Err("lares-no-such-program is not on PATH".into()));
        assert_eq!(find_program(&unit("/etc/passwd")), Err("/etc/passwd is no executable file".into()));
        assert!(find_program(&unit("sh")).unwrap().is_absolute());
    }

    #[test]
    fn the_path_of_the_unit_decides() {
        let mut spec = unit("sh");
        spec.env.insert("PATH".into(), "/nonexistent".into());
        assert!(find_program(&spec).is_err());
    }

    #[test]
    fn credentials_and_death_signal_come_before_the_program() {
        let mut spec = unit("sh").args(["-c", "true"]);
        spec.user = Some((4_000_000, 4_000_001).into());
        spec.stop_signal = crate::spec::StopSignal::Interrupt;
        let command = command(Path::new("/bin/setpriv"), &spec).unwrap();
        let args: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
        assert_eq!(args[..6], ["--pdeathsig", "SIGINT", "--reuid=4000000", "--regid=4000001", "--clear-groups", "--"]);
        assert_eq!(args[7..], ["-c", "true"]);
    }

    #[test]
    fn a_group_is_gone_before_its_end_is_told() {
        let spec = unit("sh").args(["-c", "sleep 1000 & echo $!; exit 3"]);
        let child = spawn(&find_setpriv().unwrap(), &spec).unwrap();
        let group = child.group.clone();
        let exited = child.exited.blocking_recv().unwrap();
        assert_eq!(exited.exit, Exit::Code { code: 3 });
        assert!(!usage::processes().iter().any(|p| p.group == group.pid && p.is_running()));
        group.signal(Signal::SIGKILL);
        assert_eq!(*group.alive.lock().unwrap(), None);
    }
}
