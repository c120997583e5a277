//! The pipeline step after the classifier: probabilities in; the most probable label, its probability and all
//! probabilities out.
//!
//! It imports no function. Invariant: `label` is always one of the configured labels, `confidence` the probability of it.

use std::cell::RefCell;

use bindings::skerry::pipeline::types::{Datatype, TensorMetadata};
pub use bindings::{Description, Error, Guest, Parameter, Tensor};

/// The WIT world of a pipeline step.
#[allow(missing_docs, unused_qualifications)]
mod bindings {
    wit_bindgen::generate!({ path: "../../../../agent/inference/wit", world: "step" });
}

/// More classes than this is a mistake in the parameter.
const MAX_LABELS: usize = 1024;
/// What rounding may add to a probability of 1, or take from one of 0.
const SLACK: f32 = 1e-3;

thread_local! {
    /// Set by `configure`. A component instance has one thread.
    static LABELS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The step itself: what the host calls.
#[derive(Debug)]
pub struct Step;

impl Guest for Step {
    fn configure(parameters: Vec<Parameter>) -> Result<(), Error> {
        LABELS.set(parse_labels(&parameters)?);
        Ok(())
    }

    fn describe() -> Description {
        let metadata = |name: &str, datatype, shape| TensorMetadata {
            name: name.into(),
            datatype,
            shape,
        };
        // Before `configure` the number of classes is not known.
        let classes = LABELS.with_borrow(|labels| if labels.is_empty() { -1 } else { labels.len() as i64 });
        let probabilities = metadata("probabilities", Datatype::Fp32, vec![1, classes]);
        Description {
            inputs: vec![probabilities.clone()],
            outputs: vec![
                metadata("label", Datatype::Bytes, vec![1]),
                metadata("confidence", Datatype::Fp32, vec![1]),
                probabilities,
            ],
        }
    }

    fn process(inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        LABELS.with_borrow(|labels| {
            if labels.is_empty() {
                return Err(Error::Failed("the step was not configured".into()));
            }
            let [probabilities] = <[Tensor; 1]>::try_from(inputs)
                .map_err(|inputs| invalid_input(format!("expected one tensor, probabilities, got {}", inputs.len())))?;
            let values = read_probabilities(&probabilities, labels.len())?;
            let mut best = 0;
            for (i, value) in values.iter().enumerate() {
                if *value > values[best] {
                    best = i;
                }
            }
            Ok(vec![
                label_tensor(&labels[best]),
                confidence_tensor(values[best]),
                probabilities,
            ])
        })
    }
}

#[cfg(target_arch = "wasm32")]
bindings::export!(Step with_types_in bindings);

fn parse_labels(parameters: &[Parameter]) -> Result<Vec<String>, Error> {
    let [Parameter { name, value }] = parameters else {
        return Err(invalid_parameter(format!(
            "expected labels alone, got {} parameters",
            parameters.len()
        )));
    };
    if name != "labels" {
        return Err(invalid_parameter(format!("{name}: unknown, expected labels")));
    }
    let labels: Vec<String> = value.split(',').map(|label| label.trim().to_owned()).collect();
    if labels.len() > MAX_LABELS {
        return Err(invalid_parameter(format!("labels: more than {MAX_LABELS}")));
    }
    for (i, label) in labels.iter().enumerate() {
        if label.is_empty() {
            return Err(invalid_parameter(format!("labels: number {} is empty", i + 1)));
        }
        if labels[..i].contains(label) {
            return Err(invalid_parameter(format!("labels: {label} is there twice")));
        }
    }
    Ok(labels)
}

fn read_probabilities(tensor: &Tensor, classes: usize) -> Result<Vec<f32>, Error> {
    if tensor.name != "probabilities" {
        return Err(invalid_input(format!(
            "{}: unknown tensor, expected probabilities",
            tensor.name
        )));
    }
    if tensor.datatype != Datatype::Fp32 {
        return Err(invalid_input(format!(
            "probabilities: expected datatype FP32, got {:?}",
            tensor.datatype
        )));
    }
    if tensor.shape != [1, classes as u64] {
        return Err(invalid_input(format!(
            "probabilities: expected shape [1, {classes}], got {:?}",
            tensor.shape
        )));
    }
    if tensor.data.len() != classes * 4 {
        let (got, want) = (tensor.data.len(), classes * 4);
        return Err(invalid_input(format!(
            "probabilities: expected {want} bytes of data, got {got}"
        )));
    }
    let values: Vec<f32> = tensor
        .data
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    // NaN is in no range.
    match values.iter().position(|value| !(-SLACK..=1.0 + SLACK).contains(value)) {
        Some(class) => Err(invalid_input(format!(
            "probabilities: number {class} is not between 0 and 1"
        ))),
        None => Ok(values),
    }
}

fn label_tensor(label: &str) -> Tensor {
    let mut data = (label.len() as u32).to_le_bytes().to_vec();
    data.extend_from_slice(label.as_bytes());
    Tensor {
        name: "label".into(),
        datatype: Datatype::Bytes,
        shape: vec![1],
        data,
    }
}

fn confidence_tensor(confidence: f32) -> Tensor {
    let data = confidence.to_le_bytes().to_vec();
    Tensor {
        name: "confidence".into(),
        datatype: Datatype::Fp32,
        shape: vec![1],
        data,
    }
}

fn invalid_input(message: impl Into<String>) -> Error {
    Error::InvalidInput(message.into())
}

fn invalid_parameter(message: impl Into<String>) -> Error {
    Error::InvalidParameter(message.into())
}

#[cfg(test)]
mod tests;
