//! A loaded pipeline: its stages, what each of them takes and gives, and a request's way through them.
//!
//! Names and cycles are [`Pipeline::order`]'s affair. Invariant: a [`Graph`] exists only for stages of which each takes, by every
//! edge, a tensor of a datatype and shape that it can take.

mod batch;
mod graph;

use std::{borrow::Cow, num::NonZeroU32};

use skerry_shared::{
    id::ResourceName,
    oip::{Tensor, TensorMetadata},
};

use crate::{InferError, model::Model, wasm::Step};

pub(crate) use graph::Graph;

/// One loaded stage.
pub(crate) struct LoadedStage {
    pub(crate) name: ResourceName,
    pub(crate) kind: LoadedKind,
    /// At most so many rows in a call; absent: everything at once.
    pub(crate) batch: Option<NonZeroU32>,
}

pub(crate) enum LoadedKind {
    Model(Box<Model>),
    Step(Box<Step>),
}

impl LoadedStage {
    /// What goes in: with a batch policy any number of rows.
    fn inputs(&self) -> Cow<'_, [TensorMetadata]> {
        self.any_rows(self.own_inputs())
    }

    /// What comes out: with a batch policy any number of rows.
    fn outputs(&self) -> Cow<'_, [TensorMetadata]> {
        self.any_rows(self.own_outputs())
    }

    /// What a call of the model or step takes.
    fn own_inputs(&self) -> &[TensorMetadata] {
        match &self.kind {
            LoadedKind::Model(model) => model.inputs(),
            LoadedKind::Step(step) => step.inputs(),
        }
    }

    /// What a call of the model or step gives.
    fn own_outputs(&self) -> &[TensorMetadata] {
        match &self.kind {
            LoadedKind::Model(model) => model.outputs(),
            LoadedKind::Step(step) => step.outputs(),
        }
    }

    fn any_rows<'a>(&self, tensors: &'a [TensorMetadata]) -> Cow<'a, [TensorMetadata]> {
        if self.batch.is_none() {
            return Cow::Borrowed(tensors);
        }
        let mut tensors = tensors.to_vec();
        for rows in tensors.iter_mut().filter_map(|tensor| tensor.shape.first_mut()) {
            *rows = -1;
        }
        Cow::Owned(tensors)
    }

    /// Runs the stage on all it takes.
    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        match self.batch {
            None => self.call(inputs),
            Some(rows) => batch::run(self, rows, &inputs),
        }
    }

    /// One call of what the stage runs.
    fn call(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        match &self.kind {
            LoadedKind::Model(model) => model.run(inputs).map_err(|reason| InferError::Model {
                stage: self.name.clone(),
                reason,
            }),
            LoadedKind::Step(step) => step.process(&inputs).map_err(|source| InferError::Step {
                stage: self.name.clone(),
                source,
            }),
        }
    }
}
