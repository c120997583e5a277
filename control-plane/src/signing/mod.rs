//! Signing keys: how they lie on disk, what the online ones sign, and how root metadata changes.
//!
//! Invariant: the control plane never holds the keys of `root` or `targets`.

pub mod draft;
pub mod key_file;
pub mod online;
pub mod passphrase;
pub mod role;
