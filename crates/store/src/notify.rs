//! LISTEN/NOTIFY over a connection of its own that comes back when it is lost.
//!
//! PostgreSQL forgets what was announced while nobody listened, so after every gap there is an [`Item::Resync`]: read
//! the tables again, what you know may be old.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connect::jittered;
use crate::error::describe;
use crate::{Error, Result};

/// Notifications kept for a reader that is busy; when there are more they are dropped and a Resync takes their place.
const QUEUE: usize = 1024;
/// First wait before connecting again; it doubles up to [`RECONNECT_MAX`].
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// One announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// The channel it came on.
    pub channel: String,
    /// What was said.
    pub payload: String,
}

/// What [`Notifications::recv`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Somebody announced something.
    Notification(Notification),
    /// Announcements may have been missed (the connection was lost, or the reader was too slow): read again.
    Resync,
}

/// The receiving end. Dropping it closes the connection.
#[derive(Debug)]
pub struct Notifications {
    items: mpsc::Receiver<Item>,
    overflowed: Arc<AtomicBool>,
    _stop: DropGuard,
}

type Wire = Connection<Socket, NoTlsStream>;

impl Notifications {
    pub(crate) async fn open(settings: &Config, connect_timeout: Duration, channels: &[&str]) -> Result<Self> {
        let listen: String =
            channels.iter().map(|channel| format!("LISTEN \"{}\";", channel.replace('"', "\"\""))).collect();
        let (sender, items) = mpsc::channel(QUEUE);
        let overflowed = Arc::new(AtomicBool::new(false));
        let stop = CancellationToken::new();
        let mut listener =
            Listener { settings: settings.clone(), connect_timeout, listen, sender, overflowed: overflowed.clone() };
        let connected = listener.connect().await?;
        let stopped = stop.clone();
        tokio::spawn(async move {
            stopped.run_until_cancelled(listener.run(connected)).await;
        });
        Ok(Self { items, overflowed, _stop: stop.drop_guard() })
    }

    /// The next item. Waits as long as it takes, also over lost connections; may be dropped and called again at any
    /// await point. `None` only when the runtime is going down.
    pub async fn recv(&mut self) -> Option<Item> {
        if self.overflowed.swap(false, Ordering::AcqRel) {
            return Some(Item::Resync);
        }
        self.items.recv().await
    }
}

struct Listener {
    settings: Config,
    connect_timeout: Duration,
    listen: String,
    sender: mpsc::Sender<Item>,
    overflowed: Arc<AtomicBool>,
}

impl Listener {
    /// A connection that listens. Notifications that come while LISTEN is under way are delivered.
    async fn connect(&mut self) -> Result<(Client, Wire)> {
        let attempt = async {
            let (client, mut wire) = self.settings.connect(NoTls).await?;
            {
                let listening = client.batch_execute(&self.listen);
                tokio::pin!(listening);
                loop {
                    tokio::select! {
                        done = &mut listening => { done?; break; }
                        message = poll_fn(|cx| wire.poll_message(cx)) => match message {
                            Some(message) => self.deliver(message?),
                            None => return Err(Error::Unavailable("the connection closed".to_owned())),
                        },
                    }
                }
            }
            Ok((client, wire))
        };
        timeout(self.connect_timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(Error::Unavailable("no answer within store.connect_timeout".to_owned())))
    }

    /// Reads until the connection breaks, connects again, for ever; the caller ends it.
    async fn run(mut self, mut connected: (Client, Wire)) {
        loop {
            let (client, mut wire) = connected;
            let why = loop {
                match poll_fn(|cx| wire.poll_message(cx)).await {
                    Some(Ok(message)) => self.deliver(message),
                    Some(Err(e)) => break describe(&e),
                    None => break "the connection closed".to_owned(),
                }
            };
            drop((client, wire));
            tracing::warn!(why, "lost the connection that waits for notifications, connecting again");
            let mut delay = RECONNECT_MIN;
            connected = loop {
                sleep(jittered(delay)).await;
                delay = (delay * 2).min(RECONNECT_MAX);
                match self.connect().await {
                    Ok(connected) => break connected,
                    Err(e) => tracing::debug!(error = %e, "still no connection for notifications"),
                }
            };
            self.send(Item::Resync);
        }
    }

    fn deliver(&self, message: AsyncMessage) {
        match message {
            AsyncMessage::Notification(n) => self.send(Item::Notification(Notification {
                channel: n.channel().to_owned(),
                payload: n.payload().to_owned(),
            })),
            AsyncMessage::Notice(notice) => tracing::debug!(message = notice.message(), "notice from PostgreSQL"),
            _ => {}
        }
    }

    fn send(&self, item: Item) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(item) {
            self.overflowed.store(true, Ordering::Release);
        }
    }
}
