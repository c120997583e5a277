//! What the fleet page and the page of one device show.

use std::collections::BTreeMap;

use skerry_shared::{
    desired::{Outcome, OutcomeResult, Reported, Slot, UpdateState},
    id::ModelVersion,
};

use super::{ErrorView, Moment, Progress, Status, status};
use crate::{cli::output::bytes, devices::Device};

/// A model on a device: what runs and, where that differs, what should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::web) struct ModelCell {
    pub(in crate::web) model: String,
    pub(in crate::web) running: Option<ModelVersion>,
    pub(in crate::web) wanted: Wanted,
}

/// What should run of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Wanted {
    /// What runs.
    Same,
    /// Another version.
    Version(ModelVersion),
    /// No version at all.
    Nothing,
}

/// A device as the fleet page shows it.
pub(in crate::web) struct DeviceRow {
    pub(in crate::web) id: String,
    pub(in crate::web) labels: BTreeMap<String, String>,
    pub(in crate::web) platform: String,
    pub(in crate::web) connection: Status,
    pub(in crate::web) update: Status,
    pub(in crate::web) update_note: String,
    pub(in crate::web) progress: Option<Progress>,
    pub(in crate::web) models: Vec<ModelCell>,
    pub(in crate::web) last_seen: Option<Moment>,
    pub(in crate::web) error: Option<ErrorView>,
}

impl DeviceRow {
    /// The row of a device.
    pub(in crate::web) fn new(device: &Device, now_ms: u64) -> DeviceRow {
        let (update, update_note) = update(device);
        let reported = device.reported.as_ref();
        DeviceRow {
            id: device.id.to_string(),
            labels: device.labels.clone(),
            platform: device.platform.to_string(),
            connection: connection(device, now_ms),
            update,
            update_note,
            progress: reported.and_then(|reported| Progress::of(&reported.update)),
            models: models(device),
            last_seen: device.last_seen_at_ms.map(|at| Moment::new(at, now_ms)),
            error: reported.and_then(newest_error),
        }
    }

    /// True while something is to be done on the device.
    pub(in crate::web) fn is_updating(&self) -> bool {
        self.update.tone == "busy"
    }
}

/// An alarm about a doubled identity goes by itself after a day without another sign of it.
const DUPLICATE_SHOWN_MS: u64 = 24 * 3600 * 1000;

fn connection(device: &Device, now_ms: u64) -> Status {
    let doubled = device
        .duplicate_seen_at_ms
        .is_some_and(|at| now_ms.saturating_sub(at) < DUPLICATE_SHOWN_MS);
    match (device.connected, device.last_seen_at_ms) {
        _ if device.revoked_at_ms.is_some() => status("Revoked", "bad"),
        _ if doubled => status("Two agents, one identity", "bad"),
        (true, _) => status("Connected", "ok"),
        (false, Some(_)) => status("Offline", "warn"),
        (false, None) => status("Never seen", "idle"),
    }
}

fn newest_error(reported: &Reported) -> Option<ErrorView> {
    if let Some(error) = &reported.refused {
        return Some(ErrorView::new("desired state refused".to_owned(), error));
    }
    let failed = reported.outcomes.iter().filter_map(|outcome| match &outcome.result {
        OutcomeResult::Succeeded => None,
        OutcomeResult::RolledBack(error) | OutcomeResult::Failed(error) => Some((outcome, error)),
    });
    let (outcome, error) = failed.max_by_key(|(outcome, _)| outcome.generation)?;
    Some(ErrorView::new(format!("{} v{}", outcome.model, outcome.version), error))
}

