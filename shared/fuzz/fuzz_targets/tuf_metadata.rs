//! Fuzzes [`skerry_fuzz::tuf_metadata`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skerry_fuzz::tuf_metadata(input));
