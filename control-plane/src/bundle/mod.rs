//! Making bundles on the operator's side: spec → manifest, chunks and chunk index in a folder → a signed target.
//!
//! It never runs in the server: `targets` is signed where its key is. Invariant: a folder that [`folder::BundleFolder::open`]
//! accepts is complete, and everything in it has the digest that its chunk index states.

pub mod build;
pub mod chunker;
pub mod folder;
pub mod sign;
pub mod spec;
pub mod verify;

use skerry_shared::id::{ModelName, ModelVersion};

/// The TUF target name of a bundle: `<model>/<version>/index`.
pub fn target_name(model: &ModelName, version: ModelVersion) -> String {
    format!("{model}/{version}/index")
}
