//! Runs and what belongs to them, as the API shows them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion, RunId},
};
use utoipa::ToSchema;

/// Where a run is, in MLflow's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It waits for its turn.
    Scheduled,
    /// Its script runs, or what it made is being stored.
    Running,
    /// It ended well, and everything it made is stored.
    Finished,
    /// It ended badly; its error says how.
    Failed,
    /// Somebody cancelled it.
    Killed,
}

impl RunStatus {
    /// True when the run never changes again.
    pub fn has_ended(self) -> bool {
        match self {
            RunStatus::Scheduled | RunStatus::Running => false,
            RunStatus::Finished | RunStatus::Failed | RunStatus::Killed => true,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            RunStatus::Scheduled => "scheduled",
            RunStatus::Running => "running",
            RunStatus::Finished => "finished",
            RunStatus::Failed => "failed",
            RunStatus::Killed => "killed",
        }
    }
}

/// A script or an input: a plain file name and the blob with its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InputFile {
    /// Its name in the run's input folder.
    pub name: String,
    /// Its content.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// A file that a run made, stored as a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Artifact {
    /// Its path below `artifacts/`, with `/` between the names.
    pub path: String,
    /// Its content.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
}

/// A value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct MetricPoint {
    /// The metric.
    pub key: String,
    /// Finite.
    pub value: f64,
    /// The script's own counter, for example the epoch.
    pub step: i64,
    /// When the control plane read it, in UTC milliseconds.
    pub recorded_at_ms: u64,
}

/// A model version that a run registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RegisteredVersion {
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Its version.
    #[schema(value_type = u64)]
    pub version: ModelVersion,
}

/// One training execution.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Run {
    /// Its id.
    #[schema(value_type = String)]
    pub id: RunId,
    /// The name of its experiment.
    pub experiment: String,
    /// Who submitted it. Empty if that is not known.
    pub submitted_by: String,
    /// Where it is.
    pub status: RunStatus,
    /// The script's name.
    pub script: String,
    /// The script's digest.
    #[schema(value_type = String)]
    pub code: Digest,
    /// Its inputs, by name.
    pub inputs: Vec<InputFile>,
    /// One digest over all inputs, if there are any: that of what `sha256sum *` prints in the input folder, which is the line
    /// `<64 hex digits>  <name>\n` for every input in the byte order of the names.
    #[schema(value_type = Option<String>)]
    pub dataset: Option<Digest>,
    /// What the script gets as `--key value`.
    pub params: BTreeMap<String, String>,
    /// When the script is killed.
    pub timeout_seconds: u64,
    /// The model whose next version `artifacts/model.onnx` becomes.
    #[schema(value_type = Option<String>)]
    pub register_as: Option<ModelName>,
    /// The script's exit status, if it ended by itself.
    pub exit_status: Option<i32>,
    /// The signal that killed the script, if one did.
    pub signal: Option<i32>,
    /// Why it failed or was killed.
    pub error: Option<String>,
    /// What it registered.
    pub registered: Option<RegisteredVersion>,
    /// The value of each metric at its highest step, and of those the last.
    pub metrics: BTreeMap<String, f64>,
    /// What it made, by path.
    pub artifacts: Vec<Artifact>,
    /// UTC milliseconds.
    pub created_at_ms: u64,
    /// UTC milliseconds.
    pub started_at_ms: Option<u64>,
    /// UTC milliseconds.
    pub ended_at_ms: Option<u64>,
}

/// A name under which runs are compared.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Experiment {
    /// Counted from 1.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its runs, ended or not.
    pub runs: u64,
    /// UTC milliseconds.
    pub created_at_ms: u64,
}

/// A run to submit.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// The experiment; it is made at its first use.
    pub experiment: String,
    /// The script.
    pub script: InputFile,
    /// Its inputs.
    pub inputs: Vec<InputFile>,
    /// What the script gets as `--key value`.
    pub params: BTreeMap<String, String>,
    /// When the script is killed.
    pub timeout: Duration,
    /// The model whose next version `artifacts/model.onnx` becomes.
    pub register_as: Option<ModelName>,
}
