//! What an engine costs: measured, never guessed.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The longest that an engine is timed. A slow model is timed once.
const TIMING_MAX: Duration = Duration::from_millis(500);
/// Inferences that are timed at most: a p95 of so many is steady.
const TIMED_MAX: usize = 1000;
/// Passes over all requests, if there is time: the first ones warm caches up.
const PASSES_MIN: usize = 5;

/// What an engine costs with one bundle on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// From verified bytes to ready.
    pub load_us: u64,
    /// The time of an inference; absent where there are no golden vectors, or nothing to choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// The most memory that loading and answering took; absent where they had no process of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

impl Figures {
    /// What is known after loading.
    pub(crate) fn loaded_in(took: Duration) -> Figures {
        Figures {
            load_us: us(took),
            timing: None,
            peak_memory_bytes: None,
        }
    }

    /// What engines are compared by: less is better.
    pub(crate) fn speed(&self) -> u64 {
        self.timing.map_or(u64::MAX, |timing| timing.fastest_us)
    }
}

/// How long an inference takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The mean of the fastest pass over all vectors: what other programs on the machine disturb least.
    pub fastest_us: u64,
    /// The median.
    pub p50_us: u64,
    /// 95 of 100 take no longer.
    pub p95_us: u64,
}

impl Timing {
    /// Times `run` over all requests, again and again.
    pub(crate) fn of<R>(requests: &[R], mut run: impl FnMut(&R)) -> Timing {
        let began = Instant::now();
        let (mut each, mut fastest) = (Vec::new(), Duration::MAX);
        for pass in 0.. {
            let whole = Instant::now();
            for request in requests {
                let one = Instant::now();
                run(request);
                each.push(one.elapsed());
            }
            fastest = fastest.min(whole.elapsed());
            let enough = pass + 1 >= PASSES_MIN && each.len() >= TIMED_MAX || each.is_empty();
            if enough || began.elapsed() > TIMING_MAX {
                break;
            }
        }
        each.sort_unstable();
        let at = |per_cent: usize| {
            each.get((each.len() * per_cent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        Timing {
            fastest_us: us(fastest) / requests.len().max(1) as u64,
            p50_us: us(at(50).unwrap_or_default()),
            p95_us: us(at(95).unwrap_or_default()),
        }
    }
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_timed_and_a_percentile_is_one_of_the_times() {
        let mut seen = [0; 3];
        let timing = Timing::of(&[0_usize, 1, 2], |request| seen[*request] += 1);
        assert!(seen.iter().all(|times| *times == seen[0] && *times > 0), "{seen:?}");
        assert!(timing.p50_us <= timing.p95_us, "{timing:?}");
    }

    #[test]
    fn nothing_to_time_takes_no_time() {
        let timing = Timing::of(&[] as &[()], |()| ());
        assert_eq!(timing.p95_us, 0);
    }
}
