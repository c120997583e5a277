//! The wants that wait for their answer: a device after the other, one want at a turn.
//!
//! Invariant: a device that floods fills its own few places and delays the others by its turn only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use skerry_shared::id::DeviceId;
use tokio::sync::Notify;

use super::outbox::ConnectionId;

/// Wants of one device that may wait. An agent has at most 8 parts under way, each in a want of its own at worst.
const PER_DEVICE: usize = 16;
/// Wants of all devices that may wait, each at most 4 KiB.
const IN_ALL: usize = 4096;

/// A want as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) device: DeviceId,
    /// Over which connection.
    pub(super) connection: ConnectionId,
    pub(super) payload: Bytes,
}

/// The queue; one task answers.
#[derive(Default)]
pub(super) struct Wants {
    turns: Mutex<Turns>,
    came: Notify,
}

#[derive(Default)]
struct Turns {
    waiting: HashMap<DeviceId, VecDeque<Waiting>>,
    /// Each device that waits, once.
    order: VecDeque<DeviceId>,
    count: usize,
}

impl Wants {
    /// Queues a want; false when there is no place for it, and the device will ask again.
    pub(super) fn push(&self, want: Waiting) -> bool {
        let queued = self.turns().push(want);
        self.came.notify_one();
        queued
    }

    /// The next want, when there is one. Cancel-safe.
    pub(super) async fn next(&self) -> Waiting {
        loop {
            let next = self.turns().pop();
            match next {
                Some(want) => return want,
                None => self.came.notified().await,
            }
        }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Nothing in between can panic but an allocation.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    fn push(&mut self, want: Waiting) -> bool {
        let of_device = self.waiting.get(&want.device).map_or(0, VecDeque::len);
        if of_device >= PER_DEVICE || self.count >= IN_ALL {
            return false;
        }
        if of_device == 0 {
            self.order.push_back(want.device.clone());
        }
        self.count += 1;
        self.waiting.entry(want.device.clone()).or_default().push_back(want);
        true
    }

    fn pop(&mut self) -> Option<Waiting> {
        let device = self.order.pop_front()?;
        let wants = self.waiting.get_mut(&device)?;
        let want = wants.pop_front()?;
        self.count -= 1;
        if wants.is_empty() {
            self.waiting.remove(&device);
        } else {
            self.order.push_back(device);
        }
        Some(want)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn want(device: &str, number: u8) -> Waiting {
        Waiting {
            device: device.parse().unwrap(),
            connection: ConnectionId::default(),
            payload: Bytes::copy_from_slice(&[number]),
        }
    }

    #[tokio::test]
    async fn a_flooding_device_delays_the_others_by_one_turn() {
        let wants = Wants::default();
        let accepted = (0..100).filter(|number| wants.push(want("flood", *number))).count();
        assert_eq!(accepted, PER_DEVICE);
        assert!(wants.push(want("a", 0)));
        assert!(wants.push(want("b", 0)));
        assert!(wants.push(want("a", 1)));
        let expected = [("flood", 0), ("a", 0), ("b", 0), ("flood", 1), ("a", 1), ("flood", 2)];
        for (device, number) in expected {
            assert_eq!(wants.next().await, want(device, number));
        }
        assert!(wants.push(want("flood", 100)));
    }

    #[test]
    fn all_devices_together_are_bounded() {
        let wants = Wants::default();
        let accepted = (0..IN_ALL + 5).filter(|n| wants.push(want(&format!("d-{n}"), 0)));
        assert_eq!(accepted.count(), IN_ALL);
        while wants.turns().pop().is_some() {}
        assert_eq!(wants.turns().count, 0);
        assert!(wants.turns().waiting.is_empty());
    }
}
