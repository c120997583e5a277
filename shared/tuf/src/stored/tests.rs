//! Restarts, lost files, torn files and power cuts between two writes.

#![allow(clippy::unwrap_used, clippy::wildcard_imports)]

use proptest::prelude::*;

use super::*;
use crate::fixtures::*;

fn store(set: &TrustedSet) -> StoredMetadata {
    let file = |role| set.bytes(role).map(<[u8]>::to_vec);
    StoredMetadata {
        root: file(Role::Root).unwrap(),
        timestamp: file(Role::Timestamp),
        snapshot: file(Role::Snapshot),
        targets: file(Role::Targets),
    }
}

fn load(stored: &StoredMetadata, floors: VersionFloors) -> LoadedSet {
    TrustedSet::from_stored(stored, floors, Limits::default()).unwrap()
}

fn rotated_root() -> Vec<u8> {
    sign(&root_metadata(2, |new| new.timestamp = key_set(&[12], 1)), &[ROOT])
}

#[test]
fn a_restart_forgets_nothing() {
    let set = trusting(&Versions::all(5).release());
    let loaded = load(&store(&set), set.floors());
    assert!(loaded.dropped.is_empty());
    assert_eq!(loaded.set, set);
}

#[test]
fn expired_files_still_say_which_versions_are_old() {
    let set = trusting(&Versions::all(5).release());
    let mut loaded = load(&store(&set), VersionFloors::default()).set;
    assert_eq!(loaded.floors(), set.floors());
    assert_eq!(loaded.fresh_targets(after_expiry()).unwrap_err().code(), "expired");
    let older = Versions::all(4).release();
    refused(&mut loaded, "rollback", |set| {
        set.update_timestamp(&older.timestamp, today())
    });
}

#[test]
fn torn_files_do_not_open_the_way_for_older_ones() {
    let set = trusting(&Versions::all(5).release());
    let mut stored = store(&set);
    for file in [&mut stored.timestamp, &mut stored.snapshot, &mut stored.targets] {
        file.as_mut().unwrap().truncate(40);
    }
    let mut loaded = load(&stored, set.floors());
    assert_eq!(loaded.dropped.len(), 3);
    assert_eq!((loaded.set.timestamp(), loaded.set.targets()), (None, None));
    let older = Versions::all(4).release();
    refused(&mut loaded.set, "rollback", |set| {
        set.update_timestamp(&older.timestamp, today())
    });
    // The version that was trusted comes back without complaint.
    update(&mut loaded.set, &Versions::all(5).release()).unwrap();
    assert_eq!(loaded.set, set);
}

#[test]
fn missing_files_do_not_open_the_way_for_older_targets() {
    let set = trusting(&Versions::all(5).release());
    let stored = StoredMetadata {
        root: root(1),
        ..StoredMetadata::default()
    };
    let mut loaded = load(&stored, set.floors()).set;
    let older = Versions {
        targets: 4,
        ..Versions::all(6)
    }
    .release();
    loaded.update_timestamp(&older.timestamp, today()).unwrap();
    refused(&mut loaded, "rollback", |set| {
        set.update_snapshot(&older.snapshot, today())
    });
}

#[test]
fn an_older_set_of_files_put_back_on_disk_is_not_believed() {
    let newer = trusting(&Versions::all(5).release());
    let older = trusting(&Versions::all(4).release());
    let loaded = load(&store(&older), newer.floors());
    assert_eq!(loaded.dropped.first().unwrap().error.code(), "rollback");
    assert_eq!(
        (loaded.set.timestamp(), loaded.set.snapshot(), loaded.set.targets()),
        (None, None, None)
    );
    assert_eq!(loaded.set.floors(), newer.floors());
}

#[test]
fn a_lost_root_is_walked_again_before_anything_else() {
    let mut set = trusting(&Versions::all(5).release());
    set.update_root(&root(2)).unwrap();
    set.update_root(&root(3)).unwrap();
    let stored = StoredMetadata {
        root: root(1),
        ..store(&set)
    };
    let mut loaded = load(&stored, set.floors());
    assert!(
        loaded
            .dropped
            .iter()
            .all(|file| file.error.code() == "root_below_floor"),
        "{:?}",
        loaded.dropped
    );
    let release = Versions::all(5).release();
    refused(&mut loaded.set, "root_below_floor", |set| {
        set.update_timestamp(&release.timestamp, today())
    });
    assert_eq!(
        loaded.set.fresh_targets(today()).unwrap_err().code(),
        "root_below_floor"
    );
    loaded.set.update_root(&root(2)).unwrap();
    refused(&mut loaded.set, "root_below_floor", |set| {
        set.update_timestamp(&release.timestamp, today())
    });
    loaded.set.update_root(&root(3)).unwrap();
    update(&mut loaded.set, &release).unwrap();
    assert_eq!(loaded.set, set);
}

