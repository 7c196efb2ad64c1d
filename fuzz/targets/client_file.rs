//! A file of an MCP client, as JSON with comments or YAML: servers are found in it or it is named as a problem, and
//! nothing that looks like a secret is shown.
#![no_main]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lares_config::Tools;
use lares_tools::discover::{Around, FingerprintKey, Listening, ReadError, UnitFiles, look};
use libfuzzer_sys::fuzz_target;

/// A machine with nothing but this text, in every file.
struct Only(Vec<u8>);

#[async_trait::async_trait]
impl Around for Only {
    fn home(&self) -> Option<PathBuf> {
        Some("/home/eva".into())
    }

    async fn read(&self, _: &Path, limit: usize) -> Result<Vec<u8>, ReadError> {
        Ok(self.0.iter().copied().take(limit).collect())
    }

    async fn listening(&self) -> Result<Vec<Listening>, String> {
        Ok(Vec::new())
    }

    async fn speaks_mcp(&self, _: SocketAddr) -> Option<String> {
        None
    }

    async fn units(&self) -> Result<Vec<UnitFiles>, String> {
        Ok(vec![UnitFiles { name: "a@b.service".to_owned(), files: vec!["/etc/a".into()] }])
    }
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let round = runtime.block_on(look(&Tools::default(), &Only(bytes.to_owned())));
    let key = FingerprintKey::from([7; 32]);
    for found in &round.found {
        assert_eq!(found.fingerprint(&key).len(), 64);
        assert!(found.shown().is_object());
    }
});
