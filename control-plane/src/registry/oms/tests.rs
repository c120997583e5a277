//! Signatures that must hold, and one test for each rule that one can break. The rules are those of the specification of
//! OpenSSF Model Signing 1.0; the signatures of another program are in the system tests (`interop_model_signing`).

#![allow(clippy::unwrap_used)]

use std::fs;

use base64::{Engine, engine::general_purpose::STANDARD};
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn secret(seed: u8) -> SecretKey {
    let key = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
    SecretKey::from_pem(&key.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap()
}

fn resource(name: &str, content: &[u8]) -> Resource {
    Resource {
        name: name.to_owned(),
        digest: Digest::of(content),
    }
}

fn statement() -> Statement {
    let files = vec![resource("model.onnx", b"model"), resource("docs/card.md", b"card")];
    Statement::new("classifier", files, vec!["model.sig".to_owned()]).unwrap()
}

/// The folder that [`statement`] is about.
fn folder() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("docs")).unwrap();
    fs::write(place.path().join("model.onnx"), "model").unwrap();
    fs::write(place.path().join("docs/card.md"), "card").unwrap();
    fs::write(place.path().join("model.sig"), sign(&statement(), &secret(1))).unwrap();
    place
}

fn check(place: &TempDir, unsigned: Unsigned) -> Result<(), OmsError> {
    let signature = place.path().join("model.sig");
    let verified = verify(&fs::read(&signature).unwrap(), &[secret(1).public().clone()])?;
    check_folder(verified.statement(), place.path(), &signature, unsigned)
}

#[track_caller]
fn refused<T>(result: Result<T, OmsError>, because: &str) {
    let Err(error) = result else { panic!("accepted") };
    let text = error.to_string();
    assert!(text.contains(because), "{text}");
}

/// Changes the statement and signs it again: a mistake of the signer.
#[track_caller]
fn signed_mistake(because: &str, change: impl FnOnce(&mut Value)) {
    let mut payload: Value = serde_json::from_slice(&statement().to_json()).unwrap();
    change(&mut payload);
    refused(Statement::parse(payload.to_string().as_bytes()), because);
}

/// Changes the bundle after it was signed.
#[track_caller]
fn tampered(because: &str, change: impl FnOnce(&mut Value)) {
    let mut bundle: Value = serde_json::from_slice(&sign(&statement(), &secret(1))).unwrap();
    change(&mut bundle);
    refused(
        verify(bundle.to_string().as_bytes(), &[secret(1).public().clone()]),
        because,
    );
}

#[test]
fn what_we_sign_verifies_with_the_key_that_signed() {
    let verified = verify(
        &sign(&statement(), &secret(1)),
        &[secret(2).public().clone(), secret(1).public().clone()],
    )
    .unwrap();
    assert_eq!(*verified.statement(), statement());
    assert_eq!(verified.fingerprint(), secret(1).public().fingerprint());
    check(&folder(), Unsigned::Refuse).unwrap();
}

#[test]
fn a_signature_by_another_key_is_refused() {
    refused(
        verify(&sign(&statement(), &secret(1)), &[secret(2).public().clone()]),
        "not trusted here",
    );
    // A false hint does not help.
    tampered("not trusted here", |bundle| {
        bundle["verificationMaterial"]["publicKey"]["hint"] = json!(secret(2).public().fingerprint());
    });
}

#[test]
fn a_signature_without_a_hint_is_tried_with_every_key() {
    let mut bundle: Value = serde_json::from_slice(&sign(&statement(), &secret(1))).unwrap();
    bundle["verificationMaterial"]["publicKey"] = json!({"rawBytes": "AA==", "keyDetails": "x"});
    let bytes = bundle.to_string();
    let keys = [secret(2).public().clone(), secret(1).public().clone()];
    assert_eq!(
        verify(bytes.as_bytes(), &keys).unwrap().fingerprint(),
        secret(1).public().fingerprint()
    );
    refused(verify(bytes.as_bytes(), &keys[..1]), "does not verify");
}

