//! Attacks on the targets step (TUF §5.6).

use super::*;

/// A set that trusts a snapshot which lists targets by version 1 only.
fn expecting_targets() -> TrustedSet {
    let mut set = expecting_snapshot();
    let snapshot = sign(&new_snapshot(1, expires(), version_only(1)), &[SNAPSHOT]);
    set.update_snapshot(&snapshot, today()).unwrap();
    set
}

#[test]
fn targets_need_a_snapshot() {
    let release = Versions::all(1).release();
    refused(&mut fresh(), "out_of_order", |set| {
        set.update_targets(&release.targets, today())
    });
    refused(&mut expecting_snapshot(), "out_of_order", |set| {
        set.update_targets(&release.targets, today())
    });
}

#[test]
fn targets_wait_for_the_newest_snapshot() {
    let old = Versions::all(1).release();
    let mut set = trusting(&old);
    set.update_timestamp(&Versions::all(2).release().timestamp, today())
        .unwrap();
    refused(&mut set, "mix_and_match", |set| {
        set.update_targets(&old.targets, today())
    });
}

#[test]
fn targets_by_any_online_key_are_refused() {
    for online in [TIMESTAMP, SNAPSHOT, ASSIGNMENT, 99] {
        let forged = Versions {
            targets_key: online,
            ..Versions::all(1)
        }
        .release();
        let mut set = fresh();
        set.update_timestamp(&forged.timestamp, today()).unwrap();
        set.update_snapshot(&forged.snapshot, today()).unwrap();
        refused(&mut set, "sig_threshold", |set| {
            set.update_targets(&forged.targets, today())
        });
    }
}

#[test]
fn mix_and_match_of_targets_is_refused() {
    let other = Versions::all(2).release();
    refused(&mut expecting_targets(), "mix_and_match", |set| {
        set.update_targets(&other.targets, today())
    });
}

#[test]
fn targets_of_another_digest_are_refused() {
    let release = Versions::all(1).release();
    let mut set = fresh();
    set.update_timestamp(&release.timestamp, today()).unwrap();
    set.update_snapshot(&release.snapshot, today()).unwrap();
    let mut other = release.targets.clone();
    *other.last_mut().unwrap() = b' ';
    refused(&mut set, "hash", |set| set.update_targets(&other, today()));
}

#[test]
fn expired_targets_are_refused() {
    let expired = sign(&new_targets(1, time("2020-01-01T00:00:00Z")), &[TARGETS]);
    refused(&mut expecting_targets(), "expired", |set| {
        set.update_targets(&expired, today())
    });
}

#[test]
fn a_target_name_that_leaves_its_folder_is_refused() {
    let good = sign(&new_targets(1, expires()), &[TARGETS]);
    for name in ["../../etc/passwd", "/etc/passwd", "a\\b", "a\0", ""] {
        let forged = tampered(&good, |file| {
            file["signed"]["targets"][name] = json!({"length": 0, "hashes": {"sha256": "00"}});
        });
        refused(&mut expecting_targets(), "parse", |set| {
            set.update_targets(&forged, today())
        });
    }
}

#[test]
fn a_target_lies_under_its_digest_if_snapshots_are_consistent() {
    let name = TargetName::new("a b/c#.onnx").unwrap();
    let file = TargetFile::describe(b"model");
    let digest = &file.hashes["sha256"];
    let consistent = fresh();
    assert_eq!(
        consistent.target_path(&name, &file).unwrap(),
        format!("a%20b/{digest}.c%23.onnx")
    );
    let mut metadata = root_metadata(1, |_| {});
    metadata.consistent_snapshot = false;
    let plain = TrustedSet::new(&sign(&metadata, &[ROOT])).unwrap();
    assert_eq!(plain.target_path(&name, &file).unwrap(), "a%20b/c%23.onnx");

    let mut traversal = file.clone();
    traversal.hashes.insert("sha256".to_owned(), "../../x".to_owned());
    assert_eq!(
        consistent.target_path(&name, &traversal).unwrap_err().code(),
        "hash_unsupported"
    );
}
