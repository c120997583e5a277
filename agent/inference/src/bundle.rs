//! A loaded bundle: its pipeline, ready to answer from several threads at once.

use skerry_shared::{
    bundle::{GoldenVectors, Manifest, Resource, StageKind, Tolerance},
    id::ResourceName,
    oip::{ModelMetadata, Tensor},
};

use crate::{
    EngineName, Engines, GoldenError, InferError, LoadError, Measured, Runtime, WASMTIME_VERSION,
    engine::choice::{self, Candidate},
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
    /// The ONNX files, until the golden vectors have said which engine serves.
    files: ModelFiles,
    engines: Engines,
    serves: EngineName,
    measured: Vec<Measured>,
}

/// The ONNX files of a pipeline. One engine runs all of them.
#[derive(Default)]
struct ModelFiles(Vec<ModelFile>);

struct ModelFile {
    /// Its place in the pipeline.
    position: usize,
    stage: ResourceName,
    onnx: Vec<u8>,
}

impl ModelFiles {
    fn load(&self, candidate: &Candidate) -> Result<Vec<(usize, Model)>, LoadError> {
        let load = |file: &ModelFile| {
            let model = Model::load(&file.onnx, candidate).map_err(|source| LoadError::Model {
                stage: file.stage.clone(),
                source,
            })?;
            Ok((file.position, model))
        };
        self.0.iter().map(load).collect()
    }

    /// Loads all with the first engine that can.
    ///
    /// # Errors
    /// That of the engine that is tried first.
    fn load_first(&self, engines: &Engines) -> Result<(Vec<(usize, Model)>, EngineName), LoadError> {
        let mut first = None;
        for candidate in engines.candidates() {
            match self.load(&candidate) {
                Ok(models) => return Ok((models, candidate.name())),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| LoadError::Runtime("there is no engine".to_owned())))
    }
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
        manifest.check_pipeline()?;
        let mut fetch = |resource: &Resource| {
            read(resource).map_err(|source| LoadError::Read {
                name: resource.name.clone(),
                source,
            })
        };
        let mut files = ModelFiles::default();
        for (position, stage) in manifest.pipeline.stages.iter().enumerate() {
            if let StageKind::Model { resource } = &stage.kind {
                let entry = manifest.resource(resource);
                files.0.push(ModelFile {
                    position,
                    stage: stage.name.clone(),
                    onnx: fetch(entry.ok_or_else(|| LoadError::MissingResource(resource.clone()))?)?,
                });
            }
        }
        let (models, serves) = files.load_first(runtime.engines())?;
        let mut models = models.into_iter();
        let mut stages = Vec::with_capacity(manifest.pipeline.stages.len());
        for stage in &manifest.pipeline.stages {
            let name = stage.name.clone();
            let kind = match &stage.kind {
                StageKind::Model { resource } => {
                    let (_, model) = models
                        .next()
                        .ok_or_else(|| LoadError::MissingResource(resource.clone()))?;
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
            let batch = stage.batch;
            stages.push(LoadedStage { name, kind, batch });
        }
        let pipeline = &manifest.pipeline;
        let graph = Graph::new(pipeline, &stages)?;
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
            files,
            engines: runtime.engines().clone(),
            serves,
            measured: Vec::new(),
        })
    }

    /// Proves the bundle on its golden vectors with each engine that is present, and keeps the fastest that is right. tract's plain
    /// plan is tried only where its optimised one is not right, since it is never faster.
    ///
    /// # Errors
    /// [`GoldenError`] of the engine that was loaded first when none is right: do not serve this bundle.
    pub fn check_golden(&mut self, vectors: &GoldenVectors, tolerance: Tolerance) -> Result<(), GoldenError> {
        let files = std::mem::take(&mut self.files);
        let engines = self.engines.clone();
        // The engine that is loaded already comes first.
        let mut candidates = engines.candidates();
        candidates.sort_by_key(|candidate| candidate.name() != self.serves);
        let (mut first_error, mut tract_is_right) = (None, false);
        for candidate in candidates {
            let name = candidate.name();
            let done = choice::fastest(&self.measured).is_some() && engines.first_right_serves();
            if done
                || files.0.is_empty() && !self.measured.is_empty()
                || name == EngineName::TractPlain && tract_is_right
            {
                continue;
            }
            let before = self.serves;
            let replaced = if name == before {
                Vec::new()
            } else {
                match files.load(&candidate) {
                    Ok(models) => self.replace(models, name),
                    Err(error) => {
                        let outcome = Err(crate::error::chain(&error));
                        self.measured.push(Measured { engine: name, outcome });
                        continue;
                    }
                }
            };
            let outcome = golden::check(vectors, tolerance, |inputs| self.infer(inputs)).map(|()| {
                choice::time(|| {
                    for vector in &vectors.vectors {
                        // It has just answered rightly; only its time is wanted.
                        let _answer = self.infer(vector.inputs.clone());
                    }
                })
            });
            tract_is_right |= name == EngineName::Tract && outcome.is_ok();
            let outcome = outcome.map_err(|error| {
                let words = crate::error::chain(&error);
                first_error.get_or_insert(error);
                words
            });
            self.measured.push(Measured { engine: name, outcome });
            if choice::fastest(&self.measured) != Some(name) && name != before {
                self.replace(replaced, before);
            }
        }
        for measured in &self.measured {
            match &measured.outcome {
                Ok(time) => tracing::info!(engine = %measured.engine, time_us = time.as_micros() as u64, "right"),
                Err(error) => tracing::warn!(engine = %measured.engine, %error, "cannot serve this bundle"),
            }
        }
        match (choice::fastest(&self.measured), first_error) {
            (None, Some(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Lets other models run and gives the ones before them back.
    fn replace(&mut self, models: Vec<(usize, Model)>, serves: EngineName) -> Vec<(usize, Model)> {
        self.serves = serves;
        let swap = |(position, model): (usize, Model)| {
            let kind = std::mem::replace(&mut self.stages[position].kind, LoadedKind::Model(Box::new(model)));
            match kind {
                LoadedKind::Model(before) => Some((position, *before)),
                LoadedKind::Step(_) => None,
            }
        };
        models.into_iter().filter_map(swap).collect()
    }

    /// The engine that runs the models.
    pub fn engine(&self) -> EngineName {
        self.serves
    }

    /// What each engine did with the golden vectors; empty before [`LoadedBundle::check_golden`].
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
