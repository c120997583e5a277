//! The pure half of a rollout: who is in which group, what a report means, what follows from all of them. No I/O, no clock.

use skerry_shared::{
    desired::{OutcomeResult, Reported, ReportedError, Slot, UpdateState},
    digest::Digest,
    id::{DeviceId, RolloutId},
};

use super::{
    DeviceProgress, DeviceState, Group, Rollout, RolloutError, RolloutState,
    group::{GroupRule, GroupSize},
};
use crate::devices::Device;

/// What to do to a device's desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell it to run the rollout's bundle.
    Assign(DeviceId),
    /// Tell it to run again what it ran before.
    Revert(DeviceId),
}

/// Distributes devices over groups. Their order is a hash of rollout and device, so that it is stable, and so that not the
/// same device is always the first to try.
pub(super) fn groups(id: RolloutId, rules: &[GroupRule], mut devices: Vec<Device>) -> Result<Vec<Group>, RolloutError> {
    if devices.is_empty() {
        return Err(RolloutError::NoDevices("the selector".to_owned()));
    }
    devices.sort_by_key(|device| Digest::of(format!("{id}/{}", device.id).as_bytes()));
    let total = devices.len();
    let mut left = devices;
    let mut groups = Vec::with_capacity(rules.len());
    for (position, rule) in rules.iter().enumerate() {
        let taken: Vec<Device> = match &rule.size {
            GroupSize::Count(count) => left.drain(..left.len().min(*count as usize)).collect(),
            GroupSize::Percent(percent) => {
                let count = (total * usize::from(*percent)).div_ceil(100);
                left.drain(..left.len().min(count)).collect()
            }
            GroupSize::Labels(selector) => {
                let (matching, others) = left.into_iter().partition(|device| selector.matches(&device.labels));
                left = others;
                matching
            }
            GroupSize::Rest => std::mem::take(&mut left),
        };
        // Labels that match nothing are a mistake; any other group is empty because earlier ones took all there is.
        if taken.is_empty() && matches!(rule.size, GroupSize::Labels(_)) {
            return Err(RolloutError::NoDevices(format!(
                "group {} ({})",
                position + 1,
                rule.size
            )));
        }
        groups.push(Group {
            name: format!("{} ({})", position + 1, rule.size),
            rule: rule.clone(),
            accepted: false,
            devices: taken.into_iter().map(pending).collect(),
        });
    }
    Ok(groups)
}

fn pending(device: Device) -> DeviceProgress {
    DeviceProgress {
        device: device.id,
        state: DeviceState::Pending,
        detail: Default::default(),
    }
}

/// Brings a device's progress up to date with what it has said. Returns when it becomes silent if it says nothing more.
pub(super) fn observe(rollout: &Rollout, progress: &mut DeviceProgress, device: &Device, now_ms: u64) -> Option<u64> {
    let assigned = progress.detail.assigned.clone()?;
    if progress.state.is_terminal() {
        return None;
    }
    if let Some(reported) = &device.reported {
        if let Some(refused) = &reported.refused {
            progress.detail.error = Some(refused.clone());
        }
        let expected = progress.detail.reverted.map_or(assigned.generation, |r| r.generation);
        if reported.generation >= expected {
            match progress.detail.reverted {
                None => observe_update(rollout, progress, reported, now_ms),
                Some(_) => observe_return(rollout, progress, reported),
            }
        }
    }
    let told = progress.detail.reverted.map_or(assigned.at_ms, |r| r.at_ms);
    let heard = device.last_seen_at_ms.unwrap_or(0).max(told);
    let patience_ms = rollout.silent_after_ms.saturating_add(rollout.probation_ms.into());
    let silent_at = heard.saturating_add(patience_ms);
    if progress.state.is_terminal() {
        progress.detail.ended_at_ms = Some(now_ms);
        return None;
    }
    if now_ms >= silent_at {
        progress.state = DeviceState::Silent;
        return None;
    }
    if progress.state == DeviceState::Silent {
        progress.state = DeviceState::Pending;
    }
    Some(silent_at)
}

