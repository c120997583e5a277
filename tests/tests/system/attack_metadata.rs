//! Attacks on the metadata, by whoever took the broker and, row by row, some of the keys. In each one the device refuses with
//! the right word, keeps what it trusts and goes on serving; a control case shows that nothing but the attack was wrong, or
//! that a device without the check would have believed it.

use std::{fs, num::NonZeroU32};

use serde_json::{Value, json};
use skerry_shared::desired::{Desired, OutcomeResult, UpdateState};
use skerry_system_tests::faults::flip_a_bit;
use skerry_tuf::{KeySet, SigningKey, TrustedSet, new_timestamp, sign_metadata};

use crate::impostor::{Repository, Scene, edited, error_code, now, version_of};

fn with(repository: &Repository, name: &str, file: Vec<u8>) -> Repository {
    let mut new = repository.clone();
    new.metadata.insert(name.to_owned(), file);
    new
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn keys(keys: &[&SigningKey], threshold: u32) -> (KeySet, Value) {
    let set = KeySet::new(
        keys.iter().map(|key| key.public_key()).collect::<Vec<_>>(),
        NonZeroU32::new(threshold).unwrap(),
    );
    let keyids: Vec<_> = keys.iter().map(|key| key.id().as_str().to_owned()).collect();
    (set, json!({"keyids": keyids, "threshold": threshold}))
}

/// Root `version` with other keys for one role, signed by `signers`.
fn root(
    scene: &Scene,
    version: u64,
    role: &str,
    role_keys: &[&SigningKey],
    threshold: u32,
    signers: &[&SigningKey],
) -> Vec<u8> {
    let (set, role_json) = keys(role_keys, threshold);
    edited(&scene.after.metadata["1.root.json"], signers, |signed| {
        signed["version"] = json!(version);
        for (id, key) in &set.keys {
            signed["keys"][id.as_str()] = serde_json::to_value(key).unwrap();
        }
        signed["roles"][role] = role_json;
    })
}

/// The true targets with a higher version, signed by `signers`, under a good snapshot and timestamp: the online keys are stolen.
fn targets_signed_by(scene: &Scene, repository: &Repository, signers: &[&SigningKey]) -> Repository {
    let targets = edited(repository.newest_file("targets"), signers, |signed| {
        signed["version"] = json!(scene.next_version());
    });
    scene.around_targets(repository, targets)
}

#[test]
fn attack_arbitrary_install() {
    let mut scene = Scene::set();
    let forged = targets_signed_by(&scene, &scene.after, &[&scene.keys.stranger]);
    let unsigned = targets_signed_by(&scene, &scene.after, &[]);
    let mut other_bytes: Value = serde_json::from_slice(scene.after.newest_file("targets")).unwrap();
    other_bytes["signed"]["version"] = json!(scene.next_version());
    let other_bytes = scene.around_targets(&scene.after, serde_json::to_vec(&other_bytes).unwrap());
    for repository in [forged, unsigned, other_bytes] {
        // It is a good file for whoever trusts its maker: only the signature is wrong.
        scene.refuses(repository, "sig_threshold");
    }
    let signed = targets_signed_by(&scene, &scene.after, &[&scene.keys.targets]);
    scene.accepts(signed);
}

#[test]
fn attack_one_key_that_signs_twice() {
    let mut scene = Scene::set();
    let (first, second) = (scene.keys.targets.clone(), key(70));
    let two_of_two = root(&scene, 2, "targets", &[&first, &second], 2, &[&scene.keys.root]);
    let rotated = with(&scene.after, "2.root.json", two_of_two);
    // Under its own id twice, and once under the id of the other key.
    let twice = targets_signed_by(&scene, &rotated, &[&first, &first]);
    let mut file: Value = serde_json::from_slice(twice.newest_file("targets")).unwrap();
    file["signatures"][1]["keyid"] = json!(second.id().as_str());
    let disguised = scene.around_targets(&rotated, serde_json::to_vec(&file).unwrap());
    refuses_after_rotation(&mut scene, twice, "duplicate_signature");
    refuses_after_rotation(&mut scene, disguised, "sig_threshold");
    let both = targets_signed_by(&scene, &rotated, &[&first, &second]);
    scene.accepts(both);
}

/// After a rotation of the targets key the old targets file is not trusted any more, and the new one is refused.
fn refuses_after_rotation(scene: &mut Scene, repository: Repository, code: &str) {
    let outcome = scene.attempt(repository);
    assert_eq!(error_code(&outcome), Some(code), "{outcome:?}");
    scene.still_serves(1);
}

#[test]
fn attack_one_stolen_key_of_two() {
    let mut scene = Scene::set();
    let (first, second) = (scene.keys.targets.clone(), key(70));
    let two_of_two = root(&scene, 2, "targets", &[&first, &second], 2, &[&scene.keys.root]);
    let rotated = with(&scene.after, "2.root.json", two_of_two);
    let one = targets_signed_by(&scene, &rotated, &[&first]);
    refuses_after_rotation(&mut scene, one, "sig_threshold");
    let both = targets_signed_by(&scene, &rotated, &[&first, &second]);
    scene.accepts(both);
}

#[test]
fn attack_root_signed_by_one_side_only() {
    let mut scene = Scene::set();
    let (old, new) = (scene.keys.root.clone(), key(71));
    let one_sided = |scene: &Scene, signers: &[&SigningKey]| {
        let next = root(scene, 2, "root", &[&new], 1, signers);
        with(&scene.after, "2.root.json", next)
    };
    for signer in [&old, &new] {
        let repository = one_sided(&scene, &[signer]);
        scene.refuses(repository, "sig_threshold");
        assert_eq!(version_of(&scene.trusted_files()["root.json"]), 1);
    }
    let both = one_sided(&scene, &[&old, &new]);
    scene.accepts(both);
    assert_eq!(version_of(&scene.trusted_files()["root.json"]), 2);
}

#[test]
fn attack_root_version_gap_and_rollback() {
    let mut scene = Scene::set();
    let signer = scene.keys.root.clone();
    for (version, code) in [(3, "root_version_gap"), (1, "rollback")] {
        let next = root(&scene, version, "timestamp", &[&scene.keys.timestamp], 1, &[&signer]);
        let repository = with(&scene.after, "2.root.json", next);
        scene.refuses(repository, code);
        assert_eq!(version_of(&scene.trusted_files()["root.json"]), 1);
    }
    let next = root(&scene, 2, "timestamp", &[&scene.keys.timestamp], 1, &[&signer]);
    let honest = with(&scene.after, "2.root.json", next);
    scene.accepts(honest);
}

/// `dev-1` has seen version 2; then it gets what was true before, as it was or under new signatures of stolen online keys.
#[test]
fn attack_rollback_of_timestamp_snapshot_and_targets() {
    let mut scene = Scene::set();
    scene.accepts(scene.after.clone());
    let trusted = scene.trusted_files();
    let old_snapshot = scene.around_snapshot(&scene.before, scene.before.newest_file("snapshot").to_vec());
    let old_targets = scene.around_targets(&scene.before, scene.before.newest_file("targets").to_vec());
    for (stolen, repository) in [
        ("nothing", scene.before.clone()),
        ("the timestamp key", old_snapshot),
        ("both online keys", old_targets),
    ] {
        scene.serve(repository);
        let back_to_1 = scene.desired("dev-1", 1);
        assert_eq!(scene.waits_for(&back_to_1), "rollback", "with {stolen}");
        let now_trusted = scene.trusted_files();
        assert_eq!(now_trusted["targets.json"], trusted["targets.json"], "with {stolen}");
        scene.still_serves(2);
    }
    // A device that has seen nothing believes every byte of it.
    scene.fresh_device_accepts(scene.before.clone());
}

#[test]
fn attack_rollback_of_the_assignment() {
    let mut scene = Scene::set();
    scene.serve(scene.after.clone());
    let earlier = scene.desired("dev-1", 1);
    let later = scene.desired("dev-1", 2);
    assert_eq!(scene.assign(&later).result, OutcomeResult::Succeeded);
    // Signed by the real key, once, for this device: it was a good intent before the later one came.
    let topic = "skerry/v1/d/dev-1/desired";
    scene
        .broker
        .publish(topic, true, scene.keys.online.sign_desired(&earlier));
    // What comes after it has been seen, and so has it.
    scene.broker.publish(topic, true, "{}");
    scene.wait_for_report("the device to complain of the second", |reported| {
        reported.refused.clone()
    });
    assert_eq!(scene.device.status().unwrap()["generation"], json!(later.generation.0));
    scene.still_serves(2);
    // With a higher number the same intent is followed.
    let again = scene.desired("dev-1", 1);
    assert_eq!(scene.assign(&again).result, OutcomeResult::Succeeded);
    scene.still_serves(1);
}

#[test]
fn attack_rollback_after_a_power_cut_tore_the_state() {
    let mut scene = Scene::set();
    scene.accepts(scene.after.clone());
    // One more intent, so that both copies of the record know version 2.
    let again = scene.desired("dev-1", 2);
    let signed = scene.keys.online.sign_desired(&again);
    scene.broker.publish("skerry/v1/d/dev-1/desired", true, signed);
    scene.wait_for_report("the device to take it", |reported| {
        (reported.generation == again.generation).then_some(())
    });
    scene.device.kill().unwrap();
    // The newer copy of the record is torn, and the metadata files are gone.
    let copies = ["state-a", "state-b"].map(|name| scene.device.state_dir.join(name));
    let newest = copies
        .iter()
        .max_by_key(|path| {
            let bytes = fs::read(path).unwrap();
            u64::from_le_bytes(bytes[..8].try_into().unwrap())
        })
        .unwrap();
    flip_a_bit(newest).unwrap();
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        fs::remove_file(scene.device.state_dir.join("trust").join(name)).unwrap();
    }
    scene.device.start().unwrap();
    scene.serve(scene.before.clone());
    let back_to_1 = scene.desired("dev-1", 1);
    assert_eq!(scene.waits_for(&back_to_1), "rollback");
    scene.still_serves(2);
    scene.fresh_device_accepts(scene.before.clone());
}

