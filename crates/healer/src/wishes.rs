//! Pauses, as they were known last: kept in a file for when PostgreSQL cannot be asked.

use std::path::PathBuf;

use lares_store::incidents::Pause;

/// The file.
#[derive(Debug)]
pub(crate) struct PausesFile(pub(crate) PathBuf);

impl PausesFile {
    /// What was written last. A file that cannot be read is told of and counts as none: PostgreSQL tells soon.
    pub(crate) fn read(&self) -> Vec<Pause> {
        match std::fs::read(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %self.0.display(), %error, "pauses cannot be read; they count again when PostgreSQL tells");
                Vec::new()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(path = %self.0.display(), %error, "pauses cannot be read; they count again when PostgreSQL tells");
                Vec::new()
            }
        }
    }

    /// Takes the place of what was written before, whole or not at all.
    pub(crate) fn write(&self, pauses: &[Pause]) {
        let next = self.0.with_extension("next");
        let written = serde_json::to_vec(pauses)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&next, bytes))
            .and_then(|()| std::fs::rename(&next, &self.0));
        if let Err(error) = written {
            tracing::error!(path = %self.0.display(), %error, "pauses cannot be kept for when PostgreSQL is away");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pauses_are_read_as_they_were_written_and_rubbish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = PausesFile(dir.path().join("pauses.json"));
        assert_eq!(file.read(), []);
        let pause = Pause {
            unit: "app.service".into(),
            until: None,
            by: "me".into(),
            reason: "upgrade".into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        file.write(std::slice::from_ref(&pause));
        assert_eq!(file.read(), [pause]);
        std::fs::write(&file.0, "[{").unwrap();
        assert_eq!(file.read(), []);
    }
}
