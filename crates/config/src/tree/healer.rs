//! The healer's section: what it watches, and how far it may go.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration;
use crate::size::ByteSize;

/// What keeps units running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Healer {
    /// Address and port.
    pub listen: SocketAddr,
    /// The units it may act on, by full name (`app.service`), besides those that Lares itself runs. No other unit is
    /// ever touched.
    pub units: BTreeMap<String, HealedUnit>,
    /// Least time between two remedies that touch one unit. It doubles with each remedy in a row that did not help,
    /// after the first.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub cooldown: Duration,
    /// Most that the doubling of `cooldown` leads to.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub backoff_max: Duration,
    /// Most remedies that touch one unit within an hour.
    pub max_per_hour: u32,
    /// Most units that remedies touch within a minute, all of them together, when much fails at once. A remedy that
    /// touches more than this by itself is never begun.
    pub max_per_minute: u32,
    /// After so many remedies in a row that did not help, nothing more is tried and a person is told.
    pub circuit_after: u32,
    /// How long until one more try then. It doubles with each that does not help, up to 32 times.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub circuit_open: Duration,
    /// A unit counts as recovered when it stayed well for so long.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub verify_hold: Duration,
    /// A remedy that has not made the unit well after so long did not help.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub verify_timeout: Duration,
    /// A person is told of an incident that only waits for so long.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub patience: Duration,
    /// File with further patterns, or with others of the same names (TOML, see docs/healing.md).
    pub patterns_file: Option<PathBuf>,
    /// A remedy that helped so often against an unknown failure is used without asking.
    pub approve_after: u32,
    /// Socket of the helper, which does as root what systemd lets no other user do. Everything else works without it.
    pub helper: PathBuf,
    /// Model that the coordinator offers for embeddings, by which failures that no pattern knows are compared. Unset: the
    /// first configured one that makes embeddings; without any they are compared by their words.
    pub embedding_model: Option<String>,
    /// Model that writes, into the timeline, what it makes of a failure that no pattern knows. It chooses nothing. Unset:
    /// none is asked.
    pub diagnosis_model: Option<String>,
}

impl Default for Healer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8099)),
            units: BTreeMap::new(),
            cooldown: Duration::from_secs(60),
            backoff_max: Duration::from_secs(1800),
            max_per_hour: 6,
            max_per_minute: 10,
            circuit_after: 3,
            circuit_open: Duration::from_secs(600),
            verify_hold: Duration::from_secs(10),
            verify_timeout: Duration::from_secs(120),
            patience: Duration::from_secs(600),
            patterns_file: None,
            approve_after: 3,
            helper: PathBuf::from("/run/lares/helper.sock"),
            embedding_model: None,
            diagnosis_model: None,
        }
    }
}

/// A unit that the healer may act on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealedUnit {
    /// Start it even if somebody stopped it.
    pub keep_running: bool,
    /// How to find out whether it works while it runs.
    pub probe: HealthProbe,
    /// Units it needs besides those that systemd knows of (`Requires=`, `BindsTo=`).
    pub dependencies: Vec<String>,
    /// Unit of the database it uses, restarted when its lock was left by a process that is gone.
    pub database: Option<String>,
    /// File whose lock tells who uses that database, such as the file of SQLite. Unset: the one that the log names.
    pub database_file: Option<PathBuf>,
    /// Up to so much its `MemoryMax` may be raised, until the next boot, when it is killed for memory again and again.
    /// Unset: never.
    pub memory_max: Option<ByteSize>,
    /// Ports it may be moved to, until the next boot, when another process holds its own. Empty: never. Needs
    /// `port_variable`.
    pub ports: Vec<u16>,
    /// Environment variable that tells it its port.
    pub port_variable: Option<String>,
    /// Environment variables that tell it the port of other units, by the unit's name: when one of those is moved, this
    /// one is told and restarted.
    pub port_variables: BTreeMap<String, String>,
}

/// How to find out whether a unit works. At most one of `http`, `tcp` and `command` is set; none: it works if it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthProbe {
    /// URL that answers with a status from 200 to 399.
    pub http: Option<String>,
    /// Address that takes connections.
    pub tcp: Option<SocketAddr>,
    /// Program with its arguments that exits with 0, run as the healer's user. Empty: none.
    pub command: Vec<String>,
    /// Time between two probes.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// Longest that one takes.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// Failures in a row that make the unit sick.
    pub threshold: u32,
}

impl Default for HealthProbe {
    fn default() -> Self {
        Self {
            http: None,
            tcp: None,
            command: Vec::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            threshold: 3,
        }
    }
}
