//! The clock that stops steps which run too long.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use wasmtime::Engine;

/// One tick of the epoch: the resolution of step time-outs.
pub(super) const TICK: Duration = Duration::from_millis(10);
/// Ticks without a call after which the ticker sleeps.
const IDLE_TICKS: u32 = 100;

/// Moves the engine's epoch on while steps run, and sleeps otherwise: an idle device stays idle.
pub(super) struct Clock {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<thread::Thread>>,
}

impl Clock {
    /// Starts the thread.
    pub(super) fn start(engine: Engine) -> std::io::Result<Arc<Clock>> {
        let clock = Arc::new(Clock {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let ticking = Arc::downgrade(&clock);
        let handle = thread::Builder::new().name("step-clock".to_owned()).spawn(move || {
            let mut idle = 0;
            while let Some(clock) = ticking.upgrade() {
                if clock.stop.load(Ordering::SeqCst) {
                    return;
                }
                if clock.running.load(Ordering::SeqCst) > 0 {
                    idle = 0;
                } else {
                    idle += 1;
                }
                if idle > IDLE_TICKS {
                    clock.parked.store(true, Ordering::SeqCst);
                    // A call that began before `parked` was set has not woken us: look once more.
                    if clock.running.load(Ordering::SeqCst) == 0 && !clock.stop.load(Ordering::SeqCst) {
                        drop(clock);
                        thread::park();
                    } else {
                        clock.parked.store(false, Ordering::SeqCst);
                    }
                    idle = 0;
                    continue;
                }
                drop(clock);
                thread::sleep(TICK);
                engine.increment_epoch();
            }
        })?;
        *clock.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.thread().clone());
        Ok(clock)
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// Keeps the clock going while the answer lives.
    pub(super) fn call_begins(&self) -> Call<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.parked.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Call(self)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }
}

/// A call under way.
pub(super) struct Call<'a>(&'a Clock);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
