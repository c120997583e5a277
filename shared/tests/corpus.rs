//! Replays the committed fuzz corpus through the functions that the fuzzer calls, so that a plain `cargo test` finds what
//! a change of a parser breaks. The fuzzer itself needs a nightly compiler: see `fuzz/README.md`.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path};

#[allow(unreachable_pub, reason = "the same file is the library of the fuzz targets")]
#[path = "../fuzz/src/targets.rs"]
mod targets;

#[test]
fn corpus_does_not_crash() {
    let targets: BTreeMap<&str, fn(&[u8])> = BTreeMap::from([
        ("chunk_index", targets::chunk_index as fn(&[u8])),
        ("dsse", targets::dsse),
        ("mqtt_payload", targets::mqtt_payload),
        ("oip", targets::oip),
        ("tuf_metadata", targets::tuf_metadata),
    ]);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut folders: Vec<String> = fs::read_dir(&corpus)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert!(targets.keys().eq(&folders), "a folder for each target: {folders:?}");
    for (name, target) in targets {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            // Shown only if the test fails: the last one is the culprit.
            eprintln!("{}", path.display());
            target(&fs::read(path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no input");
    }
}
