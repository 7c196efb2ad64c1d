//! The helper itself: takes connections, asks whether what is wanted may be done, does it, and writes it down.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lares_config::{Config, Healer};
use lares_units::port::UnitId;
use listenfd::ListenFd;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::bus::{Bus, Machine};
use super::generation::Profiles;
use super::process;
use super::{Answer, LINE, Obstacle, Verb, dropin, rules};
use crate::observe::process as proc;

/// It leaves after so long without a connection; systemd starts it again with the next.
const IDLE: Duration = Duration::from_secs(30);
/// Connections at once; more wait.
const CONNECTIONS: usize = 16;
/// Longest wait for a request, and for a caller to take its answer.
const CALLER: Duration = Duration::from_secs(10);
/// Longest that one request takes; below the caller's patience, so that it hears why.
const REQUEST: Duration = Duration::from_secs(9);
/// Pause after a connection could not be taken.
const AGAIN: Duration = Duration::from_millis(100);
/// Most of a request that made no sense that is written down, in characters.
const SHOWN: usize = 200;

/// Why the helper does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// systemd did not hand it a socket.
    #[error("this is started by systemd together with its socket: `systemctl start lares-healer-helper.socket`{}",
            .0.as_ref().map(|error| format!(" ({error})")).unwrap_or_default())]
    NotActivated(Option<io::Error>),
    /// It is no use as another user.
    #[error("the helper does what takes root, and runs as another user")]
    NotRoot,
    /// The socket is of no use.
    #[error("the socket cannot be listened on: {0}")]
    Socket(#[source] io::Error),
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) pid: i32,
    pub(super) uid: u32,
    /// When that process was started: with the id it names one process.
    pub(super) started: u64,
}

impl Peer {
    /// The process that opened the connection.
    fn of(stream: &UnixStream) -> Result<Self, String> {
        let credentials = stream.peer_cred().map_err(|error| format!("who connects cannot be told: {error}"))?;
        let pid = credentials.pid().ok_or("who connects cannot be told")?;
        let started = proc::started(pid).ok_or("who connected has ended")?;
        Ok(Self { pid, uid: credentials.uid(), started })
    }

    /// Whether that process still lives, so that what was found out under its id was about it.
    fn is_there(&self) -> bool {
        proc::started(self.pid) == Some(self.started)
    }
}

/// Serves the socket that systemd handed over, until nobody has asked for 30 s or `shutdown`.
///
/// # Errors
/// When systemd did not hand over a socket, or this is not root.
pub async fn serve(config: Arc<Config>, shutdown: CancellationToken) -> Result<(), ServeError> {
    let activated = ListenFd::from_env().take_unix_listener(0);
    let listener = activated.map_err(|error| ServeError::NotActivated(Some(error)))?;
    let listener = listener.ok_or(ServeError::NotActivated(None))?;
    if !nix::unistd::geteuid().is_root() {
        return Err(ServeError::NotRoot);
    }
    let helper = Helper {
        healer: config.healer.clone(),
        machine: Bus,
        drop_ins: dropin::RUNTIME.into(),
        profiles: Profiles::default(),
        changing: Mutex::new(()),
    };
    listen(Arc::new(helper), listener, IDLE, shutdown).await
}

