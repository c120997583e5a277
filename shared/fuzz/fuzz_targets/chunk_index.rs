//! Fuzzes [`skerry_fuzz::chunk_index`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skerry_fuzz::chunk_index(input));
