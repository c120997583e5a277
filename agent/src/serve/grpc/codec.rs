//! Looks at an inference request on the wire before it becomes structs.
//!
//! Two bytes of protobuf can ask for a struct of two hundred: a message of the largest size would take more memory than a
//! device has. Invariant: what is made of a message takes a small multiple of its size.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use crate::serve::message::ModelInferRequest;

/// Inputs, outputs, parameters, raw contents of a request: of each.
const FIELDS: usize = 256;
/// Everything beside the raw contents. Values by type take up to sixteen times their size in memory, raw ones what they are.
const TYPED_BYTES: usize = 4 * 1024 * 1024;
/// The number of the field with the raw contents.
const RAW_INPUT_CONTENTS: u64 = 7;

/// Decodes inference requests, encodes `A`.
#[derive(Debug)]
pub(crate) struct InferCodec<A>(PhantomData<A>);

impl<A> Default for InferCodec<A> {
    fn default() -> Self {
        InferCodec(PhantomData)
    }
}

impl<A: Message + 'static> Codec for InferCodec<A> {
    type Encode = A;
    type Decode = ModelInferRequest;
    type Encoder = ProstEncoder<A>;
    type Decoder = InferDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        InferDecoder
    }
}

#[derive(Debug)]
pub(crate) struct InferDecoder;

impl Decoder for InferDecoder {
    type Item = ModelInferRequest;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        check(&bytes)?;
        let decoded = ModelInferRequest::decode(bytes);
        decoded
            .map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Refuses what would take too much. What is malformed is left to the decoder, which says so.
fn check(mut bytes: &[u8]) -> Result<(), Status> {
    let mut counts = [0_usize; 8];
    let mut typed_bytes = 0;
    while !bytes.is_empty() {
        let Some((field, length, rest)) = next_field(bytes) else {
            return Ok(());
        };
        if let Some(count) = usize::try_from(field).ok().and_then(|field| counts.get_mut(field)) {
            *count += 1;
            if *count > FIELDS {
                let words = format!("a request has at most {FIELDS} inputs, outputs and parameters");
                return Err(Status::invalid_argument(words));
            }
        }
        if field != RAW_INPUT_CONTENTS {
            typed_bytes += length;
        }
        bytes = rest;
    }
    if typed_bytes > TYPED_BYTES {
        let words =
            format!("a request has at most {TYPED_BYTES} bytes of typed contents; send more in raw_input_contents");
        return Err(Status::invalid_argument(words));
    }
    Ok(())
}

/// The number and the length of the first field, and what follows it.
fn next_field(bytes: &[u8]) -> Option<(u64, usize, &[u8])> {
    let (key, rest) = varint(bytes)?;
    let (length, rest) = match key & 7 {
        0 => {
            let (_, after) = varint(rest)?;
            (rest.len() - after.len(), rest)
        }
        1 => (8, rest),
        2 => {
            let (length, rest) = varint(rest)?;
            (usize::try_from(length).ok()?, rest)
        }
        // A group begins, or ends. The decoder skips it and goes on, so what is in it is looked at as what follows it is.
        3 | 4 => (0, rest),
        5 => (4, rest),
        _ => return None,
    };
    Some((key >> 3, length, rest.get(length..)?))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (position, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[position + 1..]));
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::serve::{
        grpc::convert,
        message::{InferInputTensor, InferTensorContents},
    };

    #[test]
    fn a_message_of_many_empty_tensors_is_refused_before_it_is_decoded() {
        let inputs = |count: usize| [0x2a, 0].repeat(count);
        check(&inputs(FIELDS)).unwrap();
        let error = check(&inputs(8 * 1024 * 1024)).unwrap_err();
        assert!(error.message().contains("at most 256"), "{error}");
    }

    #[test]
    fn a_group_does_not_hide_what_follows_it() {
        // An unknown group is no mistake for the decoder: it skips it and goes on.
        let hidden = |count: usize| [&[0x7b, 0x7c][..], &[0x2a, 0].repeat(count)].concat();
        let decoded = ModelInferRequest::decode(&hidden(FIELDS + 1)[..]).unwrap();
        assert_eq!(decoded.inputs.len(), FIELDS + 1);
        check(&hidden(FIELDS)).unwrap();
        assert!(check(&hidden(FIELDS + 1)).is_err());
        // Nor what is in it: a field of a group counts as one of the message.
        let inside = [&[0x7b][..], &[0x2a, 0].repeat(FIELDS + 1), &[0x7c]].concat();
        assert!(check(&inside).is_err());
    }

    #[test]
    fn large_values_travel_raw() {
        let message = |contents, raw: Vec<u8>| {
            let input = InferInputTensor {
                contents,
                ..InferInputTensor::default()
            };
            ModelInferRequest {
                inputs: vec![input],
                raw_input_contents: vec![raw.into()],
                ..ModelInferRequest::default()
            }
        };
        check(&message(None, vec![1; 2 * TYPED_BYTES]).encode_to_vec()).unwrap();
        let typed = InferTensorContents {
            fp32s: vec![1.0; TYPED_BYTES / 4],
            ..InferTensorContents::default()
        };
        let error = check(&message(Some(typed), Vec::new()).encode_to_vec()).unwrap_err();
        assert!(error.message().contains("raw_input_contents"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(message in prop::collection::vec(any::<u8>(), 0..300)) {
            if check(&message).is_ok() && let Ok(request) = ModelInferRequest::decode(&message[..]) {
                let _ = convert::read(request);
            }
        }

        /// A true message with some of its bytes changed is read or refused; the look at the wire refuses no small one.
        #[test]
        fn a_damaged_message_is_read_or_refused(
            values in prop::collection::vec(any::<f32>(), 1..20),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let contents = InferTensorContents { fp32s: values.clone(), ..InferTensorContents::default() };
            let input = InferInputTensor {
                name: "x".to_owned(), datatype: "FP32".to_owned(), shape: vec![values.len() as i64], contents: Some(contents),
            };
            let request = ModelInferRequest { model_name: "m".to_owned(), inputs: vec![input], ..ModelInferRequest::default() };
            let mut bytes = request.encode_to_vec();
            for (position, byte) in damage {
                let position = position.index(bytes.len());
                bytes[position] = byte;
            }
            prop_assert!(check(&bytes).is_ok());
            if let Ok(request) = ModelInferRequest::decode(&bytes[..]) {
                let _ = convert::read(request);
            }
        }
    }
}
