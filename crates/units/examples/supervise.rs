//! Runs commands under the supervisor until it gets SIGTERM or SIGINT, and prints what changes as JSON, one change a line.
//!
//! `supervise LOG_DIRECTORY NAME[@UID:GID]=COMMAND...`, each COMMAND a line for `sh -c`.

use std::error::Error;
use std::path::PathBuf;

use lares_units::{Credentials, FeedItem, Settings, Supervisor, UnitName, UnitSpec};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn unit(argument: &str) -> Result<UnitSpec, Box<dyn Error>> {
    let (name, command) = argument.split_once('=').ok_or("a unit is NAME[@UID:GID]=COMMAND")?;
    let (name, user) = match name.split_once('@') {
        Some((name, ids)) => (name, Some(ids.split_once(':').ok_or("a user is UID:GID")?)),
        None => (name, None),
    };
    let mut spec = UnitSpec::new(UnitName::new(name)?, "sh").args(["-c", command]);
    if let Some((uid, gid)) = user {
        spec.user = Some(Credentials { uid: uid.parse()?, gid: gid.parse()? });
    }
    Ok(spec)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let logs = PathBuf::from(arguments.next().ok_or("usage: supervise LOG_DIRECTORY NAME[@UID:GID]=COMMAND...")?);
    let specs = arguments.map(|argument| unit(&argument)).collect::<Result<Vec<_>, _>>()?;
    let shutdown = CancellationToken::new();
    let settings = Settings { units: lares_config::Units::default(), logs };
    let supervisor = Supervisor::launch(settings, specs, shutdown).await?;
    let mut changes = supervisor.changes();
    for status in supervisor.list().await {
        println!("{}", serde_json::to_string(&status)?);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(FeedItem::Item(change)) => println!("{}", serde_json::to_string(&change)?),
                Some(FeedItem::Missed(_)) => {}
                None => return Ok(()),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    supervisor.shutdown().await;
    Ok(())
}
