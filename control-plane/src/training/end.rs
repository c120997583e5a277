//! How runs end: what is stored of an end, and what went wrong.

use std::{io, path::PathBuf};

use skerry_shared::id::{ModelVersion, RunId};

use super::{
    outputs::ArtifactError,
    process::Exit,
    run::{Artifact, RunStatus},
};
use crate::{blob::BlobError, db::DbError, registry::RegistryError};

/// The error of a run whose control plane went away.
pub(super) const STOPPED: &str = "the control plane stopped during the run";
/// The error of a killed run.
pub(super) const CANCELLED: &str = "the run was cancelled";

/// How a run ended: what is stored of it.
pub(super) struct End {
    pub(super) status: RunStatus,
    pub(super) exit: Option<Exit>,
    pub(super) error: Option<String>,
    pub(super) registered: Option<ModelVersion>,
    pub(super) artifacts: Vec<Artifact>,
}

impl End {
    /// An end with an error.
    pub(super) fn new(status: RunStatus, exit: Option<Exit>, error: impl Into<String>) -> End {
        End {
            status,
            exit,
            error: Some(error.into()),
            registered: None,
            artifacts: Vec::new(),
        }
    }

    pub(super) fn exit_status(&self) -> Option<i32> {
        match self.exit {
            Some(Exit::Status(status)) => Some(status),
            Some(Exit::Signal(_)) | None => None,
        }
    }

    pub(super) fn signal(&self) -> Option<i32> {
        match self.exit {
            Some(Exit::Signal(signal)) => Some(signal),
            Some(Exit::Status(_)) | None => None,
        }
    }
}

/// Why a run could not be executed, or what it made could not be stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot start {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("cannot wait for the script")]
    Wait(#[source] io::Error),
    #[error("cannot read the script's output")]
    Output(#[source] io::Error),
    #[error("artifacts/model.onnx is not there, so nothing was registered")]
    NoModel,
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("cannot register artifacts/model.onnx")]
    Register(#[from] RegistryError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("a thread of the executor panicked")]
    Panic,
}

impl RunError {
    /// What a user of the API may know of it.
    pub(super) fn for_user(&self) -> String {
        match self {
            RunError::Start { source, .. } => format!("the script or its interpreter cannot be started: {source}"),
            RunError::Register(RegistryError::Model(refused)) => {
                format!("artifacts/model.onnx cannot be registered, the ONNX file is refused: {refused}")
            }
            RunError::Artifact(ArtifactError::Read { path, source }) => {
                format!("artifact `{path}` cannot be read: {source}")
            }
            RunError::NoModel | RunError::Artifact(_) | RunError::Blob(BlobError::NotFound(_)) => self.to_string(),
            RunError::Write { .. }
            | RunError::Wait(_)
            | RunError::Output(_)
            | RunError::Register(_)
            | RunError::Blob(_)
            | RunError::Db(_)
            | RunError::Panic => "the control plane failed; its log says why".to_owned(),
        }
    }
}

/// The end of a run that an error ended. The log gets the whole chain, the user what concerns the run.
pub(super) fn failed(id: &RunId, exit: Option<Exit>, error: RunError) -> End {
    let for_user = error.for_user();
    tracing::warn!(run.id = %id, error = %chain(error), "a run failed");
    End::new(RunStatus::Failed, exit, for_user)
}

/// The whole chain of an error, in one line.
pub(super) fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}
