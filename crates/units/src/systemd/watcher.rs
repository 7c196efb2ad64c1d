//! Signals become events here, in the order in which systemd sent them.
//!
//! Everything goes through one ordered stream of messages, the answers to the watcher's own calls too: what systemd said before
//! a signal is applied before it. So the watcher waits for nothing but the next message, and the stream never stands still.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};
use zbus::message::Type;
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, Message, MessageStream};

use crate::port::{
    Event, EventKind, InvocationId, JobOutcome, Listed, LoadState, ManagerError, RunResult, Standing, StateChange,
    UnitId,
};
use crate::status::Exit;

use super::bus::{self, Bus, SYSTEMD, UNIT, Unit};
use super::facts::Lookup;
use super::journal::Follower;
use super::object;
use super::signal::{BUS, Heard, RULES, tell_apart};

/// systemd's manager object.
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// With an answer outstanding and nothing heard for so long, the connection is given up. A reload of hundreds of units, during
/// which systemd is silent, takes less.
const SILENCE: Duration = Duration::from_secs(30);
/// Calls that may be unanswered at once. dbus-daemon refuses a connection's 129th, and there are [`bus::CALLS`] others.
const ASKS: usize = 64;
/// First and longest wait before connecting again. dbus-daemon is back within a second when it was restarted.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the watcher is asked to do.
pub(super) enum Request {
    Watch { units: Vec<UnitId>, answer: oneshot::Sender<Result<Vec<Listed>, ManagerError>> },
    Unwatch { units: Vec<UnitId>, answer: oneshot::Sender<()> },
}

/// A watched unit, as far as signals told.
#[derive(Debug)]
struct Tracked {
    unit: UnitId,
    standing: Standing,
    result: Option<RunResult>,
    main_exit: Option<Exit>,
    main_pid: Option<u32>,
    restarts: Option<u32>,
    invocation: Option<InvocationId>,
    job: Option<u32>,
    at: Option<Duration>,
    loaded: bool,
    /// What was told of it last.
    told: (Standing, Option<InvocationId>),
    /// Answers still to come before it can be compared with what was told.
    looks: u8,
}

/// Why all units are being compared with what was told of them.
#[derive(Debug, Clone, Copy)]
enum Comparing {
    /// Nothing could be heard for a while.
    Gap,
    /// systemd has read its files again.
    Reload,
}

/// A call whose answer has not come yet.
enum Ask {
    Match,
    Owner,
    Subscribe,
    Reference(UnitId),
    List { units: Vec<UnitId>, answer: Option<oneshot::Sender<Result<Vec<Listed>, ManagerError>>> },
    Look { path: String, what: Look, compared: bool },
}

#[derive(Debug, Clone, Copy)]
enum Look {
    Invocation,
    Result,
    Restarts,
}

pub(super) struct Watcher {
    bus: Bus,
    events: broadcast::Sender<Event>,
    follower: Follower,
    inbox: mpsc::Receiver<Request>,
    /// By object path.
    units: HashMap<String, Tracked>,
    /// What each name that was asked for stands for.
    paths: HashMap<UnitId, String>,
    lost: Option<Instant>,
}

/// One connection, from its beginning to its end.
struct Session {
    connection: Connection,
    owner: Option<String>,
    asks: HashMap<NonZeroU32, Ask>,
    /// Calls that are sent when earlier ones have been answered.
    later: VecDeque<(Message, Ask)>,
    comparing: Option<(Comparing, usize)>,
    /// systemd reads its files since then.
    reloading: Option<Instant>,
    heard: Instant,
}

type Ready = oneshot::Sender<Result<(), ManagerError>>;

impl Watcher {
    pub(super) fn new(
        bus: Bus,
        events: broadcast::Sender<Event>,
        follower: Follower,
        inbox: mpsc::Receiver<Request>,
    ) -> Self {
        Self { bus, events, follower, inbox, units: HashMap::new(), paths: HashMap::new(), lost: None }
    }

