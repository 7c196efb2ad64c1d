//! What systemd is told about a daemon: ready when its `/health` answers, alive while it does.
//!
//! The daemon is asked the way its clients ask it, so one that hangs, and not only one that ended, is noticed by
//! systemd's watchdog and started again.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often a daemon that is starting is asked.
const STARTING: Duration = Duration::from_millis(50);
/// How often a running one is asked at least. Shorter than a daemon keeps an idle connection, so that the same one is
/// used all the time: a daemon whose connections are all taken is busy, not dead.
const RUNNING: Duration = Duration::from_secs(5);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Variables of the notification protocol. Children do not get them: what they said would not be believed.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Tells systemd about the daemon behind this `/health` until `shutdown`. Returns at once where nobody listens.
pub async fn attend(health: String, shutdown: CancellationToken) {
    let client = match reqwest::Client::builder().no_proxy().pool_idle_timeout(None).build() {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "systemd is not told how this daemon is"),
    };
    attend_by(|| ask(client.clone(), health.clone()), shutdown).await;
}

/// Tells systemd about the daemon that gives this sign of life until `shutdown`. Returns at once where nobody listens.
pub async fn attend_by<F: Future<Output = Result<(), String>>>(sign: impl Fn() -> F, shutdown: CancellationToken) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let told = shutdown.run_until_cancelled(follow(sign, sd_notify::watchdog_enabled())).await;
    if told.is_none() {
        tell(&[NotifyState::Stopping]);
    }
}

async fn follow<F: Future<Output = Result<(), String>>>(sign: impl Fn() -> F, watchdog: Option<Duration>) {
    let sign = || async {
        let answer = timeout(ANSWER, sign()).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
    };
    let began = Instant::now();
    while let Err(why) = sign().await {
        tracing::trace!(why, "not ready yet");
        sleep(STARTING).await;
    }
    let status = format!("ready after {:.1} s", began.elapsed().as_secs_f64());
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    let Some(watchdog) = watchdog else { return };
    let pause = (watchdog / 3).min(RUNNING);
    loop {
        sleep(pause).await;
        match sign().await {
            Ok(()) => tell(&[NotifyState::Watchdog]),
            Err(why) => tracing::warn!(why, "this daemon does not answer itself"),
        }
    }
}

async fn ask(client: reqwest::Client, health: String) -> Result<(), String> {
    let asked = async {
        let response = client.get(&health).send().await?.error_for_status()?;
        // Read to the end: only then is the connection used again.
        response.bytes().await
    };
    asked.await.map(drop).map_err(|error| format!("{health}: {}", lares_gate::chain(&error)))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
