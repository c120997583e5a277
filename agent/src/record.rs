//! What the agent must not forget: one record, written as a whole before anything is done about it.

use std::collections::BTreeMap;

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
    /// When the newest intent was signed, in UTC milliseconds: by the control plane's word that time has passed.
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

/// The record with its place on disk.
pub(crate) struct Keeper {
    copies: TwoCopies,
    record: Record,
}

impl Keeper {
    pub(crate) fn open(disk: &Disk, folder: &std::path::Path) -> Result<Keeper, DiskError> {
        let (copies, record) = TwoCopies::open(disk, folder)?;
        Ok(Keeper {
            copies,
            record: record.unwrap_or_default(),
        })
    }

    pub(crate) fn get(&self) -> &Record {
        &self.record
    }

    /// Changes the record; the change is on disk when this returns, or not made at all.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), DiskError> {
        let mut next = self.record.clone();
        change(&mut next);
        if next != self.record {
            self.copies.write(&next)?;
            self.record = next;
        }
        Ok(())
    }
}
