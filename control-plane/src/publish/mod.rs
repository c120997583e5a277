//! Publishing: a signed bundle becomes part of the TUF repository that devices trust.
//!
//! The server adds only what the offline `targets` key has signed, and signs `snapshot` and `timestamp` around it. Invariant:
//! what devices can fetch is always one consistent set of metadata; a refused bundle changes nothing.

mod metadata;
mod roots;
pub(crate) mod store;
mod targets;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skerry_shared::{
    bundle::{MANIFEST_NAME, Manifest, ResourceKind},
    chunk::{ChunkIndex, ChunkIndexError},
    digest::Digest,
    id::{ModelName, ModelVersion},
    schema::{Envelope, EnvelopeError},
};
use skerry_tuf::{Role, TargetName};
use utoipa::ToSchema;

use crate::{
    audit::{self, By, Fact},
    blob::{BlobError, BlobStore},
    bundle::{
        chunker::{BadChunk, decode},
        target_name,
    },
    db::{Db, DbError},
    registry::{self, RegistryError},
    signing::online::OnlineKeys,
};

pub use metadata::{ensure, renew};
pub use roots::{newest_root, publish_root, root_by_digest};
pub use targets::publish_targets;

/// A bundle that devices can be asked to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PublishedBundle {
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Its version.
    #[schema(value_type = u64)]
    pub version: ModelVersion,
    /// Its TUF target.
    pub target: String,
    /// Its chunk index: `sha256:` and 64 hex digits.
    #[schema(value_type = String)]
    pub index: Digest,
    /// The chunk index's length.
    pub index_bytes: u64,
    /// All files together, of all platforms.
    pub total_bytes: u64,
    /// All distinct chunks as they travel.
    pub wire_bytes: u64,
    /// UTC milliseconds.
    pub published_at_ms: u64,
    /// Why it may not be installed any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub refused: Option<Refusal>,
}

/// Why a published bundle may not be installed: the signed targets metadata says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Refusal {
    /// Which rule.
    pub code: RefusalCode,
    /// In words.
    pub reason: String,
}

/// The rule that forbids a bundle; devices report it under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// It is on the list of blocked bundles.
    Blocked,
    /// It is below the lowest version of its model.
    MinRelease,
}

