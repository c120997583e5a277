//! The engines that can run a model: a closed set, since which one serves is measured and never guessed.

pub(crate) mod choice;
pub(crate) mod figures;
pub(crate) mod onnxruntime;
mod plans;
mod shape_inputs;
pub(crate) mod tract;

use skerry_shared::oip::Tensor;

use self::{choice::Candidate, onnxruntime::OnnxRuntimeModel, tract::TractModel};
use crate::{ModelError, model::ModelSource};

/// How far tract may rewrite a graph. 0.23 optimises some int8 graphs into silently wrong answers, so the golden vectors
/// decide which plan serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Decluttered and with kernels chosen: the fast one.
    Optimised,
    /// As the file says.
    Plain,
}

/// One output of a run: its shape and its bytes, as [`Tensor`] has them.
pub(crate) type Output = (Vec<usize>, Vec<u8>);

/// A model ready to run.
pub(crate) enum Engine {
    /// tract, always there.
    Tract(Box<TractModel>),
    /// ONNX Runtime, where its library is.
    OnnxRuntime(OnnxRuntimeModel),
}

impl Engine {
    /// Prepares a model.
    pub(crate) fn load(source: ModelSource<'_>, candidate: &Candidate) -> Result<Engine, ModelError> {
        match candidate {
            Candidate::Tract(plan) => Ok(Engine::Tract(Box::new(TractModel::load(source, *plan)?))),
            Candidate::OnnxRuntime(runtime) => OnnxRuntimeModel::load(runtime, &source).map(Engine::OnnxRuntime),
        }
    }

    /// Runs the model once; inputs in the model's order, outputs likewise.
    pub(crate) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Output>, String> {
        match self {
            Engine::Tract(model) => model.run(inputs),
            Engine::OnnxRuntime(model) => model.run(inputs),
        }
    }
}
