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
    error::chain,
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

/// A bundle's manifest with one model and its golden vectors.
pub fn one_model(onnx: &[u8], golden: &[u8], vectors: &GoldenVectors, tolerance: Tolerance) -> Manifest {
    let resource = |name: &str, kind, content: &[u8]| Resource {
        name: name.parse().unwrap(),
        digest: Digest::of(content),
        size_bytes: content.len() as u64,
        kind,
    };
    let metadata = |tensors: &[skerry_shared::oip::Tensor]| -> Vec<TensorMetadata> {
        let any_shape = |tensor: &skerry_shared::oip::Tensor| {
            let mut metadata = tensor.metadata();
            metadata.shape.fill(-1);
            metadata
        };
        tensors.iter().map(any_shape).collect()
    };
    Manifest {
        schema: SchemaVersion::CURRENT,
        model: "case".parse().unwrap(),
        version: "1".parse().unwrap(),
        created_at_ms: 0,
        resources: vec![
            resource("model.onnx", ResourceKind::OnnxModel, onnx),
            resource("golden.json", ResourceKind::GoldenVectors, golden),
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
    }
}

/// Loads a model alone and compares its answers; the bundle as it serves then.
pub fn prove(runtime: &Runtime, folder: &Path, name: &str, tolerance: Tolerance) -> Result<LoadedBundle, String> {
    let onnx = fs::read(folder.join(format!("{name}.onnx"))).unwrap();
    let golden = fs::read(folder.join(format!("{name}.json"))).unwrap();
    let vectors: GoldenVectors = serde_json::from_slice(&golden).unwrap();
    let manifest = one_model(&onnx, &golden, &vectors, tolerance);
    let mut read = |resource: &Resource| match resource.kind {
        ResourceKind::OnnxModel => Ok(onnx.clone()),
        _ => Ok(golden.clone()),
    };
    LoadedBundle::load_best(runtime, &manifest, &mut read).map_err(|error| format!("{name}: {}", chain(&error)))
}
