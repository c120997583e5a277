//! Making keys and metadata: for publishers and the control plane, never for devices.
//!
//! Not key storage and not a source of randomness: both come from the caller. Invariant: [`sign_metadata`] returns only
//! files that a device with default limits can parse.

use std::collections::BTreeMap;
use std::fmt;

use ed25519_dalek::Signer;
use serde_json::{Map, Value};

use crate::canonical_json::to_canonical_json;
use crate::error::Error;
use crate::key::{KeyId, PublicKey};
use crate::limits::Limits;
use crate::metadata::{
    MetaFile, Metadata, Role, RoleKeys, Root, RootExtension, RootRoles, Snapshot, Targets, Timestamp,
};
use crate::signed::{Envelope, Signature, Signed};
use crate::threshold::KeySet;
use crate::time::UnixTime;

/// Version of the specification that new metadata follows.
const SPEC_VERSION: &str = "1.0.31";

/// An ed25519 secret key. Erased from memory when dropped; never printed.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Makes a key of its seed: 32 bytes from a cryptographic random source, or what [`SigningKey::seed`] returned. The
    /// caller erases its copy.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Returns the secret seed, to store it. Whoever has it can sign.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Returns the public key as a TUF key object.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_ed25519(self.0.verifying_key().as_bytes())
    }

    /// Returns the id of the public key.
    pub fn id(&self) -> KeyId {
        self.public_key().id()
    }

    /// Signs bytes that are not metadata, such as the pre-authentication encoding of a DSSE envelope.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("public", &self.public_key().keyval.public)
            .finish_non_exhaustive()
    }
}

/// What goes into new root metadata.
#[derive(Clone, Debug)]
pub struct NewRoot {
    /// 1 for the first root, then one more each time.
    pub version: u64,
    /// When the root stops being valid.
    pub expires: UnixTime,
    /// Keys of root itself; offline.
    pub root: KeySet,
    /// Keys of timestamp; online.
    pub timestamp: KeySet,
    /// Keys of snapshot; online.
    pub snapshot: KeySet,
    /// Keys of targets; offline.
    pub targets: KeySet,
    /// Keys that sign the desired state of devices; online.
    pub assignment: Option<KeySet>,
    /// Keys that sign times and checkpoints; online.
    pub time: Option<KeySet>,
}

/// Makes root metadata with versioned file names.
pub fn new_root(new: NewRoot) -> Root {
    let mut keys = BTreeMap::new();
    let mut role = |set: KeySet| {
        let keyids = set.keys.keys().cloned().collect();
        keys.extend(set.keys);
        RoleKeys {
            keyids,
            threshold: set.threshold,
            extra: Map::new(),
        }
    };
    let roles = RootRoles {
        root: role(new.root),
        timestamp: role(new.timestamp),
        snapshot: role(new.snapshot),
        targets: role(new.targets),
        extra: Map::new(),
    };
    let extension = RootExtension {
        assignment: new.assignment.map(&mut role),
        time: new.time.map(&mut role),
        extra: Map::new(),
    };
    Root {
        spec_version: SPEC_VERSION.to_owned(),
        version: new.version,
        expires: new.expires,
        consistent_snapshot: true,
        keys,
        roles,
        extension: (extension != RootExtension::default()).then_some(extension),
        extra: Map::new(),
    }
}

/// Makes targets metadata without targets; add them with [`Targets::add_target`].
pub fn new_targets(version: u64, expires: UnixTime) -> Targets {
    Targets {
        spec_version: SPEC_VERSION.to_owned(),
        version,
        expires,
        targets: BTreeMap::new(),
        delegations: None,
        extension: None,
        extra: Map::new(),
    }
}

/// Makes snapshot metadata that lists the given targets file; describe it with [`MetaFile::describe`].
pub fn new_snapshot(version: u64, expires: UnixTime, targets: MetaFile) -> Snapshot {
    Snapshot {
        spec_version: SPEC_VERSION.to_owned(),
        version,
        expires,
        meta: BTreeMap::from([(Role::Targets.file_name().to_owned(), targets)]),
        extra: Map::new(),
    }
}

/// Makes timestamp metadata that lists the given snapshot file; describe it with [`MetaFile::describe`].
pub fn new_timestamp(version: u64, expires: UnixTime, snapshot: MetaFile) -> Timestamp {
    Timestamp {
        spec_version: SPEC_VERSION.to_owned(),
        version,
        expires,
        meta: BTreeMap::from([(Role::Snapshot.file_name().to_owned(), snapshot)]),
        extra: Map::new(),
    }
}

/// Returns `metadata` as a file signed by `keys`.
///
/// # Errors
///
/// The metadata breaks a rule of the format, such as version 0, a float in `custom`, or a size above the default limit.
pub fn sign_metadata<'a, T: Metadata>(
    metadata: &T,
    keys: impl IntoIterator<Item = &'a SigningKey>,
) -> Result<Vec<u8>, Error> {
    let role = T::ROLE;
    let mut signed = serde_json::to_value(metadata).map_err(|source| Error::Parse { role, source })?;
    signed["_type"] = Value::from(role.as_str());
    let canonical = to_canonical_json(&signed).map_err(|source| Error::NotCanonical { role, source })?;
    let signatures = keys.into_iter().map(|key| signature(key, &canonical)).collect();
    encode::<T>(&Envelope { signatures, signed })
}

/// Returns the metadata file `bytes` with one more signature, for roles whose keys are on different machines.
///
/// Replaces an earlier signature by the same key. Signatures by others are kept and not checked.
///
/// # Errors
///
/// `bytes` is not a metadata file of role `T`, or would become larger than the default limit.
pub fn add_signature<T: Metadata>(bytes: &[u8], key: &SigningKey) -> Result<Vec<u8>, Error> {
    let file = Signed::<T>::parse(bytes, &Limits::default())?;
    let parse_error = |source| Error::Parse { role: T::ROLE, source };
    let mut envelope: Envelope = serde_json::from_slice(bytes).map_err(parse_error)?;
    let signature = signature(key, file.canonical());
    envelope.signatures.retain(|earlier| earlier.keyid != signature.keyid);
    envelope.signatures.push(signature);
    encode::<T>(&envelope)
}

fn signature(key: &SigningKey, canonical: &[u8]) -> Signature {
    Signature {
        keyid: key.id(),
        sig: hex::encode(key.sign_bytes(canonical)),
        extra: Map::new(),
    }
}

fn encode<T: Metadata>(envelope: &Envelope) -> Result<Vec<u8>, Error> {
    let bytes = serde_json::to_vec(envelope).map_err(|source| Error::Parse { role: T::ROLE, source })?;
    Signed::<T>::parse(&bytes, &Limits::default())?;
    Ok(bytes)
}
