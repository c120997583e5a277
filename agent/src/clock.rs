//! What time it is, on a board whose own clock may be wrong by years.
//!
//! The clock has a floor: the newest time that somebody trusted has signed, plus what has passed since. The system's clock
//! counts only while it is not before the floor and not more than [`PLAUSIBLE_MS`] after it; otherwise the floor is the
//! time, and the time is not trusted. What is expired at the floor is expired for certain, so metadata is always judged by
//! [`Now::ms`]: a board without a battery neither takes what is long past nor refuses what it cannot know. One signed
//! answer to a fresh question (`time_request`) is the time itself, and alone may say that it is earlier than the floor.
//!
//! Signed times are: when the agent was built, when the newest intent was signed, and answers. TUF's timestamp has no such
//! time, only an expiry, from which nothing follows. Invariant: the time is never before the build, and never below the
//! floor, whatever the system's clock does.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// A device that was off for this long, or whose clock has jumped this far, must ask.
const PLAUSIBLE_MS: u64 = 90 * 24 * 3600 * 1000;
/// How much the floor must have moved before it is written down again: flash wears out.
const PERSIST_MS: u64 = 3600 * 1000;
/// 2025-01-01: before the first release. A build with `SOURCE_DATE_EPOCH` knows better.
const EARLIEST_BUILD_MS: u64 = 1_735_689_600_000;

/// What the machine's clocks say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// UTC milliseconds, as far as the system knows.
    pub(crate) system_ms: u64,
    /// Milliseconds since the machine started, sleep included. Only grows.
    pub(crate) monotonic_ms: u64,
}

/// What time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// UTC milliseconds: the time if it is trusted, and otherwise one that has certainly passed.
    pub(crate) ms: u64,
    /// True when it is known to be the time.
    pub(crate) trusted: bool,
}

/// The floor and what is known about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TrustedTime {
    signed_ms: u64,
    learned_at: u64,
    /// True when `signed_ms` was the time when it was learned, and not only a time that had passed.
    exact: bool,
}

impl TrustedTime {
    fn floor_ms(&self, reading: Reading) -> u64 {
        let passed = reading.monotonic_ms.saturating_sub(self.learned_at);
        self.signed_ms.saturating_add(passed)
    }

    fn now(&self, reading: Reading) -> Now {
        let floor = self.floor_ms(reading);
        let plausible = reading.system_ms >= floor && reading.system_ms - floor <= PLAUSIBLE_MS;
        match (self.exact, plausible) {
            (true, _) => Now {
                ms: floor,
                trusted: true,
            },
            (false, true) => Now {
                ms: reading.system_ms,
                trusted: true,
            },
            (false, false) => Now {
                ms: floor,
                trusted: false,
            },
        }
    }

    fn set(&mut self, signed_ms: u64, reading: Reading) {
        self.signed_ms = signed_ms.max(built_ms());
        self.learned_at = reading.monotonic_ms;
    }

    /// An intent was signed at `signed_ms`. It may have been on its way for long, so it only raises the floor. Whoever stole the
    /// key that signs intents must not bring an old time back, and with it metadata that has expired.
    fn learn_intent(&mut self, signed_ms: u64, reading: Reading) {
        if signed_ms > self.floor_ms(reading) {
            self.set(signed_ms, reading);
        }
    }

    fn learn_answer(&mut self, time_ms: u64, reading: Reading) {
        self.set(time_ms, reading);
        self.exact = true;
    }

    /// The floor, if it should be written down: it rose, or an answer has corrected it.
    fn floor_to_persist(&self, persisted_ms: u64, reading: Reading) -> Option<u64> {
        let floor = self.floor_ms(reading);
        let moved = floor.saturating_sub(persisted_ms);
        let corrected = if self.exact {
            persisted_ms.saturating_sub(floor)
        } else {
            0
        };
        (moved.max(corrected) >= PERSIST_MS).then_some(floor)
    }
}

/// When this program was built, or a time before that.
fn built_ms() -> u64 {
    let stated = option_env!("SOURCE_DATE_EPOCH").and_then(|seconds| seconds.parse::<u64>().ok());
    let stated_ms = stated.map_or(0, |seconds| seconds.saturating_mul(1000));
    stated_ms.max(EARLIEST_BUILD_MS)
}

type Machine = Arc<dyn Fn() -> Reading + Send + Sync>;

/// The clock of an agent; cheap to clone, and the same everywhere.
#[derive(Clone)]
pub(crate) struct Clock {
    machine: Machine,
    time: Arc<Mutex<TrustedTime>>,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.now().fmt(f)
    }
}

impl Clock {
    /// The clock of this machine, with the floor that an earlier start has kept.
    pub(crate) fn of_this_machine(persisted_ms: u64) -> Clock {
        Clock::new(Arc::new(read_machine), persisted_ms)
    }

    pub(crate) fn new(machine: Machine, persisted_ms: u64) -> Clock {
        let time = TrustedTime {
            signed_ms: persisted_ms.max(built_ms()),
            learned_at: machine().monotonic_ms,
            exact: false,
        };
        Clock {
            machine,
            time: Arc::new(Mutex::new(time)),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let reading = (self.machine)();
        self.lock().now(reading)
    }

    /// Now, in UTC nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        self.now().ms.saturating_mul(1_000_000)
    }

    /// A time that has certainly passed.
    pub(crate) fn floor_ms(&self) -> u64 {
        let reading = (self.machine)();
        self.lock().floor_ms(reading)
    }

    /// Milliseconds since the machine started.
    pub(crate) fn monotonic_ms(&self) -> u64 {
        (self.machine)().monotonic_ms
    }

    pub(crate) fn learn_intent(&self, signed_ms: u64) {
        let reading = (self.machine)();
        self.lock().learn_intent(signed_ms, reading);
    }

    pub(crate) fn learn_answer(&self, time_ms: u64) {
        let reading = (self.machine)();
        self.lock().learn_answer(time_ms, reading);
    }

    /// The floor, if it differs enough from the one that was written down.
    pub(crate) fn floor_to_persist(&self, persisted_ms: u64) -> Option<u64> {
        let reading = (self.machine)();
        self.lock().floor_to_persist(persisted_ms, reading)
    }

    fn lock(&self) -> MutexGuard<'_, TrustedTime> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_machine() -> Reading {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Not std's clock, which stands still while the machine sleeps.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Reading {
        system_ms: since_1970.as_millis() as u64,
        monotonic_ms: boot.tv_sec as u64 * 1000 + boot.tv_nsec as u64 / 1_000_000,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
