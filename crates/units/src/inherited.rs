//! What a supervisor was started with and its units must not inherit.

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

/// Sees to it that units can be stopped with these signals.
///
/// A signal that is ignored when a program starts stays ignored, and a shell cannot even trap it then; shells and
/// `nohup` start what runs in the background with SIGINT ignored. A handler that does nothing is the same to this
/// process, and is not handed on: the units get the default.
pub(crate) fn unignore(signals: impl IntoIterator<Item = Signal>) {
    let ignored = ignored();
    for wanted in signals {
        if ignored & mask(wanted) == 0 {
            continue;
        }
        // The handler stays for as long as the process; what comes in is dropped, as before.
        if let Err(error) = signal(SignalKind::from_raw(wanted as i32)) {
            warn!(signal = wanted.as_str(), %error, "units inherit that this signal is ignored");
        }
    }
}

fn mask(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// The signals this process ignores, as Linux shows them in `/proc/self/status` (`SigIgn`, hexadecimal).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    field.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
