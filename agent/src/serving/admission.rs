//! Who may run a model now, who waits, and who is sent away.
//!
//! One line a model, kept when its version is replaced. Invariant: at most `sessions` inferences of a model run at once and
//! at most `queue` wait, in the order in which they came; whoever gives up waiting leaves the line.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much a model does at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Inferences at once: more than there are cores only make each slower.
    pub(crate) sessions: usize,
    /// Requests that wait, with their tensors: the next one is told to come again.
    pub(crate) queue: usize,
}

/// Clients of one board that ask at the same moment; what each may hold is limited by its bytes.
pub(crate) const QUEUE: usize = 64;

impl Limits {
    /// As many sessions as there are cores.
    pub(crate) fn of_this_machine(queue: usize) -> Limits {
        Limits {
            sessions: std::thread::available_parallelism().map_or(1, Into::into),
            queue,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::of_this_machine(QUEUE)
    }
}

/// The line before a model.
#[derive(Debug)]
pub(crate) struct Admission {
    sessions: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
}

/// The line is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The right to run once; gone with this.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "held for its end")] OwnedSemaphorePermit);

/// A place in the line.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Admission {
        Admission {
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            waiting: AtomicUsize::new(0),
            queue: limits.queue,
        }
    }

    /// Waits for a turn. Dropping the future leaves the line.
    pub(crate) async fn enter(&self) -> Result<Turn, Full> {
        if let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() {
            return Ok(Turn(permit));
        }
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            return Err(Full);
        }
        let permit = Arc::clone(&self.sessions).acquire_owned().await;
        drop(place);
        Ok(Turn(permit.expect("the semaphore is never closed")))
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    const LIMITS: Limits = Limits { sessions: 1, queue: 2 };

    #[test]
    fn whoever_comes_to_a_full_line_is_sent_away_at_once() {
        let admission = Admission::new(LIMITS);
        let Poll::Ready(Ok(_running)) = poll(pin!(admission.enter())) else {
            panic!("nobody is there")
        };
        let (mut second, mut third) = (pin!(admission.enter()), pin!(admission.enter()));
        assert!(poll(second.as_mut()).is_pending() && poll(third.as_mut()).is_pending());
        assert!(matches!(poll(pin!(admission.enter())), Poll::Ready(Err(Full))));
        assert_eq!(admission.waiting(), 2, "who was sent away holds no place");
    }

    #[test]
    fn turns_come_in_order_and_a_place_that_is_given_up_is_free() {
        let admission = Admission::new(LIMITS);
        let Poll::Ready(Ok(running)) = poll(pin!(admission.enter())) else {
            panic!("nobody is there")
        };
        let mut gives_up = Box::pin(admission.enter());
        let mut waits = pin!(admission.enter());
        assert!(poll(gives_up.as_mut()).is_pending() && poll(waits.as_mut()).is_pending());
        drop(gives_up);
        let mut late = pin!(admission.enter());
        assert!(poll(late.as_mut()).is_pending(), "the place is free again");
        drop(running);
        assert!(poll(late.as_mut()).is_pending(), "it came later");
        assert!(matches!(poll(waits.as_mut()), Poll::Ready(Ok(_))));
        assert_eq!(admission.waiting(), 1);
    }
}
