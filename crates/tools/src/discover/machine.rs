//! This machine, as discovery sees it.

use std::collections::{BTreeSet, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;
use lares_config::Config;
use tokio::sync::oneshot;
use tokio::time::timeout;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};

use super::{Around, Listening, ReadError, UnitFiles, ports, probe};

/// Longest wait for a file, and for one answer of systemd.
const FILE: Duration = Duration::from_secs(2);
const BUS: Duration = Duration::from_secs(2);
/// Most units asked for their files, and how many at the same time.
const MOST_UNITS: usize = 2048;
const AT_ONCE: usize = 32;
/// Files that may hang at the same time before no further one is tried.
const MOST_HANGING: usize = 64;
/// Largest table of sockets: some 25 000 of them.
const LARGEST_TABLE: usize = 4 << 20;
/// The dashboard's port, which nothing configures.
const DASHBOARD: u16 = 8100;
const SYSTEMD: &str = "org.freedesktop.systemd1";

/// The ports of the house itself, by a configuration: nobody asks them whether they are tool servers.
pub fn house_ports(config: &Config) -> BTreeSet<u16> {
    let daemons = [&config.tools.listen, &config.coordinator.listen, &config.ralph.listen, &config.healer.listen];
    let models = config.models.values().map(|model| model.port).filter(|port| *port != 0);
    daemons.into_iter().map(SocketAddr::port).chain(models).chain([DASHBOARD]).collect()
}

/// The machine that the daemon runs on.
#[derive(Debug)]
pub struct Machine {
    home: Option<PathBuf>,
    house: BTreeSet<u16>,
    /// Files that a thread still waits for. Each is a thread that nothing can end.
    reading: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Machine {
    /// This machine, for the user of this process. The ports of the house are not looked at.
    pub fn new(config: &Config) -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        Self::of(home, house_ports(config))
    }

    /// This machine with another home directory, and other ports not to look at.
    pub fn of(home: Option<PathBuf>, house: BTreeSet<u16>) -> Self {
        Self { home, house, reading: Arc::default() }
    }
}

#[async_trait]
impl Around for Machine {
    fn home(&self) -> Option<PathBuf> {
        self.home.clone()
    }

    async fn read(&self, path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
        let path = path.to_owned();
        {
            let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            // A file on something that hangs keeps its thread; the next round must not add another one.
            if reading.len() >= MOST_HANGING || !reading.insert(path.clone()) {
                return Err(ReadError::Hangs);
            }
        }
        let (tell, told) = oneshot::channel();
        let done = Done { path: path.clone(), reading: Arc::clone(&self.reading) };
        // Not the runtime's own threads: it would wait for one that hangs when it ends.
        let thread = std::thread::Builder::new().name("discover".to_owned()).spawn(move || {
            let content = read(&path, limit);
            drop(done);
            let _ = tell.send(content);
        });
        thread.map_err(|error| ReadError::Refused(error.to_string()))?;
        match timeout(FILE, told).await {
            Ok(Ok(content)) => content,
            Ok(Err(_)) => Err(ReadError::Refused("its reader failed".to_owned())),
            Err(_) => Err(ReadError::Hangs),
        }
    }

    async fn listening(&self) -> Result<Vec<Listening>, String> {
        let mut found = Vec::new();
        for (table, needed) in [("/proc/net/tcp", true), ("/proc/net/tcp6", false)] {
            match self.read(Path::new(table), LARGEST_TABLE).await {
                Ok(text) => found.extend(ports::listening(&String::from_utf8_lossy(&text))),
                Err(ReadError::Absent) if !needed => {}
                Err(error) => return Err(format!("{table} {error}, so no port is asked")),
            }
        }
        found.retain(|socket| !self.house.contains(&socket.address.port()));
        Ok(found)
    }

    async fn speaks_mcp(&self, address: SocketAddr) -> Option<String> {
        probe::speaks_mcp(address).await
    }

    async fn units(&self) -> Result<Vec<UnitFiles>, String> {
        // sd_booted(3)
        if !Path::new("/run/systemd/system").is_dir() {
            return Ok(Vec::new());
        }
        let asking = async {
            let bus = zbus::connection::Builder::system()?.method_timeout(BUS).build().await?;
            let none: &[&str] = &[];
            let answer = bus
                .call_method(
                    Some(SYSTEMD),
                    "/org/freedesktop/systemd1",
                    Some("org.freedesktop.systemd1.Manager"),
                    "ListUnitsByPatterns",
                    &(none, ["*.service"].as_slice()),
                )
                .await?;
            let listed: Vec<Listed> = answer.body().deserialize()?;
            let units = stream::iter(listed.into_iter().take(MOST_UNITS))
                .map(|unit| {
                    let bus = &bus;
                    async move { UnitFiles { files: files(bus, &unit.6).await, name: unit.0 } }
                })
                .buffered(AT_ONCE)
                .collect()
                .await;
            Ok::<Vec<UnitFiles>, zbus::Error>(units)
        };
        asking.await.map_err(|error| format!("systemd does not tell its units: {error}"))
    }
}

/// Name, description, load, active and sub state, followed unit, object, job id, kind and object.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// The files of a unit; none for one that systemd does not tell of, for example because it is gone by now.
async fn files(bus: &zbus::Connection, unit: &OwnedObjectPath) -> Vec<PathBuf> {
    let get = async |property: &str| {
        let answer = bus
            .call_method(
                Some(SYSTEMD),
                unit,
                Some("org.freedesktop.DBus.Properties"),
                "Get",
                &("org.freedesktop.systemd1.Unit", property),
            )
            .await?;
        answer.body().deserialize::<OwnedValue>()
    };
    let (fragment, drop_ins) = tokio::join!(get("FragmentPath"), get("DropInPaths"));
    let fragment = fragment.ok().and_then(|value| String::try_from(value).ok()).filter(|path| !path.is_empty());
    let drop_ins = drop_ins.ok().and_then(|value| Vec::<String>::try_from(value).ok()).unwrap_or_default();
    fragment.into_iter().chain(drop_ins).map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

/// Takes a file off the list of those that are being read, however that ends.
struct Done {
    path: PathBuf,
    reading: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

/// Reads a regular file. A FIFO without a writer, or a device, is opened without waiting and then left alone.
fn read(path: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let kind = file.metadata().map_err(|error| refused(&error))?;
    if !kind.is_file() {
        return Err(ReadError::NotAFile);
    }
    let mut content = Vec::new();
    // One byte more tells a file that is too large, also one that grows or that says nothing of its size (`/proc`).
    file.take(limit as u64 + 1).read_to_end(&mut content).map_err(|error| refused(&error))?;
    if content.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(content) }
}

fn open(path: &Path) -> Result<File, ReadError> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| refused(&error))
}

fn refused(error: &std::io::Error) -> ReadError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => ReadError::Absent,
        // Opening a socket's file, or a device without its hardware.
        _ if error.raw_os_error() == Some(nix::libc::ENXIO) => ReadError::NotAFile,
        _ => ReadError::Refused(error.to_string()),
    }
}
