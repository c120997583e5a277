//! A loaded bundle: its pipeline, ready to answer from several threads at once.

use std::time::Instant;

use skerry_shared::{
    bundle::{GoldenVectors, Manifest, Resource, StageKind, Tolerance},
    oip::{ModelMetadata, Tensor},
};

use crate::{
    EngineName, Figures, GoldenError, InferError, LoadError, Measured, ProveError, Runtime, Timing, WASMTIME_VERSION,
    engine::choice,
    golden, host_platform,
    model::Model,
    pipeline::{Graph, LoadedKind, LoadedStage},
    wasm::Step,
};

/// A bundle whose models and steps are in memory and fit together.
pub struct LoadedBundle {
    metadata: ModelMetadata,
    stages: Vec<LoadedStage>,
    graph: Graph,
    engine: EngineName,
    measured: Vec<Measured>,
}

/// Gives the content of a resource **whose digest it has verified**.
pub type Read<'a> = dyn FnMut(&Resource) -> std::io::Result<Vec<u8>> + 'a;

impl LoadedBundle {
    /// Loads what `manifest` describes, with the first engine of `runtime` that can.
    ///
    /// # Errors
    /// [`LoadError`], that of the engine that is tried first; nothing stays in memory.
    pub fn load(runtime: &Runtime, manifest: &Manifest, read: &mut Read<'_>) -> Result<LoadedBundle, LoadError> {
        let mut first = None;
        for engine in runtime.engines().names() {
            match LoadedBundle::load_with(runtime, manifest, engine, read) {
                // Another engine may be able to.
                Err(error @ (LoadError::Model { .. } | LoadError::Engine(_))) => first = first.or(Some(error)),
                done => return done,
            }
        }
        Err(first.unwrap_or_else(|| LoadError::Runtime("there is no engine".to_owned())))
    }

    /// Loads what `manifest` describes; `engine` runs all of its models.
    ///
    /// # Errors
    /// [`LoadError`]; nothing stays in memory.
    pub fn load_with(
        runtime: &Runtime,
        manifest: &Manifest,
        engine: EngineName,
        read: &mut Read<'_>,
    ) -> Result<LoadedBundle, LoadError> {
        let order = manifest.check_pipeline()?;
        let candidate = runtime.engines().candidate(engine)?;
        let mut fetch = |resource: &Resource| {
            read(resource).map_err(|source| LoadError::Read {
                name: resource.name.clone(),
                source,
            })
        };
        let mut stages = Vec::with_capacity(manifest.pipeline.stages.len());
        for stage in &manifest.pipeline.stages {
            let name = stage.name.clone();
            let kind = match &stage.kind {
                StageKind::Model { resource } => {
                    let entry = manifest.resource(resource);
                    let entry = entry.ok_or_else(|| LoadError::MissingResource(resource.clone()))?;
                    let model = Model::load(&fetch(entry)?, &candidate);
                    LoadedKind::Model(Box::new(model.map_err(|source| LoadError::Model {
                        stage: name.clone(),
                        source,
                    })?))
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
            let batch = stage.batch;
            stages.push(LoadedStage { name, kind, batch });
        }
        let pipeline = &manifest.pipeline;
        let graph = Graph::new(pipeline, order, &stages)?;
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
            graph,
            engine,
            measured: Vec::new(),
        })
    }

