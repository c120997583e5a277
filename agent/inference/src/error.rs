//! What can go wrong, by stage: checking a model, loading a bundle, proving it, answering a request.

use std::num::NonZeroU32;

use skerry_shared::{
    bundle::{Edge, PipelineError, Port},
    id::{Platform, ResourceName},
    oip::{Datatype, TensorError, TensorMetadata},
};

use crate::operators::{UnknownOperator, listed};

/// Why an ONNX file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not an ONNX file, or cut off.
    #[error("not a readable ONNX file: {0}")]
    Parse(String),
    /// Parses, but would hurt whoever loads it.
    #[error("the ONNX file is not admitted: {0}")]
    NotAdmitted(String),
    /// An input or output of a datatype that has no place here.
    #[error("`{tensor}` is of {element_type}, which cannot go in or out of a model here")]
    Datatype {
        /// Its name.
        tensor: String,
        /// ONNX's word for its element type.
        element_type: String,
    },
    /// Operators that no engine here knows.
    #[error("the model needs operators that are not supported: {}", listed(.0))]
    Operators(Vec<UnknownOperator>),
    /// An input or output of which the file does not even say how many dimensions it has.
    #[error("the file does not say the shape of `{tensor}`; export it with shapes, dynamic dimensions may stay")]
    NoShape {
        /// Its name.
        tensor: String,
    },
    /// tract cannot load it; its own words name operator, node and shape.
    #[error("tract cannot load the model: {0}")]
    Load(String),
    /// ONNX Runtime cannot load it.
    #[error("ONNX Runtime cannot load the model: {0}")]
    OnnxRuntime(String),
}

/// Why a bundle does not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A resource that the pipeline needs is not in the manifest.
    #[error("resource `{0}` is not in the manifest")]
    MissingResource(ResourceName),
    /// A component was not compiled for this platform.
    #[error("component `{component}` is not compiled for {platform}")]
    MissingPlatform {
        /// The component.
        component: ResourceName,
        /// This platform.
        platform: Platform,
    },
    /// A component was compiled by another wasmtime.
    #[error("component `{component}` was compiled by wasmtime {got}, this program runs wasmtime {expected}")]
    WasmtimeVersion {
        /// The component.
        component: ResourceName,
        /// The version in the manifest.
        got: String,
        /// The version here.
        expected: &'static str,
    },
    /// ONNX Runtime's library cannot be used.
    #[error("ONNX Runtime cannot be used: {0}")]
    Engine(String),
    /// A resource cannot be read.
    #[error("cannot read resource `{name}`")]
    Read {
        /// The resource.
        name: ResourceName,
        /// Why.
        source: std::io::Error,
    },
    /// The golden vectors do not parse.
    #[error("the golden vectors `{name}` are unreadable")]
    GoldenVectors {
        /// Their resource.
        name: ResourceName,
        /// Why.
        source: serde_json::Error,
    },
    /// A model is refused.
    #[error("model of stage `{stage}` is refused")]
    Model {
        /// The stage.
        stage: ResourceName,
        /// Why.
        source: ModelError,
    },
    /// A step is refused, or fails while it is configured.
    #[error("step `{stage}` is refused")]
    Step {
        /// The stage.
        stage: ResourceName,
        /// Why.
        source: StepError,
    },
    /// Names or edges of the pipeline are wrong.
    #[error(transparent)]
    Graph(#[from] PipelineError),
    /// What is given at one end of an edge cannot be taken at the other.
    #[error(
        "edge `{edge}` does not fit: {} {:?} is given, {} {:?} is taken",
        given.datatype, given.shape, taken.datatype, taken.shape
    )]
    Edge {
        /// The edge.
        edge: Box<Edge>,
        /// What is given.
        given: Box<TensorMetadata>,
        /// What is taken.
        taken: Box<TensorMetadata>,
    },
    /// A stage has no such tensor.
    #[error("edge `{edge}`: there is no `{port}`, only {present:?}")]
    AbsentTensor {
        /// The edge.
        edge: Box<Edge>,
        /// Its end that is not there.
        port: Box<Port>,
        /// The tensors that are there.
        present: Vec<String>,
    },
    /// A stage takes a tensor that nobody gives it.
    #[error("no edge ends at `{place}:{}`, which takes {} {:?}", wanted.name, wanted.datatype, wanted.shape)]
    Unfed {
        /// The stage, or `outputs`.
        place: String,
        /// What it takes.
        wanted: TensorMetadata,
    },
    /// A stage cannot follow its batch policy.
    #[error(
        "stage `{stage}` cannot be called with batches of up to {rows} rows: `{}` is {} {:?}; the first dimension must be free, or 1 \
         with batches of 1",
        tensor.name, tensor.datatype, tensor.shape
    )]
    Batch {
        /// The stage.
        stage: ResourceName,
        /// Its policy.
        rows: NonZeroU32,
        /// The tensor that stands against it.
        tensor: TensorMetadata,
    },
    /// The sandbox cannot be set up.
    #[error("cannot set up the WASM runtime: {0}")]
    Runtime(String),
}

