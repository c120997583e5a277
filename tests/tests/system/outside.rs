//! Against programs that are not ours: mosquitto as the broker, and a Python with the demo's own training script.
//! `.ci/run` installs both.

use std::{fs, net::TcpListener, path::Path, process::Command};

use skerry_system_tests::{
    Fleet, FleetConfig,
    fixtures::{MODEL, activity_recognition, test_windows},
    process::Process,
};

use crate::PROGRAM;

/// Starts mosquitto on a free port of loopback. Topics belong to user names, as the README shows.
fn mosquitto(folder: &Path) -> (Process, u16) {
    // Mosquitto cannot say which port the system gave it.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let acl = "user skerry-control-plane\ntopic readwrite skerry/v1/#\n\n\
               pattern read skerry/v1/d/%u/desired\npattern read skerry/v1/d/%u/chunk\npattern read skerry/v1/d/%u/ack\n\
               pattern read skerry/v1/x/+\n\
               pattern write skerry/v1/d/%u/reported\npattern write skerry/v1/d/%u/telemetry\npattern write skerry/v1/d/%u/events\n\
               pattern write skerry/v1/d/%u/capture\npattern write skerry/v1/d/%u/want\npattern write skerry/v1/d/%u/status\n";
    fs::write(folder.join("acl"), acl).unwrap();
    let config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nacl_file {}\nmax_packet_size 262144\nlog_dest stderr\n",
        folder.join("acl").display()
    );
    fs::write(folder.join("mosquitto.conf"), config).unwrap();
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(folder.join("mosquitto.conf"));
    // Debian keeps daemons where a user's PATH does not look.
    command.env(
        "PATH",
        format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap()),
    );
    let broker = Process::start("mosquitto", command, &folder.join("mosquitto.log")).unwrap();
    broker
        .wait_for_line("that it runs", |line| line.contains("running").then_some(()))
        .unwrap();
    (broker, port)
}

#[test]
fn interop_the_loop_runs_over_mosquitto() {
    let folder = tempfile::tempdir().unwrap();
    let (_broker, port) = mosquitto(folder.path());
    let config = FleetConfig {
        external_broker: Some(format!("mqtt://skerry-control-plane:x@127.0.0.1:{port}")),
        ..FleetConfig::default()
    };
    let fleet = Fleet::start_with(PROGRAM, config).unwrap();
    let devices = fleet.devices(&["dev-1", "dev-2"]).unwrap();
    for version in [1, 2] {
        fleet.release(version).unwrap();
        fleet.deploy(version).unwrap();
    }
    for device in &devices {
        assert_eq!(device.infer(&test_windows().unwrap()[0]).unwrap().0, 2);
    }
    fleet
        .wait("telemetry over mosquitto", || {
            let answer = fleet
                .client()
                .get(&format!("/api/v1/telemetry/summary?device=dev-1&model={MODEL}"))?;
            Ok((answer["rows"][0]["inferences"].as_u64() == Some(1)).then_some(()))
        })
        .unwrap();
}

#[test]
fn interop_the_demos_own_training_script_gives_the_committed_models_accuracy() {
    let python = std::env::var("SKERRY_TEST_PYTHON").expect("a Python with the example's requirements.txt");
    let config = FleetConfig {
        toml: format!("[training]\npython = \"{python}\""),
        ..FleetConfig::default()
    };
    let fleet = Fleet::start_with(PROGRAM, config).unwrap();
    let example = activity_recognition();
    let (script, data) = (example.join("train.py"), example.join("data"));
    let (script, data) = (script.to_str().unwrap(), data.to_str().unwrap());
    for version in ["v1", "v2"] {
        let variant = format!("variant={version}");
        let submit = [
            "run",
            "submit",
            "--script",
            script,
            "--input",
            data,
            "--param",
            &variant,
            "--register-as",
            MODEL,
        ];
        let run = fleet.skerry_json(&submit).unwrap();
        let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
        let run = fleet
            .wait("the run to end", || {
                let run = fleet.client().get(&path)?;
                let over = matches!(run["status"].as_str(), Some("finished" | "failed" | "killed"));
                Ok(over.then_some(run))
            })
            .unwrap();
        assert_eq!(run["status"], "finished", "{run}");
        let committed = fs::read(example.join(format!("models/{version}/metrics.json"))).unwrap();
        let committed: serde_json::Value = serde_json::from_slice(&committed).unwrap();
        assert_eq!(run["metrics"]["accuracy"], committed["accuracy"], "{version}");
    }
    let model = fleet.skerry_json(&["model", "show", MODEL]).unwrap();
    assert_eq!(model["versions"].as_array().unwrap().len(), 2);
}