fn observe_update(rollout: &Rollout, progress: &mut DeviceProgress, reported: &Reported, now_ms: u64) {
    let outcome = reported
        .outcomes
        .iter()
        .find(|outcome| outcome.model == rollout.model && outcome.rollout == Some(rollout.id));
    if let Some(outcome) = outcome {
        progress.detail.wire_bytes = outcome.wire_bytes;
        progress.detail.resumed_downloads = outcome.resumed_downloads;
        let (state, error) = match &outcome.result {
            OutcomeResult::Succeeded => (DeviceState::Succeeded, None),
            OutcomeResult::RolledBack(error) => (DeviceState::RolledBack, Some(error.clone())),
            OutcomeResult::Failed(error) => (DeviceState::Failed, Some(error.clone())),
        };
        progress.state = state;
        progress.detail.error = error;
    } else if reported.update.rollout == Some(rollout.id) {
        // It waits and tries again: nobody has failed, and whoever looks should see why.
        if reported.refused.is_none() {
            progress.detail.error = reported.update.waits.clone();
        }
        progress.state = match reported.update.state {
            UpdateState::Idle => DeviceState::Pending,
            UpdateState::Sync | UpdateState::Download => DeviceState::Downloading,
            UpdateState::Verify | UpdateState::Install | UpdateState::Rollback | UpdateState::Failure => {
                DeviceState::Installing
            }
            UpdateState::Probation | UpdateState::Commit => DeviceState::Probation,
        };
    } else if runs(rollout, reported) {
        // It had the bundle before: there was nothing to do.
        progress.state = DeviceState::Succeeded;
        progress.detail.error = None;
    } else {
        // Something else first, or it has only just heard.
        progress.state = DeviceState::Pending;
    }
    if matches!(progress.state, DeviceState::Probation | DeviceState::Succeeded) {
        progress.detail.serving_at_ms.get_or_insert(now_ms);
    }
}

/// After the change back a device ends as rolled back, once it neither runs the bundle nor works on it.
fn observe_return(rollout: &Rollout, progress: &mut DeviceProgress, reported: &Reported) {
    if runs(rollout, reported) || reported.update.model.as_ref() == Some(&rollout.model) {
        return;
    }
    progress.state = DeviceState::RolledBack;
    progress.detail.error.get_or_insert(ReportedError {
        code: "rollout_stopped".to_owned(),
        message: "the rollout was stopped before this device had finished".to_owned(),
    });
}

fn runs(rollout: &Rollout, reported: &Reported) -> bool {
    let bundle = |b: &skerry_shared::desired::InstalledBundle| {
        b.slot == Slot::Current && b.model == rollout.model && b.index == rollout.index
    };
    reported.bundles.iter().any(bundle)
}

/// What a group's devices amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    total: usize,
    succeeded: usize,
    failed: usize,
    silent: usize,
}

impl Tally {
    fn of(group: &Group) -> Tally {
        let count = |wanted: &[DeviceState]| group.devices.iter().filter(|d| wanted.contains(&d.state)).count();
        Tally {
            total: group.devices.len(),
            succeeded: count(&[DeviceState::Succeeded]),
            failed: count(&[DeviceState::Failed, DeviceState::RolledBack]),
            silent: count(&[DeviceState::Silent]),
        }
    }

    fn under_way(self) -> usize {
        self.total - self.succeeded - self.failed - self.silent
    }
}

/// A group's verdict. Inconclusive is not a pass (DESIGN §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    Inconclusive,
    UnderWay,
}

fn verdict(group: &Group) -> Verdict {
    let tally = Tally::of(group);
    let percent = |part: usize, limit: u8| part * 100 > usize::from(limit) * tally.total;
    if group.accepted {
        Verdict::Pass
    } else if percent(tally.failed, group.rule.error_percent) {
        Verdict::Fail
    } else if tally.succeeded * 100 >= usize::from(group.rule.success_percent) * tally.total {
        Verdict::Pass
    } else if tally.under_way() > 0 {
        Verdict::UnderWay
    } else {
        Verdict::Inconclusive
    }
}

