//! An update that waits: why, and when it is tried again.
//!
//! In memory only: a start of the agent tries at once. Invariant: the pauses grow, and never end the update.

use std::time::{Duration, Instant};

use skerry_shared::desired::ReportedError;

use crate::jitter::shortened;

/// The first pause: what is late by a moment is not waited for long.
const FIRST: Duration = Duration::from_secs(10);
/// The longest: whoever mends the control plane sees the fleet go on within it.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Why the update under way waits.
#[derive(Debug)]
pub(crate) struct Postponed {
    pub(crate) error: ReportedError,
    pause: Duration,
    until: Instant,
}

impl Postponed {
    /// Another try has ended; `before` is how the one before it ended, `jitter` is from 0 to 1.
    pub(crate) fn after(before: Option<&Postponed>, error: ReportedError, now: Instant, jitter: f64) -> Postponed {
        let pause = before.map_or(FIRST, |before| (before.pause * 2).min(LONGEST));
        Postponed {
            error,
            pause,
            until: now + shortened(pause, jitter),
        }
    }

    /// True when it is time to try again.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// There is a reason to try now.
    pub(crate) fn hasten(&mut self, now: Instant) {
        self.until = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> ReportedError {
        ReportedError {
            code: "expired".to_owned(),
            message: "too old".to_owned(),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_never_end() {
        let now = Instant::now();
        let mut postponed = Postponed::after(None, error(), now, 1.0);
        for seconds in [10, 20, 40, 80, 160, 320, 640, 900, 900] {
            let pause = Duration::from_secs(seconds);
            assert!(!postponed.is_due(now + pause - Duration::from_millis(1)), "{seconds}");
            assert!(postponed.is_due(now + pause), "{seconds}");
            let early = Postponed::after(Some(&postponed), error(), now, 0.0);
            assert!(early.is_due(now + (pause * 2).min(LONGEST) / 2));
            postponed = Postponed::after(Some(&postponed), error(), now, 1.0);
        }
    }

    #[test]
    fn a_reason_to_try_ends_the_pause_and_not_its_growth() {
        let now = Instant::now();
        let mut postponed = Postponed::after(None, error(), now, 1.0);
        postponed.hasten(now);
        assert!(postponed.is_due(now));
        assert!(!Postponed::after(Some(&postponed), error(), now, 1.0).is_due(now + Duration::from_secs(19)));
    }
}
