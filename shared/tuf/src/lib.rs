//! TUF 1.0 metadata: parse it, verify it, and (feature `sign`) make it.
//!
//! This crate is the part of the trust chain that both roles share. [`TrustedSet`] is the client: a value that holds
//! what is trusted and takes new metadata one role at a time, in the order of the TUF client workflow (§5 of the
//! specification). [`TargetSearch`] follows delegations from there. Fetching, storing and the clock belong to the caller.
//!
//! It is not a TUF repository and has no I/O, no clock and no randomness. Only ed25519 keys count.
//!
//! Invariant: a [`Verified`] value exists only if enough distinct keys signed exactly those bytes, and a rejected
//! update leaves a [`TrustedSet`] as it was.

mod canonical_json;
mod delegation;
mod error;
mod file_check;
#[cfg(test)]
mod fixtures;
mod key;
mod limits;
mod metadata;
mod path_pattern;
#[cfg(feature = "conformance")]
mod pem_key;
mod search;
#[cfg(feature = "sign")]
mod sign;
mod signed;
mod stored;
mod strict_json;
mod target_name;
mod threshold;
mod time;
mod trusted_set;
mod verifier;

pub use canonical_json::{CanonicalJsonError, to_canonical_json};
pub use delegation::{
    DelegatedPaths, DelegatedRole, Delegations, RoleName, RoleNameError, SearchOrder, percent_encoded,
};
pub use error::Error;
pub use file_check::FileCheck;
pub use key::{KeyId, KeyVal, PublicKey};
pub use limits::{Limits, MAX_JSON_DEPTH};
pub use metadata::{
    Blocked, MetaFile, Metadata, Role, RoleKeys, Root, RootExtension, RootRoles, Snapshot, TargetFile, Targets,
    TargetsExtension, Timestamp,
};
pub use path_pattern::PathPattern;
pub use search::{SearchStep, TargetSearch};
#[cfg(feature = "sign")]
pub use sign::{NewRoot, SigningKey, add_signature, new_root, new_snapshot, new_targets, new_timestamp, sign_metadata};
pub use signed::{Signature, Signed, Verified};
pub use stored::{DroppedFile, LoadedSet, StoredMetadata, VersionFloors};
pub use strict_json::parse_strict_json;
pub use target_name::{TargetName, TargetNameError};
pub use threshold::{KeySet, SignatureRef, ThresholdNotMet, verify_threshold};
pub use time::{ParseTimeError, UnixTime};
pub use trusted_set::{Expiry, Outcome, TrustedSet, Wanted};
