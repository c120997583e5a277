//! The agent's packages that the control plane hands out, and the script that installs one of them on a new device.
//!
//! It has the packages that somebody gave it and makes none. Not the trust in models: whoever installs by the script trusts this
//! control plane for the program, as anybody does who downloads one. Invariant: a script names each package by the digest that
//! was there when the script was made.

mod line;
mod name;
mod script;
mod store;

use bytes::Bytes;
use serde::Serialize;
use skerry_shared::digest::Digest;
use utoipa::ToSchema;

use crate::{
    audit::{self, By, Fact},
    blob::{BlobError, BlobStore},
    db::{Db, DbError},
};

pub use line::{ANCHOR_PATH, install_line};
pub use name::{Architecture, BadPackageName, Format, PackageName};
pub use script::{ScriptError, Values, script};

/// A package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AgentPackage {
    /// The file's name.
    pub file: String,
    /// The agent's version.
    pub version: String,
    /// For which machines: `amd64`, `arm64` or `armhf`.
    pub architecture: String,
    /// `deb` or `tarball`.
    pub format: String,
    /// `sha256:` and 64 hex digits.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The file's length.
    pub size_bytes: u64,
    /// UTC milliseconds.
    pub published_at_ms: u64,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// There is no such package.
    #[error("there is no agent package `{0}`")]
    NotFound(String),
    /// The content is not what the name says.
    #[error("`{0}` is not what its name says: a .deb is an ar archive, a .tar.gz is compressed by gzip")]
    Content(PackageName),
    /// The content could not be stored or read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Takes a package in. It replaces the one of the same architecture and format.
///
/// # Errors
/// [`PackageError::Content`] when the file is none of this format.
pub async fn publish(
    core: &Db,
    blobs: &BlobStore,
    name: PackageName,
    content: Bytes,
    by: By,
) -> Result<AgentPackage, PackageError> {
    let magic: &[u8] = match name.format {
        Format::Deb => b"!<arch>\n",
        Format::Tarball => &[0x1f, 0x8b],
    };
    if !content.starts_with(magic) {
        return Err(PackageError::Content(name));
    }
    let hashed = content.clone();
    let digest = tokio::task::spawn_blocking(move || Digest::of(&hashed))
        .await
        .expect("hashing does not panic");
    let package = AgentPackage {
        file: name.as_str().to_owned(),
        version: name.version.clone(),
        architecture: name.architecture.as_str().to_owned(),
        format: name.format.as_str().to_owned(),
        digest,
        size_bytes: content.len() as u64,
        published_at_ms: by.at_ms,
    };
    blobs.put(digest, content).await?;
    let written = package.clone();
    core.write(move |conn| -> Result<(), DbError> {
        store::put(conn, &written)?;
        let fact = Fact::new("agent_package.publish", format!("agent_package/{}", written.file));
        audit::append(conn, &by, fact.with("digest", written.digest))
    })
    .await?;
    Ok(package)
}

/// All packages.
///
/// # Errors
/// The database's.
pub async fn list(core: &Db) -> Result<Vec<AgentPackage>, DbError> {
    core.read(store::all).await
}

/// The content of a package.
///
/// # Errors
/// [`PackageError::NotFound`] when it is not there, or was replaced.
pub async fn content(core: &Db, blobs: &BlobStore, file: &str) -> Result<Bytes, PackageError> {
    let found = list(core).await?.into_iter().find(|package| package.file == file);
    let package = found.ok_or_else(|| PackageError::NotFound(file.chars().take(128).collect()))?;
    Ok(blobs.get(package.digest).await?)
}
