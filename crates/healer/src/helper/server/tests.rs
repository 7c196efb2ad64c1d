#![allow(clippy::unwrap_used)]
use std::fs;
use std::process::{Child, Command};
use std::sync::Mutex as StdMutex;

use lares_config::{ByteSize, HealedUnit};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::helper::process::Process;
use crate::helper::rules::UnitNow;
use crate::helper::{Client, HelperError};

/// A machine that only remembers what it was told to do.
#[derive(Debug, Default)]
struct Pretended {
    denies: bool,
    deaf: bool,
    now: StdMutex<UnitNow>,
    done: StdMutex<Vec<String>>,
}

impl Pretended {
    fn note(&self, what: String) -> Result<(), Obstacle> {
        self.done.lock().unwrap().push(what);
        Ok(())
    }
}

impl Machine for Pretended {
    async fn allowed(&self, _: &Peer, _: &Verb) -> Result<(), Obstacle> {
        if self.denies { Err(Obstacle::NotAllowed("polkit cannot be asked".into())) } else { Ok(()) }
    }

    async fn unit(&self, _: &UnitId) -> Result<UnitNow, Obstacle> {
        Ok(self.now.lock().unwrap().clone())
    }

    fn process(&self, pid: i32) -> Option<Process> {
        // Where tests run, processes are in no unit's group.
        Some(Process { group: "/system.slice/app.service".into(), ..Process::look(pid)? })
    }

    async fn set_memory_max(&self, unit: &UnitId, bytes: u64) -> Result<(), Obstacle> {
        self.note(format!("memory {unit} {bytes}"))
    }

    async fn reload(&self) -> Result<(), Obstacle> {
        if !self.deaf {
            self.now.lock().unwrap().environment = vec!["PORT=9002".into(), "APP_PORT=9002".into()];
        }
        self.note("reload".into())
    }

    async fn begin(&self, commands: &[Vec<String>]) -> Result<(), Obstacle> {
        self.note(format!("begin {}", commands.len()))
    }
}

struct Served {
    directory: tempfile::TempDir,
    helper: Arc<Helper<Pretended>>,
    client: Client,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    fn new(machine: Pretended, idle: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let app = HealedUnit {
            memory_max: Some(ByteSize(512)),
            ports: vec![9002],
            port_variable: Some("PORT".into()),
            ..HealedUnit::default()
        };
        let mut web = HealedUnit::default();
        web.port_variables.insert("app.service".into(), "APP_PORT".into());
        let units = [("app.service".to_owned(), app), ("web.service".to_owned(), web)].into();
        let drop_ins = directory.path().join("system");
        fs::create_dir(&drop_ins).unwrap();
        let helper = Arc::new(Helper {
            healer: Healer { units, ..Healer::default() },
            machine,
            drop_ins,
            profiles: Profiles::default(),
            changing: Mutex::new(()),
        });
        let socket = directory.path().join("helper.sock");
        let listener = StdUnixListener::bind(&socket).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(listen(Arc::clone(&helper), listener, idle, shutdown.clone()));
        Self { directory, helper, client: Client::new(socket), shutdown, task }
    }

    fn healthy() -> Pretended {
        let now = UnitNow { loaded: true, memory_max: Some(256), ..UnitNow::default() };
        Pretended { now: StdMutex::new(now), ..Pretended::default() }
    }

    fn done(&self) -> Vec<String> {
        self.helper.machine.done.lock().unwrap().clone()
    }

