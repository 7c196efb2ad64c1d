//! The clocks, read here and nowhere else.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::moment::{Moment, Now};

/// Tells the machine's boots apart.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn read(clock: ClockId) -> Duration {
    // Both clocks exist wherever Linux runs; a clock that cannot be read stands still.
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Now, with fresh random bits.
pub(crate) fn now() -> Now {
    let moment = Moment::from_millis(millis(read(ClockId::CLOCK_BOOTTIME)));
    Now { moment, wall: Timestamp::now(), random: rand::random() }
}

/// What a stamp of the service manager, on `CLOCK_MONOTONIC`, is on the clock of [`Moment`], and how long ago it was.
pub(crate) fn stamped(monotonic: Duration) -> (Moment, Duration) {
    let ago = read(ClockId::CLOCK_MONOTONIC).saturating_sub(monotonic);
    (Moment::from_millis(millis(read(ClockId::CLOCK_BOOTTIME).saturating_sub(ago))), ago)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The id of this boot; nil where the kernel does not say.
pub(crate) fn boot() -> Uuid {
    std::fs::read_to_string(BOOT_ID).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_now_is_now() {
        let (moment, ago) = stamped(read(ClockId::CLOCK_MONOTONIC));
        assert!(ago < Duration::from_millis(100));
        assert!(now().moment.since(moment) < Duration::from_millis(200));
        assert!(!boot().is_nil());
    }
}
