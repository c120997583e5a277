//! What the device says about itself.

use skerry_shared::{
    desired::{AgentInfo, InstalledBundle, Outcome, OutcomeResult, Reported, ReportedError, Slot, UpdateStatus},
    id::{BootId, DeviceId},
    schema::SchemaVersion,
};

use crate::{
    record::Record,
    update::{Job, decide::Cost},
};

/// What the record does not hold.
pub(crate) struct Facts<'a> {
    pub(crate) device: &'a DeviceId,
    pub(crate) boot_id: &'a BootId,
    pub(crate) seq: u64,
    pub(crate) now_ms: u64,
    pub(crate) inference_address: Option<String>,
    pub(crate) progress: (u64, u64),
    pub(crate) refused: Option<ReportedError>,
    pub(crate) alarms: Vec<ReportedError>,
    /// Why the update under way waits.
    pub(crate) waits: Option<ReportedError>,
}

/// Makes the report.
pub(crate) fn reported(record: &Record, facts: &Facts<'_>) -> Reported {
    let state = record.update.update_state();
    let assignment = record.update.job().map(|job| &job.assignment);
    let (have_bytes, total_bytes) = if assignment.is_some() { facts.progress } else { (0, 0) };
    let bundles = record.slots.iter().flat_map(|(model, slots)| {
        let slot = |slot, installed: &Option<crate::record::Installed>| {
            let installed = installed.as_ref()?;
            Some(InstalledBundle {
                model: model.clone(),
                version: installed.version,
                slot,
                index: installed.index,
            })
        };
        [
            slot(Slot::Current, &slots.current),
            slot(Slot::Previous, &slots.previous),
        ]
        .into_iter()
        .flatten()
    });
    Reported {
        schema: SchemaVersion::CURRENT,
        device: facts.device.clone(),
        boot_id: facts.boot_id.clone(),
        seq: facts.seq,
        device_time_ms: facts.now_ms,
        generation: record
            .desired
            .as_ref()
            .map(|desired| desired.generation)
            .unwrap_or_default(),
        agent: AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: skerry_inference::host_platform(),
            inference_address: facts.inference_address.clone(),
        },
        update: UpdateStatus {
            state,
            model: assignment.map(|a| a.model.clone()),
            version: assignment.map(|a| a.version),
            rollout: assignment.and_then(|a| a.rollout),
            have_bytes,
            total_bytes,
            waits: facts.waits.clone(),
        },
        bundles: bundles.collect(),
        outcomes: record.outcomes.values().cloned().collect(),
        refused: facts.refused.clone(),
        alarms: facts.alarms.clone(),
    }
}

/// The outcome of a job.
pub(crate) fn outcome(job: &Job, result: OutcomeResult, cost: Cost) -> Outcome {
    Outcome {
        generation: job.generation,
        model: job.assignment.model.clone(),
        version: job.assignment.version,
        rollout: job.assignment.rollout,
        result,
        wire_bytes: cost.wire_bytes,
        resumed_downloads: cost.resumed,
    }
}