/// A stolen online key signs the highest version there is, so that no honest file can follow. Only a new key ends it.
#[test]
fn attack_fast_forward() {
    let mut scene = Scene::set();
    let stolen = scene.keys.timestamp.clone();
    let highest = edited(&scene.after.metadata["timestamp.json"], &[&stolen], |signed| {
        signed["version"] = json!(u64::MAX);
    });
    scene.accepts(with(&scene.after, "timestamp.json", highest));
    let honest = targets_signed_by(&scene, &scene.after, &[&scene.keys.targets]);
    scene.serve(honest.clone());
    let back_to_1 = scene.desired("dev-1", 1);
    assert_eq!(scene.waits_for(&back_to_1), "rollback", "the attack is real");
    scene.still_serves(2);

    let new = key(72);
    let next = root(&scene, 2, "timestamp", &[&new], 1, &[&scene.keys.root]);
    let recovered = edited(&honest.metadata["timestamp.json"], &[&new], |_| {});
    let recovered = with(&with(&honest, "2.root.json", next), "timestamp.json", recovered);
    scene.serve(recovered);
    let back_to_1 = scene.desired("dev-1", 1);
    let outcome = scene.assign(&back_to_1);
    assert_eq!(outcome.result, OutcomeResult::Succeeded, "{outcome:?}");
    scene.still_serves(1);
    // The stolen key is worth nothing now.
    scene.serve(with(
        &scene.after,
        "timestamp.json",
        honest.metadata["timestamp.json"].clone(),
    ));
    let again = scene.desired("dev-1", 2);
    assert_eq!(error_code(&scene.assign(&again)), Some("sig_threshold"));
    scene.still_serves(1);
}

