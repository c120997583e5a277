//! The steps of the demo, one after the other. Each waits for what it claims, from outside, through the public interfaces.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion};

use super::{
    agents::Device,
    files::{self, Window},
    narrator::Narrator,
    replay::{SPEED, Sensor, Shared},
    summary::{RolloutLine, Summary, median},
    wait::{Stop, wait_for},
};
use crate::{
    bundle::{build::SelfCheck, spec::Spec},
    cli::{
        bundle::{build_bundle, publish_bundle, sign_bundle},
        client::Client,
        keys::Secret,
        output::{bytes, text},
    },
};

const DEVICES: usize = 5;
/// The device that tries a version first, and the one behind a slow link.
const FIRST: usize = 0;
const SLOW: usize = DEVICES - 1;
/// Long enough for a crash to show in a demo; real fleets take minutes.
const PROBATION_MS: u64 = 1500;
/// Bytes per second of the slow link: some seconds for a bundle, so that a download has a middle.
const SLOW_LINK: u64 = 40_000;
/// For anything that a loaded machine does slowly.
const PATIENCE: Duration = Duration::from_secs(120);

/// The devices with their sensors.
pub(super) struct Fleet {
    devices: Vec<Device>,
    sensors: BTreeMap<usize, Sensor>,
    windows: Arc<Vec<Window>>,
    model: String,
    answers: Shared,
}

impl Fleet {
    fn switch_sensor_on(&mut self, device: usize) -> anyhow::Result<()> {
        let (id, url) = (&self.devices[device].id, self.devices[device].url()?);
        let sensor = Sensor::start(id, &url, Arc::clone(&self.windows), &self.model, self.answers.clone());
        self.sensors.insert(device, sensor);
        Ok(())
    }

    /// Waits until every device has answered every window with this version.
    fn see_all_windows(&self, version: u64, narrator: &Narrator, stop: &Stop) -> anyhow::Result<f64> {
        let total = self.windows.len();
        let progress = narrator.begin((total * DEVICES) as u64);
        wait_for("every device to answer every window", PATIENCE, stop, || {
            let answers = self.answers.lock();
            let seen = self.devices.iter().map(|device| answers.windows(&device.id, version));
            let seen: usize = seen.sum();
            progress.set(seen as u64, "windows answered by the devices");
            Ok((seen == total * DEVICES).then(|| answers.accuracy(version)))
        })
    }