async fn listen<M: Machine>(
    helper: Arc<Helper<M>>,
    listener: StdUnixListener,
    idle: Duration,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true).map_err(ServeError::Socket)?;
    let listener = UnixListener::from_std(listener).map_err(ServeError::Socket)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            () = sleep(idle), if connections.is_empty() => break,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(attend(Arc::clone(&helper), stream));
                }
                Err(error) => {
                    warn!(%error, "a connection could not be taken");
                    sleep(AGAIN).await;
                }
            },
        }
    }
    // What was begun is brought to its end; nothing new comes in.
    let _ = timeout(REQUEST, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

/// One caller, until it has no more requests.
async fn attend<M: Machine>(helper: Arc<Helper<M>>, mut stream: UnixStream) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(reason) => {
            warn!(outcome = "not_allowed", reason, "a caller of the helper is turned away");
            return;
        }
    };
    let (receiver, mut sender) = stream.split();
    let mut receiver = BufReader::new(receiver);
    // Nobody, a caller that says nothing, and one whose line has no end are all the end.
    while let Ok(Ok(Some(line))) = timeout(CALLER, read_line(&mut receiver)).await {
        let answer = helper.answer(&peer, &line).await;
        let Ok(mut text) = serde_json::to_vec(&answer) else { return };
        text.push(b'\n');
        let told = timeout(CALLER, sender.write_all(&text)).await;
        if !matches!(told, Ok(Ok(()))) || !line.ends_with(b"\n") {
            return;
        }
    }
}

/// A line with its end, or as much of it as a line may have; none: there are no more.
async fn read_line(receiver: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    receiver.take(LINE).read_until(b'\n', &mut line).await?;
    Ok((!line.is_empty()).then_some(line))
}

#[derive(Debug)]
struct Helper<M> {
    healer: Healer,
    machine: M,
    /// Where runtime drop-ins are.
    drop_ins: PathBuf,
    profiles: Profiles,
    /// Held while something is looked at and then changed.
    changing: Mutex<()>,
}

impl<M: Machine> Helper<M> {
    /// Carries out what a line asks for, and writes it down whatever comes of it.
    async fn answer(&self, peer: &Peer, line: &[u8]) -> Answer {
        let verb = match serde_json::from_slice::<Verb>(line) {
            Ok(verb) if line.ends_with(b"\n") => verb,
            read => {
                let why = match read {
                    Ok(_) => "the line has no end".to_owned(),
                    Err(error) => error.to_string(),
                };
                let reason: String = why.escape_debug().take(SHOWN).collect();
                let (uid, pid) = (peer.uid, peer.pid);
                warn!(verb = "unknown", uid, pid, outcome = "refused", reason, "helper: refused: {reason}");
                return Answer::Refused { reason };
            }
        };
        let done = timeout(REQUEST, self.carry_out(peer, &verb)).await;
        let done = done.unwrap_or_else(|_| Err(Obstacle::Failed(format!("not within {} s", REQUEST.as_secs()))));
        let answer = done.unwrap_or_else(Answer::from);
        write_down(peer, &verb, &answer);
        answer
    }

    async fn carry_out(&self, peer: &Peer, verb: &Verb) -> Result<Answer, Obstacle> {
        // root could do without the helper.
        if peer.uid != 0 {
            self.machine.allowed(peer, verb).await?;
            if !peer.is_there() {
                return Err(Obstacle::NotAllowed("who asked has ended".to_owned()));
            }
        }
        match verb {
            Verb::Holder { unit, port } => return self.holder(unit, *port).await,
            Verb::EndProcess { unit, pid, started } => self.end_process(unit, *pid, *started).await?,
            Verb::SetMemoryMax { unit, bytes } => self.set_memory_max(unit, *bytes).await?,
            Verb::SetPort { unit, to } => self.set_port(unit, *to).await?,
            Verb::RollBack { to } => self.roll_back(*to).await?,
        }
        Ok(Answer::Done)
    }

    async fn holder(&self, unit: &UnitId, port: u16) -> Result<Answer, Obstacle> {
        rules::named(&self.healer, unit)?;
        let main = self.machine.unit(unit).await?.main;
        let name = unit.to_string();
        let holder = blocking(move || proc::holder(port, &name, main)).await?;
        Ok(Answer::Holder { holder })
    }

