//! A metadata file before and after its signatures are checked.
//!
//! Not the rules on versions and expiry (see `trusted_set`). Invariant: the signatures are checked over the canonical
//! form of the member `signed` as it was read, unknown members included, and [`Verified`] can be made in no other way.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::canonical_json::to_canonical_json;
use crate::error::Error;
use crate::key::KeyId;
use crate::limits::Limits;
use crate::metadata::{Metadata, Role};
use crate::strict_json::parse_strict_json;
use crate::threshold::{KeySet, ThresholdNotMet, count_signatures};

/// A parsed metadata file whose signatures nobody has checked.
#[derive(Clone, Debug)]
pub struct Signed<T> {
    bytes: Vec<u8>,
    canonical: Vec<u8>,
    signatures: Vec<Signature>,
    signed: T,
}

/// A metadata file that enough keys signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    bytes: Vec<u8>,
    metadata: T,
}

/// An entry of the list `signatures`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Id of the key that is said to have signed.
    pub keyid: KeyId,
    /// The signature in hexadecimal. Anything else is kept and does not count.
    pub sig: String,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A metadata file as JSON: the payload, and who signed it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) signatures: Vec<Signature>,
    pub(crate) signed: Value,
}

impl<T: Metadata> Signed<T> {
    /// Parses a metadata file.
    ///
    /// # Errors
    ///
    /// The file is too large, not strict JSON, of another role or specification version, incomplete, or has two
    /// signatures under one key id.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        let role = T::ROLE;
        let limit_bytes = limits.bytes_for(role);
        if bytes.len() > limit_bytes {
            return Err(Error::TooLarge {
                role,
                size_bytes: bytes.len(),
                limit_bytes,
            });
        }
        let parse_error = |source| Error::Parse { role, source };
        let value = parse_strict_json(bytes).map_err(parse_error)?;
        let envelope: Envelope = serde_json::from_value(value).map_err(parse_error)?;
        let mut keyids = HashSet::new();
        if let Some(twice) = envelope
            .signatures
            .iter()
            .find(|signature| !keyids.insert(&signature.keyid))
        {
            return Err(Error::DuplicateSignature {
                role,
                keyid: twice.keyid.to_string(),
            });
        }

        let canonical = to_canonical_json(&envelope.signed).map_err(|source| Error::NotCanonical { role, source })?;
        let Value::Object(mut members) = envelope.signed else {
            return Err(Error::WrongType {
                role,
                found: String::new(),
            });
        };
        match members.remove("_type") {
            Some(Value::String(kind)) if kind == role.as_str() => {}
            kind => {
                return Err(Error::WrongType {
                    role,
                    found: text_of(kind),
                });
            }
        }
        // Before the typed fields: another major version may have other fields.
        match members.get("spec_version") {
            Some(Value::String(version)) if is_supported(version) => {}
            version => {
                return Err(Error::SpecVersion {
                    role,
                    found: text_of(version.cloned()),
                });
            }
        }
        let signed = serde_json::from_value(Value::Object(members)).map_err(parse_error)?;
        Ok(Self {
            bytes: bytes.to_vec(),
            canonical,
            signatures: envelope.signatures,
            signed,
        })
    }

    /// Returns the metadata, which may be forged.
    pub fn unverified(&self) -> &T {
        &self.signed
    }

    /// Returns the metadata without its signatures, once they were counted.
    pub(crate) fn into_unverified(self) -> T {
        self.signed
    }

    /// Returns the signatures, valid or not.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Returns the bytes that the signatures are over.
    pub fn canonical(&self) -> &[u8] {
        &self.canonical
    }

    /// Checks the signatures against `keys`, which root version `root_version` names, without consuming the file.
    ///
    /// # Errors
    ///
    /// [`Error::SignatureThreshold`].
    pub fn check(&self, keys: &KeySet, root_version: u64) -> Result<(), Error> {
        self.count(keys).map_err(|source| Error::SignatureThreshold {
            role: T::ROLE,
            root_version,
            source,
        })
    }

    /// Checks the signatures against `keys`, whoever names them.
    pub(crate) fn count(&self, keys: &KeySet) -> Result<(), ThresholdNotMet> {
        let signatures = self.signatures.iter().filter_map(|signature| {
            let bytes = hex::decode(&signature.sig).ok()?;
            Some((signature.keyid.as_str(), bytes))
        });
        count_signatures(keys, &self.canonical, signatures)
    }

    /// Checks the signatures like [`Signed::check`] and returns the file as verified.
    ///
    /// # Errors
    ///
    /// [`Error::SignatureThreshold`].
    pub fn verify(self, keys: &KeySet, root_version: u64) -> Result<Verified<T>, Error> {
        self.check(keys, root_version)?;
        Ok(Verified {
            bytes: self.bytes,
            metadata: self.signed,
        })
    }
}

impl<T: Metadata> Verified<T> {
    /// Returns the metadata.
    pub fn metadata(&self) -> &T {
        &self.metadata
    }

    /// Returns the file as it was received, signatures included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the role of the file.
    pub fn role(&self) -> Role {
        T::ROLE
    }
}

/// Major version 1, then one or two numbers.
fn is_supported(spec_version: &str) -> bool {
    let parts: Vec<&str> = spec_version.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    matches!(parts.len(), 2 | 3) && parts[0] == "1" && parts.iter().all(is_number)
}

/// Text of a JSON value for an error, cut short because it may be hostile.
fn text_of(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text.chars().take(32).collect(),
        Some(other) => other.to_string().chars().take(32).collect(),
        None => String::new(),
    }
}
