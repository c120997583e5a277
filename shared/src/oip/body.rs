//! The bodies of inference requests and answers over HTTP, in JSON and with the binary tensor extension.
//!
//! Binary: a JSON header, then the tensors' data one after the other; the header's length travels in a header field. The
//! bytes may be anybody's. Invariant: what is made of a body takes a small multiple of its size, whatever it says.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Datatype, Tensor, TensorError, TensorMetadata};

/// The header field that says where the JSON ends.
pub const HEADER_LENGTH: &str = "inference-header-content-length";

/// Tensors of a request, in or out: a list of empty ones would take more memory than the text that asks for it.
const TENSORS: usize = 256;
/// Dimensions of a tensor: no model has more, and each takes eight bytes where the text has two.
const DIMENSIONS: usize = 32;

/// Why a body was refused.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Not JSON, or not of the protocol's form.
    #[error("the request is no inference request: {0}")]
    Json(#[from] serde_json::Error),
    /// The header field does not fit the body.
    #[error("the JSON header is said to have {said} bytes, the body has {got}")]
    HeaderLength {
        /// What the header field says.
        said: usize,
        /// The whole body.
        got: usize,
    },
    /// An input without data.
    #[error("input `{0}` has neither data nor binary_data_size (shared memory is not supported)")]
    NoData(String),
    /// An input with data of both kinds.
    #[error("input `{0}` has both data and binary_data_size")]
    TwiceData(String),
    /// Less binary data than the inputs say.
    #[error("the binary data of input `{0}` goes beyond the body")]
    Truncated(String),
    /// More binary data than the inputs say.
    #[error("{0} bytes of binary data belong to no input")]
    Trailing(usize),
    /// An input that is malformed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An output that the model does not give.
    #[error("there is no output `{0}`")]
    UnknownOutput(String),
    /// An output that is asked for twice.
    #[error("output `{0}` is asked for twice")]
    RepeatedOutput(String),
    /// An extension that is not here.
    #[error("output `{0}`: classification is not supported, ask for the tensor itself")]
    Classification(String),
    /// An extension that is not here.
    #[error("output `{0}`: shared memory is not supported")]
    SharedMemory(String),
}

/// A request as the pipeline needs it.
#[derive(Debug)]
pub struct Request {
    /// Echoed in the answer.
    pub id: Option<String>,
    /// The inputs.
    pub inputs: Vec<Tensor>,
    /// The outputs.
    pub wanted: Wanted,
    /// How long the client is ready to wait for its answer, if it says so.
    pub timeout: Option<Duration>,
}

/// Which outputs the client wants, and how.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All {
        /// After the JSON and not in it.
        binary: bool,
    },
    /// These, in this order; true means binary.
    Some(Vec<(String, bool)>),
}

impl Wanted {
    /// Checks what is asked for against what the model gives, before it runs.
    ///
    /// # Errors
    /// [`BodyError::UnknownOutput`] or [`BodyError::RepeatedOutput`] by name.
    pub fn check(&self, outputs: &[TensorMetadata]) -> Result<(), BodyError> {
        let Wanted::Some(names) = self else { return Ok(()) };
        for (position, (name, _)) in names.iter().enumerate() {
            if !outputs.iter().any(|output| output.name == *name) {
                return Err(BodyError::UnknownOutput(name.clone()));
            }
            if names[..position].iter().any(|(other, _)| other == name) {
                return Err(BodyError::RepeatedOutput(name.clone()));
            }
        }
        Ok(())
    }

    /// The wanted ones of a model's outputs, with the form each shall have: true means binary.
    ///
    /// # Errors
    /// [`BodyError::UnknownOutput`] by name.
    pub fn choose(&self, mut outputs: Vec<Tensor>) -> Result<Vec<(Tensor, bool)>, BodyError> {
        match self {
            Wanted::All { binary } => Ok(outputs.into_iter().map(|tensor| (tensor, *binary)).collect()),
            Wanted::Some(names) => {
                let take = |(name, binary): &(String, bool)| {
                    let position = outputs.iter().position(|tensor| tensor.name() == name);
                    let position = position.ok_or_else(|| BodyError::UnknownOutput(name.clone()))?;
                    Ok((outputs.swap_remove(position), *binary))
                };
                names.iter().map(take).collect()
            }
        }
    }
}

