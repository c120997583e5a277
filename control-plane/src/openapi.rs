//! How the types of `skerry-shared` look in the OpenAPI document: the shared crate itself knows nothing of OpenAPI.
//!
//! Nothing here is ever made; `#[schema(value_type = …)]` names these types. Ids need none: a name is a `String`, a counter a
//! `u64`. Invariant: each has exactly the members that the shared type serialises (`api::tests` compares them).

#![expect(dead_code, reason = "these types are only described, never made")]

use utoipa::ToSchema;

/// What a model takes or gives.
#[derive(ToSchema)]
pub(crate) struct TensorMetadata {
    /// Its name.
    name: String,
    /// The Open Inference Protocol's datatype, for example `FP32`.
    #[schema(examples("FP32"))]
    datatype: String,
    /// Its shape; -1 is a dimension known only at the call.
    shape: Vec<i64>,
}

/// What a device's update machine does now.
#[derive(ToSchema)]
pub(crate) struct UpdateStatus {
    state: UpdateState,
    /// The model it works on; absent when idle.
    #[schema(nullable = false)]
    model: Option<String>,
    /// The version it works on.
    #[schema(nullable = false)]
    version: Option<u64>,
    /// The rollout it works for.
    #[schema(nullable = false)]
    rollout: Option<u64>,
    /// Bytes of the bundle present on the device.
    have_bytes: u64,
    /// Bytes of the bundle in all, as far as this device needs it.
    total_bytes: u64,
    /// Why it waits before it tries again: something that may pass by itself.
    #[schema(nullable = false)]
    waits: Option<ReportedError>,
}

/// A state of a device's update machine.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum UpdateState {
    Idle,
    Sync,
    Download,
    Verify,
    Install,
    Probation,
    Commit,
    Rollback,
    Failure,
}

/// A bundle on a device.
#[derive(ToSchema)]
pub(crate) struct InstalledBundle {
    /// The model.
    model: String,
    /// Its version.
    version: u64,
    slot: Slot,
    /// The digest of its chunk index.
    index: String,
}

/// The place of an installed bundle.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum Slot {
    Current,
    Previous,
}

/// The bundle that a device should run for one model.
#[derive(ToSchema)]
pub(crate) struct BundleAssignment {
    /// The registered model.
    model: String,
    /// Its version.
    version: u64,
    /// The TUF target that holds the bundle's chunk index.
    target: String,
    /// The digest of that chunk index.
    index: String,
    /// The rollout that asked for it.
    #[schema(nullable = false)]
    rollout: Option<u64>,
    /// How long the new version serves on probation.
    probation_ms: u32,
    /// Whether the device may go below the model's lowest version.
    #[schema(nullable = false)]
    allow_downgrade: Option<bool>,
}

/// How an update of a device ended.
#[derive(ToSchema)]
pub(crate) struct Outcome {
    /// The generation that asked for it.
    generation: u64,
    /// The model.
    model: String,
    /// The version.
    version: u64,
    /// The rollout that asked for it.
    #[schema(nullable = false)]
    rollout: Option<u64>,
    result: OutcomeResult,
    /// Bytes of payload received over MQTT for this update.
    wire_bytes: u64,
    /// Downloads of this bundle that went on from what an earlier start of the agent had left on disk.
    resumed_downloads: u32,
}

/// The end of an update.
#[derive(ToSchema)]
pub(crate) struct OutcomeResult {
    kind: OutcomeKind,
    #[schema(nullable = false)]
    error: Option<ReportedError>,
}

/// The kind of end of an update.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum OutcomeKind {
    /// Committed.
    Succeeded,
    /// It failed at install or on probation; the previous bundle serves again.
    RolledBack,
    /// It failed before anything on the device changed.
    Failed,
}

/// An error as a device reports it.
#[derive(ToSchema)]
pub(crate) struct ReportedError {
    /// A stable word, for example `golden_mismatch`.
    code: String,
    /// One sentence for a person.
    message: String,
}

/// A signed payload (DSSE).
#[derive(ToSchema)]
pub(crate) struct DsseEnvelope {
    /// What the payload is.
    #[serde(rename = "payloadType")]
    payload_type: String,
    /// The payload, in base64.
    payload: String,
    signatures: Vec<DsseSignature>,
}

/// A signature of a DSSE envelope.
#[derive(ToSchema)]
pub(crate) struct DsseSignature {
    /// A hint: which key.
    keyid: String,
    /// The signature, in base64.
    sig: String,
}
