//! Tensors and errors on their way across the sandbox's border.
//!
//! Invariant: nothing that a guest said goes on without a limit on its length.

use skerry_shared::oip::{Datatype, Tensor, TensorMetadata};

use super::bindings::skerry::pipeline::types;
use crate::StepError;

/// Bytes of a guest's own words that are kept: they go into logs, reports and answers.
const TEXT_BYTES_MAX: usize = 1024;
/// Bytes of a tensor's name: as long as a resource's.
const NAME_BYTES_MAX: usize = 128;
/// Dimensions of a tensor, as of a model's.
const RANK_MAX: usize = 16;
/// Tensors that a step takes or gives.
const TENSORS_MAX: usize = 64;

pub(super) fn error_from_guest(error: types::Error) -> StepError {
    match error {
        types::Error::InvalidParameter(text) => StepError::Parameter(shortened(text)),
        types::Error::InvalidInput(text) => StepError::Input(shortened(text)),
        types::Error::Failed(text) => StepError::Failed(shortened(text)),
    }
}

/// The beginning of a text, and a sign that there was more.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

pub(super) fn metadata_from_guest(metadata: Vec<types::TensorMetadata>) -> Result<Vec<TensorMetadata>, StepError> {
    at_most(TENSORS_MAX, metadata.len(), "tensors")?;
    let checked = metadata.into_iter().map(|tensor| {
        check_size(&tensor.name, tensor.shape.len())?;
        Ok(TensorMetadata {
            datatype: datatype_from_guest(tensor.datatype),
            name: tensor.name,
            shape: tensor.shape,
        })
    });
    checked.collect()
}

pub(super) fn tensor_to_guest(tensor: &Tensor) -> types::Tensor {
    types::Tensor {
        name: tensor.name().to_owned(),
        datatype: datatype_to_guest(tensor.datatype()),
        shape: tensor.shape().iter().map(|dim| *dim as u64).collect(),
        data: tensor.data().to_vec(),
    }
}

pub(super) fn tensors_from_guest(tensors: Vec<types::Tensor>) -> Result<Vec<Tensor>, StepError> {
    at_most(TENSORS_MAX, tensors.len(), "tensors")?;
    let checked = tensors.into_iter().map(|tensor| {
        check_size(&tensor.name, tensor.shape.len())?;
        let dims = tensor.shape.iter();
        let shape = dims.map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX)).collect();
        Tensor::new(tensor.name, datatype_from_guest(tensor.datatype), shape, tensor.data).map_err(StepError::Tensor)
    });
    checked.collect()
}

/// Name and shape go into error texts, and for metadata stay in memory as long as the bundle.
fn check_size(name: &str, rank: usize) -> Result<(), StepError> {
    at_most(NAME_BYTES_MAX, name.len(), "bytes of a tensor's name")?;
    at_most(RANK_MAX, rank, "dimensions of a tensor")
}

fn at_most(limit: usize, got: usize, what: &'static str) -> Result<(), StepError> {
    match got <= limit {
        true => Ok(()),
        false => Err(StepError::TooMany { what, got, limit }),
    }
}

/// Both directions of the datatypes, in one list.
macro_rules! datatypes {
    ($($name:ident),*) => {
        fn datatype_to_guest(datatype: Datatype) -> types::Datatype {
            match datatype { $(Datatype::$name => types::Datatype::$name),* }
        }
        fn datatype_from_guest(datatype: types::Datatype) -> Datatype {
            match datatype { $(types::Datatype::$name => Datatype::$name),* }
        }
    };
}
datatypes!(
    Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes
);
