//! Fuzzes [`skerry_fuzz::oip`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skerry_fuzz::oip(input));
