//! End-to-end tests: real processes, real files, real broker. One program, since each more would be linked for itself.
#![allow(clippy::unwrap_used)]

mod attack_transfer;
mod bad_input;
mod flow_loop;
mod flow_publish;
mod flow_telemetry;
mod flow_update;
#[cfg(feature = "outside")]
mod outside;
mod power_loss;
mod telemetry_frames;

/// The program that the tests start.
const PROGRAM: &str = env!("CARGO_BIN_EXE_skerry-under-test");
