//! The update machine (DESIGN §6): one bundle at a time, from a new desired state to Commit or back.

pub(crate) mod decide;
pub(crate) mod postponed;
mod step;

use serde::{Deserialize, Serialize};
use skerry_shared::{
    desired::{BundleAssignment, ReportedError, UpdateState},
    id::Generation,
};

pub(crate) use step::{Effect, Event, effect_of};

/// Starts of the agent in one Install or Probation after which the candidate is given up: it is what ends the agent.
pub(crate) const CANDIDATE_BOOTS_MAX: u32 = 3;

/// What is to be brought to this device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) generation: Generation,
    pub(crate) assignment: BundleAssignment,
}

/// Where the update is.
///
/// ```text
/// Idle ─ Wanted ─▶ Sync ─▶ Download ─▶ Verify ─▶ Install ─▶ Probation ─▶ Commit ─▶ Idle
///                   └─────────┴─────────┤          └────────────┴─ fail ─▶ Rollback ─▶ Failure ─▶ Idle
///                                       └─ fail ─▶ Failure ─▶ Idle
/// ```
///
/// What may pass by itself leads from the states before Probation back to Sync, after a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum State {
    #[default]
    Idle,
    Sync {
        job: Job,
    },
    Download {
        job: Job,
    },
    Verify {
        job: Job,
    },
    Install {
        job: Job,
        /// Starts of the agent since this began: loading the candidate may be what ends it.
        #[serde(default)]
        boots: u32,
    },
    Probation {
        job: Job,
        /// Starts of the agent since probation began.
        boots: u32,
    },
    Commit {
        job: Job,
    },
    Rollback {
        job: Job,
        error: ReportedError,
    },
    Failure {
        job: Job,
        error: ReportedError,
        /// True when the device served the candidate or tried to, and returned.
        rolled_back: bool,
    },
}

impl State {
    /// Its word in reports and logs.
    pub(crate) fn update_state(&self) -> UpdateState {
        match self {
            State::Idle => UpdateState::Idle,
            State::Sync { .. } => UpdateState::Sync,
            State::Download { .. } => UpdateState::Download,
            State::Verify { .. } => UpdateState::Verify,
            State::Install { .. } => UpdateState::Install,
            State::Probation { .. } => UpdateState::Probation,
            State::Commit { .. } => UpdateState::Commit,
            State::Rollback { .. } => UpdateState::Rollback,
            State::Failure { .. } => UpdateState::Failure,
        }
    }

    /// The job under way.
    pub(crate) fn job(&self) -> Option<&Job> {
        match self {
            State::Idle => None,
            State::Sync { job }
            | State::Download { job }
            | State::Verify { job }
            | State::Install { job, .. }
            | State::Probation { job, .. }
            | State::Commit { job }
            | State::Rollback { job, .. }
            | State::Failure { job, .. } => Some(job),
        }
    }
}
