//! Who did what, and where a model comes from: proved from files alone, on the operator's machine and on the device.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use skerry_system_tests::{
    Device, Fleet,
    fixtures::{MODEL, activity_recognition},
};

use crate::PROGRAM;

/// What `skerry-agent verify` says: whether it succeeded, and its JSON.
fn prove(device: &Device) -> (bool, Value) {
    let output = Command::new(PROGRAM)
        .args(["agent", "verify", "-o", "json", "--state-dir"])
        .arg(&device.state_dir)
        .output()
        .unwrap();
    let answer = serde_json::from_slice(&output.stdout);
    let answer = answer.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), answer)
}

/// Flips a bit in the middle of a file, has the device proved, and flips it back. Gives the places that are broken.
fn broken_places(device: &Device, path: &Path) -> Vec<String> {
    let whole = fs::read(path).unwrap();
    let mut broken = whole.clone();
    broken[whole.len() / 2] ^= 1;
    fs::write(path, &broken).unwrap();
    let (succeeded, answer) = prove(device);
    fs::write(path, whole).unwrap();
    assert!(!succeeded, "{}", path.display());
    let broken = answer["proof"]["broken"].as_array().unwrap();
    broken.iter().map(|b| b["place"].as_str().unwrap().to_owned()).collect()
}

/// A model that a run has made from the given input, approved, published, and on one device.
fn trained_and_deployed() -> (Fleet, Device, Value) {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let onnx = activity_recognition().join("models/v1/model.onnx");
    fs::create_dir(fleet.path("data-set")).unwrap();
    fs::copy(onnx, fleet.path("data-set/model.onnx")).unwrap();
    let script = "#!/bin/sh\nset -e\nmkdir -p \"$SKERRY_OUTPUT_DIR/artifacts\"\n\
                  cp \"$SKERRY_INPUT_DIR/model.onnx\" \"$SKERRY_OUTPUT_DIR/artifacts/model.onnx\"\n";
    fs::write(fleet.path("train.sh"), script).unwrap();
    let submit = [
        "run",
        "submit",
        "--script",
        "train.sh",
        "--input",
        "data-set/model.onnx",
        "--register-as",
        MODEL,
    ];
    let run = fleet.skerry_json(&submit).unwrap();
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    let run = fleet.wait("the run to end", || {
        let run = fleet.client().get(&path)?;
        Ok((run["status"] == "finished").then_some(run))
    });
    let run = run.unwrap();
    fleet.skerry_json(&["model", "approve", MODEL, "1"]).unwrap();
    let device = fleet.devices(&["dev-1"]).unwrap().remove(0);
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    (fleet, device, run)
}

fn link<'a>(lineage: &'a Value, what: &str) -> &'a Value {
    let links = lineage.as_array().unwrap();
    links.iter().find(|link| link["what"] == what).unwrap()
}

#[test]
fn flow_a_device_proves_offline_where_its_model_comes_from() {
    let (mut fleet, mut device, run) = trained_and_deployed();

    let model = fleet.skerry_json(&["model", "show", MODEL]).unwrap();
    let approver = model["versions"][0]["approval"]["by"].clone();
    assert!(approver.is_string(), "{model}");

    // On the operator's machine, from the folder alone.
    fleet.stop_server().unwrap();
    let verify = ["bundle", "verify", "bundle-v1", "--dataset", "data-set"];
    let verified = fleet.skerry_json(&verify).unwrap();
    assert_eq!(
        link(&verified["bundle"]["lineage"], "data set")["value"],
        run["dataset"]
    );
    fs::write(fleet.path("data-set/model.onnx"), "another").unwrap();
    assert!(!fleet.skerry(&verify).unwrap().status.success());

    // On the device, while its agent runs.
    let (succeeded, answer) = prove(&device);
    assert!(succeeded, "{answer}");
    assert_eq!(answer["device"], "dev-1");
    let root = skerry_shared::digest::Digest::of(&fs::read(fleet.path("keys/root.json")).unwrap());
    assert_eq!(answer["proof"]["root"]["digest"], json!(root));
    let bundle = &answer["proof"]["bundles"][0];
    assert_eq!((&bundle["slot"], &bundle["version"]), (&json!("current"), &json!(1)));
    assert!(bundle["golden_vectors"].as_u64().unwrap() > 0);
    let value = |what| &link(&bundle["lineage"], what)["value"];
    assert_eq!(*value("training run"), run["id"]);
    assert_eq!(*value("code"), run["code"]);
    assert_eq!(*value("data set"), run["dataset"]);
    assert_eq!(*value("model version"), format!("{MODEL} v1"));
    assert_eq!(link(&bundle["lineage"], "approval")["by"], approver);

    // And without it; every kind of file, with one bit flipped.
    device.stop().unwrap();
    assert!(prove(&device).0);
    let state = |name: &str| device.state_dir.join(name);
    let current = format!("current of {MODEL}");
    for copy in ["state-a", "state-b"] {
        assert!(
            broken_places(&device, &state(copy)).contains(&"state".to_owned()),
            "{copy}"
        );
    }
    for role in ["root", "timestamp", "snapshot", "targets"] {
        let places = broken_places(&device, &state(&format!("trust/{role}.json")));
        assert!(places.contains(&role.to_owned()), "{role}: {places:?}");
    }
    for folder in ["store/indexes", "store/objects"] {
        let files: Vec<_> = fs::read_dir(state(folder)).unwrap().collect();
        assert!(!files.is_empty(), "{folder}");
        for file in files {
            let path = file.unwrap().path();
            assert_eq!(
                broken_places(&device, &path),
                std::slice::from_ref(&current),
                "{}",
                path.display()
            );
        }
    }
    assert!(prove(&device).0);

    // A model that nobody signed, put there with its record by whoever owns the device, has no place in the metadata.
    fs::remove_file(state("trust/targets.json")).unwrap();
    let (succeeded, answer) = prove(&device);
    assert!(!succeeded);
    let broken = &answer["proof"]["broken"][0];
    assert_eq!(broken["place"], current);
}

