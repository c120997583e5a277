//! The full loop, as a newcomer sees it.

use std::process::Command;

use serde_json::Value;

use crate::PROGRAM;

#[test]
fn flow_the_demo_holds_everything_it_claims() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args(["demo", "--once", "--output", "json"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(summary["devices"], 5);
    let ends: Vec<_> = summary["rollouts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            (
                r["version"].as_u64().unwrap(),
                r["state"].as_str().unwrap(),
                r["devices_succeeded"].as_u64().unwrap(),
                r["devices_rolled_back"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        ends,
        [(1, "finished", 5, 0), (2, "finished", 5, 0), (3, "stopped", 0, 1)]
    );
    assert_eq!(summary["inference_errors"], 0);
    assert_eq!(summary["accuracy"]["measured"], summary["accuracy"]["reported"]);
    assert_eq!(
        summary["telemetry_points"]["sent"],
        summary["telemetry_points"]["stored"]
    );
    assert!(summary["telemetry_points"]["stored"].as_u64() > Some(0));
    assert!(summary["resumed_downloads"].as_u64() >= Some(1));
    assert!(summary["wire_bytes"].as_u64() < summary["bundle_bytes"].as_u64());
}