/// Why a bundle was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The targets metadata is malformed, or not signed by the root's targets keys.
    #[error("the targets metadata is refused")]
    Targets(#[source] skerry_tuf::Error),
    /// The root metadata is malformed, not the next one, or not signed by enough keys of the newest root and of itself.
    #[error("the root metadata is refused")]
    Root(#[source] skerry_tuf::Error),
    /// The new root gives keys to the server that it does not have.
    #[error("the control plane lacks keys of the new root: {0}")]
    Keys(String),
    /// The new root does not name the keys that signed the current targets metadata.
    #[error(
        "the current targets metadata is not signed by the targets keys of the new root: publish a renewed one with it"
    )]
    TargetsKeys(#[source] skerry_tuf::Error),
    /// A target has no published bundle.
    #[error("the targets metadata names `{0}`, whose bundle is not published: publish the bundle with it")]
    NotPublished(String),
    /// Somebody else published in between.
    #[error(
        "the targets metadata has version {got}, the next one is {expected}: sign it again, on top of the current one"
    )]
    Version {
        /// The version in the request.
        got: u64,
        /// The next version.
        expected: u64,
    },
    /// A target that was published is missing or changed.
    #[error("target `{0}` was published and is missing or changed in the new targets metadata")]
    TargetLost(String),
    /// The targets metadata does not name the bundle.
    #[error("the targets metadata does not name `{0}`")]
    NoTarget(String),
    /// The chunk index is not the one that was signed.
    #[error("the chunk index does not match its target")]
    IndexMismatch(#[source] skerry_tuf::Error),
    /// The chunk index is malformed.
    #[error("the chunk index is refused")]
    Index(#[from] ChunkIndexError),
    /// A chunk has not been uploaded.
    #[error("chunk {0} has not been uploaded")]
    MissingChunk(Digest),
    /// A chunk of the manifest does not decode.
    #[error("the manifest's chunks do not decode")]
    Chunk(#[from] BadChunk),
    /// The manifest is missing or malformed.
    #[error("the bundle has no readable manifest")]
    Manifest(#[source] Option<EnvelopeError>),
    /// The manifest is of another model or version, or holds another ONNX file.
    #[error("the bundle is not of {model} version {version}: {reason}")]
    NotThisModel {
        /// The model in the request.
        model: ModelName,
        /// The version in the request.
        version: ModelVersion,
        /// What differs.
        reason: &'static str,
    },
    /// The bundle is not published.
    #[error("there is no published bundle of {model} version {version}")]
    NotFound {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
    },
    /// The work broke off; the log has more.
    #[error("publishing broke off")]
    Ended(#[source] tokio::task::JoinError),
    /// Snapshot or timestamp cannot be signed.
    #[error("cannot sign the metadata")]
    Sign(#[source] skerry_tuf::Error),
    /// The model version is not registered.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Checks an uploaded bundle against its signed targets metadata and publishes it.
///
/// # Errors
/// [`PublishError`]; nothing has changed then.
pub async fn publish(
    db: &Db,
    blobs: &BlobStore,
    keys: &Arc<OnlineKeys>,
    (model, version): (ModelName, ModelVersion),
    targets_bytes: Bytes,
    by: By,
) -> Result<PublishedBundle, PublishError> {
    let _publishing = keys.publishing().await;
    let keys = keys.current();
    let new_targets = targets::verified(&keys, &targets_bytes)?;
    let target = target_name(&model, version);
    let name = TargetName::new(target.clone()).map_err(|_| PublishError::NoTarget(target.clone()))?;
    let entry = new_targets
        .find(&name)
        .ok_or_else(|| PublishError::NoTarget(target.clone()))?;
    let digest = entry.sha256().ok_or_else(|| PublishError::NoTarget(target.clone()))?;
    let index_digest = Digest::from_bytes(digest);
    let index_bytes = match blobs.get(index_digest).await {
        Err(BlobError::NotFound(digest)) => return Err(PublishError::MissingChunk(digest)),
        other => other?,
    };
    entry.check(&name, &index_bytes).map_err(PublishError::IndexMismatch)?;
    let index = ChunkIndex::from_bytes(&index_bytes)?;
    for chunk in index.chunks() {
        if !blobs.has(chunk.wire).await? {
            return Err(PublishError::MissingChunk(chunk.wire));
        }
    }
    check_manifest(db, blobs, &index, &model, version).await?;

    let mut wire: Vec<_> = index
        .chunks()
        .iter()
        .map(|chunk| (chunk.wire, u64::from(chunk.wire_len)))
        .collect();
    wire.sort();
    wire.dedup();
    let bundle = PublishedBundle {
        model,
        version,
        target,
        index: index_digest,
        index_bytes: index_bytes.len() as u64,
        total_bytes: index.total_bytes(),
        wire_bytes: wire.iter().map(|(_, len)| len).sum(),
        published_at_ms: by.at_ms,
        refused: None,
    };
    let stored = bundle.clone();
    db.write(move |conn| {
        targets::replace(conn, &new_targets, &targets_bytes)?;
        metadata::sign_around(conn, &keys, (new_targets.version, &targets_bytes), by.at_ms)?;
        store::insert_bundle(conn, &stored)?;
        if let Some(name) = targets::added(conn, &new_targets)? {
            return Err(PublishError::NotPublished(name));
        }
        targets::settle(conn, &new_targets)?;
        let fact = Fact::new("bundle.publish", format!("bundle/{}/{}", stored.model, stored.version))
            .with("target", &stored.target)
            .with("index", stored.index)
            .with("targets_version", new_targets.version)
            .with("targets", Digest::of(&targets_bytes));
        Ok(audit::append(conn, &by, fact)?)
    })
    .await?;
    Ok(bundle)
}

/// Reads the manifest from its chunks, and checks that it is of this model version and holds the registered ONNX file.
async fn check_manifest(
    db: &Db,
    blobs: &BlobStore,
    index: &ChunkIndex,
    model: &ModelName,
    version: ModelVersion,
) -> Result<(), PublishError> {
    let file = index.file(MANIFEST_NAME).ok_or(PublishError::Manifest(None))?;
    let mut bytes = Vec::new();
    for chunk in index.chunks_of(file) {
        bytes.extend(decode(chunk, &blobs.get(chunk.wire).await?)?);
    }
    let manifest = Manifest::from_json(&bytes).map_err(|error| PublishError::Manifest(Some(error)))?;
    let differs = |reason| PublishError::NotThisModel {
        model: model.clone(),
        version,
        reason,
    };
    if manifest.model != *model || manifest.version != version {
        return Err(differs("its manifest names another one"));
    }
    let registered = registry::get_version(db, model, version).await?;
    let onnx = manifest
        .resources
        .iter()
        .filter(|resource| resource.kind == ResourceKind::OnnxModel);
    if !onnx.clone().any(|resource| resource.digest == registered.digest) {
        return Err(differs("its ONNX file is not the registered one"));
    }
    Ok(())
}

/// The published bundle of a model version.
///
/// # Errors
/// [`PublishError::NotFound`], or the database's.
pub async fn get_bundle(db: &Db, model: &ModelName, version: ModelVersion) -> Result<PublishedBundle, PublishError> {
    let model = model.clone();
    db.read(move |conn| store::bundle(conn, &model, version)?.ok_or(PublishError::NotFound { model, version }))
        .await
}

/// All published bundles.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db) -> Result<Vec<PublishedBundle>, DbError> {
    db.read(store::bundles).await
}

/// True when a digest is the chunk index of a published bundle.
///
/// # Errors
/// The database's.
pub async fn is_published(db: &Db, index: Digest) -> Result<bool, DbError> {
    db.read(move |conn| store::is_published(conn, &index)).await
}

/// A metadata file by its file name, for example `2.targets.json`.
///
/// # Errors
/// The database's.
pub async fn metadata_file(db: &Db, name: &str) -> Result<Option<Vec<u8>>, DbError> {
    let name = name.to_owned();
    db.read(move |conn| store::file(conn, &name)).await
}

/// The current targets metadata.
///
/// # Errors
/// The database's.
pub async fn current_targets(db: &Db) -> Result<Vec<u8>, DbError> {
    db.read(|conn| Ok(store::current(conn, Role::Targets)?.1)).await
}
