//! Models on tract.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use skerry_shared::oip::{Datatype, Tensor, TensorMetadata};
use tract_onnx::{
    Onnx,
    prelude::{
        DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue, TVec,
        TractResult, TypedSimplePlan, tensor1,
    },
    tract_hir::internal::Tensor as TractTensor,
};

use crate::{
    ModelError,
    engine::{
        Output, Plan,
        plans::{Key, Plans},
        shape_inputs,
    },
    error::panic_words,
    model::ModelSource,
    operators, ops, rewrite,
};

/// A model that tract has read. Its plans are immutable and shared: every run has its own state.
pub(crate) struct TractModel {
    /// Weights here are shared by all plans; what a plan packs is its own.
    model: InferenceModel,
    plan: Plan,
    inputs: Vec<TensorMetadata>,
    /// For each input, whether its data decides shapes.
    is_value: Vec<bool>,
    outputs: Vec<DatumType>,
    plans: Plans<Arc<TypedSimplePlan>>,
}

impl TractModel {
    /// Reads a model. One whose shapes are all fixed is planned at once, so that what is wrong with it is said now.
    pub(crate) fn load(mut source: ModelSource<'_>, plan: Plan) -> Result<TractModel, ModelError> {
        rewrite::for_tract(&mut source.proto);
        let onnx = framework();
        let known = &onnx.op_register.0;
        let unknown = operators::unknown(&source.proto, &|operator| known.contains_key(operator));
        if !unknown.is_empty() {
            return Err(ModelError::Operators(unknown));
        }
        let load = || {
            let model = TractModel::read(&onnx, source, plan)?;
            let fixed = model.inputs.iter().all(|input| !input.shape.contains(&-1));
            if fixed && !model.is_value.contains(&true) {
                let zeros = model.inputs.iter().map(zeros).collect::<TractResult<Vec<Tensor>>>()?;
                model.plan_for(&zeros)?;
            }
            Ok(model)
        };
        // Admission has seen to the known panics; this keeps an unknown one from ending the agent.
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(loaded) => {
                loaded.map_err(|error: tract_onnx::prelude::TractError| ModelError::Load(format!("{error:#}")))
            }
            Err(panic) => Err(ModelError::Load(format!("it panicked: {}", panic_words(&*panic)))),
        }
    }

    fn read(onnx: &Onnx, source: ModelSource<'_>, plan: Plan) -> TractResult<TractModel> {
        let mut model = onnx.model_for_proto_model(&source.proto)?;
        model.set_input_names(source.inputs.iter().map(|input| &input.name))?;
        model.select_outputs_by_name(source.outputs.iter().map(|output| &output.name))?;
        let graph = source.proto.graph.as_ref();
        let is_value = graph.map_or_else(Vec::new, |graph| shape_inputs::find(graph, &source.inputs));
        Ok(TractModel {
            model,
            plan,
            is_value,
            outputs: source
                .outputs
                .iter()
                .map(|output| datum_type(output.datatype))
                .collect(),
            inputs: source.inputs,
            plans: Plans::new(),
        })
    }

    /// Runs the model once. The first request of a shape also plans for it.
    pub(crate) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Output>, String> {
        let run = || -> TractResult<Vec<Output>> {
            let plan = self.plan_for(inputs)?;
            let inputs = inputs.iter().map(|tensor| Ok(to_tract(tensor)?.into_tvalue()));
            let outputs = plan.run(inputs.collect::<TractResult<TVec<_>>>()?)?;
            let outputs = outputs.iter().zip(&self.outputs);
            outputs
                .map(|(value, datum)| Ok((value.shape().to_vec(), to_bytes(value, *datum)?)))
                .collect()
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(panic) => Err(format!("tract panicked: {}", panic_words(&*panic))),
        }
    }

    fn plan_for(&self, inputs: &[Tensor]) -> TractResult<Arc<TypedSimplePlan>> {
        let plan = self.plans.get(Key::of(inputs, &self.is_value), || {
            let mut model = self.model.clone();
            for (position, input) in inputs.iter().enumerate() {
                let fact = if self.is_value[position] {
                    InferenceFact::try_from(Arc::new(to_tract(input)?))?
                } else {
                    InferenceFact::dt_shape(datum_type(input.datatype()), input.shape())
                };
                model.set_input_fact(position, fact)?;
            }
            match self.plan {
                Plan::Optimised => model.into_optimized()?.into_runnable(),
                Plan::Plain => model.into_typed()?.into_runnable(),
            }
        })?;
        Ok((*plan).clone())
    }
}

/// tract's ONNX reader with our operators.
fn framework() -> Onnx {
    // Without these a file with symbolic value_info fails to unify.
    let mut onnx = tract_onnx::onnx()
        .with_ignore_output_shapes(true)
        .with_ignore_value_info(true);
    ops::register(&mut onnx);
    onnx
}

/// A tensor of fixed shape; only its shape matters.
fn zeros(input: &TensorMetadata) -> TractResult<Tensor> {
    let shape: Vec<usize> = input.shape.iter().map(|dim| *dim as usize).collect();
    let count: usize = shape.iter().product();
    // An empty text is its length in four bytes.
    let data = vec![0; count * input.datatype.element_bytes().unwrap_or(4)];
    Ok(Tensor::new(input.name.clone(), input.datatype, shape, data)?)
}

fn datum_type(datatype: Datatype) -> DatumType {
    match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Fp16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bytes => DatumType::String,
    }
}

fn to_tract(tensor: &Tensor) -> TractResult<TractTensor> {
    if let Some(elements) = tensor.to_byte_elements() {
        let texts = elements
            .into_iter()
            .map(|bytes| Ok(std::str::from_utf8(bytes)?.to_owned()));
        let texts = texts.collect::<TractResult<Vec<String>>>()?;
        return tensor1(&texts).into_shape(tensor.shape());
    }
    let mut out = TractTensor::zero_dt(datum_type(tensor.datatype()), tensor.shape())?;
    out.try_as_plain_ram_mut()?
        .as_bytes_mut()
        .copy_from_slice(tensor.data());
    Ok(out)
}

/// tract gives some integer outputs (`Shape`, `Size`) in a type of its own: cast to what the file declares.
fn to_bytes(value: &TractTensor, datum: DatumType) -> TractResult<Vec<u8>> {
    let value = value.cast_to_dt(datum)?;
    if datum == DatumType::String {
        let view = value.try_as_plain_ram()?;
        let element = |text: &String| {
            let length = u32::try_from(text.len())?;
            Ok([&length.to_le_bytes(), text.as_bytes()].concat())
        };
        let elements = view.as_slice::<String>()?.iter().map(element);
        return Ok(elements.collect::<TractResult<Vec<_>>>()?.concat());
    }
    Ok(value.try_as_plain_ram()?.as_bytes().to_vec())
}
