//! An agent built for another processor, run by an emulator, against a native control plane.
//!
//! SKERRY_TEST_EMULATED_AGENT is how it is started, for example
//! `qemu-aarch64-static -L /usr/aarch64-linux-gnu target/aarch64-unknown-linux-gnu/debug/skerry-agent`. `.ci/run` builds it and
//! turns the feature `emulated` on.

use std::ffi::OsString;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use skerry_system_tests::{
    Device, Fleet,
    fixtures::{MODEL, Window, test_windows},
};

use crate::PROGRAM;

/// The bundle's own tolerance for its golden vectors, absolute and relative.
const TOLERANCE: (f64, f64) = (0.001, 0.01);

fn emulated_agent() -> Result<Vec<OsString>> {
    let command = std::env::var("SKERRY_TEST_EMULATED_AGENT").context("SKERRY_TEST_EMULATED_AGENT names no agent")?;
    Ok(command.split_whitespace().map(OsString::from).collect())
}

/// All numbers and texts of an answer, by output.
fn outputs(device: &Device, window: &Window) -> Result<Value> {
    let body =
        json!({"inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 6, 100], "data": window.samples}]});
    let (status, mut answer) = device.post_inference(MODEL, &body)?;
    ensure!(status == 200, "status {status}: {answer}");
    Ok(answer["outputs"].take())
}

/// The largest difference of two answers; an error if more than numbers differ.
fn difference(one: &Value, other: &Value) -> Result<f64> {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            ensure!(one.len() == other.len(), "{one:?} {other:?}");
            let mut most = 0.0_f64;
            for (one, other) in one.iter().zip(other) {
                most = most.max(difference(one, other)?);
            }
            Ok(most)
        }
        (Value::Object(one), Value::Object(other)) => {
            ensure!(one.keys().eq(other.keys()), "{one:?} {other:?}");
            let mut most = 0.0_f64;
            for (key, one) in one {
                most = most.max(difference(one, &other[key])?);
            }
            Ok(most)
        }
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().context("a number")?, other.as_f64().context("a number")?);
            let most = TOLERANCE.0 + TOLERANCE.1 * one.abs();
            ensure!((one - other).abs() <= most, "{one} and {other}");
            Ok((one - other).abs())
        }
        _ => {
            ensure!(one == other, "{one} and {other}");
            Ok(0.0)
        }
    }
}

#[test]
fn an_emulated_agent_enrols_updates_through_a_kill_and_answers_like_a_native_one() -> Result<()> {
    let fleet = Fleet::start(PROGRAM)?;
    let native = fleet.devices(&["native"])?.pop().context("a device")?;
    let mut emulated = fleet.enroll_with("emulated", emulated_agent()?)?;
    // Slow enough that the download has a middle.
    emulated
        .arguments
        .extend(["--bandwidth".to_owned(), "60000".to_owned()]);
    emulated.start()?;
    fleet.release(1)?;
    let rollout = fleet.roll_out(1, &["rest"])?;
    fleet.wait("the middle of the emulated agent's download", || {
        let update = emulated.status()?["update"].take();
        let have = update["have_bytes"].as_u64().unwrap_or(0);
        let total = update["total_bytes"].as_u64().unwrap_or(0);
        Ok((update["state"] == "download" && have > 40_000 && have < total).then_some(()))
    })?;
    emulated.kill()?;
    emulated.start()?;
    let rollout = fleet.wait_for_rollout(rollout, &["finished", "stopped", "paused"])?;
    assert_eq!(rollout["state"], "finished", "{rollout}");

    let platform = &fleet.device("emulated")?["platform"];
    let native_platform = &fleet.device("native")?["platform"];
    assert_ne!(platform, native_platform, "nothing is emulated");
    let windows = test_windows()?;
    let mut most = 0.0_f64;
    for window in &windows {
        most = most.max(difference(&outputs(&native, window)?, &outputs(&emulated, window)?)?);
    }
    eprintln!(
        "{platform}: {} answers, the largest difference is {most:e}",
        windows.len()
    );

    fleet.wait("the emulated agent's telemetry", || {
        let path = format!("/api/v1/telemetry/summary?device=emulated&model={MODEL}");
        let summary = fleet.client().get(&path)?;
        let rows = summary["rows"].as_array().into_iter().flatten();
        let counted: u64 = rows.filter_map(|row| row["inferences"].as_u64()).sum();
        Ok((counted >= windows.len() as u64).then_some(()))
    })
}
