//! A configuration file: read, or refused with problems that name their keys.
#![no_main]

use std::io::Write;

use lares_config::Sources;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    if let Err(error) = sources.load() {
        assert!(!error.to_string().is_empty());
    }
});
