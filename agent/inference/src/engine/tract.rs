//! Models on tract.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use skerry_shared::oip::{Datatype, Tensor};
use tract_onnx::{
    prelude::{
        DatumType, Framework, InferenceFact, InferenceModelExt, IntoRunnable, IntoTValue, TVec, TractResult,
        TypedSimplePlan,
    },
    tract_hir::internal::Tensor as TractTensor,
};

use crate::{ModelError, engine::Plan, model::ModelSource};

/// A prepared graph. Immutable and shared: every run has its own state.
pub(crate) struct TractPlan {
    plan: Arc<TypedSimplePlan>,
    outputs: Vec<DatumType>,
}

impl TractPlan {
    pub(crate) fn load(source: &ModelSource, plan: Plan) -> Result<TractPlan, ModelError> {
        // Admission has seen to the known panics; this keeps an unknown one from ending the agent.
        let loaded = catch_unwind(AssertUnwindSafe(|| prepare(source, plan)));
        match loaded {
            Ok(Ok(plan)) => Ok(plan),
            Ok(Err(error)) => Err(ModelError::Load(format!("{error:#}"))),
            Err(_) => Err(ModelError::Load("it panicked over this file".to_owned())),
        }
    }

    pub(crate) fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Vec<u8>>, String> {
        let run = || -> TractResult<Vec<Vec<u8>>> {
            let inputs = inputs.into_iter().map(|tensor| Ok(to_tract(&tensor)?.into_tvalue()));
            let outputs = self.plan.run(inputs.collect::<TractResult<TVec<_>>>()?)?;
            outputs
                .iter()
                .zip(&self.outputs)
                .map(|(value, datum)| to_bytes(value, *datum))
                .collect()
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(outputs)) => Ok(outputs),
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("tract panicked".to_owned()),
        }
    }
}

fn prepare(source: &ModelSource, plan: Plan) -> TractResult<TractPlan> {
    // Without these a file with symbolic value_info fails to unify.
    let onnx = tract_onnx::onnx()
        .with_ignore_output_shapes(true)
        .with_ignore_value_info(true);
    let mut model = onnx.model_for_proto_model(&source.proto)?;
    model.set_input_names(source.inputs.iter().map(|input| &input.name))?;
    model.select_outputs_by_name(source.outputs.iter().map(|output| &output.name))?;
    for (position, input) in source.inputs.iter().enumerate() {
        let shape: Vec<usize> = input.shape.iter().map(|dim| *dim as usize).collect();
        model.set_input_fact(position, InferenceFact::dt_shape(datum_type(input.datatype), shape))?;
    }
    let plan = match plan {
        Plan::Optimised => model.into_optimized()?.into_runnable()?,
        Plan::Plain => model.into_typed()?.into_runnable()?,
    };
    let outputs = source
        .outputs
        .iter()
        .map(|output| datum_type(output.datatype))
        .collect();
    Ok(TractPlan { plan, outputs })
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
    let mut out = TractTensor::zero_dt(datum_type(tensor.datatype()), tensor.shape())?;
    out.try_as_plain_ram_mut()?
        .as_bytes_mut()
        .copy_from_slice(tensor.data());
    Ok(out)
}

/// tract gives some integer outputs (`Shape`, `Size`) in a type of its own: cast to what the file declares.
fn to_bytes(value: &TractTensor, datum: DatumType) -> TractResult<Vec<u8>> {
    let value = value.cast_to_dt(datum)?;
    Ok(value.try_as_plain_ram()?.as_bytes().to_vec())
}
