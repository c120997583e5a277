//! python-tuf writes and we read; we write and python-tuf reads (feature `outside`).

#![cfg(feature = "outside")]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{Device, Published, Server, fails, succeeds};

/// Runs the Python side. The interpreter must have `tuf`; where the feature is on, its absence is a mistake and no reason
/// to skip.
fn python(arguments: &[&str]) -> Output {
    let interpreter = std::env::var("SKERRY_TEST_PYTHON").expect("SKERRY_TEST_PYTHON names a Python with `tuf`");
    Command::new(interpreter)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_tuf.py"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const NAMES: [&str; 4] = ["model", "camera/model", "camera/lens-1/model", "elsewhere/model"];

#[track_caller]
fn we_read_what_python_writes(consistent: &str, keys: &str) {
    let place = tempfile::tempdir().unwrap();
    succeeds(&python(&["write", text(place.path()), consistent, keys]));
    let server = Server::start(place.path());
    let device = Device::new(&server);
    succeeds(&device.init(&place.path().join("metadata/1.root.json")));
    succeeds(&device.refresh());
    let asked = server.requests();
    // Three roots, each signed by two of three; the fourth is not there.
    assert_eq!(
        asked[..3],
        ["2", "3", "4"].map(|version| format!("metadata/{version}.root.json"))
    );
    assert_eq!(
        asked.len(),
        6,
        "delegated roles are loaded when they are needed: {asked:?}"
    );

    for release in ["version 1", "version 2"] {
        succeeds(&device.download(&NAMES));
        for name in NAMES {
            let local = device.targets().join(name.replace('/', "%2F"));
            assert_eq!(std::fs::read_to_string(local).unwrap(), release, "{name}");
        }
        fails(
            &device.download(&["camera/lens-2/hidden"]),
            "no role signs for this target",
        );
        succeeds(&python(&["release", text(place.path())]));
    }
    assert_eq!(
        Device::files(&device.metadata()),
        [
            "bins.json",
            "lens.json",
            "root.json",
            "snapshot.json",
            "targets.json",
            "team%2Fcamera.json",
            "timestamp.json"
        ]
    );
    // The keys of timestamp and snapshot were replaced in root 3, so a device that stays at root 1 believes nothing.
    let stuck = Device::new(&server);
    succeeds(&stuck.init(&place.path().join("metadata/1.root.json")));
    server.answer("metadata/2.root.json", (404, None));
    fails(&stuck.refresh(), "timestamp.json is refused");
}

#[test]
fn a_repository_of_python_tuf_with_consistent_snapshots_is_read() {
    we_read_what_python_writes("consistent", "ed25519");
}

#[test]
fn a_repository_of_python_tuf_without_consistent_snapshots_is_read() {
    we_read_what_python_writes("plain", "ed25519");
}

#[cfg(feature = "conformance")]
#[test]
fn a_repository_of_python_tuf_with_ecdsa_and_rsa_keys_is_read() {
    we_read_what_python_writes("consistent", "mixed");
}

#[cfg(not(feature = "conformance"))]
#[test]
fn attack_a_key_type_that_devices_do_not_know_counts_for_nothing() {
    let place = tempfile::tempdir().unwrap();
    succeeds(&python(&["write", text(place.path()), "consistent", "mixed"]));
    let server = Server::start(place.path());
    // The first root is signed by an ECDSA and an RSA key.
    fails(
        &Device::new(&server).init(&place.path().join("metadata/1.root.json")),
        "0 of the 2 needed signatures",
    );
}

#[test]
fn python_tuf_reads_what_we_write() {
    let repository = Published::new();
    let server = Server::start(repository.place.path());
    let place = tempfile::tempdir().unwrap();
    let root = repository.root_file();
    let refresh = |name: &str| python(&["refresh", &server.url, text(&root), text(place.path()), "model", name]);
    let read = |name: &str| std::fs::read_to_string(place.path().join("targets").join(name)).unwrap();

    succeeds(&refresh("camera/front model"));
    assert_eq!(
        (read("model").as_str(), read("camera%2Ffront%20model").as_str()),
        ("version 1", "version 1")
    );
    fails(&refresh("absent"), "no role signs for absent");

    // A new timestamp key, and everything else anew.
    repository.root(2, 12, &[1]);
    repository.release(2, 12);
    succeeds(&refresh("camera/front model"));
    assert_eq!(
        (read("model").as_str(), read("camera%2Ffront%20model").as_str()),
        ("version 2", "version 2")
    );

    // Control case of the interop: python-tuf does check what it reads.
    repository.release(3, 2);
    fails(&refresh("model"), "timestamp was signed by 0/1 keys");
}