    /// Watches until it is dropped; returns only when the first connection fails. `ready` is answered once signals come.
    pub(super) async fn run(mut self, ready: Ready) {
        let mut ready = Some(ready);
        let mut tries = 0_u32;
        loop {
            let reason = match self.bus.open().await {
                Ok(connection) => {
                    let reason = self.session(connection, &mut ready, &mut tries).await;
                    self.bus.put(None);
                    reason
                }
                Err(error) => error,
            };
            if let Some(ready) = ready.take() {
                // Whoever asked may have gone; then nobody wants the connection either.
                let _ = ready.send(Err(reason));
                return;
            }
            self.lose(&reason.to_string());
            let wait =
                RETRY_MIN.saturating_mul(1 << tries.min(16)).min(RETRY_MAX).mul_f64(rand::random_range(0.5..1.0));
            tries = tries.saturating_add(1);
            sleep(wait).await;
        }
    }

    /// Tells once that nothing can be heard.
    fn lose(&mut self, reason: &str) {
        if self.lost.is_none() {
            warn!(reason, "lost the connection to systemd");
            self.lost = Some(Instant::now());
            self.tell(EventKind::Disconnected { reason: reason.to_owned() });
        }
    }

    fn tell(&self, kind: EventKind) {
        // Nobody may be listening.
        let _ = self.events.send(Event::now(kind));
    }

    /// Gives the reason for its end.
    async fn session(&mut self, connection: Connection, ready: &mut Option<Ready>, tries: &mut u32) -> ManagerError {
        let mut messages = MessageStream::from(&connection);
        let mut session = Session {
            connection,
            owner: None,
            asks: HashMap::new(),
            later: VecDeque::new(),
            comparing: None,
            reloading: None,
            heard: Instant::now(),
        };
        if let Err(error) = session.introduce().await {
            return bus::unavailable(&error);
        }
        loop {
            let waiting = !session.asks.is_empty();
            let step = tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        session.heard = Instant::now();
                        self.hear(&mut session, &message, ready, tries).await
                    }
                    Some(Err(error)) => Err(bus::unavailable(&error)),
                    None => Err(ManagerError::Unavailable("the bus closed the connection".into())),
                },
                request = self.inbox.recv(), if session.owner.is_some() => match request {
                    Some(request) => self.obey(&mut session, request).await,
                    None => Err(ManagerError::Unavailable("nobody uses the connection any more".into())),
                },
                () = sleep_until(session.heard + SILENCE), if waiting => {
                    Err(ManagerError::Unavailable(format!("no answer for {} s", SILENCE.as_secs())))
                }
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    async fn obey(&mut self, session: &mut Session, request: Request) -> Result<(), ManagerError> {
        let sent = match request {
            Request::Watch { units, answer } => session.list(units, Some(answer)).await,
            Request::Unwatch { units, answer } => {
                let mut outcome = Ok(());
                for unit in units {
                    let Some(path) = self.paths.remove(&unit) else { continue };
                    if self.paths.values().any(|other| *other == path) {
                        continue;
                    }
                    self.units.remove(&path);
                    outcome = session.unreference(unit).await;
                    if outcome.is_err() {
                        break;
                    }
                }
                self.share();
                // Whoever asked may have gone.
                let _ = answer.send(());
                outcome
            }
        };
        sent.map_err(|error| bus::unavailable(&error))
    }

    /// Lets the journal's follower know whose entries are wanted.
    fn share(&self) {
        self.follower.watch(self.units.values().map(|tracked| tracked.unit.clone()).collect());
    }

