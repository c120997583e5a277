//! What signed metadata takes back: blocked bundles, versions that are too old, and the generations of a stolen key. On the
//! same simulated device as the power cuts.

use skerry_shared::{
    desired::OutcomeResult,
    id::{Generation, ModelVersion},
};

use super::{
    device::{Device, Rig, enrolled, for_every_cut},
    plane::{Keys, model},
};
use crate::disk::sim::{Failure, SimFs};

/// A device with v1 and then v2; v3 is published, too.
fn rig() -> (Rig, SimFs) {
    let rig = Rig::new();
    let root = rig.plane.root(1, Keys::First);
    for version in 1..=3 {
        rig.plane.bundle(version, true);
    }
    rig.plane.sign(1, Keys::First);
    let fs = enrolled(&root);
    let mut device = rig.boot(&fs).unwrap();
    for version in 1..=2 {
        device.desired(&rig.plane.desired(version, version)).unwrap();
        device.run().unwrap();
    }
    assert_eq!(device.serves(), Some(ModelVersion(2)));
    drop(device);
    (rig, fs)
}

/// How the newest update of the model ended.
fn outcome(device: &Device<'_>) -> String {
    match &device.record().outcomes[&model()].result {
        OutcomeResult::Succeeded => "succeeded".to_owned(),
        OutcomeResult::RolledBack(error) | OutcomeResult::Failed(error) => error.code.clone(),
    }
}

#[test]
fn a_blocked_bundle_that_serves_gives_way_to_the_one_before_it() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.block(2);
    rig.plane.sign(2, Keys::First);
    device.refresh(&rig.plane).unwrap();
    device.leave_blocked().unwrap();
    assert_eq!(device.serves(), Some(ModelVersion(1)));
    assert_eq!(outcome(&device), "blocked");
    // The same intent again does not bring it back, and neither does a newer one.
    device.run().unwrap();
    device.desired(&rig.plane.desired(3, 2)).unwrap();
    device.run().unwrap();
    assert_eq!(
        (device.serves(), outcome(&device).as_str()),
        (Some(ModelVersion(1)), "blocked")
    );
}

#[test]
fn without_another_bundle_a_blocked_one_stops_serving() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.block(1);
    rig.plane.block(2);
    rig.plane.sign(2, Keys::First);
    device.refresh(&rig.plane).unwrap();
    device.leave_blocked().unwrap();
    assert_eq!((device.serves(), outcome(&device).as_str()), (None, "blocked"));
    drop(device);
    assert_eq!(rig.boot(&fs).unwrap().serves(), None);
}

#[test]
fn a_blocked_bundle_stops_serving_though_the_disk_takes_nothing_more() {
    // The metadata is still written in one case, and not even that in the other.
    for full_from in [Moment::AfterTheRefresh, Moment::BeforeTheRefresh] {
        let (rig, fs) = rig();
        let mut device = rig.boot(&fs).unwrap();
        rig.plane.block(2);
        rig.plane.sign(2, Keys::First);
        if full_from == Moment::BeforeTheRefresh {
            fs.fail_at(0, Failure::Full);
            assert!(device.refresh(&rig.plane).is_err());
        } else {
            device.refresh(&rig.plane).unwrap();
            fs.fail_at(0, Failure::Full);
        }
        assert!(device.leave_blocked().is_err(), "the disk is full");
        let named = device.record().slots[&model()].current.clone().unwrap();
        assert_eq!(
            (device.serves(), named.version),
            (Some(ModelVersion(1)), ModelVersion(2))
        );
        // With room again the record follows.
        fs.mend();
        device.refresh(&rig.plane).unwrap();
        device.leave_blocked().unwrap();
        assert_eq!(
            (device.serves(), outcome(&device).as_str()),
            (Some(ModelVersion(1)), "blocked")
        );
        drop(device);
        assert_eq!(rig.boot(&fs).unwrap().serves(), Some(ModelVersion(1)));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeTheRefresh,
    AfterTheRefresh,
}

#[test]
fn a_start_serves_no_blocked_bundle_though_the_slots_name_it() {
    let (rig, fs) = rig();
    rig.plane.block(2);
    rig.plane.sign(2, Keys::First);
    rig.boot(&fs).unwrap().refresh(&rig.plane).unwrap();
    assert_eq!(rig.boot(&fs).unwrap().serves(), Some(ModelVersion(1)));
    // Nor one that is too old to be returned to.
    rig.plane.min_release(2);
    rig.plane.sign(3, Keys::First);
    rig.boot(&fs).unwrap().refresh(&rig.plane).unwrap();
    assert_eq!(rig.boot(&fs).unwrap().serves(), None);
}

#[test]
fn a_device_does_not_go_back_below_the_lowest_version_by_itself() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.block(2);
    rig.plane.min_release(2);
    rig.plane.sign(2, Keys::First);
    device.refresh(&rig.plane).unwrap();
    device.leave_blocked().unwrap();
    assert_eq!(device.serves(), None);
}

