//! The private PostgreSQL of `lares up`: made once, run by the supervisor, reached over a socket only.
//!
//! PostgreSQL refuses to run as root, so root runs it as another user. That user owns the data and the socket's
//! directory and nothing else: root never writes into a directory that a lesser user could have put a link into.
//!
//! ```text
//! STATE_DIR/postgres/            owned by who runs Lares
//!     pg_hba.conf pg_ident.conf  who may connect: peers only
//!     data/                      owned by who runs PostgreSQL
//!     run/                       the socket; owned by who runs PostgreSQL
//! ```

mod binaries;
mod identity;
mod initdb;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::error::describe;

/// Role and database of Lares in its private cluster.
const NAME: &str = "lares";
/// Only names the socket file; PostgreSQL does not listen on TCP.
const PORT: &str = "5432";
/// `sun_path` of Linux without its final NUL.
const SOCKET_PATH_MAX: usize = 107;
/// Longest wait for the cluster to answer one question.
const ANSWER: Duration = Duration::from_secs(5);

/// Settings for a machine whose memory belongs to the models.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "shared_buffers=64MB",
    "max_connections=50",
    "max_wal_size=256MB",
    "fsync=on",
    "logging_collector=off",
    "log_destination=stderr",
    "log_timezone=UTC",
    "timezone=UTC",
    "cluster_name=lares",
];

/// Why there is no private cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `initdb` or `postgres` is not on this machine.
    #[error(
        "PostgreSQL's initdb and postgres were not found in {searched}; \
         install PostgreSQL, or set store.cluster.bin_dir or store.url"
    )]
    NoBinaries {
        /// Where they were looked for.
        searched: String,
    },
    /// The data was written by a major version that is not installed.
    #[error(
        "{data} was made by PostgreSQL {cluster} and this machine has {installed}; install PostgreSQL {cluster} \
         (store.cluster.bin_dir), or move the data with pg_upgrade or pg_dump"
    )]
    OtherVersion {
        /// The data directory.
        data: PathBuf,
        /// Major version that made it.
        cluster: String,
        /// Major versions found.
        installed: String,
    },
    /// The user PostgreSQL is to run as does not exist.
    #[error("there is no user {0} to run PostgreSQL as (it refuses root); set store.cluster.user to one that exists")]
    NoUser(String),
    /// The user PostgreSQL is to run as is root.
    #[error("store.cluster.user is {0}, which is root; PostgreSQL refuses to run as root, name another user")]
    UserIsRoot(String),
    /// A directory above the data shuts the user out.
    #[error(
        "user {user}, who runs PostgreSQL, cannot pass through {component}; \
         make it passable (chmod o+x {component}) or choose another state_dir"
    )]
    NotPassable {
        /// The user.
        user: String,
        /// The directory that is closed.
        component: PathBuf,
    },
    /// The data belongs to somebody else.
    #[error("{path} belongs to user id {owner} and PostgreSQL runs as {user}; chown it, or set store.cluster.user")]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should.
        user: String,
    },
    /// The socket's path does not fit.
    #[error(
        "the socket {path} is {length} bytes long and the system takes {SOCKET_PATH_MAX}; choose a shorter state_dir"
    )]
    SocketPathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The state directory cannot be written down in PostgreSQL's settings.
    #[error("state_dir {0} holds a character PostgreSQL's settings cannot (comma, quote, control or not UTF-8)")]
    UnusablePath(PathBuf),
    /// Another process is making the cluster and does not finish.
    #[error("another process holds {0}; is another `lares up` starting with the same state_dir?")]
    Busy(PathBuf),
    /// A program of PostgreSQL failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The system refused something.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not answering, or not yet.
    #[error("the private cluster is not ready: {0}")]
    NotReady(String),
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// A cluster that is ready to be started.
#[derive(Debug, Clone)]
pub struct Cluster {
    state_dir: PathBuf,
    postgres: PathBuf,
    user: Option<(u32, u32)>,
}

/// How to run the cluster in the foreground. It logs to standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The `postgres` binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables to set.
    pub env: Vec<(OsString, OsString)>,
    /// Variables to leave out: they would change its settings.
    pub env_remove: Vec<OsString>,
    /// User and group id to run it as, without supplementary groups; `None`: as who runs Lares.
    pub user: Option<(u32, u32)>,
    /// What ends it soon and cleanly: clients are cut off, everything is on disk.
    pub stop_signal: Signal,
}

