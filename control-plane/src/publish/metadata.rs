//! The repository's own metadata: made at first start, signed anew around every publication, renewed before it expires.

use std::sync::Arc;

use rusqlite::Connection;
use skerry_shared::digest::Digest;
use skerry_tuf::Role;

use super::{PublishError, store, targets};
use crate::{
    audit::{self, By, Fact},
    db::Db,
    signing::online::{OnlineKeys, RootKeys},
};

/// Makes the first metadata of an empty repository.
///
/// # Errors
/// [`PublishError`]; the repository is as before.
pub async fn ensure(db: &Db, keys: &Arc<OnlineKeys>, by: By) -> Result<(), PublishError> {
    let (folder, keys) = (keys.folder().clone(), keys.current());
    db.write(move |conn| {
        if store::is_empty(conn)? {
            store::put_root(conn, keys.root().version, keys.root_bytes())?;
            let bytes = folder
                .first_targets()
                .map_err(|error| PublishError::Keys(format!("{error:#}")))?;
            let first = targets::verified(&keys, &bytes)?;
            store::put(conn, Role::Targets, first.version, &bytes, first.expires.as_millis())?;
            sign_around(conn, &keys, (first.version, &bytes), by.at_ms)?;
            let fact = Fact::new("metadata.begin", "metadata/root")
                .with("root", Digest::of(keys.root_bytes()))
                .with("root_version", keys.root().version)
                .with("targets", Digest::of(&bytes))
                .with("targets_version", first.version);
            audit::append(conn, &by, fact)?;
        }
        Ok(())
    })
    .await
}

/// Signs snapshot and timestamp anew when less than half a day of the timestamp's life is left.
///
/// # Errors
/// [`PublishError`]; the repository is as before.
pub async fn renew(db: &Db, keys: &Arc<OnlineKeys>, now_ms: u64) -> Result<(), PublishError> {
    const HALF_A_DAY_MS: i64 = 12 * 3600 * 1000;
    let _publishing = keys.publishing().await;
    let keys = keys.current();
    db.write(move |conn| {
        if store::expires_at_ms(conn, Role::Timestamp)? - now_ms as i64 > HALF_A_DAY_MS {
            return Ok(());
        }
        let (version, targets) = store::current(conn, Role::Targets)?;
        sign_around(conn, &keys, (version, &targets), now_ms)
    })
    .await
}

/// Signs the next snapshot and the next timestamp around a targets file.
pub(super) fn sign_around(
    conn: &Connection,
    keys: &RootKeys,
    targets: (u64, &[u8]),
    now_ms: u64,
) -> Result<(), PublishError> {
    let next = |role| store::version(conn, role).map(|version| version + 1);
    let now_ms = now_ms as i64;
    let snapshot = keys
        .sign_snapshot(next(Role::Snapshot)?, now_ms, targets)
        .map_err(PublishError::Sign)?;
    store::put(
        conn,
        Role::Snapshot,
        snapshot.version,
        &snapshot.bytes,
        snapshot.expires_at_ms,
    )?;
    let listed = (snapshot.version, snapshot.bytes.as_slice());
    let timestamp = keys
        .sign_timestamp(next(Role::Timestamp)?, now_ms, listed)
        .map_err(PublishError::Sign)?;
    store::put(
        conn,
        Role::Timestamp,
        timestamp.version,
        &timestamp.bytes,
        timestamp.expires_at_ms,
    )?;
    Ok(())
}
