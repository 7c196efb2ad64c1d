//! When a server that failed is tried again.

use std::time::Duration;

/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// A rest doubles up to so many times: 32 times the first.
const MOST_DOUBLINGS: u32 = 5;

/// How long to wait now, before chance is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// It is tried again soon.
    Soon(Duration),
    /// The circuit is open: it is left alone, and then tried once.
    Rest(Duration),
}

/// Failures in a row, and what follows from them.
#[derive(Debug)]
pub(super) struct Breaker {
    after: u32,
    open: Duration,
    failures: u32,
    rests: u32,
}

impl Breaker {
    /// Opens after `after` failures, for `open` at first.
    pub(super) fn new(after: u32, open: Duration) -> Self {
        Self { after: after.max(1), open, failures: 0, rests: 0 }
    }

    /// It works.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.rests) = (0, 0);
    }

    /// It does not.
    pub(super) fn failed(&mut self) -> Wait {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.after {
            let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.failures - 1));
            return Wait::Soon(wait.min(self.open.max(FIRST_WAIT)));
        }
        let wait = self.open.saturating_mul(2_u32.pow(self.rests.min(MOST_DOUBLINGS)));
        self.rests = self.rests.saturating_add(1);
        Wait::Rest(wait)
    }
}

/// `wait` give or take a quarter, so that servers which failed together are not tried together.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.75 + rand::random::<f64>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_then_the_circuit_opens_and_rests_double_up_to_32_times() {
        let second = Duration::from_secs(1);
        let mut breaker = Breaker::new(3, second);
        assert_eq!(breaker.failed(), Wait::Soon(FIRST_WAIT));
        assert_eq!(breaker.failed(), Wait::Soon(FIRST_WAIT * 2));
        for times in [1, 2, 4, 8, 16, 32, 32, 32] {
            assert_eq!(breaker.failed(), Wait::Rest(second * times));
        }
        breaker.succeeded();
        assert_eq!(breaker.failed(), Wait::Soon(FIRST_WAIT));
    }

    #[test]
    fn a_wait_never_overflows_and_chance_changes_it_by_a_quarter_at_most() {
        let mut breaker = Breaker::new(u32::MAX, Duration::MAX);
        for _ in 0..100 {
            assert!(matches!(breaker.failed(), Wait::Soon(wait) if wait >= FIRST_WAIT));
        }
        for _ in 0..1000 {
            let wait = jittered(Duration::from_secs(4));
            assert!((Duration::from_secs(3)..=Duration::from_secs(5)).contains(&wait), "{wait:?}");
        }
    }
}
