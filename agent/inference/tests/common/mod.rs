//! Models with known answers: loads one alone as a bundle, and compares.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use skerry_inference::{LoadedBundle, Runtime};
use skerry_shared::{
    bundle::{Golden, GoldenVectors, Lineage, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind, Tolerance},
    digest::Digest,
    oip::TensorMetadata,
    schema::SchemaVersion,
};

pub const CLOSE: Tolerance = Tolerance {
    absolute: 1e-5,
    relative: 1e-4,
};

/// The committed cases.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// The names of the cases that begin so.
pub fn names(prefix: &str) -> BTreeSet<String> {
    let names = fs::read_dir(folder()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".onnx")?;
        name.starts_with(prefix).then(|| name.to_owned())
    });
    names.collect()
}

/// Loads a model alone and compares its answers; the bundle as it serves then.
pub fn prove(runtime: &Runtime, folder: &Path, name: &str, tolerance: Tolerance) -> Result<LoadedBundle, String> {
    let onnx = fs::read(folder.join(format!("{name}.onnx"))).unwrap();
    let golden = fs::read(folder.join(format!("{name}.json"))).unwrap();
    let vectors: GoldenVectors = serde_json::from_slice(&golden).unwrap();
    let metadata = |tensors: &[skerry_shared::oip::Tensor]| -> Vec<TensorMetadata> {
        let any_shape = |tensor: &skerry_shared::oip::Tensor| {
            let mut metadata = tensor.metadata();
            metadata.shape.fill(-1);
            metadata
        };
        tensors.iter().map(any_shape).collect()
    };
    let manifest = Manifest {
        schema: SchemaVersion::CURRENT,
        model: "case".parse().unwrap(),
        version: "1".parse().unwrap(),
        created_at_ms: 0,
        resources: vec![
            Resource {
                name: "model.onnx".parse().unwrap(),
                digest: Digest::of(&onnx),
                size_bytes: onnx.len() as u64,
                kind: ResourceKind::OnnxModel,
            },
            Resource {
                name: "golden.json".parse().unwrap(),
                digest: Digest::of(&golden),
                size_bytes: golden.len() as u64,
                kind: ResourceKind::GoldenVectors,
            },
        ],
        pipeline: Pipeline {
            inputs: metadata(&vectors.vectors[0].inputs),
            outputs: metadata(&vectors.vectors[0].outputs),
            stages: vec![Stage {
                name: "model".parse().unwrap(),
                kind: StageKind::Model {
                    resource: "model.onnx".parse().unwrap(),
                },
                batch: None,
            }],
            edges: vec![],
        },
        golden: Some(Golden {
            resource: "golden.json".parse().unwrap(),
            tolerance,
        }),
        lineage: Lineage::default(),
    };
    let told = |error: &dyn std::error::Error| {
        let mut told = format!("{name}: {error}");
        let mut source = error.source();
        while let Some(inner) = source {
            told += &format!(": {inner}");
            source = inner.source();
        }
        told
    };
    let mut read = |resource: &Resource| match resource.kind {
        ResourceKind::OnnxModel => Ok(onnx.clone()),
        _ => Ok(golden.clone()),
    };
    LoadedBundle::load_best(runtime, &manifest, &mut read).map_err(|error| told(&error))
}
