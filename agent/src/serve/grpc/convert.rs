//! From messages to tensors and back. Pure.

use bytes::Bytes;
use skerry_shared::oip::{
    Datatype, Tensor, TensorError,
    body::{self, Wanted},
};

use crate::serve::{
    message::{InferTensorContents, ModelInferRequest, Number, TensorMessage},
    refusal::Refusal,
};

/// A tensor's dimensions: no model has more.
const DIMENSIONS: usize = 32;

/// Reads a request; the id stays where it is.
pub(crate) fn read(request: ModelInferRequest) -> Result<body::Request, Refusal> {
    let raw = request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let words = format!(
            "raw_input_contents has {} entries for {} inputs: it has one for each, or none at all",
            raw.len(),
            request.inputs.len()
        );
        return Err(Refusal::Bad(words));
    }
    let mut raw = raw.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        let name = input.name;
        let Some(datatype) = Datatype::from_name(&input.datatype) else {
            let words = format!(
                "input `{name}` is of the datatype `{}`, which is not known",
                input.datatype
            );
            return Err(Refusal::Bad(words));
        };
        let dimension = |length: &i64| usize::try_from(*length).ok();
        let shape: Option<Vec<usize>> = input.shape.iter().map(dimension).collect();
        let shape = shape.filter(|shape| shape.len() <= DIMENSIONS);
        let shape = shape.ok_or_else(|| bad(TensorError::Shape(name.clone())))?;
        let data = match (raw.next(), input.contents) {
            (Some(raw), None) => raw.to_vec(),
            (None, Some(contents)) => typed(&name, datatype, &contents)?,
            (Some(_), Some(_)) => return Err(Refusal::Bad(format!("input `{name}` has both raw and typed contents"))),
            // Nothing is a value for a tensor without elements only; the tensor itself says so.
            (None, None) => Vec::new(),
        };
        inputs.push(Tensor::new(name, datatype, shape, data).map_err(bad)?);
    }
    let mut outputs = Vec::with_capacity(request.outputs.len());
    for output in request.outputs {
        for extension in ["classification", "shared_memory_region"] {
            if output.parameters.contains_key(extension) {
                let words = format!("output `{}`: {extension} is not supported", output.name);
                return Err(Refusal::Bad(words));
            }
        }
        outputs.push((output.name, true));
    }
    let wanted = if outputs.is_empty() {
        Wanted::All { binary: true }
    } else {
        Wanted::Some(outputs)
    };
    let timeout = request
        .parameters
        .get("timeout")
        .and_then(|parameter| match parameter.value.as_ref()? {
            Number::Signed(us) => u64::try_from(*us).ok(),
            Number::Unsigned(us) => Some(*us),
        });
    Ok(body::Request {
        id: None,
        inputs,
        wanted,
        timeout: body::timeout(timeout),
    })
}

