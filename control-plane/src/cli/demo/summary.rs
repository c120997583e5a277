//! The figures at the end, and whether every claim has held.

use anyhow::bail;
use serde_json::{Value, json};

use super::super::output::{self, bytes, text};

/// What the demo has measured.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) devices: usize,
    pub(super) rollouts: Vec<RolloutLine>,
    /// By version: reported by the training script, measured from the devices' answers.
    pub(super) accuracies: Vec<(u64, f64, f64)>,
    pub(super) inferences: u64,
    pub(super) inference_errors: u64,
    pub(super) first_error: Option<String>,
    /// Counted by the devices, stored by the control plane.
    pub(super) points: (u64, u64),
    pub(super) bundle_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) resumed_downloads: u64,
    pub(super) deploy_ms: Vec<u64>,
    /// Claims that did not hold.
    pub(super) problems: Vec<String>,
}

/// A rollout that is over.
pub(super) struct RolloutLine {
    model: String,
    version: u64,
    state: String,
    succeeded: usize,
    rolled_back: usize,
    seconds: f64,
}

impl RolloutLine {
    pub(super) fn of(rollout: &Value) -> RolloutLine {
        let groups = rollout["groups"].as_array().into_iter().flatten();
        let devices: Vec<&Value> = groups
            .flat_map(|group| group["devices"].as_array().into_iter().flatten())
            .collect();
        let count = |state: &str| devices.iter().filter(|device| device["state"] == state).count();
        let at = |key: &str| rollout[key].as_u64().unwrap_or(0);
        RolloutLine {
            model: text(rollout, "model"),
            version: at("version"),
            state: text(rollout, "state"),
            succeeded: count("succeeded"),
            rolled_back: count("rolled_back"),
            seconds: at("ended_at_ms").saturating_sub(at("created_at_ms")) as f64 / 1000.0,
        }
    }
}

/// The middle value, the lower of two.
pub(super) fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

impl Summary {
    pub(super) fn to_json(&self) -> Value {
        let rollout = |r: &RolloutLine| {
            json!({
                "model": r.model, "version": r.version, "state": r.state, "devices_succeeded": r.succeeded,
                "devices_rolled_back": r.rolled_back, "seconds": r.seconds,
            })
        };
        // Of the version that serves in the end.
        let (reported, measured) = self.accuracies.last().map_or((0.0, 0.0), |(_, r, m)| (*r, *m));
        json!({
            "devices": self.devices,
            "rollouts": self.rollouts.iter().map(rollout).collect::<Vec<_>>(),
            "accuracy": {"reported": reported, "measured": measured},
            "inferences": self.inferences,
            "inference_errors": self.inference_errors,
            "telemetry_points": {"sent": self.points.0, "stored": self.points.1},
            "bundle_bytes": self.bundle_bytes,
            "wire_bytes": self.wire_bytes,
            "resumed_downloads": self.resumed_downloads,
            "deploy_ms_p50": median(self.deploy_ms.clone()),
        })
    }

    pub(super) fn print(&self) {
        let row = |r: &RolloutLine| {
            [
                format!("{} v{}", r.model, r.version),
                r.state.clone(),
                r.succeeded.to_string(),
                r.rolled_back.to_string(),
                format!("{:.1} s", r.seconds),
            ]
        };
        let header = ["rollout", "state", "succeeded", "rolled back", "took"];
        output::table(header, self.rollouts.iter().map(row));
        output::line("");
        let mut rows = vec![["devices".to_owned(), self.devices.to_string()]];
        for (version, reported, measured) in &self.accuracies {
            let figures = format!("{measured:.3} measured, {reported:.3} reported");
            rows.push([format!("accuracy of v{version}"), figures]);
        }
        let inferences = format!("{}, {} failed", self.inferences, self.inference_errors);
        rows.push(["inferences".to_owned(), inferences]);
        let points = format!("{} sent, {} stored", self.points.0, self.points.1);
        rows.push(["telemetry points".to_owned(), points]);
        let wire = format!("{} of {}", bytes(self.wire_bytes), bytes(self.bundle_bytes));
        rows.push(["v2 on the wire, a device".to_owned(), wire]);
        rows.push(["resumed downloads".to_owned(), self.resumed_downloads.to_string()]);
        let deploy = format!("{} ms (median of v1)", median(self.deploy_ms.clone()));
        rows.push(["rollout create to serving".to_owned(), deploy]);
        output::table(["", ""], rows);
    }

    /// Whether everything that the demo claims has held.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let mut problems = self.problems.clone();
        let mut expect = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        let ends: Vec<(&str, usize, usize)> = self
            .rollouts
            .iter()
            .map(|r| (r.state.as_str(), r.succeeded, r.rolled_back))
            .collect();
        let all = self.devices;
        let wanted = [("finished", all, 0), ("finished", all, 0), ("stopped", 0, 1)];
        expect(
            ends == wanted,
            format!("the rollouts ended as {ends:?}, not as {wanted:?}"),
        );
        for (version, reported, measured) in &self.accuracies {
            let same = (reported - measured).abs() < 1e-9;
            expect(
                same,
                format!("v{version} was reported with accuracy {reported}, measured {measured}"),
            );
        }
        let (sent, stored) = self.points;
        expect(
            sent == stored,
            format!("{sent} telemetry points were sent, {stored} are stored"),
        );
        expect(
            self.inference_errors == 0,
            format!(
                "{} inferences failed; the first: {}",
                self.inference_errors,
                self.first_error.as_deref().unwrap_or_default()
            ),
        );
        expect(self.resumed_downloads > 0, "no download was resumed".to_owned());
        match problems.is_empty() {
            true => Ok(()),
            false => bail!("not everything held:\n  - {}", problems.join("\n  - ")),
        }
    }
}