    /// Keeps devices and sensors running.
    pub(super) fn go_on_until(&self, stop: &Stop) -> anyhow::Result<()> {
        while !stop.is_set() {
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// Runs all steps.
pub(super) fn run(
    client: &Client,
    folder: &Path,
    narrator: &Narrator,
    stop: &Stop,
) -> anyhow::Result<(Summary, Fleet)> {
    let files_dir = folder.join("activity-recognition");
    files::unpack(&files_dir)?;
    let publisher = Publisher {
        client,
        files_dir,
        out: folder.join("bundles"),
        keys: folder.join("keys"),
    };
    let mut fleet = start_devices(client, folder, stop)?;
    narrator.say(&format!(
        "2. {DEVICES} devices have enrolled with a one-time token and run as processes of their own."
    ));
    let mut summary = Summary {
        devices: DEVICES,
        ..Summary::default()
    };

    // The first version goes to all at once: there is nothing to lose yet.
    publisher.release(1, SelfCheck::Enforce)?;
    narrator.say(
        "3. activity-recognition v1 is registered, bundled, signed offline and published. It goes to all devices.",
    );
    let rollout = roll_out(client, 1, &["rest"], narrator, stop, &mut || Ok(()))?;
    summary.deploy_ms = deploy_ms(&rollout);
    summary.rollouts.push(RolloutLine::of(&rollout));
    for device in 0..DEVICES {
        fleet.switch_sensor_on(device)?;
    }
    let measured = fleet.see_all_windows(1, narrator, stop)?;
    summary.accuracies.push((1, files::reported_accuracy(1)?, measured));
    narrator.say(&format!(
        "   They replay the {} held-out windows at {SPEED} times the sensor's pace: accuracy {measured:.3}, the training script reported {:.3}.",
        fleet.windows.len(),
        files::reported_accuracy(1)?
    ));

    // The second one: one device first, then the rest, of which one sits behind a slow link and loses power on the way.
    let v2 = publisher.release(2, SelfCheck::Enforce)?;
    narrator.say("4. v2, a better model: one device first, then the rest. The last device's link is slow, and its power fails on the way.");
    restart_behind_slow_link(&mut fleet, stop)?;
    let mut cut = PowerCut::default();
    let rollout = roll_out(client, 2, &["label:try=first", "rest"], narrator, stop, &mut || {
        cut.look(&mut fleet, narrator, stop)
    })?;
    if !cut.done {
        summary
            .problems
            .push("the slow device finished before its power could fail".to_owned());
    }
    summary.resumed_downloads = sum(&rollout, "resumed_downloads");
    summary.bundle_bytes = v2["total_bytes"].as_u64().unwrap_or(0);
    summary.wire_bytes = median(devices(&rollout).filter_map(|d| d["wire_bytes"].as_u64()).collect());
    summary.rollouts.push(RolloutLine::of(&rollout));
    let measured = fleet.see_all_windows(2, narrator, stop)?;
    summary.accuracies.push((2, files::reported_accuracy(2)?, measured));
    narrator.say(&format!(
        "   Each device received {} of a bundle of {}; accuracy {measured:.3}, reported {:.3}.",
        bytes(summary.wire_bytes),
        bytes(summary.bundle_bytes),
        files::reported_accuracy(2)?
    ));

    // The third one is broken, and signed all the same.
    publisher.release(3, SelfCheck::Skip)?;
    narrator.say("5. v3 is broken: properly signed, but it fails its golden vectors. One device first, then the rest.");
    let before = fleet.answers.lock().inferences;
    let rollout = roll_out(client, 3, &["label:try=first", "rest"], narrator, stop, &mut || Ok(()))?;
    // It is over in a moment: each sensor has asked again by then, or asks right after.
    let asked = before + DEVICES as u64;
    wait_for("the sensors to ask again", PATIENCE, stop, || {
        Ok((fleet.answers.lock().inferences >= asked).then_some(()))
    })?;
    let during = fleet.answers.lock().inferences - before;
    summary.rollouts.push(RolloutLine::of(&rollout));
    expect_v3_stopped(&fleet, &rollout, &mut summary)?;
    narrator.say(&format!(
        "   The first device refused it and serves v2; the rollout is {}: {}. {during} inferences went on.",
        text(&rollout, "state"),
        text(&rollout, "reason"),
    ));

    count_telemetry(client, &mut fleet, narrator, stop, &mut summary)?;
    Ok((summary, fleet))
}

/// Enrols and starts the devices.
fn start_devices(client: &Client, folder: &Path, stop: &Stop) -> anyhow::Result<Fleet> {
    let labels = json!({"site": "demo"});
    let token = client.device_token(Duration::from_secs(600), DEVICES as u32, &labels)?;
    let token = text(&token, "token");
    let mut devices = Vec::with_capacity(DEVICES);
    for number in 1..=DEVICES {
        let id = format!("wrist-{number}");
        devices.push(Device::enroll(&folder.join("devices"), &id, client.server(), &token)?);
    }
    let first = format!("/api/v1/devices/{}", devices[FIRST].id);
    client.patch(&first, &json!({"labels": {"try": "first"}}))?;
    for device in &mut devices {
        device.start(stop)?;
    }
    wait_for("the devices to connect", PATIENCE, stop, || {
        let connected = client.devices("")?.iter().filter(|d| d["connected"] == true).count();
        Ok((connected == DEVICES).then_some(()))
    })?;
    Ok(Fleet {
        devices,
        sensors: BTreeMap::new(),
        windows: Arc::new(files::test_windows()?),
        model: MODEL.to_owned(),
        answers: Shared::default(),
    })
}

const MODEL: &str = "activity-recognition";

/// The publisher's side: registers, builds, signs with the offline key, publishes.
struct Publisher<'a> {
    client: &'a Client,
    files_dir: PathBuf,
    out: PathBuf,
    keys: PathBuf,
}

impl Publisher<'_> {
    fn release(&self, version: u64, self_check: SelfCheck) -> anyhow::Result<Value> {
        let spec = Spec::read(&self.files_dir.join(format!("bundle-v{version}.toml")))?;
        let onnx = std::fs::read(&spec.onnx).with_context(|| format!("cannot read {}", spec.onnx.display()))?;
        let registered = self.client.register_model(&spec.model, &onnx)?;
        if registered["version"] != version {
            bail!(
                "the model was registered as version {}, not {version}",
                registered["version"]
            );
        }
        let approve = format!("/api/v1/models/{}/versions/{version}/approve", spec.model);
        self.client.post(&approve, &json!({}))?;
        let out = self.out.join(format!("v{version}"));
        let bundle = build_bundle(self.client, &spec, None, self_check, &out)?;
        sign_bundle(self.client, &bundle, (&self.keys, &Secret::default()), None)?;
        publish_bundle(self.client, &bundle)
    }
}

/// Creates a rollout and follows it to its end; `meanwhile` is called at each look.
fn roll_out(
    client: &Client,
    version: u64,
    groups: &[&str],
    narrator: &Narrator,
    stop: &Stop,
    meanwhile: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let model: ModelName = MODEL.parse()?;
    let groups: Vec<Value> = groups.iter().map(|size| json!({"size": size})).collect();
    let body =
        json!({"model": model, "version": ModelVersion(version), "groups": groups, "probation_ms": PROBATION_MS});
    let id = client.post("/api/v1/rollouts", &body)?["id"].as_u64();
    let id = id.context("a rollout has a number")?;
    let progress = narrator.begin(DEVICES as u64);
    wait_for(&format!("the rollout of v{version}"), PATIENCE, stop, || {
        meanwhile()?;
        let rollout = client.rollout(id)?;
        let mut counts = BTreeMap::new();
        for device in devices(&rollout) {
            *counts.entry(text(device, "state")).or_insert(0_u64) += 1;
        }
        let words: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let done = counts.get("succeeded").copied().unwrap_or(0);
        progress.set(
            done,
            &format!("v{version} {}: {}", text(&rollout, "state"), words.join(", ")),
        );
        Ok(match text(&rollout, "state").as_str() {
            "finished" | "stopped" => Some(rollout),
            "paused" => bail!("the rollout paused: {}", text(&rollout, "reason")),
            _ => None,
        })
    })
}

fn devices(rollout: &Value) -> impl Iterator<Item = &Value> {
    let groups = rollout["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| group["devices"].as_array().into_iter().flatten())
}

fn sum(rollout: &Value, key: &str) -> u64 {
    devices(rollout).filter_map(|device| device[key].as_u64()).sum()
}

fn deploy_ms(rollout: &Value) -> Vec<u64> {
    let created = rollout["created_at_ms"].as_u64().unwrap_or(0);
    let serving = devices(rollout).filter_map(|device| device["serving_at_ms"].as_u64());
    serving.map(|at| at.saturating_sub(created)).collect()
}

fn restart_behind_slow_link(fleet: &mut Fleet, stop: &Stop) -> anyhow::Result<()> {
    fleet.sensors.remove(&SLOW);
    let device = &mut fleet.devices[SLOW];
    device.kill()?;
    device.bandwidth = Some(SLOW_LINK);
    start_and_serve(device, stop)?;
    fleet.switch_sensor_on(SLOW)
}

/// Starts a device and waits until its model serves again.
fn start_and_serve(device: &mut Device, stop: &Stop) -> anyhow::Result<()> {
    device.start(stop)?;
    let url = format!("{}/v2/models/{MODEL}/ready", device.url()?);
    let what = format!("{} to serve again", device.id);
    wait_for(&what, PATIENCE, stop, || Ok(ureq::get(&url).call().ok().map(|_| ())))
}

/// Kills the slow device in the middle of its download and starts it again.
#[derive(Default)]
struct PowerCut {
    /// Bytes that were there when the download began: what earlier bundles had brought.
    began_with: Option<u64>,
    done: bool,
}

impl PowerCut {
    fn look(&mut self, fleet: &mut Fleet, narrator: &Narrator, stop: &Stop) -> anyhow::Result<()> {
        if self.done {
            return Ok(());
        }
        let update = fleet.devices[SLOW].status()?["update"].take();
        let (have, total) = (update["have_bytes"].as_u64(), update["total_bytes"].as_u64());
        let (Some(have), Some(total), Some("download")) = (have, total, update["state"].as_str()) else {
            return Ok(());
        };
        let began_with = *self.began_with.get_or_insert(have);
        if have <= began_with || have >= total {
            return Ok(());
        }
        self.done = true;
        // The sensor sits on the same board.
        fleet.sensors.remove(&SLOW);
        fleet.devices[SLOW].kill()?;
        start_and_serve(&mut fleet.devices[SLOW], stop)?;
        fleet.switch_sensor_on(SLOW)?;
        narrator.say(&format!(
            "   {} lost its power with {} of {} on disk; it has started again, serves v1 and goes on with its download.",
            fleet.devices[SLOW].id,
            bytes(have),
            bytes(total)
        ));
        Ok(())
    }
}

fn expect_v3_stopped(fleet: &Fleet, rollout: &Value, summary: &mut Summary) -> anyhow::Result<()> {
    let mut expect = |holds: bool, claim: &str| {
        if !holds {
            summary.problems.push(claim.to_owned());
        }
    };
    for device in devices(rollout) {
        if text(device, "device") == fleet.devices[FIRST].id {
            let code = text(&device["error"], "code");
            expect(
                code == "golden_mismatch",
                "the first device refuses v3 by its golden vectors",
            );
        } else {
            expect(
                text(device, "state") == "pending",
                "no device of the second group sees v3",
            );
        }
    }
    for device in &fleet.devices {
        let status = device.status()?;
        let serves = status["bundles"].as_array().into_iter().flatten();
        let serves: Vec<&Value> = serves
            .filter(|b| b["slot"] == "current")
            .map(|b| &b["version"])
            .collect();
        expect(serves == [&json!(2)], "every device serves v2 after v3 has failed");
    }
    Ok(())
}

/// Waits until the devices have nothing left to send, and compares what they counted with what is stored.
fn count_telemetry(
    client: &Client,
    fleet: &mut Fleet,
    narrator: &Narrator,
    stop: &Stop,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    narrator.say("6. Telemetry: every point that a device has counted is stored once, power cut or not.");
    let count = |status: &Value, key: &str| status["telemetry"][key].as_u64().unwrap_or(0);
    let (mut sent, mut stored) = (0, 0);
    for device in &fleet.devices {
        let what = format!("the telemetry of {}", device.id);
        let (recorded, there) = wait_for(&what, PATIENCE, stop, || {
            let before = device.status()?;
            let totals = client.get("/api/v1/telemetry/totals")?;
            let there = totals["per_device"].as_array().into_iter().flatten();
            let there = there.filter(|d| d["device"] == device.id.as_str());
            let there = there.filter_map(|d| d["points"].as_u64()).sum::<u64>();
            let after = device.status()?;
            let recorded = count(&before, "points_recorded");
            // Between two frames nothing is under way, and both sides can be compared.
            let quiet = [&before, &after].iter().all(|s| count(s, "frames_pending") == 0);
            let same = recorded == count(&after, "points_recorded");
            Ok((quiet && same && recorded > 0).then_some((recorded, there)))
        })?;
        sent += recorded;
        stored += there;
    }
    summary.points = (sent, stored);
    let answers = fleet.answers.lock();
    summary.inferences = answers.inferences;
    summary.inference_errors = answers.errors;
    summary.first_error.clone_from(&answers.first_error);
    Ok(())
}
