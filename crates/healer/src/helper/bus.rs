//! systemd and polkit over the system bus, and the port through which the helper uses them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use lares_units::port::{InvocationId, UnitId};
use serde::Deserialize;
use tokio::time::timeout;
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Type, Value};
use zbus::{Connection, Error};

use super::process::Process;
use super::rules::UnitNow;
use super::server::Peer;
use super::{Obstacle, Verb};

/// Longest wait for an answer on the bus.
const CALL: Duration = Duration::from_secs(5);
/// Unit that carries out a roll back: it has to outlive this process and the healer, which the switch may restart.
const ROLL_BACK: &str = "lares-rollback.service";
/// Longest that a switch may take.
const SWITCH: Duration = Duration::from_secs(1800);

/// What the helper needs of the machine besides files and processes.
pub(super) trait Machine: fmt::Debug + Send + Sync + 'static {
    /// Whether polkit allows it to this caller. Whoever cannot be asked has not allowed it.
    fn allowed(&self, peer: &Peer, verb: &Verb) -> impl Future<Output = Result<(), Obstacle>> + Send;
    /// A unit as it is now.
    fn unit(&self, unit: &UnitId) -> impl Future<Output = Result<UnitNow, Obstacle>> + Send;
    /// A process as it is now; none when there is none.
    fn process(&self, pid: i32) -> Option<Process> {
        Process::look(pid)
    }
    /// Sets `MemoryMax` until the next boot.
    fn set_memory_max(&self, unit: &UnitId, bytes: u64) -> impl Future<Output = Result<(), Obstacle>> + Send;
    /// Makes systemd read its files again.
    fn reload(&self) -> impl Future<Output = Result<(), Obstacle>> + Send;
    /// Starts commands that run one after the other, each if the one before succeeded, and outlive this process.
    fn begin(&self, commands: &[Vec<String>]) -> impl Future<Output = Result<(), Obstacle>> + Send;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait SystemdManager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, Value<'_>)]) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        others: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn reload(&self) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority",
    gen_blocking = false
)]
trait Authority {
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Value<'_>>),
        action: &str,
        details: &HashMap<&str, &str>,
        flags: u32,
        cancellation: &str,
    ) -> zbus::Result<Authorized>;
}

/// What a unit's properties are called and hold.
type Properties = HashMap<String, OwnedValue>;

/// polkit's answer.
#[derive(Debug, Deserialize, Type)]
struct Authorized {
    granted: bool,
    _challenge: bool,
    _details: HashMap<String, String>,
}

/// The system bus. Every call opens it: the helper is asked seldom, and what is not kept need not be mended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bus;

impl Bus {
    async fn open(self) -> Result<Connection, String> {
        let building = zbus::connection::Builder::system().map_err(|error| describe(&error))?.method_timeout(CALL);
        match timeout(CALL, building.build()).await {
            Ok(connection) => connection.map_err(|error| format!("the bus does not answer: {}", describe(&error))),
            Err(_) => Err("the bus does not answer".to_owned()),
        }
    }

    async fn manager(self) -> Result<SystemdManagerProxy<'static>, Obstacle> {
        let connection = self.open().await.map_err(Obstacle::Failed)?;
        let building = SystemdManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        building.build().await.map_err(|error| failed("systemd", &error))
    }
}

impl Machine for Bus {
    async fn allowed(&self, peer: &Peer, verb: &Verb) -> Result<(), Obstacle> {
        let unasked = |why: String| Obstacle::NotAllowed(format!("polkit cannot be asked: {why}"));
        let connection = self.open().await.map_err(unasked)?;
        let building = AuthorityProxy::builder(&connection).cache_properties(CacheProperties::No);
        let authority = building.build().await.map_err(|error| unasked(describe(&error)))?;
        let process = HashMap::from([
            ("pid", Value::from(u32::try_from(peer.pid).unwrap_or(0))),
            ("start-time", Value::from(peer.started)),
            ("uid", Value::from(i32::try_from(peer.uid).unwrap_or(-1))),
        ]);
        let subject = ("unix-process", process);
        let mut details = HashMap::from([("verb", verb.name())]);
        if let Some(unit) = verb.unit() {
            details.insert("unit", unit.as_str());
        }
        // No flags: nobody is asked for a password.
        let asked = authority.check_authorization(&subject, verb.action(), &details, 0, "");
        match asked.await {
            Ok(answer) if answer.granted => Ok(()),
            Ok(_) => Err(Obstacle::NotAllowed(format!(
                "polkit does not allow {} to user {}; a rule has to",
                verb.action(),
                peer.uid
            ))),
            Err(error) => Err(unasked(describe(&error))),
        }
    }

