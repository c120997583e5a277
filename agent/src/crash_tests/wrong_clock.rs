//! Devices whose clock is wrong: fresh releases, frozen ones, and answers to the question what time it is.

use std::sync::{Arc, Mutex};

use ed25519_dalek::SigningKey;
use skerry_shared::id::ModelVersion;

use super::{
    device::{Device, Rig, enrolled},
    plane::{Keys, Plane, device},
};
use crate::{
    clock::{Clock, Reading},
    time_request::{Asking, TimeError},
    update::decide,
    verify::VerifyError,
};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// When the plane's intents are signed: 2026-09-21.
const SIGNED_MS: u64 = 1_790_000_000_000;
const YEAR_2100_MS: u64 = 4_102_444_800_000;

/// A control plane whose release of v1 expires a day after the intents are signed, and a device whose clocks say this.
fn rig(system_ms: u64) -> (Rig, crate::disk::sim::SimFs) {
    let mut rig = Rig::new();
    rig.machine = Reading {
        system_ms,
        monotonic_ms: 0,
    };
    let root = rig.plane.root(1, Keys::First);
    rig.plane.bundle(1, true);
    rig.plane.expire_at(SIGNED_MS + DAY_MS);
    rig.plane.sign(1, Keys::First);
    (rig, enrolled(&root))
}

fn is_stale(refreshed: anyhow::Result<()>) -> bool {
    let error = refreshed.unwrap_err();
    error.downcast_ref::<VerifyError>().unwrap().is_stale()
}

fn ask(device: &Device<'_>, asking: &mut Asking) -> skerry_shared::time::TimeRequest {
    asking.ask([7; 16], device.clock.monotonic_ms())
}

#[test]
fn a_clock_in_1970_or_2100_keeps_no_device_from_a_fresh_release() {
    for system_ms in [0, YEAR_2100_MS] {
        let (rig, fs) = rig(system_ms);
        let mut device = rig.boot(&fs).unwrap();
        device.desired(&rig.plane.desired(1, 1)).unwrap();
        device.run().unwrap();
        assert_eq!(device.serves(), Some(ModelVersion(1)), "{system_ms}");
        assert!(!device.clock.now().trusted, "{system_ms}");
    }
}

#[test]
fn a_release_that_a_signed_time_has_outlived_is_refused_in_1970_too() {
    let (mut rig, fs) = rig(0);
    rig.boot(&fs).unwrap().refresh(&rig.plane).unwrap();
    rig.plane.expire_at(SIGNED_MS);
    rig.plane.sign(2, Keys::First);
    let mut device = rig.boot(&fs).unwrap();
    // The intent is signed after it had expired.
    device.desired(&rig.plane.desired(1, 1)).unwrap();
    assert!(is_stale(device.refresh(&rig.plane)));
    // The floor is in the record: a start with a lost clock changes nothing.
    rig.machine.system_ms = 5;
    assert!(is_stale(rig.boot(&fs).unwrap().refresh(&rig.plane)));
}

#[test]
fn a_frozen_release_is_noticed_by_a_device_without_a_clock_once_it_knows_the_time() {
    let (rig, fs) = rig(0);
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(1, 1)).unwrap();
    device.run().unwrap();
    // For all it knows no time has passed.
    device.refresh(&rig.plane).unwrap();
    let mut asking = Asking::default();
    let request = ask(&device, &mut asking);
    let answer = Plane::time(&request, "dev-1", SIGNED_MS + 3 * DAY_MS);
    let (trust, clock) = (&device.worker.trust, &device.clock);
    asking.answered(&answer, &super::plane::device(), trust, clock).unwrap();
    assert!(is_stale(device.refresh(&rig.plane)));
    // Updates stop, inference goes on.
    assert_eq!(device.serves(), Some(ModelVersion(1)));
    // A newer release ends it.
    rig.plane.expire_at(SIGNED_MS + 9 * DAY_MS);
    rig.plane.sign(2, Keys::First);
    device.refresh(&rig.plane).unwrap();
}

#[test]
fn an_intent_that_contradicts_the_time_makes_the_device_ask() {
    let (rig, fs) = rig(SIGNED_MS);
    let device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(5, 1)).unwrap();
    let mut newer = device.record().desired.clone().unwrap();
    let mut contradicts = |issued_at_ms| {
        newer.issued_at_ms = issued_at_ms;
        decide::contradicts_the_time(&device.record(), &device.clock, &newer)
    };
    let (before_ms, now_ms) = (SIGNED_MS + 5, device.clock.now().ms);
    assert!(!contradicts(before_ms) && !contradicts(now_ms) && !contradicts(now_ms + 1000));
    assert!(contradicts(before_ms - 1), "the control plane has set its clock back");
    assert!(contradicts(YEAR_2100_MS), "one of the two is wrong");
}

#[test]
fn only_the_answer_to_the_newest_question_sets_the_clock() {
    let (rig, fs) = rig(0);
    let agent = rig.boot(&fs).unwrap();
    let reading = Arc::new(Mutex::new(rig.machine));
    let read = Arc::clone(&reading);
    let clock = Clock::new(Arc::new(move || *read.lock().unwrap()), 0);
    let before = clock.now();
    let mut asking = Asking::default();
    let give = |asking: &mut Asking, answer: &[u8]| {
        let given = asking.answered(answer, &device(), &agent.worker.trust, &clock);
        if given.is_err() && !clock.now().trusted {
            assert_eq!(
                clock.now().ms - before.ms,
                clock.monotonic_ms(),
                "a refused time has set the clock"
            );
        }
        given
    };
    let old = asking.ask([1; 16], 0);
    let replayed = Plane::time(&old, "dev-1", SIGNED_MS);
    let new = asking.ask([2; 16], 0);
    assert!(matches!(give(&mut asking, &replayed), Err(TimeError::OtherQuestion)));
    let of_another = Plane::time(&new, "dev-2", SIGNED_MS);
    let refused = give(&mut asking, &of_another);
    assert!(matches!(refused, Err(TimeError::Refused(VerifyError::OtherDevice(_)))));
    // Not even by the key that signs intents.
    let by_another = Plane::time_by(&SigningKey::from_bytes(&[5; 32]), &new, "dev-1", SIGNED_MS);
    let refused = give(&mut asking, &by_another);
    assert!(matches!(refused, Err(TimeError::Refused(VerifyError::Dsse(_)))));
    let good = Plane::time(&new, "dev-1", SIGNED_MS);
    reading.lock().unwrap().monotonic_ms = 30_001;
    assert!(matches!(give(&mut asking, &good), Err(TimeError::Late(30_001))));
    let newest = asking.ask([3; 16], 30_001);
    let good = Plane::time(&newest, "dev-1", SIGNED_MS);
    give(&mut asking, &good).unwrap();
    assert!(matches!(give(&mut asking, &good), Err(TimeError::NotAsked)));
    assert_eq!((clock.now().ms, clock.now().trusted), (SIGNED_MS, true));
}
