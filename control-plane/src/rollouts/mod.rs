//! Rollouts, in hawkBit's words: a published bundle goes to devices in deployment groups, and each group must prove itself
//! before the next begins.
//!
//! A rollout changes only what devices should run; they converge and report. Invariant: a device's desired state and the
//! rollout's memory of it change in one transaction, so a crash at any point leaves both or neither.

pub mod approval;
pub mod group;
mod plan;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use skerry_shared::{
    desired::{BundleAssignment, DEFAULT_PROBATION_MS, ReportedError},
    digest::Digest,
    id::{DeviceId, Generation, ModelName, ModelVersion, RolloutId},
};
use utoipa::ToSchema;

use approval::{Approval, Policy, hold_unapproved, require_approval};
use group::GroupRule;

use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError, to_word},
    devices::{self, DeviceError, InvalidSelector, Selector},
    openapi,
    publish::{self, PublishError, Refusal, RefusalCode},
};

/// Ten minutes, and the probation on top: a device that says nothing for longer has lost its network or its power.
pub const DEFAULT_SILENT_AFTER_MS: u64 = 600_000;
/// A month: a device that says nothing for longer has been taken away, and no rollout waits for it.
const SILENT_AFTER_MAX_MS: u64 = 30 * 86_400_000;
/// A day: longer probations are another rollout.
const PROBATION_MAX_MS: u64 = 86_400_000;
/// More groups than a person can follow.
const GROUPS_MAX: usize = 32;

/// A rollout with its groups and devices.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Rollout {
    /// Its number.
    #[schema(value_type = u64)]
    pub id: RolloutId,
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// The version that it brings.
    #[schema(value_type = u64)]
    pub version: ModelVersion,
    /// The bundle's TUF target.
    pub target: String,
    /// The bundle's chunk index.
    #[schema(value_type = String)]
    pub index: Digest,
    /// How long the version serves on probation on each device, in milliseconds.
    pub probation_ms: u32,
    /// How long a device may say nothing, in milliseconds, probation not counted.
    pub silent_after_ms: u64,
    /// True when its devices may go below the lowest version of the model that signed metadata names.
    pub allow_downgrade: bool,
    /// Which devices were meant.
    #[schema(value_type = String)]
    pub selector: Selector,
    /// Where it stands.
    pub state: RolloutState,
    /// Why it stands there, in words; empty when there is nothing to say.
    pub reason: String,
    /// The groups, in order.
    pub groups: Vec<Group>,
    /// Who made it; empty for those that were made before anybody asked.
    pub author: String,
    /// Whether a second person must approve it, and who did.
    pub approval: Approval,
    /// UTC milliseconds.
    pub created_at_ms: u64,
    /// UTC milliseconds, once it is finished or stopped.
    pub ended_at_ms: Option<u64>,
}

impl Rollout {
    /// All devices, in the order of their groups.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceProgress> {
        self.groups.iter().flat_map(|group| &group.devices)
    }

    /// How the audit log names it.
    fn audit_object(&self) -> String {
        format!("rollout/{}", self.id)
    }

    /// What its devices are told to run.
    fn assignment(&self) -> BundleAssignment {
        BundleAssignment {
            model: self.model.clone(),
            version: self.version,
            target: self.target.clone(),
            index: self.index,
            rollout: Some(self.id),
            probation_ms: self.probation_ms,
            allow_downgrade: self.allow_downgrade,
        }
    }
}

/// Where a rollout stands (hawkBit's words).
///
/// ```text
/// Draft ─▶ Ready ─▶ Running ⇄ Paused ─▶ Finished
///   │                  └────────┴─ error, abort ─▶ Stopping ─▶ Stopped
///   └─ abort ─▶ Stopped
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Waits for somebody to start it, or to approve it.
    Draft,
    /// Started; nothing has been assigned yet.
    Ready,
    /// Under way.
    Running,
    /// No further devices; those under way go on.
    Paused,
    /// Every group has proved itself.
    Finished,
    /// Ends; devices under way return to what they ran.
    Stopping,
    /// Ended without proof.
    Stopped,
}

impl RolloutState {
    /// True when nothing will change any more.
    pub fn is_over(self) -> bool {
        matches!(self, RolloutState::Finished | RolloutState::Stopped)
    }
}

/// A deployment group.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How its devices were chosen, and what they must prove.
    #[serde(flatten)]
    pub rule: GroupRule,
    /// True when a person went on although the group proved nothing.
    pub accepted: bool,
    /// Its devices.
    pub devices: Vec<DeviceProgress>,
}