fn update(device: &Device) -> (Status, String) {
    let Some(reported) = &device.reported else {
        return (status("No report yet", "idle"), String::new());
    };
    let update = &reported.update;
    let waits = reported.generation < device.generation;
    let word = match update.state {
        UpdateState::Idle if waits => status("Waiting", "busy"),
        UpdateState::Idle => status("Idle", "idle"),
        UpdateState::Sync => status("Sync", "busy"),
        UpdateState::Download => status("Download", "busy"),
        UpdateState::Verify => status("Verify", "busy"),
        UpdateState::Install => status("Install", "busy"),
        UpdateState::Probation => status("Probation", "busy"),
        UpdateState::Commit => status("Commit", "busy"),
        UpdateState::Rollback => status("Rollback", "bad"),
        UpdateState::Failure => status("Failure", "bad"),
    };
    let mut note = match (&update.model, update.version) {
        (Some(model), Some(version)) => format!("{model} v{version}"),
        _ if update.state == UpdateState::Idle && waits => "has not accepted its desired state yet".to_owned(),
        _ => String::new(),
    };
    if !device.connected && update.state != UpdateState::Idle {
        note = format!("{note} when last seen").trim_start().to_owned();
    }
    (word, note)
}

fn models(device: &Device) -> Vec<ModelCell> {
    let installed = device.reported.iter().flat_map(|reported| &reported.bundles);
    let mut cells: BTreeMap<_, _> = installed
        .filter(|bundle| bundle.slot == Slot::Current)
        .map(|bundle| (&bundle.model, (Some(bundle.version), Wanted::Nothing)))
        .collect();
    // On probation the new version serves, although its slot is not the current one yet.
    let update = device.reported.as_ref().map(|reported| &reported.update);
    let update = update.filter(|update| matches!(update.state, UpdateState::Probation | UpdateState::Commit));
    if let Some((model, version)) = update.and_then(|update| update.model.as_ref().zip(update.version)) {
        cells.insert(model, (Some(version), Wanted::Nothing));
    }
    for assignment in &device.desired {
        let cell = cells.entry(&assignment.model).or_insert((None, Wanted::Nothing));
        cell.1 = match cell.0 {
            Some(version) if version == assignment.version => Wanted::Same,
            _ => Wanted::Version(assignment.version),
        };
    }
    let cell = |(model, (running, wanted)): (&_, (_, _))| ModelCell {
        model: ToString::to_string(model),
        running,
        wanted,
    };
    cells.into_iter().map(cell).collect()
}

/// The fleet page.
pub(in crate::web) struct FleetView {
    pub(in crate::web) selector: String,
    pub(in crate::web) selector_error: Option<String>,
    pub(in crate::web) connected: usize,
    pub(in crate::web) updating: usize,
    pub(in crate::web) failed: usize,
    pub(in crate::web) versions: Vec<VersionCount>,
    pub(in crate::web) devices: Vec<DeviceRow>,
}

/// How many devices run a version.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::web) struct VersionCount {
    pub(in crate::web) model: String,
    pub(in crate::web) version: ModelVersion,
    pub(in crate::web) devices: usize,
}

impl FleetView {
    /// The page of these devices.
    pub(in crate::web) fn new(
        devices: &[Device],
        selector: String,
        selector_error: Option<String>,
        now_ms: u64,
    ) -> FleetView {
        let devices: Vec<DeviceRow> = devices.iter().map(|device| DeviceRow::new(device, now_ms)).collect();
        let mut versions = BTreeMap::new();
        for cell in devices.iter().flat_map(|row| &row.models) {
            if let Some(version) = cell.running {
                *versions.entry((cell.model.clone(), version)).or_insert(0) += 1;
            }
        }
        let count = |((model, version), devices)| VersionCount {
            model,
            version,
            devices,
        };
        FleetView {
            selector,
            selector_error,
            connected: devices.iter().filter(|row| row.connection.tone == "ok").count(),
            updating: devices.iter().filter(|row| row.is_updating()).count(),
            failed: devices.iter().filter(|row| row.error.is_some()).count(),
            versions: versions.into_iter().map(count).collect(),
            devices,
        }
    }
}

/// The page of one device.
pub(in crate::web) struct DeviceView {
    pub(in crate::web) row: DeviceRow,
    pub(in crate::web) revoked: Option<Moment>,
    /// When two agents with its identity were last seen.
    pub(in crate::web) doubled: Option<Moment>,
    /// By its last report; what its update waits for, too.
    pub(in crate::web) alarms: Vec<ErrorView>,
    pub(in crate::web) agent_version: String,
    pub(in crate::web) inference_address: Option<String>,
    pub(in crate::web) enrolled: Moment,
    pub(in crate::web) generation: u64,
    pub(in crate::web) accepted_generation: Option<u64>,
    pub(in crate::web) bundles: Vec<SlotRow>,
    pub(in crate::web) outcomes: Vec<OutcomeRow>,
}

