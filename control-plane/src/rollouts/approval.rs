//! Four eyes: a rollout that reaches production needs the word of a second person.
//!
//! Which devices are in production is the configuration's word, not the rollout's. Invariants: whoever made a rollout does not
//! approve it, with none of its tokens; no device in production is told anything by a rollout that nobody has approved, whatever
//! became of its labels since the rollout was made.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use skerry_shared::id::{DeviceId, RolloutId};
use utoipa::ToSchema;

use super::{Rollout, RolloutError, RolloutState, check_overlap, plan, require, store};
use crate::{
    access::{Actor, person_of},
    audit::{self, Fact},
    db::{Db, to_word},
    devices::{self, Device, Selector},
};

/// Which rollouts need a second person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The devices that are in production; without it none is.
    pub production: Option<Selector>,
}

impl Policy {
    fn covers(&self, device: &Device) -> bool {
        let production = self.production.as_ref();
        production.is_some_and(|production| production.matches(&device.labels))
    }

    /// Whether these devices make a rollout one that needs a second person.
    pub(super) fn at_creation(&self, chosen: &[Device], start: bool) -> Approval {
        if chosen.iter().any(|device| self.covers(device)) {
            Approval::Needed { starts: start }
        } else {
            Approval::NotNeeded
        }
    }

    /// A device in production among these, if one is.
    fn find(&self, conn: &Connection, ids: &[&DeviceId]) -> Result<Option<DeviceId>, RolloutError> {
        if self.production.is_some() {
            for id in ids {
                // A device that was removed is in no place.
                if devices::store::get(conn, id)?.is_some_and(|device| self.covers(&device)) {
                    return Ok(Some((*id).clone()));
                }
            }
        }
        Ok(None)
    }
}

/// The word of a second person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
#[schema(as = RolloutApproval)]
pub enum Approval {
    /// No device of the rollout was in production when it was made.
    NotNeeded,
    /// Somebody else than the author must approve it.
    Needed {
        /// True when it goes on by itself after that.
        starts: bool,
    },
    /// Somebody else has approved it.
    Given {
        /// Who.
        by: String,
        /// UTC milliseconds.
        at_ms: u64,
    },
}

/// Approves a rollout; it begins, or goes on, unless its author has made a draft of it.
///
/// # Errors
/// [`RolloutError::NotAPerson`] and [`RolloutError::Author`] when the approver may not; nothing has changed then.
pub async fn approve(
    db: &Db,
    policy: &Policy,
    id: RolloutId,
    approver: &Actor,
    now_ms: u64,
) -> Result<Rollout, RolloutError> {
    let (policy, approver) = (policy.clone(), approver.clone());
    db.write(move |conn| {
        let mut rollout = require(conn, id)?;
        let before = rollout.state;
        let starts = match rollout.approval {
            Approval::Needed { starts } => starts,
            Approval::NotNeeded if first_untold(conn, &policy, &rollout)?.is_some() => false,
            Approval::NotNeeded | Approval::Given { .. } => return Err(RolloutError::NothingToApprove(id)),
        };
        if !matches!(before, RolloutState::Draft | RolloutState::Paused) {
            let wanted = "approved";
            return Err(RolloutError::State {
                id,
                state: before,
                wanted,
            });
        }
        if approver.user.is_none() {
            return Err(RolloutError::NotAPerson(approver.name));
        }
        if approver.person == person_of(&rollout.author) {
            return Err(RolloutError::Author(id));
        }
        rollout.approval = Approval::Given {
            by: approver.name.clone(),
            at_ms: now_ms,
        };
        if starts {
            rollout.state = match before {
                RolloutState::Draft => RolloutState::Ready,
                _ => RolloutState::Running,
            };
            rollout.reason = String::new();
        }
        if rollout.state == RolloutState::Ready {
            check_overlap(conn, &rollout)?;
        }
        store::update(conn, &rollout)?;
        let fact = Fact::new("rollout.approve", rollout.audit_object())
            .with("author", &rollout.author)
            .with("before", to_word(&before))
            .with("after", to_word(&rollout.state));
        audit::append(conn, &approver.by(now_ms), fact)?;
        Ok(rollout)
    })
    .await
}

/// Refuses to begin or go on with a rollout that nobody has approved and that would reach production.
pub(super) fn require_approval(conn: &Connection, policy: &Policy, rollout: &Rollout) -> Result<(), RolloutError> {
    let missing = match rollout.approval {
        Approval::Given { .. } => false,
        Approval::Needed { .. } => true,
        Approval::NotNeeded => first_untold(conn, policy, rollout)?.is_some(),
    };
    if missing {
        return Err(RolloutError::Unapproved(rollout.id));
    }
    Ok(())
}

/// The first device in production that the rollout has not told anything yet.
fn first_untold(conn: &Connection, policy: &Policy, rollout: &Rollout) -> Result<Option<DeviceId>, RolloutError> {
    let untold = rollout.devices().filter(|device| device.detail.assigned.is_none());
    policy.find(conn, &untold.map(|device| &device.device).collect::<Vec<_>>())
}

/// Holds a rollout that is about to tell a device in production, where nobody has approved that: the device's labels have
/// changed since the rollout was made.
pub(super) fn hold_unapproved(
    conn: &Connection,
    policy: &Policy,
    rollout: &mut Rollout,
    actions: &mut Vec<plan::Action>,
) -> Result<(), RolloutError> {
    if matches!(rollout.approval, Approval::Given { .. }) {
        return Ok(());
    }
    let told = actions.iter().filter_map(|action| match action {
        plan::Action::Assign(device) => Some(device),
        plan::Action::Revert(_) => None,
    });
    let Some(device) = policy.find(conn, &told.collect::<Vec<_>>())? else {
        return Ok(());
    };
    actions.retain(|action| matches!(action, plan::Action::Revert(_)));
    rollout.state = RolloutState::Paused;
    rollout.approval = Approval::Needed { starts: true };
    rollout.reason = format!(
        "device {device} is in production now: somebody else than {} must approve",
        rollout.author
    );
    Ok(())
}