    async fn hear(
        &mut self,
        session: &mut Session,
        message: &Message,
        ready: &mut Option<Ready>,
        tries: &mut u32,
    ) -> Result<(), ManagerError> {
        match tell_apart(message, session.owner.as_deref()) {
            Heard::Answer(serial) => {
                if let Some(ask) = session.asks.remove(&serial) {
                    session.send_later().await.map_err(|error| bus::unavailable(&error))?;
                    return self.answer(session, ask, message, ready, tries).await;
                }
            }
            Heard::Owner(None) => {
                session.owner = None;
                session.asks.retain(|_, ask| matches!(ask, Ask::Match));
                session.later.clear();
                session.comparing = None;
                session.reloading = None;
                self.bus.put(None);
                self.lose("systemd left the bus");
            }
            Heard::Owner(Some(owner)) => {
                if session.owner.as_ref() != Some(&owner) {
                    if session.owner.is_some() {
                        self.bus.put(None);
                        self.lose("systemd came back under another name");
                    }
                    return session.begin(owner).await.map_err(|error| bus::unavailable(&error));
                }
            }
            Heard::Properties(path) => self.changed(session, &path, message),
            Heard::New(path) => self.loaded(session, path.as_str(), true),
            Heard::Removed(path) => self.loaded(session, path.as_str(), false),
            Heard::JobRemoved { id, job, unit, result } => {
                let outcome = JobOutcome::from(result);
                let watched = UnitId::new(unit).ok().filter(|unit| self.is_watched(unit));
                if let Some(unit) = watched {
                    self.tell(EventKind::JobRemoved { unit, job: Some(id), outcome: outcome.clone() });
                }
                // After the event: whoever waited for the job finds its event in the feed.
                self.bus.job_ended(job, outcome);
            }
            Heard::Reloading(true) => {
                session.reloading = Some(Instant::now());
                self.tell(EventKind::ReloadBegan);
            }
            Heard::Reloading(false) => {
                let sent = self.compare(session, Comparing::Reload).await;
                return sent.map_err(|error| bus::unavailable(&error));
            }
            Heard::Noise => {}
        }
        Ok(())
    }

    fn is_watched(&self, unit: &UnitId) -> bool {
        self.units.contains_key(object::path(unit).as_str())
    }

    async fn answer(
        &mut self,
        session: &mut Session,
        ask: Ask,
        message: &Message,
        ready: &mut Option<Ready>,
        tries: &mut u32,
    ) -> Result<(), ManagerError> {
        let failed = (message.message_type() == Type::Error).then(|| zbus::Error::from(message.clone()));
        match (ask, failed) {
            (Ask::Match | Ask::Owner, Some(error)) if ready.is_some() => {
                return Err(ManagerError::Unavailable(format!("no systemd on the bus: {error}")));
            }
            (Ask::Match, Some(error)) => return Err(bus::unavailable(&error)),
            // Without an owner: systemd is not there yet, and the bus says when it is.
            (Ask::Match | Ask::Reference(_), None) | (Ask::Owner, Some(_)) => {}
            (Ask::Owner, None) => {
                let owner: String = message.body().deserialize().map_err(|error| bus::reading(&error))?;
                if session.owner.is_none() {
                    return session.begin(owner).await.map_err(|error| bus::unavailable(&error));
                }
            }
            (Ask::Subscribe, failed) => {
                let subscribed = failed.is_none_or(|error| {
                    matches!(&error, zbus::Error::MethodError(name, ..) if name.ends_with(".AlreadySubscribed"))
                });
                if !subscribed {
                    return Err(ManagerError::Unavailable("systemd does not let us subscribe to its signals".into()));
                }
                *tries = 0;
                self.bus.put(Some(session.connection.clone()));
                if let Some(ready) = ready.take() {
                    // Whoever asked may have gone.
                    let _ = ready.send(Ok(()));
                }
                if self.lost.is_some() {
                    let sent = self.compare(session, Comparing::Gap).await;
                    return sent.map_err(|error| bus::unavailable(&error));
                }
            }
            (Ask::Reference(unit), Some(error)) => {
                // Without a reference systemd forgets the unit and its result when it is inactive; what signals told stays here.
                debug!(%unit, %error, "cannot hold on to the unit");
            }
            (Ask::List { answer, .. }, Some(error)) => match answer {
                // Whoever asked may have gone.
                Some(answer) => drop(answer.send(Err(bus::reading(&error)))),
                None => {
                    warn!(%error, "cannot compare the watched units");
                    self.compared(session, 0);
                }
            },
            (Ask::List { units, answer }, None) => {
                let rows: Vec<Unit> = message.body().deserialize().map_err(|error| bus::reading(&error))?;
                let found = self.take_list(session, units, rows).await.map_err(|error| bus::unavailable(&error))?;
                match answer {
                    // Whoever asked may have gone.
                    Some(answer) => drop(answer.send(Ok(found))),
                    None => self.compared(session, 0),
                }
            }
            (Ask::Look { path, what, compared }, failed) => {
                if let Some(tracked) = self.units.get_mut(&path) {
                    if failed.is_none() {
                        tracked.look(what, message);
                    }
                    tracked.looks = tracked.looks.saturating_sub(1);
                    if tracked.looks == 0 {
                        self.settle(&path);
                    }
                }
                if compared {
                    self.compared(session, 1);
                }
            }
        }
        Ok(())
    }

