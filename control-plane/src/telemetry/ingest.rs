//! Taking frames in: decode, store in one transaction, and only then say which frames may be acknowledged.
//!
//! A malformed frame of a format that is known is acknowledged and counted as rejected: no later version of this program could
//! read it either, and its device would send it for ever. A message of an unknown format is counted and not acknowledged.

use std::collections::BTreeMap;

use skerry_shared::{desired::FrameId, id::DeviceId};

use super::{
    Acked, Message,
    decode::{Content, Decoded, Decoder},
    store::{self, Cache, Expired},
};
use crate::db::{Db, DbError};

/// Messages that are taken in together: their acknowledgement to one device still fits one message.
pub const BATCH_MAX: usize = 512;
/// Points in one transaction: bounds its memory, whatever the frames hold.
const POINTS_MAX: usize = 20_000;
const DAY_MS: u64 = 86_400_000;

/// The writing side of `telemetry.db`. There is one.
pub struct Ingest {
    db: Db,
    cache: Cache,
}

/// Why a batch was not taken in. Nothing of what was not returned as acknowledged may be taken for stored.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// zstd has no memory, or decoding ended badly.
    #[error("cannot decode telemetry")]
    Decode(#[source] std::io::Error),
    /// The database failed.
    #[error("cannot store telemetry")]
    Db(#[from] DbError),
}

impl Ingest {
    /// The writing side of a database with [`super::MIGRATIONS`].
    pub fn new(db: Db) -> Ingest {
        Ingest {
            db,
            cache: Cache::default(),
        }
    }

    /// Takes messages in. What is returned is committed.
    ///
    /// # Errors
    /// [`IngestError`]; then part of the messages may be stored, and comes again.
    pub async fn ingest(&mut self, messages: Vec<Message>, now_ms: u64) -> Result<Vec<Acked>, IngestError> {
        let decoded = tokio::task::spawn_blocking(move || decode(messages));
        let batches = decoded.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let mut acks: BTreeMap<DeviceId, Vec<FrameId>> = BTreeMap::new();
        for batch in batches.map_err(IngestError::Decode)? {
            // On an error the cache is lost with the transaction that it described.
            let mut cache = std::mem::take(&mut self.cache);
            let written = self.db.write(move |conn| {
                store::insert(conn, &mut cache, &batch, now_ms)?;
                Ok::<_, DbError>((cache, batch))
            });
            let (cache, batch) = written.await?;
            self.cache = cache;
            for message in batch {
                let id = match message.content {
                    Content::Frame(frame) => frame.id,
                    Content::Malformed(id) => id,
                    Content::Unknown => continue,
                };
                acks.entry(message.device).or_default().push(id);
            }
        }
        let acked = |(device, frames)| Acked { device, frames };
        Ok(acks.into_iter().map(acked).collect())
    }

    /// Deletes one step's worth of what is older than `retention_days`; true when more is left.
    ///
    /// # Errors
    /// The database's; the step is undone.
    pub async fn expire(&mut self, retention_days: u32, now_ms: u64) -> Result<bool, DbError> {
        let before_ms = now_ms.saturating_sub(u64::from(retention_days) * DAY_MS);
        // Rows that it remembers may go.
        self.cache = Cache::default();
        let expired = self.db.write(move |conn| store::expire(conn, before_ms, now_ms));
        Ok(expired.await? == Expired::Some)
    }
}

/// Decodes messages into batches of bounded size.
fn decode(messages: Vec<Message>) -> std::io::Result<Vec<Vec<Decoded>>> {
    let mut decoder = Decoder::new()?;
    let mut batches = Vec::new();
    let (mut batch, mut points) = (Vec::new(), 0);
    for message in messages {
        let decoded = decoder.decode(message);
        if let Content::Frame(frame) = &decoded.content {
            points += frame.len();
        }
        batch.push(decoded);
        if points >= POINTS_MAX {
            batches.push(std::mem::take(&mut batch));
            points = 0;
        }
    }
    batches.push(batch);
    Ok(batches)
}
