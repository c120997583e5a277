//! Content by digest: models, chunks, artifacts. Behind `object_store`, so that a local folder can become a bucket.
//!
//! Invariant: what is stored under a digest has that digest.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, path::Path as Key};
use skerry_shared::digest::Digest;

/// Why a blob call failed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store cannot be opened.
    #[error("cannot open the blob store")]
    Open(#[source] object_store::Error),
    /// The content has another digest.
    #[error("the content has digest {got}, expected {expected}")]
    Digest {
        /// The digest in the request.
        expected: Digest,
        /// The digest of the content.
        got: Digest,
    },
    /// There is no such blob.
    #[error("there is no blob {0}")]
    NotFound(Digest),
    /// The store failed.
    #[error("the blob store failed")]
    Store(#[source] object_store::Error),
}

/// The blobs of a control plane; cheap to clone.
#[derive(Clone)]
pub struct BlobStore {
    store: Arc<dyn ObjectStore>,
}

impl BlobStore {
    /// Opens a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`BlobError::Open`].
    pub fn open_folder(path: &Path) -> Result<BlobStore, BlobError> {
        let generic = |source| {
            BlobError::Open(object_store::Error::Generic {
                store: "folder",
                source,
            })
        };
        std::fs::create_dir_all(path).map_err(|error| generic(Box::new(error)))?;
        let store = LocalFileSystem::new_with_prefix(path)
            .map_err(BlobError::Open)?
            .with_fsync(true);
        Ok(BlobStore { store: Arc::new(store) })
    }

    /// Stores content under its digest; durable when it returns.
    ///
    /// # Errors
    /// [`BlobError::Digest`] when the content is not what was announced.
    pub async fn put(&self, expected: Digest, content: Bytes) -> Result<(), BlobError> {
        let hashed = content.clone();
        let got = tokio::task::spawn_blocking(move || Digest::of(&hashed))
            .await
            .expect("hashing does not panic");
        if got != expected {
            return Err(BlobError::Digest { expected, got });
        }
        if self.has(expected).await? {
            return Ok(());
        }
        self.store
            .put(&key(expected), PutPayload::from_bytes(content))
            .await
            .map_err(BlobError::Store)?;
        Ok(())
    }

    /// Reads a blob.
    ///
    /// # Errors
    /// [`BlobError::NotFound`] when it is not there.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, BlobError> {
        match self.store.get(&key(digest)).await {
            Ok(found) => found.bytes().await.map_err(BlobError::Store),
            Err(object_store::Error::NotFound { .. }) => Err(BlobError::NotFound(digest)),
            Err(error) => Err(BlobError::Store(error)),
        }
    }

    /// True when the blob is there.
    ///
    /// # Errors
    /// [`BlobError::Store`].
    pub async fn has(&self, digest: Digest) -> Result<bool, BlobError> {
        match self.store.head(&key(digest)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(BlobError::Store(error)),
        }
    }
}

/// Two levels, so that no folder grows without bound.
fn key(digest: Digest) -> Key {
    let hex = digest.to_hex();
    Key::from(format!("{}/{hex}", &hex[..2]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_content_than_announced_is_refused_and_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open_folder(folder.path()).unwrap();
        let digest = Digest::of(b"a");
        let refused = blobs.put(digest, Bytes::from_static(b"b")).await;
        assert!(matches!(refused, Err(BlobError::Digest { .. })));
        assert!(matches!(blobs.get(digest).await, Err(BlobError::NotFound(_))));
        blobs.put(digest, Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(blobs.get(digest).await.unwrap(), "a");
    }
}