impl Command {
    /// The same as something to spawn.
    pub fn to_tokio(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        for name in &self.env_remove {
            command.env_remove(name);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Cluster {
    /// Finds PostgreSQL, picks the user to run it, and makes the cluster if there is none yet.
    ///
    /// May be cut off at any point, `kill -9` included, and called again.
    ///
    /// # Errors
    /// When PostgreSQL is missing or of another version than the data, or the state directory cannot be used.
    pub async fn prepare(config: &lares_config::Config) -> Result<Self> {
        let state_dir = std::path::absolute(&config.state_dir).map_err(io_error("resolve", &config.state_dir))?;
        check_path(&state_dir)?;
        let identity = identity::choose(&config.store.cluster).await?;
        let home = state_dir.join("postgres");
        initdb::make_home(&home, &identity).await?;
        let _lock = initdb::lock(&home).await?;
        let installed = binaries::find(config.store.cluster.bin_dir.as_deref(), &identity).await?;
        if let Some(any) = installed.first() {
            identity.check_passable(&home, &any.postgres).await?;
        }
        let binaries = initdb::make_data(&home, &identity, &installed).await?;
        initdb::make_socket_dir(&home, &identity).await?;
        initdb::write_access_rules(&home, &identity).await?;
        Ok(Self { state_dir, postgres: binaries.postgres, user: identity.switch_to() })
    }

    /// What the supervisor runs.
    pub fn command(&self) -> Command {
        let home = self.state_dir.join("postgres");
        let mut args: Vec<OsString> = vec!["-D".into(), home.join("data").into()];
        args.extend(["-p".into(), PORT.into(), "-k".into(), home.join("run").into()]);
        let assign = |name: &str, path: PathBuf| {
            let mut text = OsString::from(name);
            text.push("=");
            text.push(path);
            text
        };
        for setting in SETTINGS
            .iter()
            .map(OsString::from)
            .chain([assign("hba_file", home.join("pg_hba.conf")), assign("ident_file", home.join("pg_ident.conf"))])
        {
            args.extend(["-c".into(), setting]);
        }
        Command {
            program: self.postgres.clone(),
            args,
            env: vec![("LC_ALL".into(), "C".into())],
            env_remove: ["PGDATA", "PGPORT", "PGHOST", "PGOPTIONS", "PGDATESTYLE", "PGTZ"].map(OsString::from).into(),
            user: self.user,
            stop_signal: Signal::SIGINT,
        }
    }

    /// Where to reach it: a URL without a secret.
    pub fn url(&self) -> String {
        url(&self.state_dir)
    }

    /// Directory with the data, for looking at (`PG_VERSION`, `postmaster.pid`).
    pub fn data_dir(&self) -> PathBuf {
        self.state_dir.join("postgres/data")
    }

    /// Succeeds once it answers queries; makes the database of Lares when it is missing.
    ///
    /// # Errors
    /// When it does not answer within a few seconds; ask again.
    pub async fn is_ready(&self) -> Result<()> {
        let attempt = async {
            let mut settings = tokio_postgres::Config::new();
            settings.host_path(self.state_dir.join("postgres/run")).user(NAME).dbname("postgres");
            let (client, connection) = settings.connect(NoTls).await?;
            let connection = tokio::spawn(connection);
            let made = async {
                if client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&NAME]).await?.is_none() {
                    match client.batch_execute("CREATE DATABASE lares TEMPLATE template0").await {
                        Err(e) if e.code() == Some(&SqlState::DUPLICATE_DATABASE) => {}
                        Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) => {}
                        other => other?,
                    }
                }
                Ok(())
            }
            .await;
            drop(client);
            connection.abort();
            made
        };
        match timeout(ANSWER, attempt).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Error::NotReady(describe(&e))),
            Err(_) => Err(Error::NotReady(format!("no answer within {ANSWER:?}"))),
        }
    }
}

/// Where the private cluster of a state directory is reached.
pub(crate) fn url(state_dir: &Path) -> String {
    let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let mut host = String::new();
    for &byte in state_dir.join("postgres/run").as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => host.push(char::from(byte)),
            _ => host.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("postgres://{NAME}@{host}/{NAME}")
}

/// The path must fit a socket address and PostgreSQL's list of socket directories.
fn check_path(state_dir: &Path) -> Result<()> {
    let usable = state_dir.to_str().is_some_and(|s| !s.chars().any(|c| c.is_control() || "\",'\\".contains(c)));
    if !usable {
        return Err(Error::UnusablePath(state_dir.to_owned()));
    }
    let path = state_dir.join("postgres/run").join(format!(".s.PGSQL.{PORT}"));
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(Error::SocketPathTooLong { path, length });
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_url_of_a_directory_with_odd_characters_reads_back() {
        let settings: tokio_postgres::Config = url(Path::new("/a b/c%d/@x")).parse().unwrap();
        let expected = tokio_postgres::config::Host::Unix(PathBuf::from("/a b/c%d/@x/postgres/run"));
        assert_eq!(settings.get_hosts(), [expected]);
        assert_eq!(settings.get_user(), Some("lares"));
    }

    #[test]
    fn a_state_directory_too_deep_for_a_socket_is_named_with_the_limit() {
        let deep = PathBuf::from(format!("/{}", "x".repeat(90)));
        let e = check_path(&deep).unwrap_err();
        assert!(e.to_string().contains("107") && e.to_string().contains("state_dir"), "{e}");
        check_path(Path::new("/var/lib/lares")).unwrap();
    }

    #[test]
    fn a_state_directory_that_postgresql_cannot_spell_is_refused() {
        assert!(matches!(check_path(Path::new("/a,b")), Err(Error::UnusablePath(_))));
    }
}
