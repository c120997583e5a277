//! Bringing the metadata up to date: a new release, versions that a stolen key drove up, and the root that takes the key away.

use skerry_tuf::VersionFloors;

use super::{
    device::{Device, NOW_MS, Rig, enrolled, for_every_cut, names, state_dir},
    plane::{Keys, Plane},
};
use crate::disk::{
    Access,
    sim::{Failure, Left, SimFs},
};
use crate::time_request::{Asking, TimeError};

/// What a thief of the online key might sign: no honest version ever reaches it.
const FAST_FORWARD: u64 = 1 << 40;

/// A device that trusts version 1, and the three releases that follow it.
fn rig() -> (Rig, SimFs, [Plane; 3]) {
    let rig = Rig::new();
    let root = rig.plane.root(1, Keys::First);
    rig.plane.bundle(1, true);
    rig.plane.sign(1, Keys::First);
    let fs = enrolled(&root);
    rig.boot(&fs).unwrap().refresh(&rig.plane).unwrap();
    let release = |online: u64, targets: u64, rotated: bool| {
        let plane = Plane::default();
        plane.root(1, Keys::First);
        let keys = if rotated { Keys::Second } else { Keys::First };
        if rotated {
            plane.root(2, keys);
        }
        plane.bundle(targets, true);
        plane.sign_versions(online, targets, keys);
        plane
    };
    let releases = [
        release(2, 2, false),
        release(FAST_FORWARD, 2, false),
        release(3, 3, true),
    ];
    (rig, fs, releases)
}

/// Takes the three releases one after the other, and says which floors were reached after how many calls.
fn take_all(fs: &SimFs, mut device: Device<'_>, releases: &[Plane; 3]) -> anyhow::Result<Vec<(usize, VersionFloors)>> {
    let mut reached = vec![(0, device.record().floors)];
    for release in releases {
        device.refresh(release)?;
        reached.push((fs.calls().len(), device.record().floors));
    }
    Ok(reached)
}

fn lower(new: VersionFloors, old: VersionFloors) -> bool {
    // A new root may take the key away that had driven the versions up, and the versions with it.
    let online = new.timestamp < old.timestamp || new.snapshot < old.snapshot || new.targets < old.targets;
    new.root < old.root || (new.root == old.root && online)
}

/// What must hold after a start, and how it goes on.
fn check(mut device: Device<'_>, old: VersionFloors, old_plane: &Plane, newest: &Plane, what: &str) {
    let floors = device.record().floors;
    assert!(!lower(floors, old), "{what}: {floors:?} is below {old:?}");
    // Somebody who holds back what is new cannot bring the old back.
    let replayed = device.refresh(old_plane);
    assert!(
        floors.timestamp <= 1 || replayed.is_err(),
        "{what}: an old timestamp is taken"
    );
    assert!(!lower(device.record().floors, floors), "{what}");
    device
        .refresh(newest)
        .unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let end = VersionFloors {
        root: 2,
        timestamp: 3,
        snapshot: 3,
        targets: 3,
    };
    assert_eq!(device.record().floors, end, "{what}");
}

#[test]
fn a_cut_at_any_call_of_a_refresh_lowers_no_version_and_blocks_no_recovery() {
    let (rig, fs, releases) = rig();
    let device = rig.boot(&fs).unwrap();
    fs.restart_history();
    let reached = take_all(&fs, device, &releases).unwrap();
    assert_eq!(reached[2].1.timestamp, FAST_FORWARD);
    let cuts = for_every_cut("refresh", &fs, |moment, after, what| {
        let device = rig.boot(after).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let sure = reached.iter().rev().find(|(calls, _)| *calls <= moment).unwrap();
        check(device, sure.1, &rig.plane, &releases[2], what);
    });
    assert!(cuts > 500, "{cuts}");
}

#[test]
fn a_disk_that_fails_in_a_refresh_lowers_no_version() {
    let (rig, before, releases) = rig();
    let fresh = || before.state().after_cut(Left::Everything);
    let counted = fresh();
    counted.restart_history();
    take_all(&counted, rig.boot(&counted).unwrap(), &releases).unwrap();
    let calls = counted.calls().len();
    for failure in [Failure::Full, Failure::Once] {
        for call in 0..calls {
            let what = format!("{failure:?} at call {call}");
            let fs = fresh();
            let device = rig.boot(&fs).unwrap();
            let keeper = device.keeper.clone();
            fs.fail_at(call, failure);
            let _ = take_all(&fs, device, &releases);
            fs.mend();
            let sure = keeper.get().floors;
            for left in [Left::Everything, Left::Nothing] {
                let after = fs.state().after_cut(left);
                check(rig.boot(&after).unwrap(), sure, &rig.plane, &releases[2], &what);
            }
        }
    }
    assert!(calls > 30, "{calls}");
}

