//! A broker that was taken over: it accepts everybody, and somebody publishes whatever he likes to a device.
//!
//! Without signatures and digests he would own the device, since all his messages arrive (the device says so in its log). He
//! only costs time.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rumqttc::{Event, Incoming, QoS};
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    transfer::{Part, PartContent},
};
use skerry_system_tests::fixtures::{MODEL, test_windows};

use crate::taken_broker::TakenBroker;

/// Answers every want of `device` for chunks with `payload`, before the control plane can.
fn answer_wants(broker: &TakenBroker, device: &str, payload: impl Fn(u64, u32) -> Vec<u8> + Send + 'static) {
    let (client, mut events) = broker.connect("eavesdropper");
    let (wants, chunk) = (
        format!("skerry/v1/d/{device}/want"),
        format!("skerry/v1/d/{device}/chunk"),
    );
    let ready = Arc::new(tokio::sync::Notify::new());
    let is_ready = Arc::clone(&ready);
    let hooks = Arc::clone(&broker.hooks);
    broker.runtime.spawn(async move {
        client.subscribe(&wants, QoS::AtMostOnce).await.unwrap();
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::SubAck(_))) => is_ready.notify_one(),
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let want: Value = serde_json::from_slice(&publish.payload).unwrap();
                    // The metadata protects itself; here it is the chunks that he is after.
                    if want["object"]["chunks"].is_null() {
                        continue;
                    }
                    hooks.drops_parts.store(true, Ordering::SeqCst);
                    let request = want["request"].as_u64().unwrap();
                    for part in want["parts"].as_array().unwrap() {
                        let message = payload(request, part.as_u64().unwrap() as u32);
                        client.try_publish(&chunk, QoS::AtMostOnce, false, message).unwrap();
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    broker.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), ready.notified())
            .await
            .unwrap();
    });
}

#[test]
fn attack_forged_desired_state_is_refused_and_reported() {
    let intruder = TakenBroker::start();
    let fleet = intruder.fleet();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    // Signed, but by a key of his own making; he wants the model gone.
    let payload = json!({
        "schema": "1.0", "device": "dev-1", "generation": 1_000_000, "issued_at_ms": 0, "bundles": [],
    });
    let forged = skerry_tuf_free_envelope(&payload);
    intruder.publish("skerry/v1/d/dev-1/desired", true, forged);
    let refused = devices[0]
        .process()
        .unwrap()
        .wait_for_line("that it refuses", |line| {
            line.contains("a desired state is refused").then(|| line.to_owned())
        })
        .unwrap();
    assert!(refused.contains("sig_threshold"), "{refused}");
    assert_eq!(devices[0].serves().unwrap(), Some(1));
    devices[0].infer(&test_windows().unwrap()[0]).unwrap();
    let generation = devices[0].status().unwrap()["generation"].as_u64();
    assert_eq!(generation, Some(1), "the rollout's own");
}

/// A DSSE envelope whose signature is not by the assignment key.
fn skerry_tuf_free_envelope(payload: &Value) -> Vec<u8> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let envelope = json!({
        "payloadType": skerry_shared::desired::DESIRED_PAYLOAD_TYPE,
        "payload": STANDARD.encode(payload.to_string()),
        "signatures": [{"keyid": "0".repeat(64), "sig": STANDARD.encode([7; 64])}],
    });
    envelope.to_string().into_bytes()
}

#[test]
fn attack_broken_chunks_are_dropped_and_nothing_of_them_is_installed() {
    let intruder = TakenBroker::start();
    let fleet = intruder.fleet();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    // Each of his parts is well formed and of the right request, with content of his own.
    answer_wants(&intruder, "dev-1", |request, part| {
        Part {
            request,
            part,
            parts: 1000,
            content: PartContent::Data(b"anything at all"),
        }
        .to_bytes()
    });
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    let over = fleet.wait_for_rollout(id, &["stopped", "finished"]).unwrap();
    assert!(
        devices[0].log().contains("a part came broken"),
        "his parts have reached the device"
    );
    // He denies the service, and no more.
    let progress = &over["groups"][0]["devices"][0];
    assert_eq!(progress["error"]["code"], "bad_chunk", "{progress}");
    assert_eq!(progress["state"], "failed", "{progress}");
    assert_eq!(devices[0].serves().unwrap(), None);
    for file in skerry_system_tests::faults::files_in(&devices[0].state_dir.join("store/objects")).unwrap() {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(Digest::of(&std::fs::read(&file).unwrap()).to_hex(), name);
    }
    let metadata = fleet.client().get(&format!("/api/v1/bundles/{MODEL}/1")).unwrap();
    assert_eq!(metadata["model"], MODEL);
}

#[test]
fn attack_garbage_on_every_topic_of_a_device_leaves_it_as_it_is() {
    let intruder = TakenBroker::start();
    let fleet = intruder.fleet();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    let long = vec![b'['; 100_000];
    for channel in ["desired", "chunk", "ack", "reported", "telemetry", "want", "status"] {
        for payload in [&b""[..], b"{", b"\xff\xfe", &long] {
            intruder.publish(&format!("skerry/v1/d/dev-1/{channel}"), false, payload);
        }
    }
    // Both sides still work: another version goes all the way.
    fleet.release(2).unwrap();
    fleet.deploy(2).unwrap();
    assert_eq!(devices[0].infer(&test_windows().unwrap()[0]).unwrap().0, 2);
}
