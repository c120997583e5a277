//! The chunk index: which files a bundle has and of which chunks they are made. It is a TUF target, so its own length and
//! digest are signed; everything in it is checked again here, since a signed mistake must not hurt a device either.
//!
//! Binary, big-endian:
//! ```text
//! "SKCI" | major u8 | minor u8 | files u16 | chunks u32
//! per file:  name length u8 | name | sha256 32 bytes | size u64 | chunk count u32        (chunks in file order)
//! per chunk: sha256 of content 32 bytes | sha256 on the wire 32 bytes | raw length u32 | wire length u32 | codec u8
//! ```
//! A higher minor version may append more; a reader of an older minor version ignores it.

use crate::{digest::Digest, id::ResourceName, transfer::PART_BYTES};

/// The most content bytes in one chunk. Raw chunks fit into one part as they are. A multiple of 4, so that `f32` values
/// are not cut in two.
pub const CHUNK_RAW_MAX: usize = PART_BYTES;

/// The limits of a chunk index.
pub struct Limits {
    /// Bytes of the encoded index: what a device holds in memory.
    pub index_bytes: usize,
    /// Files: a bundle has a handful.
    pub files: usize,
    /// Bytes of all files together: what a device can be asked to store.
    pub total_bytes: u64,
}

/// 1 MiB of index describes 14,000 chunks: 450 MB of bundle.
pub const LIMITS: Limits = Limits {
    index_bytes: 1024 * 1024,
    files: 256,
    total_bytes: 512 * 1024 * 1024,
};

/// The files of a bundle, cut into chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkIndex {
    files: Vec<FileEntry>,
    chunks: Vec<Chunk>,
}

/// A file and its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name in the bundle.
    pub name: ResourceName,
    /// Its content.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// The first of its chunks.
    pub first_chunk: u32,
    /// How many chunks it has.
    pub chunk_count: u32,
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The digest of its content: a device that has this content anywhere need not fetch it.
    pub raw: Digest,
    /// The digest of its form on the wire, checked before anything is decompressed.
    pub wire: Digest,
    /// The length of its content, at most [`CHUNK_RAW_MAX`].
    pub raw_len: u32,
    /// The length of its form on the wire, never more than `raw_len`.
    pub wire_len: u32,
    /// How the wire form becomes the content.
    pub codec: Codec,
}

/// How a chunk travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Raw,
    /// One zstd frame.
    Zstd,
    /// [`shuffle4`], then one zstd frame: for arrays of `f32`.
    Shuffle4Zstd,
}

impl Codec {
    const ALL: [Codec; 3] = [Codec::Raw, Codec::Zstd, Codec::Shuffle4Zstd];

    const fn to_u8(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Zstd => 1,
            Codec::Shuffle4Zstd => 2,
        }
    }
}

/// Why a chunk index was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkIndexError {
    /// Above [`Limits::index_bytes`].
    #[error("chunk index of {0} bytes exceeds the limit")]
    TooLarge(usize),
    /// It ends in the middle, or does not begin as an index.
    #[error("chunk index is truncated or is no chunk index")]
    Malformed,
    /// Another major version.
    #[error("chunk index version {0} is not supported")]
    UnknownMajor(u8),
    /// Too many files, too many bytes, or none at all.
    #[error("chunk index exceeds the limit of {0}")]
    Limit(&'static str),
    /// A file name that is no resource name, or that occurs twice.
    #[error("chunk index has a bad or repeated file name at position {0}")]
    FileName(usize),
    /// The chunks of a file do not add up to its length, or lengths are impossible.
    #[error("chunks of `{0}` do not add up to the file")]
    Lengths(ResourceName),
    /// A codec that this version does not know.
    #[error("chunk {chunk} has unknown codec {codec}")]
    UnknownCodec {
        /// Its position.
        chunk: usize,
        /// The codec found.
        codec: u8,
    },
}

impl ChunkIndex {
    /// Makes an index of files with their chunks.
    ///
    /// # Errors
    /// [`ChunkIndexError`] when the result would not be accepted by [`ChunkIndex::from_bytes`].
    pub fn new(files: Vec<(ResourceName, Digest, u64, Vec<Chunk>)>) -> Result<ChunkIndex, ChunkIndexError> {
        let mut index = ChunkIndex {
            files: Vec::new(),
            chunks: Vec::new(),
        };
        for (name, digest, size_bytes, chunks) in files {
            let first_chunk = index.chunks.len() as u32;
            let chunk_count = chunks.len() as u32;
            index.files.push(FileEntry {
                name,
                digest,
                size_bytes,
                first_chunk,
                chunk_count,
            });
            index.chunks.extend(chunks);
        }
        index.validate()?;
        Ok(index)
    }

