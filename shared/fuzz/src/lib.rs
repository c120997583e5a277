//! The fuzz targets as plain functions: bytes in, a panic if a promise is broken.
//!
//! `fuzz_targets/` hands them to libFuzzer. `shared/tests/corpus.rs` compiles the same file into a stable test and replays the
//! committed corpus. Nothing here is part of a product.

#[path = "targets.rs"]
mod targets;

pub use targets::{chunk_index, dsse, mqtt_payload, oip, tuf_metadata};
