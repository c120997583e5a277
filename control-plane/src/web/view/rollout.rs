//! What the pages of rollouts show.

use std::collections::BTreeMap;

use skerry_shared::{desired::UpdateStatus, id::DeviceId};

use super::{ErrorView, Moment, Progress, Status, status};
use crate::{
    access::{Actor, Role, person_of},
    cli::output::bytes,
    devices::Device,
    rollouts::{DeviceProgress, DeviceState, Group, Rollout, RolloutState, approval::Approval},
};

/// A rollout as the list shows it.
pub(in crate::web) struct RolloutRow {
    pub(in crate::web) id: u64,
    pub(in crate::web) model: String,
    pub(in crate::web) version: u64,
    pub(in crate::web) state: Status,
    pub(in crate::web) reason: String,
    pub(in crate::web) bar: Bar,
    pub(in crate::web) created: Moment,
}

impl RolloutRow {
    /// The row of a rollout.
    pub(in crate::web) fn new(rollout: &Rollout, now_ms: u64) -> RolloutRow {
        RolloutRow {
            id: rollout.id.0,
            model: rollout.model.to_string(),
            version: rollout.version.0,
            state: rollout_state(rollout.state),
            reason: rollout.reason.clone(),
            bar: Bar::new(rollout.devices()),
            created: Moment::new(rollout.created_at_ms, now_ms),
        }
    }
}

/// The page of one rollout.
pub(in crate::web) struct RolloutView {
    pub(in crate::web) row: RolloutRow,
    pub(in crate::web) selector: String,
    pub(in crate::web) probation: String,
    pub(in crate::web) silent_after: String,
    pub(in crate::web) ended: Option<Moment>,
    pub(in crate::web) author: String,
    pub(in crate::web) approved_by: Option<String>,
    /// True while it waits for somebody else than its author.
    pub(in crate::web) needs_approval: bool,
    pub(in crate::web) can_approve: bool,
    pub(in crate::web) can_pause: bool,
    pub(in crate::web) resume: Option<&'static str>,
    pub(in crate::web) can_abort: bool,
    pub(in crate::web) groups: Vec<GroupView>,
}

/// A deployment group.
pub(in crate::web) struct GroupView {
    pub(in crate::web) name: String,
    pub(in crate::web) rule: String,
    pub(in crate::web) accepted: bool,
    pub(in crate::web) bar: Bar,
    pub(in crate::web) devices: Vec<ProgressRow>,
}

/// A device in a rollout.
pub(in crate::web) struct ProgressRow {
    pub(in crate::web) device: String,
    pub(in crate::web) state: Status,
    pub(in crate::web) progress: Option<Progress>,
    pub(in crate::web) error: Option<ErrorView>,
    pub(in crate::web) wire: String,
    pub(in crate::web) resumed_downloads: u32,
    pub(in crate::web) took: String,
}

impl RolloutView {
    /// The page of a rollout as this reader sees it. `devices` may be more than those of the rollout.
    pub(in crate::web) fn new(rollout: &Rollout, devices: &[Device], reader: &Actor, now_ms: u64) -> RolloutView {
        let may_change = reader.role >= Role::Operator;
        let held = matches!(rollout.state, RolloutState::Draft | RolloutState::Paused);
        let needs_approval = held && matches!(rollout.approval, Approval::Needed { .. });
        // What a device does for another rollout says nothing about this one.
        let updates = devices.iter().filter_map(|device| {
            let update = &device.reported.as_ref()?.update;
            (update.rollout == Some(rollout.id)).then_some((&device.id, update))
        });
        let updates = updates.collect();
        RolloutView {
            row: RolloutRow::new(rollout, now_ms),
            selector: String::from(rollout.selector.clone()),
            probation: duration(u64::from(rollout.probation_ms)),
            silent_after: duration(rollout.silent_after_ms),
            ended: rollout.ended_at_ms.map(|at| Moment::new(at, now_ms)),
            author: rollout.author.clone(),
            approved_by: match &rollout.approval {
                Approval::Given { by, .. } => Some(by.clone()),
                Approval::NotNeeded | Approval::Needed { .. } => None,
            },
            needs_approval,
            can_approve: needs_approval
                && may_change
                && reader.user.is_some()
                && reader.person != person_of(&rollout.author),
            can_pause: may_change && matches!(rollout.state, RolloutState::Ready | RolloutState::Running),
            resume: match rollout.state {
                _ if needs_approval || !may_change => None,
                RolloutState::Draft => Some("Start"),
                RolloutState::Paused => Some("Resume"),
                _ => None,
            },
            can_abort: may_change && !rollout.state.is_over() && rollout.state != RolloutState::Stopping,
            groups: rollout
                .groups
                .iter()
                .map(|group| GroupView::new(group, &updates))
                .collect(),
        }
    }
}

impl GroupView {
    fn new(group: &Group, updates: &BTreeMap<&DeviceId, &UpdateStatus>) -> GroupView {
        let rule = &group.rule;
        GroupView {
            name: group.name.clone(),
            rule: format!(
                "Passes when {} % succeed; the rollout stops when more than {} % fail.",
                rule.success_percent, rule.error_percent
            ),
            accepted: group.accepted,
            bar: Bar::new(group.devices.iter()),
            devices: group
                .devices
                .iter()
                .map(|progress| ProgressRow::new(progress, updates.get(&progress.device).copied()))
                .collect(),
        }
    }
}

