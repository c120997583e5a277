//! What a new root makes of the keys and files of the old one (TUF §5.3.11).

use super::*;
use crate::sign::NewRoot;

fn rotation(version: u64, change: impl FnOnce(&mut NewRoot)) -> Vec<u8> {
    sign(&root_metadata(version, change), &[ROOT])
}

#[test]
fn fast_forward_by_a_stolen_timestamp_key_ends_with_its_rotation() {
    let mut set = trusting(&Versions::all(1).release());
    let stolen = Versions {
        timestamp: 1 << 63,
        ..Versions::all(1)
    }
    .release();
    set.update_timestamp(&stolen.timestamp, today()).unwrap();
    let next = Versions {
        timestamp_key: 12,
        ..Versions::all(2)
    }
    .release();

    set.update_root(&rotation(2, |new| new.timestamp = key_set(&[12], 1)))
        .unwrap();
    assert_eq!(
        set.floors(),
        VersionFloors {
            root: 2,
            ..VersionFloors::default()
        }
    );
    assert_eq!((set.timestamp(), set.snapshot()), (None, None));
    refused(&mut set, "sig_threshold", |set| {
        set.update_timestamp(&stolen.timestamp, today())
    });
    update(&mut set, &next).unwrap();
}

#[test]
fn fast_forward_of_every_version_ends_with_the_rotation_of_the_snapshot_key() {
    let mut set = trusting(&Versions::all(u64::MAX).release());
    set.update_root(&rotation(2, |new| new.snapshot = key_set(&[13], 1)))
        .unwrap();
    assert_eq!((set.timestamp(), set.snapshot()), (None, None));
    update(
        &mut set,
        &Versions {
            snapshot_key: 13,
            ..Versions::all(2)
        }
        .release(),
    )
    .unwrap();
    assert_eq!(set.fresh_targets(today()).unwrap().version, 2);
}

#[test]
fn a_key_that_is_only_added_forgets_nothing() {
    let mut set = trusting(&Versions::all(5).release());
    set.update_root(&rotation(2, |new| new.timestamp = key_set(&[TIMESTAMP, 12], 1)))
        .unwrap();
    assert_eq!(
        set.floors(),
        VersionFloors {
            root: 2,
            timestamp: 5,
            snapshot: 5,
            targets: 5
        }
    );
    assert_eq!(version(&set, Role::Timestamp), Some(5));
    let older = Versions::all(4).release();
    refused(&mut set, "rollback", |set| {
        set.update_timestamp(&older.timestamp, today())
    });
}

#[test]
fn targets_by_a_revoked_key_are_forgotten_at_once() {
    let mut set = trusting(&Versions::all(5).release());
    set.update_root(&rotation(2, |new| new.targets = key_set(&[14], 1)))
        .unwrap();
    assert_eq!(set.targets(), None);
    assert_eq!(set.fresh_targets(today()).unwrap_err().code(), "out_of_order");
    assert_eq!(set.floors().targets, 5);
    update(
        &mut set,
        &Versions {
            targets_key: 14,
            ..Versions::all(6)
        }
        .release(),
    )
    .unwrap();
}

#[test]
fn a_higher_threshold_holds_for_what_was_trusted_before() {
    let mut set = trusting(&Versions::all(5).release());
    set.update_root(&rotation(2, |new| new.timestamp = key_set(&[TIMESTAMP, 12], 2)))
        .unwrap();
    assert_eq!(set.timestamp(), None);
    assert_eq!(set.floors().timestamp, 5);
}
