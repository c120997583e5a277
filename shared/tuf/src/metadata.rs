//! The four top-level roles as TUF §4 writes them in JSON.
//!
//! Plain data: whether it may be believed is the business of `signed` and `trusted_set`. Members that this crate does not
//! know are kept in `extra`, so that reading and writing loses nothing. Invariant: what these types write, they read back
//! equal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::delegation::{Delegations, RoleName};
use crate::error::Error;
use crate::file_check::FileCheck;
use crate::key::{KeyId, PublicKey};
use crate::target_name::TargetName;
use crate::threshold::KeySet;
use crate::time::UnixTime;

/// A top-level role of TUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Names the keys of all roles; offline.
    Root,
    /// Names the newest snapshot; online, expires soon.
    Timestamp,
    /// Names the version of every targets file, so that versions cannot be mixed.
    Snapshot,
    /// Names what may be installed; offline.
    Targets,
}

impl Role {
    /// Returns the name of the role in metadata, such as `"root"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
    }

    /// Returns the name of the role's file without a version, such as `"root.json"`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Root => "root.json",
            Self::Timestamp => "timestamp.json",
            Self::Snapshot => "snapshot.json",
            Self::Targets => "targets.json",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `signed` part of a metadata file: [`Root`], [`Timestamp`], [`Snapshot`] or [`Targets`].
pub trait Metadata: Serialize + DeserializeOwned + sealed::Sealed {
    /// The role that signs this type.
    const ROLE: Role;

    /// Returns the version, 1 or higher.
    fn version(&self) -> u64;

