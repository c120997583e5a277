//! The keys' half of the story: people who must agree, keys that change while a device is away, and what is taken back.

use std::fs;

use serde_json::{Value, json};
use skerry_control_plane::signing::key_file;
use skerry_system_tests::{Device, Fleet, fixtures::MODEL};
use skerry_tuf::{Limits, MetaFile, Signed, SigningKey, Snapshot, UnixTime, new_timestamp, sign_metadata};

use crate::PROGRAM;

/// Runs a command that must succeed.
#[track_caller]
fn run(fleet: &Fleet, arguments: &[&str]) {
    let output = fleet.skerry(arguments).unwrap();
    assert!(
        output.status.success(),
        "skerry {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a command that must fail, and gives what it says.
#[track_caller]
fn refused(fleet: &Fleet, arguments: &[&str]) -> String {
    let output = fleet.skerry(arguments).unwrap();
    assert_eq!(output.status.code(), Some(1), "skerry {arguments:?}");
    let (out, err) = (output.stdout, output.stderr);
    format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err))
}

/// A person with a key pair in a folder of their own, and the trusted root beside it.
fn person(fleet: &Fleet, name: &str, secret: &[&str]) {
    fs::create_dir(fleet.path(name)).unwrap();
    let key = format!("{name}/{name}.key");
    run(fleet, &[&["keys", "new", "--out", &key], secret].concat());
    fs::copy(fleet.path("keys/root.json"), fleet.path(&format!("{name}/root.json"))).unwrap();
}

/// Anna, who has the folder `keys`, and Ben sign a draft; then it is published.
fn sign_and_publish(fleet: &Fleet) {
    run(fleet, &["keys", "sign", "--yes"]);
    run(
        fleet,
        &["keys", "sign", "keys/root-draft.json", "--keys", "ben", "--yes"],
    );
    run(fleet, &["keys", "publish"]);
    fs::copy(fleet.path("keys/root.json"), fleet.path("ben/root.json")).unwrap();
}

/// From one key of root and targets to two of three: Anna's, Ben's, and Carl's, which is encrypted.
fn share_keys(fleet: &Fleet) {
    fs::write(fleet.path("carl-passphrase"), "correct horse\n").unwrap();
    person(fleet, "ben", &["--no-passphrase"]);
    person(fleet, "carl", &["--passphrase-file", "carl-passphrase"]);
    for role in ["root", "targets"] {
        for name in ["ben", "carl"] {
            let key = format!("{name}/{name}.pub");
            run(
                fleet,
                &["keys", "add", "--role", role, "--public-key", &key, "--name", name],
            );
        }
        run(fleet, &["keys", "threshold", "--role", role, "2"]);
    }
    run(fleet, &["keys", "renew"]);
    run(fleet, &["keys", "sign", "--yes"]);
    // Anna's word was enough for the old root, and is half of what the new one needs.
    let said = refused(fleet, &["keys", "publish"]);
    assert!(said.contains("missing") && said.contains("(ben)"), "{said}");
    let carl = ["--yes", "--keys", "carl", "--passphrase-file", "carl-passphrase"];
    run(fleet, &[&["keys", "sign", "keys/root-draft.json"], &carl[..]].concat());
    // The targets metadata needs the new keys, too, and the control plane takes both or nothing.
    let said = refused(fleet, &["keys", "publish"]);
    assert!(said.contains("targets metadata is refused"), "{said}");
    fs::copy(fleet.path("keys/root-draft.json"), fleet.path("carl/root-draft.json")).unwrap();
    run(
        fleet,
        &[&["keys", "sign", "keys/targets-draft.json"], &carl[..]].concat(),
    );
    run(fleet, &["keys", "publish"]);
    fs::copy(fleet.path("keys/root.json"), fleet.path("ben/root.json")).unwrap();
}

