//! Tests of the chunk index.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn chunk(content: &[u8]) -> Chunk {
    let raw = Digest::of(content);
    Chunk {
        raw,
        wire: raw,
        raw_len: content.len() as u32,
        wire_len: content.len() as u32,
        codec: Codec::Raw,
    }
}

fn one_file(chunks: Vec<Chunk>, size_bytes: u64) -> Result<ChunkIndex, ChunkIndexError> {
    ChunkIndex::new(vec![(
        "model.onnx".parse().unwrap(),
        Digest::of(b"file"),
        size_bytes,
        chunks,
    )])
}

prop_compose! {
    fn any_index()(files in prop::collection::vec(prop::collection::vec((1..=CHUNK_RAW_MAX as u32, any::<[u8; 32]>(), 0..3_u8), 0..5), 1..6)) -> ChunkIndex {
        let files = files.into_iter().enumerate().map(|(i, chunks)| {
            let chunks: Vec<Chunk> = chunks.into_iter().map(|(raw_len, bytes, codec)| Chunk {
                raw: Digest::from_bytes(bytes),
                wire: Digest::of(&bytes),
                raw_len,
                wire_len: raw_len.div_ceil(2),
                codec: Codec::ALL[codec as usize],
            }).collect();
            let size = chunks.iter().map(|c| u64::from(c.raw_len)).sum();
            (format!("f{i}").parse().unwrap(), Digest::of(&[i as u8]), size, chunks)
        }).collect();
        ChunkIndex::new(files).unwrap()
    }
}

proptest! {
    #[test]
    fn every_index_reads_back(index in any_index()) {
        prop_assert_eq!(ChunkIndex::from_bytes(&index.to_bytes()).unwrap(), index);
    }

    #[test]
    fn every_truncation_is_refused(index in any_index(), cut in any::<prop::sample::Index>()) {
        let bytes = index.to_bytes();
        prop_assert!(ChunkIndex::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = ChunkIndex::from_bytes(&bytes);
        let _ = ChunkIndex::from_bytes(&[b"SKCI\x01\x00".as_slice(), &bytes].concat());
    }

    #[test]
    fn shuffling_can_be_undone(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(unshuffle4(&shuffle4(&bytes)), bytes);
    }

    #[test]
    fn what_a_newer_minor_version_appends_is_ignored(index in any_index(), extra in prop::collection::vec(any::<u8>(), 0..50)) {
        let mut bytes = index.to_bytes();
        bytes[5] = 1;
        bytes.extend(extra);
        prop_assert_eq!(ChunkIndex::from_bytes(&bytes).unwrap(), index);
    }
}

#[test]
fn another_major_version_is_refused() {
    let mut bytes = one_file(vec![chunk(b"abc")], 3).unwrap().to_bytes();
    bytes[4] = 2;
    assert_eq!(ChunkIndex::from_bytes(&bytes), Err(ChunkIndexError::UnknownMajor(2)));
}

#[test]
fn chunks_that_do_not_add_up_are_refused() {
    assert!(matches!(
        one_file(vec![chunk(b"abc")], 4),
        Err(ChunkIndexError::Lengths(_))
    ));
    assert!(matches!(
        one_file(vec![chunk(b"")], 0),
        Err(ChunkIndexError::Lengths(_))
    ));
}

#[test]
fn a_wire_form_larger_than_its_content_is_refused() {
    let mut grown = chunk(b"abc");
    grown.wire_len = 4;
    assert!(matches!(one_file(vec![grown], 3), Err(ChunkIndexError::Lengths(_))));
}

#[test]
fn a_path_is_no_file_name() {
    let good = one_file(vec![chunk(b"abc")], 3).unwrap().to_bytes();
    let at = good.windows(10).position(|w| w == b"model.onnx").unwrap();
    let mut bad = good.clone();
    bad[at..at + 10].copy_from_slice(b"../../etcx");
    assert_eq!(ChunkIndex::from_bytes(&bad), Err(ChunkIndexError::FileName(0)));
}

#[test]
fn a_huge_chunk_count_allocates_nothing() {
    let mut bytes = one_file(vec![chunk(b"abc")], 3).unwrap().to_bytes();
    bytes[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(ChunkIndex::from_bytes(&bytes), Err(ChunkIndexError::Malformed));
}
