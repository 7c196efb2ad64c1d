//! Who is told of changes of which resource. A server is asked once, for all callers, and let go when the last of them
//! is: what one lets go is not the others' loss.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::Desk;
use crate::definition::ServerName;
use crate::offers::{OfferError, View};

/// A key and the toolset through which it sees.
type Watcher = (Uuid, Option<String>);

/// What is watched.
#[derive(Debug, Default)]
pub(super) struct Watching {
    /// By server, each with a turn of its own: what is asked of one does not wait for another, and comes in order.
    servers: Mutex<BTreeMap<ServerName, Arc<tokio::sync::Mutex<Watched>>>>,
    /// Whose resource a watcher's URI was when it began: another server may have it by now, or none.
    places: Mutex<BTreeMap<(String, Watcher), ServerName>>,
}

/// The resources of one server, by URI.
type Watched = BTreeMap<String, Resource>;

#[derive(Debug, Default)]
struct Resource {
    watchers: BTreeSet<Watcher>,
    /// The server was asked and said yes.
    asked: bool,
}

impl Watching {
    fn of(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<Watched>> {
        Arc::clone(self.servers.lock().unwrap_or_else(PoisonError::into_inner).entry(server.clone()).or_default())
    }

    fn places(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, Watcher), ServerName>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// Has a caller told of changes of a resource.
    ///
    /// # Errors
    /// When it is not there or its server fails.
    pub(super) async fn watch(&self, view: &View, uri: &str) -> Result<(), OfferError> {
        let server = self.server_of_resource(view, uri)?;
        let watcher = (view.caller.key_id, view.toolset.clone());
        let of = self.watching.of(&server);
        let mut watched = of.lock().await;
        // Taken down before the server is asked: a caller that gives up meanwhile lets go of it all the same.
        self.watching.places().insert((uri.to_owned(), watcher.clone()), server.clone());
        let resource = watched.entry(uri.to_owned()).or_default();
        resource.watchers.insert(watcher.clone());
        if resource.asked {
            return Ok(());
        }
        match self.upstreams.watch_resource(&server, uri, true).await {
            Ok(()) => {
                resource.asked = true;
                Ok(())
            }
            Err(error) => {
                resource.watchers.remove(&watcher);
                if resource.watchers.is_empty() {
                    watched.remove(uri);
                }
                self.watching.places().remove(&(uri.to_owned(), watcher));
                Err(error.into())
            }
        }
    }

    /// Tells a caller no more; nothing happens if it was not told.
    ///
    /// # Errors
    /// When the server does not let go of it; the caller is told no more in any case.
    pub(super) async fn unwatch(&self, view: &View, uri: &str) -> Result<(), OfferError> {
        let watcher = (view.caller.key_id, view.toolset.clone());
        let place = self.watching.places().remove(&(uri.to_owned(), watcher.clone()));
        let Some(server) = place else { return Ok(()) };
        let of = self.watching.of(&server);
        let mut watched = of.lock().await;
        if let Some(resource) = watched.get_mut(uri)
            && resource.watchers.remove(&watcher)
            && resource.watchers.is_empty()
        {
            watched.remove(uri);
            self.upstreams.watch_resource(&server, uri, false).await?;
        }
        Ok(())
    }
}
