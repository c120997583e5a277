//! The device's half of the loop: rollouts → transfer ══ MQTT ══▶ link → transfer → verify → install → run.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    transfer::{Part, PartContent},
};
use skerry_system_tests::{Device, Fleet, faults::files_in, fixtures::test_windows, process::PATIENCE};

use crate::PROGRAM;

const HOUR_MS: u64 = 3_600_000;

/// A client of the broker with a device's own certificate, in the place of its agent.
struct OnTheWire {
    client: rumqttc::Client,
    messages: rumqttc::Connection,
}

impl OnTheWire {
    fn connect(device: &Device) -> OnTheWire {
        let identity = std::fs::read(device.state_dir.join("identity.json")).unwrap();
        let mqtt = serde_json::from_slice::<Value>(&identity).unwrap()["mqtt"].take();
        let host = mqtt["host"].as_str().unwrap();
        let port = mqtt["port"].as_u64().unwrap() as u16;
        let mut options = rumqttc::MqttOptions::new(&device.id, host, port);
        let tls = rumqttc::TlsConfiguration::Rustls(device.broker_tls().unwrap());
        options.set_transport(rumqttc::Transport::Tls(tls));
        options.set_max_packet_size(256 * 1024, 256 * 1024);
        let (client, messages) = rumqttc::Client::new(options, 16);
        OnTheWire { client, messages }
    }

    /// The next message on one of the device's channels.
    fn next(&mut self, channel: &str) -> Vec<u8> {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let event = self.messages.recv_timeout(left).unwrap().unwrap();
            if let rumqttc::Event::Incoming(rumqttc::Incoming::Publish(publish)) = event
                && publish.topic.ends_with(channel)
            {
                return publish.payload.to_vec();
            }
        }
    }
}

#[test]
fn flow_a_rollout_becomes_a_desired_state_on_the_wire_and_wants_get_their_parts() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let device = fleet.enroll("dev-1").unwrap();
    let published = fleet.release(1).unwrap();
    let mut wire = OnTheWire::connect(&device);
    for channel in ["desired", "chunk"] {
        let topic = format!("skerry/v1/d/dev-1/{channel}");
        wire.client.subscribe(topic, rumqttc::QoS::AtLeastOnce).unwrap();
    }
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    let envelope: Value = serde_json::from_slice(&wire.next("desired")).unwrap();
    let payload = STANDARD.decode(envelope["payload"].as_str().unwrap()).unwrap();
    let desired: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(
        (&desired["device"], &desired["generation"]),
        (&json!("dev-1"), &json!(1))
    );
    assert_eq!(desired["bundles"][0]["rollout"], id);
    assert_eq!(desired["bundles"][0]["index"], published["index"]);

    let want = json!({"schema": "1.0", "request": 7, "object": {"blob": published["index"]}, "parts": [0]});
    let topic = "skerry/v1/d/dev-1/want";
    wire.client
        .publish(topic, rumqttc::QoS::AtLeastOnce, false, want.to_string())
        .unwrap();
    let message = wire.next("chunk");
    let part = Part::from_bytes(&message).unwrap();
    let PartContent::Data(index) = part.content else {
        panic!("{part:?}")
    };
    assert_eq!((part.request, part.part), (7, 0));
    assert_eq!(
        json!(Digest::of(index)),
        published["index"],
        "the index is small enough for one part"
    );
}

#[test]
fn flow_a_rollout_reaches_a_device_over_the_link_and_its_model_answers() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    let rollout = fleet.deploy(1).unwrap();
    let progress = &rollout["groups"][0]["devices"][0];
    assert_eq!(progress["state"], "succeeded");
    assert!(
        progress["wire_bytes"].as_u64().unwrap() > 10_000,
        "it came over the wire"
    );
    assert_eq!(devices[0].serves().unwrap(), Some(1));

    let windows = test_windows().unwrap();
    let answers: Vec<_> = windows.iter().map(|window| devices[0].infer(window).unwrap()).collect();
    assert!(answers.iter().all(|(version, _)| *version == 1));
    let right = answers
        .iter()
        .zip(&windows)
        .filter(|((_, label), window)| *label == window.activity);
    assert_eq!(right.count(), 36, "0.9 of 40, as the training script reported");
}

#[test]
fn flow_a_second_version_reuses_what_the_device_has() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.release(2).unwrap();
    fleet.deploy(1).unwrap();
    let needed = |rollout: &Value| rollout["groups"][0]["devices"][0]["wire_bytes"].as_u64().unwrap();
    let alone = Fleet::start(PROGRAM).unwrap();
    let _other = alone.devices(&["dev-1"]).unwrap();
    alone.release(1).unwrap();
    alone.release(2).unwrap();
    let (from_v1, from_nothing) = (needed(&fleet.deploy(2).unwrap()), needed(&alone.deploy(2).unwrap()));
    assert!(
        from_v1 + 50_000 < from_nothing,
        "{from_v1} bytes after v1, {from_nothing} without"
    );
    let status = devices[0].status().unwrap();
    let slots: Vec<_> = status["bundles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["slot"].as_str(), &b["version"]))
        .collect();
    assert_eq!(slots, [(Some("current"), &json!(2)), (Some("previous"), &json!(1))]);
}

