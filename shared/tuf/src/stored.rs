//! Trust across restarts: the stored files, and the version floors that are stored apart from them.
//!
//! Not the storage itself. A file that is missing, torn or replaced by an older one must not bring old versions back, so
//! the lowest acceptable versions are kept a second time, by themselves, in the device's state record.
//!
//! Order of writes after an accepted step, so that a power cut at any point is safe: the floors, then the removal of files
//! that the set has forgotten, then timestamp, snapshot and targets, and a new root last. Invariant: loading never
//! trusts a version below the given floors.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::limits::Limits;
use crate::metadata::Role;
use crate::trusted_set::{Expiry, Outcome, TrustedSet};

/// The lowest version of each role that is still acceptable; 0 if none was ever seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionFloors {
    /// Highest trusted version of root.
    pub root: u64,
    /// Highest trusted version of timestamp.
    pub timestamp: u64,
    /// Highest version of snapshot that a trusted timestamp listed.
    pub snapshot: u64,
    /// Highest version of targets that a trusted snapshot listed.
    pub targets: u64,
}

/// Metadata files as they were kept on disk. What is not there or cannot be read is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredMetadata {
    /// The last accepted root, or the one of the device image.
    pub root: Vec<u8>,
    /// The last accepted timestamp.
    pub timestamp: Option<Vec<u8>>,
    /// The last accepted snapshot.
    pub snapshot: Option<Vec<u8>>,
    /// The last accepted targets file.
    pub targets: Option<Vec<u8>>,
}

/// A trusted set made of stored files.
#[derive(Debug)]
pub struct LoadedSet {
    /// What is trusted.
    pub set: TrustedSet,
    /// Stored files that were not believed. They are fetched again in the next cycle.
    pub dropped: Vec<DroppedFile>,
}

/// A stored file that was not believed, and why.
#[derive(Debug)]
pub struct DroppedFile {
    /// Role of the file.
    pub role: Role,
    /// The rule that it broke.
    pub error: Error,
}

impl TrustedSet {
    /// Takes up the state of an earlier run: `stored` files, and the `floors` that were kept apart from them.
    ///
    /// Every file passes the same checks as when it came in, with two exceptions. Expiry does not matter here: an expired
    /// file still says which versions are old. And snapshot and targets may be older than the file above them lists, as they
    /// are when a cycle ended half-way: they bound the versions of their successors, and nothing is installed by them. Files that fail are left out, their floors stay. If the root is older than its
    /// floor (the stored one was lost, and this is the one of the device image), only [`TrustedSet::update_root`] is
    /// possible until the walk has reached the floor.
    ///
    /// # Errors
    ///
    /// The root cannot be parsed or is not signed by its own keys: nothing can be trusted, try the root of the image.
    pub fn from_stored(stored: &StoredMetadata, floors: VersionFloors, limits: Limits) -> Result<LoadedSet, Error> {
        let mut set = Self::with_limits(&stored.root, limits, floors)?;
        let mut dropped = Vec::new();
        let mut note = |role, result: Result<Outcome, Error>| {
            if let Err(error) = result {
                dropped.push(DroppedFile { role, error });
            }
        };
        if let Some(bytes) = &stored.timestamp {
            note(Role::Timestamp, set.update_timestamp(bytes, Expiry::Ignore));
        }
        if let Some(bytes) = &stored.snapshot {
            note(Role::Snapshot, set.recall_snapshot(bytes, floors.snapshot));
        }
        if let Some(bytes) = &stored.targets {
            note(Role::Targets, set.recall_targets(bytes, floors.targets));
        }
        Ok(LoadedSet { set, dropped })
    }
}

#[cfg(test)]
mod tests;
