//! The publisher's half of the loop: training → registry → signing → publish → rollouts.

use serde_json::{Value, json};
use skerry_system_tests::{
    Fleet,
    fixtures::{MODEL, activity_recognition},
};

use crate::PROGRAM;

/// A training script as short as one can be: it "trains" by copying, and writes what a run must leave.
const SCRIPT: &str = r#"#!/bin/sh
set -e
echo "learning with $*"
mkdir -p "$SKERRY_OUTPUT_DIR/artifacts"
echo '{"key":"accuracy","value":0.9,"step":0}' >> "$SKERRY_OUTPUT_DIR/metrics.jsonl"
cp "$SKERRY_INPUT_DIR/model.onnx" "$SKERRY_OUTPUT_DIR/artifacts/model.onnx"
"#;

fn submit(fleet: &Fleet) -> Value {
    std::fs::write(fleet.path("train.sh"), SCRIPT).unwrap();
    let onnx = activity_recognition().join("models/v1/model.onnx");
    let onnx = onnx.to_str().unwrap();
    let arguments = [
        "run",
        "submit",
        "--script",
        "train.sh",
        "--input",
        onnx,
        "--param",
        "rate=0.1",
        "--register-as",
        MODEL,
    ];
    let run = fleet.skerry_json(&arguments).unwrap();
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    let ended = |run: &Value| matches!(run["status"].as_str(), Some("finished" | "failed" | "killed"));
    fleet
        .wait("the run to end", || {
            let run = fleet.client().get(&path)?;
            Ok(ended(&run).then_some(run))
        })
        .unwrap()
}

#[test]
fn flow_a_run_becomes_a_model_version_with_its_lineage() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let run = submit(&fleet);
    assert_eq!(run["status"], "finished", "{run}");
    assert_eq!(run["metrics"]["accuracy"], 0.9);
    assert_eq!(run["registered"], json!({"model": MODEL, "version": 1}));
    let model = fleet.skerry_json(&["model", "show", MODEL]).unwrap();
    assert_eq!(model["versions"][0]["run_id"], run["id"]);

    // The lineage goes into the bundle: data set, code and run.
    let built = fleet.build(1).unwrap();
    assert_eq!(built["version"], 1);
    let manifest = &fleet.skerry_json(&["bundle", "inspect", "bundle-v1"]).unwrap()["manifest"];
    assert_eq!(manifest["lineage"]["run_id"], run["id"]);
    assert_eq!(manifest["lineage"]["dataset"], run["dataset"]);
    assert_eq!(manifest["lineage"]["code"], run["code"]);
    let log = fleet.skerry(&["run", "logs", run["id"].as_str().unwrap()]).unwrap();
    assert!(String::from_utf8_lossy(&log.stdout).contains("--rate 0.1"));
}

#[test]
fn flow_a_registered_version_is_bundled_signed_and_published() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    fleet.build(1).unwrap();
    let unsigned = fleet.skerry(&["bundle", "publish", "bundle-v1"]).unwrap();
    assert_eq!(unsigned.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&unsigned.stderr).contains("sign"),
        "it says what to do"
    );

    fleet
        .skerry_json(&["bundle", "sign", "bundle-v1", "--keys", "keys"])
        .unwrap();
    let published = fleet.skerry_json(&["bundle", "publish", "bundle-v1"]).unwrap();
    assert_eq!(published["model"], MODEL);
    let targets = fleet.client().get("/api/v1/tuf/targets.json").unwrap();
    let target = published["target"].as_str().unwrap();
    assert!(
        targets["signed"]["targets"][target].is_object(),
        "the bundle is a target"
    );

    // The server keeps what it acknowledged, and adds a second version beside it.
    fleet.release(2).unwrap();
    let bundles = fleet.client().get("/api/v1/bundles").unwrap();
    assert_eq!(bundles["bundles"].as_array().unwrap().len(), 2);
}

#[test]
fn flow_only_a_published_bundle_can_be_rolled_out() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let _device = fleet.enroll("dev-1").unwrap();
    fleet.build(1).unwrap();
    let refused = fleet.skerry(&["rollout", "create", MODEL, "1"]).unwrap();
    assert_eq!(refused.status.code(), Some(3), "not found");
    fleet.release(1).unwrap();
    let rollout = fleet
        .skerry_json(&["rollout", "create", MODEL, "1", "--draft"])
        .unwrap();
    assert_eq!(rollout["state"], "draft");
    let device = fleet.device("dev-1").unwrap();
    assert_eq!(device["generation"], 0, "a draft touches nobody");
    fleet.skerry_json(&["rollout", "resume", "1"]).unwrap();
    fleet
        .wait("the device to be told", || {
            Ok((fleet.device("dev-1")?["generation"] == 1).then_some(()))
        })
        .unwrap();
}

#[test]
fn what_was_acknowledged_survives_a_killed_server() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let published = fleet.release(1).unwrap();
    let _device = fleet.enroll("dev-1").unwrap();
    fleet.skerry_json(&["rollout", "create", MODEL, "1"]).unwrap();
    fleet.kill_server().unwrap();
    fleet.start_server().unwrap();
    let bundle = fleet.client().get(&format!("/api/v1/bundles/{MODEL}/1")).unwrap();
    assert_eq!(bundle["index"], published["index"]);
    assert_eq!(fleet.client().rollout(1).unwrap()["model"], MODEL);
    assert_eq!(fleet.device("dev-1").unwrap()["id"], "dev-1");
}
