//! Metadata is written and read back without loss.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sha2::Sha512;

use super::*;
use crate::canonical_json::tests::values;
use crate::delegation::{DelegatedPaths, SearchOrder};
use crate::fixtures::{key, key_set};
use crate::limits::Limits;
use crate::path_pattern::PathPattern;
use crate::sign::{
    NewRoot, SigningKey, add_signature, new_root, new_snapshot, new_targets, new_timestamp, sign_metadata,
};
use crate::signed::Signed;

fn extra() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("x_[a-z]{1,8}", values(), 0..3).prop_map(|members| members.into_iter().collect())
}

fn times() -> impl Strategy<Value = UnixTime> {
    any::<i64>().prop_map(UnixTime::from_millis)
}

fn key_sets() -> impl Strategy<Value = KeySet> {
    (prop::collection::vec(any::<u8>(), 1..3), 1u32..4).prop_map(|(seeds, threshold)| key_set(&seeds, threshold))
}

fn meta_files() -> impl Strategy<Value = MetaFile> {
    let hashes = prop::collection::btree_map("[a-z0-9]{1,8}", "[0-9a-f]{0,64}", 0..3);
    (
        1u64..,
        prop::option::of(any::<u64>()),
        prop::option::of(hashes),
        extra(),
    )
        .prop_map(|(version, length, hashes, extra)| MetaFile {
            version,
            length,
            hashes,
            extra,
        })
}

fn roots() -> impl Strategy<Value = Root> {
    let sets = (
        key_sets(),
        key_sets(),
        key_sets(),
        key_sets(),
        prop::option::of(key_sets()),
        prop::option::of(key_sets()),
    );
    (1u64.., times(), sets, extra(), extra()).prop_map(|(version, expires, sets, root_extra, key_extra)| {
        let (root, timestamp, snapshot, targets, assignment, time) = sets;
        let mut new = new_root(NewRoot {
            version,
            expires,
            root,
            timestamp,
            snapshot,
            targets,
            assignment,
            time,
        });
        new.extra = root_extra;
        new.roles.extra = key_extra.clone();
        new.keys.first_entry().unwrap().get_mut().extra = key_extra;
        new
    })
}

fn delegations() -> impl Strategy<Value = Delegations> {
    let paths = prop_oneof![
        prop::collection::vec("[a-z*?/]{0,8}".prop_map(PathPattern::new), 0..3).prop_map(DelegatedPaths::Patterns),
        prop::collection::vec("[0-9a-f]{0,4}", 0..3).prop_map(DelegatedPaths::HashPrefixes),
    ];
    let search = prop_oneof![Just(SearchOrder::Continue), Just(SearchOrder::Terminate)];
    let role = ("[a-z/?#é]{1,8}", key_sets(), paths, search, extra());
    (prop::collection::vec(role, 0..4), extra()).prop_map(|(roles, more)| {
        let mut delegations = Delegations::default();
        for (name, keys, paths, search, extra) in roles {
            delegations.delegate(RoleName::new(format!("x{name}")).unwrap(), keys, paths, search);
            delegations.roles.last_mut().unwrap().extra = extra;
        }
        delegations.extra = more;
        delegations
    })
}

fn targets() -> impl Strategy<Value = Targets> {
    let file = (
        "[a-z]{1,9}(/[a-z]{1,9})?",
        any::<u64>(),
        any::<[u8; 32]>(),
        prop::option::of(extra()),
        extra(),
    );
    (
        1u64..,
        times(),
        prop::collection::vec(file, 0..4),
        prop::option::of(delegations()),
        extra(),
    )
        .prop_map(|(version, expires, files, delegations, extra)| {
            let mut targets = new_targets(version, expires);
            targets.delegations = delegations;
            targets.extra = extra;
            for (name, length, digest, custom, extra) in files {
                let file = TargetFile {
                    custom,
                    extra,
                    ..TargetFile::from_sha256(length, &digest)
                };
                targets.add_target(TargetName::new(name).unwrap(), file);
            }
            targets
        })
}

fn snapshots() -> impl Strategy<Value = Snapshot> {
    (1u64.., times(), meta_files(), meta_files(), extra()).prop_map(|(version, expires, file, other, extra)| {
        let mut snapshot = new_snapshot(version, expires, file);
        snapshot.meta.insert("other.json".to_owned(), other);
        snapshot.extra = extra;
        snapshot
    })
}

fn timestamps() -> impl Strategy<Value = Timestamp> {
    (1u64.., times(), meta_files(), extra()).prop_map(|(version, expires, file, extra)| {
        let mut timestamp = new_timestamp(version, expires, file);
        timestamp.extra = extra;
        timestamp
    })
}