    async fn end_process(&self, unit: &UnitId, pid: i32, started: u64) -> Result<(), Obstacle> {
        rules::named(&self.healer, unit)?;
        // Held first: what is read of it afterwards is of this one, or of none.
        let held = process::hold(pid)?;
        let gone = || Obstacle::Refused(format!("process {pid} has ended already"));
        let held = held.ok_or_else(gone)?;
        let process = self.machine.process(pid).ok_or_else(gone)?;
        let now = self.machine.unit(unit).await?;
        rules::end(unit, &process, started, &now)?;
        let ended = spawn_blocking(move || process::end(&held)).await;
        let signal = ended.map_err(|error| Obstacle::Failed(error.to_string()))??;
        info!(unit = %unit, pid, signal, "a process of an earlier run was ended");
        Ok(())
    }

    async fn set_memory_max(&self, unit: &UnitId, bytes: u64) -> Result<(), Obstacle> {
        let named = rules::named(&self.healer, unit)?;
        let _alone = self.changing.lock().await;
        rules::memory(named, unit, bytes, &self.machine.unit(unit).await?)?;
        self.machine.set_memory_max(unit, bytes).await
    }

    async fn set_port(&self, unit: &UnitId, to: u16) -> Result<(), Obstacle> {
        let mut files = rules::port(&self.healer, unit, to)?;
        let _alone = self.changing.lock().await;
        rules::there(unit, &self.machine.unit(unit).await?)?;
        let mut told = files.split_off(1);
        for file in told.drain(..) {
            // A unit that is configured here and not installed need not know.
            if self.machine.unit(&id(&file.unit)?).await?.loaded {
                files.push(file);
            }
        }
        let (root, written) = (self.drop_ins.clone(), files.clone());
        blocking(move || dropin::write(&root, &written)).await?;
        let counts = match self.machine.reload().await {
            Ok(()) => self.counts(&files).await,
            failed => failed,
        };
        if counts.is_err() {
            let root = self.drop_ins.clone();
            let removed = spawn_blocking(move || dropin::remove(&root, &files)).await;
            // What cannot be undone is told of by the first failure.
            let _ = (removed, self.machine.reload().await);
        }
        counts
    }

    /// Whether systemd took the variables: a drop-in with a later name may set the same ones.
    async fn counts(&self, files: &[dropin::DropIn]) -> Result<(), Obstacle> {
        for file in files {
            let wanted = file.assignment();
            if !self.machine.unit(&id(&file.unit)?).await?.environment.contains(&wanted) {
                return Err(Obstacle::Failed(format!(
                    "{wanted} does not count for {}: another drop-in of it sets {} too; `systemctl cat {}` shows which",
                    file.unit, file.variable, file.unit
                )));
            }
        }
        Ok(())
    }

    async fn roll_back(&self, to: u64) -> Result<(), Obstacle> {
        let _alone = self.changing.lock().await;
        let profiles = self.profiles.clone();
        let commands = spawn_blocking(move || profiles.way_back(to)).await;
        let commands = commands.map_err(|error| Obstacle::Failed(error.to_string()))??;
        self.machine.begin(&commands).await
    }
}

/// Does what waits for files, where nothing else waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Obstacle> {
    let failed = |error: String| Obstacle::Failed(error);
    spawn_blocking(work).await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
}

/// A name of the configuration, which was looked at when it was read.
fn id(unit: &str) -> Result<UnitId, Obstacle> {
    UnitId::new(unit).map_err(|error| Obstacle::Refused(error.to_string()))
}

/// One record of the journal a call.
fn write_down(peer: &Peer, verb: &Verb, answer: &Answer) {
    let unit = verb.unit().map_or("", UnitId::as_str);
    let arguments = serde_json::to_string(verb).unwrap_or_default();
    let (verb, uid, pid) = (verb.name(), peer.uid, peer.pid);
    match answer {
        Answer::Done | Answer::Holder { .. } => {
            info!(verb, unit, arguments, uid, pid, outcome = "done", "helper: done: {arguments}");
        }
        Answer::NotAllowed { reason } | Answer::Refused { reason } | Answer::Failed { reason } => {
            let outcome = answer.name();
            warn!(verb, unit, arguments, uid, pid, outcome, reason, "helper: {outcome}: {arguments}: {reason}");
        }
    }
}

#[cfg(test)]
mod tests;