#[derive(Deserialize)]
struct RequestJson<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: RequestParameters,
    #[serde(borrow, deserialize_with = "at_most::<_, _, TENSORS>")]
    inputs: Vec<InputJson<'a>>,
    #[serde(default, deserialize_with = "at_most::<_, _, TENSORS>")]
    outputs: Vec<OutputJson>,
}

/// What we know of a request's parameters; clients send more, which is skipped and takes no memory.
#[derive(Default, Deserialize)]
struct RequestParameters {
    binary_data_output: Option<bool>,
    /// Microseconds; 0 is no limit.
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct InputJson<'a> {
    name: String,
    datatype: Datatype,
    #[serde(deserialize_with = "at_most::<_, _, DIMENSIONS>")]
    shape: Vec<usize>,
    #[serde(default)]
    parameters: InputParameters,
    /// Not parsed here: it goes straight into the tensor.
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct InputParameters {
    binary_data_size: Option<usize>,
}

#[derive(Deserialize)]
struct OutputJson {
    name: String,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<u64>,
    shared_memory_region: Option<String>,
}

/// Reads a list and gives up as soon as it is longer than `LIMIT`.
fn at_most<'de, D: Deserializer<'de>, T: Deserialize<'de>, const LIMIT: usize>(from: D) -> Result<Vec<T>, D::Error> {
    struct AtMost<T, const LIMIT: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const LIMIT: usize> Visitor<'de> for AtMost<T, LIMIT> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {LIMIT}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == LIMIT {
                    return Err(A::Error::invalid_length(LIMIT + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }
    from.deserialize_seq(AtMost::<T, LIMIT>(PhantomData))
}

impl Request {
    /// Reads a request; `json_length` is the header field, if it was there.
    ///
    /// # Errors
    /// [`BodyError`], which names the tensor.
    pub fn parse(body: &[u8], json_length: Option<usize>) -> Result<Request, BodyError> {
        let said = json_length.unwrap_or(body.len());
        let split = body.split_at_checked(said);
        let (json, mut binary) = split.ok_or(BodyError::HeaderLength { said, got: body.len() })?;
        let request: RequestJson<'_> = serde_json::from_slice(json)?;
        let mut inputs = Vec::with_capacity(request.inputs.len());
        for input in request.inputs {
            inputs.push(match (input.parameters.binary_data_size, input.data) {
                (Some(size), None) => {
                    let split = binary.split_at_checked(size);
                    let (data, rest) = split.ok_or_else(|| BodyError::Truncated(input.name.clone()))?;
                    binary = rest;
                    Tensor::new(input.name, input.datatype, input.shape, data.to_vec())?
                }
                (None, Some(data)) => Tensor::from_json(input.name, input.datatype, input.shape, data)?,
                (Some(_), Some(_)) => return Err(BodyError::TwiceData(input.name)),
                (None, None) => return Err(BodyError::NoData(input.name)),
            });
        }
        if !binary.is_empty() {
            return Err(BodyError::Trailing(binary.len()));
        }
        let default = request.parameters.binary_data_output.unwrap_or(false);
        let wanted = if request.outputs.is_empty() {
            Wanted::All { binary: default }
        } else {
            let outputs = request.outputs.into_iter().map(|output| match output.parameters {
                OutputParameters {
                    classification: Some(_),
                    ..
                } => Err(BodyError::Classification(output.name)),
                OutputParameters {
                    shared_memory_region: Some(_),
                    ..
                } => Err(BodyError::SharedMemory(output.name)),
                OutputParameters { binary_data, .. } => Ok((output.name, binary_data.unwrap_or(default))),
            });
            Wanted::Some(outputs.collect::<Result<_, _>>()?)
        };
        Ok(Request {
            id: request.id,
            inputs,
            wanted,
            timeout: timeout(request.parameters.timeout),
        })
    }
}

/// A `timeout` parameter: microseconds, 0 is no limit.
pub fn timeout(parameter: Option<u64>) -> Option<Duration> {
    parameter.filter(|us| *us > 0).map(Duration::from_micros)
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

/// What a model has answered.
pub struct Answer<'a> {
    /// The model, as it was asked for.
    pub model: &'a str,
    /// The version that answered.
    pub version: &'a str,
    /// The request's.
    pub id: Option<String>,
    /// All outputs.
    pub outputs: Vec<Tensor>,
}

/// An encoded answer.
#[derive(Debug)]
pub struct Encoded {
    /// The body.
    pub body: Vec<u8>,
    /// What goes into [`HEADER_LENGTH`], if there is binary data.
    pub json_length: Option<usize>,
}

impl Answer<'_> {
    /// Encodes the wanted outputs.
    ///
    /// # Errors
    /// [`BodyError`] when an output is not there, or has no JSON form.
    pub fn encode(self, wanted: &Wanted) -> Result<Encoded, BodyError> {
        let chosen = wanted.choose(self.outputs)?;
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
            model_name: self.model,
            model_version: self.version,
            id: self.id,
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

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
        let request = Request::parse(&body, Some(length)).unwrap();
        assert_eq!(request.inputs[0].to_f32().unwrap(), [1.0, 2.0]);
        assert_eq!(request.id.as_deref(), Some("7"));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let (body, length) = binary_request(&[0; 8], 8);
        assert!(matches!(
            Request::parse(&body, Some(body.len() + 1)),
            Err(BodyError::HeaderLength { .. })
        ));
        assert!(matches!(
            Request::parse(&body[..body.len() - 1], Some(length)),
            Err(BodyError::Truncated(_))
        ));
        let (body, length) = binary_request(&[0; 9], 8);
        assert!(matches!(
            Request::parse(&body, Some(length)),
            Err(BodyError::Trailing(1))
        ));
    }

