//! Sizes that bound what a hostile repository can make a client read.
//!
//! Not a policy on freshness. Invariant: a file is measured against its limit before it is parsed.

use crate::metadata::Role;

/// Deepest accepted nesting of JSON arrays and objects. Metadata needs seven levels, `custom` a few more; the bound keeps
/// the stack small on hostile input.
pub const MAX_JSON_DEPTH: usize = 16;

/// Largest accepted size of each metadata file in bytes (TUF §5 "endless data"), and of one walk along the root chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Root: 64 KiB holds about 250 keys. It is fetched before anything says how long it is.
    pub root_bytes: usize,
    /// Timestamp: 16 KiB; it names one file. Fetched most often, and without a known length.
    pub timestamp_bytes: usize,
    /// Snapshot: 64 KiB; it names one file per targets role, about 200 bytes each.
    pub snapshot_bytes: usize,
    /// Targets: 1 MiB holds about 2,000 targets. Parsing needs a small multiple of this in memory.
    pub targets_bytes: usize,
    /// Root versions to walk in one update cycle; the caller stops here and goes on in the next cycle, so that an endless
    /// chain cannot keep a device busy.
    pub root_steps: usize,
    /// Delegated roles to ask in one search: a wide graph cannot make a client fetch without end.
    pub delegated_roles: usize,
    /// Length of a chain of delegations. A chain that is longer says nothing that a shorter one could not.
    pub delegation_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            root_bytes: 64 * 1024,
            timestamp_bytes: 16 * 1024,
            snapshot_bytes: 64 * 1024,
            targets_bytes: 1024 * 1024,
            root_steps: 32,
            delegated_roles: 32,
            delegation_depth: 8,
        }
    }
}

impl Limits {
    /// Returns the largest accepted size of a metadata file of `role`, in bytes.
    pub fn bytes_for(&self, role: Role) -> usize {
        match role {
            Role::Root => self.root_bytes,
            Role::Timestamp => self.timestamp_bytes,
            Role::Snapshot => self.snapshot_bytes,
            Role::Targets => self.targets_bytes,
        }
    }
}
