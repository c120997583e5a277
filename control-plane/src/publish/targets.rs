//! The next targets metadata: signed offline, taken only if nothing that was published is lost.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use rusqlite::Connection;
use skerry_shared::digest::Digest;
use skerry_tuf::{Limits, Role, Signed, Targets};

use super::{PublishError, PublishedBundle, Refusal, RefusalCode, metadata, store};
use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
    devices::{self, DeviceError},
    signing::online::{OnlineKeys, RootKeys},
};

/// Checks the signatures of targets metadata.
///
/// # Errors
/// [`PublishError::Targets`].
pub(super) fn verified(keys: &RootKeys, bytes: &[u8]) -> Result<Targets, PublishError> {
    let root = keys.root();
    Signed::<Targets>::parse(bytes, &Limits::default())
        .and_then(|signed| signed.verify(&root.keys_of(Role::Targets), root.version))
        .map(|verified| verified.metadata().clone())
        .map_err(PublishError::Targets)
}

/// The targets metadata that is published now. Only what this server has accepted is stored, so it parses.
pub(super) fn current(conn: &Connection) -> Result<Targets, PublishError> {
    let (_, bytes) = store::current(conn, Role::Targets)?;
    let current = Signed::<Targets>::parse(&bytes, &Limits::default()).map_err(PublishError::Targets)?;
    Ok(current.unverified().clone())
}

/// Stores the next targets metadata.
pub(super) fn replace(conn: &Connection, new: &Targets, bytes: &[u8]) -> Result<(), PublishError> {
    let old = current(conn)?;
    if new.version != old.version + 1 {
        return Err(PublishError::Version {
            got: new.version,
            expected: old.version + 1,
        });
    }
    for (name, file) in &old.targets {
        let kept = new.find(name);
        if kept.is_none_or(|new| new.hashes != file.hashes || new.length != file.length) {
            return Err(PublishError::TargetLost(name.as_str().to_owned()));
        }
    }
    store::put(conn, Role::Targets, new.version, bytes, new.expires.as_millis())?;
    Ok(())
}

/// Writes down which bundles the new targets metadata forbids, and tells every device that should run one that is newly
/// blocked: a new generation makes it look at the metadata.
pub(super) fn settle(conn: &Connection, new: &Targets) -> Result<(), PublishError> {
    let before = store::blocked(conn)?;
    store::clear_refusals(conn)?;
    let mut newly = BTreeSet::new();
    for bundle in store::bundles(conn)? {
        let Some(refusal) = refusal(new, &bundle) else { continue };
        store::insert_refusal(conn, &bundle.target, &refusal)?;
        if refusal.code == RefusalCode::Blocked && !before.contains(&bundle.target) {
            newly.insert(bundle.target);
        }
    }
    if newly.is_empty() {
        return Ok(());
    }
    for device in devices::store::list(conn)? {
        if device
            .desired
            .iter()
            .any(|assignment| newly.contains(&assignment.target))
        {
            devices::store::say_again(conn, &device.id).map_err(|error| match error {
                DeviceError::Db(error) => error,
                other => DbError::Corrupt(other.to_string()),
            })?;
        }
    }
    Ok(())
}

/// Why a bundle may not be installed, if it may not.
fn refusal(targets: &Targets, bundle: &PublishedBundle) -> Option<Refusal> {
    if let Some(blocked) = targets.blocked(&bundle.target, bundle.index.as_bytes()) {
        return Some(Refusal {
            code: RefusalCode::Blocked,
            reason: blocked.reason.clone(),
        });
    }
    let lowest = targets.min_release(bundle.model.as_str());
    (bundle.version.0 < lowest).then(|| Refusal {
        code: RefusalCode::MinRelease,
        reason: format!("the lowest version of {} is {lowest}", bundle.model),
    })
}

/// The first target that has no published bundle.
pub(super) fn added(conn: &Connection, new: &Targets) -> Result<Option<String>, PublishError> {
    for name in new.targets.keys() {
        if !store::is_target(conn, name.as_str())? {
            return Ok(Some(name.as_str().to_owned()));
        }
    }
    Ok(None)
}

/// Publishes targets metadata that names no new bundle: it blocks versions, raises the lowest one, or expires later. What is
/// published already changes nothing.
///
/// # Errors
/// [`PublishError`]; nothing has changed then.
pub async fn publish_targets(db: &Db, keys: &Arc<OnlineKeys>, bytes: Bytes, by: By) -> Result<u64, PublishError> {
    let _publishing = keys.publishing().await;
    take(db, keys.current(), bytes, by).await
}

/// The same, for whoever is publishing.
pub(super) async fn take(db: &Db, keys: Arc<RootKeys>, bytes: Bytes, by: By) -> Result<u64, PublishError> {
    let new = verified(&keys, &bytes)?;
    db.write(move |conn| {
        if store::current(conn, Role::Targets)? == (new.version, bytes.to_vec()) {
            return Ok(new.version);
        }
        replace(conn, &new, &bytes)?;
        if let Some(name) = added(conn, &new)? {
            return Err(PublishError::NotPublished(name));
        }
        settle(conn, &new)?;
        metadata::sign_around(conn, &keys, (new.version, &bytes), by.at_ms)?;
        let fact = Fact::new("targets.publish", "metadata/targets")
            .with("targets_version", new.version)
            .with("targets", Digest::of(&bytes));
        audit::append(conn, &by, fact)?;
        Ok(new.version)
    })
    .await
}
