//! The device role of Skerry: pulls signed bundles over MQTT, runs them, answers inference requests, ships telemetry.
//!
//! The list is the reading order of the update path; `agent` wires it. Invariant: inference never stops because an update
//! failed, and nothing runs that the signed metadata does not allow.

pub mod cli;

mod clock;
mod config;
mod disk;
mod enroll;
mod fetch;
mod jitter;
mod link;
mod loading;
mod proc_text;
mod record;
mod renew;
mod serving;
mod store;
mod time_request;
mod tls;
mod transfer;
mod update;
mod verify;
mod worker;

mod proof;

mod agent;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod crash_tests;
mod doctor;
mod log;
mod report;
mod serve;
mod telemetry;
mod watchdog;
