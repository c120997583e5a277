//! Attacks on the snapshot step (TUF §5.5).

use super::*;

#[test]
fn a_snapshot_needs_a_timestamp() {
    let release = Versions::all(1).release();
    refused(&mut fresh(), "out_of_order", |set| {
        set.update_snapshot(&release.snapshot, today())
    });
}

#[test]
fn a_snapshot_under_an_expired_timestamp_is_refused() {
    let release = Versions::all(1).release();
    let mut set = fresh();
    set.update_timestamp(&release.timestamp, Expiry::Ignore).unwrap();
    refused(&mut set, "expired", |set| {
        set.update_snapshot(&release.snapshot, after_expiry())
    });
}

#[test]
fn a_snapshot_of_another_length_or_digest_is_refused() {
    let release = Versions::all(1).release();
    let mut set = fresh();
    set.update_timestamp(&release.timestamp, today()).unwrap();
    let mut longer = release.snapshot.clone();
    longer.push(b' ');
    refused(&mut set, "length", |set| set.update_snapshot(&longer, today()));
    let mut other = release.snapshot.clone();
    *other.last_mut().unwrap() = b' ';
    refused(&mut set, "hash", |set| set.update_snapshot(&other, today()));
}

#[test]
fn a_digest_that_cannot_be_checked_is_not_taken_for_checked() {
    let hashes = Some(BTreeMap::from([("md5".to_owned(), "00".repeat(16))]));
    let mut set = fresh();
    let listed = MetaFile {
        hashes,
        ..version_only(1)
    };
    set.update_timestamp(&timestamp_listing(1, listed), today()).unwrap();
    let release = Versions::all(1).release();
    refused(&mut set, "hash_unsupported", |set| {
        set.update_snapshot(&release.snapshot, today())
    });
}

#[test]
fn a_snapshot_by_the_timestamp_key_is_refused() {
    let forged = Versions {
        snapshot_key: TIMESTAMP,
        ..Versions::all(1)
    }
    .release();
    refused(&mut expecting_snapshot(), "sig_threshold", |set| {
        set.update_snapshot(&forged.snapshot, today())
    });
}

#[test]
fn mix_and_match_of_snapshots_is_refused() {
    for other in [2, u64::MAX] {
        let release = Versions::all(other).release();
        refused(&mut expecting_snapshot(), "mix_and_match", |set| {
            set.update_snapshot(&release.snapshot, today())
        });
    }
}

#[test]
fn rollback_of_targets_in_a_newer_snapshot_is_refused() {
    let mut set = trusting(&Versions::all(5).release());
    let older = Versions {
        targets: 4,
        ..Versions::all(6)
    }
    .release();
    set.update_timestamp(&older.timestamp, today()).unwrap();
    refused(&mut set, "rollback", |set| {
        set.update_snapshot(&older.snapshot, today())
    });
}

#[test]
fn a_snapshot_cannot_drop_or_lower_a_role() {
    let listing = |snapshot_version, role_version: Option<u64>| {
        let mut snapshot = new_snapshot(snapshot_version, expires(), version_only(1));
        let entry = role_version.map(|version| ("camera.json".to_owned(), version_only(version)));
        snapshot.meta.extend(entry);
        sign(&snapshot, &[SNAPSHOT])
    };
    let mut set = expecting_snapshot();
    set.update_snapshot(&listing(1, Some(3)), today()).unwrap();
    set.update_timestamp(&timestamp_listing(2, version_only(2)), today())
        .unwrap();
    refused(&mut set, "role_removed", |set| {
        set.update_snapshot(&listing(2, None), today())
    });
    refused(&mut set, "rollback", |set| {
        set.update_snapshot(&listing(2, Some(2)), today())
    });
    set.update_snapshot(&listing(2, Some(3)), today()).unwrap();
}

#[test]
fn a_snapshot_without_targets_is_refused() {
    let mut empty = new_snapshot(1, expires(), version_only(1));
    empty.meta = BTreeMap::new();
    let bytes = sign(&empty, &[SNAPSHOT]);
    refused(&mut expecting_snapshot(), "not_listed", |set| {
        set.update_snapshot(&bytes, today())
    });
}

#[test]
fn an_expired_snapshot_is_refused() {
    let expired = sign(
        &new_snapshot(1, time("2020-01-01T00:00:00Z"), version_only(1)),
        &[SNAPSHOT],
    );
    refused(&mut expecting_snapshot(), "expired", |set| {
        set.update_snapshot(&expired, today())
    });
}
