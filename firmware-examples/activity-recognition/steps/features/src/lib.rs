//! The pipeline step before the classifier: a window of samples in, features out.
//!
//! It checks the tensor and leaves the arithmetic to [`extract`]. It imports no function: no clock, files or randomness.
//! Invariant: whatever comes in, `process` gives either [`FEATURES`] finite numbers or an error that says what was wrong.

pub mod extract;

use std::cell::RefCell;

use bindings::skerry::pipeline::types::{Datatype, TensorMetadata};
pub use bindings::{Description, Error, Guest, Parameter, Tensor};
use extract::{CHANNELS, Extractor, FEATURES, SAMPLES};

/// The WIT world of a pipeline step.
#[allow(missing_docs, unused_qualifications)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../agent/inference/wit", world: "step" });
}

const WINDOW_SHAPE: [u64; 3] = [1, CHANNELS as u64, SAMPLES as u64];

thread_local! {
    /// Set by `configure`. A component instance has one thread.
    static EXTRACTOR: RefCell<Option<Extractor>> = const { RefCell::new(None) };
}

/// The step itself: what the host calls.
#[derive(Debug)]
pub struct Step;

impl Guest for Step {
    fn configure(parameters: Vec<Parameter>) -> Result<(), Error> {
        let extractor = Extractor::new(parse_scale(&parameters)?);
        EXTRACTOR.set(Some(extractor));
        Ok(())
    }

    fn describe() -> Description {
        let fp32 = |name: &str, shape| TensorMetadata {
            name: name.into(),
            datatype: Datatype::Fp32,
            shape,
        };
        Description {
            inputs: vec![fp32("window", WINDOW_SHAPE.map(|n| n as i64).to_vec())],
            outputs: vec![fp32("features", vec![1, FEATURES as i64])],
        }
    }

    fn process(inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        EXTRACTOR.with_borrow(|extractor| {
            let Some(extractor) = extractor else {
                return Err(Error::Failed("the step was not configured".into()));
            };
            let features = extractor.extract(&read_window(&inputs)?);
            if !features.iter().all(|feature| feature.is_finite()) {
                return Err(invalid_input(
                    "window: values are too large, a feature does not fit into FP32",
                ));
            }
            Ok(vec![Tensor {
                name: "features".into(),
                datatype: Datatype::Fp32,
                shape: vec![1, FEATURES as u64],
                data: features.iter().flat_map(|feature| feature.to_le_bytes()).collect(),
            }])
        })
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Step with_types_in bindings);

fn parse_scale(parameters: &[Parameter]) -> Result<[f64; CHANNELS], Error> {
    let [Parameter { name, value }] = parameters else {
        return Err(invalid_parameter(format!(
            "expected channel_scale alone, got {} parameters",
            parameters.len()
        )));
    };
    if name != "channel_scale" {
        return Err(invalid_parameter(format!("{name}: unknown, expected channel_scale")));
    }
    let scale: Vec<f64> = value
        .split(',')
        .map(|number| number.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0))
        .collect::<Option<_>>()
        .ok_or_else(|| invalid_parameter("channel_scale: expected numbers above 0, divided by commas"))?;
    let count = scale.len();
    scale
        .try_into()
        .map_err(|_| invalid_parameter(format!("channel_scale: expected {CHANNELS} numbers, got {count}")))
}

fn read_window(inputs: &[Tensor]) -> Result<[f32; CHANNELS * SAMPLES], Error> {
    let [window] = inputs else {
        return Err(invalid_input(format!(
            "expected one tensor, window, got {}",
            inputs.len()
        )));
    };
    if window.name != "window" {
        return Err(invalid_input(format!(
            "{}: unknown tensor, expected window",
            window.name
        )));
    }
    if window.datatype != Datatype::Fp32 {
        return Err(invalid_input(format!(
            "window: expected datatype FP32, got {:?}",
            window.datatype
        )));
    }
    if window.shape != WINDOW_SHAPE {
        return Err(invalid_input(format!(
            "window: expected shape {WINDOW_SHAPE:?}, got {:?}",
            window.shape
        )));
    }
    let mut samples = [0.0; CHANNELS * SAMPLES];
    if window.data.len() != size_of_val(&samples) {
        let (got, want) = (window.data.len(), size_of_val(&samples));
        return Err(invalid_input(format!(
            "window: expected {want} bytes of data, got {got}"
        )));
    }
    for (i, (sample, bytes)) in samples.iter_mut().zip(window.data.chunks_exact(4)).enumerate() {
        *sample = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if !sample.is_finite() {
            let (channel, at) = (i / SAMPLES, i % SAMPLES);
            return Err(invalid_input(format!(
                "window: sample {at} of channel {channel} is not a finite number"
            )));
        }
    }
    Ok(samples)
}

fn invalid_input(message: impl Into<String>) -> Error {
    Error::InvalidInput(message.into())
}

fn invalid_parameter(message: impl Into<String>) -> Error {
    Error::InvalidParameter(message.into())
}

#[cfg(test)]
mod tests;