    /// The files, in order.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// All chunks, in order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The file called `name`.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.name.as_str() == name)
    }

    /// The chunks of one of the files of this index.
    pub fn chunks_of(&self, file: &FileEntry) -> &[Chunk] {
        let first = file.first_chunk as usize;
        &self.chunks[first..first + file.chunk_count as usize]
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Encodes the index.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + self.files.len() * 80 + self.chunks.len() * 73);
        out.extend_from_slice(b"SKCI\x01\x00");
        out.extend_from_slice(&(self.files.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.chunks.len() as u32).to_be_bytes());
        for file in &self.files {
            out.push(file.name.as_str().len() as u8);
            out.extend_from_slice(file.name.as_str().as_bytes());
            out.extend_from_slice(file.digest.as_bytes());
            out.extend_from_slice(&file.size_bytes.to_be_bytes());
            out.extend_from_slice(&file.chunk_count.to_be_bytes());
        }
        for chunk in &self.chunks {
            out.extend_from_slice(chunk.raw.as_bytes());
            out.extend_from_slice(chunk.wire.as_bytes());
            out.extend_from_slice(&chunk.raw_len.to_be_bytes());
            out.extend_from_slice(&chunk.wire_len.to_be_bytes());
            out.push(chunk.codec.to_u8());
        }
        out
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`ChunkIndexError`]: too large, malformed, of another major version, or inconsistent.
    pub fn from_bytes(bytes: &[u8]) -> Result<ChunkIndex, ChunkIndexError> {
        use ChunkIndexError::{FileName, Limit, Malformed, TooLarge, UnknownCodec, UnknownMajor};
        if bytes.len() > LIMITS.index_bytes {
            return Err(TooLarge(bytes.len()));
        }
        let mut reader = Reader(bytes);
        if reader.array::<4>().ok_or(Malformed)? != *b"SKCI" {
            return Err(Malformed);
        }
        let [major, _minor] = reader.array().ok_or(Malformed)?;
        if major != 1 {
            return Err(UnknownMajor(major));
        }
        let file_count = u16::from_be_bytes(reader.array().ok_or(Malformed)?) as usize;
        let chunk_count = u32::from_be_bytes(reader.array().ok_or(Malformed)?) as usize;
        if file_count > LIMITS.files {
            return Err(Limit("files"));
        }
        // The counts come from outside: they size nothing until as many bytes are seen to be there.
        if chunk_count.saturating_mul(73) > bytes.len() {
            return Err(Malformed);
        }
        let mut files = Vec::with_capacity(file_count);
        let mut first_chunk = 0_u32;
        for position in 0..file_count {
            let [len] = reader.array().ok_or(Malformed)?;
            let name = reader.take(len as usize).ok_or(Malformed)?;
            let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            let name = name.ok_or(FileName(position))?;
            let digest = Digest::from_bytes(reader.array().ok_or(Malformed)?);
            let size_bytes = u64::from_be_bytes(reader.array().ok_or(Malformed)?);
            let chunk_count = u32::from_be_bytes(reader.array().ok_or(Malformed)?);
            files.push(FileEntry {
                name,
                digest,
                size_bytes,
                first_chunk,
                chunk_count,
            });
            first_chunk = first_chunk.checked_add(chunk_count).ok_or(Malformed)?;
        }
        let mut chunks = Vec::with_capacity(chunk_count);
        for position in 0..chunk_count {
            let raw = Digest::from_bytes(reader.array().ok_or(Malformed)?);
            let wire = Digest::from_bytes(reader.array().ok_or(Malformed)?);
            let raw_len = u32::from_be_bytes(reader.array().ok_or(Malformed)?);
            let wire_len = u32::from_be_bytes(reader.array().ok_or(Malformed)?);
            let [codec] = reader.array().ok_or(Malformed)?;
            let known = Codec::ALL.into_iter().find(|c| c.to_u8() == codec);
            let codec = known.ok_or(UnknownCodec { chunk: position, codec })?;
            chunks.push(Chunk {
                raw,
                wire,
                raw_len,
                wire_len,
                codec,
            });
        }
        let index = ChunkIndex { files, chunks };
        index.validate()?;
        Ok(index)
    }

    fn validate(&self) -> Result<(), ChunkIndexError> {
        use ChunkIndexError::{FileName, Lengths, Limit, Malformed};
        if self.files.is_empty() || self.files.len() > LIMITS.files {
            return Err(Limit("files"));
        }
        let mut next_chunk = 0_usize;
        let mut total_bytes = 0_u64;
        for (position, file) in self.files.iter().enumerate() {
            if self.files[..position].iter().any(|other| other.name == file.name) {
                return Err(FileName(position));
            }
            let end = next_chunk + file.chunk_count as usize;
            let chunks = self.chunks.get(next_chunk..end).ok_or(Malformed)?;
            next_chunk = end;
            let possible = chunks
                .iter()
                .all(|c| (1..=CHUNK_RAW_MAX).contains(&(c.raw_len as usize)) && (1..=c.raw_len).contains(&c.wire_len));
            let sum: u64 = chunks.iter().map(|c| u64::from(c.raw_len)).sum();
            if !possible || sum != file.size_bytes {
                return Err(Lengths(file.name.clone()));
            }
            total_bytes = total_bytes.saturating_add(file.size_bytes);
        }
        if next_chunk != self.chunks.len() {
            return Err(Malformed);
        }
        if total_bytes > LIMITS.total_bytes {
            return Err(Limit("total bytes"));
        }
        Ok(())
    }
}

/// Takes pieces from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }
}

/// Groups the first, second, third and fourth bytes of all 4-byte words. The sign and exponent bytes of `f32` weights
/// compress well once they stand together. A tail shorter than a word stays as it is.
pub fn shuffle4(bytes: &[u8]) -> Vec<u8> {
    let words = bytes.len() / 4;
    let mut out = Vec::with_capacity(bytes.len());
    for plane in 0..4 {
        out.extend(bytes[..words * 4].iter().skip(plane).step_by(4));
    }
    out.extend_from_slice(&bytes[words * 4..]);
    out
}

/// Undoes [`shuffle4`].
pub fn unshuffle4(bytes: &[u8]) -> Vec<u8> {
    let words = bytes.len() / 4;
    let mut out = vec![0; bytes.len()];
    for plane in 0..4 {
        let source = &bytes[plane * words..(plane + 1) * words];
        for (word, byte) in source.iter().enumerate() {
            out[word * 4 + plane] = *byte;
        }
    }
    out[words * 4..].copy_from_slice(&bytes[words * 4..]);
    out
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
