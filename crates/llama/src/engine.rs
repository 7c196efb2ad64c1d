//! Where the `llama-server` binary is: configured, on PATH, or built by `lares engine install`.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lares_config::Config;
use sha2::{Digest, Sha256};

use crate::hex;

/// Name of the binary.
const BINARY: &str = "llama-server";
/// What a directory of built engines is called before its version and CPU.
const PREFIX: &str = "llama-server-";

/// There is no `llama-server` to be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The configured path is not a program.
    #[error("llama.server is {}, which is not an executable file", .0.display())]
    Configured(PathBuf),
    /// Neither configured, nor on PATH, nor built.
    #[error(
        "no llama-server: it is neither on PATH nor in {}; run `lares engine install` to build one, or set \
         llama.server",
        .0.display()
    )]
    Nowhere(PathBuf),
}

/// Finds the binary: `llama.server`, then PATH, then the newest one built for this CPU. Blocks briefly.
pub fn find(config: &Config) -> Result<PathBuf, FindError> {
    find_in(config, std::env::var_os("PATH").as_deref(), &cpu_key())
}

fn find_in(config: &Config, path: Option<&OsStr>, cpu: &str) -> Result<PathBuf, FindError> {
    if let Some(configured) = &config.llama.server {
        return if is_program(configured) {
            Ok(configured.clone())
        } else {
            Err(FindError::Configured(configured.clone()))
        };
    }
    let on_path = path.into_iter().flat_map(std::env::split_paths).filter(|dir| dir.is_absolute());
    if let Some(found) = on_path.map(|dir| dir.join(BINARY)).find(|file| is_program(file)) {
        return Ok(found);
    }
    let engines = config.engines_dir();
    newest(&engines, cpu).ok_or(FindError::Nowhere(engines))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn newest(engines: &Path, cpu: &str) -> Option<PathBuf> {
    let built = std::fs::read_dir(engines).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix(PREFIX)?.strip_suffix(cpu)?.strip_suffix('-')?;
        let numbers: Vec<u64> = version.split('.').map(|n| n.parse().unwrap_or(0)).collect();
        let binary = entry.path().join(BINARY);
        is_program(&binary).then_some((numbers, binary))
    });
    built.max().map(|(_, binary)| binary)
}

/// Directory below `engines_dir` of what is built from this version for this CPU.
pub(crate) fn directory_name(version: &str, cpu: &str) -> String {
    format!("{PREFIX}{version}-{cpu}")
}

/// Short name of the CPU this runs on: a build is tuned to it and may not run on another one.
pub fn cpu_key() -> String {
    cpu_key_of(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn cpu_key_of(cpuinfo: &str) -> String {
    // Where the model is not in cpuinfo (ARM), the lines that name it are `CPU implementer` and `CPU part`.
    let telling = ["model name", "flags", "Features", "CPU implementer", "CPU part"];
    let mut lines: Vec<&str> = Vec::new();
    for line in cpuinfo.lines() {
        if telling.iter().any(|name| line.starts_with(name)) && !lines.contains(&line) {
            lines.push(line);
        }
    }
    hex::encode(&Sha256::digest(lines.join("\n")))[..12].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn configured_goes_before_path_before_the_newest_build_for_this_cpu() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { state_dir: dir.path().to_owned(), ..Config::default() };
        let path = dir.path().join("bin");
        let find = |config: &Config| find_in(config, Some(path.as_os_str()), "cpu1");
        let error = find(&config).unwrap_err().to_string();
        assert!(error.contains("lares engine install"), "{error}");

        let engine = |name: &str| dir.path().join("engines").join(name).join(BINARY);
        program(&engine("llama-server-9.0.0-cpu1"));
        program(&engine("llama-server-11434.0.0-cpu1"));
        program(&engine("llama-server-99999.0.0-cpu2"));
        assert_eq!(find(&config).unwrap(), engine("llama-server-11434.0.0-cpu1"));

        program(&path.join(BINARY));
        assert_eq!(find(&config).unwrap(), path.join(BINARY));

        config.llama.server = Some(dir.path().join("mine"));
        assert!(find(&config).unwrap_err().to_string().contains("llama.server"));
        program(&dir.path().join("mine"));
        assert_eq!(find(&config).unwrap(), dir.path().join("mine"));
    }

    #[test]
    fn the_same_cpu_has_the_same_key_however_many_cores_and_however_fast() {
        let core = |n: u32, mhz: u32| format!("processor : {n}\nmodel name : X\ncpu MHz : {mhz}\nflags : avx2 fma\n\n");
        assert_eq!(cpu_key_of(&core(0, 2000)), cpu_key_of(&(core(0, 1000) + &core(1, 3000))));
        assert_ne!(cpu_key_of(&core(0, 1)), cpu_key_of("model name : X\nflags : avx2 fma avx512f\n"));
    }
}
