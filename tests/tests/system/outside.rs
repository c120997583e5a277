//! Against programs that are not ours: mosquitto as the broker, and a Python with the demo's own training script.
//! `.ci/run` installs both.

use std::{fs, net::TcpListener, path::Path, process::Command};

use skerry_system_tests::{
    Device, Fleet, FleetConfig,
    fixtures::{MODEL, activity_recognition, test_windows},
    process::Process,
};

use crate::PROGRAM;

/// The two files of mosquitto as the README shows them.
fn readme_files() -> [String; 2] {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    ["# mosquitto.conf\n", "# acl: "].map(|first| {
        let begin = readme.find(&format!("```\n{first}")).expect("the README has the file") + 4;
        let end = begin + readme[begin..].find("```").expect("the file ends");
        readme[begin..end].to_owned()
    })
}

/// Starts mosquitto with the README's own files; only its port, its folder and its user are others.
fn mosquitto(folder: &Path, port: u16) -> Process {
    let [config, acl] = readme_files();
    let config = config
        .replace("listener 8883", &format!("listener {port} 127.0.0.1"))
        .replace("/etc/mosquitto/skerry", folder.to_str().unwrap());
    fs::write(folder.join("acl"), acl).unwrap();
    // Started as root it becomes a user who may not read this folder, or the key.
    fs::write(folder.join("mosquitto.conf"), config + "log_dest stderr\nuser root\n").unwrap();
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
    broker
}

#[test]
fn interop_the_loop_runs_over_mosquitto_with_the_readmes_own_configuration() {
    let folder = tempfile::tempdir().unwrap();
    // Mosquitto cannot say which port the system gave it.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = FleetConfig {
        external_broker: Some(format!("mqtts://localhost:{port}")),
        ..FleetConfig::default()
    };
    // Its authority is made at its first start; until the broker is there it goes on trying.
    let fleet = Fleet::start_with(PROGRAM, config).unwrap();
    let data = fleet.path("data");
    let (data, out) = (data.to_str().unwrap(), folder.path().to_str().unwrap());
    let issue = [
        "ca",
        "issue-broker",
        "--data-dir",
        data,
        "--name",
        "localhost",
        "--out",
        out,
    ];
    let issued = fleet.skerry(&issue).unwrap();
    assert!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
    fs::copy(fleet.ca_path(), folder.path().join("ca.pem")).unwrap();
    let broker = mosquitto(folder.path(), port);
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
    assert!(
        broker.log().contains("u'dev-1'"),
        "the certificate's name is the user name: {}",
        broker.log()
    );
    other_ones_topics_stay_closed(&devices[0], port);
}

/// A device with another one's client id still has its own name: what it asks for of the other one does not come.
fn other_ones_topics_stay_closed(device: &Device, port: u16) {
    let mut options = rumqttc::MqttOptions::new("dev-2-impostor", "localhost", port);
    let tls = rumqttc::TlsConfiguration::Rustls(device.broker_tls().unwrap());
    options.set_transport(rumqttc::Transport::Tls(tls));
    options.set_max_packet_size(256 * 1024, 256 * 1024);
    let (client, mut messages) = rumqttc::Client::new(options, 16);
    // Both are retained; mosquitto grants every subscription and filters what it delivers.
    for id in ["dev-2", "dev-1"] {
        client
            .subscribe(format!("skerry/v1/d/{id}/desired"), rumqttc::QoS::AtLeastOnce)
            .unwrap();
    }
    let first = messages.iter().find_map(|event| match event.unwrap() {
        rumqttc::Event::Incoming(rumqttc::Incoming::Publish(publish)) => Some(publish.topic),
        _ => None,
    });
    assert_eq!(first.as_deref(), Some("skerry/v1/d/dev-1/desired"));
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
