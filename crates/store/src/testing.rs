//! A throw-away PostgreSQL for tests: one cluster a test process, a fresh database a call, nothing left behind.
//!
//! `initdb` runs once a machine and its result is copied, so a test waits a few tenths of a second. A keeper process
//! holds the read end of a pipe; when the test process ends, however it ends, the pipe closes, and the keeper stops
//! PostgreSQL and removes its directory. Everything here panics on failure, as tests do.
