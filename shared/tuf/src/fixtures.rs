//! A small repository for the tests: one key per role, and files of any version signed by any key.
//!
//! Not for other crates. Invariant: everything is made of fixed seeds, so every run has the same bytes.

#![allow(clippy::unwrap_used)]

use crate::error::Error;
use crate::key::PublicKey;
use crate::metadata::{MetaFile, Metadata, Role, Root, TargetFile};
use crate::sign::{NewRoot, SigningKey, new_root, new_snapshot, new_targets, new_timestamp, sign_metadata};
use crate::target_name::TargetName;
use crate::threshold::KeySet;
use crate::time::UnixTime;
use crate::trusted_set::{Expiry, Outcome, TrustedSet};

pub(crate) const ROOT: u8 = 1;
pub(crate) const TIMESTAMP: u8 = 2;
pub(crate) const SNAPSHOT: u8 = 3;
pub(crate) const TARGETS: u8 = 4;
pub(crate) const ASSIGNMENT: u8 = 5;
pub(crate) const TIME: u8 = 6;

/// The key that a fixed seed gives.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

/// The key set of fixed seeds.
pub(crate) fn key_set(seeds: &[u8], threshold: u32) -> KeySet {
    let keys: Vec<PublicKey> = seeds.iter().map(|seed| key(*seed).public_key()).collect();
    KeySet::new(keys, threshold.try_into().unwrap())
}

pub(crate) fn time(text: &str) -> UnixTime {
    text.parse().unwrap()
}

/// When everything in the fixtures expires, unless a test says otherwise.
pub(crate) fn expires() -> UnixTime {
    time("2030-01-01T00:00:00Z")
}

/// A time at which nothing in the fixtures has expired.
pub(crate) fn today() -> Expiry {
    Expiry::Enforce(time("2026-06-01T00:00:00Z"))
}

/// A time at which everything in the fixtures has expired.
pub(crate) fn after_expiry() -> Expiry {
    Expiry::Enforce(expires())
}

pub(crate) fn sign<T: Metadata>(metadata: &T, seeds: &[u8]) -> Vec<u8> {
    let keys: Vec<SigningKey> = seeds.iter().map(|seed| key(*seed)).collect();
    sign_metadata(metadata, &keys).unwrap()
}

/// Root metadata of one key per role, changed by `change`.
pub(crate) fn root_metadata(version: u64, change: impl FnOnce(&mut NewRoot)) -> Root {
    let mut new = NewRoot {
        version,
        expires: expires(),
        root: key_set(&[ROOT], 1),
        timestamp: key_set(&[TIMESTAMP], 1),
        snapshot: key_set(&[SNAPSHOT], 1),
        targets: key_set(&[TARGETS], 1),
        assignment: Some(key_set(&[ASSIGNMENT], 1)),
        time: Some(key_set(&[TIME], 1)),
    };
    change(&mut new);
    new_root(new)
}

/// A root file of one key per role, signed by the root key.
pub(crate) fn root(version: u64) -> Vec<u8> {
    sign(&root_metadata(version, |_| {}), &[ROOT])
}

/// Timestamp, snapshot and targets that fit together.
#[derive(Clone)]
pub(crate) struct Release {
    pub(crate) timestamp: Vec<u8>,
    pub(crate) snapshot: Vec<u8>,
    pub(crate) targets: Vec<u8>,
}

/// The versions and keys of a release.
#[derive(Clone, Copy)]
pub(crate) struct Versions {
    pub(crate) timestamp: u64,
    pub(crate) snapshot: u64,
    pub(crate) targets: u64,
    pub(crate) timestamp_key: u8,
    pub(crate) snapshot_key: u8,
    pub(crate) targets_key: u8,
}

impl Versions {
    /// The same version for every role, signed by the ordinary keys.
    pub(crate) fn all(version: u64) -> Self {
        Self {
            timestamp: version,
            snapshot: version,
            targets: version,
            timestamp_key: TIMESTAMP,
            snapshot_key: SNAPSHOT,
            targets_key: TARGETS,
        }
    }

    pub(crate) fn release(self) -> Release {
        let mut targets = new_targets(self.targets, expires());
        let content = format!("model {}", self.targets);
        targets.add_target(model(), TargetFile::describe(content.as_bytes()));
        let targets = sign(&targets, &[self.targets_key]);
        let listed = MetaFile::describe(self.targets, &targets);
        let snapshot = sign(&new_snapshot(self.snapshot, expires(), listed), &[self.snapshot_key]);
        let listed = MetaFile::describe(self.snapshot, &snapshot);
        let timestamp = sign(&new_timestamp(self.timestamp, expires(), listed), &[self.timestamp_key]);
        Release {
            timestamp,
            snapshot,
            targets,
        }
    }
}

/// The name of the one target.
pub(crate) fn model() -> TargetName {
    TargetName::new("bundles/model").unwrap()
}

/// A set that trusts root version 1 and `release`.
pub(crate) fn trusting(release: &Release) -> TrustedSet {
    let mut set = TrustedSet::new(&root(1)).unwrap();
    update(&mut set, release).unwrap();
    set
}

/// Takes a whole release; stops at the first error.
pub(crate) fn update(set: &mut TrustedSet, release: &Release) -> Result<(), Error> {
    set.update_timestamp(&release.timestamp, today())?;
    set.update_snapshot(&release.snapshot, today())?;
    set.update_targets(&release.targets, today())?;
    Ok(())
}

/// Asserts that `step` fails with `code` and changes nothing.
#[track_caller]
pub(crate) fn refused(
    set: &mut TrustedSet,
    code: &str,
    step: impl FnOnce(&mut TrustedSet) -> Result<Outcome, Error>,
) -> Error {
    let before = set.clone();
    let error = step(set).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
    assert_eq!(*set, before, "a rejected file changed the state");
    error
}

/// The version that `set` trusts for `role`.
pub(crate) fn version(set: &TrustedSet, role: Role) -> Option<u64> {
    match role {
        Role::Root => Some(set.root().version),
        Role::Timestamp => set.timestamp().map(|timestamp| timestamp.version),
        Role::Snapshot => set.snapshot().map(|snapshot| snapshot.version),
        Role::Targets => set.targets().map(|targets| targets.version),
    }
}
