//! The attacks that a client must survive, by the step of the workflow that stops each.

#![allow(clippy::unwrap_used, clippy::wildcard_imports)]

mod delegations;
mod format;
mod key_rotation;
mod normal_operation;
mod root_chain;
mod snapshot;
mod targets;
mod timestamp;

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::*;
use crate::key::KeyId;
use crate::sign::{new_snapshot, new_targets, new_timestamp};

fn fresh() -> TrustedSet {
    TrustedSet::new(&root(1)).unwrap()
}

/// Changes a file after it was signed.
fn tampered(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(bytes).unwrap();
    change(&mut value);
    serde_json::to_vec(&value).unwrap()
}

/// A timestamp that lists a snapshot by version only.
fn timestamp_listing(version: u64, listed: MetaFile) -> Vec<u8> {
    sign(&new_timestamp(version, expires(), listed), &[TIMESTAMP])
}

fn version_only(version: u64) -> MetaFile {
    MetaFile {
        version,
        length: None,
        hashes: None,
        extra: Default::default(),
    }
}

/// A set that trusts a timestamp which lists `snapshot` by version 1 only.
fn expecting_snapshot() -> TrustedSet {
    let mut set = fresh();
    set.update_timestamp(&timestamp_listing(1, version_only(1)), today())
        .unwrap();
    set
}
