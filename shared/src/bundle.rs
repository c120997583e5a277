//! The manifest of a bundle: what is in it, how the parts make a pipeline, and how a device knows that it works.
//!
//! The manifest is the file [`MANIFEST_NAME`] of the bundle's chunk index, and the chunk index is a TUF target: every byte
//! here is covered by the `targets` signature.

mod pipeline;

use serde::{Deserialize, Serialize};

pub use pipeline::{Edge, INPUTS, OUTPUTS, Pipeline, PipelineError, Port, Stage, StageKind, StepLimits};

use crate::{
    digest::Digest,
    id::{ModelName, ModelVersion, Platform, ResourceName, RunId},
    oip::Tensor,
    schema::{Envelope, SchemaVersion},
};

/// The manifest's file name in the chunk index.
pub const MANIFEST_NAME: &str = "manifest.json";

/// A bundle's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The envelope's version: what [`Pipeline::schema`] asks for.
    pub schema: SchemaVersion,
    /// The registered model.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// When it was built, in UTC milliseconds.
    pub created_at_ms: u64,
    /// The files beside the manifest.
    pub resources: Vec<Resource>,
    /// How they make a pipeline.
    pub pipeline: Pipeline,
    /// Known answers that a device must reproduce before the bundle serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Golden>,
    /// Where the model comes from.
    #[serde(default)]
    pub lineage: Lineage,
}

impl Envelope for Manifest {
    const KIND: &'static str = "bundle manifest";
    const MAJOR: u16 = 2;
    const LIMIT_BYTES: usize = 256 * 1024;
}

impl Manifest {
    /// Checks names and edges of the pipeline, before anything of it is loaded, and gives the positions of its stages in an order in
    /// which they can run.
    ///
    /// # Errors
    /// [`PipelineError`], also when the manifest claims an older schema than its pipeline needs.
    pub fn check_pipeline(&self) -> Result<Vec<usize>, PipelineError> {
        let (got, needed) = (self.schema, self.pipeline.schema());
        if got.major < needed.major {
            return Err(PipelineError::Schema { got, needed });
        }
        self.pipeline.order()
    }

    /// The resource called `name` that suits `platform`: a compiled one for it, or one for all platforms.
    pub fn resource(&self, name: &ResourceName) -> Option<&Resource> {
        self.resources.iter().find(|r| r.name == *name)
    }

    /// The compiled form of `component` for `platform`.
    pub fn compiled(&self, component: &ResourceName, platform: &Platform) -> Option<&Resource> {
        self.resources.iter().find(|r| match &r.kind {
            ResourceKind::CompiledComponent {
                component: of,
                platform: p,
                ..
            } => of == component && p == platform,
            _ => false,
        })
    }

    /// The resources that a device of `platform` needs: everything but the portable components and other platforms' code.
    pub fn needed_on(&self, platform: &Platform) -> impl Iterator<Item = &Resource> {
        self.resources.iter().filter(move |r| match &r.kind {
            ResourceKind::Component => false,
            ResourceKind::CompiledComponent { platform: p, .. } => p == platform,
            ResourceKind::OnnxModel | ResourceKind::GoldenVectors | ResourceKind::Document => true,
        })
    }
}

/// A file inside a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its name, unique in the bundle and equal to its name in the chunk index.
    pub name: ResourceName,
    /// Its content.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: ResourceKind,
}

/// What a resource is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ResourceKind {
    /// An ONNX model.
    OnnxModel,
    /// A portable WASM component: kept in the bundle for inspection, not sent to devices.
    Component,
    /// A component compiled ahead of time by the publisher.
    CompiledComponent {
        /// The portable component's resource name.
        component: ResourceName,
        /// The platform it runs on.
        platform: Platform,
        /// The wasmtime version that made it, and must run it.
        wasmtime: String,
    },
    /// A [`GoldenVectors`] file.
    GoldenVectors,
    /// Labels, a model card: for people.
    Document,
}

/// Known answers, and how close to them is close enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// The resource with the vectors.
    pub resource: ResourceName,
    /// Applies to every floating-point output; all other datatypes must be equal.
    pub tolerance: Tolerance,
}

/// `|got - expected| <= absolute + relative * |expected|`, element by element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tolerance {
    /// In the output's unit.
    pub absolute: f64,
    /// A fraction of the expected value.
    pub relative: f64,
}

/// The content of a golden-vectors resource: requests to the whole pipeline with their answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenVectors {
    /// The vectors.
    pub vectors: Vec<GoldenVector>,
}

/// One request with its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenVector {
    /// The pipeline's inputs.
    pub inputs: Vec<Tensor>,
    /// The expected outputs; outputs that are not listed are not compared.
    pub outputs: Vec<Tensor>,
}

/// Where a model comes from. Absent parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The training run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The data set it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Digest>,
    /// The training code's revision: the digest of the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Digest>,
    /// The registered ONNX file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onnx: Option<Digest>,
    /// The model version that the ONNX file was registered as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registration>,
    /// Who has approved that version; absent when nobody had when the bundle was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
}

/// An entry of the model registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The registered model.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// Who registered it.
    pub by: String,
    /// UTC milliseconds.
    pub at_ms: u64,
}

/// Somebody's word that a model version may go to devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who gave it.
    pub by: String,
    /// UTC milliseconds.
    pub at_ms: u64,
}
