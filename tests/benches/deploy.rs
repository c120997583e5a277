//! How long a rollout takes from its creation until every device serves the new version.
//!
//! `cargo bench -p skerry-system-tests --bench deploy [-- ROLLOUTS]`. Five devices on loopback, the demo's bundle; no
//! probation, telemetry every minute. The time is the control plane's: from `created_at_ms` to `serving_at_ms`, when it has
//! heard of it. Goal: p50 below a second.
//!
//! Two figures: fresh devices, which must fetch all of it, and devices that go to and fro between v1 and v2, which fetch only
//! metadata once they have had both.

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use skerry_system_tests::{
    Device, Fleet,
    fixtures::MODEL,
    measure::{introduction, spread},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_skerry-under-test");
const DEVICES: [&str; 5] = ["dev-1", "dev-2", "dev-3", "dev-4", "dev-5"];
const ROLLOUTS: usize = 20;
/// Fleets of fresh devices; each costs some seconds to set up.
const FRESH: usize = 5;

fn main() -> Result<()> {
    let rollouts = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let rollouts = rollouts.unwrap_or(ROLLOUTS);
    let mut out = std::io::stdout();
    let goal = "p50 below 1000 ms from the creation of a rollout to serving on five devices";
    writeln!(out, "{}", introduction("deploy", goal))?;

    let mut fresh = Times::default();
    let mut kept = None;
    for _ in 0..FRESH {
        // The last fleet stays for the second half; its predecessors have gone.
        drop(kept.take());
        let fleet = Fleet::start(PROGRAM)?;
        let devices = start_devices(&fleet)?;
        fleet.release(1)?;
        fresh.add(&fleet, &devices, 1)?;
        kept = Some((fleet, devices));
    }
    fresh.print(&mut out, "v1 to fresh devices")?;

    let (fleet, devices) = kept.context("there was a fleet")?;
    fleet.release(2)?;
    let mut alternating = Times::default();
    for version in [2, 1].into_iter().cycle().take(rollouts) {
        alternating.add(&fleet, &devices, version)?;
    }
    alternating.print(&mut out, "v2 and v1 in turn")
}

fn start_devices(fleet: &Fleet) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for id in DEVICES {
        let mut device = fleet.enroll(id)?;
        device.arguments = vec!["--telemetry-interval".to_owned(), "60s".to_owned()];
        device.start()?;
        devices.push(device);
    }
    fleet.wait("all devices to connect", || {
        let connected = DEVICES.iter().map(|id| Ok(fleet.device(id)?["connected"] == true));
        let connected: Vec<bool> = connected.collect::<Result<_>>()?;
        Ok(connected.into_iter().all(|yes| yes).then_some(()))
    })?;
    Ok(devices)
}

/// Milliseconds of many rollouts.
#[derive(Default)]
struct Times {
    /// From creation to the last device's serving.
    rollouts: Vec<f64>,
    /// From creation to a device's serving.
    devices: Vec<f64>,
    wire_bytes: Vec<u64>,
    /// By step of the update, from the devices' logs: how long until the next one.
    steps: BTreeMap<String, Vec<f64>>,
}

impl Times {
    fn add(&mut self, fleet: &Fleet, devices: &[Device], version: u64) -> Result<()> {
        let logged: Vec<usize> = devices.iter().map(|device| device.log().len()).collect();
        let body = json!({"model": MODEL, "version": version, "groups": [{"size": "rest"}], "probation_ms": 0});
        let created = fleet.client().post("/api/v1/rollouts", &body)?;
        let id = created["id"].as_u64().context("a rollout has a number")?;
        let rollout = fleet.wait_for_rollout(id, &["finished", "stopped", "paused"])?;
        if rollout["state"] != "finished" {
            bail!("the rollout of v{version} did not finish: {rollout}");
        }
        let created = at(&rollout, "created_at_ms")?;
        let progress = rollout["groups"][0]["devices"].as_array().context("no devices")?;
        let served = progress.iter().map(|device| Ok(at(device, "serving_at_ms")? - created));
        let served: Vec<f64> = served.collect::<Result<_>>()?;
        self.rollouts.push(served.iter().copied().fold(0.0, f64::max));
        self.devices.extend(served);
        self.wire_bytes
            .extend(progress.iter().filter_map(|device| device["wire_bytes"].as_u64()));
        for (device, from) in devices.iter().zip(logged) {
            self.add_steps(&device.log()[from..])?;
        }
        Ok(())
    }

    /// Each line of the log that names a state says when it began; the next one says when it ended.
    fn add_steps(&mut self, log: &str) -> Result<()> {
        let mut before: Option<(String, Duration)> = None;
        for line in log.lines().filter(|line| line.contains("update.state=")) {
            let time = time_of_day(line).context("a line of the log has a time")?;
            let (_, state) = line.split_once("update.state=").context("no state")?;
            let state = state.trim_matches('"').to_owned();
            if let Some((step, began)) = before.replace((state, time)) {
                let took = time.saturating_sub(began).as_secs_f64() * 1000.0;
                self.steps.entry(step).or_default().push(took);
            }
        }
        Ok(())
    }

    fn print(&self, out: &mut impl Write, what: &str) -> Result<()> {
        writeln!(out, "{what}:")?;
        writeln!(out, "  last device: {}", spread(&self.rollouts, "ms"))?;
        writeln!(out, "  every device: {}", spread(&self.devices, "ms"))?;
        let (least, most) = (self.wire_bytes.iter().min(), self.wire_bytes.iter().max());
        writeln!(
            out,
            "  fetched by a device: {} to {} bytes",
            least.unwrap_or(&0),
            most.unwrap_or(&0)
        )?;
        for (step, took) in &self.steps {
            writeln!(out, "  on the device, {step}: {}", spread(took, "ms"))?;
        }
        Ok(())
    }
}

fn at(value: &Value, key: &str) -> Result<f64> {
    let ms = value[key].as_u64();
    Ok(ms.with_context(|| format!("no {key} in {value}"))? as f64)
}

/// `2026-01-02T03:04:05.678901Z …` as time since midnight; a bench over midnight has one wrong line.
fn time_of_day(line: &str) -> Option<Duration> {
    let (_, time) = line.split_whitespace().next()?.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some(Duration::from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds))
}
