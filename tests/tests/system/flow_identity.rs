//! A device's identity over its life: it renews by itself while its model answers, and ends when it is revoked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use skerry_system_tests::{Device, Fleet, FleetConfig, Process, fixtures::test_windows};

use crate::PROGRAM;

fn certificate_end(fleet: &Fleet, id: &str) -> u64 {
    fleet.device(id).unwrap()["certificate_not_after_ms"].as_u64().unwrap()
}

fn certificate(device: &Device) -> String {
    std::fs::read_to_string(device.state_dir.join("device.pem")).unwrap()
}

#[test]
fn a_device_renews_its_certificate_while_its_model_answers() {
    // Two thirds of it are over in some seconds.
    let config = FleetConfig {
        toml: "[tls]\ndevice_certificate_life = \"15s\"".to_owned(),
        ..FleetConfig::default()
    };
    let mut fleet = Fleet::start_with(PROGRAM, config).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    let device = &devices[0];
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    let window = &test_windows().unwrap()[0];
    let (first, first_end) = (certificate(device), certificate_end(&fleet, "dev-1"));
    let key = std::fs::read(device.state_dir.join("device.key")).unwrap();
    // Twice: the second time with the renewed one.
    for _ in 0..2 {
        let before = certificate_end(&fleet, "dev-1");
        fleet
            .wait("the renewal", || {
                assert_eq!(device.infer(window).unwrap().0, 1, "inference goes on");
                Ok((certificate_end(&fleet, "dev-1") > before).then_some(()))
            })
            .unwrap();
    }
    device
        .process()
        .unwrap()
        .wait_for_line("that it has renewed", |line| {
            line.contains("the certificate is renewed").then_some(())
        })
        .unwrap();
    assert_ne!(certificate(device), first);
    assert_eq!(std::fs::read(device.state_dir.join("device.key")).unwrap(), key);
    assert_eq!(device.status().unwrap()["inference_errors"], 0);
    // The next handshake, after the first certificate has ended, is made with a new one.
    let is_over = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_millis() as u64 > first_end
    };
    fleet
        .wait("the first certificate's end", || Ok(is_over().then_some(())))
        .unwrap();
    fleet.kill_server().unwrap();
    fleet.start_server().unwrap();
    fleet
        .wait("the device to come back", || {
            Ok((fleet.device("dev-1")?["connected"] == true).then_some(()))
        })
        .unwrap();
}

#[test]
fn a_device_whose_certificate_has_ended_while_it_was_off_comes_back_by_itself() {
    let config = FleetConfig {
        toml: "[tls]\ndevice_certificate_life = \"5s\"".to_owned(),
        ..FleetConfig::default()
    };
    let fleet = Fleet::start_with(PROGRAM, config).unwrap();
    let mut device = fleet.enroll("dev-1").unwrap();
    let end = UNIX_EPOCH + Duration::from_millis(certificate_end(&fleet, "dev-1"));
    // Time itself is the event here.
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        std::thread::park_timeout(left + Duration::from_millis(1));
    }
    let first = certificate(&device);
    device.start().unwrap();
    fleet
        .wait("the device to come back", || {
            Ok((fleet.device("dev-1")?["connected"] == true).then_some(()))
        })
        .unwrap();
    assert_ne!(certificate(&device), first);
}

#[test]
fn a_revoked_device_is_cut_off_at_once_and_serves_on() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1", "dev-2"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    let revoked = fleet.skerry_json(&["device", "revoke", "dev-1"]).unwrap();
    assert!(revoked["revoked_at_ms"].is_u64(), "{revoked}");
    fleet
        .wait("the end of its connection", || {
            Ok((fleet.device("dev-1")?["connected"] == false).then_some(()))
        })
        .unwrap();
    devices[0]
        .process()
        .unwrap()
        .wait_for_line("that it is refused", |line| {
            line.contains("no connection to the broker").then_some(())
        })
        .unwrap();
    // What it has, it has: the model is not the control plane's to stop.
    devices[0].infer(&test_windows().unwrap()[0]).unwrap();
    assert_eq!(fleet.device("dev-1").unwrap()["connected"], false);
    assert_eq!(fleet.device("dev-2").unwrap()["connected"], true);
    let listed = fleet.skerry(&["device", "list"]).unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("revoked"));
}

