//! The demo's model and its held-out windows, as test input.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::protobuf::{bytes, number};

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

/// A tensor of [`identity_model`]: `x0` gives `y0`, `x1` gives `y1`, and so on.
#[derive(Clone, Copy, Debug)]
pub struct IdentityTensor {
    /// The protocol's name for its datatype.
    pub datatype: &'static str,
    /// ONNX's number for it.
    pub element_type: u64,
    /// How many elements it has; the shape is `[1, length]`.
    pub length: u64,
}

/// An ONNX file that gives back what it gets.
pub fn identity_model(tensors: &[IdentityTensor]) -> Vec<u8> {
    let dimension = |length: u64| bytes(1, &number(1, length));
    let value = |name: &str, tensor: &IdentityTensor| {
        let shape = bytes(2, &[dimension(1), dimension(tensor.length)].concat());
        let kind = bytes(1, &[number(1, tensor.element_type), shape].concat());
        [bytes(1, name.as_bytes()), bytes(2, &kind)].concat()
    };
    let mut graph = bytes(2, b"identity");
    for (at, tensor) in tensors.iter().enumerate() {
        let (x, y) = (format!("x{at}"), format!("y{at}"));
        let node = [bytes(1, x.as_bytes()), bytes(2, y.as_bytes()), bytes(4, b"Identity")];
        graph.extend(bytes(1, &node.concat()));
        graph.extend(bytes(11, &value(&x, tensor)));
        graph.extend(bytes(12, &value(&y, tensor)));
    }
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 13))].concat()
}
