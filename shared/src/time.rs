//! A device asks what time it is, and the control plane answers with its signature.
//!
//! The device chooses a nonce, so that nobody can replay an older answer: a signed answer with this nonce was made after
//! the question. Invariant: an answer counts for one device and one question.

use serde::{Deserialize, Serialize};

use crate::{
    id::DeviceId,
    schema::{Envelope, SchemaVersion},
};

/// The DSSE payload type of a [`TimeAnswer`].
pub const TIME_PAYLOAD_TYPE: &str = "application/vnd.skerry.time.v1+json";

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 16;

/// What a device chooses at random for one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce([u8; NONCE_BYTES]);

/// Text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nonce has 32 hexadecimal digits")]
pub struct InvalidNonce;

impl Nonce {
    /// Makes a nonce of random bytes.
    pub const fn new(bytes: [u8; NONCE_BYTES]) -> Nonce {
        Nonce(bytes)
    }
}

impl TryFrom<String> for Nonce {
    type Error = InvalidNonce;
    fn try_from(text: String) -> Result<Nonce, InvalidNonce> {
        let mut bytes = [0; NONCE_BYTES];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| InvalidNonce)?;
        Ok(Nonce(bytes))
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> String {
        hex::encode(nonce.0)
    }
}

/// A device's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRequest {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// Never used before.
    pub nonce: Nonce,
}

impl Envelope for TimeRequest {
    const KIND: &'static str = "time request";
    const LIMIT_BYTES: usize = 1024;
}

/// The answer. Travels inside a DSSE envelope under the key of role `time`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeAnswer {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// Who asked.
    pub device: DeviceId,
    /// The nonce of the question.
    pub nonce: Nonce,
    /// The time when it was signed, in UTC milliseconds.
    pub time_ms: u64,
}

impl Envelope for TimeAnswer {
    const KIND: &'static str = "time";
    const LIMIT_BYTES: usize = 4 * 1024;
}
