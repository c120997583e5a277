//! The demo's files, inside the binary: it runs from any folder. They are those of `firmware-examples/activity-recognition`.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde_json::Value;

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/../firmware-examples/activity-recognition/", $path
        )))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "bundle-v1.toml",
    "bundle-v2.toml",
    "bundle-v3.toml",
    "models/v1/model.onnx",
    "models/v1/golden.json",
    "models/v1/metrics.json",
    "models/v1/reference.json",
    "models/v2/model.onnx",
    "models/v2/golden.json",
    "models/v2/metrics.json",
    "models/v2/reference.json",
    "models/v3/model.onnx",
    "models/v3/golden.json",
    "models/v3/metrics.json",
    "models/v3/reference.json",
    "steps/features.wasm",
    "steps/label.wasm",
];

/// Windows that no model was trained on.
const TEST_FILE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../firmware-examples/activity-recognition/data/BasicMotions_TEST.ts"
));

/// The tensor `window` has shape `[1, CHANNELS, SAMPLES]`.
pub(super) const CHANNELS: usize = 6;
pub(super) const SAMPLES: usize = 100;

/// Writes the files for `bundle build`.
pub(super) fn unpack(folder: &Path) -> anyhow::Result<()> {
    for (path, content) in FILES {
        let path = folder.join(path);
        let parent = path.parent().context("a file has a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What the training script measured on the held-out file.
pub(super) fn reported_accuracy(version: u64) -> anyhow::Result<f64> {
    let path = format!("models/v{version}/metrics.json");
    let file = FILES.iter().find(|(name, _)| *name == path);
    let (_, content) = file.with_context(|| format!("there is no {path}"))?;
    let metrics: Value = serde_json::from_slice(content).with_context(|| format!("{path} is damaged"))?;
    metrics["accuracy"]
        .as_f64()
        .with_context(|| format!("{path} has no accuracy"))
}

/// A recorded window of the wrist sensor, and what its wearer did.
pub(super) struct Window {
    /// Channel by channel, 10 samples a second.
    pub(super) samples: Vec<f32>,
    pub(super) activity: String,
}

/// The held-out windows.
pub(super) fn test_windows() -> anyhow::Result<Vec<Window>> {
    let lines = TEST_FILE.lines().skip_while(|line| *line != "@data").skip(1);
    let windows: Vec<Window> = lines.map(parse_window).collect::<anyhow::Result<_>>()?;
    if windows.is_empty() {
        bail!("the test file has no windows");
    }
    Ok(windows)
}

fn parse_window(line: &str) -> anyhow::Result<Window> {
    let (channels, activity) = line.rsplit_once(':').context("a window has a label")?;
    let samples: Vec<f32> = channels
        .split([':', ','])
        .map(|value| value.trim().parse().with_context(|| format!("`{value}` is no sample")))
        .collect::<anyhow::Result<_>>()?;
    if samples.len() != CHANNELS * SAMPLES {
        bail!("a window has {} samples", samples.len());
    }
    Ok(Window {
        samples,
        activity: activity.trim().to_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_test_file_has_ten_windows_of_each_activity() {
        let windows = test_windows().unwrap();
        for activity in ["Standing", "Running", "Walking", "Badminton"] {
            assert_eq!(windows.iter().filter(|w| w.activity == activity).count(), 10);
        }
    }
}