/// How far one device of a rollout is.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct DeviceProgress {
    /// The device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Its state.
    pub state: DeviceState,
    /// What else is known.
    #[serde(flatten)]
    pub detail: Detail,
}

/// What a rollout remembers of a device beside its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    /// Why it failed, or what it last complained about.
    #[serde(default)]
    #[schema(value_type = Option<openapi::ReportedError>)]
    pub error: Option<ReportedError>,
    /// Set when its desired state was changed.
    #[serde(default)]
    pub assigned: Option<Assigned>,
    /// Set when its desired state was changed back.
    #[serde(default)]
    pub reverted: Option<Reverted>,
    /// When the control plane first heard that the new version serves, in UTC milliseconds.
    #[serde(default)]
    pub serving_at_ms: Option<u64>,
    /// When its update ended, in UTC milliseconds.
    #[serde(default)]
    pub ended_at_ms: Option<u64>,
    /// Bytes of payload that it received for this update.
    #[serde(default)]
    pub wire_bytes: u64,
    /// Downloads that went on from what an earlier start of the agent had left on disk.
    #[serde(default)]
    pub resumed_downloads: u32,
}

/// The change of a device's desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Assigned {
    /// The generation that carries it.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// UTC milliseconds.
    pub at_ms: u64,
    /// What the device should run of this model before: to be put back if the new one fails.
    #[schema(value_type = Option<openapi::BundleAssignment>)]
    pub previous: Option<BundleAssignment>,
}

/// The change back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reverted {
    /// The generation that carries it.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// UTC milliseconds.
    pub at_ms: u64,
}

/// The states of a device in a rollout (DESIGN §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// Not told yet, or has not answered yet.
    Pending,
    /// Fetches metadata or chunks.
    Downloading,
    /// Verifies, loads, proves the golden vectors.
    Installing,
    /// Serves the new version, not yet committed.
    Probation,
    /// Committed.
    Succeeded,
    /// Failed before anything on it changed.
    Failed,
    /// Returned to what it ran.
    RolledBack,
    /// Has said nothing for too long.
    Silent,
}

impl DeviceState {
    /// True when its update has ended.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            DeviceState::Succeeded | DeviceState::Failed | DeviceState::RolledBack
        )
    }
}

/// A rollout to create.
#[derive(Clone, Debug)]
pub struct NewRollout {
    /// The model.
    pub model: ModelName,
    /// The version; its bundle must be published.
    pub version: ModelVersion,
    /// Which devices.
    pub selector: Selector,
    /// The groups, in order.
    pub groups: Vec<GroupRule>,
    /// In milliseconds; the default is ten seconds.
    pub probation_ms: Option<u64>,
    /// In milliseconds; the default is [`DEFAULT_SILENT_AFTER_MS`].
    pub silent_after_ms: Option<u64>,
    /// Whether its devices may go below the model's lowest version.
    pub allow_downgrade: bool,
    /// Whether it begins at once.
    pub start: bool,
}

/// Why a rollout call failed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// There is no such rollout.
    #[error("there is no rollout {0}")]
    NotFound(RolloutId),
    /// A value outside its limits.
    #[error("{0}")]
    Invalid(&'static str),
    /// A selector that does not parse.
    #[error(transparent)]
    Selector(#[from] InvalidSelector),
    /// The selector or a group chooses no device.
    #[error("no enrolled device matches {0}")]
    NoDevices(String),
    /// Another rollout of the same model is not over on one of the devices.
    #[error("rollout {other} of the same model is not over on device `{device}`; finish or abort it first")]
    Overlap {
        /// The other rollout.
        other: RolloutId,
        /// A device in both.
        device: DeviceId,
    },
    /// The rollout's state does not allow the call.
    #[error("rollout {id} is {state:?}: it cannot be {wanted}")]
    State {
        /// The rollout.
        id: RolloutId,
        /// Its state.
        state: RolloutState,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A second person must approve the rollout first.
    #[error(
        "rollout {0} reaches production: a user who is not its author must approve it first (`skerry rollout approve {0}`)"
    )]
    Unapproved(RolloutId),
    /// The rollout does not wait for anybody.
    #[error("rollout {0} does not wait for an approval")]
    NothingToApprove(RolloutId),
    /// The author's word is no second one.
    #[error("rollout {0} must be approved by somebody else than its author")]
    Author(RolloutId),
    /// Only users are persons.
    #[error("`{0}` acts for no user: only a person can approve a rollout")]
    NotAPerson(String),
    /// The signed targets metadata forbids the bundle.
    #[error("{model} version {version} may not be installed: {}{}", .refusal.reason, hint(.refusal))]
    Refused {
        /// The model.
        model: ModelName,
        /// The version.
        version: ModelVersion,
        /// The rule.
        refusal: Refusal,
    },
    /// The bundle is not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A device is gone.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// What an evaluation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluated {
    /// True when the rollout or one of its devices changed.
    pub changed: bool,
    /// True when desired states changed.
    pub assigned: bool,
    /// When to look again if nothing happens, in UTC milliseconds.
    pub next_look_at_ms: Option<u64>,
}

