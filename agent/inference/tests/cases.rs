//! Models of `cases/`, each with the answers of ONNX Runtime (or of the ONNX project for its own node cases): every one must run
//! and answer alike. How they were made is in `cases/make.py`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{CLOSE, folder, names, prove};
use skerry_inference::Runtime;
use skerry_shared::bundle::Tolerance;

/// Checks every case whose name begins so; there must be `count` of them.
fn check_all(prefix: &str, count: usize, tolerance: Tolerance) {
    let names = names(prefix);
    assert_eq!(names.len(), count, "{names:?}");
    let runtime = Runtime::new().unwrap();
    let failed = names
        .iter()
        .filter_map(|name| prove(&runtime, &folder(), name, tolerance).err());
    let failed: Vec<String> = failed.collect();
    assert!(
        failed.is_empty(),
        "{} of {count} fail:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

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
