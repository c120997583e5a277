//! Which tensor goes where: checked once against what models and steps say of themselves, then followed by every request.

use std::borrow::Cow;

use skerry_shared::{
    bundle::{Edge, INPUTS, OUTPUTS, Pipeline, Port},
    id::ResourceName,
    oip::{Tensor, TensorMetadata},
};

use super::{LoadedStage, batch};
use crate::{InferError, LoadError};

/// The stages in an order in which they can run, and where everything comes from.
pub(crate) struct Graph {
    order: Vec<usize>,
    /// Tensors that somebody takes.
    made: Vec<Made>,
    /// By stage: what it takes, in its own order.
    taken: Vec<Vec<Taken>>,
    answer: Vec<Taken>,
}

/// A tensor of the request or of a stage.
struct Made {
    /// `None` is the request.
    stage: Option<usize>,
    name: String,
    /// How often it is taken.
    uses: usize,
}

/// One input of a stage, or one tensor of the answer.
struct Taken {
    /// Where it is in [`Graph::made`].
    from: usize,
    wanted: TensorMetadata,
}

impl Graph {
    /// Checks that the stages fit together by their edges and give what the manifest promises. `order` is that of its check.
    pub(crate) fn new(pipeline: &Pipeline, order: Vec<usize>, stages: &[LoadedStage]) -> Result<Graph, LoadError> {
        let mut graph = Graph {
            order,
            made: Vec::new(),
            taken: Vec::with_capacity(stages.len()),
            answer: Vec::new(),
        };
        let edges = match pipeline.edges.is_empty() {
            true => &chain(pipeline, stages)[..],
            false => &pipeline.edges,
        };
        for stage in stages {
            batch::check(stage)?;
            let inputs = stage.inputs();
            let into = |edge: &&Edge| edge.to.stage == stage.name;
            if let Some(edge) = edges
                .iter()
                .filter(into)
                .find(|edge| !inputs.iter().any(|input| input.name == edge.to.tensor))
            {
                return Err(absent(edge, &edge.to, &inputs));
            }
            let taken = graph.take(stage.name.as_str(), &inputs, edges, pipeline, stages)?;
            graph.taken.push(taken);
        }
        graph.answer = graph.take(OUTPUTS, &pipeline.outputs, edges, pipeline, stages)?;
        Ok(graph)
    }

    /// Finds where each of these tensors comes from.
    fn take(
        &mut self,
        place: &str,
        tensors: &[TensorMetadata],
        edges: &[Edge],
        pipeline: &Pipeline,
        stages: &[LoadedStage],
    ) -> Result<Vec<Taken>, LoadError> {
        let take = |wanted: &TensorMetadata| {
            let ends_here = |edge: &&Edge| edge.to.stage.as_str() == place && edge.to.tensor == wanted.name;
            let edge = edges.iter().find(ends_here).ok_or_else(|| LoadError::Unfed {
                place: place.to_owned(),
                wanted: wanted.clone(),
            })?;
            let stage = stages.iter().position(|stage| stage.name == edge.from.stage);
            let given = stage.map_or(Cow::Borrowed(&pipeline.inputs[..]), |stage| stages[stage].outputs());
            let got = given.iter().find(|tensor| tensor.name == edge.from.tensor);
            let got = got.ok_or_else(|| absent(edge, &edge.from, &given))?;
            if !fits(wanted, got) {
                return Err(LoadError::Edge {
                    edge: Box::new(edge.clone()),
                    given: Box::new(got.clone()),
                    taken: Box::new(wanted.clone()),
                });
            }
            Ok(Taken {
                from: self.made(stage, &got.name),
                wanted: wanted.clone(),
            })
        };
        tensors.iter().map(take).collect()
    }

    fn made(&mut self, stage: Option<usize>, name: &str) -> usize {
        let same = |made: &Made| made.stage == stage && made.name == name;
        let at = self.made.iter().position(same).unwrap_or_else(|| {
            self.made.push(Made {
                stage,
                name: name.to_owned(),
                uses: 0,
            });
            self.made.len() - 1
        });
        self.made[at].uses += 1;
        at
    }

