//! Randomness for pauses, so that a fleet that broke off at once does not come back at once.

/// From 0 to 1.
pub(crate) fn jitter() -> f64 {
    let mut byte = [128];
    // Without randomness there is no jitter, which harms nobody.
    let _ = getrandom::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