#[test]
fn a_tampered_bundle_is_refused() {
    tampered("does not verify", |bundle| {
        let other = Statement::new("classifier", vec![resource("model.onnx", b"evil")], Vec::new()).unwrap();
        bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(other.to_json()));
    });
    tampered("does not verify", |bundle| {
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(STANDARD.encode([0x30, 6, 2, 1, 1, 2, 1, 1]));
    });
    tampered("does not verify", |bundle| {
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!("")
    });
    tampered("has 0 signatures", |bundle| {
        bundle["dsseEnvelope"]["signatures"] = json!([])
    });
    tampered("has 2 signatures", |bundle| {
        let one = bundle["dsseEnvelope"]["signatures"][0].clone();
        bundle["dsseEnvelope"]["signatures"] = json!([one, one]);
    });
    tampered("not base64", |bundle| bundle["dsseEnvelope"]["payload"] = json!("%"));
}

#[test]
fn other_kinds_of_bundles_are_refused_by_name() {
    tampered("media type", |bundle| {
        bundle["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v0.1+json")
    });
    tampered("payload type", |bundle| {
        bundle["dsseEnvelope"]["payloadType"] = json!("text/plain")
    });
    tampered("method of the model signature is `certificate`", |bundle| {
        bundle["verificationMaterial"] = json!({"certificate": {"rawBytes": "AA=="}});
    });
    tampered("method of the model signature is `none`", |bundle| {
        bundle["verificationMaterial"] = json!({"tlogEntries": []});
    });
    tampered("does not parse", |bundle| *bundle = json!([]));
    refused(verify(&vec![b' '; LIMIT_BYTES + 1], &[]), "more than the");
}

#[test]
fn other_kinds_of_statements_are_refused_by_name() {
    signed_mistake("statement type", |s| {
        s["_type"] = json!("https://in-toto.io/Statement/v0.1")
    });
    signed_mistake("predicate type", |s| {
        s["predicateType"] = json!("https://model_signing/Digests/v0.1")
    });
    signed_mistake("serialization method of the model signature is `shards`", |s| {
        s["predicate"]["serialization"]["method"] = json!("shards")
    });
    for hash in ["blake2b", "blake3"] {
        signed_mistake("expected `sha256`", |s| {
            s["predicate"]["serialization"]["hash_type"] = json!(hash)
        });
        signed_mistake("hash of a file", |s| {
            s["predicate"]["resources"][1]["algorithm"] = json!(hash)
        });
    }
}

#[test]
fn a_statement_is_about_one_model_and_its_files() {
    signed_mistake("has 0 subjects", |s| s["subject"] = json!([]));
    signed_mistake("has 2 subjects", |s| {
        let one = s["subject"][0].clone();
        s["subject"] = json!([one, one]);
    });
    signed_mistake("covers no file", |s| s["predicate"]["resources"] = json!([]));
    signed_mistake("root digest", |s| {
        s["subject"][0]["digest"]["sha256"] = json!("00".repeat(32))
    });
    signed_mistake("a digest that is none", |s| {
        s["predicate"]["resources"][0]["digest"] = json!("00")
    });
    signed_mistake("does not parse", |s| s["predicate"] = json!({}));
}

#[test]
fn names_of_files_are_plain_relative_paths() {
    for name in ["/model", "a/../b", "..", "a/", "a//b", "./a", "", "a\\b", "a\0b", "."] {
        signed_mistake("no relative path", |s| {
            s["predicate"]["resources"][0]["name"] = json!(name)
        });
    }
    let long = vec![resource(&"a".repeat(5000), b"")];
    refused(Statement::new("x", long, Vec::new()), "no relative path");
}

#[test]
fn files_stand_once_and_in_order() {
    signed_mistake("covers `model.onnx` twice", |s| {
        s["predicate"]["resources"][0]["name"] = json!("model.onnx")
    });
    signed_mistake("not in order", |s| s["predicate"]["resources"][0]["name"] = json!("z"));
    // `model-signing` sorts by component: a folder before a name that goes on with a character below `/`.
    let by_component = [resource("a/b", b"1"), resource("a.txt", b"2")];
    let statement = Statement {
        subject: String::new(),
        resources: by_component.to_vec(),
        ignore_paths: Vec::new(),
    };
    assert_eq!(Statement::parse(&statement.to_json()).unwrap(), statement);
}

