//! Against programs that are not ours: mosquitto as the broker, and a Python with the demo's own training script.
//! And `model_signing`, the reference implementation of OpenSSF Model Signing. `.ci/run` installs them.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use skerry_system_tests::{
    Device, Fleet, FleetConfig,
    fixtures::{MODEL, activity_recognition, test_windows},
    process::Process,
};

use crate::{
    PROGRAM,
    model_signing::{key_files, onnx, refused, strict_fleet},
};

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

/// Runs the program `model_signing` in `folder`. Where the feature is on, its absence is a mistake and no reason to skip.
fn model_signing(folder: &Path, arguments: &[&str]) -> Output {
    let program = std::env::var("SKERRY_TEST_MODEL_SIGNING").expect("SKERRY_TEST_MODEL_SIGNING names `model_signing`");
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(output: &Output) {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{texts:?}");
}

#[test]
fn interop_model_signing_signs_and_we_verify() {
    let keys = key_files();
    let fleet = strict_fleet(keys.path());
    let place = keys.path();
    fs::create_dir_all(place.join("theirs/docs")).unwrap();
    fs::copy(onnx(), place.join("theirs/model.onnx")).unwrap();
    fs::write(place.join("theirs/docs/card.md"), "a card").unwrap();
    // A name that sorts otherwise by code point than by component.
    fs::write(place.join("theirs/docs.txt"), "a text").unwrap();
    let file = |name: &str| place.join(name).display().to_string();
    let (model, bundle, public) = (file("theirs/model.onnx"), file("theirs/model.sig"), file("public.pem"));
    let register = |more: &[&str]| {
        let arguments = [
            "model",
            "register",
            "walker",
            &model,
            "--oms",
            &bundle,
            "--oms-key",
            &public,
        ];
        fleet.skerry(&[arguments.as_slice(), more].concat()).unwrap()
    };
    let sign = |what: &str| {
        let arguments = [
            "sign",
            "key",
            what,
            "--private_key",
            "secret.pem",
            "--signature",
            "theirs/model.sig",
        ];
        succeeds(&model_signing(place, &arguments));
    };
    sign("theirs");
    succeeds(&register(&[]));
    let version = fleet.client().get("/api/v1/models/walker/versions/1").unwrap();
    assert_eq!(version["signature"]["subject"], "theirs");

    fs::write(place.join("theirs/more.txt"), "nobody signed this").unwrap();
    refused(&register(&[]), "`more.txt` lies beside the signed files");
    succeeds(&register(&["--ignore-unsigned"]));
    fs::write(place.join("theirs/docs/card.md"), "another card").unwrap();
    refused(&register(&["--ignore-unsigned"]), "`docs/card.md` has another content");

    // A single file instead of a folder: whatever else lies there does not matter.
    sign("theirs/model.onnx");
    succeeds(&register(&[]));
    let version = fleet.client().get("/api/v1/models/walker/versions/1").unwrap();
    assert_eq!(version["signature"]["subject"], "model.onnx");
}

#[test]
fn interop_we_sign_and_model_signing_verifies() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let keys = key_files();
    let file = |name: &str| keys.path().join(name).display().to_string();
    let (model, secret, out) = (onnx().display().to_string(), file("secret.pem"), file("ours"));
    fleet.skerry_json(&["model", "register", "walker", &model]).unwrap();
    let arguments = [
        "model", "export", "walker", "1", "--oms", "--key", &secret, "--out", &out,
    ];
    fleet.skerry_json(&arguments).unwrap();
    let verify = |key: &str| {
        let arguments = [
            "verify",
            "key",
            "ours",
            "--signature",
            "ours/model.sig",
            "--public_key",
            key,
        ];
        model_signing(keys.path(), &arguments)
    };
    succeeds(&verify("public.pem"));
    assert!(
        !verify("other-public.pem").status.success(),
        "control case: it does check the key"
    );
    fs::write(keys.path().join("ours/model.onnx"), "other").unwrap();
    assert!(
        !verify("public.pem").status.success(),
        "control case: it does check the file"
    );
}
