//! Tensors and errors on their way across the sandbox's border.

use skerry_shared::oip::{Datatype, Tensor, TensorMetadata};

use super::bindings::skerry::pipeline::types;
use crate::StepError;

pub(super) fn error_from_guest(error: types::Error) -> StepError {
    match error {
        types::Error::InvalidParameter(text) => StepError::Parameter(text),
        types::Error::InvalidInput(text) => StepError::Input(text),
        types::Error::Failed(text) => StepError::Failed(text),
    }
}

pub(super) fn metadata_from_guest(metadata: types::TensorMetadata) -> TensorMetadata {
    let datatype = datatype_from_guest(metadata.datatype);
    TensorMetadata {
        name: metadata.name,
        datatype,
        shape: metadata.shape,
    }
}

pub(super) fn tensor_to_guest(tensor: &Tensor) -> types::Tensor {
    types::Tensor {
        name: tensor.name().to_owned(),
        datatype: datatype_to_guest(tensor.datatype()),
        shape: tensor.shape().iter().map(|dim| *dim as u64).collect(),
        data: tensor.data().to_vec(),
    }
}

pub(super) fn tensor_from_guest(tensor: types::Tensor) -> Result<Tensor, skerry_shared::oip::TensorError> {
    let shape = tensor
        .shape
        .iter()
        .map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX))
        .collect();
    Tensor::new(tensor.name, datatype_from_guest(tensor.datatype), shape, tensor.data)
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