    /// Returns the first moment at which the metadata is no longer valid.
    fn expires(&self) -> UnixTime;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! metadata {
    ($type:ident, $role:expr) => {
        impl sealed::Sealed for $type {}

        impl Metadata for $type {
            const ROLE: Role = $role;

            fn version(&self) -> u64 {
                self.version
            }

            fn expires(&self) -> UnixTime {
                self.expires
            }
        }
    };
}

metadata!(Root, Role::Root);
metadata!(Timestamp, Role::Timestamp);
metadata!(Snapshot, Role::Snapshot);
metadata!(Targets, Role::Targets);

/// Root metadata: the keys and thresholds of all roles (TUF §4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Version of the specification, `1.x.y`.
    pub spec_version: String,
    /// Version of this file, 1 or higher.
    #[serde(deserialize_with = "version_from_one")]
    pub version: u64,
    /// When the file stops being valid.
    pub expires: UnixTime,
    /// Whether snapshot and targets files carry their version in their name.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// All keys by id.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Which keys sign for which role.
    pub roles: RootRoles,
    /// What Skerry adds; unknown to other TUF clients.
    #[serde(rename = "x_skerry", default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<RootExtension>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Keys and threshold of each top-level role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRoles {
    /// Keys of root.
    pub root: RoleKeys,
    /// Keys of timestamp.
    pub timestamp: RoleKeys,
    /// Keys of snapshot.
    pub snapshot: RoleKeys,
    /// Keys of targets.
    pub targets: RoleKeys,
    /// Roles that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The ids of the keys that may sign for a role, and how many of them must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// Key ids. A repeated id counts once.
    pub keyids: BTreeSet<KeyId>,
    /// Number of distinct keys that must sign.
    pub threshold: NonZeroU32,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The member `x_skerry` of root metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootExtension {
    /// Keys that sign the desired state of devices, as DSSE envelopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<RoleKeys>,
    /// Keys that sign the time for devices without a clock, and checkpoints of the audit log, as DSSE envelopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<RoleKeys>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Root {
    /// Returns the keys that sign for `role`. Ids without a key are left out.
    pub fn keys_of(&self, role: Role) -> KeySet {
        self.resolve(match role {
            Role::Root => &self.roles.root,
            Role::Timestamp => &self.roles.timestamp,
            Role::Snapshot => &self.roles.snapshot,
            Role::Targets => &self.roles.targets,
        })
    }

    /// Returns the keys that sign the desired state of devices, or `None` if root names none.
    pub fn assignment_keys(&self) -> Option<KeySet> {
        Some(self.resolve(self.extension.as_ref()?.assignment.as_ref()?))
    }

    /// Returns the keys that sign times and checkpoints, or `None` if root names none.
    pub fn time_keys(&self) -> Option<KeySet> {
        Some(self.resolve(self.extension.as_ref()?.time.as_ref()?))
    }

    fn resolve(&self, role: &RoleKeys) -> KeySet {
        let key = |id: &KeyId| Some((id.clone(), self.keys.get(id)?.clone()));
        KeySet {
            keys: role.keyids.iter().filter_map(key).collect(),
            threshold: role.threshold,
        }
    }
}

/// Timestamp metadata: the version of the newest snapshot (TUF §4.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Version of the specification, `1.x.y`.
    pub spec_version: String,
    /// Version of this file, 1 or higher.
    #[serde(deserialize_with = "version_from_one")]
    pub version: u64,
    /// When the file stops being valid.
    pub expires: UnixTime,
    /// One entry, `snapshot.json`.
    pub meta: BTreeMap<String, MetaFile>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Timestamp {
    /// Returns what is said about the snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::NotListed`] if nothing is said.
    pub fn snapshot_meta(&self) -> Result<&MetaFile, Error> {
        listed(&self.meta, Role::Timestamp, Role::Snapshot)
    }
}

/// Snapshot metadata: the version of every targets file (TUF §4.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of the specification, `1.x.y`.
    pub spec_version: String,
    /// Version of this file, 1 or higher.
    #[serde(deserialize_with = "version_from_one")]
    pub version: u64,
    /// When the file stops being valid.
    pub expires: UnixTime,
    /// Entry `targets.json`, and one for each delegated role.
    pub meta: BTreeMap<String, MetaFile>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Snapshot {
    /// Returns what is said about the top-level targets file.
    ///
    /// # Errors
    ///
    /// [`Error::NotListed`] if nothing is said.
    pub fn targets_meta(&self) -> Result<&MetaFile, Error> {
        listed(&self.meta, Role::Snapshot, Role::Targets)
    }

    /// Returns what is said about a delegated role.
    ///
    /// # Errors
    ///
    /// [`Error::NotListed`] if nothing is said.
    pub fn delegated_meta(&self, role: &RoleName) -> Result<&MetaFile, Error> {
        let file = role.listed_as();
        let not_listed = |file| Error::NotListed {
            role: Role::Snapshot,
            file,
        };
        self.meta.get(&file).ok_or_else(|| not_listed(file))
    }
}

fn listed(meta: &BTreeMap<String, MetaFile>, role: Role, file: Role) -> Result<&MetaFile, Error> {
    meta.get(file.file_name()).ok_or_else(|| Error::NotListed {
        role,
        file: file.file_name().to_owned(),
    })
}

/// What a snapshot or timestamp says about another metadata file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaFile {
    /// Version of the file, 1 or higher.
    #[serde(deserialize_with = "version_from_one")]
    pub version: u64,
    /// Length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Digests in hexadecimal by algorithm; every `sha256` and `sha512` is checked, and one of them must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<BTreeMap<String, String>>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl MetaFile {
    /// Describes the file `bytes` of the given version, with length and digest.
    pub fn describe(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Some(sha256_of(bytes)),
            extra: Map::new(),
        }
    }

    /// Checks length and digest of `bytes`, as far as they are given.
    pub(crate) fn check(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let check = |hashes| {
            let mut check = FileCheck::new(file, self.length, hashes);
            check.update(bytes);
            check.finish()
        };
        match (&self.hashes, self.length) {
            (Some(hashes), _) => check(hashes),
            (None, Some(expected_bytes)) if expected_bytes != bytes.len() as u64 => Err(Error::Length {
                file: file.to_owned(),
                expected_bytes,
                found_bytes: bytes.len() as u64,
            }),
            (None, _) => Ok(()),
        }
    }
}

