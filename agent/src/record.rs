//! What the agent must not forget: one record, written as a whole before anything is done about it.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use skerry_shared::{
    desired::{Desired, Outcome},
    digest::Digest,
    id::{Generation, ModelName, ModelVersion},
};

use skerry_tuf::VersionFloors;

use crate::{
    disk::{Disk, DiskError, TwoCopies},
    update::State,
};

/// The agent's durable state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
// A newer agent reads what an older one wrote.
#[serde(default)]
pub(crate) struct Record {
    /// The newest accepted intent.
    pub(crate) desired: Option<Desired>,
    /// The keys that signed it, in hexadecimal: its generation holds older ones back for as long as they count.
    pub(crate) desired_by: Vec<String>,
    /// Installed bundles.
    pub(crate) slots: BTreeMap<ModelName, Slots>,
    /// The update under way.
    pub(crate) update: State,
    /// How the newest update of each model ended.
    pub(crate) outcomes: BTreeMap<ModelName, Outcome>,
    /// The newest bundle of each model that failed, with the generation that asked for it: not tried again under it.
    pub(crate) failed: BTreeMap<ModelName, (Digest, Generation)>,
    /// Metadata versions that must never go back.
    pub(crate) floors: VersionFloors,
    /// The newest signed time, or a later one that has certainly passed, in UTC milliseconds.
    pub(crate) time_floor_ms: u64,
}

/// The places of a model's bundles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slots {
    pub(crate) current: Option<Installed>,
    pub(crate) previous: Option<Installed>,
}

/// An installed bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installed {
    pub(crate) version: ModelVersion,
    pub(crate) index: Digest,
}

/// The record with its place on disk; cheap to clone, and the same record everywhere.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Mutex<Kept>>);

struct Kept {
    copies: TwoCopies,
    record: Arc<Record>,
}

impl Keeper {
    pub(crate) fn open(disk: &Disk, folder: &Path) -> Result<Keeper, DiskError> {
        let (copies, record) = TwoCopies::open(disk, folder)?;
        let record = Arc::new(record.unwrap_or_default());
        Ok(Keeper(Arc::new(Mutex::new(Kept { copies, record }))))
    }

    /// The record as it is now.
    pub(crate) fn get(&self) -> Arc<Record> {
        Arc::clone(&self.lock().record)
    }

    /// Changes the record; the change is on disk when this returns, or not made at all.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), DiskError> {
        let mut kept = self.lock();
        let mut next = Record::clone(&kept.record);
        change(&mut next);
        if next != *kept.record {
            kept.copies.write(&next)?;
            kept.record = Arc::new(next);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A change that panicked has changed neither the disk nor what is behind the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