    /// Asks how all watched units are, to compare that with what was told of them.
    async fn compare(&self, session: &mut Session, why: Comparing) -> zbus::Result<()> {
        // A gap is also over when the reload inside it is.
        let (why, outstanding) = match session.comparing {
            Some((gap @ Comparing::Gap, outstanding)) => (gap, outstanding),
            Some((_, outstanding)) => (why, outstanding),
            None => (why, 0),
        };
        session.comparing = Some((why, outstanding));
        if let Comparing::Gap = why {
            for tracked in self.units.values() {
                session.reference(tracked.unit.clone()).await?;
            }
        }
        // Without any unit it is asked all the same, so that the end comes in its turn.
        session.list(self.paths.keys().cloned().collect(), None).await
    }

    /// So many looks of a comparison have been answered; when none is outstanding, it is over.
    fn compared(&mut self, session: &mut Session, looks: usize) {
        let Some((why, outstanding)) = session.comparing else { return };
        let outstanding = outstanding.saturating_sub(looks);
        session.comparing = Some((why, outstanding));
        if outstanding > 0 || session.is_listing() {
            return;
        }
        session.comparing = None;
        if session.reloading.take().is_some() {
            self.tell(EventKind::ReloadEnded);
        }
        if let Comparing::Gap = why
            && let Some(lost) = self.lost.take()
        {
            let gap = lost.elapsed();
            info!(gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX), "connected to systemd again");
            self.tell(EventKind::Resynchronised { gap });
        }
    }

    /// How units are; systemd answers in the order of the names it was asked for.
    async fn take_list(
        &mut self,
        session: &mut Session,
        names: Vec<UnitId>,
        rows: Vec<Unit>,
    ) -> zbus::Result<Vec<Listed>> {
        let mut found = Vec::with_capacity(rows.len());
        for (name, row) in names.into_iter().zip(rows) {
            let path = row.path.to_string();
            let Some(listed) = row.into_listed() else { continue };
            let is_new = !self.units.contains_key(&path);
            let loaded = listed.load != LoadState::NotFound;
            let tracked = self.units.entry(path.clone()).or_insert_with(|| Tracked::new(&listed));
            tracked.standing = listed.standing.clone();
            tracked.job = listed.job.as_ref().map(|job| job.id);
            let was_loaded = std::mem::replace(&mut tracked.loaded, loaded);
            let unit = tracked.unit.clone();
            if was_loaded && !loaded {
                self.tell(EventKind::Gone(unit.clone()));
            } else if loaded && !was_loaded {
                self.tell(EventKind::Appeared(unit.clone()));
            }
            self.paths.insert(name, path.clone());
            if is_new {
                session.reference(unit.clone()).await?;
            }
            // Looking at an inactive unit would only make systemd load it again.
            let is_idle = listed.standing.active == "inactive".into();
            let compared = session.comparing.is_some();
            let looks: &[Look] = match unit.kind() {
                _ if is_idle => &[],
                Some("service") => &[Look::Invocation, Look::Result, Look::Restarts],
                _ => &[Look::Invocation],
            };
            if let Some((_, outstanding)) = session.comparing.as_mut() {
                *outstanding += looks.len();
            }
            if looks.is_empty() {
                self.settle(&path);
            }
            for &look in looks {
                session.look(&path, look, compared).await?;
                if let Some(tracked) = self.units.get_mut(&path) {
                    tracked.looks = tracked.looks.saturating_add(1);
                }
            }
            found.push(listed);
        }
        self.share();
        Ok(found)
    }

    /// Tells of a unit that is not as it was told to be.
    fn settle(&mut self, path: &str) {
        if let Some(tracked) = self.units.get_mut(path)
            && let Some(change) = tracked.change(true)
        {
            self.changed_to(change);
        }
    }

    fn changed_to(&self, change: StateChange) {
        self.tell(EventKind::Changed(Box::new(change)));
        self.follower.poke();
    }

    fn changed(&mut self, session: &Session, path: &str, message: &Message) {
        let Some(tracked) = self.units.get_mut(path) else { return };
        let body = message.body();
        let Ok((interface, changed, _)) = body.deserialize::<(&str, HashMap<&str, Value<'_>>, Vec<&str>)>() else {
            warn!(unit = %tracked.unit, "a change that is not understood");
            return;
        };
        if interface != UNIT {
            // A service's own properties come first, its state in the next message.
            tracked.take_own(&changed);
            return;
        }
        tracked.take_common(&changed);
        // While systemd reads its files again, units seem to come and go; they are compared when it is done.
        if session.is_reloading() {
            return;
        }
        if let Some(change) = tracked.change(false) {
            self.changed_to(change);
        }
    }

    fn loaded(&mut self, session: &Session, path: &str, loaded: bool) {
        let Some(tracked) = self.units.get_mut(path) else { return };
        if session.is_reloading() || tracked.loaded == loaded {
            return;
        }
        tracked.loaded = loaded;
        let unit = tracked.unit.clone();
        self.tell(if loaded { EventKind::Appeared(unit) } else { EventKind::Gone(unit) });
    }
}

