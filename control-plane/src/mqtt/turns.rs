//! What devices have sent and what waits for its handler: a device after the other, one message at a turn.
//!
//! Invariant: a device that floods fills its own few places, pushes out its own oldest messages, and delays the others by its turn
//! only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use skerry_shared::id::DeviceId;
use tokio::sync::Notify;

/// How many messages may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Of one device.
    pub(super) per_device: usize,
    /// Of all devices.
    pub(super) in_all: usize,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits.
    Queued,
    /// It waits in the place of the oldest one of its device: the newest counts.
    InsteadOfOldest,
    /// All places are taken by others.
    Refused,
}

/// A queue with one reader.
pub(super) struct Turns<T> {
    places: Places,
    waiting: Mutex<Waiting<T>>,
    came: Notify,
}

struct Waiting<T> {
    by_device: HashMap<DeviceId, VecDeque<T>>,
    /// Each device that waits, once.
    order: VecDeque<DeviceId>,
    count: usize,
}

impl<T> Turns<T> {
    pub(super) fn new(places: Places) -> Turns<T> {
        Turns {
            places,
            waiting: Mutex::new(Waiting {
                by_device: HashMap::new(),
                order: VecDeque::new(),
                count: 0,
            }),
            came: Notify::new(),
        }
    }

    /// Queues a message.
    pub(super) fn push(&self, device: DeviceId, message: T) -> Pushed {
        let pushed = self.waiting().push(self.places, device, message);
        self.came.notify_one();
        pushed
    }

    /// The next message, when there is one. Cancel-safe.
    pub(super) async fn next(&self) -> (DeviceId, T) {
        loop {
            let next = self.waiting().pop();
            match next {
                Some(message) => return message,
                None => self.came.notified().await,
            }
        }
    }

    /// At least one message, and at most so many as wait. Cancel-safe.
    pub(super) async fn next_many(&self, max: usize) -> Vec<(DeviceId, T)> {
        loop {
            let many = self.waiting().pop_many(max);
            match many.is_empty() {
                false => return many,
                true => self.came.notified().await,
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<T>> {
        // Nothing in between can panic but an allocation.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    fn push(&mut self, places: Places, device: DeviceId, message: T) -> Pushed {
        let own = self.by_device.get(&device).map_or(0, VecDeque::len);
        let full = own >= places.per_device || self.count >= places.in_all;
        if full && own == 0 {
            return Pushed::Refused;
        }
        if own == 0 {
            self.order.push_back(device.clone());
        }
        let queue = self.by_device.entry(device).or_default();
        queue.push_back(message);
        if full {
            queue.pop_front();
            return Pushed::InsteadOfOldest;
        }
        self.count += 1;
        Pushed::Queued
    }

    fn pop_many(&mut self, max: usize) -> Vec<(DeviceId, T)> {
        std::iter::from_fn(|| self.pop()).take(max).collect()
    }

    fn pop(&mut self) -> Option<(DeviceId, T)> {
        let device = self.order.pop_front()?;
        let queue = self.by_device.get_mut(&device)?;
        let message = queue.pop_front()?;
        self.count -= 1;
        if queue.is_empty() {
            self.by_device.remove(&device);
        } else {
            self.order.push_back(device.clone());
        }
        Some((device, message))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLACES: Places = Places {
        per_device: 3,
        in_all: 5,
    };

    fn id(text: &str) -> DeviceId {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_flooding_device_delays_the_others_by_one_turn_and_loses_its_own_oldest() {
        let turns = Turns::new(PLACES);
        for number in 0..100 {
            let expected = if number < 3 {
                Pushed::Queued
            } else {
                Pushed::InsteadOfOldest
            };
            assert_eq!(turns.push(id("flood"), number), expected);
        }
        assert_eq!(turns.push(id("a"), 0), Pushed::Queued);
        assert_eq!(turns.push(id("b"), 0), Pushed::Queued);
        for (device, number) in [("flood", 97), ("a", 0), ("b", 0), ("flood", 98), ("flood", 99)] {
            assert_eq!(turns.next().await, (id(device), number));
        }
        assert_eq!(turns.push(id("flood"), 100), Pushed::Queued);
    }

    #[tokio::test]
    async fn all_devices_together_are_bounded_and_every_device_is_heard() {
        let turns = Turns::new(PLACES);
        let push = |device: &str, number| turns.push(id(device), number);
        for number in 0..5 {
            assert_eq!(push(&format!("d-{number}"), 0), Pushed::Queued);
        }
        assert_eq!(push("late", 0), Pushed::Refused);
        assert_eq!(push("d-0", 1), Pushed::InsteadOfOldest);
        let many = turns.next_many(4).await;
        assert_eq!(many.len(), 4);
        assert_eq!(many[0], (id("d-0"), 1));
        assert_eq!(turns.next_many(4).await, [(id("d-4"), 0)]);
        let waiting = turns.waiting();
        assert!(waiting.count == 0 && waiting.order.is_empty() && waiting.by_device.is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_by_the_first_message() {
        let turns = Turns::new(PLACES);
        let mut next = std::pin::pin!(turns.next());
        assert!(futures_util::poll!(&mut next).is_pending());
        turns.push(id("a"), 7);
        assert_eq!(next.await, (id("a"), 7));
    }
}