#[test]
fn flow_a_bundle_that_fails_its_golden_vectors_is_refused_and_the_old_one_serves_on() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1", "dev-2", "dev-3"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    // v3 needs a v2 before it: versions are counted.
    fleet.release(2).unwrap();
    fleet.release(3).unwrap();
    let window = &test_windows().unwrap()[0];
    let id = fleet.roll_out(3, &["1", "rest"]).unwrap();
    let stopped = fleet.wait_for_rollout(id, &["stopped", "finished", "paused"]).unwrap();
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["groups"][0]["devices"][0]["state"], "rolled_back");
    assert_eq!(stopped["groups"][0]["devices"][0]["error"]["code"], "golden_mismatch");
    for device in stopped["groups"][1]["devices"].as_array().unwrap() {
        assert_eq!(device["state"], "pending", "the others never see it");
    }
    for device in &devices {
        assert_eq!(device.infer(window).unwrap().0, 1);
        assert_eq!(device.status().unwrap()["inference_errors"], 0);
    }
}

#[test]
fn flow_rollback_needs_no_network() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    fleet.release(2).unwrap();
    // A long probation, in which the agent is started again and again: it must be the candidate that ends it.
    let id = fleet.roll_out_on_probation(2, &["rest"], HOUR_MS).unwrap();
    fleet
        .wait("probation", || {
            let rollout = fleet.client().rollout(id)?;
            Ok((rollout["groups"][0]["devices"][0]["state"] == "probation").then_some(()))
        })
        .unwrap();
    fleet.stop_server().unwrap();
    let device = &mut devices[0];
    for _ in 0..3 {
        device.kill().unwrap();
        device.start().unwrap();
        // This start counts once it is on disk.
        let counted = |line: &str| line.contains("the update goes on").then_some(());
        device
            .process()
            .unwrap()
            .wait_for_line("that it goes on", counted)
            .unwrap();
    }
    device
        .process()
        .unwrap()
        .wait_for_line("that the update failed", |line| {
            line.contains("code=\"crash_loop\"").then_some(())
        })
        .unwrap();
    let window = &test_windows().unwrap()[0];
    assert_eq!(device.infer(window).unwrap().0, 1, "the old version serves again");

    // When the control plane is back it learns what happened.
    fleet.start_server().unwrap();
    let stopped = fleet.wait_for_rollout(id, &["stopped"]).unwrap();
    assert_eq!(stopped["groups"][0]["devices"][0]["error"]["code"], "crash_loop");
}

#[test]
fn a_device_that_was_away_converges_when_it_comes_back() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    devices[0].stop().unwrap();
    fleet
        .wait("the goodbye", || {
            Ok((fleet.device("dev-1")?["connected"] == false).then_some(()))
        })
        .unwrap();
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    devices[0].start().unwrap();
    fleet.wait_for_rollout(id, &["finished"]).unwrap();
    assert_eq!(devices[0].serves().unwrap(), Some(1));
}

#[test]
fn an_abort_returns_a_device_that_is_on_probation() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    fleet.release(2).unwrap();
    // Its answers are wrong, say, and raise no error: it would serve for an hour and be committed.
    let id = fleet.roll_out_on_probation(2, &["rest"], HOUR_MS).unwrap();
    let window = &test_windows().unwrap()[0];
    fleet
        .wait("v2 to serve on probation", || {
            Ok((devices[0].infer(window)?.0 == 2).then_some(()))
        })
        .unwrap();
    fleet.skerry_json(&["rollout", "abort", &id.to_string()]).unwrap();
    let stopped = fleet.wait_for_rollout(id, &["stopped", "finished"]).unwrap();
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["groups"][0]["devices"][0]["state"], "rolled_back");
    assert_eq!(devices[0].infer(window).unwrap().0, 1);
    assert_eq!(devices[0].serves().unwrap(), Some(1));
}

#[test]
fn only_what_the_slots_need_stays_on_disk() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    for version in [1, 2] {
        fleet.release(version).unwrap();
        fleet.deploy(version).unwrap();
    }
    let store = devices[0].state_dir.join("store");
    let agent_is_idle = || Ok((devices[0].status()?["update"]["state"] == "idle").then_some(()));
    fleet.wait("the agent to be idle", agent_is_idle).unwrap();
    assert_eq!(files_in(&store.join("indexes")).unwrap().len(), 2);
    assert_eq!(
        files_in(&store.join("staging")).unwrap(),
        Vec::<std::path::PathBuf>::new()
    );
}