/// Creates a rollout: chooses its devices now, and starts it unless it shall be a draft or needs a second person first.
///
/// # Errors
/// [`RolloutError`]; nothing is created then.
pub async fn create(db: &Db, policy: &Policy, new: NewRollout, by: By) -> Result<Rollout, RolloutError> {
    let probation_ms = new.probation_ms.unwrap_or(u64::from(DEFAULT_PROBATION_MS));
    let silent_after_ms = new.silent_after_ms.unwrap_or(DEFAULT_SILENT_AFTER_MS);
    if probation_ms > PROBATION_MAX_MS {
        return Err(RolloutError::Invalid("probation must be at most one day"));
    }
    if silent_after_ms < 1000 {
        return Err(RolloutError::Invalid("a device may be silent for at least one second"));
    }
    if silent_after_ms > SILENT_AFTER_MAX_MS {
        return Err(RolloutError::Invalid("a device may be silent for at most 30 days"));
    }
    if new.groups.is_empty() || new.groups.len() > GROUPS_MAX {
        return Err(RolloutError::Invalid("a rollout has 1 to 32 deployment groups"));
    }
    let percents = |rule: &GroupRule| (1..=100).contains(&rule.success_percent) && rule.error_percent <= 100;
    if !new.groups.iter().all(percents) {
        return Err(RolloutError::Invalid(
            "success_percent must be 1 to 100, error_percent 0 to 100",
        ));
    }
    let bundle = publish::get_bundle(db, &new.model, new.version).await?;
    let policy = policy.clone();
    if let Some(refusal) = bundle
        .refused
        .clone()
        .filter(|refusal| forbids(refusal, new.allow_downgrade))
    {
        return Err(RolloutError::Refused {
            model: new.model,
            version: new.version,
            refusal,
        });
    }
    db.write(move |conn| {
        let mut chosen = devices::store::list(conn)?;
        chosen.retain(|device| new.selector.matches(&device.labels));
        let approval = policy.at_creation(&chosen, new.start);
        let starts = new.start && approval == Approval::NotNeeded;
        let id = store::next_id(conn)?;
        let groups = plan::groups(id, &new.groups, chosen)?;
        let rollout = Rollout {
            id,
            model: bundle.model,
            version: bundle.version,
            target: bundle.target,
            index: bundle.index,
            probation_ms: probation_ms as u32,
            silent_after_ms,
            allow_downgrade: new.allow_downgrade,
            selector: new.selector,
            state: if starts {
                RolloutState::Ready
            } else {
                RolloutState::Draft
            },
            reason: String::new(),
            groups,
            author: by.actor.clone(),
            approval,
            created_at_ms: by.at_ms,
            ended_at_ms: None,
        };
        if starts {
            check_overlap(conn, &rollout)?;
        }
        store::insert(conn, &rollout)?;
        let fact = Fact::new("rollout.create", rollout.audit_object())
            .with("model", &rollout.model)
            .with("version", rollout.version)
            .with("selector", &rollout.selector)
            .with("devices", rollout.devices().count())
            .with("state", to_word(&rollout.state));
        audit::append(conn, &by, fact)?;
        Ok(rollout)
    })
    .await
}

/// Whether a refusal stops a rollout.
fn forbids(refusal: &Refusal, allow_downgrade: bool) -> bool {
    match refusal.code {
        RefusalCode::Blocked => true,
        RefusalCode::MinRelease => !allow_downgrade,
    }
}

fn hint(refusal: &Refusal) -> &'static str {
    match refusal.code {
        RefusalCode::Blocked => " (blocked)",
        RefusalCode::MinRelease => "; a rollout that allows a downgrade may go below it",
    }
}

