//! How a bundle's parts make a pipeline: a small acyclic graph of models and sandboxed steps.
//!
//! A pipeline without edges is a chain, as all manifests of schema 1 are. Whether datatypes and shapes of two ends fit is known
//! only when models and steps are loaded; everything else is checked here. Invariant: an order that [`Pipeline::order`] gives
//! has every stage once, after all that it takes from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{id::ResourceName, oip::TensorMetadata, schema::SchemaVersion};

/// The name in a [`Port`] of what a request carries.
pub const INPUTS: &str = "inputs";
/// The name in a [`Port`] of what an answer carries.
pub const OUTPUTS: &str = "outputs";

/// A pipeline is small: each stage of it is a model or a sandbox in the device's memory.
const STAGES_MAX: usize = 64;
/// As many as the stages have use for; it bounds the time to check a manifest.
const EDGES_MAX: usize = 1024;

/// Stages and how tensors go from one to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// What a request carries.
    pub inputs: Vec<TensorMetadata>,
    /// What an answer carries.
    pub outputs: Vec<TensorMetadata>,
    /// What runs; never empty. Without edges, in order of execution.
    pub stages: Vec<Stage>,
    /// Which tensor goes where. None at all is a chain: the first stage takes the pipeline's inputs, each next one takes by name
    /// what the one before gave.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<Edge>,
}

/// One stage of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name in edges, errors and telemetry.
    pub name: ResourceName,
    /// What runs.
    #[serde(flatten)]
    pub kind: StageKind,
    /// The batch policy: at most so many rows of the first dimension in a call; the answers are put together again, and without
    /// rows nothing is called. Absent: one call with everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<NonZeroU32>,
}

/// What a stage runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StageKind {
    /// A model.
    Model {
        /// Its resource.
        resource: ResourceName,
    },
    /// A sandboxed step.
    Step {
        /// The portable component's resource name; a device takes the one compiled for its platform.
        component: ResourceName,
        /// Passed to the step's `configure`.
        #[serde(default)]
        parameters: BTreeMap<String, String>,
        /// What one call may use.
        limits: StepLimits,
    },
}

/// What one call of a step may use. The device caps these by its own limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLimits {
    /// Linear memory.
    pub memory_bytes: u64,
    /// Wall time of one call.
    pub timeout_ms: u32,
}

/// One tensor's way from where it is made to where it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// A stage's output, or a tensor of the request.
    pub from: Port,
    /// A stage's input, or a tensor of the answer.
    pub to: Port,
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

/// One end of an edge: `stage:tensor`, where the stage can be [`INPUTS`] or [`OUTPUTS`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// The stage's name, `inputs` or `outputs`.
    pub stage: ResourceName,
    /// The tensor's name at this end; it may hold colons.
    pub tensor: String,
}

/// Why an end of an edge was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no end of an edge: expected stage:tensor, inputs:tensor or outputs:tensor")]
pub struct InvalidPort(String);

impl FromStr for Port {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Port, InvalidPort> {
        let parsed = text.split_once(':').and_then(|(stage, tensor)| {
            let stage = stage.parse().ok()?;
            (!tensor.is_empty()).then(|| Port {
                stage,
                tensor: tensor.to_owned(),
            })
        });
        parsed.ok_or_else(|| InvalidPort(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Port {
    type Error = InvalidPort;

    fn try_from(text: String) -> Result<Port, InvalidPort> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> String {
        port.to_string()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stage, self.tensor)
    }
}

/// Why the stages and edges of a manifest make no pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// There is nothing to run.
    #[error("the pipeline has no stages")]
    Empty,
    /// More than a pipeline may have.
    #[error("the pipeline has {got} {what}, at most {limit} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Two stages have the same name.
    #[error("two stages are called `{0}`")]
    StageTwice(ResourceName),
    /// Two tensors of the request, or of the answer, have the same name.
    #[error("`{0}` is there twice")]
    TensorTwice(Port),
    /// A stage has a name that means something else in an edge.
    #[error("no stage can be called `{0}`: at the end of an edge that name stands for the request or the answer")]
    Reserved(ResourceName),
    /// An edge begins or ends where nothing is.
    #[error("edge `{edge}`: there is no `{port}`")]
    Dangling {
        /// The edge.
        edge: Box<Edge>,
        /// Its end that is not there.
        port: Port,
    },
    /// Two edges end at the same place.
    #[error("two edges end at `{0}`")]
    FedTwice(Port),
    /// A tensor of the answer comes from nowhere.
    #[error("no edge ends at `{0}`")]
    Unfed(Port),
    /// A stage runs for nobody.
    #[error("no edge begins at stage `{0}`: nobody takes what it gives")]
    Unused(ResourceName),
    /// Stages that wait for each other.
    #[error("the pipeline has a cycle: {}", .0.iter().map(ResourceName::as_str).collect::<Vec<_>>().join(" -> "))]
    Cycle(Vec<ResourceName>),
    /// Older readers would run something else.
    #[error("a manifest of schema {got} cannot have a pipeline that needs schema {needed}")]
    Schema {
        /// What the manifest says of itself.
        got: SchemaVersion,
        /// What its pipeline needs.
        needed: SchemaVersion,
    },
}

impl Pipeline {
    /// The schema version of a manifest with this pipeline. A reader of schema 1 would run a graph as a chain, so a graph is 2.0;
    /// chains stay what they were.
    pub fn schema(&self) -> SchemaVersion {
        let chain = self.edges.is_empty() && self.stages.iter().all(|stage| stage.batch.is_none());
        let major = if chain { 1 } else { 2 };
        SchemaVersion { major, minor: 0 }
    }

