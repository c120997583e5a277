//! Fuzzes [`skerry_fuzz::mqtt_payload`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| skerry_fuzz::mqtt_payload(input));
