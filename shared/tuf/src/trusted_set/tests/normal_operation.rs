//! What an honest repository can do.

use super::*;

#[test]
fn a_release_is_taken_step_by_step() {
    let release = Versions::all(1).release();
    let mut set = fresh();
    assert_eq!(set.wanted_snapshot(), None);
    assert_eq!(
        set.update_timestamp(&release.timestamp, today()).unwrap(),
        Outcome::Updated
    );
    let wanted = set.wanted_snapshot().unwrap();
    assert_eq!((wanted.file_name.as_str(), wanted.version), ("1.snapshot.json", 1));
    assert_eq!(wanted.max_bytes, release.snapshot.len());
    assert_eq!(
        set.update_snapshot(&release.snapshot, today()).unwrap(),
        Outcome::Updated
    );
    assert_eq!(set.wanted_snapshot(), None);
    assert_eq!(set.wanted_targets().unwrap().file_name, "1.targets.json");
    assert_eq!(set.update_targets(&release.targets, today()).unwrap(), Outcome::Updated);
    assert_eq!(set.wanted_targets(), None);

    let file = set.fresh_targets(today()).unwrap().find(&model()).unwrap();
    file.check(&model(), b"model 1").unwrap();
    assert_eq!(file.check(&model(), b"model 2").unwrap_err().code(), "hash");
    assert_eq!(file.check(&model(), b"model").unwrap_err().code(), "length");
    assert_eq!(set.bytes(Role::Targets), Some(release.targets.as_slice()));
    assert_eq!(
        set.floors(),
        VersionFloors {
            root: 1,
            timestamp: 1,
            snapshot: 1,
            targets: 1
        }
    );
}

#[test]
fn a_newer_release_replaces_an_older_one() {
    let mut set = trusting(&Versions::all(1).release());
    let newer = Versions::all(2).release();
    set.update_timestamp(&newer.timestamp, today()).unwrap();
    // Between the steps the old targets explain what is installed, and nothing can be installed by them.
    assert_eq!(version(&set, Role::Targets), Some(1));
    assert_eq!(set.fresh_targets(today()).unwrap_err().code(), "mix_and_match");
    set.update_snapshot(&newer.snapshot, today()).unwrap();
    assert_eq!(set.fresh_targets(today()).unwrap_err().code(), "mix_and_match");
    set.update_targets(&newer.targets, today()).unwrap();
    assert_eq!(set.fresh_targets(today()).unwrap().version, 2);
}

#[test]
fn what_is_trusted_already_changes_nothing() {
    let release = Versions::all(1).release();
    let mut set = trusting(&release);
    let before = set.clone();
    assert_eq!(
        set.update_timestamp(&release.timestamp, today()).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(
        set.update_snapshot(&release.snapshot, today()).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(
        set.update_targets(&release.targets, today()).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(set, before);
}

#[test]
fn the_first_timestamp_of_a_version_wins() {
    let mut set = trusting(&Versions::all(1).release());
    let other = Versions {
        snapshot: 9,
        targets: 9,
        ..Versions::all(1)
    }
    .release();
    assert_eq!(
        set.update_timestamp(&other.timestamp, today()).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(set.timestamp().unwrap().snapshot_meta().unwrap().version, 1);
}

#[test]
fn the_keys_of_our_own_roles_come_from_the_root() {
    let set = fresh();
    assert_eq!(set.root().assignment_keys(), Some(key_set(&[ASSIGNMENT], 1)));
    assert_eq!(set.root().time_keys(), Some(key_set(&[TIME], 1)));
    let only_time = sign(&root_metadata(1, |new| new.assignment = None), &[ROOT]);
    let set = TrustedSet::new(&only_time).unwrap();
    assert_eq!(set.root().assignment_keys(), None);
    assert_eq!(set.root().time_keys(), Some(key_set(&[TIME], 1)));
}

#[test]
fn unknown_members_are_covered_by_the_signature() {
    let mut metadata = root_metadata(1, |_| {});
    metadata
        .extra
        .insert("x_later".to_owned(), json!({"b": [1, null], "a": "é"}));
    let bytes = sign(&metadata, &[ROOT]);
    assert_eq!(TrustedSet::new(&bytes).unwrap().root(), &metadata);
    let forged = tampered(&bytes, |file| file["signed"]["x_later"]["a"] = json!("e"));
    assert_eq!(TrustedSet::new(&forged).unwrap_err().code(), "sig_threshold");
}

#[test]
fn white_space_does_not_matter_to_signatures() {
    let pretty = serde_json::to_vec_pretty(&serde_json::from_slice::<Value>(&root(1)).unwrap()).unwrap();
    assert!(TrustedSet::new(&pretty).is_ok());
}