#[test]
fn unreadable_metadata_leaves_the_versions_of_the_record() {
    let (rig, fs, releases) = rig();
    rig.boot(&fs).unwrap().refresh(&releases[0]).unwrap();
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        let path = state_dir().join("trust").join(name);
        fs.disk().write(&path, b"{", Access::Everybody).unwrap();
    }
    let mut device = rig.boot(&fs).unwrap();
    assert_eq!(device.record().floors.timestamp, 2);
    let refused = device.refresh(&rig.plane).unwrap_err();
    let refused = refused.downcast_ref::<crate::verify::VerifyError>().unwrap();
    assert_eq!(refused.code(), "rollback");
    device.refresh(&releases[0]).unwrap();
}

#[test]
fn an_unreadable_record_is_an_error_and_not_an_empty_one() {
    let (rig, fs, _) = rig();
    for name in ["state-a", "state-b"] {
        let path = state_dir().join(name);
        fs.disk().write(&path, b"torn", Access::OwnerOnly).unwrap();
    }
    let refused = rig.boot(&fs).err().unwrap();
    assert!(format!("{refused:#}").contains("unreadable"), "{refused:#}");
}

#[test]
fn what_could_not_be_written_is_written_by_the_next_look() {
    let (_, before, releases) = rig();
    let rotated = &releases[2];
    let fresh = || before.state().after_cut(Left::Everything);
    let rig = Rig::new();
    let counted = fresh();
    let mut device = rig.boot(&counted).unwrap();
    counted.restart_history();
    device.refresh(rotated).unwrap();
    let calls = counted.calls().len();
    for failure in [Failure::Full, Failure::Once] {
        for call in 0..calls {
            let what = format!("{failure:?} at call {call}");
            let fs = fresh();
            let mut device = rig.boot(&fs).unwrap();
            fs.fail_at(call, failure);
            let _ = device.refresh(rotated);
            fs.mend();
            device
                .refresh(rotated)
                .unwrap_or_else(|error| panic!("{what}: {error:#}"));
            drop(device);
            // All of it is on the medium now: a start needs nobody to trust the newest release.
            let after = fs.state().after_cut(Left::Nothing);
            let device = rig.boot(&after).unwrap();
            let floors = device.record().floors;
            assert_eq!((floors.root, floors.targets), (2, 3), "{what}");
            let trusted = names(&after, "trust");
            assert_eq!(trusted.len(), 4, "{what}: {trusted:?}");
            let signed = rotated.desired_by(Keys::Second, 1, 3, false);
            device
                .desired(&signed)
                .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        }
    }
    assert!(calls > 20, "{calls}");
}

#[test]
fn a_root_that_is_older_than_its_floor_lends_its_keys_to_nobody() {
    let (rig, fs, releases) = rig();
    let path = state_dir().join("trust/root.json");
    let old = fs.disk().read(&path).unwrap().unwrap();
    let mut device = rig.boot(&fs).unwrap();
    device.desired(&rig.plane.desired(5, 1)).unwrap();
    device.refresh(&releases[2]).unwrap();
    drop(device);
    fs.disk().write(&path, &old, Access::Everybody).unwrap();
    let mut device = rig.boot(&fs).unwrap();
    let by_a_revoked_key = rig.plane.desired(6, 1);
    let code = |refused: anyhow::Error| refused.downcast_ref::<crate::verify::VerifyError>().map(|e| e.code());
    let refused = device.desired(&by_a_revoked_key).unwrap_err();
    assert_eq!(code(refused), Some("root_below_floor"));
    let mut asking = Asking::default();
    let question = asking.ask([7; 16], 0);
    let answer = Plane::time(&question, "dev-1", NOW_MS);
    let refused = asking.answered(&answer, &super::plane::device(), &device.worker.trust, &device.clock);
    assert!(matches!(refused, Err(TimeError::Refused(error)) if error.code() == "root_below_floor"));
    // What is held back stays so until the chain has been walked again.
    assert!(device.worker.trust.still_assigns(&device.record().desired_by));
    device.refresh(&releases[2]).unwrap();
    let refused = device.desired(&by_a_revoked_key).unwrap_err();
    assert_eq!(code(refused), Some("sig_threshold"));
    device
        .desired(&releases[2].desired_by(Keys::Second, 1, 3, false))
        .unwrap();
}
