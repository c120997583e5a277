//! The demo's model and its held-out windows, as test input.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The demo's model.
pub const MODEL: &str = "activity-recognition";

/// The folder of the example.
pub fn activity_recognition() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../firmware-examples/activity-recognition")
}

/// A recorded window.
#[derive(Clone, Debug)]
pub struct Window {
    /// Shape `[6, 100]`, channel by channel.
    pub samples: Vec<f32>,
    /// What its wearer did.
    pub activity: String,
}

/// The windows of the held-out file.
pub fn test_windows() -> Result<Vec<Window>> {
    let text = std::fs::read_to_string(activity_recognition().join("data/BasicMotions_TEST.ts"))?;
    let lines = text.lines().skip_while(|line| *line != "@data").skip(1);
    lines
        .map(|line| {
            let (samples, activity) = line.rsplit_once(':').context("a window has a label")?;
            let samples = samples.split([':', ',']).map(str::parse).collect::<Result<_, _>>()?;
            let activity = activity.to_owned();
            Ok(Window { samples, activity })
        })
        .collect()
}
