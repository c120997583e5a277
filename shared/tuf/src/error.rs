//! What can be wrong with metadata, one variant per rule.
//!
//! Not I/O errors: this crate has none. Invariant: [`Error::code`] of a variant never changes, because devices report it
//! and rollouts count it.

use crate::canonical_json::CanonicalJsonError;
use crate::metadata::Role;
use crate::threshold::ThresholdNotMet;
use crate::time::UnixTime;

/// A rejected piece of metadata: which role, and which rule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is larger than [`crate::Limits`] allows (endless data).
    #[error("{role} metadata has {size_bytes} bytes, more than the limit of {limit_bytes}")]
    TooLarge {
        /// Role of the file.
        role: Role,
        /// Size of the file.
        size_bytes: usize,
        /// Largest accepted size.
        limit_bytes: usize,
    },
    /// The file is not strict JSON, or a field is missing or has the wrong type.
    #[error("cannot parse {role} metadata")]
    Parse {
        /// Role of the file.
        role: Role,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The metadata has no canonical form, so it can be neither signed nor verified.
    #[error("{role} metadata has no canonical form")]
    NotCanonical {
        /// Role of the file.
        role: Role,
        /// What stands in the way.
        source: CanonicalJsonError,
    },
    /// `_type` names another role.
    #[error("expected {role} metadata, found type {found:?}")]
    WrongType {
        /// Role that was expected.
        role: Role,
        /// Content of `_type`.
        found: String,
    },
    /// `spec_version` is not 1.x.
    #[error("{role} metadata follows specification version {found:?}, not 1.x")]
    SpecVersion {
        /// Role of the file.
        role: Role,
        /// Content of `spec_version`.
        found: String,
    },
    /// One key id stands twice in the list of signatures.
    #[error("{role} metadata has two signatures by key id {keyid}")]
    DuplicateSignature {
        /// Role of the file.
        role: Role,
        /// The key id.
        keyid: String,
    },
    /// Too few distinct keys of the role signed the metadata.
    #[error("{role} metadata is not signed by enough keys of root version {root_version}")]
    SignatureThreshold {
        /// Role of the file.
        role: Role,
        /// Version of the root whose keys were asked for.
        root_version: u64,
        /// The count.
        source: ThresholdNotMet,
    },
    /// The version is lower than one that was trusted before.
    #[error("{role} version {found} is lower than the trusted {trusted}")]
    Rollback {
        /// Role whose version would fall.
        role: Role,
        /// Lowest acceptable version.
        trusted: u64,
        /// Version in the rejected metadata.
        found: u64,
    },
    /// A root is not exactly the next version.
    #[error("root version is {found}, the next one is {expected}")]
    RootVersionGap {
        /// The version after the trusted one.
        expected: u64,
        /// Version in the rejected root.
        found: u64,
    },
    /// The trusted root is older than one that was trusted before (its file was lost): walk the root chain first.
    #[error("trusted root version {found} is older than version {floor} seen before")]
    RootBelowFloor {
        /// Highest root version that was ever trusted.
        floor: u64,
        /// Version of the root at hand.
        found: u64,
    },
    /// The metadata has expired (freeze).
    #[error("{role} metadata expired at {expires}, now is {now}")]
    Expired {
        /// Role of the file.
        role: Role,
        /// When it expired.
        expires: UnixTime,
        /// The time it was measured against.
        now: UnixTime,
    },
    /// The version is not the one that the role above lists.
    #[error("{role} version is {found}, but version {listed} is listed")]
    MixAndMatch {
        /// Role of the file.
        role: Role,
        /// Version in the snapshot or timestamp.
        listed: u64,
        /// Version in the rejected metadata.
        found: u64,
    },
    /// A file does not have the length that signed metadata gives.
    #[error("{file} has {found_bytes} bytes, signed metadata says {expected_bytes}")]
    Length {
        /// Name of the metadata file or target.
        file: String,
        /// Length in the metadata.
        expected_bytes: u64,
        /// Length of the file.
        found_bytes: u64,
    },
    /// A file does not have the digest that signed metadata gives.
    #[error("{file} does not match its signed digest")]
    Hash {
        /// Name of the metadata file or target.
        file: String,
    },
    /// Signed metadata gives hashes of a file, but no `sha256` or `sha512` among them, or a malformed one.
    #[error("{file} has no usable digest in signed metadata")]
    HashUnsupported {
        /// Name of the metadata file or target.
        file: String,
    },
    /// Timestamp or snapshot does not list a file that it must list.
    #[error("{role} metadata does not list {file}")]
    NotListed {
        /// Role of the file that should hold the entry.
        role: Role,
        /// Name of the missing entry.
        file: String,
    },
    /// A new snapshot dropped a targets role that the trusted one listed.
    #[error("snapshot no longer lists {file}")]
    RoleRemoved {
        /// Name of the missing entry.
        file: String,
    },
    /// A file of a delegated role is refused.
    #[error("delegated role {name:?} is refused")]
    Delegated {
        /// Name of the delegated role.
        name: String,
        /// The rule that was broken.
        source: Box<Error>,
    },
    /// Too few distinct keys that the delegator names signed the metadata of a delegated role.
    #[error("metadata is not signed by enough of the keys that role {delegator:?} names")]
    DelegationThreshold {
        /// Name of the role that delegates.
        delegator: String,
        /// The count.
        source: ThresholdNotMet,
    },
    /// A search passed more roles, or a longer chain of them, than [`crate::Limits`] allows.
    #[error("delegations go on beyond the limit of {limit}")]
    TooManyDelegations {
        /// The limit that was reached.
        limit: usize,
    },
    /// A role was offered before the role that vouches for it.
    #[error("{role} metadata needs trusted {needs} metadata first")]
    OutOfOrder {
        /// Role that was offered or asked for.
        role: Role,
        /// Role that is missing.
        needs: Role,
    },
}

impl Error {
    /// Returns a short stable name for the rule that was broken, for reports and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Parse { .. } => "parse",
            Self::NotCanonical { .. } => "not_canonical",
            Self::WrongType { .. } => "wrong_type",
            Self::SpecVersion { .. } => "spec_version",
            Self::DuplicateSignature { .. } => "duplicate_signature",
            Self::SignatureThreshold { .. } => "sig_threshold",
            Self::Rollback { .. } => "rollback",
            Self::RootVersionGap { .. } => "root_version_gap",
            Self::RootBelowFloor { .. } => "root_below_floor",
            Self::Expired { .. } => "expired",
            Self::MixAndMatch { .. } => "mix_and_match",
            Self::Length { .. } => "length",
            Self::Hash { .. } => "hash",
            Self::HashUnsupported { .. } => "hash_unsupported",
            Self::NotListed { .. } => "not_listed",
            Self::RoleRemoved { .. } => "role_removed",
            Self::Delegated { source, .. } => source.code(),
            Self::DelegationThreshold { .. } => "sig_threshold",
            Self::TooManyDelegations { .. } => "too_many_delegations",
            Self::OutOfOrder { .. } => "out_of_order",
        }
    }
}