/// Signs a bundle twice and publishes it.
fn release(fleet: &Fleet, version: u64) {
    fleet.build(version).unwrap();
    let out = format!("bundle-v{version}");
    run(fleet, &["bundle", "sign", &out, "--keys", "keys"]);
    let said = refused(fleet, &["bundle", "publish", &out]);
    assert!(said.contains("1 of the 2 needed signatures"), "{said}");
    // Ben sees what he signs, and nothing that was published before.
    run(fleet, &["keys", "update", "--dir", "ben"]);
    let draft = format!("{out}/targets.json");
    let signed = fleet
        .skerry_json(&["keys", "sign", &draft, "--keys", "ben", "--yes"])
        .unwrap();
    let changes: Vec<&str> = signed["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect();
    let new = format!("+ bundle {MODEL}/{version}/index: sha256 ");
    assert_eq!(
        changes.iter().filter(|line| line.starts_with('+')).count(),
        1,
        "{changes:?}"
    );
    assert!(
        changes[0].ends_with("which is published:") && changes[1].starts_with(&new),
        "{changes:?}"
    );
    run(fleet, &["bundle", "publish", &out]);
}

/// What a thief of the timestamp key publishes, when the control plane is in their hands.
fn fast_forward(fleet: &Fleet, stolen: &SigningKey) {
    let database = rusqlite::Connection::open(fleet.path("data/core.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let sql = "SELECT f.content FROM tuf_current c JOIN tuf_files f ON f.name = c.name WHERE c.role = 'snapshot'";
    let snapshot: Vec<u8> = database.query_row(sql, [], |row| row.get(0)).unwrap();
    let version = Signed::<Snapshot>::parse(&snapshot, &Limits::default())
        .unwrap()
        .unverified()
        .version;
    let expires: UnixTime = "2999-01-01T00:00:00Z".parse().unwrap();
    let forged = new_timestamp(u64::MAX, expires, MetaFile::describe(version, &snapshot));
    let forged = sign_metadata(&forged, [stolen]).unwrap();
    let sql = "UPDATE tuf_files SET content = ?1 WHERE name = 'timestamp.json'";
    database.execute(sql, [forged]).unwrap();
}

fn trusted(device: &Device, role: &str) -> Option<Value> {
    let bytes = fs::read(device.state_dir.join(format!("trust/{role}.json"))).ok()?;
    Some(serde_json::from_slice::<Value>(&bytes).ok()?["signed"].take())
}

fn wait_for_version(fleet: &Fleet, device: &Device, role: &str, version: u64) {
    let what = format!("the device to trust {role} version {version}");
    fleet
        .wait(&what, || {
            let file = trusted(device, role);
            Ok(file.filter(|file| file["version"] == json!(version)).map(|_| ()))
        })
        .unwrap();
}

/// The version that a device says it serves, and how its newest update of the model ended.
fn serves(fleet: &Fleet, id: &str) -> (Value, Value) {
    let device = fleet.device(id).unwrap();
    let bundles = device["bundles"].as_array().cloned().unwrap_or_default();
    let current = bundles.into_iter().find(|bundle| bundle["slot"] == "current");
    let version = current.map_or(Value::Null, |bundle| bundle["version"].clone());
    (version, device["outcomes"][0]["result"].clone())
}

#[test]
fn flow_two_of_three_people_rotate_every_key_while_a_device_is_away() {
    let mut fleet = Fleet::start(PROGRAM).unwrap();
    let mut devices = fleet.devices(&["dev-1"]).unwrap();
    let device = &mut devices[0];
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();

    let stolen = key_file::read(&fleet.path("keys/online/timestamp.key"), || panic!("not encrypted")).unwrap();
    device.kill().unwrap();
    fast_forward(&fleet, &stolen);
    device.start().unwrap();
    wait_for_version(&fleet, device, "timestamp", u64::MAX);
    device.kill().unwrap();

    // Twenty roots: who must sign, then every online role in turn, and the offline ones.
    share_keys(&fleet);
    let roles = ["timestamp", "snapshot", "assignment", "time"];
    for role in roles.iter().cycle().take(18) {
        run(&fleet, &["keys", "rotate", "--role", role, "--no-passphrase"]);
        sign_and_publish(&fleet);
    }
    let shown = fleet.skerry_json(&["keys", "show"]).unwrap();
    let targets = shown["roles"][1]["keys"].as_array().unwrap().clone();
    assert_eq!(shown["version"], 20);
    let unnamed = |key: &&Value| key["name"] == "";
    let annas = targets.iter().find(unnamed).unwrap()["id"].as_str().unwrap().to_owned();
    for role in ["targets", "root"] {
        let keys = fleet.skerry_json(&["keys", "show"]).unwrap()["roles"].clone();
        let index = if role == "root" { 0 } else { 1 };
        let old = keys[index]["keys"].as_array().unwrap().iter().find(unnamed).unwrap()["id"].clone();
        let old = old.as_str().unwrap();
        run(
            &fleet,
            &[
                "keys",
                "rotate",
                "--role",
                role,
                "--key",
                old,
                "--no-passphrase",
                "--name",
                "anna",
            ],
        );
    }
    run(&fleet, &["keys", "renew"]);
    fs::copy(fleet.path("keys/root-draft.json"), fleet.path("ben/root-draft.json")).unwrap();
    run(
        &fleet,
        &["keys", "sign", "keys/targets-draft.json", "--keys", "ben", "--yes"],
    );
    sign_and_publish(&fleet);
    let shown = fleet.skerry_json(&["keys", "show"]).unwrap();
    assert!(!shown.to_string().contains(&annas), "{shown}");

    // A restart goes on with the newest root, and an enrolment learns it at once.
    fleet.stop_server().unwrap();
    fleet.start_server().unwrap();
    device.start().unwrap();
    wait_for_version(&fleet, device, "root", 21);
    assert!(trusted(device, "timestamp").is_none_or(|file| file["version"] != json!(u64::MAX)));
    let mut late = fleet.enroll("dev-2").unwrap();
    assert_eq!(trusted(&late, "root").unwrap()["version"], 21);
    late.start().unwrap();

    release(&fleet, 2);
    fleet.deploy(2).unwrap();
    assert_eq!(serves(&fleet, "dev-1"), (json!(2), json!({"kind": "succeeded"})));
    assert_eq!(trusted(device, "root").unwrap()["version"], 21);
    let timestamp = trusted(device, "timestamp").unwrap()["version"].as_u64().unwrap();
    assert!(timestamp < 1000, "{timestamp}");
}

#[test]
fn flow_a_blocked_version_is_left_and_cannot_be_rolled_out() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    for version in [1, 2] {
        fleet.release(version).unwrap();
        fleet.deploy(version).unwrap();
    }
    run(
        &fleet,
        &["bundle", "block", MODEL, "2", "--reason", "it sees cats everywhere"],
    );
    run(&fleet, &["keys", "publish"]);
    fleet
        .wait("the device to leave the blocked version", || {
            let (version, result) = serves(&fleet, "dev-1");
            Ok((version == 1 && result["error"]["code"] == "blocked").then_some(()))
        })
        .unwrap();
    let said = refused(&fleet, &["rollout", "create", MODEL, "2"]);
    assert!(said.contains("cats everywhere"), "{said}");

    // What is too old needs a word more.
    run(&fleet, &["bundle", "min-release", MODEL, "2"]);
    run(&fleet, &["keys", "publish"]);
    let said = refused(&fleet, &["rollout", "create", MODEL, "1"]);
    assert!(said.contains("downgrade"), "{said}");
    drop(devices);
}