    async fn raw(&self, bytes: &[u8]) -> Vec<Answer> {
        let mut stream = UnixStream::connect(self.directory.path().join("helper.sock")).await.unwrap();
        // The helper may end the connection before it has taken everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text).await;
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

/// A caller that is not root, so that polkit counts.
fn somebody() -> Peer {
    let pid = i32::try_from(std::process::id()).unwrap();
    Peer { pid, uid: 4711, started: proc::started(pid).unwrap() }
}

fn line(verb: &Verb) -> Vec<u8> {
    [serde_json::to_vec(verb).unwrap(), b"\n".to_vec()].concat()
}

#[tokio::test]
async fn what_is_allowed_is_done_and_what_is_not_is_refused() {
    let served = Served::new(Served::healthy(), IDLE);
    let client = &served.client;
    client.set_memory_max("app.service", 512).await.unwrap();
    client.set_port("app.service", 9002).await.unwrap();
    assert_eq!(served.done(), ["memory app.service 512", "reload"]);
    for (unit, file) in [("app", "50-lares-port.conf"), ("web", "50-lares-port-of-app.service.conf")] {
        assert!(served.helper.drop_ins.join(format!("{unit}.service.d")).join(file).is_file(), "{unit}");
    }
    let refused = [
        client.set_memory_max("app.service", 513).await,
        client.set_memory_max("web.service", 300).await,
        client.set_port("app.service", 22).await,
        client.set_port("sshd.service", 9002).await,
        client.end_process("sshd.service", 1, 0).await,
        client.end_process("app.service", 1, 0).await,
        client.set_port("no/unit", 9002).await,
        client.holder(22, "sshd.service").await.map(drop),
    ];
    for (index, outcome) in refused.iter().enumerate() {
        assert!(matches!(outcome, Err(HelperError::Refused(_))), "{index}: {outcome:?}");
    }
    assert_eq!(served.done().len(), 2, "nothing else was done");
}

#[tokio::test]
async fn who_is_not_allowed_gets_nothing_done() {
    let served = Served::new(Pretended { denies: true, ..Served::healthy() }, IDLE);
    let verbs = [
        Verb::Holder { unit: id("app.service").unwrap(), port: 9002 },
        Verb::EndProcess { unit: id("app.service").unwrap(), pid: 4, started: 0 },
        Verb::SetMemoryMax { unit: id("app.service").unwrap(), bytes: 300 },
        Verb::SetPort { unit: id("app.service").unwrap(), to: 9002 },
        Verb::RollBack { to: 1 },
    ];
    for verb in &verbs {
        let answer = served.helper.answer(&somebody(), &line(verb)).await;
        assert!(matches!(answer, Answer::NotAllowed { .. }), "{verb:?}: {answer:?}");
    }
    assert!(served.done().is_empty());
}

#[tokio::test]
async fn a_caller_that_is_gone_is_not_mistaken_for_who_has_its_id_now() {
    let served = Served::new(Served::healthy(), IDLE);
    let verb = line(&Verb::SetMemoryMax { unit: id("app.service").unwrap(), bytes: 300 });
    let gone = Peer { started: somebody().started - 1, ..somebody() };
    assert!(matches!(served.helper.answer(&gone, &verb).await, Answer::NotAllowed { .. }));
    assert_eq!(served.helper.answer(&somebody(), &verb).await, Answer::Done);
}

#[tokio::test]
async fn a_port_that_systemd_does_not_take_is_taken_back() {
    let served = Served::new(Pretended { deaf: true, ..Served::healthy() }, IDLE);
    let outcome = served.client.set_port("app.service", 9002).await;
    assert!(matches!(&outcome, Err(HelperError::Failed(why)) if why.contains("does not count")), "{outcome:?}");
    assert_eq!(served.done(), ["reload", "reload"]);
    assert_eq!(fs::read_dir(&served.helper.drop_ins).unwrap().count(), 0);
}

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_an_earlier_run_left_is_ended_and_the_main_process_is_not() {
    let served = Served::new(Served::healthy(), IDLE);
    let sleeper = Sleeper(Command::new("sleep").arg("60").env("INVOCATION_ID", "a".repeat(32)).spawn().unwrap());
    let pid = i32::try_from(sleeper.0.id()).unwrap();
    let seen = Process::look(pid).unwrap();
    let set = |change: &dyn Fn(&mut UnitNow)| {
        let mut now = served.helper.machine.now.lock().unwrap();
        now.group = "/system.slice/app.service".into();
        change(&mut now);
    };
    set(&|now| now.main = Some(u32::try_from(pid).unwrap()));
    let main = served.client.end_process("app.service", pid, seen.started).await;
    assert!(matches!(&main, Err(HelperError::Refused(why)) if why.contains("main process")), "{main:?}");
    set(&|now| now.main = Some(std::process::id()));
    let below = served.client.end_process("app.service", pid, seen.started).await;
    assert!(matches!(&below, Err(HelperError::Refused(why)) if why.contains("started by")), "{below:?}");
    set(&|now| now.main = None);
    let other = served.client.end_process("app.service", pid, seen.started + 1).await;
    assert!(matches!(&other, Err(HelperError::Refused(why)) if why.contains("not the one")), "{other:?}");
    assert!(proc::started(pid).is_some(), "it lives so far");
    served.client.end_process("app.service", pid, seen.started).await.unwrap();
    drop(sleeper);
    let again = served.client.end_process("app.service", pid, seen.started).await;
    assert!(matches!(&again, Err(HelperError::Refused(_))), "{again:?}");
}

#[tokio::test]
async fn who_listens_is_told() {
    let served = Served::new(Served::healthy(), IDLE);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let holder = served.client.holder(port, "app.service").await.unwrap().unwrap();
    assert_eq!(u32::try_from(holder.pid), Ok(std::process::id()));
    drop(socket);
    assert_eq!(served.client.holder(port, "app.service").await.unwrap(), None);
}

#[tokio::test]
async fn lines_that_make_no_sense_are_refused_and_the_next_one_is_read() {
    let served = Served::new(Served::healthy(), IDLE);
    let good = line(&Verb::SetMemoryMax { unit: id("app.service").unwrap(), bytes: 300 });
    let lines = [b"\n{\"verb\":\"exec\"}\n\xff\xfe\n".as_slice(), &good].concat();
    let answers = served.raw(&lines).await;
    let refused = |answer: &Answer| matches!(answer, Answer::Refused { .. });
    assert!(answers.len() == 4 && answers[..3].iter().all(refused), "{answers:?}");
    assert_eq!(answers[3], Answer::Done);
    // Cut short: not what somebody meant to say.
    assert!(served.raw(good.strip_suffix(b"\n").unwrap()).await.iter().all(refused));
    let endless = vec![b' '; usize::try_from(LINE).unwrap() * 4];
    assert!(served.raw(&endless).await.iter().all(refused));
    assert_eq!(served.done().len(), 1);
}

#[tokio::test]
async fn many_callers_at_once_are_all_answered() {
    let served = Served::new(Served::healthy(), IDLE);
    let quiet: Vec<_> = futures_util::future::join_all(
        (0..CONNECTIONS / 2).map(|_| UnixStream::connect(served.directory.path().join("helper.sock"))),
    )
    .await;
    let calls = (0..CONNECTIONS * 3).map(|_| served.client.set_memory_max("app.service", 300));
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert!(quiet.iter().all(Result::is_ok));
}

#[tokio::test]
async fn it_leaves_when_nobody_asks_any_more() {
    let served = Served::new(Served::healthy(), Duration::from_millis(300));
    let began = Instant::now();
    served.client.set_memory_max("app.service", 300).await.unwrap();
    timeout(Duration::from_secs(5), served.task).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    let absent = served.client.set_memory_max("app.service", 300).await;
    assert!(matches!(&absent, Err(HelperError::Absent { .. })), "{absent:?}");
    assert!(absent.unwrap_err().to_string().contains("lares-healer-helper.socket"));
}

#[tokio::test]
async fn it_ends_when_it_is_told_to() {
    let served = Served::new(Served::healthy(), IDLE);
    served.shutdown.cancel();
    timeout(Duration::from_secs(5), served.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn without_a_socket_from_systemd_it_does_not_start() {
    let refused = serve(Arc::default(), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("systemctl start lares-healer-helper.socket"), "{refused}");
}