/// Stops a rollout whose bundle signed metadata has come to forbid.
pub(super) fn forbid(rollout: &mut Rollout, reason: &str) {
    if matches!(
        rollout.state,
        RolloutState::Ready | RolloutState::Running | RolloutState::Paused
    ) {
        rollout.reason = format!("the bundle may not be installed any more: {reason}");
        rollout.state = RolloutState::Stopping;
    }
}

/// Moves the rollout on, and says what must happen to desired states.
pub(super) fn decide(rollout: &mut Rollout, now_ms: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    if rollout.state == RolloutState::Ready {
        rollout.state = RolloutState::Running;
    }
    if matches!(rollout.state, RolloutState::Running | RolloutState::Paused)
        && let Some(failed) = rollout.groups.iter().find(|group| verdict(group) == Verdict::Fail)
    {
        rollout.reason = failure(failed);
        rollout.state = RolloutState::Stopping;
    }
    if rollout.state == RolloutState::Running {
        match rollout.groups.iter().find(|group| verdict(group) != Verdict::Pass) {
            Some(group) if verdict(group) == Verdict::Inconclusive => {
                rollout.reason = inconclusive(group);
                rollout.state = RolloutState::Paused;
            }
            Some(group) => {
                let untold = group.devices.iter().filter(|d| d.detail.assigned.is_none());
                actions.extend(untold.map(|d| Action::Assign(d.device.clone())));
            }
            None if under_way(rollout) == 0 => {
                rollout.state = RolloutState::Finished;
                rollout.ended_at_ms = Some(now_ms);
            }
            None => {}
        }
    }
    for progress in rollout.devices() {
        let told = progress.detail.assigned.is_some() && progress.detail.reverted.is_none();
        // A device that failed runs the old bundle: its intent must say so, or the next generation tries again.
        let failed = matches!(progress.state, DeviceState::Failed | DeviceState::RolledBack);
        let stopping = rollout.state == RolloutState::Stopping && progress.state != DeviceState::Succeeded;
        if told && (failed || stopping) {
            actions.push(Action::Revert(progress.device.clone()));
        }
    }
    if rollout.state == RolloutState::Stopping && under_way(rollout) == 0 {
        rollout.state = RolloutState::Stopped;
        rollout.ended_at_ms = Some(now_ms);
    }
    actions
}

/// Devices that have been told and whose update has not ended, silent ones apart.
fn under_way(rollout: &Rollout) -> usize {
    let open =
        |d: &&DeviceProgress| d.detail.assigned.is_some() && !d.state.is_terminal() && d.state != DeviceState::Silent;
    rollout.devices().filter(open).count()
}

fn failure(group: &Group) -> String {
    let tally = Tally::of(group);
    let first = group
        .devices
        .iter()
        .filter(|d| matches!(d.state, DeviceState::Failed | DeviceState::RolledBack));
    let first = first.filter_map(|d| d.detail.error.as_ref()).next();
    let first = first.map_or_else(String::new, |error| format!("; {}: {}", error.code, error.message));
    format!(
        "group {}: {} of {} devices failed, at most {} % may{first}",
        group.name, tally.failed, tally.total, group.rule.error_percent
    )
}

fn inconclusive(group: &Group) -> String {
    let Tally {
        total,
        succeeded,
        failed,
        silent,
    } = Tally::of(group);
    format!(
        "group {} is inconclusive: of {total} devices {succeeded} succeeded, {failed} failed, {silent} said nothing; {} % must succeed",
        group.name, group.rule.success_percent
    )
}

/// A person goes on: the first group that proved nothing counts as passed.
pub(super) fn accept_inconclusive(rollout: &mut Rollout) {
    let open = rollout.groups.iter_mut().find(|group| verdict(group) != Verdict::Pass);
    if let Some(group) = open
        && verdict(group) == Verdict::Inconclusive
    {
        group.accepted = true;
    }
}
