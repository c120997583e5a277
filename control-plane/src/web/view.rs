//! What the templates show of devices and models: plain structs, made from the domains' types by pure functions.
//!
//! Invariant: a page says what is known and when it was heard; what an offline device did last is marked as such.

use std::collections::BTreeMap;

use skerry_shared::{
    desired::{Outcome, OutcomeResult, Reported, ReportedError, Slot, UpdateState, UpdateStatus},
    id::ModelVersion,
};
use skerry_tuf::UnixTime;

use crate::{
    cli::output::bytes,
    devices::Device,
    publish::PublishedBundle,
    registry::{ModelVersionInfo, RegisteredModel},
};

/// A state in one word, and how it looks: `ok`, `busy`, `warn`, `bad` or `idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) word: &'static str,
    pub(super) tone: &'static str,
}

/// Makes a [`Status`].
pub(super) const fn status(word: &'static str, tone: &'static str) -> Status {
    Status { word, tone }
}

/// A point in time, for people and for the script that keeps it current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) iso: String,
    pub(super) ms: u64,
    pub(super) ago: String,
}

impl Moment {
    /// A time as it looks at `now_ms`.
    pub(super) fn new(at_ms: u64, now_ms: u64) -> Moment {
        let passed = now_ms.saturating_sub(at_ms) / 1000;
        Moment {
            iso: UnixTime::from_millis(i64::try_from(at_ms).unwrap_or(i64::MAX)).to_string(),
            ms: at_ms,
            ago: match passed {
                0..=1 => "now".to_owned(),
                2..=119 => format!("{passed} s ago"),
                120..=7199 => format!("{} min ago", passed / 60),
                7200..=172_799 => format!("{} h ago", passed / 3600),
                _ => format!("{} days ago", passed / 86_400),
            },
        }
    }
}

/// How much of a bundle is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) have: u64,
    pub(super) total: u64,
    pub(super) text: String,
}

impl Progress {
    /// The progress of a download; `None` when the device does not download or does not know how much.
    pub(super) fn of(update: &UpdateStatus) -> Option<Progress> {
        if update.state != UpdateState::Download || update.total_bytes == 0 {
            return None;
        }
        let have = update.have_bytes.min(update.total_bytes);
        Some(Progress {
            have,
            total: update.total_bytes,
            text: format!("{} of {}", bytes(have), bytes(update.total_bytes)),
        })
    }
}

/// An error that a device has reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ErrorView {
    pub(super) about: String,
    pub(super) code: String,
    pub(super) message: String,
}

impl ErrorView {
    /// An error with what it was about.
    pub(super) fn new(about: String, error: &ReportedError) -> ErrorView {
        ErrorView {
            about,
            code: error.code.clone(),
            message: error.message.clone(),
        }
    }

    fn newest(reported: &Reported) -> Option<ErrorView> {
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
}

/// A model on a device: what runs and, where that differs, what should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelCell {
    pub(super) model: String,
    pub(super) running: Option<ModelVersion>,
    pub(super) wanted: Wanted,
}

/// What should run of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What runs.
    Same,
    /// Another version.
    Version(ModelVersion),
    /// No version at all.
    Nothing,
}

/// A device as the fleet page shows it.
pub(super) struct DeviceRow {
    pub(super) id: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) platform: String,
    pub(super) connection: Status,
    pub(super) update: Status,
    pub(super) update_note: String,
    pub(super) progress: Option<Progress>,
    pub(super) models: Vec<ModelCell>,
    pub(super) last_seen: Option<Moment>,
    pub(super) error: Option<ErrorView>,
}

impl DeviceRow {
    /// The row of a device.
    pub(super) fn new(device: &Device, now_ms: u64) -> DeviceRow {
        let (update, update_note) = update(device);
        let reported = device.reported.as_ref();
        DeviceRow {
            id: device.id.to_string(),
            labels: device.labels.clone(),
            platform: device.platform.to_string(),
            connection: match (device.connected, device.last_seen_at_ms) {
                (true, _) => status("Connected", "ok"),
                (false, Some(_)) => status("Offline", "warn"),
                (false, None) => status("Never seen", "idle"),
            },
            update,
            update_note,
            progress: reported.and_then(|reported| Progress::of(&reported.update)),
            models: models(device),
            last_seen: device.last_seen_at_ms.map(|at| Moment::new(at, now_ms)),
            error: reported.and_then(ErrorView::newest),
        }
    }

