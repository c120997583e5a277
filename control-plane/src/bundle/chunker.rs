//! Cuts files into chunks and chooses how each travels.
//!
//! Cut points are the publisher's business: a device only looks digests up, so this can improve without touching one.

use std::collections::BTreeMap;

use skerry_shared::{
    chunk::{CHUNK_RAW_MAX, Chunk, ChunkIndex, ChunkIndexError, Codec, shuffle4},
    digest::Digest,
    id::ResourceName,
};

/// Level 19 buys at most 0.6 points on weights for a hundred times the time.
const ZSTD_LEVEL: i32 = 3;

/// The files of a bundle, cut and encoded.
#[derive(Debug)]
pub struct ChunkedFiles {
    /// The index.
    pub index: ChunkIndex,
    /// The wire form of each distinct chunk, by its wire digest.
    pub wire: BTreeMap<Digest, Vec<u8>>,
}

/// Cuts `files` into chunks, in order.
///
/// # Errors
/// [`ChunkIndexError`] when a limit of the chunk index is exceeded.
pub fn chunk_files(files: &[(ResourceName, Vec<u8>)]) -> Result<ChunkedFiles, ChunkIndexError> {
    let mut wire = BTreeMap::new();
    let mut entries = Vec::with_capacity(files.len());
    for (name, content) in files {
        let mut chunks = Vec::new();
        for piece in content.chunks(CHUNK_RAW_MAX) {
            let (codec, encoded) = encode(piece);
            let chunk = Chunk {
                raw: Digest::of(piece),
                wire: Digest::of(&encoded),
                raw_len: piece.len() as u32,
                wire_len: encoded.len() as u32,
                codec,
            };
            wire.insert(chunk.wire, encoded);
            chunks.push(chunk);
        }
        entries.push((name.clone(), Digest::of(content), content.len() as u64, chunks));
    }
    Ok(ChunkedFiles {
        index: ChunkIndex::new(entries)?,
        wire,
    })
}

/// The smallest of the forms; the simpler one when two are equal.
fn encode(piece: &[u8]) -> (Codec, Vec<u8>) {
    let candidates = [
        (Codec::Raw, Some(piece.to_vec())),
        (Codec::Zstd, zstd::bulk::compress(piece, ZSTD_LEVEL).ok()),
        (
            Codec::Shuffle4Zstd,
            zstd::bulk::compress(&shuffle4(piece), ZSTD_LEVEL).ok(),
        ),
    ];
    let encoded = candidates
        .into_iter()
        .filter_map(|(codec, bytes)| Some((codec, bytes?)));
    encoded
        .min_by_key(|(_, bytes)| bytes.len())
        .expect("the raw form is always there")
}

/// Turns the wire form of a chunk back into its content.
///
/// # Errors
/// [`BadChunk`] when the bytes are not the chunk.
pub fn decode(chunk: &Chunk, wire: &[u8]) -> Result<Vec<u8>, BadChunk> {
    if wire.len() != chunk.wire_len as usize || Digest::of(wire) != chunk.wire {
        return Err(BadChunk(chunk.wire));
    }
    let raw_len = chunk.raw_len as usize;
    let unpacked = |bytes: &[u8]| {
        // Devices take one frame and nothing behind it.
        if zstd::zstd_safe::find_frame_compressed_size(bytes) != Ok(bytes.len()) {
            return Err(BadChunk(chunk.wire));
        }
        zstd::bulk::decompress(bytes, raw_len).map_err(|_| BadChunk(chunk.wire))
    };
    let raw = match chunk.codec {
        Codec::Raw => wire.to_vec(),
        Codec::Zstd => unpacked(wire)?,
        Codec::Shuffle4Zstd => skerry_shared::chunk::unshuffle4(&unpacked(wire)?),
    };
    if raw.len() != raw_len || Digest::of(&raw) != chunk.raw {
        return Err(BadChunk(chunk.wire));
    }
    Ok(raw)
}

/// A chunk whose bytes do not match its entry in the index.
#[derive(Debug, thiserror::Error)]
#[error("chunk {0} does not match its index entry")]
pub struct BadChunk(pub Digest);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> ResourceName {
        text.parse().unwrap()
    }

    fn weights(count: u32) -> Vec<u8> {
        (0..count)
            .flat_map(|i| (1.0 + (i as f32 * 0.37).sin() * 1e-2).to_le_bytes())
            .collect()
    }

    #[test]
    fn every_chunk_decodes_to_its_piece() {
        let content = weights(20_000);
        let chunked = chunk_files(&[(name("model.onnx"), content.clone())]).unwrap();
        let decoded: Vec<u8> = chunked
            .index
            .chunks()
            .iter()
            .flat_map(|c| decode(c, &chunked.wire[&c.wire]).unwrap())
            .collect();
        assert_eq!(decoded, content);
    }

    #[test]
    fn weights_are_shuffled_and_noise_stays_raw() {
        assert_eq!(encode(&weights(8000)).0, Codec::Shuffle4Zstd);
        let noise: Vec<u8> = (0..64_u32)
            .flat_map(|i| *Digest::of(&i.to_le_bytes()).as_bytes())
            .collect();
        assert_eq!(encode(&noise).0, Codec::Raw);
    }

    #[test]
    fn equal_files_share_their_chunks() {
        let one = chunk_files(&[(name("a"), weights(20_000))]).unwrap();
        let two = chunk_files(&[(name("a"), weights(20_000)), (name("b"), weights(20_000))]).unwrap();
        assert_eq!(one.wire.len(), two.wire.len());
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let chunked = chunk_files(&[(name("a"), weights(100))]).unwrap();
        let chunk = &chunked.index.chunks()[0];
        let mut wire = chunked.wire[&chunk.wire].clone();
        wire[3] ^= 1;
        assert!(decode(chunk, &wire).is_err());
    }
}
