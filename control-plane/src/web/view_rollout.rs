//! What the templates show of rollouts. See [`super::view`].

use std::collections::BTreeMap;

use skerry_shared::{desired::UpdateStatus, id::DeviceId};

use super::view::{ErrorView, Moment, Progress, Status, status};
use crate::{
    cli::output::bytes,
    devices::Device,
    rollouts::{DeviceProgress, DeviceState, Group, Rollout, RolloutState},
};

/// A rollout as the list shows it.
pub(super) struct RolloutRow {
    pub(super) id: u64,
    pub(super) model: String,
    pub(super) version: u64,
    pub(super) state: Status,
    pub(super) reason: String,
    pub(super) bar: Bar,
    pub(super) created: Moment,
}

impl RolloutRow {
    /// The row of a rollout.
    pub(super) fn new(rollout: &Rollout, now_ms: u64) -> RolloutRow {
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
pub(super) struct RolloutView {
    pub(super) row: RolloutRow,
    pub(super) selector: String,
    pub(super) probation: String,
    pub(super) silent_after: String,
    pub(super) ended: Option<Moment>,
    pub(super) can_pause: bool,
    pub(super) resume: Option<&'static str>,
    pub(super) can_abort: bool,
    pub(super) groups: Vec<GroupView>,
}

/// A deployment group.
pub(super) struct GroupView {
    pub(super) name: String,
    pub(super) rule: String,
    pub(super) accepted: bool,
    pub(super) bar: Bar,
    pub(super) devices: Vec<ProgressRow>,
}

/// A device in a rollout.
pub(super) struct ProgressRow {
    pub(super) device: String,
    pub(super) state: Status,
    pub(super) progress: Option<Progress>,
    pub(super) error: Option<ErrorView>,
    pub(super) wire: String,
    pub(super) resumed_downloads: u32,
    pub(super) took: String,
}

impl RolloutView {
    /// The page of a rollout. `devices` may be more than those of the rollout.
    pub(super) fn new(rollout: &Rollout, devices: &[Device], now_ms: u64) -> RolloutView {
        let for_this = |device: &'_ &Device| {
            let update = device.reported.as_ref().map(|reported| &reported.update);
            update.is_some_and(|update| update.rollout == Some(rollout.id))
        };
        let updates: BTreeMap<&DeviceId, &UpdateStatus> = devices
            .iter()
            .filter(for_this)
            .filter_map(|device| Some((&device.id, &device.reported.as_ref()?.update)))
            .collect();
        use RolloutState::{Draft, Finished, Paused, Ready, Running, Stopped, Stopping};
        RolloutView {
            row: RolloutRow::new(rollout, now_ms),
            selector: String::from(rollout.selector.clone()),
            probation: duration(u64::from(rollout.probation_ms)),
            silent_after: duration(rollout.silent_after_ms),
            ended: rollout.ended_at_ms.map(|at| Moment::new(at, now_ms)),
            can_pause: matches!(rollout.state, Ready | Running),
            resume: match rollout.state {
                Draft => Some("Start"),
                Paused => Some("Resume"),
                Ready | Running | Finished | Stopping | Stopped => None,
            },
            can_abort: matches!(rollout.state, Draft | Ready | Running | Paused),
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
                "Size {}. Passes when {} % succeed, stops the rollout when more than {} % fail.",
                rule.size, rule.success_percent, rule.error_percent
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
pub(super) struct Bar {
    pub(super) total: usize,
    pub(super) segments: Vec<Segment>,
    pub(super) text: String,
}

/// A run of devices that look the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) tone: &'static str,
}

impl Bar {
    /// The bar of these devices: what is done first, what is to do last.
    pub(super) fn new<'a>(devices: impl Iterator<Item = &'a DeviceProgress>) -> Bar {
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
