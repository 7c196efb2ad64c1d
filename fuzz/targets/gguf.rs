//! The head of a model file: whatever it says, it is read or refused, without taking memory for what is not there.
#![no_main]

use std::io::Cursor;

use lares_llama::gguf::Metadata;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Metadata::parse(Cursor::new(bytes));
});
