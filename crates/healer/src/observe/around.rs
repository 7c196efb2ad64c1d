//! What is on the machine around a unit: ports, files, disks, locks, generations. Everything here blocks.

use std::path::{Path, PathBuf};

use super::files::{self, Named};
use super::generation::Generations;
use super::lock::{self, Traces};
use super::process;
use crate::facts::{Disk, File, Holder, LockHolder, Owner};

/// Held while `switch-to-configuration` runs, which `nixos-rebuild` and other tools start.
const SWITCHING: &str = "/run/nixos/switch-to-configuration.lock";
/// Where programs write.
const WRITTEN: [&str; 2] = ["/var", "/"];

/// How often something had to wait for memory.
const PRESSURE: &str = "/proc/pressure/memory";

/// What to look at.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) unit: String,
    /// Its main process.
    pub(super) main: Option<u32>,
    /// The port its lines name.
    pub(super) port: Option<u16>,
    /// Ports it may be moved to.
    pub(super) ports: Vec<u16>,
    /// The file its lines name.
    pub(super) file: Option<Named>,
    /// A place it writes to besides those that every unit does.
    pub(super) writes: Option<PathBuf>,
    /// The lock its lines are about.
    pub(super) lock: Option<Traces>,
    /// The profile of the system, when it matters.
    pub(super) profile: Option<PathBuf>,
}

/// Who listens on the port.
#[derive(Debug, Default)]
pub(super) enum Listener {
    /// Nobody, or nobody asked.
    #[default]
    Nobody,
    /// This process.
    Found(Holder),
    /// A process that only root may look into, or it could not be looked for.
    Hidden(String),
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) listener: Listener,
    pub(super) free_port: Option<u16>,
    pub(super) file: Option<File>,
    pub(super) disk: Option<Disk>,
    pub(super) lock: Option<LockHolder>,
    pub(super) rebuilding: bool,
    /// Percent of the last ten seconds in which something waited for memory.
    pub(super) pressure: Option<u32>,
    /// The generations, and whether the unit differs in them.
    pub(super) generations: Option<(Generations, bool)>,
    pub(super) unknown: Vec<String>,
}

/// Looks.
pub(super) fn look(look: Look) -> Around {
    let Look { unit, main, port, ports, file, writes, lock, profile } = look;
    let mut around = Around::default();
    if let Some(port) = port {
        around.listener = match process::holder(port, &unit, main) {
            Ok(None) => Listener::Nobody,
            Ok(Some(holder)) => Listener::Found(holder),
            Err(error) => Listener::Hidden(error.to_string()),
        };
        let mut others = ports.into_iter().filter(|other| *other != port);
        around.free_port = others.find(|other| process::is_taken(*other).is_ok_and(|taken| !taken));
    }
    if let Some(named) = file {
        let (file, unknown) = files::file(named);
        around.file = Some(file);
        around.unknown.extend(unknown);
    }
    let places: Vec<&Path> = WRITTEN.map(Path::new).into_iter().chain(writes.as_deref()).collect();
    let (disk, unknown) = files::fullest(&places);
    around.disk = disk;
    around.unknown.extend(unknown);
    if let Some(traces) = lock {
        let (holder, unknown) = lock::holder(&traces);
        around.lock = Some(holder);
        around.unknown.extend(unknown);
    }
    match lock::is_locked(Path::new(SWITCHING)) {
        Ok(locked) => around.rebuilding = locked,
        Err(error) => around.unknown.push(format!("whether the system is being switched: {error}")),
    }
    // A kernel without it says nothing.
    around.pressure = std::fs::read_to_string(PRESSURE).ok().and_then(|text| pressure(&text));
    around.generations = profile.and_then(|profile| Generations::of(&profile)).map(|found| {
        let changed = found.changed(&unit);
        (found, changed)
    });
    around
}

/// The share of the last ten seconds, in percent: `some avg10=1.23 avg60=…`.
fn pressure(text: &str) -> Option<u32> {
    let (_, rest) = text.strip_prefix("some ")?.split_once("avg10=")?;
    rest.split(['.', ' ']).next()?.parse().ok()
}

/// Somebody who listens and whom nobody here may look at.
pub(super) fn stranger() -> Holder {
    Holder { pid: 0, started: 0, command: "of another user".to_owned(), owner: Owner::Nobody }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_a_whole_number_of_percent() {
        let text =
            "some avg10=12.98 avg60=1.00 avg300=0.10 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(pressure(text), Some(12));
        assert_eq!(pressure(""), None);
        assert_eq!(pressure("some avg10=x"), None);
    }
}
