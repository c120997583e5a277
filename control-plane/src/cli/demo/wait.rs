//! Waiting for what the fleet does, with a deadline, until somebody presses Ctrl-C.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

/// The demo looks from outside, as a person would: often enough to seem immediate.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Set when somebody wants to end the demo.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Looks until there is something. What was seen last is the caller's to tell.
pub(super) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    stop: &Stop,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if stop.is_set() {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}, in vain", deadline.as_secs());
        }
        thread::sleep(LOOK_EVERY);
    }
}
