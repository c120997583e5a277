//! The pure half of a download: which parts are missing, which are under way, which must be asked for again.
//!
//! No I/O and no clock. Invariant: never more than [`WINDOW`] parts are under way, so memory is bounded by the window.

use std::collections::{BTreeMap, VecDeque};

/// Parts under way at once: 256 KiB, enough for a link with 100 ms and 20 Mbit/s.
pub(crate) const WINDOW: usize = 8;
/// How long a part may take before it is asked for again.
const PART_TIMEOUT_MS: u64 = 10_000;
/// Bad copies of one part after which its source is given up.
const BAD_PARTS_MAX: u32 = 3;
/// Time-outs in a row, without one good part, after which the download is given up for now.
const STALLS_MAX: u32 = 60;

/// Why a download cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A part came broken too often.
    BadPart(u32),
    /// Nothing came for too long.
    Stalled,
}

/// A download under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    missing: VecDeque<u32>,
    under_way: BTreeMap<u32, u64>,
    bad: BTreeMap<u32, u32>,
    stalls: u32,
}

impl Transfer {
    /// A download of these parts.
    pub(crate) fn new(parts: impl IntoIterator<Item = u32>) -> Transfer {
        let missing = parts.into_iter().collect();
        Transfer {
            missing,
            under_way: BTreeMap::new(),
            bad: BTreeMap::new(),
            stalls: 0,
        }
    }

    /// More parts are known of.
    pub(crate) fn add(&mut self, parts: impl IntoIterator<Item = u32>) {
        self.missing.extend(parts);
    }

    /// True when nothing is missing and nothing under way.
    pub(crate) fn is_done(&self) -> bool {
        self.missing.is_empty() && self.under_way.is_empty()
    }

    /// The parts to ask for now, at most `limit`; they count as under way from now on.
    pub(crate) fn next_wants(&mut self, limit: usize, now_ms: u64) -> Vec<u32> {
        let room = WINDOW.saturating_sub(self.under_way.len()).min(limit);
        let count = room.min(self.missing.len());
        let parts: Vec<u32> = self.missing.drain(..count).collect();
        self.under_way.extend(parts.iter().map(|part| (*part, now_ms)));
        parts
    }

    /// Puts overdue parts back among the missing ones.
    pub(crate) fn on_time(&mut self, now_ms: u64) -> Result<(), Stop> {
        let overdue = |since: &u64| now_ms.saturating_sub(*since) >= PART_TIMEOUT_MS;
        let late: Vec<u32> = self
            .under_way
            .iter()
            .filter(|(_, since)| overdue(since))
            .map(|(part, _)| *part)
            .collect();
        for part in &late {
            self.under_way.remove(part);
            self.missing.push_front(*part);
        }
        if !late.is_empty() {
            self.stalls += 1;
        }
        if self.stalls >= STALLS_MAX {
            Err(Stop::Stalled)
        } else {
            Ok(())
        }
    }

    /// True when this part was asked for and has not come yet: anything else is dropped.
    pub(crate) fn expects(&self, part: u32) -> bool {
        self.under_way.contains_key(&part)
    }

    /// A part has come and is good.
    pub(crate) fn on_good(&mut self, part: u32) {
        self.under_way.remove(&part);
        self.stalls = 0;
    }

    /// A part has come and is broken: it is asked for again.
    pub(crate) fn on_bad(&mut self, part: u32) -> Result<(), Stop> {
        if self.under_way.remove(&part).is_some() {
            self.missing.push_front(part);
        }
        let bad = self.bad.entry(part).or_insert(0);
        *bad += 1;
        if *bad >= BAD_PARTS_MAX {
            Err(Stop::BadPart(part))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_part_comes_through_a_link_that_loses_and_repeats(
            count in 1..60_u32, losses in prop::collection::vec(any::<bool>(), 400), repeats in any::<bool>()
        ) {
            let mut transfer = Transfer::new(0..count);
            let (mut got, mut now, mut losses) = (vec![false; count as usize], 0, losses.into_iter());
            while !transfer.is_done() {
                let wants = transfer.next_wants(WINDOW, now);
                prop_assert!(transfer.under_way.len() <= WINDOW);
                for part in wants {
                    if losses.next().unwrap_or(false) {
                        continue;
                    }
                    for _ in 0..=u8::from(repeats) {
                        if transfer.expects(part) {
                            prop_assert!(!got[part as usize]);
                            got[part as usize] = true;
                            transfer.on_good(part);
                        }
                    }
                }
                now += PART_TIMEOUT_MS;
                if transfer.on_time(now).is_err() {
                    return Ok(());
                }
            }
            prop_assert!(got.into_iter().all(|got| got));
        }
    }

    #[test]
    fn a_part_that_stays_broken_stops_the_download() {
        let mut transfer = Transfer::new([7]);
        for _ in 1..BAD_PARTS_MAX {
            assert_eq!(transfer.next_wants(8, 0), [7]);
            transfer.on_bad(7).unwrap();
        }
        transfer.next_wants(8, 0);
        assert_eq!(transfer.on_bad(7), Err(Stop::BadPart(7)));
    }

    #[test]
    fn silence_stops_the_download_in_the_end() {
        let mut transfer = Transfer::new([0]);
        let mut now = 0;
        let stopped = loop {
            transfer.next_wants(8, now);
            now += PART_TIMEOUT_MS;
            if let Err(stop) = transfer.on_time(now) {
                break stop;
            }
        };
        assert_eq!(stopped, Stop::Stalled);
    }
}
