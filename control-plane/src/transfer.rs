//! Answers what devices want. Stateless towards devices: a request names the parts, the answer is those parts.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use skerry_shared::{
    chunk::ChunkIndex,
    digest::Digest,
    transfer::{Object, PART_BYTES, Part, PartContent, WINDOW_MAX, Want},
};

use crate::{
    blob::{BlobError, BlobStore},
    db::{Db, DbError},
    publish,
};

/// Parsed chunk indexes kept: a fleet downloads few bundles at a time.
const INDEXES_KEPT: usize = 16;

/// Why a want could not be answered. The device asks again.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// The sending side of the transfer.
pub struct Transfer {
    db: Db,
    blobs: BlobStore,
    indexes: Mutex<VecDeque<(Digest, Arc<ChunkIndex>)>>,
}

impl Transfer {
    /// Serves the repository in `db` and `blobs`.
    pub fn new(db: Db, blobs: BlobStore) -> Transfer {
        Transfer {
            db,
            blobs,
            indexes: Mutex::default(),
        }
    }

    /// The messages that answer a want: at most [`WINDOW_MAX`], each one part.
    ///
    /// # Errors
    /// [`TransferError`] when the storage fails; an object that is not there is an answer, not an error.
    pub async fn answer(&self, want: &Want) -> Result<Vec<Vec<u8>>, TransferError> {
        let wanted = &want.parts[..want.parts.len().min(WINDOW_MAX)];
        match &want.object {
            Object::Metadata(name) => {
                let file = publish::metadata_file(&self.db, name).await?;
                Ok(slices(want.request, wanted, file.map(Bytes::from)))
            }
            Object::Blob(digest) => {
                // Only chunk indexes travel whole; everything else is a chunk of a published bundle.
                let file = match publish::is_published(&self.db, *digest).await? {
                    true => Some(self.blobs.get(*digest).await?),
                    false => None,
                };
                Ok(slices(want.request, wanted, file))
            }
            Object::Chunks(index) => match self.index(*index).await? {
                Some(index) => self.chunks(want.request, wanted, &index).await,
                None => Ok(vec![not_found(want.request, 0)]),
            },
        }
    }

    async fn chunks(&self, request: u64, wanted: &[u32], index: &ChunkIndex) -> Result<Vec<Vec<u8>>, TransferError> {
        let parts = index.chunks().len() as u32;
        let mut messages = Vec::with_capacity(wanted.len());
        for part in wanted {
            messages.push(match index.chunks().get(*part as usize) {
                Some(chunk) => {
                    let bytes = self.blobs.get(chunk.wire).await?;
                    Part {
                        request,
                        part: *part,
                        parts,
                        content: PartContent::Data(&bytes),
                    }
                    .to_bytes()
                }
                None => not_found(request, *part),
            });
        }
        Ok(messages)
    }

    async fn index(&self, digest: Digest) -> Result<Option<Arc<ChunkIndex>>, TransferError> {
        let lock = || self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()
            .iter()
            .find(|(other, _)| *other == digest)
            .map(|(_, index)| Arc::clone(index));
        if known.is_some() || !publish::is_published(&self.db, digest).await? {
            return Ok(known);
        }
        let bytes = self.blobs.get(digest).await?;
        let parsed = ChunkIndex::from_bytes(&bytes).map_err(|error| DbError::Corrupt(error.to_string()))?;
        let index = Arc::new(parsed);
        let mut indexes = lock();
        indexes.push_front((digest, Arc::clone(&index)));
        indexes.truncate(INDEXES_KEPT);
        Ok(Some(index))
    }
}

/// The wanted slices of a whole file.
fn slices(request: u64, wanted: &[u32], file: Option<Bytes>) -> Vec<Vec<u8>> {
    let Some(file) = file else {
        return vec![not_found(request, 0)];
    };
    let pieces: Vec<&[u8]> = if file.is_empty() {
        vec![&[]]
    } else {
        file.chunks(PART_BYTES).collect()
    };
    let parts = pieces.len() as u32;
    let message = |part: &u32| match pieces.get(*part as usize) {
        Some(piece) => Part {
            request,
            part: *part,
            parts,
            content: PartContent::Data(piece),
        }
        .to_bytes(),
        None => not_found(request, *part),
    };
    wanted.iter().map(message).collect()
}

fn not_found(request: u64, part: u32) -> Vec<u8> {
    Part {
        request,
        part,
        parts: 0,
        content: PartContent::NotFound,
    }
    .to_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_travels_in_slices_that_join_to_it() {
        let file = Bytes::from(vec![7; PART_BYTES * 2 + 5]);
        let messages = slices(9, &[0, 1, 2, 3], Some(file.clone()));
        let mut joined = Vec::new();
        for message in &messages[..3] {
            let part = Part::from_bytes(message).unwrap();
            assert_eq!((part.request, part.parts), (9, 3));
            let PartContent::Data(data) = part.content else {
                panic!("no data")
            };
            joined.extend_from_slice(data);
        }
        assert_eq!(joined, file);
        assert_eq!(Part::from_bytes(&messages[3]).unwrap().content, PartContent::NotFound);
    }
}
