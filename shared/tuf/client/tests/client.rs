//! The binary against a repository that we write, over a web server on loopback.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Device, Published, Server, fails, succeeds};

struct World {
    repository: Published,
    server: Server,
    device: Device,
}

/// A repository, and a device that trusts its first root.
fn world() -> World {
    let repository = Published::new();
    let server = Server::start(repository.place.path());
    let device = Device::new(&server);
    succeeds(&device.init(&repository.root_file()));
    World {
        repository,
        server,
        device,
    }
}

/// A world in which the first release is trusted and its targets are there.
fn up_to_date() -> World {
    let world = world();
    succeeds(&world.device.download(&["model", "camera/front model"]));
    world.server.requests();
    world
}

#[test]
fn a_refresh_asks_for_each_file_once_and_keeps_the_bytes_as_they_came() {
    let World {
        repository,
        server,
        device,
    } = world();
    succeeds(&device.refresh());
    let asked = ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"];
    assert_eq!(server.requests(), asked.map(|file| format!("metadata/{file}")));
    assert_eq!(
        Device::files(&device.metadata()),
        ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    );
    for (kept, published) in [("targets.json", "1.targets.json"), ("timestamp.json", "timestamp.json")] {
        let published = std::fs::read(repository.place.path().join("metadata").join(published)).unwrap();
        assert_eq!(std::fs::read(device.metadata().join(kept)).unwrap(), published);
    }
    // What is there already is not asked for again.
    succeeds(&device.refresh());
    assert_eq!(server.requests(), ["metadata/2.root.json", "metadata/timestamp.json"]);
}

#[test]
fn a_target_is_fetched_once_and_again_when_it_changed() {
    let World {
        repository,
        server,
        device,
    } = up_to_date();
    let read = |name: &str| std::fs::read_to_string(device.targets().join(name)).unwrap();
    assert_eq!(Device::files(&device.targets()), ["camera%2Ffront%20model", "model"]);
    assert_eq!(read("camera%2Ffront%20model"), "version 1");
    assert!(Device::files(&device.metadata()).contains(&"camera%2Ffront.json".to_owned()));

    succeeds(&device.download(&["model", "camera/front model"]));
    assert_eq!(server.requests(), ["metadata/2.root.json", "metadata/timestamp.json"]);

    std::fs::write(device.targets().join("model"), "spoilt on disk").unwrap();
    repository.release(2, 2);
    succeeds(&device.download(&["model", "camera/front model"]));
    assert_eq!(
        (read("model").as_str(), read("camera%2Ffront%20model").as_str()),
        ("version 2", "version 2")
    );
    assert!(server.requests().contains(&"metadata/2.camera%2Ffront.json".to_owned()));
}

#[test]
fn a_target_that_nobody_signs_is_not_asked_for() {
    let World {
        repository: _repository,
        server,
        device,
    } = up_to_date();
    fails(&device.download(&["model", "absent"]), "no role signs for this target");
    fails(&device.download(&["../model"]), "cannot ask for target");
    assert!(!server.requests().iter().any(|path| path.starts_with("targets/")));
}

#[test]
fn without_arguments_it_fails_with_one() {
    let World {
        repository: _repository,
        device,
        ..
    } = world();
    fails(&device.download(&[]), "--target-name is missing");
    fails(&device.init(&device.place.path().join("absent.json")), "cannot read");
    let bare = std::process::Command::new(env!("CARGO_BIN_EXE_skerry-tuf-client"));
    fails(&{ bare }.output().unwrap(), "Usage");
}

#[test]
fn attack_a_second_init_does_not_replace_the_trusted_root() {
    let World { repository, device, .. } = world();
    let own = repository.place.path().join("own.json");
    std::fs::copy(repository.root_file(), &own).unwrap();
    succeeds(&device.init(&own));
    let mut other = std::fs::read(&own).unwrap();
    other.push(b'\n');
    std::fs::write(&own, other).unwrap();
    let before = std::fs::read(device.metadata().join("root.json")).unwrap();
    fails(&device.init(&own), "trusts another root");
    assert_eq!(std::fs::read(device.metadata().join("root.json")).unwrap(), before);
}

