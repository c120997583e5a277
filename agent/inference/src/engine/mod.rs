//! The engines that can run a model: a closed set, since which one serves is measured and never guessed.

pub(crate) mod tract;

use skerry_shared::oip::Tensor;

use crate::{ModelError, engine::tract::TractPlan, model::ModelSource};

/// How far tract may rewrite a graph. 0.23 optimises some int8 graphs into silently wrong answers, so the golden vectors
/// decide which plan serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Decluttered and with kernels chosen: the fast one.
    Optimised,
    /// As the file says.
    Plain,
}

/// A model ready to run.
pub(crate) enum Engine {
    /// tract, always there.
    Tract(TractPlan),
}

impl Engine {
    /// Prepares a model.
    pub(crate) fn load(source: &ModelSource, plan: Plan) -> Result<Engine, ModelError> {
        TractPlan::load(source, plan).map(Engine::Tract)
    }

    /// Runs the model once; inputs in the model's order, outputs likewise.
    pub(crate) fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Vec<u8>>, String> {
        match self {
            Engine::Tract(plan) => plan.run(inputs),
        }
    }
}
