//! The bodies of inference requests and answers, in JSON and with the binary tensor extension. Pure.
//!
//! Binary: a JSON header, then the tensors' data one after the other; the header's length travels in a header field.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use skerry_shared::oip::{Datatype, Tensor, TensorError};

/// The header field that says where the JSON ends.
pub(crate) const HEADER_LENGTH: &str = "inference-header-content-length";

/// Why a body was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request is no inference request: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the JSON header is said to have {said} bytes, the body has {got}")]
    HeaderLength { said: usize, got: usize },
    #[error("input `{0}` has neither data nor binary_data_size")]
    NoData(String),
    #[error("the binary data of input `{0}` goes beyond the body")]
    Truncated(String),
    #[error("{0} bytes of binary data belong to no input")]
    Trailing(usize),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error("there is no output `{0}`")]
    UnknownOutput(String),
}

/// A request as the pipeline needs it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: Option<String>,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) wanted: Wanted,
}

/// Which outputs the client wants, and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of them.
    All { binary: bool },
    /// These, in this order.
    Some(Vec<(String, bool)>),
}

#[derive(Deserialize)]
struct RequestJson<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(borrow)]
    inputs: Vec<InputJson<'a>>,
    #[serde(default)]
    outputs: Vec<OutputJson>,
}

#[derive(Deserialize)]
struct InputJson<'a> {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    #[serde(default)]
    parameters: Map<String, Value>,
    /// Not parsed here: it goes straight into the tensor.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputJson {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Reads a request; `json_length` is the header field, if it was there.
pub(crate) fn parse_request(body: &[u8], json_length: Option<usize>) -> Result<Request, BodyError> {
    let said = json_length.unwrap_or(body.len());
    let (json, mut binary) = body
        .split_at_checked(said)
        .ok_or(BodyError::HeaderLength { said, got: body.len() })?;
    let request: RequestJson<'_> = serde_json::from_slice(json)?;
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        let size = input.parameters.get("binary_data_size").and_then(Value::as_u64);
        inputs.push(match (size, input.data) {
            (Some(size), None) => {
                let split = usize::try_from(size)
                    .ok()
                    .and_then(|size| binary.split_at_checked(size));
                let (data, rest) = split.ok_or_else(|| BodyError::Truncated(input.name.clone()))?;
                binary = rest;
                Tensor::new(input.name, input.datatype, input.shape, data.to_vec())?
            }
            (_, Some(data)) => Tensor::from_json(input.name, input.datatype, input.shape, data)?,
            (None, None) => return Err(BodyError::NoData(input.name)),
        });
    }
    if !binary.is_empty() {
        return Err(BodyError::Trailing(binary.len()));
    }
    let flag = |parameters: &Map<String, Value>, key: &str| parameters.get(key).and_then(Value::as_bool);
    let default = flag(&request.parameters, "binary_data_output").unwrap_or(false);
    let wanted = match request.outputs.is_empty() {
        true => Wanted::All { binary: default },
        false => {
            let output = |o: OutputJson| (o.name, flag(&o.parameters, "binary_data").unwrap_or(default));
            Wanted::Some(request.outputs.into_iter().map(output).collect())
        }
    };
    Ok(Request {
        id: request.id,
        inputs,
        wanted,
    })
}

/// An answer on its way out. Written straight into the body: no tree of values in between.
#[derive(Serialize)]
struct ResponseOut<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<OutputOut<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum OutputOut<'a> {
    Json(&'a Tensor),
    Binary {
        name: &'a str,
        datatype: Datatype,
        shape: &'a [usize],
        parameters: BinarySize,
    },
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// What the pipeline answered.
pub(crate) struct Answer<'a> {
    pub(crate) model: &'a str,
    pub(crate) version: &'a str,
    pub(crate) id: Option<String>,
    pub(crate) outputs: Vec<Tensor>,
}

/// An encoded answer; `json_length` goes into the header field, if there is binary data.
pub(crate) struct Encoded {
    pub(crate) body: Vec<u8>,
    pub(crate) json_length: Option<usize>,
}