/// What a step did wrong.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It cannot be instantiated.
    #[error("the component cannot be instantiated: {0}")]
    Instantiate(String),
    /// It ran longer than its limit.
    #[error("the step ran longer than its limit of {0} ms")]
    Timeout(u32),
    /// It asked for more memory than its limit and gave up.
    #[error("the step wanted more memory than its limit of {0} bytes")]
    Memory(u64),
    /// It answered with more than its memory holds.
    #[error("the step's answer is larger than its limit of {0} bytes")]
    Answer(u64),
    /// It named more tensors or dimensions than there is a use for, or with longer names.
    #[error("the step gave {got} {what}, at most {limit} are allowed")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        limit: usize,
    },
    /// It trapped.
    #[error("the step trapped: {0}")]
    Trap(String),
    /// It refused a manifest parameter.
    #[error("the step refused a parameter: {0}")]
    Parameter(String),
    /// It refused its input.
    #[error("the step refused its input: {0}")]
    Input(String),
    /// It failed by its own word.
    #[error("the step failed: {0}")]
    Failed(String),
    /// It gave a tensor whose data does not fit datatype and shape.
    #[error("the step gave a malformed tensor")]
    Tensor(#[source] TensorError),
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The request lacks an input.
    #[error("input `{0}` is missing")]
    MissingInput(String),
    /// The request has an input that the pipeline does not take.
    #[error("unknown input `{0}`")]
    UnknownInput(String),
    /// An input occurs twice.
    #[error("input `{0}` occurs twice")]
    RepeatedInput(String),
    /// An input of the wrong datatype or shape.
    #[error("input `{tensor}` is {got_datatype} {got_shape:?}, expected {datatype} {shape:?}")]
    WrongInput {
        /// The tensor.
        tensor: String,
        /// Its datatype.
        got_datatype: Datatype,
        /// Its shape.
        got_shape: Vec<usize>,
        /// The expected datatype.
        datatype: Datatype,
        /// The expected shape; -1 is any length.
        shape: Vec<i64>,
    },
    /// A step failed.
    #[error("step `{stage}`: {source}")]
    Step {
        /// The stage.
        stage: ResourceName,
        /// Why.
        source: StepError,
    },
    /// A model failed.
    #[error("model `{stage}` failed: {reason}")]
    Model {
        /// The stage.
        stage: ResourceName,
        /// tract's own words.
        reason: String,
    },
    /// What a stage is given cannot be cut into batches.
    #[error("stage `{stage}` in batches: {reason}")]
    Rows {
        /// The stage.
        stage: ResourceName,
        /// Why.
        reason: String,
    },
    /// A stage's batches do not go together.
    #[error("stage `{stage}` in batches: {reason}")]
    Batch {
        /// The stage.
        stage: ResourceName,
        /// Why.
        reason: String,
    },
    /// A stage did not give what the next one takes, or the pipeline promises.
    #[error("stage `{stage}` gave no tensor `{tensor}` that fits")]
    Output {
        /// The stage.
        stage: String,
        /// The tensor.
        tensor: String,
    },
}

impl InferError {
    /// True when the request is at fault and not the bundle.
    pub fn is_bad_request(&self) -> bool {
        match self {
            InferError::MissingInput(_)
            | InferError::UnknownInput(_)
            | InferError::RepeatedInput(_)
            | InferError::WrongInput { .. }
            | InferError::Rows { .. }
            | InferError::Step {
                source: StepError::Input(_),
                ..
            } => true,
            InferError::Step { .. }
            | InferError::Model { .. }
            | InferError::Batch { .. }
            | InferError::Output { .. } => false,
        }
    }
}

/// Why a bundle failed its golden vectors.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// There are none to check.
    #[error("the golden vectors are empty")]
    Empty,
    /// A vector got no answer.
    #[error("golden vector {vector} fails")]
    Infer {
        /// Which vector.
        vector: usize,
        /// Why.
        source: InferError,
    },
    /// An expected output is missing or has another datatype or shape.
    #[error("golden vector {vector}: output `{output}` is missing or has another datatype or shape")]
    Shape {
        /// Which vector.
        vector: usize,
        /// Which output.
        output: String,
    },
    /// An element differs by more than the tolerance.
    #[error("golden vector {vector}: output `{output}` at position {position} is {got}, expected {expected}")]
    Mismatch {
        /// Which vector.
        vector: usize,
        /// Which output.
        output: String,
        /// Which element, counted flat.
        position: usize,
        /// The element found.
        got: String,
        /// The element expected.
        expected: String,
    },
}

/// Why a bundle does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// It does not load.
    #[error("the bundle does not load")]
    Load(#[from] LoadError),
    /// It answers wrongly.
    #[error("the bundle fails its golden vectors")]
    Golden(#[from] GoldenError),
}

/// What a caught panic says.
pub(crate) fn panic_words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}
