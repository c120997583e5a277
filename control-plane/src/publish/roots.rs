//! The chain of roots: every one is kept, and a new one is taken only together with what it demands.

use std::sync::Arc;

use bytes::Bytes;
use skerry_shared::digest::Digest;
use skerry_tuf::{Error, Limits, Role, Root, Signed, Targets};

use super::{PublishError, metadata, store, targets};
use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
    devices,
    signing::online::OnlineKeys,
};

/// The newest root of the repository; none if it is new.
///
/// # Errors
/// The database's.
pub async fn newest_root(db: &Db) -> Result<Option<Vec<u8>>, DbError> {
    db.read(store::newest_root).await
}

/// Any root that the repository ever had, by its digest.
///
/// # Errors
/// The database's.
pub async fn root_by_digest(db: &Db, digest: Digest) -> Result<Option<Vec<u8>>, DbError> {
    db.read(move |conn| store::root_by_digest(conn, &digest)).await
}

/// Takes the next root, and signs snapshot and timestamp with the keys that it names. If it takes the current targets
/// metadata's keys away, `new_targets` must come with it: the next version, signed by the new keys. With the newest root again
/// only the targets metadata counts, if there is some.
///
/// Whoever asked may go away meanwhile: what has begun is done to its end, since what is stored and what this process signs with
/// must not differ.
///
/// # Errors
/// [`PublishError`]; nothing has changed then.
pub async fn publish_root(
    db: &Db,
    keys: &Arc<OnlineKeys>,
    root_bytes: Bytes,
    new_targets: Option<Bytes>,
    by: By,
) -> Result<u64, PublishError> {
    let (db, keys) = (db.clone(), Arc::clone(keys));
    let taken = tokio::spawn(async move { take(&db, &keys, root_bytes, new_targets, by).await });
    taken.await.unwrap_or_else(|error| Err(PublishError::Ended(error)))
}

async fn take(
    db: &Db,
    keys: &Arc<OnlineKeys>,
    root_bytes: Bytes,
    new_targets: Option<Bytes>,
    by: By,
) -> Result<u64, PublishError> {
    let _publishing = keys.publishing().await;
    let current = keys.current();
    if current.root_bytes() == root_bytes {
        if let Some(targets) = new_targets {
            targets::take(db, current.clone(), targets, by).await?;
        }
        return Ok(current.root().version);
    }
    current.check_successor(&root_bytes).map_err(PublishError::Root)?;
    let root = Signed::<Root>::parse(&root_bytes, &Limits::default()).map_err(PublishError::Root)?;
    let (version, expires) = (root.unverified().version, root.unverified().expires);
    if expires.as_millis() <= by.at_ms as i64 {
        return Err(PublishError::Root(Error::Expired {
            role: Role::Root,
            expires,
            now: skerry_tuf::UnixTime::from_millis(by.at_ms as i64),
        }));
    }
    // Encrypted keys cost scrypt.
    let (folder, bytes) = (keys.folder().clone(), root_bytes.clone());
    let next = tokio::task::spawn_blocking(move || folder.keys_of(&bytes)).await;
    let next = next.map_err(PublishError::Ended)?;
    let next = Arc::new(next.map_err(|error| PublishError::Keys(format!("{error:#}")))?);

    let signing = Arc::clone(&next);
    db.write(move |conn| {
        store::put_root(conn, version, &root_bytes)?;
        match new_targets {
            Some(bytes) => {
                let accepted = targets::verified(&signing, &bytes)?;
                targets::replace(conn, &accepted, &bytes)?;
                if let Some(name) = targets::added(conn, &accepted)? {
                    return Err(PublishError::NotPublished(name));
                }
                targets::settle(conn, &accepted)?;
                metadata::sign_around(conn, &signing, (accepted.version, &bytes), by.at_ms)?;
            }
            None => {
                let (version, bytes) = store::current(conn, Role::Targets)?;
                let signed = Signed::<Targets>::parse(&bytes, &Limits::default());
                let root = signing.root();
                let signed = signed.and_then(|file| file.verify(&root.keys_of(Role::Targets), root.version));
                signed.map_err(PublishError::TargetsKeys)?;
                metadata::sign_around(conn, &signing, (version, &bytes), by.at_ms)?;
            }
        }
        // Signed anew by the assignment key of this root.
        devices::store::publish_all_again(conn)?;
        let fact = Fact::new("root.publish", "metadata/root")
            .with("root", Digest::of(&root_bytes))
            .with("root_version", version);
        Ok(audit::append(conn, &by, fact)?)
    })
    .await?;
    keys.adopt(next);
    Ok(version)
}
