//! Loading in a process of its own, with the agent's real program and models that are hostile to their loader.
#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf, time::Duration};

use skerry_inference::{EngineName, Figures, Loader, LoaderError, LoaderLimits};
use skerry_shared::{
    bundle::{GoldenVector, GoldenVectors, Manifest, ResourceKind, Tolerance},
    oip::Tensor,
};

#[path = "../inference/tests/common/mod.rs"]
mod common;

const GENEROUS: LoaderLimits = LoaderLimits {
    memory_bytes: 512 * 1024 * 1024,
    time: Duration::from_secs(120),
};

fn loader(limits: LoaderLimits) -> Loader {
    Loader {
        program: env!("CARGO_BIN_EXE_skerry-agent").into(),
        words: vec!["load-check".into()],
        limits,
    }
}

fn inference_tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("inference/tests")
}

/// A bundle of one model and its golden vectors.
struct Bundle {
    manifest: Manifest,
    onnx: Vec<u8>,
    golden: Vec<u8>,
}

impl Bundle {
    fn new(onnx: Vec<u8>, vectors: &GoldenVectors) -> Bundle {
        let golden = serde_json::to_vec(vectors).unwrap();
        let tolerance = Tolerance {
            absolute: 1e-4,
            relative: 1e-4,
        };
        let manifest = common::one_model(&onnx, &golden, vectors, tolerance);
        Bundle { manifest, onnx, golden }
    }

    /// A model that is right, of the cases of the inference crate.
    fn honest() -> Bundle {
        let file = |name: &str| fs::read(inference_tests().join("cases").join(name)).unwrap();
        let vectors = serde_json::from_slice(&file("skl_forest_3.json")).unwrap();
        Bundle::new(file("skl_forest_3.onnx"), &vectors)
    }

    /// A hostile one: `y = x + …`.
    fn hostile(name: &str) -> Bundle {
        let onnx = fs::read(inference_tests().join("hostile").join(name)).unwrap();
        let tensor = |name| Tensor::from_f32(name, vec![1], &[1.0]).unwrap();
        let vector = GoldenVector {
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
        };
        Bundle::new(onnx, &GoldenVectors { vectors: vec![vector] })
    }

    fn prove(&self, limits: LoaderLimits) -> Result<Figures, LoaderError> {
        loader(limits).prove(&self.manifest, EngineName::Tract, None, &mut |resource| {
            Ok(match resource.kind {
                ResourceKind::OnnxModel => self.onnx.clone(),
                _ => self.golden.clone(),
            })
        })
    }
}

#[test]
fn a_right_model_is_measured() {
    let figures = Bundle::honest().prove(GENEROUS).unwrap();
    assert!(figures.peak_memory_bytes.unwrap() > 0, "{figures:?}");
    assert!(figures.timing.unwrap().p95_us > 0, "{figures:?}");
}

#[test]
fn a_model_that_answers_wrongly_is_told_from_one_that_does_not_load() {
    let mut wrong = Bundle::honest();
    let mut vectors: GoldenVectors = serde_json::from_slice(&wrong.golden).unwrap();
    let first = vectors.vectors[0].inputs.clone();
    vectors.vectors[1].inputs = first;
    wrong.golden = serde_json::to_vec(&vectors).unwrap();
    let error = wrong.prove(GENEROUS).unwrap_err();
    assert!(matches!(error, LoaderError::AnswersWrongly(_)), "{error}");

    let mut broken = Bundle::honest();
    broken.onnx.truncate(broken.onnx.len() / 2);
    let error = broken.prove(GENEROUS).unwrap_err();
    assert!(matches!(error, LoaderError::DoesNotLoad(_)), "{error}");
}

#[test]
fn a_model_that_allocates_without_bound_ends_its_loader_only() {
    let error = Bundle::hostile("greedy.onnx").prove(GENEROUS).unwrap_err();
    assert!(matches!(error, LoaderError::Memory(_)), "{error}");
}

#[test]
fn a_model_that_never_finishes_loading_ends_at_the_limit() {
    let limits = LoaderLimits {
        time: Duration::from_secs(2),
        ..GENEROUS
    };
    let error = Bundle::hostile("endless.onnx").prove(limits).unwrap_err();
    assert!(matches!(error, LoaderError::Time(_)), "{error}");
}

#[test]
fn memory_that_does_not_suffice_is_said_as_such() {
    let limits = LoaderLimits {
        memory_bytes: 1024 * 1024,
        ..GENEROUS
    };
    let error = Bundle::honest().prove(limits).unwrap_err();
    assert!(
        matches!(error, LoaderError::Memory(_) | LoaderError::Crashed { .. }),
        "{error}"
    );
}

#[test]
fn a_program_that_is_no_loader_is_an_error_and_no_proof() {
    let bundle = Bundle::honest();
    for (program, words) in [("/bin/true", vec![]), ("/bin/cat", vec!["-".into()])] {
        let loader = Loader {
            program: program.into(),
            words,
            limits: GENEROUS,
        };
        let proved = loader.prove(&bundle.manifest, EngineName::Tract, None, &mut |_| Ok(Vec::new()));
        assert!(
            matches!(proved, Err(LoaderError::Crashed { .. })),
            "{program}: {proved:?}"
        );
    }
    let absent = Loader {
        program: "/nowhere/skerry-agent".into(),
        words: vec![],
        limits: GENEROUS,
    };
    let proved = absent.prove(&bundle.manifest, EngineName::Tract, None, &mut |_| Ok(Vec::new()));
    assert!(matches!(proved, Err(LoaderError::Start(_))), "{proved:?}");
}
