//! Attacks by a bundle that is properly signed: the publisher's mistake, or his stolen key. The signature makes none of them
//! right, and the device refuses each before it costs more than the download.

use skerry_shared::{
    chunk::{Chunk, ChunkIndex, Codec},
    desired::OutcomeResult,
    digest::Digest,
    id::ModelVersion,
};

use crate::impostor::{Scene, error_code};

/// The true chunk index of version 2, and the wire forms of its chunks.
fn version_2(scene: &Scene) -> (ChunkIndex, Vec<Vec<u8>>) {
    let digest = scene.index_of(2);
    let index = ChunkIndex::from_bytes(&scene.after.indexes[&digest]).unwrap();
    (index, scene.after.chunks[&digest].clone())
}

/// Tells the device to run a version 2 with this index, under good signatures: how it ends.
fn attempt(scene: &mut Scene, index: Vec<u8>, chunks: Vec<Vec<u8>>) -> (Option<String>, OutcomeResult) {
    let (repository, digest) = scene.with_index(index, chunks);
    scene.serve(repository);
    let mut desired = scene.desired("dev-1", 2);
    desired.bundles[0].index = digest;
    let outcome = scene.assign(&desired);
    (error_code(&outcome).map(str::to_owned), outcome.result)
}

fn refuses(scene: &mut Scene, index: Vec<u8>, chunks: Vec<Vec<u8>>, code: &str) {
    let (got, result) = attempt(scene, index, chunks);
    assert_eq!(got.as_deref(), Some(code), "{result:?}");
    scene.still_serves(1);
}

/// The control case of this file: the index as it was built, by the same way.
fn accepts_the_true_one(scene: &mut Scene) {
    let (index, chunks) = version_2(scene);
    let (_, result) = attempt(scene, index.to_bytes(), chunks);
    assert_eq!(result, OutcomeResult::Succeeded);
    scene.still_serves(2);
}

fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn attack_file_name_that_leaves_its_folder() {
    let mut scene = Scene::set();
    let (index, chunks) = version_2(&scene);
    let bytes = index.to_bytes();
    let outside = scene.device.state_dir.parent().unwrap().join("escaped");
    for name in [
        b"../../escaped",
        b"/tmp/escaped_",
        b"a\0anifest.jso",
        b"..\\..\\escaped",
        b"manifest/../m",
    ] {
        refuses(
            &mut scene,
            replaced(&bytes, b"manifest.json", name),
            chunks.clone(),
            "chunk_index",
        );
        assert!(!outside.exists());
    }
    accepts_the_true_one(&mut scene);
}

#[test]
fn attack_index_whose_lengths_do_not_add_up() {
    let mut scene = Scene::set();
    let (index, chunks) = version_2(&scene);
    let bytes = index.to_bytes();
    let size = index.file("manifest.json").unwrap().size_bytes;
    for wrong in [size + 1, size - 1, u64::MAX] {
        let wrong = replaced(&bytes, &size.to_be_bytes(), &wrong.to_be_bytes());
        refuses(&mut scene, wrong, chunks.clone(), "chunk_index");
    }
    // Cut short, and with a number of files that nothing follows.
    refuses(
        &mut scene,
        bytes[..bytes.len() / 2].to_vec(),
        chunks.clone(),
        "chunk_index",
    );
    accepts_the_true_one(&mut scene);
}

/// A manifest whose only chunk is `wire`, under its right digest: what it becomes is the attack.
fn with_manifest_chunk(index: &ChunkIndex, chunks: &[Vec<u8>], wire: Vec<u8>) -> (Vec<u8>, Vec<Vec<u8>>) {
    let raw_len = wire.len().max(1000) as u32;
    let manifest = vec![0; raw_len as usize];
    let mut all = Vec::new();
    let mut files = Vec::new();
    for file in index.files() {
        if file.name.as_str() == "manifest.json" {
            let chunk = Chunk {
                raw: Digest::of(&manifest),
                wire: Digest::of(&wire),
                raw_len,
                wire_len: wire.len() as u32,
                codec: Codec::Zstd,
            };
            all.push(wire.clone());
            files.push((
                file.name.clone(),
                Digest::of(&manifest),
                u64::from(raw_len),
                vec![chunk],
            ));
        } else {
            let first = file.first_chunk as usize;
            all.extend_from_slice(&chunks[first..first + file.chunk_count as usize]);
            files.push((
                file.name.clone(),
                file.digest,
                file.size_bytes,
                index.chunks_of(file).to_vec(),
            ));
        }
    }
    (ChunkIndex::new(files).unwrap().to_bytes(), all)
}

#[test]
fn attack_decompression_bombs() {
    let mut scene = Scene::set();
    let (index, chunks) = version_2(&scene);
    let zeros = |length: usize| zstd::bulk::compress(&vec![0; length], 3).unwrap();
    // 256 MiB in a few kilobytes: whoever decompresses it without a cap has them in memory.
    let bomb = zeros(256 * 1024 * 1024);
    assert!(bomb.len() < 32_000, "{}", bomb.len());
    assert_eq!(
        zstd::bulk::decompress(&bomb, 512 * 1024 * 1024).unwrap().len(),
        256 * 1024 * 1024
    );
    let two_frames = [zeros(500), zeros(500)].concat();
    let trailing = [zeros(1000), b"and more".to_vec()].concat();
    let too_short = zeros(999);
    let before = scene.peak_kb();
    for wire in [bomb, two_frames, trailing, too_short, b"no zstd at all".to_vec()] {
        let (index, chunks) = with_manifest_chunk(&index, &chunks, wire);
        refuses(&mut scene, index, chunks, "bad_chunk");
    }
    assert!(
        scene.peak_kb() < before + 16 * 1024,
        "{} kB, before {before}",
        scene.peak_kb()
    );
    // The same way with an honest frame gets past the chunk, to a manifest that is none.
    let (honest, parts) = with_manifest_chunk(&index, &chunks, zeros(1000));
    refuses(&mut scene, honest, parts, "manifest");
    accepts_the_true_one(&mut scene);
}

/// The right bytes under another version's name.
#[test]
fn attack_bundle_of_another_version() {
    let mut scene = Scene::set();
    scene.serve(scene.after.clone());
    let mut desired = scene.desired("dev-1", 2);
    desired.bundles[0].version = ModelVersion(3);
    assert_eq!(error_code(&scene.assign(&desired)), Some("manifest"));
    scene.still_serves(1);
    scene.accepts(scene.after.clone());
}

/// An index that the assignment names and the targets do not, and the other way round.
#[test]
fn attack_index_that_only_one_of_the_two_names() {
    let mut scene = Scene::set();
    let (index, chunks) = version_2(&scene);
    let (repository, _) = scene.with_index(index.to_bytes(), chunks);
    scene.serve(repository.clone());
    let mut desired = scene.desired("dev-1", 2);
    desired.bundles[0].index = Digest::of(b"of his own");
    assert_eq!(error_code(&scene.assign(&desired)), Some("mix_and_match"));
    scene.still_serves(1);
    let mut desired = scene.desired("dev-1", 2);
    desired.bundles[0].target = "activity-recognition/9/index".to_owned();
    assert_eq!(error_code(&scene.assign(&desired)), Some("not_listed"));
    scene.still_serves(1);
    scene.accepts(repository);
}
