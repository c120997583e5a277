//! Installing: an update that is committed, and one that is rolled back.

use skerry_shared::id::{Generation, ModelVersion};

use super::{
    device::{Device, Rig, enrolled, for_every_cut, names, stored_bytes},
    plane::{Keys, model},
};
use crate::disk::sim::{Failure, SimFs};

/// A device with v1, and signed releases of v2, and of v3 that fails its golden vectors.
fn rig() -> (Rig, SimFs) {
    let rig = Rig::new();
    let root = rig.plane.root(1, Keys::First);
    rig.plane.bundle(1, true);
    rig.plane.sign(1, Keys::First);
    let fs = enrolled(&root);
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(1, 1)).unwrap();
    device.run().unwrap();
    assert_eq!(device.serves(), Some(ModelVersion(1)));
    drop(device);
    rig.plane.bundle(2, true);
    rig.plane.bundle(3, false);
    rig.plane.sign(2, Keys::First);
    (rig, fs)
}

/// The whole history: v2 is wanted and committed, v3 is wanted and rolled back. Says how many calls had been made when each
/// generation was accepted, and when v2 was committed.
fn update(rig: &Rig, fs: &SimFs, mut device: Device<'_>) -> anyhow::Result<Moments> {
    device.desired(&rig.plane.desired(2, 2))?;
    let second = fs.calls().len();
    device.run()?;
    let committed = fs.calls().len();
    device.desired(&rig.plane.desired(3, 3))?;
    let third = fs.calls().len();
    device.run()?;
    Ok(Moments {
        second,
        committed,
        third,
    })
}

struct Moments {
    second: usize,
    committed: usize,
    third: usize,
}

impl Moments {
    /// The newest generation that was accepted for sure before this call.
    fn generation(&self, moment: usize) -> Generation {
        match moment {
            _ if moment >= self.third => Generation(3),
            _ if moment >= self.second => Generation(2),
            _ => Generation(1),
        }
    }
}

/// What must hold after every start.
fn whole(device: &Device<'_>, what: &str) {
    let record = device.record();
    let slots = &record.slots[&model()];
    let current = slots
        .current
        .as_ref()
        .unwrap_or_else(|| panic!("{what}: no current bundle"));
    assert!([1, 2].contains(&current.version.0), "{what}: {current:?}");
    // It was verified and loaded, golden vectors included; its own word is enough.
    assert_eq!(device.serves(), Some(current.version), "{what}");
}

#[test]
fn a_cut_at_any_call_of_an_install_leaves_the_old_or_the_new_bundle() {
    let (rig, fs) = rig();
    let device = rig.boot(&fs).unwrap();
    let floors = device.record().floors;
    fs.restart_history();
    let moments = update(&rig, &fs, device).unwrap();
    let (full, kept) = (stored_bytes(&fs), names(&fs, "store/objects"));
    let cuts = for_every_cut("install", &fs, |moment, after, what| {
        let device = rig.boot(after).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        whole(&device, what);
        let record = device.record();
        let generation = record.desired.as_ref().unwrap().generation;
        assert!(generation >= moments.generation(moment), "{what}: {generation:?}");
        let new = record.floors;
        assert!(
            new.timestamp >= floors.timestamp && new.targets >= floors.targets,
            "{what}: {new:?}"
        );
        if moment >= moments.committed {
            assert_eq!(device.serves(), Some(ModelVersion(2)), "{what}");
            assert_eq!(new.targets, 2, "{what}");
        }
        // Whatever the cut left, the device ends where it would have ended.
        let mut device = device;
        device.desired(&rig.plane.desired(3, 2)).unwrap();
        device.run().unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let record = device.record();
        if record.desired.as_ref().unwrap().bundles[0].version == ModelVersion(2) {
            assert_eq!(device.serves(), Some(ModelVersion(2)), "{what}: {record:?}");
        }
        whole(&device, what);
        // What failed or broke off leaves nothing behind.
        assert!(names(after, "store/objects").is_subset(&kept), "{what}");
        assert!(names(after, "store/staging").is_empty(), "{what}");
        assert!(stored_bytes(after) <= full + 4096, "{what}");
    });
    assert!(cuts > 1000, "{cuts}");
}

/// Lets the history run on disks that fail at each call in turn, and checks what a start finds then.
fn failing(failure: Failure) -> usize {
    let (rig, before) = rig();
    let calls = {
        let fs = before.state().after_cut(crate::disk::sim::Left::Everything);
        let device = rig.boot(&fs).unwrap();
        fs.restart_history();
        update(&rig, &fs, device).unwrap();
        fs.calls().len()
    };
    for call in 0..calls {
        let what = format!("{failure:?} at call {call}");
        let fs = before.state().after_cut(crate::disk::sim::Left::Everything);
        let device = rig.boot(&fs).unwrap();
        fs.fail_at(call, failure);
        // It may end in an error; what serves meanwhile and afterwards is what counts.
        let _ = update(&rig, &fs, device);
        fs.mend();
        for left in [crate::disk::sim::Left::Everything, crate::disk::sim::Left::Nothing] {
            let after = fs.state().after_cut(left);
            let mut device = rig.boot(&after).unwrap_or_else(|error| panic!("{what}: {error:#}"));
            whole(&device, &what);
            device.desired(&rig.plane.desired(4, 2)).unwrap();
            device.run().unwrap();
            let record = device.record();
            assert_eq!(device.serves(), Some(ModelVersion(2)), "{what}: {record:?}");
        }
    }
    println!("install: {failure:?} at each of {calls} calls");
    calls
}

#[test]
fn a_disk_that_is_full_at_any_call_of_an_install_keeps_the_old_bundle() {
    assert!(failing(Failure::Full) > 100);
}

#[test]
fn a_call_that_fails_once_is_not_believed() {
    assert!(failing(Failure::Once) > 100);
}
