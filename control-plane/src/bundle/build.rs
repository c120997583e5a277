//! From a spec to a bundle folder: compile the components, write the manifest, cut the files, check the golden vectors.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use skerry_inference::{
    CompileError, LoadedBundle, PLATFORMS, ProveError, Runtime, WASMTIME_VERSION, compile_component,
};
use skerry_shared::{
    bundle::{
        Golden, GoldenVectors, Lineage, MANIFEST_NAME, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind,
    },
    chunk::ChunkIndexError,
    digest::Digest,
    id::{ModelVersion, Platform, ResourceName},
    schema::Envelope,
};

use super::{
    chunker::chunk_files,
    folder::{BundleFolder, FolderError},
    spec::{Spec, SpecStageKind},
};

/// Whether the publisher's machine runs the golden vectors before the bundle is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfCheck {
    /// A bundle that fails here is not built.
    Enforce,
    /// Devices will be the first to find out.
    Skip,
}

/// What the spec does not say.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The registered version of the model.
    pub version: ModelVersion,
    /// Goes into the manifest; the same value gives the same bytes.
    pub created_at_ms: u64,
    /// Where the model comes from.
    pub lineage: Lineage,
    /// Whether to run the golden vectors here.
    pub self_check: SelfCheck,
}

/// Why a bundle could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file of the spec cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the spec has no name that a bundle can carry.
    #[error("{path} has no file name that a bundle can carry")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// Two files of the spec have the same name and different content.
    #[error("two different files are called `{0}`")]
    NameTwice(ResourceName),
    /// The golden vectors do not parse or are empty.
    #[error("golden vectors {path} are unusable: {reason}")]
    Golden {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A component cannot be compiled.
    #[error("cannot compile {component} for {platform}")]
    Compile {
        /// The component.
        component: ResourceName,
        /// The platform.
        platform: String,
        /// Why.
        source: CompileError,
    },
    /// The bundle does not load on this machine.
    #[error("the bundle does not load")]
    Load(#[source] skerry_inference::LoadError),
    /// The golden vectors fail on this machine.
    #[error("the bundle fails its golden vectors on this machine; `--skip-self-check` builds it all the same")]
    SelfCheck(#[source] skerry_inference::GoldenError),
    /// Too large for a bundle.
    #[error("the bundle exceeds a limit")]
    Limit(#[from] ChunkIndexError),
    /// The folder cannot be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// The files of a bundle in the making, each name once.
#[derive(Default)]
struct Files {
    resources: Vec<Resource>,
    content: BTreeMap<ResourceName, Vec<u8>>,
}

impl Files {
    fn add(&mut self, name: ResourceName, kind: ResourceKind, content: Vec<u8>) -> Result<(), BuildError> {
        if let Some(present) = self.content.get(&name) {
            return if *present == content {
                Ok(())
            } else {
                Err(BuildError::NameTwice(name))
            };
        }
        let (digest, size_bytes) = (Digest::of(&content), content.len() as u64);
        self.resources.push(Resource {
            name: name.clone(),
            digest,
            size_bytes,
            kind,
        });
        self.content.insert(name, content);
        Ok(())
    }
}

/// Builds a bundle into `folder`.
///
/// # Errors
/// [`BuildError`]; nothing is written unless everything before succeeded.
pub fn build(spec: &Spec, options: &BuildOptions, folder: &Path) -> Result<BundleFolder, BuildError> {
    let mut files = Files::default();
    let mut stages = Vec::with_capacity(spec.stages.len());
    for stage in &spec.stages {
        let kind = match &stage.kind {
            SpecStageKind::Model(path) => {
                let resource = resource_name(path)?;
                files.add(resource.clone(), ResourceKind::OnnxModel, read(path)?)?;
                StageKind::Model { resource }
            }
            SpecStageKind::Step {
                component: path,
                parameters,
                limits,
            } => {
                let component = resource_name(path)?;
                add_component(&mut files, &component, read(path)?)?;
                StageKind::Step {
                    component,
                    parameters: parameters.clone(),
                    limits: *limits,
                }
            }
        };
        stages.push(Stage {
            name: stage.name.clone(),
            kind,
            batch: stage.batch,
        });
    }
    let mut golden = None;
    let (mut inputs, mut outputs) = (spec.inputs.clone(), spec.outputs.clone());
    if let Some((path, tolerance)) = &spec.golden {
        let content = read(path)?;
        let parsed = parse_golden(path, &content)?;
        let first = &parsed.vectors[0];
        if inputs.is_empty() {
            inputs = first.inputs.iter().map(|tensor| tensor.metadata()).collect();
        }
        if outputs.is_empty() {
            outputs = first.outputs.iter().map(|tensor| tensor.metadata()).collect();
        }
        let resource = resource_name(path)?;
        files.add(resource.clone(), ResourceKind::GoldenVectors, content)?;
        golden = Some(Golden {
            resource,
            tolerance: *tolerance,
        });
    }
    for path in &spec.documents {
        files.add(resource_name(path)?, ResourceKind::Document, read(path)?)?;
    }
    let pipeline = Pipeline {
        inputs,
        outputs,
        stages,
        edges: spec.edges.clone(),
    };
    let manifest = Manifest {
        schema: pipeline.schema(),
        model: spec.model.clone(),
        version: options.version,
        created_at_ms: options.created_at_ms,
        resources: files.resources,
        pipeline,
        golden,
        lineage: options.lineage.clone(),
    };
    check(&manifest, &files.content, options.self_check)?;

    // The manifest first: a device reads it before it knows what else it needs.
    let manifest_name = MANIFEST_NAME.parse().expect("a valid resource name");
    let mut ordered = vec![(manifest_name, manifest.to_json())];
    let mut content = files.content;
    for resource in &manifest.resources {
        ordered.extend(content.remove_entry(&resource.name));
    }
    Ok(BundleFolder::write(folder, manifest, chunk_files(&ordered)?)?)
}

fn add_component(files: &mut Files, component: &ResourceName, wasm: Vec<u8>) -> Result<(), BuildError> {
    for platform in PLATFORMS {
        let platform: Platform = platform.parse().expect("our own platforms are valid names");
        let compiled = compile_component(&wasm, &platform).map_err(|source| BuildError::Compile {
            component: component.clone(),
            platform: platform.to_string(),
            source,
        })?;
        let kind = ResourceKind::CompiledComponent {
            component: component.clone(),
            platform: platform.clone(),
            wasmtime: WASMTIME_VERSION.to_owned(),
        };
        let name = format!("{component}.{platform}.cwasm");
        let name = name.parse().map_err(|_| BuildError::Name {
            path: PathBuf::from(&name),
        })?;
        files.add(name, kind, compiled)?;
    }
    files.add(component.clone(), ResourceKind::Component, wasm)
}

/// Loads the bundle here, as a device would, and runs the golden vectors.
fn check(
    manifest: &Manifest,
    content: &BTreeMap<ResourceName, Vec<u8>>,
    self_check: SelfCheck,
) -> Result<(), BuildError> {
    let runtime = Runtime::new().map_err(BuildError::Load)?;
    let mut read = |resource: &Resource| -> std::io::Result<Vec<u8>> {
        content
            .get(&resource.name)
            .cloned()
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    let loaded = match self_check {
        SelfCheck::Enforce => LoadedBundle::load_best(&runtime, manifest, &mut read),
        SelfCheck::Skip => LoadedBundle::load(&runtime, manifest, &mut read).map_err(ProveError::Load),
    };
    match loaded {
        Ok(_) => Ok(()),
        Err(ProveError::Load(error)) => Err(BuildError::Load(error)),
        Err(ProveError::Golden(error)) => Err(BuildError::SelfCheck(error)),
    }
}

fn parse_golden(path: &Path, content: &[u8]) -> Result<GoldenVectors, BuildError> {
    let bad = |reason: String| BuildError::Golden {
        path: path.to_owned(),
        reason,
    };
    let golden: GoldenVectors = serde_json::from_slice(content).map_err(|error| bad(error.to_string()))?;
    if golden.vectors.is_empty() {
        return Err(bad("there are none".to_owned()));
    }
    Ok(golden)
}

fn resource_name(path: &Path) -> Result<ResourceName, BuildError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok());
    name.ok_or_else(|| BuildError::Name { path: path.to_owned() })
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| BuildError::Read {
        path: path.to_owned(),
        source,
    })
}
