//! The version that every envelope carries, and the one way to parse an envelope.
//!
//! Invariant: an envelope of an unknown major version is never half-understood; it is refused before its fields are read.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

/// The version of an envelope: `major.minor`. A minor version only adds fields that older readers may ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaVersion {
    /// Raised when an older reader would misunderstand.
    pub major: u16,
    /// Raised when fields are added.
    pub minor: u16,
}

impl SchemaVersion {
    /// The version this crate writes, unless a kind of envelope says otherwise.
    pub const CURRENT: SchemaVersion = SchemaVersion { major: 1, minor: 0 };

    fn parse(text: &str) -> Option<SchemaVersion> {
        let (major, minor) = text.split_once('.')?;
        Some(SchemaVersion {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl Default for SchemaVersion {
    fn default() -> Self {
        SchemaVersion::CURRENT
    }
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for SchemaVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SchemaVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let version = SchemaVersion::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a schema version")))?;
        Ok(version)
    }
}

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Longer than its kind may be.
    #[error("{kind} of {size_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLarge {
        /// What was parsed, for example `desired state`.
        kind: &'static str,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Another major version.
    #[error("{kind} has schema version {version}, this program understands {major}.x and no newer one")]
    UnknownMajor {
        /// What was parsed.
        kind: &'static str,
        /// The version found.
        version: String,
        /// The newest one that is understood.
        major: u16,
    },
    /// Not valid JSON, or not of the expected form.
    #[error("{kind} does not parse")]
    Parse {
        /// What was parsed.
        kind: &'static str,
        /// The position and the reason.
        source: serde_json::Error,
    },
}

/// A JSON message with a schema version.
pub trait Envelope: Serialize + DeserializeOwned {
    /// What it is called in errors.
    const KIND: &'static str;
    /// The newest major version that is understood; those before it are too.
    const MAJOR: u16 = SchemaVersion::CURRENT.major;
    /// The most bytes accepted: a bound on the memory that a peer can make us use.
    const LIMIT_BYTES: usize;

    /// Parses an envelope.
    ///
    /// # Errors
    /// [`EnvelopeError`]: too large, of an unknown major version, or malformed.
    fn from_json(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: String,
        }
        let kind = Self::KIND;
        if bytes.len() > Self::LIMIT_BYTES {
            return Err(EnvelopeError::TooLarge {
                kind,
                size_bytes: bytes.len(),
                limit_bytes: Self::LIMIT_BYTES,
            });
        }
        let parse = |source| EnvelopeError::Parse { kind, source };
        let probe: Probe = serde_json::from_slice(bytes).map_err(parse)?;
        match SchemaVersion::parse(&probe.schema) {
            Some(version) if (1..=Self::MAJOR).contains(&version.major) => {}
            _ => {
                return Err(EnvelopeError::UnknownMajor {
                    kind,
                    version: probe.schema,
                    major: Self::MAJOR,
                });
            }
        }
        serde_json::from_slice(bytes).map_err(parse)
    }

    /// Encodes the envelope.
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("envelopes have string keys only, so they always encode")
    }
}