#[test]
fn a_version_below_the_lowest_is_refused_unless_the_intent_allows_it() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.min_release(2);
    rig.plane.sign(2, Keys::First);
    device.desired(&rig.plane.desired(3, 1)).unwrap();
    device.run().unwrap();
    assert_eq!(
        (device.serves(), outcome(&device).as_str()),
        (Some(ModelVersion(2)), "min_release")
    );
    device.desired(&rig.plane.desired_by(Keys::First, 4, 1, true)).unwrap();
    device.run().unwrap();
    assert_eq!(
        (device.serves(), outcome(&device).as_str()),
        (Some(ModelVersion(1)), "succeeded")
    );
}

#[test]
fn no_intent_allows_a_blocked_bundle() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.block(3);
    rig.plane.sign(2, Keys::First);
    device.desired(&rig.plane.desired_by(Keys::First, 3, 3, true)).unwrap();
    device.run().unwrap();
    assert_eq!(
        (device.serves(), outcome(&device).as_str()),
        (Some(ModelVersion(2)), "blocked")
    );
}

#[test]
fn the_generations_of_a_stolen_key_end_with_its_rotation_and_not_before() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(u64::MAX, 1)).unwrap();
    device.run().unwrap();
    assert_eq!(device.serves(), Some(ModelVersion(1)));
    // The owner has no higher generation.
    device.desired(&rig.plane.desired(3, 2)).unwrap();
    assert_eq!(
        device.record().desired.as_ref().unwrap().generation,
        Generation(u64::MAX)
    );
    // A key that the root does not name yet is no one's.
    let rotated = rig.plane.desired_by(Keys::Second, 3, 2, false);
    assert!(device.desired(&rotated).is_err());
    rig.plane.root(2, Keys::Second);
    rig.plane.sign(2, Keys::Second);
    device.refresh(&rig.plane).unwrap();
    device.desired(&rotated).unwrap();
    device.run().unwrap();
    assert_eq!(device.serves(), Some(ModelVersion(2)));
    // From here generations only grow again, and the stolen key says nothing.
    device
        .desired(&rig.plane.desired_by(Keys::Second, 2, 1, false))
        .unwrap();
    assert_eq!(device.record().desired.as_ref().unwrap().generation, Generation(3));
    assert!(device.desired(&rig.plane.desired(u64::MAX, 1)).is_err());
}

#[test]
fn a_cut_at_any_call_of_leaving_a_blocked_bundle_leaves_it_in_the_end() {
    let (rig, fs) = rig();
    rig.plane.block(2);
    rig.plane.sign(2, Keys::First);
    let mut device = rig.boot(&fs).unwrap();
    fs.restart_history();
    device.refresh(&rig.plane).unwrap();
    device.leave_blocked().unwrap();
    drop(device);
    let cuts = for_every_cut("leave blocked", &fs, |_, after, what| {
        let mut device = rig.boot(after).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        device
            .refresh(&rig.plane)
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        device.leave_blocked().unwrap();
        assert_eq!(device.serves(), Some(ModelVersion(1)), "{what}");
    });
    assert!(cuts > 50, "{cuts}");
}

#[test]
fn an_offline_device_walks_the_roots_that_it_missed() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    for version in 2..=40 {
        rig.plane
            .root(version, if version % 2 == 0 { Keys::Second } else { Keys::First });
    }
    rig.plane.sign(2, Keys::First);
    // At most 32 in one look; the next one goes on from there. A timestamp by keys that a root on the way does not name is
    // refused.
    assert!(device.refresh(&rig.plane).is_ok());
    assert_eq!(device.record().floors.root, 33);
    drop(device);
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.sign(3, Keys::Second);
    device.refresh(&rig.plane).unwrap();
    assert_eq!(device.record().floors.root, 40);
}
