//! A model: its ONNX file, its metadata, and the engine that runs it.

use skerry_shared::oip::{Tensor, TensorMetadata};
use tract_onnx::{
    pb::{ModelProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto},
    prelude::Framework,
};

use crate::{
    ModelError, admission,
    engine::{Engine, Plan},
};

/// What an ONNX file takes and gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedModel {
    /// Its inputs, without constants.
    pub inputs: Vec<TensorMetadata>,
    /// Its outputs.
    pub outputs: Vec<TensorMetadata>,
}

/// Says whether a device could run this ONNX file, by doing what a device would do.
///
/// # Errors
/// [`ModelError`] with the reason in words.
pub fn check_model(onnx: &[u8]) -> Result<CheckedModel, ModelError> {
    let source = ModelSource::parse(onnx)?;
    Engine::load(&source, Plan::Optimised)?;
    Ok(CheckedModel {
        inputs: source.inputs,
        outputs: source.outputs,
    })
}

/// An admitted ONNX file.
pub(crate) struct ModelSource {
    pub(crate) proto: ModelProto,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

impl ModelSource {
    pub(crate) fn parse(onnx: &[u8]) -> Result<ModelSource, ModelError> {
        let proto = tract_onnx::onnx()
            .proto_model_for_read(&mut &onnx[..])
            .map_err(|error| ModelError::Parse(format!("{error:#}")))?;
        let graph = admission::admit(&proto)?;
        let is_constant = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
        let inputs: Vec<TensorMetadata> = graph
            .input
            .iter()
            .filter(|input| !is_constant(&input.name))
            .map(metadata)
            .collect::<Result<_, _>>()?;
        if let Some(dynamic) = inputs.iter().find(|input| input.shape.contains(&-1)) {
            return Err(ModelError::DynamicShape {
                tensor: dynamic.name.clone(),
            });
        }
        let outputs = graph.output.iter().map(metadata).collect::<Result<_, _>>()?;
        Ok(ModelSource { proto, inputs, outputs })
    }
}

fn metadata(value: &ValueInfoProto) -> Result<TensorMetadata, ModelError> {
    let type_value = value.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = type_value else {
        return Err(ModelError::Parse(format!("`{}` is no tensor", value.name)));
    };
    let datatype = admission::datatype(tensor.elem_type).ok_or_else(|| ModelError::Datatype {
        tensor: value.name.clone(),
        element_type: tensor.elem_type,
    })?;
    let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
    let length = |value: Option<&dimension::Value>| match value {
        Some(dimension::Value::DimValue(length)) if *length >= 0 => *length,
        _ => -1,
    };
    let shape = dims.map(|dim| length(dim.value.as_ref())).collect();
    Ok(TensorMetadata {
        name: value.name.clone(),
        datatype,
        shape,
    })
}

/// A model that runs.
pub(crate) struct Model {
    engine: Engine,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

impl Model {
    pub(crate) fn load(onnx: &[u8], plan: Plan) -> Result<Model, ModelError> {
        let source = ModelSource::parse(onnx)?;
        let engine = Engine::load(&source, plan)?;
        Ok(Model {
            engine,
            inputs: source.inputs,
            outputs: source.outputs,
        })
    }

    pub(crate) fn inputs(&self) -> &[TensorMetadata] {
        &self.inputs
    }

    pub(crate) fn outputs(&self) -> &[TensorMetadata] {
        &self.outputs
    }

    /// Runs the model once; inputs in its own order.
    pub(crate) fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, String> {
        let outputs = self.engine.run(inputs)?;
        let named = self.outputs.iter().zip(outputs).map(|(metadata, data)| {
            let element = metadata.datatype.element_bytes().unwrap_or(1);
            let shape = concrete(&metadata.shape, data.len() / element);
            Tensor::new(metadata.name.clone(), metadata.datatype, shape, data).map_err(|error| error.to_string())
        });
        named.collect()
    }
}

/// The shape with its one unknown dimension computed from the element count.
fn concrete(shape: &[i64], count: usize) -> Vec<usize> {
    let known: usize = shape.iter().filter(|dim| **dim > 0).map(|dim| *dim as usize).product();
    shape
        .iter()
        .map(|dim| if *dim < 0 { count / known.max(1) } else { *dim as usize })
        .collect()
}