/// An old timestamp, good but for its age, would hide every release after it.
#[test]
fn attack_freeze() {
    let mut scene = Scene::set();
    let expired = |scene: &Scene, expires| {
        let snapshot: Value = serde_json::from_slice(&scene.after.metadata["timestamp.json"]).unwrap();
        let listed = serde_json::from_value(snapshot["signed"]["meta"]["snapshot.json"].clone()).unwrap();
        let timestamp = new_timestamp(scene.next_version(), expires, listed);
        let timestamp = sign_metadata(&timestamp, [&scene.keys.timestamp]).unwrap();
        with(&scene.after, "timestamp.json", timestamp)
    };
    let a_minute_ago = skerry_tuf::UnixTime::from_millis(now().as_millis() - 60_000);
    let repository = expired(&scene, a_minute_ago);
    scene.holds_off(repository, "expired");
    let fresh = expired(&scene, now().plus_days(1));
    scene.accepts(fresh);
}

#[test]
fn attack_mix_and_match() {
    let mut scene = Scene::set();
    // All of it is signed by the right keys, and of different releases.
    let targets = scene.after.newest("targets");
    let other = edited(&scene.after.metadata[&targets], &[&scene.keys.targets], |signed| {
        signed["targets"] = json!({});
    });
    let repository = with(&scene.after, &targets, other);
    scene.refuses(repository, "length");
    let older = with(&scene.after, &targets, scene.before.newest_file("targets").to_vec());
    scene.refuses(older, "length");
    scene.accepts(scene.after.clone());
}

