//! Wrong clocks of every kind.

use proptest::prelude::*;

use super::*;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// 2026-11-25.
const TODAY_MS: u64 = 1_795_564_800_000;
/// 2100-01-01.
const YEAR_2100_MS: u64 = 4_102_444_800_000;

fn at(system_ms: u64, monotonic_ms: u64) -> Reading {
    Reading {
        system_ms,
        monotonic_ms,
    }
}

/// A device that once heard a time, and has started just now.
fn started(floor_ms: u64) -> TrustedTime {
    TrustedTime {
        signed_ms: floor_ms,
        learned_at: 0,
        exact: false,
    }
}

fn untrusted(ms: u64) -> Now {
    Now { ms, trusted: false }
}

fn trusted(ms: u64) -> Now {
    Now { ms, trusted: true }
}

#[test]
fn a_clock_in_1970_gives_the_floor_and_what_has_passed_since() {
    let time = started(TODAY_MS);
    assert_eq!(time.now(at(0, 0)), untrusted(TODAY_MS));
    assert_eq!(time.now(at(5000, 5000)), untrusted(TODAY_MS + 5000));
}

#[test]
fn a_clock_in_2100_is_not_believed() {
    assert_eq!(started(TODAY_MS).now(at(YEAR_2100_MS, 7)), untrusted(TODAY_MS + 7));
}

#[test]
fn a_clock_that_agrees_with_what_was_signed_is_the_time() {
    assert_eq!(
        started(TODAY_MS).now(at(TODAY_MS + DAY_MS, 9)),
        trusted(TODAY_MS + DAY_MS)
    );
}

#[test]
fn a_clock_that_jumps_back_does_not_bring_the_past_back() {
    let time = started(TODAY_MS);
    assert_eq!(time.now(at(TODAY_MS + 1000, 1000)).ms, TODAY_MS + 1000);
    assert_eq!(time.now(at(TODAY_MS - DAY_MS, 2000)), untrusted(TODAY_MS + 2000));
}

#[test]
fn a_clock_that_jumps_forward_is_believed_up_to_ninety_days() {
    let time = started(TODAY_MS);
    assert!(time.now(at(TODAY_MS + PLAUSIBLE_MS, 0)).trusted);
    assert!(!time.now(at(TODAY_MS + PLAUSIBLE_MS + 1, 0)).trusted);
}

#[test]
fn a_lost_floor_leaves_the_build_time() {
    let clock = Clock::new(Arc::new(|| at(0, 0)), 0);
    assert_eq!(clock.now(), untrusted(built_ms()));
}

#[test]
fn an_answer_is_the_time_whatever_the_system_says() {
    for system_ms in [0, TODAY_MS - DAY_MS, YEAR_2100_MS] {
        let mut time = started(TODAY_MS - 400 * DAY_MS);
        time.learn_answer(TODAY_MS, at(system_ms, 50));
        assert_eq!(time.now(at(system_ms, 60)), trusted(TODAY_MS + 10));
    }
}

#[test]
fn an_answer_corrects_a_floor_that_was_driven_up() {
    let mut time = started(YEAR_2100_MS);
    time.learn_answer(TODAY_MS, at(0, 1));
    assert_eq!(time.now(at(0, 1)), trusted(TODAY_MS));
    assert_eq!(time.floor_to_persist(YEAR_2100_MS, at(0, 1)), Some(TODAY_MS));
}

#[test]
fn an_intent_that_was_long_on_its_way_does_not_lower_the_floor() {
    let mut time = started(TODAY_MS);
    time.learn_intent(TODAY_MS + 1000, at(0, DAY_MS));
    assert_eq!(time.now(at(0, DAY_MS)).ms, TODAY_MS + DAY_MS);
}

#[test]
fn no_intent_lowers_the_floor() {
    let mut time = started(YEAR_2100_MS);
    time.learn_intent(TODAY_MS, at(0, 1));
    assert_eq!(time.now(at(0, 1)).ms, YEAR_2100_MS + 1);
    assert_eq!(time.floor_to_persist(YEAR_2100_MS, at(0, 1)), None);
}

#[test]
fn the_floor_is_written_down_once_an_hour() {
    let time = started(TODAY_MS);
    assert_eq!(time.floor_to_persist(TODAY_MS, at(0, PERSIST_MS - 1)), None);
    let later = TODAY_MS + PERSIST_MS;
    assert_eq!(time.floor_to_persist(TODAY_MS, at(0, PERSIST_MS)), Some(later));
}

#[derive(Clone, Debug)]
enum Heard {
    Intent(u64),
    Answer(u64),
    Nothing,
}

fn any_heard() -> impl Strategy<Value = Heard> {
    prop_oneof![
        any::<u64>().prop_map(Heard::Intent),
        any::<u64>().prop_map(Heard::Answer),
        Just(Heard::Nothing)
    ]
}

proptest! {
    #[test]
    fn the_time_is_never_before_the_build_nor_below_the_floor(
        events in prop::collection::vec((any_heard(), any::<u64>(), 0..u64::from(u32::MAX)), 1..30),
    ) {
        let mut time = started(built_ms());
        let mut monotonic_ms = 0;
        for (heard, system_ms, passed) in events {
            let earlier = time.floor_ms(at(0, monotonic_ms));
            monotonic_ms += passed;
            let reading = at(system_ms, monotonic_ms);
            match heard {
                Heard::Intent(signed) => {
                    time.learn_intent(signed, reading);
                    prop_assert!(time.floor_ms(reading) >= earlier);
                }
                Heard::Answer(ms) => time.learn_answer(ms, reading),
                Heard::Nothing => prop_assert!(time.floor_ms(reading) >= earlier),
            }
            let now = time.now(reading);
            prop_assert!(now.ms >= built_ms() && now.ms >= time.floor_ms(reading));
            prop_assert!(now.trusted || now.ms == time.floor_ms(reading));
            prop_assert!(time.exact || now.ms - time.floor_ms(reading) <= PLAUSIBLE_MS);
        }
    }
}