    /// True while something is to be done on the device.
    pub(super) fn is_updating(&self) -> bool {
        self.update.tone == "busy"
    }
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
pub(super) struct FleetView {
    pub(super) selector: String,
    pub(super) selector_error: Option<String>,
    pub(super) connected: usize,
    pub(super) updating: usize,
    pub(super) failed: usize,
    pub(super) versions: Vec<VersionCount>,
    pub(super) devices: Vec<DeviceRow>,
}

/// How many devices run a version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct VersionCount {
    pub(super) model: String,
    pub(super) version: ModelVersion,
    pub(super) devices: usize,
}

impl FleetView {
    /// The page of these devices.
    pub(super) fn new(devices: &[Device], selector: String, selector_error: Option<String>, now_ms: u64) -> FleetView {
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
pub(super) struct DeviceView {
    pub(super) row: DeviceRow,
    pub(super) agent_version: String,
    pub(super) inference_address: Option<String>,
    pub(super) enrolled: Moment,
    pub(super) generation: u64,
    pub(super) accepted_generation: Option<u64>,
    pub(super) bundles: Vec<SlotRow>,
    pub(super) outcomes: Vec<OutcomeRow>,
}

/// An installed bundle.
pub(super) struct SlotRow {
    pub(super) model: String,
    pub(super) version: ModelVersion,
    pub(super) slot: &'static str,
}

/// How an update ended.
pub(super) struct OutcomeRow {
    pub(super) model: String,
    pub(super) version: ModelVersion,
    pub(super) rollout: Option<u64>,
    pub(super) generation: u64,
    pub(super) result: Status,
    pub(super) error: Option<ErrorView>,
    pub(super) wire: String,
    pub(super) resumed_downloads: u32,
}

impl DeviceView {
    /// The page of a device.
    pub(super) fn new(device: &Device, now_ms: u64) -> DeviceView {
        let reported = device.reported.as_ref();
        let slot = |slot| match slot {
            Slot::Current => "current",
            Slot::Previous => "previous",
        };
        let bundles = reported.iter().flat_map(|reported| &reported.bundles);
        let mut outcomes: Vec<&Outcome> = reported.iter().flat_map(|reported| &reported.outcomes).collect();
        outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.generation));
        DeviceView {
            row: DeviceRow::new(device, now_ms),
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

/// A registered model.
pub(super) struct ModelView {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) versions: Vec<VersionRow>,
}

/// A version of a model.
pub(super) struct VersionRow {
    pub(super) version: ModelVersion,
    pub(super) aliases: Vec<String>,
    pub(super) description: String,
    pub(super) size: String,
    pub(super) registered: Moment,
    pub(super) run_id: Option<String>,
    pub(super) bundle: Option<BundleCell>,
    pub(super) devices: usize,
}

/// The published bundle of a version.
pub(super) struct BundleCell {
    pub(super) size: String,
    pub(super) wire: String,
    pub(super) published: Moment,
}

/// The page of the models, the newest version of each first.
pub(super) fn model_views(
    models: Vec<RegisteredModel>,
    bundles: &[PublishedBundle],
    devices: &[Device],
    now_ms: u64,
) -> Vec<ModelView> {
    let view = |model: RegisteredModel| ModelView {
        name: model.name.to_string(),
        description: model.description,
        versions: model
            .versions
            .into_iter()
            .rev()
            .map(|version| VersionRow::new(version, bundles, devices, now_ms))
            .collect(),
    };
    models.into_iter().map(view).collect()
}

impl VersionRow {
    fn new(info: ModelVersionInfo, bundles: &[PublishedBundle], devices: &[Device], now_ms: u64) -> VersionRow {
        let bundle = bundles
            .iter()
            .find(|bundle| bundle.model == info.model && bundle.version == info.version);
        let runs = |device: &&Device| {
            let mut installed = device.reported.iter().flat_map(|reported| &reported.bundles);
            installed.any(|b| b.slot == Slot::Current && b.model == info.model && b.version == info.version)
        };
        VersionRow {
            devices: devices.iter().filter(runs).count(),
            version: info.version,
            aliases: info.aliases,
            description: info.description,
            size: bytes(info.size_bytes),
            registered: Moment::new(info.created_at_ms, now_ms),
            run_id: info.run_id.map(String::from),
            bundle: bundle.map(|bundle| BundleCell {
                size: bytes(bundle.total_bytes),
                wire: bytes(bundle.wire_bytes),
                published: Moment::new(bundle.published_at_ms, now_ms),
            }),
        }
    }
}