#[test]
fn a_changed_a_missing_and_a_linked_file_are_refused() {
    let place = folder();
    fs::write(place.path().join("docs/card.md"), "other").unwrap();
    refused(check(&place, Unsigned::Ignore), "`docs/card.md` has another content");
    fs::remove_file(place.path().join("docs/card.md")).unwrap();
    refused(check(&place, Unsigned::Ignore), "`docs/card.md` is not there");
    fs::write(place.path().join("elsewhere"), "card").unwrap();
    std::os::unix::fs::symlink(place.path().join("elsewhere"), place.path().join("docs/card.md")).unwrap();
    refused(check(&place, Unsigned::Ignore), "none is followed");
}

#[test]
fn an_unsigned_file_is_refused_unless_the_user_says_otherwise() {
    let place = folder();
    fs::write(place.path().join("docs/more.md"), "").unwrap();
    refused(check(&place, Unsigned::Refuse), "`docs/more.md` lies beside");
    check(&place, Unsigned::Ignore).unwrap();
}

#[test]
fn what_the_signer_left_out_may_be_there_with_all_below_it() {
    let place = folder();
    let git = place.path().join(".git");
    fs::create_dir(&git).unwrap();
    fs::write(git.join("HEAD"), "").unwrap();
    let files = statement().resources;
    let check = |ignored: &str| {
        let statement = Statement::new("x", files.clone(), vec![ignored.to_owned(), "model.sig".to_owned()]).unwrap();
        check_folder(&statement, place.path(), &place.path().join("none"), Unsigned::Refuse)
    };
    check(".git").unwrap();
    refused(check(".gi"), "`.git/HEAD`");
}

#[test]
fn only_p256_keys_are_keys() {
    for text in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"] {
        refused(PublicKey::from_pem(text), "no P-256 key");
        refused(SecretKey::from_pem(text), "no P-256 key");
    }
    // Ed25519: RFC 8410, section 10.1.
    let ed25519 = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----";
    refused(PublicKey::from_pem(ed25519), "no P-256 key");
}

#[test]
fn a_door_that_wants_a_signature_lets_nothing_else_in() {
    let bundle = sign(&statement(), &secret(1));
    let mut door = Door::default();
    assert!(door.admit(None).unwrap().is_none());
    refused(door.admit(Some(&bundle)), "trusts no key");
    door = Door {
        keys: vec![secret(1).public().clone()],
        require: true,
    };
    refused(door.admit(None), "signed models only");
    assert!(door.admit(Some(&bundle)).unwrap().is_some());
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_no_signature(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(verify(&bytes, &[secret(1).public().clone()]).is_err());
        prop_assert!(Statement::parse(&bytes).is_err());
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(PublicKey::from_pem(&text).is_err());
        prop_assert!(SecretKey::from_pem(&text).is_err());
    }

    #[test]
    fn every_statement_reads_back(names in prop::collection::btree_set("[a-zA-Z0-9._ -]{0,5}[a-z](/[a-z.]{0,3}[a-z]){0,3}", 1..10), seed in any::<u8>(), subject in ".{0,20}") {
        let files = names.iter().map(|name| resource(name, &[seed])).collect();
        let statement = Statement::new(&subject, files, Vec::new()).unwrap();
        prop_assert_eq!(Statement::parse(&statement.to_json()).unwrap(), statement);
    }

    #[test]
    fn a_changed_byte_of_the_payload_is_refused(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bundle: Value = serde_json::from_slice(&sign(&statement(), &secret(1))).unwrap();
        let mut payload = statement().to_json();
        *at.get_mut(&mut payload) ^= 1 << bit;
        bundle["dsseEnvelope"]["payload"] = json!(STANDARD.encode(payload));
        let refused = matches!(
            verify(bundle.to_string().as_bytes(), &[secret(1).public().clone()]),
            Err(OmsError::BadSignature { .. })
        );
        prop_assert!(refused);
    }
}

#[test]
fn the_fingerprint_is_the_one_that_model_signing_computes() {
    // Of this public key, by model-signing 1.1.1.
    let key = p256::SecretKey::from_slice(&[1; 32]).unwrap();
    let pem = key.public_key().to_public_key_pem(LineEnding::LF).unwrap();
    assert_eq!(
        PublicKey::from_pem(&pem).unwrap().fingerprint(),
        "22ad775a91885b283b6ccab5f31ed983b89db44fd2a0f94f40439661b819ce80"
    );
}
