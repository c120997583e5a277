//! Attacks on the timestamp step (TUF §5.4).

use super::*;

#[test]
fn a_timestamp_by_another_role_or_a_stranger_is_refused() {
    for stranger in [ROOT, SNAPSHOT, TARGETS, ASSIGNMENT, 99] {
        let forged = Versions {
            timestamp_key: stranger,
            ..Versions::all(1)
        }
        .release();
        refused(&mut fresh(), "sig_threshold", |set| {
            set.update_timestamp(&forged.timestamp, today())
        });
    }
}

#[test]
fn changed_content_is_refused() {
    let release = Versions::all(1).release();
    let forged = tampered(&release.timestamp, |file| file["signed"]["version"] = json!(2));
    refused(&mut fresh(), "sig_threshold", |set| {
        set.update_timestamp(&forged, today())
    });
}

#[test]
fn a_signature_that_is_not_hexadecimal_does_not_count() {
    let release = Versions::all(1).release();
    for signature in ["", "zz", "00"] {
        let forged = tampered(&release.timestamp, |file| {
            file["signatures"][0]["sig"] = json!(signature)
        });
        refused(&mut fresh(), "sig_threshold", |set| {
            set.update_timestamp(&forged, today())
        });
    }
}

#[test]
fn the_same_key_id_twice_is_refused() {
    let forged = tampered(&Versions::all(1).release().timestamp, |file| {
        let again = file["signatures"][0].clone();
        file["signatures"].as_array_mut().unwrap().push(again);
    });
    refused(&mut fresh(), "duplicate_signature", |set| {
        set.update_timestamp(&forged, today())
    });
}

#[test]
fn rollback_of_the_timestamp_is_refused() {
    let mut set = trusting(&Versions::all(5).release());
    let older = Versions {
        timestamp: 4,
        ..Versions::all(5)
    }
    .release();
    refused(&mut set, "rollback", |set| {
        set.update_timestamp(&older.timestamp, today())
    });
}

#[test]
fn rollback_of_the_snapshot_in_a_newer_timestamp_is_refused() {
    let mut set = trusting(&Versions::all(5).release());
    let mixed = Versions {
        timestamp: 6,
        snapshot: 4,
        targets: 5,
        ..Versions::all(5)
    }
    .release();
    refused(&mut set, "rollback", |set| {
        set.update_timestamp(&mixed.timestamp, today())
    });
}

#[test]
fn a_frozen_repository_is_noticed_when_its_timestamp_expires() {
    let release = Versions::all(5).release();
    refused(&mut fresh(), "expired", |set| {
        set.update_timestamp(&release.timestamp, after_expiry())
    });

    let mut root = fresh();
    root.update_root(&sign(
        &root_metadata(2, |new| new.expires = time("2040-01-01T00:00:00Z")),
        &[ROOT],
    ))
    .unwrap();
    update(&mut root, &release).unwrap();
    let error = refused(&mut root, "expired", |set| {
        set.update_timestamp(&release.timestamp, after_expiry())
    });
    assert!(error.to_string().starts_with("timestamp"), "{error}");
    assert_eq!(root.fresh_targets(after_expiry()).unwrap_err().code(), "expired");
    // The device still knows what it runs, and a device without a clock goes on.
    assert!(root.targets().is_some());
    assert!(root.fresh_targets(Expiry::Ignore).is_ok());
}

#[test]
fn metadata_is_valid_until_one_second_before_it_expires() {
    let last_second = Expiry::Enforce(UnixTime::from_seconds(expires().as_seconds() - 1));
    let release = Versions::all(1).release();
    fresh().update_timestamp(&release.timestamp, last_second).unwrap();
}

#[test]
fn a_timestamp_without_a_snapshot_is_refused() {
    let mut empty = new_timestamp(1, expires(), version_only(1));
    empty.meta = BTreeMap::new();
    refused(&mut fresh(), "not_listed", |set| {
        set.update_timestamp(&sign(&empty, &[TIMESTAMP]), today())
    });
}