    #[test]
    fn outputs_are_chosen_and_ordered_by_the_client() {
        let wanted = Wanted::Some(vec![("b".to_owned(), true), ("a".to_owned(), false)]);
        let encoded = answer().encode(&wanted).unwrap();
        let (json, binary) = encoded.body.split_at(encoded.json_length.unwrap());
        let json: Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["outputs"][0]["name"], "b");
        assert_eq!(json["outputs"][1]["data"], json!([1.5]));
        assert_eq!(binary, 2.5_f32.to_le_bytes());
    }

    #[test]
    fn an_unknown_output_is_named() {
        let wanted = Wanted::Some(vec![("c".to_owned(), false)]);
        assert!(matches!(answer().encode(&wanted), Err(BodyError::UnknownOutput(name)) if name == "c"));
    }

    #[test]
    fn what_is_asked_for_is_checked_before_the_model_runs() {
        let outputs: Vec<_> = answer().outputs.iter().map(Tensor::metadata).collect();
        let wanted = |names: &[&str]| Wanted::Some(names.iter().map(|name| ((*name).to_owned(), true)).collect());
        wanted(&["b", "a"]).check(&outputs).unwrap();
        assert!(matches!(wanted(&["a", "c"]).check(&outputs), Err(BodyError::UnknownOutput(name)) if name == "c"));
        assert!(matches!(wanted(&["a", "a"]).check(&outputs), Err(BodyError::RepeatedOutput(name)) if name == "a"));
    }

    #[track_caller]
    fn refused(request: &Value, word: &str) {
        let error = Request::parse(&serde_json::to_vec(request).unwrap(), None).unwrap_err();
        assert!(error.to_string().contains(word), "`{word}` is missing in: {error}");
    }

    #[test]
    fn extensions_that_are_not_here_are_refused_by_name() {
        let input = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]});
        let output =
            |parameters: Value| json!({"inputs": [input], "outputs": [{"name": "y", "parameters": parameters}]});
        refused(&output(json!({"classification": 3})), "classification");
        refused(&output(json!({"shared_memory_region": "r"})), "shared memory");
        let shared =
            json!({"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"shared_memory_region": "r"}});
        refused(&json!({"inputs": [shared]}), "shared memory");
        let both =
            json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "parameters": {"binary_data_size": 4}});
        refused(&json!({"inputs": [both]}), "both");
        refused(
            &json!({"inputs": [{"name": "x", "datatype": "BF16", "shape": [1], "data": [1]}]}),
            "BF16",
        );
    }

    #[test]
    fn lists_have_an_end() {
        let empty = json!({"name": "x", "datatype": "FP32", "shape": [0], "data": []});
        refused(&json!({"inputs": vec![empty; TENSORS + 1]}), "at most 256");
        let deep = json!({"name": "x", "datatype": "FP32", "shape": vec![1; DIMENSIONS + 1], "data": [1]});
        refused(&json!({"inputs": [deep]}), "at most 32");
    }

    #[test]
    fn unknown_parameters_are_skipped_and_the_timeout_is_read() {
        let input = json!({"name": "x", "datatype": "FP32", "shape": [1], "data": [1]});
        let request = |parameters: Value| {
            let request = json!({"parameters": parameters, "inputs": [input]});
            Request::parse(&serde_json::to_vec(&request).unwrap(), None).unwrap()
        };
        let asked = request(json!({"sequence_id": 7, "priority": 1, "mine": [{"a": 1}], "timeout": 1500}));
        assert_eq!(asked.timeout, Some(Duration::from_micros(1500)));
        assert_eq!(request(json!({"timeout": 0})).timeout, None);
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200), length in prop::option::of(0..300_usize)) {
            let _ = Request::parse(&body, length);
        }

        /// Any true request with some of its bytes changed is read, or refused, and what is read is whole.
        #[test]
        fn a_damaged_request_is_refused_or_whole(
            values in prop::collection::vec(any::<u8>(), 1..40),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            length in any::<prop::sample::Index>(),
        ) {
            let header = json!({"id": "1", "parameters": {"binary_data_output": true}, "inputs": [
                {"name": "x", "datatype": "UINT8", "shape": [values.len()], "parameters": {"binary_data_size": values.len()}},
                {"name": "y", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
            ], "outputs": [{"name": "z", "parameters": {"binary_data": true}}]});
            let mut body = serde_json::to_vec(&header).unwrap();
            let json_length = body.len();
            body.extend(&values);
            for (position, byte) in damage {
                let position = position.index(body.len());
                body[position] = byte;
            }
            for length in [json_length, length.index(body.len() + 2)] {
                if let Ok(request) = Request::parse(&body, Some(length)) {
                    for tensor in request.inputs {
                        let again = Tensor::new(tensor.name(), tensor.datatype(), tensor.shape().to_vec(), tensor.data().to_vec());
                        prop_assert_eq!(again.unwrap(), tensor);
                    }
                }
            }
        }

        #[test]
        fn what_is_sent_in_binary_arrives_bit_for_bit(values in prop::collection::vec(any::<u64>(), 1..40)) {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let tensor = Tensor::new("x", Datatype::Fp64, vec![values.len()], data.clone()).unwrap();
            let answer = Answer { model: "m", version: "1", id: None, outputs: vec![tensor] };
            let encoded = answer.encode(&Wanted::All { binary: true }).unwrap();
            let (json, binary) = encoded.body.split_at(encoded.json_length.unwrap());
            prop_assert_eq!(binary, &data[..]);
            let json: Value = serde_json::from_slice(json).unwrap();
            prop_assert_eq!(&json["outputs"][0]["parameters"]["binary_data_size"], &json!(data.len()));
        }
    }
}