/// Encodes the wanted outputs.
pub(crate) fn encode_response(mut answer: Answer<'_>, wanted: &Wanted) -> Result<Encoded, BodyError> {
    let mut chosen = Vec::new();
    match wanted {
        Wanted::All { binary } => chosen.extend(answer.outputs.into_iter().map(|tensor| (tensor, *binary))),
        Wanted::Some(names) => {
            for (name, binary) in names {
                let position = answer.outputs.iter().position(|tensor| tensor.name() == name);
                let position = position.ok_or_else(|| BodyError::UnknownOutput(name.clone()))?;
                chosen.push((answer.outputs.remove(position), *binary));
            }
        }
    }
    let outputs = chosen.iter().map(|(tensor, as_binary)| match as_binary {
        true => OutputOut::Binary {
            name: tensor.name(),
            datatype: tensor.datatype(),
            shape: tensor.shape(),
            parameters: BinarySize {
                binary_data_size: tensor.data().len(),
            },
        },
        false => OutputOut::Json(tensor),
    });
    let response = ResponseOut {
        model_name: answer.model,
        model_version: answer.version,
        id: answer.id,
        outputs: outputs.collect(),
    };
    let mut body = serde_json::to_vec(&response)?;
    let any_binary = chosen.iter().any(|(_, as_binary)| *as_binary);
    let json_length = any_binary.then_some(body.len());
    for (tensor, _) in chosen.iter().filter(|(_, as_binary)| *as_binary) {
        body.extend_from_slice(tensor.data());
    }
    Ok(Encoded { body, json_length })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn binary_request(blob: &[u8], said: usize) -> (Vec<u8>, usize) {
        let json = json!({"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": said}}]});
        let mut body = serde_json::to_vec(&json).unwrap();
        let length = body.len();
        body.extend_from_slice(blob);
        (body, length)
    }

    fn answer() -> Answer<'static> {
        let outputs = vec![
            Tensor::from_f32("a", vec![1], &[1.5]).unwrap(),
            Tensor::from_f32("b", vec![1], &[2.5]).unwrap(),
        ];
        Answer {
            model: "m",
            version: "1",
            id: Some("7".to_owned()),
            outputs,
        }
    }

    #[test]
    fn binary_inputs_are_the_bytes_after_the_header() {
        let blob: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let (body, length) = binary_request(&blob, 8);
        let request = parse_request(&body, Some(length)).unwrap();
        assert_eq!(request.inputs[0].to_f32().unwrap(), [1.0, 2.0]);
        assert_eq!(request.id.as_deref(), Some("7"));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let (body, length) = binary_request(&[0; 8], 8);
        assert!(matches!(
            parse_request(&body, Some(body.len() + 1)),
            Err(BodyError::HeaderLength { .. })
        ));
        assert!(matches!(
            parse_request(&body[..body.len() - 1], Some(length)),
            Err(BodyError::Truncated(_))
        ));
        let (body, length) = binary_request(&[0; 9], 8);
        assert!(matches!(
            parse_request(&body, Some(length)),
            Err(BodyError::Trailing(1))
        ));
    }

    #[test]
    fn outputs_are_chosen_and_ordered_by_the_client() {
        let wanted = Wanted::Some(vec![("b".to_owned(), true), ("a".to_owned(), false)]);
        let encoded = encode_response(answer(), &wanted).unwrap();
        let (json, binary) = encoded.body.split_at(encoded.json_length.unwrap());
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["name"], "b");
        assert_eq!(json["outputs"][1]["data"], json!([1.5]));
        assert_eq!(binary, 2.5_f32.to_le_bytes());
    }

    #[test]
    fn an_unknown_output_is_named() {
        let wanted = Wanted::Some(vec![("c".to_owned(), false)]);
        assert!(matches!(encode_response(answer(), &wanted), Err(BodyError::UnknownOutput(name)) if name == "c"));
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200), length in prop::option::of(0..300_usize)) {
            let _ = parse_request(&body, length);
        }
    }
}