    /// Runs a request through the stages.
    pub(crate) fn run(
        &self,
        stages: &[LoadedStage],
        inputs: &[TensorMetadata],
        request: Vec<Tensor>,
    ) -> Result<Vec<Tensor>, InferError> {
        let request = validate(inputs, request)?;
        let mut way = Way {
            graph: self,
            tensors: Vec::new(),
        };
        way.tensors.resize_with(self.made.len(), || None);
        way.keep(None, request);
        for position in &self.order {
            let stage = &stages[*position];
            let taken = way.take(&self.taken[*position], stages)?;
            way.keep(Some(*position), stage.run(taken)?);
        }
        way.take(&self.answer, stages)
    }
}

/// A request under way.
struct Way<'a> {
    graph: &'a Graph,
    /// What is made and not yet taken for the last time, and how often it has been taken.
    tensors: Vec<Option<(Tensor, usize)>>,
}

impl Way<'_> {
    /// Keeps what somebody will take.
    fn keep(&mut self, stage: Option<usize>, mut tensors: Vec<Tensor>) {
        for (made, place) in self.graph.made.iter().zip(&mut self.tensors) {
            if made.stage == stage {
                let found = tensors.iter().position(|tensor| tensor.name() == made.name);
                *place = found.map(|position| (tensors.swap_remove(position), 0));
            }
        }
    }

    /// Takes the wanted tensors, in order. Whoever takes one last gets it without a copy.
    fn take(&mut self, wanted: &[Taken], stages: &[LoadedStage]) -> Result<Vec<Tensor>, InferError> {
        let mut taken = Vec::with_capacity(wanted.len());
        for Taken { from, wanted } in wanted {
            let made = &self.graph.made[*from];
            let kept = self.tensors[*from].take().filter(|(tensor, _)| wanted.accepts(tensor));
            let Some((tensor, uses)) = kept else {
                let stage = made.stage.map_or(INPUTS, |stage| stages[stage].name.as_str());
                return Err(InferError::Output {
                    stage: stage.to_owned(),
                    tensor: made.name.clone(),
                });
            };
            if uses + 1 < made.uses {
                self.tensors[*from] = Some((tensor.clone(), uses + 1));
            }
            taken.push(match tensor.name() == wanted.name {
                true => tensor,
                false => tensor.renamed(wanted.name.as_str()),
            });
        }
        Ok(taken)
    }
}

/// The edges of a chain: each stage takes by name what the one before it gives.
fn chain(pipeline: &Pipeline, stages: &[LoadedStage]) -> Vec<Edge> {
    let name = |name: &str| -> ResourceName { name.parse().expect("`inputs` and `outputs` are valid names") };
    let mut edges = Vec::new();
    let mut before = name(INPUTS);
    let mut join = |from: &ResourceName, to: ResourceName, tensors: &[TensorMetadata]| {
        edges.extend(tensors.iter().map(|tensor| {
            let port = |stage: &ResourceName| Port {
                stage: stage.clone(),
                tensor: tensor.name.clone(),
            };
            Edge {
                from: port(from),
                to: port(&to),
            }
        }));
    };
    for stage in stages {
        join(&before, stage.name.clone(), &stage.inputs());
        before = stage.name.clone();
    }
    join(&before, name(OUTPUTS), &pipeline.outputs);
    edges
}

fn absent(edge: &Edge, port: &Port, present: &[TensorMetadata]) -> LoadError {
    LoadError::AbsentTensor {
        edge: Box::new(edge.clone()),
        port: Box::new(port.clone()),
        present: present.iter().map(|tensor| tensor.name.clone()).collect(),
    }
}

/// True when some tensor can be both. A dimension that is known only at the call is checked then.
fn fits(wanted: &TensorMetadata, got: &TensorMetadata) -> bool {
    let compatible = |(a, b): (&i64, &i64)| *a < 0 || *b < 0 || a == b;
    wanted.datatype == got.datatype
        && wanted.shape.len() == got.shape.len()
        && wanted.shape.iter().zip(&got.shape).all(compatible)
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
