//! Time as the core knows it: handed in, never asked for.

use std::ops::Add;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A point in time on `CLOCK_BOOTTIME`, in milliseconds since the machine started. It counts through suspension and
/// does not move when somebody sets the clock, so cooldowns are measured on it. It means nothing after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// So many milliseconds after the machine started.
    pub const fn from_millis(since_boot: u64) -> Self {
        Self(since_boot)
    }

    /// Milliseconds since the machine started.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// What the world tells the core with each input.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// What everything is measured on.
    pub moment: Moment,
    /// What people read. It may jump; nothing is decided by it.
    pub wall: Timestamp,
    /// Fresh random bits, for jitter and the id of an incident.
    pub random: u64,
}

impl Now {
    /// The random bits as a number from 0 to 1.
    pub(crate) fn jitter(&self) -> f64 {
        f64::from(u32::try_from(self.random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }
}
