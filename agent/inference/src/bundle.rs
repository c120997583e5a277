//! A loaded bundle: its pipeline, ready to answer from several threads at once.

use skerry_shared::{
    bundle::{GoldenVectors, Manifest, Resource, StageKind, Tolerance},
    oip::{ModelMetadata, Tensor},
};

use crate::{
    GoldenError, InferError, LoadError, Runtime, WASMTIME_VERSION,
    engine::Plan,
    golden, host_platform,
    model::Model,
    pipeline::{self, LoadedKind, LoadedStage},
    wasm::Step,
};

/// A bundle whose models and steps are in memory and fit together.
pub struct LoadedBundle {
    metadata: ModelMetadata,
    stages: Vec<LoadedStage>,
    /// The ONNX files by stage, until the golden vectors have said which plan serves.
    sources: Vec<(usize, Vec<u8>)>,
}

impl LoadedBundle {
    /// Loads what `manifest` describes. `read` gives the content of a resource **whose digest it has verified**.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in memory.
    pub fn load(
        runtime: &Runtime,
        manifest: &Manifest,
        read: &mut dyn FnMut(&Resource) -> std::io::Result<Vec<u8>>,
    ) -> Result<LoadedBundle, LoadError> {
        let mut fetch = |resource: &Resource| {
            read(resource).map_err(|source| LoadError::Read {
                name: resource.name.clone(),
                source,
            })
        };
        let mut stages = Vec::with_capacity(manifest.pipeline.stages.len());
        let mut sources = Vec::new();
        for stage in &manifest.pipeline.stages {
            let name = stage.name.clone();
            let kind = match &stage.kind {
                StageKind::Model { resource } => {
                    let entry = manifest.resource(resource);
                    let onnx = fetch(entry.ok_or_else(|| LoadError::MissingResource(resource.clone()))?)?;
                    let model = Model::load(&onnx, Plan::Optimised);
                    let model = model.map_err(|source| LoadError::Model {
                        stage: name.clone(),
                        source,
                    })?;
                    sources.push((stages.len(), onnx));
                    LoadedKind::Model(Box::new(model))
                }
                StageKind::Step {
                    component,
                    parameters,
                    limits,
                } => {
                    let platform = host_platform();
                    let entry = manifest.compiled(component, &platform);
                    let entry = entry.ok_or_else(|| LoadError::MissingPlatform {
                        component: component.clone(),
                        platform: platform.clone(),
                    })?;
                    check_version(entry)?;
                    let step = Step::load(runtime, &fetch(entry)?, parameters, *limits);
                    LoadedKind::Step(Box::new(step.map_err(|source| LoadError::Step {
                        stage: name.clone(),
                        source,
                    })?))
                }
            };
            stages.push(LoadedStage { name, kind });
        }
        let pipeline = &manifest.pipeline;
        pipeline::check(&stages, &pipeline.inputs, &pipeline.outputs)?;
        let metadata = ModelMetadata {
            name: manifest.model.to_string(),
            versions: vec![manifest.version.to_string()],
            platform: "skerry_pipeline".to_owned(),
            inputs: pipeline.inputs.clone(),
            outputs: pipeline.outputs.clone(),
        };
        Ok(LoadedBundle {
            metadata,
            stages,
            sources,
        })
    }

    /// Proves the bundle on its golden vectors. If the optimised plan of its models answers wrongly, the plain plan is tried
    /// and kept when it is right.
    ///
    /// # Errors
    /// [`GoldenError`] of the optimised plan when neither is right: do not serve this bundle.
    pub fn check_golden(&mut self, vectors: &GoldenVectors, tolerance: Tolerance) -> Result<(), GoldenError> {
        let sources = std::mem::take(&mut self.sources);
        let Err(optimised) = golden::check(vectors, tolerance, |inputs| self.infer(inputs)) else {
            return Ok(());
        };
        for (position, onnx) in sources {
            if let Ok(model) = Model::load(&onnx, Plan::Plain) {
                self.stages[position].kind = LoadedKind::Model(Box::new(model));
            }
        }
        let plain = golden::check(vectors, tolerance, |inputs| self.infer(inputs));
        plain
            .map(|()| tracing::warn!("the optimised plan fails the golden vectors, the plain plan serves"))
            .map_err(|_| optimised)
    }

    /// Answers one request.
    ///
    /// # Errors
    /// [`InferError`]; the bundle stays usable.
    pub fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        pipeline::run(&self.stages, &self.metadata.inputs, &self.metadata.outputs, inputs)
    }

    /// What the pipeline takes and gives.
    pub fn metadata(&self) -> &ModelMetadata {
        &self.metadata
    }
}

fn check_version(compiled: &Resource) -> Result<(), LoadError> {
    match &compiled.kind {
        skerry_shared::bundle::ResourceKind::CompiledComponent {
            component, wasmtime, ..
        } if wasmtime != WASMTIME_VERSION => {
            let (component, got) = (component.clone(), wasmtime.clone());
            Err(LoadError::WasmtimeVersion {
                component,
                got,
                expected: WASMTIME_VERSION,
            })
        }
        _ => Ok(()),
    }
}
