//! When a device is told its desired state again.
//!
//! A PUBACK is the broker's word, not the device's. A device whose report is behind has missed what was published, or has not
//! read it yet. Invariant: however often it reports, it is told again at most once in [`AGAIN_AFTER`].

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use skerry_shared::id::DeviceId;

/// Longer than a message and a report are under way, so that a report that crossed the message repeats nothing. A device that
/// refuses what it is told says so at once, which is within this time: the two do not drive each other.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// When each device was last told; only devices that have a desired state are here.
#[derive(Default)]
pub(super) struct Told(Mutex<HashMap<DeviceId, Instant>>);

impl Told {
    /// Notes that a device's desired state goes to the broker.
    pub(super) fn note(&self, device: &DeviceId, now: Instant) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.insert(device.clone(), now);
    }

    /// True when a device that is behind should be told again. One that was never told will be told anyway.
    pub(super) fn is_due(&self, device: &DeviceId, now: Instant) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(device)
            .is_some_and(|at| now.saturating_duration_since(*at) >= AGAIN_AFTER)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reports_that_cross_a_message_do_not_repeat_it() {
        let (told, start) = (Told::default(), Instant::now());
        let device = "d-1".parse().unwrap();
        assert!(!told.is_due(&device, start));
        told.note(&device, start);
        assert!(!told.is_due(&device, start));
        assert!(!told.is_due(&device, start + AGAIN_AFTER - Duration::from_millis(1)));
        assert!(told.is_due(&device, start + AGAIN_AFTER));
        told.note(&device, start + AGAIN_AFTER);
        assert!(!told.is_due(&device, start + AGAIN_AFTER));
    }
}