impl Tracked {
    fn new(listed: &Listed) -> Self {
        Self {
            unit: listed.unit.clone(),
            standing: listed.standing.clone(),
            result: None,
            main_exit: None,
            main_pid: None,
            restarts: None,
            invocation: None,
            job: None,
            at: None,
            loaded: listed.load != LoadState::NotFound,
            told: (listed.standing.clone(), None),
            looks: 0,
        }
    }

    fn take_own(&mut self, changed: &HashMap<&str, Value<'_>>) {
        if changed.contains_key("Result") {
            self.result = changed.result();
        }
        if changed.contains_key("ExecMainCode") {
            self.main_exit = changed.main_exit();
        }
        if changed.contains_key("MainPID") {
            self.main_pid = changed.main_pid();
        }
        if let Some(restarts) = changed.small("NRestarts") {
            self.restarts = Some(restarts);
        }
    }

    fn take_common(&mut self, changed: &HashMap<&str, Value<'_>>) {
        if let Some(active) = changed.text("ActiveState") {
            self.standing.active = active.into();
        }
        if let Some(sub) = changed.text("SubState") {
            self.standing.sub = sub;
        }
        if changed.contains_key("Job") {
            self.job = changed.job();
        }
        if let Some(invocation) = changed.invocation("InvocationID") {
            self.invocation = Some(invocation);
        }
        if let Some(at) = changed.moment("StateChangeTimestampMonotonic") {
            self.at = Some(at);
        }
    }

    fn look(&mut self, what: Look, message: &Message) {
        let body = message.body();
        let Ok(value) = body.deserialize::<Value<'_>>() else { return };
        let Ok(value) = OwnedValue::try_from(value) else { return };
        let one = HashMap::from([("it".to_owned(), value)]);
        match what {
            Look::Invocation => self.invocation = one.invocation("it").or(self.invocation),
            Look::Result => self.result = one.text("it").map(RunResult::from),
            Look::Restarts => self.restarts = one.small("it").or(self.restarts),
        }
    }

    /// What to tell, if it differs from what was told last.
    fn change(&mut self, found_late: bool) -> Option<StateChange> {
        let (standing, invocation) = &self.told;
        let same_run = match (invocation, &self.invocation) {
            (Some(before), Some(now)) => before == now,
            _ => true,
        };
        if *standing == self.standing {
            if same_run {
                self.told.1 = self.invocation;
                return None;
            }
            // A start gives a new run before the new state; whoever is told of that now would take the old state for the new run's.
            if self.job.is_some() && !found_late {
                return None;
            }
        }
        let told = std::mem::replace(&mut self.told, (self.standing.clone(), self.invocation));
        Some(StateChange {
            unit: self.unit.clone(),
            from: Some(told.0),
            to: self.standing.clone(),
            result: self.result.clone(),
            main_exit: self.main_exit.clone(),
            invocation: self.invocation,
            restarts: self.restarts,
            main_pid: self.main_pid,
            job: self.job,
            at: self.at.filter(|_| !found_late),
            cause: None,
            found_late,
        })
    }
}

