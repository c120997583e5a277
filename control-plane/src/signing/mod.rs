//! Signing keys: how they lie on disk, and what the online ones sign.
//!
//! Invariant: the control plane never holds the keys of `root` or `targets`.

pub mod key_file;
pub mod online;