/// Targets metadata: what may be installed (TUF §4.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Version of the specification, `1.x.y`.
    pub spec_version: String,
    /// Version of this file, 1 or higher.
    #[serde(deserialize_with = "version_from_one")]
    pub version: u64,
    /// When the file stops being valid.
    pub expires: UnixTime,
    /// Targets by name.
    pub targets: BTreeMap<TargetName, TargetFile>,
    /// Other roles that may sign for targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// What Skerry adds; unknown to other TUF clients. It counts in the top-level targets file only.
    #[serde(rename = "x_skerry", default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<TargetsExtension>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The member `x_skerry` of targets metadata: what may not be installed, although it is a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetsExtension {
    /// Targets that may not be used any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocked: BTreeMap<TargetName, Blocked>,
    /// The lowest release of each product that may be installed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub min_release: BTreeMap<String, u64>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A target that may not be used any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Its SHA-256 in hexadecimal: the same content under another name is blocked too.
    pub sha256: String,
    /// Why, for people.
    pub reason: String,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Targets {
    /// Tells whether a target may not be used any more, by its name or by its content.
    pub fn blocked(&self, name: &str, sha256: &[u8; 32]) -> Option<&Blocked> {
        let blocked = &self.extension.as_ref()?.blocked;
        let digest = hex::encode(sha256);
        let same = |(other, entry): &(&TargetName, &Blocked)| {
            other.as_str() == name || entry.sha256.eq_ignore_ascii_case(&digest)
        };
        blocked.iter().find(same).map(|(_, entry)| entry)
    }

    /// Returns the lowest release of `product` that may be installed; 0 if nothing is said.
    pub fn min_release(&self, product: &str) -> u64 {
        let releases = self.extension.as_ref().map(|extension| &extension.min_release);
        releases
            .and_then(|releases| releases.get(product))
            .copied()
            .unwrap_or(0)
    }

    /// Returns the target called `name`.
    pub fn find(&self, name: &TargetName) -> Option<&TargetFile> {
        self.targets.get(name)
    }

    /// Adds a target, or replaces the one of that name and returns it.
    pub fn add_target(&mut self, name: TargetName, file: TargetFile) -> Option<TargetFile> {
        self.targets.insert(name, file)
    }
}

/// What targets metadata says about one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// Digests in hexadecimal by algorithm; every `sha256` and `sha512` is checked, and one of them must be there.
    pub hashes: BTreeMap<String, String>,
    /// Whatever the publisher adds. Covered by the signature, opaque here; no floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Map<String, Value>>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl TargetFile {
    /// Describes the target `bytes` by length and SHA-256.
    pub fn describe(bytes: &[u8]) -> Self {
        Self {
            length: bytes.len() as u64,
            hashes: sha256_of(bytes),
            custom: None,
            extra: Map::new(),
        }
    }

    /// Describes a target by the length and SHA-256 digest that the caller computed.
    pub fn from_sha256(length: u64, digest: &[u8; 32]) -> Self {
        let hashes = BTreeMap::from([("sha256".to_owned(), hex::encode(digest))]);
        Self {
            length,
            hashes,
            custom: None,
            extra: Map::new(),
        }
    }

    /// Returns the SHA-256 digest, if there is a well-formed one.
    pub fn sha256(&self) -> Option<[u8; 32]> {
        sha256_in(&self.hashes)
    }

    /// Checks that `bytes` are the target; `name` is for the error.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Hash`], or [`Error::HashUnsupported`] if there is no digest of a kind that we
    /// compute, or a malformed one.
    pub fn check(&self, name: &TargetName, bytes: &[u8]) -> Result<(), Error> {
        let mut check = self.begin_check(name);
        check.update(bytes);
        check.finish()
    }

    /// Begins the check of a target that is too large to hold; `name` is for the error.
    pub fn begin_check<'a>(&'a self, name: &'a TargetName) -> FileCheck<'a> {
        FileCheck::new(name.as_str(), Some(self.length), &self.hashes)
    }
}

fn version_from_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    std::num::NonZeroU64::deserialize(deserializer).map(std::num::NonZeroU64::get)
}

fn sha256_of(bytes: &[u8]) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), hex::encode(Sha256::digest(bytes)))])
}

fn sha256_in(hashes: &BTreeMap<String, String>) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(hashes.get("sha256")?, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests;