#[test]
fn attack_endless_data() {
    let mut scene = Scene::set();
    let endless = |file: &[u8]| {
        let mut file = file.to_vec();
        file.resize(8 * 1024 * 1024, b' ');
        file
    };
    let peak = scene.peak_kb();
    for role in ["timestamp", "snapshot"] {
        let name = scene.after.newest(role);
        // White space does not matter to a signature: only the length is wrong.
        let repository = with(&scene.after, &name, endless(scene.after.newest_file(role)));
        scene.refuses(repository, "too_large");
    }
    let root = endless(&root(
        &scene,
        2,
        "timestamp",
        &[&scene.keys.timestamp],
        1,
        &[&scene.keys.root],
    ));
    let repository = with(&scene.after, "2.root.json", root);
    scene.refuses(repository, "too_large");
    assert!(scene.peak_kb() < peak + 8 * 1024, "nothing of it was kept");
    scene.accepts(scene.after.clone());
}

#[test]
fn attack_assignment_for_another_device() {
    let mut scene = Scene::set();
    scene.serve(scene.after.clone());
    let for_the_other: Desired = scene.desired("dev-2", 1);
    let signed = scene.keys.online.sign_desired(&for_the_other);
    scene.broker.publish("skerry/v1/d/dev-1/desired", true, signed);
    let refused = scene.wait_for_report("the device to refuse it", |reported| reported.refused.clone());
    assert_eq!(refused.code, "other_device");
    scene.still_serves(1);
    // The device that is meant follows it.
    scene.fresh.start().unwrap();
    assert_eq!(scene.assign(&for_the_other).result, OutcomeResult::Succeeded);
}

/// All online keys are stolen. The thief may choose among what was released, and can add nothing.
#[test]
fn attack_stolen_server() {
    let mut scene = Scene::set();
    let (thief, other) = (scene.keys.timestamp.clone(), scene.keys.snapshot.clone());
    for signers in [vec![&thief], vec![&thief, &other]] {
        let own = targets_signed_by(&scene, &scene.after, &signers);
        let outcome = scene.attempt(own);
        assert_eq!(error_code(&outcome), Some("sig_threshold"), "{outcome:?}");
        scene.still_serves(1);
    }
    // Nor can he name himself in a root.
    let crowned = root(&scene, 2, "targets", &[&thief], 1, &[&thief, &other]);
    let repository = with(&scene.after, "2.root.json", crowned);
    let outcome = scene.attempt(repository);
    assert_eq!(error_code(&outcome), Some("sig_threshold"), "{outcome:?}");
    scene.still_serves(1);
    // What he can do, and what is promised no more of: version 2 was released.
    let released = targets_signed_by(&scene, &scene.after, &[&scene.keys.targets]);
    scene.accepts(released);
}