#[test]
fn a_past_rotation_walked_again_lowers_no_floor() {
    let mut set = TrustedSet::new(&root(1)).unwrap();
    set.update_root(&rotated_root()).unwrap();
    update(
        &mut set,
        &Versions {
            timestamp_key: 12,
            ..Versions::all(5)
        }
        .release(),
    )
    .unwrap();

    let mut loaded = load(
        &StoredMetadata {
            root: root(1),
            ..store(&set)
        },
        set.floors(),
    )
    .set;
    loaded.update_root(&rotated_root()).unwrap();
    assert_eq!(loaded.floors(), set.floors());
    let older = Versions {
        timestamp_key: 12,
        ..Versions::all(4)
    }
    .release();
    refused(&mut loaded, "rollback", |set| {
        set.update_timestamp(&older.timestamp, today())
    });
}

/// Without floors kept apart, a cycle that ended between timestamp and snapshot must not hide the snapshot that is older.
#[test]
fn attack_older_targets_after_a_cycle_that_ended_half_way() {
    let mut set = trusting(&Versions::all(5).release());
    let next = |targets| {
        Versions {
            targets,
            ..Versions::all(6)
        }
        .release()
    };
    set.update_timestamp(&next(6).timestamp, today()).unwrap();
    update(&mut load(&store(&set), VersionFloors::default()).set, &next(6)).unwrap();

    let older = next(4);
    let mut set = trusting(&Versions::all(5).release());
    set.update_timestamp(&older.timestamp, today()).unwrap();
    let mut loaded = load(&store(&set), VersionFloors::default()).set;
    assert_eq!(loaded, set);
    refused(&mut loaded, "rollback", |set| {
        set.update_snapshot(&older.snapshot, today())
    });
    assert_eq!(loaded.fresh_targets(today()).unwrap_err().code(), "mix_and_match");
}

/// One write of a part of a trusted set to the files and the floors on disk.
type Write = fn(&mut (StoredMetadata, VersionFloors), &TrustedSet);

/// The writes after a rotation in their documented order, cut off after each.
#[test]
fn a_power_cut_anywhere_in_a_recovery_from_fast_forward_does_not_undo_it() {
    let mut set = trusting(&Versions::all(u64::MAX).release());
    let mut disk = (store(&set), set.floors());
    set.update_root(&rotated_root()).unwrap();
    let writes: [Write; 4] = [
        |disk, set| disk.1 = set.floors(),
        |disk, _| disk.0.timestamp = None,
        |disk, _| disk.0.snapshot = None,
        |disk, set| disk.0.root = set.bytes(Role::Root).unwrap().to_vec(),
    ];
    let next = Versions {
        timestamp_key: 12,
        ..Versions::all(2)
    }
    .release();
    for written in 0..=writes.len() {
        let mut loaded = load(&disk.0, disk.1).set;
        if loaded.root().version == 1 {
            loaded.update_root(&rotated_root()).unwrap();
        }
        update(&mut loaded, &next).unwrap();
        if let Some(write) = writes.get(written) {
            write(&mut disk, &set);
        }
    }
}

#[test]
fn a_root_that_cannot_be_read_is_an_error() {
    let set = trusting(&Versions::all(5).release());
    let stored = StoredMetadata {
        root: b"{".to_vec(),
        ..store(&set)
    };
    assert_eq!(
        TrustedSet::from_stored(&stored, set.floors(), Limits::default())
            .unwrap_err()
            .code(),
        "parse"
    );
}

proptest! {
    /// Whatever is lost and in whatever order versions are offered, no version falls.
    #[test]
    fn versions_never_fall(offers in prop::collection::vec((1u64..6, 1u64..6, 1u64..6, 0u8..16), 1..8)) {
        let mut set = TrustedSet::new(&root(1)).unwrap();
        for (timestamp, snapshot, targets, lost) in offers {
            let floors = set.floors();
            let _ = update(&mut set, &Versions { timestamp, snapshot, targets, ..Versions::all(1) }.release());
            let after = set.floors();
            prop_assert!(after.timestamp >= floors.timestamp);
            prop_assert!(after.snapshot >= floors.snapshot);
            prop_assert!(after.targets >= floors.targets);
            if let Ok(targets) = set.fresh_targets(today()) {
                prop_assert_eq!(targets.version, after.targets);
            }

            let mut stored = store(&set);
            let files = [&mut stored.timestamp, &mut stored.snapshot, &mut stored.targets];
            for (bit, file) in files.into_iter().enumerate() {
                file.take_if(|_| lost & (1 << bit) != 0);
            }
            set = load(&stored, after).set;
            prop_assert_eq!(set.floors(), after);
        }
    }
}
