//! The way back: run → telemetry spool → link ══ MQTT ══▶ ingest → store → query.

use serde_json::Value;
use skerry_system_tests::{
    Device, Fleet,
    fixtures::{MODEL, test_windows},
};

use crate::PROGRAM;

fn count(status: &Value, key: &str) -> u64 {
    status["telemetry"][key].as_u64().unwrap_or(0)
}

/// Waits until all that a device has counted is stored, and gives both numbers. More than that is never stored.
fn settled(fleet: &Fleet, device: &Device) -> (u64, u64) {
    fleet
        .wait("the telemetry to be stored", || {
            let before = count(&device.status()?, "points_recorded");
            let totals = fleet.client().get("/api/v1/telemetry/totals")?;
            let mut stored = totals["per_device"].as_array().into_iter().flatten();
            let stored = stored.find(|d| d["device"] == device.id.as_str());
            let stored = stored.and_then(|d| d["points"].as_u64()).unwrap_or(0);
            let after = count(&device.status()?, "points_recorded");
            assert!(
                stored <= after,
                "{stored} points of {after} are stored: some of them twice"
            );
            let settled = after > 0 && before == after && stored == after;
            Ok(settled.then_some((after, stored)))
        })
        .unwrap()
}

#[test]
fn flow_what_a_device_counts_is_stored_once_and_can_be_asked_for() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    for window in test_windows().unwrap().iter().take(25) {
        devices[0].infer(window).unwrap();
    }
    let inferences = fleet
        .wait("the inferences to be counted", || {
            let answer = fleet
                .client()
                .get(&format!("/api/v1/telemetry/summary?device=dev-1&model={MODEL}"))?;
            let row = answer["rows"][0].clone();
            Ok((row["inferences"].as_u64() >= Some(25)).then_some(row))
        })
        .unwrap();
    assert_eq!(inferences["inferences"], 25);
    assert_eq!(inferences["errors"], 0);
    let (p50, max) = (
        inferences["p50_seconds"].as_f64().unwrap(),
        inferences["max_seconds"].as_f64().unwrap(),
    );
    assert!(p50 > 0.0 && p50 <= max, "{inferences}");
    let (recorded, stored) = settled(&fleet, &devices[0]);
    assert_eq!(recorded, stored);
}

#[test]
fn telemetry_waits_on_disk_while_the_control_plane_is_away() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    fleet.kill_server().unwrap();
    let device = &mut devices[0];
    for window in test_windows().unwrap().iter().take(10) {
        device.infer(window).unwrap();
    }
    // A graceful end counts everything; a power cut after it loses nothing.
    device.stop().unwrap();
    device.start().unwrap();
    device.kill().unwrap();
    fleet.start_server().unwrap();
    device.start().unwrap();
    fleet
        .wait("the inferences of before", || {
            let answer = fleet
                .client()
                .get(&format!("/api/v1/telemetry/summary?device=dev-1&model={MODEL}"))?;
            Ok((answer["rows"][0]["inferences"].as_u64() == Some(10)).then_some(()))
        })
        .unwrap();
    let (recorded, stored) = settled(&fleet, device);
    assert_eq!(recorded, stored);
}
