//! What became old: collected for a moment, then told to the sessions and streams that want to know.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::offers::{ListChange, OfferError, View};

use super::Inner;

/// How long changes are collected: a server that comes up changes many things at once.
const COLLECT: Duration = Duration::from_millis(100);
/// Most resources of one batch; with more, all that are watched count as changed.
const MAX_UPDATED: usize = 1024;

/// What changed within a moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) tools: bool,
    pub(super) resources: bool,
    pub(super) prompts: bool,
    updated: BTreeSet<String>,
    all_updated: bool,
}

impl Batch {
    /// Waits for the next changes. `None`: there will be no more.
    pub(super) async fn next(changes: &mut Receiver<ListChange>) -> Option<Self> {
        let mut batch = Self::default();
        batch.take(changes.recv().await)?;
        let until = Instant::now() + COLLECT;
        while let Ok(change) = timeout_at(until, changes.recv()).await {
            if batch.take(change).is_none() {
                break;
            }
        }
        Some(batch)
    }

    /// The resources among `watched` that changed.
    pub(super) fn updated<'a>(&self, watched: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        watched.into_iter().filter(|uri| self.all_updated || self.updated.contains(*uri)).cloned().collect()
    }

    fn take(&mut self, change: Result<ListChange, RecvError>) -> Option<()> {
        match change {
            Ok(ListChange::Tools) => self.tools = true,
            Ok(ListChange::Resources) => self.resources = true,
            Ok(ListChange::Prompts) => self.prompts = true,
            Ok(ListChange::Resource(uri)) => {
                self.updated.insert(uri);
                if self.updated.len() > MAX_UPDATED {
                    self.updated.clear();
                    self.all_updated = true;
                }
            }
            Err(RecvError::Lagged(_)) => {
                *self = Self { tools: true, resources: true, prompts: true, all_updated: true, ..Self::default() };
            }
            Err(RecvError::Closed) => return None,
        }
        Some(())
    }
}

/// Who sees a resource under its URI: the key, the toolset, the URI.
type Seen = (Uuid, Option<String>, String);

/// Resources that somebody watches, each asked for once however many watch it.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<Seen, usize>>);

impl Watches {
    fn lock(&self) -> MutexGuard<'_, HashMap<Seen, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A resource is watched as long as this is held.
pub(super) struct Watch {
    gateway: Arc<Inner>,
    view: Arc<View>,
    uri: String,
}

impl Watch {
    /// Watches a resource.
    ///
    /// # Errors
    /// When it is not there or its server fails.
    pub(super) async fn begin(gateway: &Arc<Inner>, view: &Arc<View>, uri: &str) -> Result<Self, OfferError> {
        let watch = Self { gateway: Arc::clone(gateway), view: Arc::clone(view), uri: uri.to_owned() };
        let is_first = {
            let mut watches = gateway.watches.lock();
            let count = watches.entry(watch.seen()).or_default();
            *count += 1;
            *count == 1
        };
        if is_first {
            // When this fails, dropping the watch takes it back.
            gateway.offers.watch_resource(view, uri, true).await?;
        }
        Ok(watch)
    }

    fn seen(&self) -> Seen {
        (self.view.caller.key_id, self.view.toolset.clone(), self.uri.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let seen = self.seen();
        let mut watches = self.gateway.watches.lock();
        match watches.get_mut(&seen) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                watches.remove(&seen);
                drop(watches);
                let (gateway, view, uri) = (Arc::clone(&self.gateway), Arc::clone(&self.view), self.uri.clone());
                // Outside a runtime everything ends anyway.
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move {
                        if let Err(error) = gateway.offers.watch_resource(&view, &uri, false).await {
                            tracing::debug!(%error, "a resource could not be let go");
                        }
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_of_a_moment_come_together_and_later_ones_later() {
        let (sender, mut changes) = broadcast::channel(16);
        for change in [ListChange::Tools, ListChange::Tools, ListChange::Resource("a:b".to_owned())] {
            sender.send(change).unwrap();
        }
        let first = Batch::next(&mut changes).await.unwrap();
        assert!(first.tools && !first.prompts && !first.resources);
        assert_eq!(first.updated([&"a:b".to_owned(), &"a:c".to_owned()]), ["a:b"]);
        sender.send(ListChange::Prompts).unwrap();
        let second = Batch::next(&mut changes).await.unwrap();
        assert!(second.prompts && !second.tools);
        drop(sender);
        assert_eq!(Batch::next(&mut changes).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_missed_some_takes_everything_for_changed() {
        let (sender, mut changes) = broadcast::channel(2);
        for _ in 0..9 {
            sender.send(ListChange::Prompts).unwrap();
        }
        let batch = Batch::next(&mut changes).await.unwrap();
        assert!(batch.tools && batch.resources && batch.prompts);
        assert_eq!(batch.updated([&"a:b".to_owned()]), ["a:b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn very_many_resources_are_all() {
        let (sender, mut changes) = broadcast::channel(4096);
        for n in 0..2000 {
            sender.send(ListChange::Resource(format!("a:{n}"))).unwrap();
        }
        let batch = Batch::next(&mut changes).await.unwrap();
        assert_eq!(batch.updated([&"z:z".to_owned()]), ["z:z"]);
    }
}