#[test]
fn attack_endless_bodies_are_cut_off_and_leave_nothing() {
    // `up_to_date` below is the control: the same names with honest bodies.
    for (path, because) in [
        ("metadata/2.root.json", "longer than 512000 bytes"),
        ("metadata/timestamp.json", "longer than 16384 bytes"),
        ("metadata/1.snapshot.json", "longer than"),
        ("metadata/1.targets.json", "longer than"),
        ("metadata/1.camera%2Ffront.json", "longer than"),
    ] {
        let World {
            repository: _repository,
            server,
            device,
        } = world();
        server.answer(path, (200, Some(vec![b' '; 8 << 20])));
        fails(&device.download(&["camera/front model"]), because);
        assert!(
            device
                .metadata()
                .read_dir()
                .unwrap()
                .all(|file| !is_hidden(&file.unwrap()))
        );
    }
    let World {
        repository: _repository,
        server,
        device,
    } = up_to_date();
    std::fs::remove_file(device.targets().join("model")).unwrap();
    succeeds(&device.download(&["model"]));
    std::fs::remove_file(device.targets().join("model")).unwrap();
    let target = server
        .requests()
        .into_iter()
        .find(|path| path.starts_with("targets/"))
        .unwrap();
    server.answer(&target, (200, Some(vec![b'x'; 8 << 20])));
    fails(&device.download(&["model"]), "longer than 9 bytes");
    server.answer(&target, (200, Some(b"version x".to_vec())));
    fails(&device.download(&["model"]), "does not match");
    assert_eq!(Device::files(&device.targets()), ["camera%2Ffront%20model"]);
}

fn is_hidden(file: &std::fs::DirEntry) -> bool {
    file.file_name().to_str().unwrap().starts_with('.')
}

#[test]
fn attack_a_broken_server_does_not_pass_for_one_without_a_newer_root() {
    let World {
        repository,
        server,
        device,
    } = up_to_date();
    // Control: where there is no newer root, the old timestamp key is good.
    succeeds(&device.refresh());
    server.requests();
    // It was stolen and replaced; whoever has it hides the new root.
    repository.root(2, 12, &[1]);
    server.answer("metadata/2.root.json", (500, None));
    fails(&device.refresh(), "the answer is 500");
    server.answer("metadata/2.root.json", (200, Some(b"{".to_vec())));
    fails(&device.refresh(), "2.root.json is refused");
    assert_eq!(server.requests(), ["metadata/2.root.json", "metadata/2.root.json"]);
}

#[test]
fn attack_rollback_after_a_refresh_that_ended_half_way() {
    let World {
        repository,
        server,
        device,
    } = world();
    repository.release(5, 2);
    succeeds(&device.refresh());
    repository.release(6, 2);
    let six = |file: &str| std::fs::read(repository.place.path().join("metadata").join(file)).unwrap();
    let (timestamp, snapshot) = (six("timestamp.json"), six("6.snapshot.json"));
    server.answer("metadata/6.snapshot.json", (500, None));
    fails(&device.refresh(), "the answer is 500");
    server.answer("metadata/6.snapshot.json", (200, Some(snapshot)));

    repository.release(4, 2);
    fails(&device.refresh(), "lower than the trusted 6");
    // Control: the release that was announced.
    repository.metadata("timestamp.json", &timestamp);
    succeeds(&device.refresh());
}

#[test]
fn a_rotated_timestamp_key_removes_what_it_signed() {
    let World { repository, device, .. } = up_to_date();
    repository.root(2, 12, &[1]);
    fails(&device.refresh(), "timestamp.json is refused");
    assert_eq!(
        Device::files(&device.metadata()),
        ["camera%2Ffront.json", "root.json", "targets.json"]
    );
    repository.release(2, 12);
    succeeds(&device.refresh());
}

#[test]
fn attack_a_cached_role_whose_key_was_revoked_is_not_used_and_is_dropped() {
    let World {
        repository,
        server,
        device,
        ..
    } = up_to_date();
    let cached = std::fs::read(device.metadata().join("camera%2Ffront.json")).unwrap();
    succeeds(&device.download(&["camera/front model"]));
    // A new release in which the file of the role is what the old key signed.
    repository.release_with_other_camera_key(2, &cached);
    server.requests();
    fails(
        &device.download(&["camera/front model"]),
        "not signed by enough of the keys",
    );
    assert!(!Device::files(&device.metadata()).contains(&"camera%2Ffront.json".to_owned()));
    succeeds(&device.download(&["model"]));
}