/// An installed bundle.
pub(in crate::web) struct SlotRow {
    pub(in crate::web) model: String,
    pub(in crate::web) version: ModelVersion,
    pub(in crate::web) slot: &'static str,
}

/// How an update ended.
pub(in crate::web) struct OutcomeRow {
    pub(in crate::web) model: String,
    pub(in crate::web) version: ModelVersion,
    pub(in crate::web) rollout: Option<u64>,
    pub(in crate::web) generation: u64,
    pub(in crate::web) result: Status,
    pub(in crate::web) error: Option<ErrorView>,
    pub(in crate::web) wire: String,
    pub(in crate::web) resumed_downloads: u32,
}

impl DeviceView {
    /// The page of a device.
    pub(in crate::web) fn new(device: &Device, now_ms: u64) -> DeviceView {
        let reported = device.reported.as_ref();
        let slot = |slot| match slot {
            Slot::Current => "current",
            Slot::Previous => "previous",
        };
        let bundles = reported.iter().flat_map(|reported| &reported.bundles);
        let waits = reported.and_then(|reported| reported.update.waits.as_ref());
        let alarms = reported.iter().flat_map(|reported| &reported.alarms).chain(waits);
        let mut outcomes: Vec<&Outcome> = reported.iter().flat_map(|reported| &reported.outcomes).collect();
        outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.generation));
        DeviceView {
            row: DeviceRow::new(device, now_ms),
            revoked: device.revoked_at_ms.map(|at| Moment::new(at, now_ms)),
            doubled: device.duplicate_seen_at_ms.map(|at| Moment::new(at, now_ms)),
            alarms: alarms.map(|alarm| ErrorView::new(String::new(), alarm)).collect(),
            agent_version: device.agent_version.clone(),
            inference_address: reported.and_then(|reported| reported.agent.inference_address.clone()),
            enrolled: Moment::new(device.enrolled_at_ms, now_ms),
            generation: device.generation.0,
            accepted_generation: reported.map(|reported| reported.generation.0),
            bundles: bundles
                .map(|bundle| SlotRow {
                    model: bundle.model.to_string(),
                    version: bundle.version,
                    slot: slot(bundle.slot),
                })
                .collect(),
            outcomes: outcomes.into_iter().map(OutcomeRow::new).collect(),
        }
    }
}

