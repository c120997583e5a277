//! Signed checkpoints: the control plane's word, under its online `time` key, how long the log was and how it ended.
//!
//! They lie beside the log and in a file of their own; one that an operator keeps elsewhere finds a log that was cut or
//! written anew. Invariant: a checkpoint is signed in the transaction that reads what it states.

use std::{fs::OpenOptions, io::Write, path::Path, sync::Arc};

use skerry_shared::dsse::{DsseError, Envelope, Signers};
use skerry_tuf::KeySet;

use super::{chain::Checkpoint, store};
use crate::{
    db::{Db, DbError},
    signing::online::OnlineKeys,
};

/// What the signature says it is for.
pub const PAYLOAD_TYPE: &str = "application/vnd.skerry.audit-checkpoint+json";

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The envelope or its signature.
    #[error("the checkpoint is not signed by a time key of the given roots")]
    Signature(#[from] DsseError),
    /// The signed content.
    #[error("the checkpoint does not parse")]
    Parse(#[from] serde_json::Error),
}

/// The newest checkpoint; a new one if entries have come since, which then is also appended to `file`.
///
/// # Errors
/// The database's. A file that cannot be written is only logged: the checkpoint is in the database.
pub async fn make(db: &Db, keys: &Arc<OnlineKeys>, file: &Path, now_ms: u64) -> Result<Envelope, DbError> {
    let keys = Arc::clone(keys);
    let (envelope, is_new) = db
        .write(move |conn| {
            let (size, head) = store::head(conn)?;
            if let Some((_, envelope)) = store::checkpoint(conn)?.filter(|(newest, _)| *newest == size) {
                let envelope = Envelope::from_json(&envelope).map_err(|error| DbError::Corrupt(error.to_string()))?;
                return Ok::<_, DbError>((envelope, false));
            }
            let checkpoint = Checkpoint {
                origin: store::origin(conn)?,
                size,
                head,
                at_ms: now_ms,
            };
            let payload = serde_json::to_vec(&checkpoint).expect("a checkpoint always encodes");
            let envelope = keys.sign_time(PAYLOAD_TYPE, &payload);
            store::insert_checkpoint(conn, size, now_ms, &envelope.to_json())?;
            Ok((envelope, true))
        })
        .await?;
    if is_new {
        let (file, line) = (file.to_owned(), [envelope.to_json(), b"\n".to_vec()].concat());
        let written = tokio::task::spawn_blocking(move || {
            let mut open = OpenOptions::new().create(true).append(true).open(file)?;
            open.write_all(&line)?;
            open.sync_data()
        });
        if let Ok(Err(error)) = written.await {
            tracing::error!(%error, "cannot append to the file of audit checkpoints");
        }
    }
    Ok(envelope)
}

/// The newest checkpoint, if there is one.
///
/// # Errors
/// The database's.
pub async fn newest(db: &Db) -> Result<Option<Envelope>, DbError> {
    let newest = db.read(store::checkpoint).await?;
    let envelope = newest.map(|(_, envelope)| Envelope::from_json(&envelope));
    envelope
        .transpose()
        .map_err(|error| DbError::Corrupt(error.to_string()))
}

/// Reads a checkpoint that one of `roles` has signed: the `time` keys of the roots that are trusted.
///
/// # Errors
/// [`CheckpointError`].
pub fn open(envelope: &Envelope, roles: &[Signers]) -> Result<Checkpoint, CheckpointError> {
    let mut last = DsseError::Threshold { valid: 0, threshold: 1 };
    for signers in roles {
        match envelope.verify(PAYLOAD_TYPE, signers) {
            Ok(payload) => return Ok(serde_json::from_slice(&payload)?),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// TUF keys as signers of an envelope.
pub fn signers(keys: &KeySet) -> Signers {
    let key = |bytes: [u8; 32]| ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok();
    Signers {
        keys: keys
            .keys
            .values()
            .filter_map(|key| key.ed25519_bytes())
            .filter_map(key)
            .collect(),
        threshold: keys.threshold.get() as usize,
    }
}
