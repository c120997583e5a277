//! What a model version has done since it was loaded, for clients that ask. What goes home is counted in `telemetry::metrics`.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How often something was done and how long it took in all.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Spent {
    pub(crate) fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }
}

/// The counts of one model version.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    /// From the turn to the answer, of requests that ended well.
    pub(crate) success: Spent,
    pub(crate) fail: Spent,
    /// In line.
    pub(crate) queue: Spent,
    /// From bytes to tensors.
    pub(crate) decode: Spent,
    pub(crate) infer: Spent,
    /// From tensors to bytes.
    pub(crate) encode: Spent,
    last_ms: AtomicU64,
}

impl Statistics {
    /// Counts a request that has run.
    pub(crate) fn ended(&self, queued: Duration, took: Duration, well: bool) {
        self.queue.add(queued);
        if well {
            self.infer.add(took);
            self.success.add(queued + took);
        } else {
            self.fail.add(queued + took);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_ms.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    /// When a request has run last, by the device's clock; 0 is never.
    pub(crate) fn last_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }
}