fn round_trip<T: Metadata + Clone + PartialEq + fmt::Debug>(metadata: &T) -> Result<(), TestCaseError> {
    let bytes = sign_metadata(metadata, [&key(1)]).unwrap();
    let file = Signed::<T>::parse(&bytes, &Limits::default()).unwrap();
    prop_assert_eq!(file.unverified(), metadata);
    prop_assert!(file.clone().verify(&key_set(&[2], 1), 1).is_err());
    let verified = file.verify(&key_set(&[1], 1), 1).unwrap();
    prop_assert_eq!(verified.metadata(), metadata);
    prop_assert_eq!(verified.bytes(), bytes.as_slice());
    // Signing is deterministic, so writing again what was read gives the same file.
    prop_assert_eq!(sign_metadata(verified.metadata(), [&key(1)]).unwrap(), bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn root_round_trips(metadata in roots()) {
        round_trip(&metadata)?;
    }

    #[test]
    fn targets_round_trip(metadata in targets()) {
        round_trip(&metadata)?;
    }

    #[test]
    fn snapshot_round_trips(metadata in snapshots()) {
        round_trip(&metadata)?;
    }

    #[test]
    fn timestamp_round_trips(metadata in timestamps()) {
        round_trip(&metadata)?;
    }
}

#[test]
fn two_people_sign_one_after_the_other() {
    let both = key_set(&[1, 2], 2);
    let alone = sign_metadata(&new_targets(1, UnixTime::from_seconds(0)), [&key(1)]).unwrap();
    let parse = |bytes: &[u8]| Signed::<Targets>::parse(bytes, &Limits::default()).unwrap();
    assert_eq!(parse(&alone).verify(&both, 1).unwrap_err().code(), "sig_threshold");
    let together = add_signature::<Targets>(&alone, &key(2)).unwrap();
    assert!(parse(&together).verify(&both, 1).is_ok());
    // Signing twice leaves one signature.
    let again = add_signature::<Targets>(&together, &key(2)).unwrap();
    assert_eq!(again, together);
}

#[test]
fn what_a_device_would_refuse_is_not_signed() {
    let unsigned: [&SigningKey; 0] = [];
    let day = UnixTime::from_seconds(0);
    let mut float = new_targets(1, day);
    float.extra.insert("x_float".to_owned(), Value::from(1.5));
    assert_eq!(sign_metadata(&float, unsigned).unwrap_err().code(), "not_canonical");
    assert_eq!(
        sign_metadata(&new_targets(0, day), unsigned).unwrap_err().code(),
        "parse"
    );
    let mut large = new_targets(1, day);
    large
        .extra
        .insert("x_large".to_owned(), Value::from("a".repeat(2 << 20)));
    assert_eq!(sign_metadata(&large, unsigned).unwrap_err().code(), "too_large");
    let mut other_spec = new_targets(1, day);
    other_spec.spec_version = "2.0.0".to_owned();
    assert_eq!(sign_metadata(&other_spec, unsigned).unwrap_err().code(), "spec_version");
}

#[test]
fn every_digest_that_we_compute_must_match_and_one_must_be_there() {
    let name = TargetName::new("model").unwrap();
    let check = |hashes: &[(&str, String)]| {
        let mut file = TargetFile::describe(b"model");
        file.hashes = hashes
            .iter()
            .map(|(algorithm, digest)| ((*algorithm).to_owned(), digest.clone()))
            .collect();
        file.check(&name, b"model").map_err(|error| error.code())
    };
    let (sha256, sha512) = (
        hex::encode(Sha256::digest("model")),
        hex::encode(Sha512::digest("model")),
    );
    assert_eq!(check(&[("sha256", sha256.clone())]), Ok(()));
    assert_eq!(check(&[("sha512", sha512.clone())]), Ok(()));
    assert_eq!(check(&[("blake3", String::new()), ("sha256", sha256.clone())]), Ok(()));
    assert_eq!(
        check(&[("sha256", sha256.clone()), ("sha512", sha256.clone())]),
        Err("hash")
    );
    assert_eq!(
        check(&[("sha256", "zz".to_owned()), ("sha512", sha512)]),
        Err("hash_unsupported")
    );
    assert_eq!(check(&[("blake3", sha256)]), Err("hash_unsupported"));
    assert_eq!(check(&[]), Err("hash_unsupported"));
}

#[test]
fn a_secret_key_is_never_printed() {
    let secret = key(7);
    let printed = format!("{secret:?}");
    assert!(printed.contains(&secret.public_key().keyval.public));
    assert!(!printed.contains(&hex::encode(secret.seed())));
    assert!(!printed.contains("7, 7"));
}
