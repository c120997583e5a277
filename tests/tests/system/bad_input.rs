//! What bad input gets: a clear error that says what was attempted and on what, with nothing lost and nothing half-done.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use skerry_system_tests::{
    Fleet,
    faults::{files_in, flip_a_bit},
    fixtures::{MODEL, activity_recognition, test_windows},
};

use crate::PROGRAM;

/// Runs an operator's command that must fail with `code`, and gives what it says.
fn refusal(fleet: &Fleet, arguments: &[&str], code: i32) -> String {
    let output = fleet.skerry(arguments).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

fn expect_words(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
}

#[test]
fn an_enrolment_token_works_once_and_not_for_ever() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let enroll = |id: &str, token: &str| {
        skerry_system_tests::Device::enroll(fleet.program(), &fleet.path("devices"), id, &fleet.url(), token)
    };
    let once = fleet.device_token().unwrap();
    enroll("dev-1", &once).unwrap();
    let used = enroll("dev-2", &once).err().unwrap().to_string();
    expect_words(&used, &["the enrolment token has been used"]);
    assert!(fleet.device("dev-2").is_err(), "nothing half-done");

    let short = fleet
        .client()
        .device_token(Duration::from_secs(1), 1, &json!({}))
        .unwrap();
    let expires_at_ms = short["expires_at_ms"].as_u64().unwrap();
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis() as u64
    };
    // Time itself is the event here.
    while now() <= expires_at_ms {
        std::thread::park_timeout(Duration::from_millis(expires_at_ms + 1 - now().min(expires_at_ms)));
    }
    let expired = enroll("dev-3", short["token"].as_str().unwrap())
        .err()
        .unwrap()
        .to_string();
    expect_words(&expired, &["the enrolment token has expired"]);

    // Another root than the one that the token names: this is not our control plane.
    let token = fleet.device_token().unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let nobody = "0".repeat(64);
    let other = format!("{}.{nobody}.{}", parts[0], parts[2]);
    let refused = enroll("dev-4", &other).err().unwrap().to_string();
    expect_words(&refused, &["root metadata is not the one that the token names"]);
    // Another authority: whoever answers there gets nothing to see.
    let other = format!("{}.{}.{nobody}", parts[0], parts[1]);
    let refused = enroll("dev-4", &other).err().unwrap().to_string();
    expect_words(&refused, &["not of the authority that the token names"]);
    assert!(fleet.device("dev-4").is_err(), "nothing half-done");
    enroll("dev-4", &token).unwrap();
}

#[test]
fn a_bundle_that_was_changed_after_it_was_built_is_not_published() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    fleet.build(1).unwrap();
    fleet
        .skerry_json(&["bundle", "sign", "bundle-v1", "--keys", "keys"])
        .unwrap();
    let chunks = files_in(&fleet.path("bundle-v1/chunks")).unwrap();
    let whole = fs::read(&chunks[0]).unwrap();

    fs::write(&chunks[0], &whole[..whole.len() / 2]).unwrap();
    refusal(&fleet, &["bundle", "publish", "bundle-v1"], 1);
    fs::write(&chunks[0], &whole).unwrap();
    flip_a_bit(&chunks[0]).unwrap();
    refusal(&fleet, &["bundle", "publish", "bundle-v1"], 1);
    let bundles = fleet.client().get("/api/v1/bundles").unwrap();
    assert_eq!(bundles["bundles"], json!([]), "nothing is published");

    fs::write(&chunks[0], &whole).unwrap();
    fleet.skerry_json(&["bundle", "publish", "bundle-v1"]).unwrap();
}

#[test]
fn content_under_a_wrong_digest_is_refused() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let wrong = skerry_shared::digest::Digest::of(b"something else");
    let error = fleet.client().upload(&wrong, b"content").unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_file_that_no_device_could_load_is_not_registered() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let good = fs::read(activity_recognition().join("models/v1/model.onnx")).unwrap();
    fs::write(fleet.path("cut.onnx"), &good[..good.len() / 2]).unwrap();
    fs::write(fleet.path("text.onnx"), "not a model").unwrap();
    for file in ["cut.onnx", "text.onnx"] {
        expect_words(&refusal(&fleet, &["model", "register", MODEL, file], 1), &["ONNX"]);
    }
    refusal(&fleet, &["model", "show", MODEL], 3);
}

#[test]
fn a_device_names_what_is_wrong_with_a_request() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    let device = &devices[0];
    let window = |shape: Value, datatype: &str, count: usize| json!({"inputs": [{"name": "window", "datatype": datatype, "shape": shape, "data": vec![0; count]}]});
    let cases = [
        (MODEL, window(json!([1, 6, 99]), "FP32", 594), 400, "[1, 6, 99]"),
        (MODEL, window(json!([1, 6, 100]), "INT64", 600), 400, "INT64"),
        (MODEL, window(json!([1, 6, 100]), "FP32", 599), 400, "599"),
        (MODEL, json!({"inputs": []}), 400, "window"),
        (MODEL, json!({"no": "inputs"}), 400, "inputs"),
        ("nobody", window(json!([1, 6, 100]), "FP32", 600), 404, "nobody"),
    ];
    for (model, body, status, word) in cases {
        let (got, answer) = device.post_inference(model, &body).unwrap();
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(got, status, "{answer}");
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
    assert_eq!(
        announce(device.url(), 999_999_999),
        "HTTP/1.1 413 Payload Too Large",
        "refused before it is read"
    );
    // Nothing of it was the bundle's fault, and it still answers.
    assert_eq!(device.status().unwrap()["inference_errors"], 0);
    device.infer(&test_windows().unwrap()[0]).unwrap();
}

