//! Power cuts: the agent is killed in every state of an update. Afterwards it has the old or the new bundle, never neither,
//! and it ends up in sync.

use skerry_system_tests::{
    Device, Fleet,
    faults::{files_in, flip_a_bit},
    fixtures::{activity_recognition, test_windows},
};

use crate::PROGRAM;

/// Kills the agent when its log says that the update has reached `state`, and gives the state that the next start finds.
fn kill_in(device: &mut Device, state: &str) -> String {
    let wanted = format!("update.state=\"{state}\"");
    let reached = |line: &str| line.contains(&wanted).then_some(());
    device.process().unwrap().wait_for_line(&wanted, reached).unwrap();
    device.kill().unwrap();
    device.start().unwrap();
    let found = |line: &str| Some(line.split_once("update.state=\"")?.1.trim_end_matches('"').to_owned());
    device.process().unwrap().wait_for_line("what it found", found).unwrap()
}

#[test]
fn a_power_cut_in_any_state_of_an_update_leaves_the_old_or_the_new_bundle() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    let device = &mut devices[0];
    fleet.release(1).unwrap();
    fleet.release(2).unwrap();
    fleet.deploy(1).unwrap();
    let window = &test_windows().unwrap()[0];
    // Back and forth, so that every state is reached with a bundle in both slots. One cut on probation is forgiven.
    let states = ["sync", "download", "verify", "install", "probation", "commit", "idle"];
    for (round, state) in states[..6].iter().enumerate() {
        let version = if round % 2 == 0 { 2 } else { 1 };
        device.process().unwrap().forget_lines();
        let id = fleet.roll_out(version, &["rest"]).unwrap();
        let found = kill_in(device, state);
        // The signal takes a moment: the agent may have gone on, and never back.
        let position = states.iter().position(|other| *other == found);
        // What was proved and not yet committed serves its probation again.
        let goes_on = position >= Some(round) || (*state, found.as_str()) == ("commit", "probation");
        assert!(goes_on, "killed in {state}, found {found}");
        let serving = format!("{}/v2/models/activity-recognition/ready", device.url());
        fleet
            .wait("a model to serve", || Ok(ureq::get(&serving).call().ok().map(|_| ())))
            .unwrap();
        let (answers, _) = device.infer(window).unwrap();
        assert!([1, 2].contains(&answers), "killed in {state}, found {found}");
        let rollout = fleet.wait_for_rollout(id, &["finished", "stopped", "paused"]).unwrap();
        assert_eq!(rollout["state"], "finished", "killed in {state}: {rollout}");
        assert_eq!(device.serves().unwrap(), Some(version), "killed in {state}");
    }
}

/// A device with a link on which a bundle takes seconds, so that a download has a middle.
fn slow_device(fleet: &Fleet) -> Device {
    let mut device = fleet.enroll("dev-1").unwrap();
    device.arguments.extend(["--bandwidth".to_owned(), "60000".to_owned()]);
    device.start().unwrap();
    device
}

#[test]
fn a_download_goes_on_from_what_is_on_disk() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let mut device = slow_device(&fleet);
    fleet.release(1).unwrap();
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    fleet
        .wait("the middle of the download", || {
            let update = device.status()?["update"].take();
            let (have, total) = (
                update["have_bytes"].as_u64().unwrap_or(0),
                update["total_bytes"].as_u64().unwrap_or(0),
            );
            Ok((update["state"] == "download" && have > 40_000 && have < total).then_some(()))
        })
        .unwrap();
    device.kill().unwrap();
    device.start().unwrap();
    let rollout = fleet.wait_for_rollout(id, &["finished", "stopped", "paused"]).unwrap();
    let progress = &rollout["groups"][0]["devices"][0];
    assert_eq!(progress["state"], "succeeded", "{rollout}");
    assert_eq!(progress["resumed_downloads"], 1);
}

#[test]
fn a_broker_that_goes_away_in_a_download_only_delays_it() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let device = slow_device(&fleet);
    fleet.release(1).unwrap();
    let id = fleet.roll_out(1, &["rest"]).unwrap();
    fleet
        .wait("the download to begin", || {
            let update = device.status()?["update"].take();
            Ok((update["state"] == "download" && update["have_bytes"].as_u64() > Some(0)).then_some(()))
        })
        .unwrap();
    // The broker is a part of the control plane.
    fleet.kill_server().unwrap();
    let gone = |line: &str| line.contains("no connection to the broker").then_some(());
    device
        .process()
        .unwrap()
        .wait_for_line("that the broker is gone", gone)
        .unwrap();
    fleet.start_server().unwrap();
    let rollout = fleet.wait_for_rollout(id, &["finished", "stopped", "paused"]).unwrap();
    assert_eq!(rollout["state"], "finished", "{rollout}");
}

#[test]
fn an_installed_bundle_that_was_damaged_gives_its_place_to_the_previous_one_and_is_fetched_anew() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    for version in [1, 2] {
        fleet.release(version).unwrap();
        fleet.deploy(version).unwrap();
    }
    let device = &mut devices[0];
    device.kill().unwrap();
    let objects = files_in(&device.state_dir.join("store/objects")).unwrap();
    let onnx = std::fs::read(activity_recognition().join("models/v2/model.onnx")).unwrap();
    let damaged = objects
        .iter()
        .find(|path| std::fs::read(path).unwrap() == onnx)
        .unwrap();
    flip_a_bit(damaged).unwrap();

    // Alone it serves v1.
    fleet.kill_server().unwrap();
    device.start().unwrap();
    let goes_on = |line: &str| line.contains("the update goes on").then_some(());
    device
        .process()
        .unwrap()
        .wait_for_line("that it goes on", goes_on)
        .unwrap();
    let window = &test_windows().unwrap()[0];
    assert_eq!(device.infer(window).unwrap().0, 1);
    // With the control plane it gets v2 again, without anybody asking.
    fleet.start_server().unwrap();
    fleet
        .wait("v2 to be repaired", || Ok((device.serves()? == Some(2)).then_some(())))
        .unwrap();
    assert_eq!(device.infer(window).unwrap().0, 2);
}
