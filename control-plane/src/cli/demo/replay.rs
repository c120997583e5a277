//! The sensors: recorded windows go to each device's local inference API at a sensor's pace, speeded up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    files::{CHANNELS, SAMPLES, Window},
    wait::Stop,
};

/// A window lasts ten seconds; here one comes every 50 ms.
pub(super) const SPEED: u32 = 200;
const PACE: Duration = Duration::from_millis(10_000 / SPEED as u64);

/// What the devices have answered.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) inferences: u64,
    pub(super) errors: u64,
    /// The first error, for the summary.
    pub(super) first_error: Option<String>,
    /// By device and model version, then by window: right or wrong.
    by_version: BTreeMap<(String, u64), BTreeMap<usize, bool>>,
}

impl Answers {
    /// How many different windows a device has answered with a version.
    pub(super) fn windows(&self, device: &str, version: u64) -> usize {
        self.by_version
            .get(&(device.to_owned(), version))
            .map_or(0, BTreeMap::len)
    }

    /// The share of right answers of a version, over all devices and windows.
    pub(super) fn accuracy(&self, version: u64) -> f64 {
        let answers = self.by_version.iter().filter(|((_, v), _)| *v == version);
        let answers: Vec<bool> = answers.flat_map(|(_, windows)| windows.values().copied()).collect();
        answers.iter().filter(|right| **right).count() as f64 / answers.len() as f64
    }
}

/// The answers of all sensors together.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Answers>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One device's sensor. It ends with the device's power, which is when this is dropped.
pub(super) struct Sensor {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Sensor {
    /// Begins to replay `windows` to the agent at `url`, again and again.
    pub(super) fn start(device: &str, url: &str, windows: Arc<Vec<Window>>, model: &str, answers: Shared) -> Sensor {
        let stop = Stop::default();
        let (stopped, device) = (stop.clone(), device.to_owned());
        let infer = format!("{url}/v2/models/{model}/infer");
        let thread = thread::spawn(move || {
            let config = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_secs(10)));
            let http: ureq::Agent = config.build().into();
            let mut next = Instant::now();
            for (position, window) in windows.iter().enumerate().cycle() {
                if stopped.is_set() {
                    return;
                }
                let answer = ask(&http, &infer, window);
                let mut answers = answers.lock();
                answers.inferences += 1;
                match answer {
                    Ok((version, label)) => {
                        let right = label == window.activity;
                        let seen = answers.by_version.entry((device.clone(), version)).or_default();
                        // The same window must get the same answer every time.
                        let same = *seen.entry(position).or_insert(right) == right;
                        if !same {
                            seen.insert(position, false);
                        }
                    }
                    Err(error) => {
                        answers.errors += 1;
                        answers.first_error.get_or_insert(format!("{device}: {error:#}"));
                    }
                }
                drop(answers);
                next += PACE;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Sensor {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One inference over the binary tensor extension: the version that answered, and its label.
fn ask(http: &ureq::Agent, url: &str, window: &Window) -> anyhow::Result<(u64, String)> {
    let data: Vec<u8> = window.samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let header = json!({
        "inputs": [{
            "name": "window", "datatype": "FP32", "shape": [1, CHANNELS, SAMPLES],
            "parameters": {"binary_data_size": data.len()},
        }],
        "outputs": [{"name": "label"}],
    });
    let mut body = serde_json::to_vec(&header).context("a header always encodes")?;
    let header_length = body.len().to_string();
    body.extend(data);
    let mut answer = http
        .post(url)
        .header("inference-header-content-length", header_length)
        .content_type("application/octet-stream")
        .send(&body[..])
        .context("the local API cannot be reached")?;
    let status = answer.status();
    let answer: Value = answer.body_mut().read_json().context("the answer is no JSON")?;
    if !status.is_success() {
        bail!("status {status}: {}", answer["error"]);
    }
    let version = answer["model_version"].as_str().and_then(|text| text.parse().ok());
    let label = answer["outputs"][0]["data"][0].as_str();
    match (version, label) {
        (Some(version), Some(label)) => Ok((version, label.to_owned())),
        _ => bail!("the answer has no label: {answer}"),
    }
}
