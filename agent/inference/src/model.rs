//! A model: its ONNX file, its metadata, and the engine that runs it.

use std::{borrow::Cow, collections::HashSet};

use prost::Message;
use skerry_shared::oip::{Tensor, TensorMetadata};
use tract_onnx::pb::{ModelProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};

use crate::{
    ModelError, admission,
    engine::{Engine, Plan, choice::Candidate},
    rewrite,
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
    let model = Model::load(onnx, &Candidate::Tract(Plan::Optimised))?;
    Ok(CheckedModel {
        inputs: model.inputs,
        outputs: model.outputs,
    })
}

/// An admitted ONNX file.
pub(crate) struct ModelSource<'a> {
    file: &'a [u8],
    /// True when the graph is not that of the file any more.
    is_rewritten: bool,
    pub(crate) proto: ModelProto,
    pub(crate) inputs: Vec<TensorMetadata>,
    pub(crate) outputs: Vec<TensorMetadata>,
}

impl ModelSource<'_> {
    pub(crate) fn parse(onnx: &[u8]) -> Result<ModelSource<'_>, ModelError> {
        let mut proto = ModelProto::decode(onnx).map_err(|error| ModelError::Parse(error.to_string()))?;
        admission::admit(&proto, onnx.len())?;
        let is_rewritten = rewrite::for_all(&mut proto);
        let graph = proto.graph.as_ref();
        let graph = graph.ok_or_else(|| ModelError::Parse("there is no graph in it".to_owned()))?;
        let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        let inputs = graph
            .input
            .iter()
            .filter(|input| !constants.contains(input.name.as_str()));
        let inputs = inputs.map(metadata).collect::<Result<Vec<_>, _>>()?;
        let mut outputs = graph.output.iter().map(metadata).collect::<Result<Vec<_>, _>>()?;
        allow_more_labels(&inputs, &mut outputs);
        Ok(ModelSource {
            file: onnx,
            is_rewritten,
            proto,
            inputs,
            outputs,
        })
    }

    /// The model as a file, for an engine that reads one.
    pub(crate) fn encoded(&self) -> Cow<'_, [u8]> {
        if self.is_rewritten {
            Cow::Owned(self.proto.encode_to_vec())
        } else {
            Cow::Borrowed(self.file)
        }
    }
}

/// Exporters of boosted trees declare one label for any number of rows.
fn allow_more_labels(inputs: &[TensorMetadata], outputs: &mut [TensorMetadata]) {
    if inputs.iter().any(|input| input.shape.first() == Some(&-1)) {
        for output in outputs.iter_mut().filter(|output| output.shape == [1]) {
            output.shape = vec![-1];
        }
    }
}

fn metadata(value: &ValueInfoProto) -> Result<TensorMetadata, ModelError> {
    let type_value = value.r#type.as_ref().and_then(|t| t.value.as_ref());
    let Some(type_proto::Value::TensorType(tensor)) = type_value else {
        return Err(ModelError::Parse(format!("`{}` is no tensor", value.name)));
    };
    let datatype = admission::datatype(tensor.elem_type).ok_or_else(|| ModelError::Datatype {
        tensor: value.name.clone(),
        element_type: admission::datatype_name(tensor.elem_type)
            .unwrap_or("an unknown type")
            .to_owned(),
    })?;
    let Some(shape) = &tensor.shape else {
        return Err(ModelError::NoShape {
            tensor: value.name.clone(),
        });
    };
    let length = |value: Option<&dimension::Value>| match value {
        Some(dimension::Value::DimValue(length)) if *length >= 0 => *length,
        _ => -1,
    };
    let shape = shape.dim.iter().map(|dim| length(dim.value.as_ref())).collect();
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
    pub(crate) fn load(onnx: &[u8], candidate: &Candidate) -> Result<Model, ModelError> {
        let source = ModelSource::parse(onnx)?;
        let (inputs, outputs) = (source.inputs.clone(), source.outputs.clone());
        Ok(Model {
            engine: Engine::load(source, candidate)?,
            inputs,
            outputs,
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
        let outputs = self.engine.run(&inputs)?;
        let named = self.outputs.iter().zip(outputs).map(|(metadata, (shape, data))| {
            Tensor::new(metadata.name.clone(), metadata.datatype, shape, data).map_err(|error| error.to_string())
        });
        named.collect()
    }
}