#[test]
fn flow_the_audit_log_is_proved_from_a_file_and_a_checkpoint() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    fleet.build(1).unwrap();
    let run = |arguments: &[&str]| fleet.skerry(arguments).unwrap();
    assert!(run(&["audit", "checkpoint", "--out", "kept.json"]).status.success());
    fleet.skerry_json(&["model", "alias", MODEL, "champion", "1"]).unwrap();
    let listed = fleet.skerry_json(&["audit", "list", "--action", "model."]).unwrap();
    let entries = listed["entries"].as_array().unwrap();
    let actions: Vec<&str> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["model.alias", "model.register", "model.create"]);
    assert!(
        entries.iter().all(|entry| entry["actor"] == entries[0]["actor"]),
        "{listed}"
    );

    let against = ["--checkpoint", "kept.json", "--keys", "keys/root.json"];
    let whole = fleet
        .skerry_json(&[&["audit", "verify"], &against[..]].concat())
        .unwrap();
    assert_eq!(whole["whole"], true);
    assert!(whole["log"]["confirmed_size"].as_u64().unwrap() >= 3, "{whole}");

    assert!(run(&["audit", "export", "--out", "audit.jsonl"]).status.success());
    let offline = [
        &["audit", "verify", "--file", "audit.jsonl", "-o", "json"],
        &against[..],
    ]
    .concat();
    assert!(run(&offline).status.success());
    let export = fs::read_to_string(fleet.path("audit.jsonl")).unwrap();
    fs::write(
        fleet.path("audit.jsonl"),
        export.replace("model.register", "model.registeR"),
    )
    .unwrap();
    let output = run(&offline);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seq = export
        .lines()
        .filter(|line| line.starts_with("{\"entry\""))
        .position(|line| line.contains("model.register"));
    assert_eq!(found["first_bad_seq"], seq.unwrap() + 1);

    // Cut off after the checkpoint was taken away: the chain is whole, the log is not.
    let lines: Vec<&str> = export.lines().collect();
    let entries = lines.iter().filter(|line| line.starts_with("{\"entry\"")).count();
    let head = format!("\"size\":{entries}");
    let short = export.replace(&head, "\"size\":1");
    let first_entry = lines.iter().position(|line| line.starts_with("{\"entry\"")).unwrap();
    let short: String = short.split_inclusive('\n').take(first_entry + 1).collect();
    // The intruder throws the server's own checkpoints away too.
    let short: String = short
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("{\"checkpoint\""))
        .collect();
    fs::write(fleet.path("audit.jsonl"), short).unwrap();
    assert!(run(&["audit", "verify", "--file", "audit.jsonl"]).status.success());
    let output = run(&offline);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["first_bad_seq"], 2);
}

#[test]
fn flow_the_audit_log_tells_the_whole_story() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let _device = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    for arguments in [
        &["keys", "renew"][..],
        &["keys", "publish"],
        &["keys", "rotate", "--role", "timestamp"],
        &["keys", "sign", "--yes"],
        &["keys", "publish"],
    ] {
        let output = fleet.skerry(arguments).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    let answer = fleet.skerry_json(&["audit", "list", "--limit", "1000"]).unwrap();
    let mut entries: Vec<(String, String)> = answer["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("action"), text("actor"))
        })
        .collect();
    entries.reverse();
    let told = |action: &str| {
        let found = entries.iter().find(|(a, _)| a == action);
        found
            .map(|(_, actor)| actor.as_str())
            .unwrap_or_else(|| panic!("no `{action}` in {entries:?}"))
    };
    assert_eq!(told("device.enroll"), "device dev-1");
    let operator = told("model.register");
    for action in [
        "device_token.create",
        "bundle.publish",
        "rollout.create",
        "targets.publish",
        "root.publish",
    ] {
        assert_eq!(told(action), operator, "{action}");
    }
    for action in ["metadata.begin", "rollout.assign", "rollout.decide"] {
        assert_eq!(told(action), "control plane", "{action}");
    }
    // A root later it is still one chain, with checkpoints that the newest root confirms.
    fleet
        .skerry_json(&["audit", "verify", "--keys", "keys/root.json"])
        .unwrap();
}