impl Session {
    /// systemd does not say when a reload fails.
    fn is_reloading(&self) -> bool {
        self.reloading.is_some_and(|since| since.elapsed() < SILENCE)
    }

    /// Whether a list to compare with is still to come.
    fn is_listing(&self) -> bool {
        let asks = self.asks.values().chain(self.later.iter().map(|(_, ask)| ask));
        asks.into_iter().any(|ask| matches!(ask, Ask::List { answer: None, .. }))
    }

    /// Asks the bus for systemd's signals and its name.
    async fn introduce(&mut self) -> zbus::Result<()> {
        for rule in RULES {
            self.ask(BUS, "/org/freedesktop/DBus", BUS, "AddMatch", &(rule,), Ask::Match).await?;
        }
        self.ask(BUS, "/org/freedesktop/DBus", BUS, "GetNameOwner", &(SYSTEMD,), Ask::Owner).await
    }

    async fn begin(&mut self, owner: String) -> zbus::Result<()> {
        self.owner = Some(owner);
        self.ask(SYSTEMD, MANAGER_PATH, MANAGER, "Subscribe", &(), Ask::Subscribe).await
    }

    async fn list(
        &mut self,
        units: Vec<UnitId>,
        answer: Option<oneshot::Sender<Result<Vec<Listed>, ManagerError>>>,
    ) -> zbus::Result<()> {
        let names: Vec<String> = units.iter().map(|unit| unit.as_str().to_owned()).collect();
        let ask = Ask::List { units, answer };
        self.ask(SYSTEMD, MANAGER_PATH, MANAGER, "ListUnitsByNames", &(names,), ask).await
    }

    async fn reference(&mut self, unit: UnitId) -> zbus::Result<()> {
        let name = unit.as_str().to_owned();
        self.ask(SYSTEMD, MANAGER_PATH, MANAGER, "RefUnit", &(name,), Ask::Reference(unit)).await
    }

    async fn unreference(&mut self, unit: UnitId) -> zbus::Result<()> {
        let name = unit.as_str().to_owned();
        self.ask(SYSTEMD, MANAGER_PATH, MANAGER, "UnrefUnit", &(name,), Ask::Reference(unit)).await
    }

    async fn look(&mut self, path: &str, what: Look, compared: bool) -> zbus::Result<()> {
        let (interface, property) = match what {
            Look::Invocation => (UNIT, "InvocationID"),
            Look::Result => (SERVICE, "Result"),
            Look::Restarts => (SERVICE, "NRestarts"),
        };
        let ask = Ask::Look { path: path.to_owned(), what, compared };
        self.ask(SYSTEMD, path, "org.freedesktop.DBus.Properties", "Get", &(interface, property), ask).await
    }

    /// Sends a call, now or in its turn; its answer comes among the signals.
    async fn ask<B>(
        &mut self,
        to: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: &B,
        ask: Ask,
    ) -> zbus::Result<()>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        let call = Message::method_call(path, member)?.destination(to)?.interface(interface)?.build(body)?;
        self.later.push_back((call, ask));
        self.send_later().await
    }

    /// Sends what may be sent now.
    async fn send_later(&mut self) -> zbus::Result<()> {
        while self.asks.len() < ASKS
            && let Some((call, ask)) = self.later.pop_front()
        {
            if self.asks.is_empty() {
                self.heard = Instant::now();
            }
            self.asks.insert(call.primary_header().serial_num(), ask);
            self.send(&call).await?;
        }
        Ok(())
    }

    async fn send(&self, call: &Message) -> zbus::Result<()> {
        match tokio::time::timeout(bus::CALL_TIMEOUT, self.connection.send(call)).await {
            Ok(sent) => sent,
            Err(_) => Err(zbus::Error::InputOutput(std::sync::Arc::new(std::io::ErrorKind::TimedOut.into()))),
        }
    }
}
