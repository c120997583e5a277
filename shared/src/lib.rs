//! What crosses the wire between a device and the control plane, and nothing else.
//!
//! Types, their encodings and their limits. No I/O, no clock, no randomness, no async: both roles and every test can
//! use this crate, and nothing here can block or fail for a reason outside its arguments.
//!
//! Every JSON envelope carries a [`schema::SchemaVersion`]; an unknown major version is refused, unknown fields are ignored.

pub mod bundle;
pub mod chunk;
pub mod desired;
pub mod digest;
pub mod dsse;
pub mod error;
pub mod histogram;
pub mod id;
pub mod lineage;
pub mod oip;
pub mod otlp;
pub mod schema;
pub mod time;
pub mod topic;
pub mod transfer;

#[cfg(test)]
mod envelope_tests;
#[cfg(test)]
mod otlp_tests;
