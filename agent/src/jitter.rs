//! Randomness for pauses, so that a fleet that broke off at once does not come back at once.

use std::time::Duration;

/// Half of a pause with `jitter` 0, all of it with 1.
pub(crate) fn shortened(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.5 + jitter / 2.0)
}

/// From 0 to 1.
pub(crate) fn jitter() -> f64 {
    let mut byte = [128];
    // Without randomness there is no jitter, which harms nobody.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