impl ProgressRow {
    fn new(progress: &DeviceProgress, update: Option<&UpdateStatus>) -> ProgressRow {
        let detail = &progress.detail;
        let started = detail.assigned.as_ref().map(|assigned| assigned.at_ms);
        let took = started
            .zip(detail.ended_at_ms)
            .map(|(from, to)| to.saturating_sub(from));
        let downloads = progress.state == DeviceState::Downloading;
        ProgressRow {
            device: progress.device.to_string(),
            state: device_state(progress.state),
            progress: update.filter(|_| downloads).and_then(Progress::of),
            error: detail.error.as_ref().map(|error| ErrorView::new(String::new(), error)),
            wire: if detail.wire_bytes == 0 {
                String::new()
            } else {
                bytes(detail.wire_bytes)
            },
            resumed_downloads: detail.resumed_downloads,
            took: took.map(duration).unwrap_or_default(),
        }
    }
}

/// How many devices are in which state, as a bar of equal parts.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::web) struct Bar {
    pub(in crate::web) total: usize,
    pub(in crate::web) segments: Vec<Segment>,
    pub(in crate::web) text: String,
}

/// A run of devices that look the same.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::web) struct Segment {
    pub(in crate::web) start: usize,
    pub(in crate::web) len: usize,
    pub(in crate::web) tone: &'static str,
}

impl Bar {
    /// The bar of these devices: what is done first, what is to do last.
    pub(in crate::web) fn new<'a>(devices: impl Iterator<Item = &'a DeviceProgress>) -> Bar {
        const ORDER: [DeviceState; 8] = [
            DeviceState::Succeeded,
            DeviceState::Probation,
            DeviceState::Installing,
            DeviceState::Downloading,
            DeviceState::Failed,
            DeviceState::RolledBack,
            DeviceState::Silent,
            DeviceState::Pending,
        ];
        let mut counts = BTreeMap::new();
        for progress in devices {
            *counts.entry(progress.state).or_insert(0) += 1;
        }
        let (mut total, mut segments, mut words) = (0, Vec::<Segment>::new(), Vec::new());
        for state in ORDER {
            let Some(&len) = counts.get(&state) else { continue };
            let Status { word, tone } = device_state(state);
            words.push(format!("{len} {}", word.to_lowercase()));
            match segments.last_mut() {
                Some(last) if last.tone == tone => last.len += len,
                _ => segments.push(Segment {
                    start: total,
                    len,
                    tone,
                }),
            }
            total += len;
        }
        Bar {
            total,
            segments,
            text: words.join(", "),
        }
    }
}

fn rollout_state(state: RolloutState) -> Status {
    match state {
        RolloutState::Draft => status("Draft", "idle"),
        RolloutState::Ready => status("Ready", "busy"),
        RolloutState::Running => status("Running", "busy"),
        RolloutState::Paused => status("Paused", "warn"),
        RolloutState::Finished => status("Finished", "ok"),
        RolloutState::Stopping => status("Stopping", "bad"),
        RolloutState::Stopped => status("Stopped", "bad"),
    }
}

fn device_state(state: DeviceState) -> Status {
    match state {
        DeviceState::Pending => status("Pending", "idle"),
        DeviceState::Downloading => status("Downloading", "busy"),
        DeviceState::Installing => status("Installing", "busy"),
        DeviceState::Probation => status("Probation", "busy"),
        DeviceState::Succeeded => status("Succeeded", "ok"),
        DeviceState::Failed => status("Failed", "bad"),
        DeviceState::RolledBack => status("Rolled back", "bad"),
        DeviceState::Silent => status("Silent", "warn"),
    }
}

fn duration(ms: u64) -> String {
    match ms {
        0..=9_999 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..=119_999 => format!("{} s", ms / 1000),
        120_000..=7_199_999 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rollouts::Detail;

    #[test]
    fn a_bar_counts_every_device_once_and_joins_what_looks_the_same() {
        use DeviceState::{Failed, Installing, Pending, Probation, RolledBack, Succeeded};
        let states = [Pending, Installing, Succeeded, Failed, Succeeded, RolledBack, Probation];
        let devices: Vec<DeviceProgress> = states
            .into_iter()
            .map(|state| DeviceProgress {
                device: "dev-1".parse().unwrap(),
                state,
                detail: Detail::default(),
            })
            .collect();
        let bar = Bar::new(devices.iter());
        assert_eq!(
            bar.text,
            "2 succeeded, 1 probation, 1 installing, 1 failed, 1 rolled back, 1 pending"
        );
        let parts: Vec<_> = bar.segments.iter().map(|s| (s.tone, s.start, s.len)).collect();
        assert_eq!(parts, [("ok", 0, 2), ("busy", 2, 2), ("bad", 4, 2), ("idle", 6, 1)]);
        assert_eq!(bar.total, devices.len());
    }

    #[test]
    fn a_duration_has_the_unit_that_reads_well() {
        let texts = [1_300, 18_400, 600_000, 86_400_000].map(duration);
        assert_eq!(texts, ["1.3 s", "18 s", "10 min", "24 h"]);
    }
}