    async fn unit(&self, unit: &UnitId) -> Result<UnitNow, Obstacle> {
        let manager = self.manager().await?;
        let path = manager.load_unit(unit.as_str()).await.map_err(|error| failed(unit.as_str(), &error))?;
        let mut properties = Properties::new();
        for interface in ["org.freedesktop.systemd1.Unit", "org.freedesktop.systemd1.Service"] {
            let found = get_all(manager.inner().connection(), &path, interface).await;
            properties.extend(found.map_err(|error| failed(unit.as_str(), &error))?);
        }
        read(&properties).ok_or_else(|| Obstacle::Failed(format!("systemd does not tell enough of {unit}")))
    }

    async fn set_memory_max(&self, unit: &UnitId, bytes: u64) -> Result<(), Obstacle> {
        let manager = self.manager().await?;
        let set = manager.set_unit_properties(unit.as_str(), true, &[("MemoryMax", Value::from(bytes))]).await;
        set.map_err(|error| failed(unit.as_str(), &error))
    }

    async fn reload(&self) -> Result<(), Obstacle> {
        self.manager().await?.reload().await.map_err(|error| failed("systemd cannot read its files again", &error))
    }

    async fn begin(&self, commands: &[Vec<String>]) -> Result<(), Obstacle> {
        // Program, arguments with the program again, and whether failing is fine.
        let commands: Vec<(String, Vec<String>, bool)> =
            commands.iter().filter_map(|command| Some((command.first()?.clone(), command.clone(), false))).collect();
        let limit = u64::try_from(SWITCH.as_micros()).unwrap_or(u64::MAX);
        let properties = [
            ("Description", Value::from("Switch back to an earlier system generation")),
            ("Type", Value::from("oneshot")),
            // So that one that failed is not in the way of the next.
            ("CollectMode", Value::from("inactive-or-failed")),
            ("TimeoutStartUSec", Value::from(limit)),
            ("ExecStart", Value::new(commands)),
        ];
        let manager = self.manager().await?;
        // "fail": one that is under way is not disturbed.
        let job = manager.start_transient_unit(ROLL_BACK, "fail", &properties, &[]).await;
        job.map(drop).map_err(|error| failed(ROLL_BACK, &error))
    }
}

async fn get_all(bus: &Connection, path: &OwnedObjectPath, interface: &str) -> zbus::Result<Properties> {
    let of = Some("org.freedesktop.DBus.Properties");
    bus.call_method(Some("org.freedesktop.systemd1"), path, of, "GetAll", &(interface,)).await?.body().deserialize()
}

/// None when something is missing that every service has.
fn read(properties: &Properties) -> Option<UnitNow> {
    fn get<T: TryFrom<OwnedValue>>(properties: &Properties, name: &str) -> Option<T> {
        T::try_from(properties.get(name)?.try_clone().ok()?).ok()
    }
    let text = |name: &str| get::<String>(properties, name);
    let process = |name: &str| get::<u32>(properties, name).map(|pid| (pid != 0).then_some(pid));
    let invocation = get::<Vec<u8>>(properties, "InvocationID")?;
    Some(UnitNow {
        loaded: text("LoadState")? == "loaded",
        active: matches!(text("ActiveState")?.as_str(), "active" | "reloading" | "refreshing"),
        main: process("MainPID")?,
        control: process("ControlPID")?,
        invocation: InvocationId::from_bytes(&invocation).map(|id| id.to_string()).unwrap_or_default(),
        group: text("ControlGroup")?,
        memory_max: get::<u64>(properties, "MemoryMax").filter(|bytes| *bytes != u64::MAX),
        environment: get(properties, "Environment")?,
    })
}

fn failed(what: &str, error: &Error) -> Obstacle {
    Obstacle::Failed(format!("{what}: {}", describe(error)))
}

/// An error in words, without the name of the error where it has a text.
fn describe(error: &Error) -> String {
    match error {
        Error::MethodError(_, Some(text), _) if !text.is_empty() => text.clone(),
        error => error.to_string(),
    }
}
