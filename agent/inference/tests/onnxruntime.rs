//! The second engine, with the shared library that SKERRY_TEST_ONNXRUNTIME names. Feature `outside`. ORT_DISABLE_TELEMETRY must be
//! set, or the library is not opened.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use common::{CLOSE, folder, names, prove};
use skerry_inference::{EngineChoice, EngineName, Engines, Runtime};

fn runtime(choice: EngineChoice) -> Runtime {
    let library = std::env::var_os("SKERRY_TEST_ONNXRUNTIME").expect("SKERRY_TEST_ONNXRUNTIME names libonnxruntime.so");
    let engines = Engines::find(choice, Some(PathBuf::from(library)));
    assert!(engines.has_onnxruntime());
    Runtime::with_engines(engines).unwrap()
}

#[test]
fn onnx_runtime_answers_every_case_that_tract_does() {
    let runtime = runtime(EngineChoice::OnnxRuntime);
    let names = names("");
    assert!(names.len() > 60, "{names:?}");
    let mut failed = Vec::new();
    for name in names {
        match prove(&runtime, &folder(), &name, CLOSE) {
            Ok(bundle) if bundle.engine() == EngineName::OnnxRuntime => (),
            Ok(bundle) => failed.push(format!("{name} runs on {}: {:?}", bundle.engine(), bundle.measured())),
            Err(error) => failed.push(error),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_engine_is_measured_and_the_fastest_right_one_serves() {
    let bundle = prove(&runtime(EngineChoice::Auto), &folder(), "skl_forest_3", CLOSE).unwrap();
    let measured: Vec<EngineName> = bundle.measured().iter().map(|one| one.engine).collect();
    assert_eq!(measured, [EngineName::Tract, EngineName::OnnxRuntime]);
    let fastest = bundle
        .measured()
        .iter()
        .min_by_key(|one| one.outcome.as_ref().unwrap().timing.unwrap().fastest_us)
        .unwrap();
    assert_eq!(bundle.engine(), fastest.engine);
}

#[test]
fn an_engine_that_answers_otherwise_does_not_serve_however_fast() {
    // tract keeps the activations as floats, so that its answers are other than the quantised ones.
    let bundle = prove(&runtime(EngineChoice::Auto), &folder(), "dynamic_lstm_forward", CLOSE).unwrap();
    assert_eq!(bundle.engine(), EngineName::OnnxRuntime);
    assert!(
        bundle
            .measured()
            .iter()
            .filter(|one| one.engine != EngineName::OnnxRuntime)
            .all(|one| one.outcome.is_err())
    );
}
