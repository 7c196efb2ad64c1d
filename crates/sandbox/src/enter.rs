//! Second stage of the launcher: confines itself, then becomes the command.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Uid, getppid, setsid};

use lares_config::SandboxMode;

use super::wire::{Refusal, Spec, receive_descriptor, send, stdin_socket};
use super::{Confinement, descendants, root, rules};

/// Open files a process may have.
const MAX_OPEN_FILES: u64 = 4096;
/// How much sooner than its share the kernel picks a process of a run when memory ends: before the database and the
/// model servers.
const OOM_SCORE: &str = "500";

pub(super) fn main(probe: bool) -> ExitCode {
    let Ok(socket) = stdin_socket() else { return ExitCode::FAILURE };
    let Ok(spec) = Spec::receive(&socket) else { return ExitCode::FAILURE };
    if probe {
        return if root::build(&spec).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let stdin = if spec.stdin { receive_descriptor(&socket).map(Stdio::from) } else { Ok(Stdio::null()) };
    let answer: Result<Confinement, Refusal> = Err(match stdin {
        Ok(stdin) => become_command(&spec, &socket, stdin),
        Err(error) => Refusal::Launcher(format!("no standard input came: {error}")),
    });
    send(&socket, &answer);
    ExitCode::FAILURE
}

/// Comes back only when something failed. `socket` closes by itself when the command starts.
fn become_command(spec: &Spec, socket: &UnixStream, stdin: Stdio) -> Refusal {
    let failed = |what: &str, error: nix::Error| Refusal::Launcher(format!("{what}: {error}"));
    let _ = setsid();
    // The guard blocks the signals it reads from a descriptor, and masks are inherited.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        return failed("unblocking signals", error);
    }
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let users_threads = if spec.namespaces || Uid::effective().is_root() { 0 } else { descendants::threads_of_user() };
    if spec.namespaces
        && let Err(why) = root::build(spec)
    {
        return Refusal::Confinement(why);
    }
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return failed("tying the command to its guard", error);
    }
    if getppid().as_raw() != spec.guard {
        return Refusal::Launcher("the guard of this run is gone".to_owned());
    }
    let confinement = match spec.mode {
        SandboxMode::Off => {
            if let Err(error) = nix::sys::prctl::set_no_new_privs() {
                return failed("giving up privileges", error);
            }
            Confinement::default()
        }
        SandboxMode::Require => match rules::enforce(spec) {
            Ok(landlock) => Confinement { landlock, namespaces: spec.namespaces },
            Err(why) => return Refusal::Confinement(why),
        },
    };
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear().envs(&spec.environment).current_dir(&spec.directory).stdin(stdin);
    // Said before it is true: a refusal that follows comes later and counts.
    send(socket, &Ok::<_, Refusal>(confinement));
    if let Err(error) = limit(spec, users_threads) {
        return failed("setting resource limits", error);
    }
    let error = command.exec();
    Refusal::Command(format!("{}: {error}", spec.program.display()))
}

fn limit(spec: &Spec, users_threads: u64) -> nix::Result<()> {
    // The kernel counts a user's threads on the whole machine, or in the namespace where there is one. The exact
    // bound is the guard's, which also says so; this one stops a fork bomb between two of its looks.
    let threads = users_threads + 2 * u64::from(spec.max_processes);
    let memory = if spec.may_reserve { Resource::RLIMIT_DATA } else { Resource::RLIMIT_AS };
    for (resource, wanted) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_OPEN_FILES),
        (Resource::RLIMIT_FSIZE, spec.max_file),
        (Resource::RLIMIT_NPROC, threads),
        (memory, spec.max_memory),
    ] {
        let (_, hard) = getrlimit(resource)?;
        let limit = wanted.min(hard);
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}
