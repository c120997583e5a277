//! What the templates show: plain structs, made from the domains' types by pure functions.
//!
//! Invariant: a page says what is known and when it was heard; what an offline device did last is marked as such.

pub(super) mod access;
pub(super) mod audit;
pub(super) mod device;
pub(super) mod model;
pub(super) mod rollout;

use skerry_shared::desired::{ReportedError, UpdateState, UpdateStatus};
use skerry_tuf::UnixTime;

use crate::cli::output::bytes;

/// A state in one word, and how it looks: `ok`, `busy`, `warn`, `bad` or `idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) struct Status {
    pub(in crate::web) word: &'static str,
    pub(in crate::web) tone: &'static str,
}

/// Makes a [`Status`].
pub(in crate::web) const fn status(word: &'static str, tone: &'static str) -> Status {
    Status { word, tone }
}

/// A point in time, for people and for the script that keeps it current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::web) struct Moment {
    pub(in crate::web) iso: String,
    pub(in crate::web) ms: u64,
    pub(in crate::web) ago: String,
}

impl Moment {
    /// A time as it looks at `now_ms`.
    pub(in crate::web) fn new(at_ms: u64, now_ms: u64) -> Moment {
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
pub(in crate::web) struct Progress {
    pub(in crate::web) have: u64,
    pub(in crate::web) total: u64,
    pub(in crate::web) text: String,
}

impl Progress {
    /// The progress of a download; `None` when the device does not download or does not know how much.
    pub(in crate::web) fn of(update: &UpdateStatus) -> Option<Progress> {
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
pub(in crate::web) struct ErrorView {
    pub(in crate::web) about: String,
    pub(in crate::web) code: String,
    pub(in crate::web) message: String,
}

impl ErrorView {
    /// An error with what it was about.
    pub(in crate::web) fn new(about: String, error: &ReportedError) -> ErrorView {
        ErrorView {
            about,
            code: error.code.clone(),
            message: error.message.clone(),
        }
    }
}