fn check_overlap(conn: &Connection, rollout: &Rollout) -> Result<(), RolloutError> {
    let mine: BTreeSet<&DeviceId> = rollout.devices().map(|progress| &progress.device).collect();
    for other in store::under_way(conn)? {
        if other.id == rollout.id || other.model != rollout.model {
            continue;
        }
        if let Some(common) = other.devices().find(|progress| mine.contains(&progress.device)) {
            return Err(RolloutError::Overlap {
                other: other.id,
                device: common.device.clone(),
            });
        }
    }
    Ok(())
}

/// All rollouts, the newest first.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db) -> Result<Vec<Rollout>, DbError> {
    db.read(store::list).await
}

/// One rollout.
///
/// # Errors
/// [`RolloutError::NotFound`], or the database's.
pub async fn get(db: &Db, id: RolloutId) -> Result<Rollout, RolloutError> {
    db.read(move |conn| require(conn, id)).await
}

fn require(conn: &Connection, id: RolloutId) -> Result<Rollout, RolloutError> {
    store::get(conn, id)?.ok_or(RolloutError::NotFound(id))
}

/// Holds a rollout: no further devices are told; those under way go on.
///
/// # Errors
/// [`RolloutError`]; nothing has changed then.
pub async fn pause(db: &Db, id: RolloutId, by: By) -> Result<Rollout, RolloutError> {
    change(db, id, ("rollout.pause", "paused"), by, |_, rollout| {
        Ok(match rollout.state {
            RolloutState::Ready | RolloutState::Running => {
                rollout.state = RolloutState::Paused;
                rollout.reason = "paused by an operator".to_owned();
                true
            }
            RolloutState::Paused => true,
            _ => false,
        })
    })
    .await
}

/// Starts a draft, or goes on with a paused rollout. A group that could prove nothing counts as accepted by that.
///
/// # Errors
/// [`RolloutError`]; nothing has changed then.
pub async fn resume(db: &Db, policy: &Policy, id: RolloutId, by: By) -> Result<Rollout, RolloutError> {
    let policy = policy.clone();
    change(db, id, ("rollout.resume", "resumed"), by, move |conn, rollout| {
        Ok(match rollout.state {
            RolloutState::Draft => {
                require_approval(conn, &policy, rollout)?;
                rollout.state = RolloutState::Ready;
                true
            }
            RolloutState::Paused => {
                require_approval(conn, &policy, rollout)?;
                plan::accept_inconclusive(rollout);
                rollout.state = RolloutState::Running;
                rollout.reason = String::new();
                true
            }
            RolloutState::Ready | RolloutState::Running => true,
            _ => false,
        })
    })
    .await
}

/// Stops a rollout: devices that have not finished return to what they ran.
///
/// # Errors
/// [`RolloutError`]; nothing has changed then.
pub async fn abort(db: &Db, id: RolloutId, by: By) -> Result<Rollout, RolloutError> {
    change(db, id, ("rollout.abort", "aborted"), by, |_, rollout| {
        Ok(match rollout.state {
            RolloutState::Draft | RolloutState::Ready | RolloutState::Running | RolloutState::Paused => {
                rollout.state = RolloutState::Stopping;
                rollout.reason = "aborted by an operator".to_owned();
                true
            }
            RolloutState::Stopping | RolloutState::Stopped => true,
            RolloutState::Finished => false,
        })
    })
    .await
}

async fn change(
    db: &Db,
    id: RolloutId,
    (action, wanted): (&'static str, &'static str),
    by: By,
    change: impl FnOnce(&Connection, &mut Rollout) -> Result<bool, RolloutError> + Send + 'static,
) -> Result<Rollout, RolloutError> {
    db.write(move |conn| {
        let mut rollout = require(conn, id)?;
        let before = rollout.state;
        if !change(conn, &mut rollout)? {
            return Err(RolloutError::State {
                id,
                state: before,
                wanted,
            });
        }
        if before == RolloutState::Draft && rollout.state == RolloutState::Ready {
            check_overlap(conn, &rollout)?;
        }
        store::update(conn, &rollout)?;
        let fact = Fact::new(action, rollout.audit_object())
            .with("before", to_word(&before))
            .with("after", to_word(&rollout.state));
        audit::append(conn, &by, fact)?;
        Ok(rollout)
    })
    .await
}

/// The rollouts that are under way.
///
/// # Errors
/// The database's.
pub async fn under_way(db: &Db) -> Result<Vec<RolloutId>, DbError> {
    db.read(store::under_way_ids).await
}

