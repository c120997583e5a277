//! Models of `cases/`, each with the answers of ONNX Runtime (or of the ONNX project for its own node cases): every one must run
//! and answer alike. How they were made is in `cases/make.py`.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use skerry_inference::{LoadedBundle, Runtime};
use skerry_shared::{
    bundle::{GoldenVectors, Lineage, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind, Tolerance},
    digest::Digest,
    schema::SchemaVersion,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

/// Loads the model of a case alone and compares its answers.
fn check(runtime: &Runtime, name: &str, tolerance: Tolerance) -> Result<(), String> {
    let onnx = fs::read(folder().join(format!("{name}.onnx"))).unwrap();
    let vectors = fs::read(folder().join(format!("{name}.json"))).unwrap();
    let vectors: GoldenVectors = serde_json::from_slice(&vectors).unwrap();
    let checked = skerry_inference::check_model(&onnx).map_err(|error| format!("{name}: {error}"))?;
    let manifest = Manifest {
        schema: SchemaVersion::CURRENT,
        model: "case".parse().unwrap(),
        version: "1".parse().unwrap(),
        created_at_ms: 0,
        resources: vec![Resource {
            name: "model.onnx".parse().unwrap(),
            digest: Digest::of(&onnx),
            size_bytes: onnx.len() as u64,
            kind: ResourceKind::OnnxModel,
        }],
        pipeline: Pipeline {
            inputs: checked.inputs,
            outputs: checked.outputs,
            stages: vec![Stage {
                name: "model".parse().unwrap(),
                kind: StageKind::Model {
                    resource: "model.onnx".parse().unwrap(),
                },
            }],
        },
        golden: None,
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
    let mut bundle = LoadedBundle::load(runtime, &manifest, &mut |_| Ok(onnx.clone())).map_err(|error| told(&error))?;
    bundle.check_golden(&vectors, tolerance).map_err(|error| told(&error))
}

/// Checks every case whose name begins so; there must be `count` of them.
fn check_all(prefix: &str, count: usize, tolerance: Tolerance) {
    let names = fs::read_dir(folder()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".onnx")?;
        name.starts_with(prefix).then(|| name.to_owned())
    });
    let names: BTreeSet<String> = names.collect();
    assert_eq!(names.len(), count, "{names:?}");
    let runtime = Runtime::new().unwrap();
    let failed: Vec<String> = names
        .iter()
        .filter_map(|name| check(&runtime, name, tolerance).err())
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {count} fail:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

const CLOSE: Tolerance = Tolerance {
    absolute: 1e-5,
    relative: 1e-4,
};

#[test]
fn classical_node_cases_of_the_onnx_project_are_right() {
    check_all("node_", 8, CLOSE);
}

#[test]
fn models_of_scikit_learn_are_right() {
    check_all("skl_", 24, CLOSE);
}

#[test]
fn linear_classifiers_are_right_in_every_form() {
    check_all("linear_", 7, CLOSE);
}

#[test]
fn boosted_trees_are_right() {
    check_all("xgboost_", 3, CLOSE);
    check_all("lightgbm_", 2, CLOSE);
}

#[test]
fn quantised_operators_are_right() {
    check_all("qlinear_", 16, CLOSE);
    check_all("qdq_", 4, CLOSE);
}

#[test]
fn recurrent_operators_with_quantised_weights_are_near_the_quantised_answers() {
    // The activations stay floats, so that only the weights' error is shared.
    let near = Tolerance {
        absolute: 0.02,
        relative: 0.0,
    };
    check_all("dynamic_lstm_", 2, near);
}

#[test]
fn conditions_and_shapes_may_follow_from_inputs() {
    for (prefix, count) in [("if_", 5), ("squeeze_", 1), ("reshape_", 1), ("slice_", 1)] {
        check_all(prefix, count, CLOSE);
    }
}

#[test]
fn every_datatype_goes_in_and_comes_out() {
    check_all("datatypes", 1, CLOSE);
}
