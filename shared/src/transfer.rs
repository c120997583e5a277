//! The pull protocol over MQTT: a device says which parts of which object it lacks, the control plane sends those.
//!
//! The sender keeps no state. [`Want`] travels with QoS 1, [`Part`] with QoS 0: the digests that the device already trusts
//! are the acknowledgement, and a lost part is simply wanted again.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    schema::{Envelope, SchemaVersion},
};

/// The most content bytes in one part. With its header a part stays within 32 KiB, since brokers keep a send buffer as
/// large as the largest packet that they have sent.
pub const PART_BYTES: usize = 32_000;

/// The most parts in flight that a device may ask for at once: 1 MB on the wire.
pub const WINDOW_MAX: usize = 32;

/// An object to fetch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// TUF metadata by file name, for example `timestamp.json` or `2.root.json`: parts are slices of [`PART_BYTES`].
    Metadata(String),
    /// A published object by digest, for example a chunk index: parts are slices of [`PART_BYTES`].
    Blob(Digest),
    /// The chunks of the bundle with this chunk index: part `i` is the wire form of chunk `i`.
    Chunks(Digest),
}

/// A device's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// Chosen by the device, echoed in each [`Part`]. Parts of a forgotten request are dropped.
    pub request: u64,
    /// The object.
    pub object: Object,
    /// The parts wanted, at most [`WINDOW_MAX`].
    pub parts: Vec<u32>,
}

impl Envelope for Want {
    const KIND: &'static str = "want";
    const LIMIT_BYTES: usize = 4 * 1024;
}

/// One part of an object, or the reason why there is none. A binary message:
/// `version u8 = 1 | kind u8 | request u64 | part u32 | parts u32 | content`, big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The request that it answers.
    pub request: u64,
    /// Which part.
    pub part: u32,
    /// How many parts the object has.
    pub parts: u32,
    /// What it carries.
    pub content: PartContent<'a>,
}

/// What a part carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartContent<'a> {
    /// Bytes of the object.
    Data(&'a [u8]),
    /// The control plane does not have the object, or not that part.
    NotFound,
    /// The control plane is over its limit; ask again later.
    Busy,
}

/// A message that is not a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// Shorter than its header or longer than a part may be.
    #[error("a transfer part of {0} bytes")]
    Length(usize),
    /// Another version of the message.
    #[error("transfer part version {0} is not supported")]
    UnknownVersion(u8),
    /// An unknown kind, or part number outside the object.
    #[error("malformed transfer part")]
    Malformed,
}

const HEADER_BYTES: usize = 18;

impl<'a> Part<'a> {
    /// Encodes the message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (kind, data): (u8, &[u8]) = match self.content {
            PartContent::Data(data) => (0, data),
            PartContent::NotFound => (1, &[]),
            PartContent::Busy => (2, &[]),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + data.len());
        out.push(1);
        out.push(kind);
        out.extend_from_slice(&self.request.to_be_bytes());
        out.extend_from_slice(&self.part.to_be_bytes());
        out.extend_from_slice(&self.parts.to_be_bytes());
        out.extend_from_slice(data);
        out
    }

    /// Reads the message; the content is borrowed.
    ///
    /// # Errors
    /// [`PartError`] when it is not a part.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Part<'a>, PartError> {
        if bytes.len() < HEADER_BYTES || bytes.len() > HEADER_BYTES + PART_BYTES {
            return Err(PartError::Length(bytes.len()));
        }
        let (header, data) = bytes.split_at(HEADER_BYTES);
        if header[0] != 1 {
            return Err(PartError::UnknownVersion(header[0]));
        }
        let request = u64::from_be_bytes(header[2..10].try_into().expect("eight bytes"));
        let part = u32::from_be_bytes(header[10..14].try_into().expect("four bytes"));
        let parts = u32::from_be_bytes(header[14..18].try_into().expect("four bytes"));
        let content = match header[1] {
            0 if part < parts => PartContent::Data(data),
            1 if data.is_empty() => PartContent::NotFound,
            2 if data.is_empty() => PartContent::Busy,
            _ => return Err(PartError::Malformed),
        };
        Ok(Part {
            request,
            part,
            parts,
            content,
        })
    }
}