    /// Loads a bundle in this process with each engine that `runtime` has, proves each on the golden vectors, and keeps the fastest
    /// that is right. Without golden vectors it keeps the first that loads.
    ///
    /// # Errors
    /// [`ProveError`] of the engine that is tried first when none is right: do not serve this bundle.
    pub fn load_best(runtime: &Runtime, manifest: &Manifest, read: &mut Read<'_>) -> Result<LoadedBundle, ProveError> {
        let golden = golden_vectors(manifest, read)?;
        let mut best: Option<(u64, LoadedBundle)> = None;
        let chosen = choice::choose(runtime.engines(), |engine| {
            let began = Instant::now();
            let bundle = LoadedBundle::load_with(runtime, manifest, engine, read)?;
            let mut figures = Figures::loaded_in(began.elapsed());
            if let Some((vectors, tolerance)) = &golden {
                bundle.check_golden(vectors, *tolerance)?;
                if runtime.engines().has_onnxruntime() {
                    figures.timing = Some(bundle.time(vectors));
                }
            }
            let speed = figures.speed();
            if best.as_ref().is_none_or(|(before, _)| speed < *before) {
                best = Some((speed, bundle));
            }
            Ok::<Figures, ProveError>(figures)
        });
        let chosen = chosen.map_err(|refused| refused.error)?;
        let (_, bundle) = best.expect("an engine is chosen after it has loaded");
        Ok(bundle.with_measured(chosen.measured))
    }

    /// Loads a bundle with one engine, and proves it on the golden vectors.
    ///
    /// # Errors
    /// [`ProveError`]: do not serve this bundle with this engine.
    pub fn load_proved(
        runtime: &Runtime,
        manifest: &Manifest,
        engine: EngineName,
        read: &mut Read<'_>,
    ) -> Result<LoadedBundle, ProveError> {
        let bundle = LoadedBundle::load_with(runtime, manifest, engine, read)?;
        if let Some((vectors, tolerance)) = golden_vectors(manifest, read)? {
            bundle.check_golden(&vectors, tolerance)?;
        }
        Ok(bundle)
    }

    /// Compares its answers with the golden vectors'.
    ///
    /// # Errors
    /// [`GoldenError`]: do not serve this bundle with this engine.
    pub fn check_golden(&self, vectors: &GoldenVectors, tolerance: Tolerance) -> Result<(), GoldenError> {
        golden::check(vectors, tolerance, |inputs| self.infer(inputs))
    }

    /// How long an inference of these vectors takes; half a second of looking at most.
    pub fn time(&self, vectors: &GoldenVectors) -> Timing {
        let requests: Vec<_> = vectors.vectors.iter().map(|vector| &vector.inputs).collect();
        Timing::of(&requests, |inputs| {
            // It has answered rightly before; only its time is wanted.
            let _answer = self.infer((*inputs).clone());
        })
    }

    /// The same, with what was measured before it was loaded.
    pub fn with_measured(mut self, measured: Vec<Measured>) -> LoadedBundle {
        self.measured = measured;
        self
    }

    /// The engine that runs the models.
    pub fn engine(&self) -> EngineName {
        self.engine
    }

    /// What each engine that was tried has shown; empty if nobody has measured.
    pub fn measured(&self) -> &[Measured] {
        &self.measured
    }

    /// Answers one request.
    ///
    /// # Errors
    /// [`InferError`]; the bundle stays usable.
    pub fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        self.graph.run(&self.stages, &self.metadata.inputs, inputs)
    }

    /// What the pipeline takes and gives.
    pub fn metadata(&self) -> &ModelMetadata {
        &self.metadata
    }
}

/// The golden vectors of a bundle, if it has any.
pub(crate) fn golden_vectors(
    manifest: &Manifest,
    read: &mut Read<'_>,
) -> Result<Option<(GoldenVectors, Tolerance)>, LoadError> {
    let Some(golden) = &manifest.golden else {
        return Ok(None);
    };
    let name = &golden.resource;
    let resource = manifest.resource(name);
    let resource = resource.ok_or_else(|| LoadError::MissingResource(name.clone()))?;
    let bytes = read(resource).map_err(|source| LoadError::Read {
        name: name.clone(),
        source,
    })?;
    let vectors = serde_json::from_slice(&bytes).map_err(|source| LoadError::GoldenVectors {
        name: name.clone(),
        source,
    })?;
    Ok(Some((vectors, golden.tolerance)))
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