/// The bytes of values that came by type. The field goes by the datatype; what stands in another one is not looked at, so
/// there is too little for the shape.
fn typed(name: &str, datatype: Datatype, contents: &InferTensorContents) -> Result<Vec<u8>, Refusal> {
    /// Each value in its narrower type.
    fn narrow<W: Copy, N: TryFrom<W>, const SIZE: usize>(
        values: &[W],
        bytes: fn(N) -> [u8; SIZE],
    ) -> Vec<Option<[u8; SIZE]>> {
        values.iter().map(|value| N::try_from(*value).ok().map(bytes)).collect()
    }
    fn whole<const SIZE: usize>(
        name: &str,
        datatype: Datatype,
        values: Vec<Option<[u8; SIZE]>>,
    ) -> Result<Vec<u8>, Refusal> {
        let mut data = Vec::with_capacity(values.len() * SIZE);
        for (position, value) in values.into_iter().enumerate() {
            let value = value.ok_or_else(|| {
                let name = name.to_owned();
                bad(TensorError::Value {
                    name,
                    position,
                    datatype,
                })
            })?;
            data.extend_from_slice(&value);
        }
        Ok(data)
    }
    match datatype {
        Datatype::Bool => Ok(contents.bools.iter().map(|value| u8::from(*value)).collect()),
        Datatype::Int8 => whole(name, datatype, narrow(&contents.ints, i8::to_le_bytes)),
        Datatype::Int16 => whole(name, datatype, narrow(&contents.ints, i16::to_le_bytes)),
        Datatype::Int32 => Ok(contents.ints.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Int64 => Ok(contents.int64s.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Uint8 => whole(name, datatype, narrow(&contents.uints, u8::to_le_bytes)),
        Datatype::Uint16 => whole(name, datatype, narrow(&contents.uints, u16::to_le_bytes)),
        Datatype::Uint32 => Ok(contents.uints.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Uint64 => Ok(contents.uint64s.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Fp32 => Ok(contents.fp32s.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Fp64 => Ok(contents.fp64s.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Datatype::Fp16 => Err(Refusal::Bad(format!(
            "input `{name}`: FP16 travels in raw_input_contents only"
        ))),
        Datatype::Bytes => {
            let mut data = Vec::new();
            for element in &contents.bytes {
                // A message is smaller than that.
                data.extend((element.len() as u32).to_le_bytes());
                data.extend_from_slice(element);
            }
            Ok(data)
        }
    }
}

/// The outputs and their raw contents, in the same order.
pub(crate) fn write(outputs: Vec<(Tensor, bool)>) -> (Vec<TensorMessage>, Vec<Bytes>) {
    let message = |(tensor, _): (Tensor, bool)| {
        let message = TensorMessage::from(&tensor.metadata());
        (message, Bytes::from(tensor.into_data()))
    };
    outputs.into_iter().map(message).unzip()
}

fn bad(error: TensorError) -> Refusal {
    Refusal::Bad(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;
    use crate::serve::message::{InferInputTensor, InferParameter, InferRequestedOutputTensor};

    fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
        }
    }

    fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
        ModelInferRequest {
            inputs,
            raw_input_contents: raw.iter().map(|bytes| Bytes::from_static(bytes)).collect(),
            ..ModelInferRequest::default()
        }
    }

    #[track_caller]
    fn refused(request: ModelInferRequest, word: &str) {
        let refusal = read(request).unwrap_err();
        assert!(refusal.sentence().contains(word), "`{word}` is missing in: {refusal:?}");
    }

    #[test]
    fn typed_values_become_the_bytes_of_their_datatype() {
        let contents = InferTensorContents {
            bools: vec![true, false],
            ints: vec![-1, 2],
            int64s: vec![-3, 4],
            uints: vec![5, 255],
            uint64s: vec![7, 8],
            fp32s: vec![1.5, -2.5],
            fp64s: vec![3.5, 4.5],
            bytes: vec![Bytes::from_static(b"ab"), Bytes::new()],
        };
        let data = |datatype: &str| {
            let input = input(datatype, &[2], Some(contents.clone()));
            read(request(vec![input], &[])).unwrap().inputs[0].data().to_vec()
        };
        assert_eq!(data("BOOL"), [1, 0]);
        assert_eq!(data("INT8"), [0xff, 2]);
        assert_eq!(data("INT16"), [0xff, 0xff, 2, 0]);
        assert_eq!(data("UINT8"), [5, 255]);
        assert_eq!(data("UINT16"), [5, 0, 255, 0]);
        assert_eq!(data("INT64"), [(-3_i64).to_le_bytes(), 4_i64.to_le_bytes()].concat());
        assert_eq!(data("FP32"), [1.5_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat());
        assert_eq!(data("FP64"), [3.5_f64.to_le_bytes(), 4.5_f64.to_le_bytes()].concat());
        assert_eq!(data("BYTES"), [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let ints = |values: Vec<i32>| {
            Some(InferTensorContents {
                ints: values,
                ..InferTensorContents::default()
            })
        };
        refused(
            request(vec![input("INT8", &[2], ints(vec![1, 128]))], &[]),
            "position 1 that is no INT8",
        );
        refused(request(vec![input("FP32", &[2], ints(vec![1, 2]))], &[]), "0 bytes");
        refused(request(vec![input("FP32", &[-1], None)], &[b"1234"]), "shape");
        refused(
            request(vec![input("FP16", &[1], ints(vec![1]))], &[]),
            "raw_input_contents",
        );
        refused(request(vec![input("BF16", &[1], None)], &[b"12"]), "BF16");
        refused(request(vec![input("INT32", &[1], ints(vec![1]))], &[b"1234"]), "both");
        let two = vec![input("INT8", &[1], None), input("INT8", &[1], None)];
        refused(request(two, &[b"1"]), "1 entries for 2 inputs");
    }

    #[test]
    fn extensions_that_are_not_here_are_refused_and_the_timeout_is_read() {
        let number = |value| InferParameter { value: Some(value) };
        let mut asked = request(vec![input("INT8", &[1], None)], &[b"1"]);
        asked
            .parameters
            .insert("timeout".to_owned(), number(Number::Signed(1500)));
        assert_eq!(read(asked.clone()).unwrap().timeout, Some(Duration::from_micros(1500)));
        asked.outputs = vec![InferRequestedOutputTensor {
            name: "y".to_owned(),
            parameters: HashMap::from([("classification".to_owned(), number(Number::Signed(3)))]),
        }];
        refused(asked, "classification");
    }

    #[test]
    fn raw_outputs_keep_the_order_of_the_outputs() {
        let outputs =
            [("a", 1.5), ("b", 2.5)].map(|(name, value)| (Tensor::from_f32(name, vec![1], &[value]).unwrap(), true));
        let (messages, raw) = write(outputs.to_vec());
        assert_eq!(messages[1].name, "b");
        assert_eq!(
            (messages[1].datatype.as_str(), &messages[1].shape[..]),
            ("FP32", &[1][..])
        );
        assert_eq!(raw[1], 2.5_f32.to_le_bytes().to_vec());
    }
}