/// Looks at what a rollout's devices have reported and does what follows. May be repeated at any time.
///
/// # Errors
/// [`RolloutError::NotFound`], or the database's; nothing has changed then.
pub async fn evaluate(db: &Db, policy: &Policy, id: RolloutId, now_ms: u64) -> Result<Evaluated, RolloutError> {
    let policy = policy.clone();
    db.write(move |conn| {
        let before = require(conn, id)?;
        let mut after = before.clone();
        let mut next_look_at_ms = None;
        for progress in after.groups.iter_mut().flat_map(|group| &mut group.devices) {
            // A device that was removed stays as it was.
            if let Some(device) = devices::store::get(conn, &progress.device)? {
                let silent_at_ms = plan::observe(&before, progress, &device, now_ms);
                next_look_at_ms = silent_at_ms.into_iter().chain(next_look_at_ms).min();
            }
        }
        let refusal = publish::store::refusal(conn, &after.target)?;
        if let Some(refusal) = refusal.filter(|refusal| forbids(refusal, after.allow_downgrade)) {
            plan::forbid(&mut after, &refusal.reason);
        }
        let mut actions = plan::decide(&mut after, now_ms);
        hold_unapproved(conn, &policy, &mut after, &mut actions)?;
        for action in &actions {
            act(conn, &mut after, action, now_ms)?;
        }
        if after != before {
            store::update(conn, &after)?;
        }
        record_decisions(conn, (&before, &after), &actions, now_ms)?;
        Ok(Evaluated {
            changed: after != before,
            assigned: !actions.is_empty(),
            next_look_at_ms,
        })
    })
    .await
}

/// Devices in one entry: bounds how long it is.
const DEVICES_IN_ENTRY: usize = 64;

/// Appends to the audit log what the control plane has decided by itself: whom it told what, and where the rollout went.
fn record_decisions(
    conn: &Connection,
    (before, after): (&Rollout, &Rollout),
    actions: &[plan::Action],
    now_ms: u64,
) -> Result<(), DbError> {
    let by = By::control_plane(now_ms);
    let assigned = actions.iter().filter_map(|action| match action {
        plan::Action::Assign(id) => Some(id.as_str()),
        plan::Action::Revert(_) => None,
    });
    let reverted = actions.iter().filter_map(|action| match action {
        plan::Action::Assign(_) => None,
        plan::Action::Revert(id) => Some(id.as_str()),
    });
    let told: [(_, Vec<&str>); 2] = [
        ("rollout.assign", assigned.collect()),
        ("rollout.revert", reverted.collect()),
    ];
    for (action, devices) in &told {
        for some in devices.chunks(DEVICES_IN_ENTRY) {
            let fact = Fact::new(action, after.audit_object())
                .with("target", &after.target)
                .with("index", after.index)
                .with("devices", some.join(" "));
            audit::append(conn, &by, fact)?;
        }
    }
    if before.state != after.state {
        let fact = Fact::new("rollout.decide", after.audit_object())
            .with("before", to_word(&before.state))
            .with("after", to_word(&after.state))
            .with("reason", &after.reason);
        audit::append(conn, &by, fact)?;
    }
    Ok(())
}

fn act(conn: &Connection, rollout: &mut Rollout, action: &plan::Action, now_ms: u64) -> Result<(), RolloutError> {
    let (assignment, model) = (rollout.assignment(), rollout.model.clone());
    let (plan::Action::Assign(id) | plan::Action::Revert(id)) = action;
    let progress = rollout
        .groups
        .iter_mut()
        .flat_map(|group| &mut group.devices)
        .find(|progress| progress.device == *id);
    let Some(progress) = progress else { return Ok(()) };
    match action {
        plan::Action::Assign(id) => {
            let device = devices::store::get(conn, id)?.ok_or_else(|| DeviceError::NotFound(id.clone()))?;
            let previous = device.desired.into_iter().find(|other| other.model == model);
            let generation = devices::store::set_assignment(conn, id, assignment)?;
            progress.detail.assigned = Some(Assigned {
                generation,
                at_ms: now_ms,
                previous,
            });
        }
        plan::Action::Revert(id) => {
            let previous = progress.detail.assigned.as_ref().and_then(|a| a.previous.clone());
            let generation = match previous {
                Some(previous) => devices::store::set_assignment(conn, id, previous)?,
                None => devices::store::remove_assignment(conn, id, &model)?,
            };
            progress.detail.reverted = Some(Reverted {
                generation,
                at_ms: now_ms,
            });
        }
    }
    Ok(())
}
