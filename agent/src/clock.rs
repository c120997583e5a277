//! The system's idea of the time. On a board without a battery it may be wrong by years: nothing that matters may rest on it
//! alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970; zero if the clock is before it.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time since 1970 by which certificates are judged.
pub(crate) fn for_certificates() -> Duration {
    since_1970()
}

/// Now, in UTC nanoseconds.
pub(crate) fn now_ns() -> u64 {
    since_1970().as_nanos() as u64
}

/// Now, in UTC milliseconds.
pub(crate) fn now_ms() -> u64 {
    since_1970().as_millis() as u64
}
