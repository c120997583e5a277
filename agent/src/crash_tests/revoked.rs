//! What signed metadata takes back: blocked bundles, and versions that are too old. On the same simulated device as the power
//! cuts.

use skerry_shared::{desired::OutcomeResult, id::ModelVersion};

use super::{
    device::{Device, Rig, enrolled},
    plane::{Keys, model},
};
use crate::disk::sim::SimFs;

/// A device with v2; v1 and v3 are published, too.
fn rig() -> (Rig, SimFs) {
    let rig = Rig::new();
    let root = rig.plane.root(1, Keys::First);
    for version in 1..=3 {
        rig.plane.bundle(version, true);
    }
    rig.plane.sign(1, Keys::First);
    let fs = enrolled(&root);
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(1, 2)).unwrap();
    device.run().unwrap();
    assert_eq!(device.serves(), Some(ModelVersion(2)));
    drop(device);
    (rig, fs)
}

/// What serves, and how the newest update of the model ended.
fn ended(device: &Device<'_>) -> (Option<ModelVersion>, String) {
    let outcome = match &device.record().outcomes[&model()].result {
        OutcomeResult::Succeeded => "succeeded".to_owned(),
        OutcomeResult::RolledBack(error) | OutcomeResult::Failed(error) => error.code.clone(),
    };
    (device.serves(), outcome)
}

#[test]
fn a_version_below_the_lowest_is_refused_unless_the_intent_allows_it() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.min_release(2);
    rig.plane.sign(2, Keys::First);
    device.desired(&rig.plane.desired(2, 1)).unwrap();
    device.run().unwrap();
    assert_eq!(ended(&device), (Some(ModelVersion(2)), "min_release".to_owned()));
    device.desired(&rig.plane.desired_with(3, 1, true)).unwrap();
    device.run().unwrap();
    assert_eq!(ended(&device), (Some(ModelVersion(1)), "succeeded".to_owned()));
}

#[test]
fn no_intent_allows_a_blocked_bundle() {
    let (rig, fs) = rig();
    let mut device = rig.boot(&fs).unwrap();
    rig.plane.block(3);
    rig.plane.sign(2, Keys::First);
    device.desired(&rig.plane.desired_with(2, 3, true)).unwrap();
    device.run().unwrap();
    assert_eq!(ended(&device), (Some(ModelVersion(2)), "blocked".to_owned()));
}