/// Announces a body of this length without sending it, and gives the answer's first line.
fn announce(url: &str, length: u64) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn a_bundle_that_does_not_fit_the_disk_fails_before_it_is_fetched() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut device = fleet.enroll("dev-1").unwrap();
    device
        .arguments
        .extend(["--store-limit".to_owned(), "300000".to_owned()]);
    device.start().unwrap();
    fleet.release(1).unwrap();
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    let stopped = fleet.wait_for_rollout(id, &["stopped", "finished"]).unwrap();
    let progress = &stopped["groups"][0]["devices"][0];
    assert_eq!(progress["error"]["code"], "enospc", "{progress}");
    assert_eq!(progress["state"], "failed", "nothing on the device had changed");
    let staged = files_in(&device.state_dir.join("store")).unwrap();
    let bytes: u64 = staged.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes < 300_000, "{bytes}");
}

#[test]
fn a_disk_that_fills_in_the_middle_fails_the_update_and_nothing_else() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    let device = &mut devices[0];
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    device.stop().unwrap();
    // From now on no file can grow beyond 100 blocks of at most 1 KiB: writing v2's model breaks off in the middle.
    let limited = "trap '' XFSZ; ulimit -f 100; exec \"$0\" agent \"$@\"";
    device.agent = ["sh", "-c", limited, PROGRAM].map(Into::into).to_vec();
    device.start().unwrap();
    fleet.release(2).unwrap();
    let id = fleet.roll_out(2, &["rest"]).unwrap();
    let stopped = fleet.wait_for_rollout(id, &["stopped", "finished"]).unwrap();
    let progress = &stopped["groups"][0]["devices"][0];
    assert_eq!(progress["error"]["code"], "enospc", "{progress}");
    assert_eq!(progress["state"], "failed", "nothing on the device had changed");
    assert_eq!(device.infer(&test_windows().unwrap()[0]).unwrap().0, 1, "v1 serves on");
    let half = files_in(&device.state_dir.join("store")).unwrap();
    let half = half
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "tmp"));
    assert_eq!(half.count(), 0, "nothing half-done stays");

    // With room again the same rollout, asked for anew, goes through.
    device.stop().unwrap();
    device.agent = [PROGRAM, "agent"].map(Into::into).to_vec();
    device.start().unwrap();
    fleet.deploy(2).unwrap();
    assert_eq!(device.infer(&test_windows().unwrap()[0]).unwrap().0, 2);
}

#[test]
fn malformed_calls_get_problem_details() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let http: ureq::Agent = config.tls_config(fleet.trust().tls()).build().into();
    let bearer = format!("Bearer {}", fleet.token());
    let post = |path: &str, body: &str| {
        let request = http
            .post(format!("{}{path}", fleet.url()))
            .header("authorization", &bearer);
        request.content_type("application/json").send(body).unwrap()
    };
    let cases = [
        ("/api/v1/rollouts", "{", 400),
        ("/api/v1/rollouts", r#"{"model": "m"}"#, 422),
        (
            "/api/v1/rollouts",
            r#"{"model": "../m", "version": 1, "groups": []}"#,
            422,
        ),
        ("/api/v1/device-tokens", r#"{"uses": 0}"#, 422),
        ("/api/v1/nothing", "{}", 404),
        (
            "/api/v1/enroll",
            r#"{"token": "x", "request": "", "platform": "p", "agent_version": ""}"#,
            400,
        ),
    ];
    for (path, body, status) in cases {
        let mut answer = post(path, body);
        assert_eq!(answer.status().as_u16(), status, "{path} {body}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        let problem: Value = answer.body_mut().read_json().unwrap();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["type"].is_string());
    }
    let without_token = http.get(format!("{}/api/v1/devices", fleet.url())).call().unwrap();
    assert_eq!(without_token.status().as_u16(), 401);
}

#[test]
fn a_configuration_with_three_mistakes_names_all_three() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("skerry.toml");
    fs::write(
        &path,
        "colour = 1\n[http]\nbind = \"here\"\n[mqtt]\nexternal_url = \"http://x\"\n",
    )
    .unwrap();
    let output = Command::new(PROGRAM)
        .args(["serve", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    expect_words(
        &said,
        &["3 mistake(s)", "`colour`", "http.bind: `here`", "mqtt.external_url"],
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let keys = folder.path().join("keys");
    skerry_control_plane::cli::keys::init(&keys).unwrap();
    let toml = format!(
        "data_dir = {:?}\n[signing]\ndir = {:?}\n[mqtt]\nembedded_bind = \"127.0.0.1:0\"\n",
        folder.path().join("data"),
        keys.join("online")
    );
    let path = folder.path().join("skerry.toml");
    fs::write(&path, toml).unwrap();
    let output = Command::new(PROGRAM)
        .args(["serve", "--http-bind", &address, "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    expect_words(&String::from_utf8_lossy(&output.stderr), &[&address, "HTTP"]);
}