    /// Checks names and edges, and gives the positions of the stages in an order in which they can run.
    ///
    /// # Errors
    /// [`PipelineError`] for the first thing that is wrong.
    pub fn order(&self) -> Result<Vec<usize>, PipelineError> {
        let (stages, edges) = (self.stages.len(), self.edges.len());
        for (what, got, limit) in [("stages", stages, STAGES_MAX), ("edges", edges, EDGES_MAX)] {
            if got > limit {
                return Err(PipelineError::TooMany { what, got, limit });
            }
        }
        if self.stages.is_empty() {
            return Err(PipelineError::Empty);
        }
        let reserved = |stage: &&Stage| [INPUTS, OUTPUTS].contains(&stage.name.as_str());
        if let Some(stage) = self.stages.iter().find(reserved) {
            return Err(PipelineError::Reserved(stage.name.clone()));
        }
        let mut positions = BTreeMap::new();
        for (position, stage) in self.stages.iter().enumerate() {
            if positions.insert(stage.name.as_str(), position).is_some() {
                return Err(PipelineError::StageTwice(stage.name.clone()));
            }
        }
        tensors_once(INPUTS, &self.inputs)?;
        tensors_once(OUTPUTS, &self.outputs)?;
        if self.edges.is_empty() {
            return Ok((0..stages).collect());
        }
        self.check_ends(&positions)?;
        self.sort(&positions)
    }

    fn check_ends(&self, positions: &BTreeMap<&str, usize>) -> Result<(), PipelineError> {
        let has = |tensors: &[TensorMetadata], name: &str| tensors.iter().any(|tensor| tensor.name == name);
        let mut fed = BTreeSet::new();
        for edge in &self.edges {
            let dangling = |port: &Port| PipelineError::Dangling {
                edge: Box::new(edge.clone()),
                port: port.clone(),
            };
            let begins = match edge.from.stage.as_str() {
                INPUTS => has(&self.inputs, &edge.from.tensor),
                stage => positions.contains_key(stage),
            };
            let ends = match edge.to.stage.as_str() {
                OUTPUTS => has(&self.outputs, &edge.to.tensor),
                stage => positions.contains_key(stage),
            };
            match (begins, ends) {
                (false, _) => return Err(dangling(&edge.from)),
                (_, false) => return Err(dangling(&edge.to)),
                (true, true) if !fed.insert(&edge.to) => {
                    return Err(PipelineError::FedTwice(edge.to.clone()));
                }
                (true, true) => {}
            }
        }
        for tensor in &self.outputs {
            let port = port(OUTPUTS, &tensor.name);
            if !fed.contains(&port) {
                return Err(PipelineError::Unfed(port));
            }
        }
        let unused = |stage: &&Stage| !self.edges.iter().any(|edge| edge.from.stage == stage.name);
        match self.stages.iter().find(unused) {
            Some(stage) => Err(PipelineError::Unused(stage.name.clone())),
            None => Ok(()),
        }
    }

    /// Kahn's algorithm; of several stages that could run, the one that is written first.
    fn sort(&self, positions: &BTreeMap<&str, usize>) -> Result<Vec<usize>, PipelineError> {
        let mut waits_for = vec![Vec::new(); self.stages.len()];
        for edge in &self.edges {
            if let (Some(from), Some(to)) = (
                positions.get(edge.from.stage.as_str()),
                positions.get(edge.to.stage.as_str()),
            ) {
                waits_for[*to].push(*from);
            }
        }
        let mut order = Vec::with_capacity(self.stages.len());
        let mut done = vec![false; self.stages.len()];
        while order.len() < self.stages.len() {
            let ready = |position: &usize| !done[*position] && waits_for[*position].iter().all(|from| done[*from]);
            let Some(position) = (0..self.stages.len()).find(ready) else {
                return Err(PipelineError::Cycle(self.cycle(&waits_for, &done)));
            };
            done[position] = true;
            order.push(position);
        }
        Ok(order)
    }

    /// One of the cycles among stages that cannot run: backwards until a stage comes again, then said forwards.
    fn cycle(&self, waits_for: &[Vec<usize>], done: &[bool]) -> Vec<ResourceName> {
        let mut way: Vec<usize> = Vec::new();
        let mut at = (0..done.len()).find(|position| !done[*position]);
        while let Some(position) = at {
            if let Some(first) = way.iter().position(|seen| *seen == position) {
                way.drain(..first);
                way.push(position);
                break;
            }
            way.push(position);
            at = waits_for[position].iter().copied().find(|from| !done[*from]);
        }
        way.into_iter()
            .rev()
            .map(|position| self.stages[position].name.clone())
            .collect()
    }
}

fn port(stage: &str, tensor: &str) -> Port {
    Port {
        stage: stage.parse().expect("`inputs` and `outputs` are valid names"),
        tensor: tensor.to_owned(),
    }
}

fn tensors_once(stage: &str, tensors: &[TensorMetadata]) -> Result<(), PipelineError> {
    for (position, tensor) in tensors.iter().enumerate() {
        if tensors[..position].iter().any(|other| other.name == tensor.name) {
            return Err(PipelineError::TensorTwice(port(stage, &tensor.name)));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
