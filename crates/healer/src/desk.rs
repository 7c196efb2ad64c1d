//! Where people's requests come in and what they are shown of the units, between HTTP and the loop that heals.

use std::collections::BTreeMap;
use std::sync::Arc;

use lares_store::Store;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::api::WatchedUnit;
use crate::outlook::Outlook;

/// Orders that may wait for the loop.
pub(crate) const ORDERS: usize = 64;

/// What the HTTP handlers work with.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) store: Store,
    /// This machine, as the store knows it.
    pub(crate) host: String,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) board: watch::Receiver<Arc<Board>>,
}

/// What somebody wants of the loop.
#[derive(Debug)]
pub(crate) enum Order {
    /// Look at a unit now and heal it if something is wrong; an open incident is tried again though its circuit is open.
    Heal {
        /// Its full name.
        unit: String,
        /// Only say what would be done.
        dry_run: bool,
        /// Who wants it.
        by: String,
        /// What is wrong and what follows.
        answer: oneshot::Sender<Result<Outlook, Refusal>>,
    },
    /// Agree or disagree to what an open incident asks; agreeing to one that was handed over means another try.
    Answer {
        /// Its id.
        incident: Uuid,
        /// Whether they agree.
        approved: bool,
        /// Who.
        by: String,
        /// Whether it was taken.
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// A pause or an approval in the store has changed.
    Wishes,
    /// Give a sign of life.
    Pulse {
        /// It.
        answer: oneshot::Sender<()>,
    },
}

/// Why an order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The configuration does not name the unit.
    #[error("the configuration does not name {0}; add it to `healer.units`")]
    NotWatched(String),
    /// The incident has ended, is another machine's, or does not exist.
    #[error("there is no open incident {0} on this machine; `lares incident list --open` shows those there are")]
    NotOpen(Uuid),
    /// There is nothing to answer: a remedy is under way.
    #[error("nothing is asked: a remedy is under way; `lares incident show {0}` tells how it goes")]
    UnderWay(Uuid),
    /// The service manager did not answer.
    #[error("{0}")]
    Manager(String),
    /// Another healer has this machine; this one only waits.
    #[error("another healer acts on this machine; this one waits for it to end")]
    Standby,
}

/// All units that are watched, as they are now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board {
    /// By name.
    pub(crate) units: BTreeMap<String, WatchedUnit>,
    /// Whether this healer acts, or waits for another to end.
    pub(crate) acting: bool,
    /// Whether the service manager can be heard.
    pub(crate) hearing: bool,
    /// Entries that wait for PostgreSQL.
    pub(crate) unshipped: u64,
}
