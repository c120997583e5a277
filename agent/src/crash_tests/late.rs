//! Metadata that is late, and metadata that comes while an update is under way.

use skerry_shared::{
    desired::OutcomeResult,
    id::{Generation, ModelVersion},
};

use super::{
    device::{Device, Rig, enrolled},
    plane::{Keys, Plane, model},
};
use crate::{
    disk::sim::SimFs,
    update::{Job, State},
};

/// An hour after the plane's intents are signed.
const TODAY_MS: u64 = 1_790_003_600_000;

/// A device that serves v1 and has been told to run v2, which is published.
fn rig() -> (Rig, SimFs) {
    let mut rig = Rig::new();
    rig.machine.system_ms = TODAY_MS;
    let root = rig.plane.root(1, Keys::First);
    rig.plane.bundle(1, true);
    rig.plane.sign(2, Keys::First);
    let fs = enrolled(&root);
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(1, 1)).unwrap();
    device.run().unwrap();
    rig.plane.bundle(2, true);
    rig.plane.sign(3, Keys::First);
    device.desired(&rig.plane.desired(2, 2)).unwrap();
    drop(device);
    (rig, fs)
}

/// It waits, with v1 serving and nothing counted as failed.
fn waits(device: &mut Device<'_>, code: &str) {
    assert_eq!(device.run().unwrap_err().to_string(), code);
    let record = device.record();
    assert!(matches!(record.update, State::Sync { .. }), "{code}: {record:?}");
    assert!(record.failed.is_empty(), "{code}: {record:?}");
    assert_eq!(device.serves(), Some(ModelVersion(1)), "{code}");
}

#[test]
fn an_update_waits_for_metadata_that_is_late() {
    // Expired, older than what is trusted, or not there at all: a mirror that lags shows all three.
    type Spoil = fn(&Plane);
    let spoilt: [(&str, Spoil); 3] = [
        ("expired", |plane| {
            plane.expire_at(TODAY_MS - 1);
            plane.sign(4, Keys::First);
        }),
        ("rollback", |plane| plane.sign(1, Keys::First)),
        ("not_found", Plane::lose_the_bundles),
    ];
    for (code, spoil) in spoilt {
        let (rig, fs) = rig();
        spoil(&rig.plane);
        let mut device = rig.boot(&fs).unwrap();
        waits(&mut device, code);
        waits(&mut device, code);
        drop(device);
        // A start changes nothing about it.
        let mut device = rig.boot(&fs).unwrap();
        waits(&mut device, code);
        rig.plane.expire_at(TODAY_MS + 1000);
        rig.plane.bundle(2, true);
        rig.plane.sign(5, Keys::First);
        device.run().unwrap_or_else(|error| panic!("{code}: {error:#}"));
        assert_eq!(device.serves(), Some(ModelVersion(2)), "{code}");
    }
}

/// How far an update has come, when the metadata changes.
fn states(job: &Job) -> Vec<State> {
    let job = || job.clone();
    vec![
        State::Download { job: job() },
        State::Verify { job: job() },
        State::Install { job: job(), boots: 0 },
        State::Probation { job: job(), boots: 0 },
    ]
}

/// The device with everything of v2 on its disk.
fn fetched<'a>(rig: &'a Rig, fs: &SimFs) -> (Device<'a>, Job) {
    let mut device = rig.boot(fs).unwrap();
    let desired = device.record().desired.clone().unwrap();
    let job = Job {
        generation: Generation(2),
        assignment: desired.bundles[0].clone(),
    };
    device.fetch(&job);
    (device, job)
}

#[test]
fn what_is_blocked_while_it_comes_is_not_installed() {
    for at in 0..4 {
        for too_old in [false, true] {
            let (rig, fs) = rig();
            let (mut device, job) = fetched(&rig, &fs);
            let state = states(&job)[at].clone();
            device.keeper.change(|record| record.update = state.clone()).unwrap();
            match too_old {
                true => rig.plane.min_release(3),
                false => rig.plane.block(2),
            }
            rig.plane.sign(4, Keys::First);
            device.refresh(&rig.plane).unwrap();
            device.run().unwrap();
            assert_eq!(device.serves(), Some(ModelVersion(1)), "{state:?}");
            let outcome = &device.record().outcomes[&model()].result;
            let code = match outcome {
                OutcomeResult::Succeeded => "succeeded",
                OutcomeResult::RolledBack(error) | OutcomeResult::Failed(error) => &error.code,
            };
            let expected = if too_old { "min_release" } else { "blocked" };
            assert_eq!(code, expected, "{state:?}");
        }
    }
}

#[test]
fn metadata_that_expires_while_a_bundle_comes_is_renewed_before_it_is_installed() {
    for at in 1..3 {
        let (mut rig, fs) = rig();
        rig.plane.expire_at(TODAY_MS + 1000);
        rig.plane.sign(4, Keys::First);
        let (device, job) = fetched(&rig, &fs);
        let state = states(&job)[at].clone();
        device.keeper.change(|record| record.update = state.clone()).unwrap();
        drop(device);
        rig.machine.system_ms = TODAY_MS + 1000;
        let mut device = rig.boot(&fs).unwrap();
        waits(&mut device, "expired");
        rig.plane.expire_at(TODAY_MS + 5000);
        rig.plane.sign(5, Keys::First);
        device.run().unwrap();
        assert_eq!(device.serves(), Some(ModelVersion(2)), "{state:?}");
    }
}
