//! Home directories of servers that stay when a program is started again, so that `npx` need not fetch everything anew.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::api::Source;
use crate::registry::Server;

/// Digits of the fingerprint in the name of a directory.
const DIGITS: usize = 16;

/// The directory that holds them.
#[derive(Debug)]
pub(super) struct Homes(PathBuf);

impl Homes {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// The home directory of this name.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes all but these. A program that is about to end may write into one once more; the next round has that.
    pub(super) async fn sweep(&self, stay: &BTreeSet<String>) {
        let Ok(mut entries) = tokio::fs::read_dir(&self.0).await else { return };
        let mut gone = Vec::new();
        while let Ok(Some(entry)) = entries.next_entry().await {
            if !entry.file_name().to_str().is_some_and(|name| stay.contains(name)) {
                gone.push(entry.path());
            }
        }
        if gone.is_empty() {
            return;
        }
        tracing::info!(directories = gone.len(), "home directories of tool servers that are not used are removed");
        // It may take long, and nothing waits for it.
        drop(tokio::task::spawn_blocking(move || gone.iter().for_each(|home| lares_sandbox::remove(home))));
    }
}

/// The name of a server's home directory; `None`: nobody approved it. What another program left behind under the same
/// name is not given to the one that took its place: one that was found has a home for each fingerprint.
pub(super) fn home_of(server: &Server) -> Option<String> {
    let approved = server.approved_fingerprint.as_deref()?;
    Some(match server.source {
        Source::Configuration => server.name.to_string(),
        // No name of a server has an `@` in it.
        Source::ClientFile | Source::Port | Source::Unit => {
            format!("{}@{}", server.name, approved.get(..DIGITS).unwrap_or(approved))
        }
    })
}
