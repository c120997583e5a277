//! Attacks on the walk along the root chain (TUF §5.3).

use super::*;

#[test]
fn a_root_of_the_image_not_signed_by_itself_is_refused() {
    let by_another = sign(&root_metadata(1, |_| {}), &[9]);
    assert_eq!(TrustedSet::new(&by_another).unwrap_err().code(), "sig_threshold");
    let unsigned = sign(&root_metadata(1, |_| {}), &[]);
    assert_eq!(TrustedSet::new(&unsigned).unwrap_err().code(), "sig_threshold");
}

#[test]
fn a_root_signed_only_by_the_old_keys_is_refused() {
    let rotated = root_metadata(2, |new| new.root = key_set(&[11], 1));
    refused(&mut fresh(), "sig_threshold", |set| {
        set.update_root(&sign(&rotated, &[ROOT]))
    });
}

#[test]
fn a_root_signed_only_by_the_new_keys_is_refused() {
    let rotated = root_metadata(2, |new| new.root = key_set(&[11], 1));
    refused(&mut fresh(), "sig_threshold", |set| {
        set.update_root(&sign(&rotated, &[11]))
    });
}

#[test]
fn a_root_signed_by_old_and_new_keys_is_taken() {
    let rotated = root_metadata(2, |new| new.root = key_set(&[11], 1));
    let mut set = fresh();
    assert_eq!(set.update_root(&sign(&rotated, &[ROOT, 11])).unwrap(), Outcome::Updated);
    assert_eq!(set.root().version, 2);
    // The old key alone has no say any more.
    refused(&mut set, "sig_threshold", |set| set.update_root(&root(3)));
}

#[test]
fn a_threshold_of_root_keys_is_counted_over_distinct_keys() {
    let first = sign(&root_metadata(1, |new| new.root = key_set(&[11, 12, 13], 2)), &[11, 12]);
    let mut set = TrustedSet::new(&first).unwrap();
    let second = root_metadata(2, |new| new.root = key_set(&[11, 12, 13], 2));
    refused(&mut set, "sig_threshold", |set| set.update_root(&sign(&second, &[11])));
    set.update_root(&sign(&second, &[13, 11])).unwrap();
}

#[test]
fn one_key_under_two_ids_does_not_meet_a_threshold() {
    let mut metadata = root_metadata(1, |new| new.root = key_set(&[11, 12], 2));
    let alias = KeyId::new("alias");
    metadata.keys.insert(alias.clone(), key(11).public_key());
    metadata.roles.root.keyids.insert(alias);
    let bytes = tampered(&sign(&metadata, &[11]), |file| {
        let mut again = file["signatures"][0].clone();
        again["keyid"] = json!("alias");
        file["signatures"].as_array_mut().unwrap().push(again);
    });
    assert_eq!(TrustedSet::new(&bytes).unwrap_err().code(), "sig_threshold");
}

#[test]
fn a_version_gap_an_older_and_the_same_root_are_refused() {
    let mut set = fresh();
    set.update_root(&root(2)).unwrap();
    refused(&mut set, "root_version_gap", |set| set.update_root(&root(4)));
    refused(&mut set, "root_version_gap", |set| set.update_root(&root(u64::MAX)));
    refused(&mut set, "rollback", |set| set.update_root(&root(2)));
    refused(&mut set, "rollback", |set| set.update_root(&root(1)));
}

#[test]
fn a_device_that_was_away_for_twenty_rotations_walks_them_all() {
    let rotated = |version: u8| root_metadata(version.into(), |new| new.root = key_set(&[100 + version], 1));
    let mut set = TrustedSet::new(&sign(&rotated(1), &[101])).unwrap();
    for version in 2..=21 {
        assert_eq!(set.next_root_file().file_name, format!("{version}.root.json"));
        set.update_root(&sign(&rotated(version), &[100 + version - 1, 100 + version]))
            .unwrap();
    }
    update(&mut set, &Versions::all(1).release()).unwrap();
}

#[test]
fn only_the_last_root_must_not_have_expired() {
    let expired = |version| {
        sign(
            &root_metadata(version, |new| new.expires = time("2020-01-01T00:00:00Z")),
            &[ROOT],
        )
    };
    let release = Versions::all(1).release();
    let mut set = TrustedSet::new(&expired(1)).unwrap();
    set.update_root(&expired(2)).unwrap();
    refused(&mut set, "expired", |set| {
        set.update_timestamp(&release.timestamp, today())
    });
    set.update_root(&root(3)).unwrap();
    update(&mut set, &release).unwrap();
}

#[test]
fn the_highest_version_does_not_overflow() {
    let mut set = TrustedSet::new(&root(u64::MAX)).unwrap();
    assert_eq!(set.next_root_file().version, u64::MAX);
    refused(&mut set, "rollback", |set| set.update_root(&root(u64::MAX)));
}
