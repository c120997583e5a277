//! Fuzzes [`skerry_fuzz::dsse`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skerry_fuzz::dsse(input));
