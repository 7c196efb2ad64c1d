//! A tool's definition as a server sends it: it is bounded, hashed and vetted, and its findings keep to their bounds.
#![no_main]

use lares_tools::definition::Definition;
use lares_tools::vetting::{MAX_EXCERPT, MAX_FINDINGS, Neighbours, vet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(definition) = serde_json::from_slice::<Definition>(bytes) else { return };
    let findings = vet(&definition, &Neighbours::default());
    assert!(findings.len() <= MAX_FINDINGS);
    // Hidden characters are written out.
    assert!(findings.iter().all(|finding| finding.excerpt.chars().count() <= MAX_EXCERPT * 12));
    assert_eq!(definition.hash(), definition.hash());
});
