//! What a device should run, what it runs, and the small messages around both.
//!
//! Intent is declarative: one [`Desired`] per device, retained on its topic, with a generation that only grows. The device
//! converges and answers with [`Reported`]. Nobody sends commands.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::{BootId, DeviceId, Generation, ModelName, ModelVersion, Platform, RolloutId},
    schema::{Envelope, SchemaVersion},
};

/// The DSSE payload type of a [`Desired`].
pub const DESIRED_PAYLOAD_TYPE: &str = "application/vnd.skerry.desired.v1+json";

/// What one device should run. Travels inside a DSSE envelope under the assignment key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// The only device that may accept it.
    pub device: DeviceId,
    /// Grows with every change; a device ignores an older one.
    pub generation: Generation,
    /// When the control plane signed it, in UTC milliseconds.
    pub issued_at_ms: u64,
    /// One entry per model; a model that is not listed is not run.
    pub bundles: Vec<BundleAssignment>,
}

impl Envelope for Desired {
    const KIND: &'static str = "desired state";
    const LIMIT_BYTES: usize = 64 * 1024;
}

/// The bundle a device should run for one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleAssignment {
    /// The registered model.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The TUF target that holds the bundle's chunk index. The device takes length and digest from `targets`, not from here.
    pub target: String,
    /// The digest of that chunk index: must equal the one in `targets`.
    pub index: Digest,
    /// The rollout that asked for it, echoed in [`Outcome`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// How long the new version serves on probation before it is committed, in milliseconds.
    #[serde(default = "default_probation_ms")]
    pub probation_ms: u32,
    /// True when this device may go below the lowest version of the model that signed metadata names. A blocked bundle stays
    /// blocked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_downgrade: bool,
}

/// Ten seconds: long enough for a crash loop to show, short enough for a person to watch.
pub const DEFAULT_PROBATION_MS: u32 = 10_000;

fn default_probation_ms() -> u32 {
    DEFAULT_PROBATION_MS
}

/// The states of the agent's update machine (DESIGN §6, Mender's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Nothing to do.
    Idle,
    /// Bringing the trusted metadata up to date.
    Sync,
    /// Fetching chunks.
    Download,
    /// Checking the complete bundle.
    Verify,
    /// Loading it beside the running one, golden vectors first.
    Install,
    /// Serving, not yet committed.
    Probation,
    /// Making it the current slot for good.
    Commit,
    /// Returning to the previous slot.
    Rollback,
    /// Recording why it failed.
    Failure,
}

impl UpdateState {
    /// Its word, as it travels.
    pub const fn as_str(self) -> &'static str {
        match self {
            UpdateState::Idle => "idle",
            UpdateState::Sync => "sync",
            UpdateState::Download => "download",
            UpdateState::Verify => "verify",
            UpdateState::Install => "install",
            UpdateState::Probation => "probation",
            UpdateState::Commit => "commit",
            UpdateState::Rollback => "rollback",
            UpdateState::Failure => "failure",
        }
    }
}

/// What a device runs and does. Retained, so that the last word of an offline device stays readable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// The device.
    pub device: DeviceId,
    /// This start of the agent.
    pub boot_id: BootId,
    /// Counts this boot's reports from 1; a report with a lower number of the same boot is stale.
    pub seq: u64,
    /// The device's idea of the time, in UTC milliseconds. It may be wrong by years.
    pub device_time_ms: u64,
    /// The newest generation it has accepted.
    pub generation: Generation,
    /// The agent and its machine.
    pub agent: AgentInfo,
    /// What the update machine does now.
    pub update: UpdateStatus,
    /// The installed bundles.
    pub bundles: Vec<InstalledBundle>,
    /// How the newest finished update of each model ended.
    #[serde(default)]
    pub outcomes: Vec<Outcome>,
    /// A desired state that was refused, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<ReportedError>,
    /// What is wrong without anything having failed: `stale_metadata`, `time_untrusted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<ReportedError>,
}

impl Envelope for Reported {
    const KIND: &'static str = "reported state";
    const LIMIT_BYTES: usize = 64 * 1024;
}

/// The agent and its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The agent's version.
    pub version: String,
    /// The platform for which it needs compiled components.
    pub platform: Platform,
    /// Where its Open Inference Protocol API listens, for example `127.0.0.1:8090`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference_address: Option<String>,
}

/// What the update machine does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Its state.
    pub state: UpdateState,
    /// The model it works on; absent when idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// The version it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<ModelVersion>,
    /// The rollout it works for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// Bytes of the bundle present on the device.
    #[serde(default)]
    pub have_bytes: u64,
    /// Bytes of the bundle in all, as far as this device needs it.
    #[serde(default)]
    pub total_bytes: u64,
    /// Why it waits before it tries again: something that may pass by itself, for example `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<ReportedError>,
}

/// A slot that holds an installed bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The one that serves.
    Current,
    /// The one to return to.
    Previous,
}

/// An installed bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledBundle {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: ModelVersion,
    /// Its place.
    pub slot: Slot,
    /// Its chunk index.
    pub index: Digest,
}

/// How an update ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The generation that asked for it.
    pub generation: Generation,
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: ModelVersion,
    /// The rollout that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// The end.
    pub result: OutcomeResult,
    /// Bytes of payload received over MQTT for this update, metadata included, since the agent last started.
    pub wire_bytes: u64,
    /// Downloads of this bundle that went on from what an earlier start of the agent had left on disk.
    #[serde(default)]
    pub resumed_downloads: u32,
}

/// The end of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "error")]
pub enum OutcomeResult {
    /// Committed.
    Succeeded,
    /// It reached Install or Probation, failed there, and the previous bundle serves again (or nothing, if there was none).
    RolledBack(ReportedError),
    /// It failed before anything on the device changed.
    Failed(ReportedError),
}

/// An error as a device reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportedError {
    /// A stable word, for example `golden_mismatch`, `sig_threshold`, `enospc`.
    pub code: String,
    /// One sentence for a person; no paths, no secrets.
    pub message: String,
}

/// Birth and last will of a device's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// The start of the agent that says it.
    pub boot_id: BootId,
    /// True at birth, false in the last will.
    pub online: bool,
}

impl Envelope for Status {
    const KIND: &'static str = "device status";
    const LIMIT_BYTES: usize = 4 * 1024;
}

/// The control plane's word that telemetry is committed. Only then does the device delete it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The envelope's version.
    pub schema: SchemaVersion,
    /// The committed frames.
    pub frames: Vec<FrameId>,
}

impl Envelope for Ack {
    const KIND: &'static str = "acknowledgement";
    const LIMIT_BYTES: usize = 64 * 1024;
}

/// Identifies one telemetry frame of one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrameId {
    /// The start of the agent that made it.
    pub boot_id: BootId,
    /// Counted from 1 within the boot.
    pub seq: u64,
}