#[test]
fn a_command_without_the_authoritys_certificate_says_what_to_do_and_with_its_digest_works() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let empty = fleet.path("nothing");
    std::fs::create_dir(&empty).unwrap();
    let skerry = |variable: (&str, &str)| {
        std::process::Command::new(PROGRAM)
            .args(["device", "list", "-o", "json"])
            .current_dir(&empty)
            .env("HOME", &empty)
            .env("SKERRY_SERVER", fleet.url())
            .env("SKERRY_TOKEN", fleet.token())
            .env(variable.0, variable.1)
            .output()
            .unwrap()
    };
    let untrusted = skerry(("SKERRY_TEST_NOTHING", ""));
    let said = String::from_utf8_lossy(&untrusted.stderr);
    assert!(
        !untrusted.status.success() && said.contains("--ca FILE") && said.contains("SKERRY_CA_SHA256"),
        "{said}"
    );
    let printed = fleet.log();
    let (_, digest) = printed.split_once(", SHA-256 ").unwrap();
    let digest = &digest[..64];
    let pinned = skerry(("SKERRY_CA_SHA256", digest));
    assert!(pinned.status.success(), "{}", String::from_utf8_lossy(&pinned.stderr));
    serde_json::from_slice::<Value>(&pinned.stdout).unwrap();
    let wrong = skerry(("SKERRY_CA_SHA256", &"0".repeat(64)));
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        !wrong.status.success() && said.contains("not the control plane that is known"),
        "{said}"
    );
}

#[test]
fn flow_a_device_without_a_token_waits_until_its_fingerprint_is_approved() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let trust = fleet.skerry_json(&["device", "trust"]).unwrap();
    let state_dir = fleet.path("devices/kitchen-1");
    std::fs::create_dir_all(&state_dir).unwrap();
    let mut command = std::process::Command::new(PROGRAM);
    command.args([
        "agent",
        "enroll",
        "--server",
        &fleet.url(),
        "--trust",
        trust["trust"].as_str().unwrap(),
    ]);
    command
        .args(["--device-id", "kitchen-1", "--state-dir"])
        .arg(&state_dir);
    let waiting = Process::start("the enrolment", command, &fleet.path("enrolment.log")).unwrap();
    let is_fingerprint = |line: &str| line.len() == 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
    let shown = waiting
        .wait_for_line("its fingerprint", |line| {
            let line = line.trim();
            is_fingerprint(line).then(|| line.to_owned())
        })
        .unwrap();
    let pending = fleet.skerry_json(&["device", "keys", "--state", "pending"]).unwrap();
    assert_eq!(pending["keys"][0]["fingerprint"], shown.as_str());
    fleet
        .skerry_json(&["device", "approve", &shown[..24], "--label", "site=north"])
        .unwrap();
    assert!(waiting.wait().unwrap().success());
    let mut device = Device::enrolled(fleet.program(), &state_dir, "kitchen-1").unwrap();
    device.start().unwrap();
    fleet
        .wait("the device to connect", || {
            Ok((fleet.device("kitchen-1")?["connected"] == true).then_some(()))
        })
        .unwrap();
    assert_eq!(fleet.device("kitchen-1").unwrap()["labels"]["site"], "north");
}

/// A copied disk: the same key, the same name, on two machines.
#[test]
fn attack_a_cloned_device_is_noticed() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    devices[0].stop().unwrap();
    devices[0].start().unwrap();
    fleet
        .wait("it to come back", || {
            Ok((fleet.device("dev-1")?["connected"] == true).then_some(()))
        })
        .unwrap();
    // Starting again is not being two.
    assert!(fleet.device("dev-1").unwrap()["duplicate_seen_at_ms"].is_null());
    // A disk is copied while nobody writes to it, and then both machines run.
    devices[0].stop().unwrap();
    let copy = fleet.path("devices/copy");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&devices[0].state_dir, &copy])
        .status();
    assert!(copied.unwrap().success());
    devices[0].start().unwrap();
    let mut clone = Device::enrolled(fleet.program(), &copy, "dev-1").unwrap();
    clone.start().unwrap();
    fleet
        .wait("the alarm", || {
            Ok(fleet.device("dev-1")?["duplicate_seen_at_ms"].is_number().then_some(()))
        })
        .unwrap();
    let listed = fleet.skerry(&["device", "list"]).unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("two of one identity"));
}
