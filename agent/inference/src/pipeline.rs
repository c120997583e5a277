//! The chain of stages: what each takes must be what the one before gives, in name, datatype and shape.

use skerry_shared::{
    id::ResourceName,
    oip::{Tensor, TensorMetadata},
};

use crate::{InferError, LoadError, model::Model, wasm::Step};

/// One loaded stage.
pub(crate) struct LoadedStage {
    pub(crate) name: ResourceName,
    pub(crate) kind: LoadedKind,
}

pub(crate) enum LoadedKind {
    Model(Box<Model>),
    Step(Box<Step>),
}

impl LoadedStage {
    fn inputs(&self) -> &[TensorMetadata] {
        match &self.kind {
            LoadedKind::Model(model) => model.inputs(),
            LoadedKind::Step(step) => step.inputs(),
        }
    }

    fn outputs(&self) -> &[TensorMetadata] {
        match &self.kind {
            LoadedKind::Model(model) => model.outputs(),
            LoadedKind::Step(step) => step.outputs(),
        }
    }

    fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
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

/// Checks that a chain fits together and gives what the manifest promises.
pub(crate) fn check(
    stages: &[LoadedStage],
    inputs: &[TensorMetadata],
    outputs: &[TensorMetadata],
) -> Result<(), LoadError> {
    let mut available = inputs;
    for stage in stages {
        fits(stage.name.as_str(), "takes", stage.inputs(), available)?;
        available = stage.outputs();
    }
    fits("outputs", "promise", outputs, available)
}

fn fits(stage: &str, verb: &str, wanted: &[TensorMetadata], given: &[TensorMetadata]) -> Result<(), LoadError> {
    for want in wanted {
        let error = |got: String| LoadError::Pipeline {
            stage: stage.to_owned(),
            reason: format!(
                "{verb} `{}` of {} {:?}, but before it there is {got}",
                want.name, want.datatype, want.shape
            ),
        };
        let Some(got) = given.iter().find(|tensor| tensor.name == want.name) else {
            let names: Vec<&str> = given.iter().map(|tensor| tensor.name.as_str()).collect();
            return Err(error(format!("only {names:?}")));
        };
        let compatible = |(a, b): (&i64, &i64)| *a < 0 || *b < 0 || a == b;
        let same_rank = want.shape.len() == got.shape.len();
        if want.datatype != got.datatype || !same_rank || !want.shape.iter().zip(&got.shape).all(compatible) {
            return Err(error(format!("{} {:?}", got.datatype, got.shape)));
        }
    }
    Ok(())
}

/// Runs a request through the chain.
pub(crate) fn run(
    stages: &[LoadedStage],
    inputs: &[TensorMetadata],
    outputs: &[TensorMetadata],
    request: Vec<Tensor>,
) -> Result<Vec<Tensor>, InferError> {
    let mut tensors = validate(inputs, request)?;
    let mut last = "inputs";
    for stage in stages {
        let taken = take(last, stage.inputs(), &mut tensors)?;
        tensors = stage.run(taken)?;
        last = stage.name.as_str();
    }
    take(last, outputs, &mut tensors)
}

fn validate(inputs: &[TensorMetadata], request: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
    for (position, tensor) in request.iter().enumerate() {
        let name = tensor.name();
        let Some(wanted) = inputs.iter().find(|input| input.name == name) else {
            return Err(InferError::UnknownInput(name.to_owned()));
        };
        if request[..position].iter().any(|other| other.name() == name) {
            return Err(InferError::RepeatedInput(name.to_owned()));
        }
        if !wanted.accepts(tensor) {
            return Err(InferError::WrongInput {
                tensor: name.to_owned(),
                got_datatype: tensor.datatype(),
                got_shape: tensor.shape().to_vec(),
                datatype: wanted.datatype,
                shape: wanted.shape.clone(),
            });
        }
    }
    match inputs
        .iter()
        .find(|input| !request.iter().any(|tensor| tensor.name() == input.name))
    {
        Some(missing) => Err(InferError::MissingInput(missing.name.clone())),
        None => Ok(request),
    }
}

/// Takes the wanted tensors out, in order; no tensor is copied.
fn take(stage: &str, wanted: &[TensorMetadata], tensors: &mut Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
    let mut taken = Vec::with_capacity(wanted.len());
    for want in wanted {
        let found = tensors
            .iter()
            .position(|tensor| tensor.name() == want.name && want.accepts(tensor));
        let position = found.ok_or_else(|| InferError::Output {
            stage: stage.to_owned(),
            tensor: want.name.clone(),
        })?;
        taken.push(tensors.swap_remove(position));
    }
    Ok(taken)
}