impl OutcomeRow {
    fn new(outcome: &Outcome) -> OutcomeRow {
        let (result, error) = match &outcome.result {
            OutcomeResult::Succeeded => (status("Succeeded", "ok"), None),
            OutcomeResult::RolledBack(error) => (status("Rolled back", "bad"), Some(error)),
            OutcomeResult::Failed(error) => (status("Failed", "bad"), Some(error)),
        };
        OutcomeRow {
            model: outcome.model.to_string(),
            version: outcome.version,
            rollout: outcome.rollout.map(|rollout| rollout.0),
            generation: outcome.generation.0,
            result,
            error: error.map(|error| ErrorView::new(String::new(), error)),
            wire: bytes(outcome.wire_bytes),
            resumed_downloads: outcome.resumed_downloads,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};
    use skerry_shared::id::Generation;

    use super::*;

    const INDEX: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn device(running: &[(&str, u64)], wanted: &[(&str, u64)], change: impl FnOnce(&mut Value)) -> Device {
        let bundle = |(model, version): &(&str, u64)| json!({"model": model, "version": version, "slot": "current", "index": INDEX});
        let assignment =
            |(model, version): &(&str, u64)| json!({"model": model, "version": version, "target": "t", "index": INDEX});
        let mut reported = json!({
            "schema": "1.0", "device": "dev-1", "boot_id": "0123456789abcdef0123456789abcdef", "seq": 1,
            "device_time_ms": 0, "generation": 1, "agent": {"version": "0.1.0", "platform": "pulley64"},
            "update": {"state": "idle"}, "bundles": running.iter().map(bundle).collect::<Vec<_>>(),
        });
        change(&mut reported);
        let desired: Vec<Value> = wanted.iter().map(assignment).collect();
        Device {
            id: "dev-1".parse().unwrap(),
            labels: BTreeMap::new(),
            platform: "pulley64".parse().unwrap(),
            agent_version: "0.1.0".to_owned(),
            connected: true,
            enrolled_at_ms: 0,
            certificate_not_after_ms: None,
            revoked_at_ms: None,
            duplicate_seen_at_ms: None,
            last_seen_at_ms: Some(0),
            generation: Generation(1),
            desired: serde_json::from_value(desired.into()).unwrap(),
            reported: Some(serde_json::from_value(reported).unwrap()),
        }
    }

    #[test]
    fn a_model_shows_what_runs_and_what_should() {
        let device = device(&[("a", 1), ("b", 1), ("c", 1)], &[("a", 1), ("b", 2), ("d", 4)], |_| ());
        let cells = models(&device);
        let cells: Vec<_> = cells
            .iter()
            .map(|cell| (cell.model.as_str(), cell.running.map(|v| v.0), cell.wanted))
            .collect();
        assert_eq!(
            cells,
            [
                ("a", Some(1), Wanted::Same),
                ("b", Some(1), Wanted::Version(ModelVersion(2))),
                ("c", Some(1), Wanted::Nothing),
                ("d", None, Wanted::Version(ModelVersion(4))),
            ]
        );
    }

    #[test]
    fn on_probation_the_new_version_runs() {
        let on = |state: &str| {
            let update = json!({"state": state, "model": "a", "version": 2});
            device(&[("a", 1)], &[("a", 2)], |reported| reported["update"] = update)
        };
        let cell = |state: &str| models(&on(state)).remove(0);
        assert_eq!(cell("install").running, Some(ModelVersion(1)));
        assert_eq!(cell("install").wanted, Wanted::Version(ModelVersion(2)));
        assert_eq!(cell("probation").running, Some(ModelVersion(2)));
        assert_eq!(cell("probation").wanted, Wanted::Same);
    }

    #[test]
    fn a_device_that_has_not_accepted_its_desired_state_waits() {
        let mut device = device(&[], &[], |_| ());
        assert_eq!(update(&device).0.word, "Idle");
        device.generation = Generation(2);
        assert_eq!(update(&device).0.word, "Waiting");
        device.reported = None;
        assert_eq!(update(&device).0.word, "No report yet");
    }

    #[test]
    fn what_an_offline_device_did_is_marked_as_past() {
        let mut device = device(&[], &[], |reported| {
            reported["update"] =
                json!({"state": "download", "model": "a", "version": 2, "have_bytes": 9, "total_bytes": 4});
        });
        assert_eq!(update(&device).1, "a v2");
        device.connected = false;
        assert_eq!(update(&device).1, "a v2 when last seen");
        let progress = DeviceRow::new(&device, 0).progress.unwrap();
        assert_eq!((progress.have, progress.total), (4, 4));
    }

    #[test]
    fn the_newest_failed_outcome_is_the_error_unless_a_desired_state_is_refused() {
        let error = |code: &str| json!({"code": code, "message": ""});
        let outcome = |generation: u64, model: &str, code: &str| {
            json!({"generation": generation, "model": model, "version": 1, "wire_bytes": 0,
                   "result": {"kind": "failed", "error": error(code)}})
        };
        let outcomes = json!([outcome(5, "b", "new"), outcome(4, "a", "old")]);
        let failed = device(&[], &[], |reported| reported["outcomes"] = outcomes.clone());
        assert_eq!(DeviceRow::new(&failed, 0).error.unwrap().code, "new");
        let refused = device(&[], &[], |reported| {
            reported["outcomes"] = outcomes.clone();
            reported["refused"] = error("sig_threshold");
        });
        assert_eq!(DeviceRow::new(&refused, 0).error.unwrap().code, "sig_threshold");
    }
}