/// The metadata comes to block what serves on an hour of probation: the next look ends it, and not its end.
#[test]
fn a_version_that_is_blocked_on_its_probation_is_left_at_the_next_look() {
    let mut scene = Scene::set();
    scene.serve(scene.after.clone());
    let mut desired = scene.desired("dev-1", 2);
    desired.bundles[0].probation_ms = 3_600_000;
    let topic = "skerry/v1/d/dev-1/desired";
    let assign = |scene: &Scene, desired: &Desired| {
        let signed = scene.keys.online.sign_desired(desired);
        scene.broker.publish(topic, true, signed);
    };
    assign(&scene, &desired);
    scene.wait_for_report("its probation", |reported| {
        (reported.update.state == UpdateState::Probation).then_some(())
    });
    let index = scene.index_of(2).to_hex();
    let targets = edited(scene.after.newest_file("targets"), &[&scene.keys.targets], |signed| {
        signed["version"] = json!(scene.next_version());
        let blocked = json!({"blocked/by/digest": {"sha256": index, "reason": "it sees walkers everywhere"}});
        signed["x_skerry"] = json!({"blocked": blocked});
    });
    let blocks = scene.around_targets(&scene.after, targets);
    scene.serve(blocks);
    // A new intent that asks for the same: it is a reason to look.
    let mut again = scene.desired("dev-1", 2);
    again.bundles[0].probation_ms = 3_600_000;
    assign(&scene, &again);
    let outcome = scene.wait_for_report("the end of it", |reported| {
        let mut outcomes = reported.outcomes.iter();
        outcomes.find(|outcome| outcome.version.0 == 2).cloned()
    });
    assert!(matches!(outcome.result, OutcomeResult::RolledBack(_)), "{outcome:?}");
    assert_eq!(error_code(&outcome), Some("blocked"));
    scene.still_serves(1);
}

/// What the impostor signs is good in itself: whoever trusts his keys believes it. So the refusals above are not for form.
#[test]
fn attack_files_are_believed_by_who_trusts_the_attacker() {
    let scene = Scene::set();
    let stranger = scene.keys.stranger.clone();
    let mut his_root = scene.after.metadata["1.root.json"].clone();
    for role in ["root", "timestamp", "snapshot", "targets"] {
        his_root = edited(&his_root, &[&stranger], |signed| {
            signed["keys"][stranger.id().as_str()] = serde_json::to_value(stranger.public_key()).unwrap();
            signed["roles"][role] = keys(&[&stranger], 1).1;
        });
    }
    let repository = targets_signed_by(&scene, &scene.after, &[&stranger]);
    let resigned = |role: &str| edited(repository.newest_file(role), &[&stranger], |_| {});
    let expiry = skerry_tuf::Expiry::Enforce(now());
    let mut set = TrustedSet::new(&his_root).unwrap();
    set.update_timestamp(
        &resigned_timestamp(&repository, &resigned("snapshot"), &stranger),
        expiry,
    )
    .unwrap();
    set.update_snapshot(&resigned("snapshot"), expiry).unwrap();
    set.update_targets(repository.newest_file("targets"), expiry).unwrap();
}

fn resigned_timestamp(repository: &Repository, snapshot: &[u8], key: &SigningKey) -> Vec<u8> {
    edited(&repository.metadata["timestamp.json"], &[key], |signed| {
        let described = skerry_tuf::MetaFile::describe(version_of(snapshot), snapshot);
        signed["meta"]["snapshot.json"] = serde_json::to_value(described).unwrap();
    })
}
