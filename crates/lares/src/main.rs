//! The `lares` command.

fn main() {}
