//! OpenSSF Model Signing at the registry's door, with the command line and the control plane as processes of their own.
//!
//! The rules of the format have unit tests (`registry::oms`); another program's signatures are in `outside`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use skerry_shared::digest::Digest;
use skerry_system_tests::{Fleet, FleetConfig, fixtures::activity_recognition};

use crate::PROGRAM;

/// A key pair of these tests, as `openssl ecparam -genkey` writes it.
const SECRET: &str = "-----BEGIN EC PRIVATE KEY-----\n\
    MHcCAQEEIKVMW5pnM3RuIN/09BTiHocPJIMWBnLj7gWM/sLH4agPoAoGCCqGSM49\n\
    AwEHoUQDQgAEoZD2GqVkjW0Bto8ZTQs6SARzFe2RrYJtou2Emb8bvXKFGunrWZuE\n\
    4M+mU9AZjQMEq+DKa5XPHAb4v4DL/+tmXg==\n\
    -----END EC PRIVATE KEY-----\n";
/// Its public half.
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEoZD2GqVkjW0Bto8ZTQs6SARzFe2R\n\
    rYJtou2Emb8bvXKFGunrWZuE4M+mU9AZjQMEq+DKa5XPHAb4v4DL/+tmXg==\n\
    -----END PUBLIC KEY-----\n";
/// Another pair, in PKCS#8.
const OTHER_SECRET: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQxxgBEjsAzPf/33P\n\
    EooK1AnnPF1OUTrTrbz7EtxbUtihRANCAAQWQDmQb5NBWp66sistGmgUzl+gB/2s\n\
    xPFpsvTXzV/Xag5miY82mYjTeKS8LwdFfqF1pEOhivxQ8BUwmfy71dKh\n\
    -----END PRIVATE KEY-----\n";
const OTHER_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEFkA5kG+TQVqeurIrLRpoFM5foAf9\n\
    rMTxabL0181f12oOZomPNpmI03ikvC8HRX6hdaRDoYr8UPAVMJn8u9XSoQ==\n\
    -----END PUBLIC KEY-----\n";

/// A folder with both pairs.
pub(crate) fn key_files() -> tempfile::TempDir {
    let keys = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("secret.pem", SECRET),
        ("public.pem", PUBLIC),
        ("other-secret.pem", OTHER_SECRET),
        ("other-public.pem", OTHER_PUBLIC),
    ] {
        fs::write(keys.path().join(name), text).unwrap();
    }
    keys
}

/// A control plane that registers only what the owner of `public.pem` has signed.
pub(crate) fn strict_fleet(keys: &Path) -> Fleet {
    let trusted = keys.join("public.pem");
    let config = FleetConfig {
        toml: format!(
            "[registry]\noms_keys = [\"{}\"]\nrequire_oms = true\n",
            trusted.display()
        ),
        ..FleetConfig::default()
    };
    Fleet::start_with(PROGRAM, config).unwrap()
}

pub(crate) fn onnx() -> PathBuf {
    activity_recognition().join("models/v1/model.onnx")
}

#[track_caller]
pub(crate) fn refused(output: &Output, because: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted");
    assert!(stderr.contains(because), "{stderr}");
}

#[test]
fn flow_a_model_leaves_with_a_signature_and_comes_in_by_it() {
    // A control plane that takes anything, from which the model is exported.
    let origin = Fleet::start(PROGRAM).unwrap();
    let keys = key_files();
    let fleet = strict_fleet(keys.path());
    let key = |name: &str| keys.path().join(name).display().to_string();
    let model = onnx().display().to_string();
    let unsigned = origin.skerry_json(&["model", "register", "walker", &model]).unwrap();
    assert!(unsigned.get("signature").is_none());
    let export = |out: &str, secret: &str| {
        let secret = key(secret);
        let arguments = [
            "model", "export", "walker", "1", "--oms", "--key", &secret, "--out", out,
        ];
        origin.skerry_json(&arguments).unwrap()
    };
    let exported = export("signed", "secret.pem");
    let folder = origin.path("signed");
    let file = |name: &str| folder.join(name).display().to_string();
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), fs::read(onnx()).unwrap());

    // Without a signature nothing comes in.
    refused(
        &fleet.skerry(&["model", "register", "walker", &model]).unwrap(),
        "signed models only",
    );
    let (bundle, signed) = (file("model.sig"), file("model.onnx"));
    let register = |bundle: &str, public: &str| {
        let public = key(public);
        let arguments = [
            "model",
            "register",
            "walker",
            &signed,
            "--oms",
            bundle,
            "--oms-key",
            &public,
            "-o",
            "json",
        ];
        fleet.skerry(&arguments).unwrap()
    };
    let first = register(&bundle, "public.pem");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let version = fleet.client().get("/api/v1/models/walker/versions/1").unwrap();
    assert_eq!(version["signature"]["subject"], "walker-1");
    assert_eq!(version["signature"]["key"], exported["key"]);
    let kept = fleet
        .client()
        .get_bytes("/api/v1/models/walker/versions/1/oms")
        .unwrap();
    assert_eq!(kept, fs::read(&bundle).unwrap(), "kept as it came");

    // The operator trusts somebody whom the control plane does not.
    export("signed-by-other", "other-secret.pem");
    let other = origin.path("signed-by-other").join("model.sig").display().to_string();
    refused(&register(&other, "public.pem"), "not trusted here");
    fs::copy(&other, folder.join("model.sig")).unwrap();
    refused(&register(&bundle, "other-public.pem"), "the content is refused");

    // The command line would not send these, so they go to the API directly.
    let upload = |bundle: &[u8], content: &[u8]| {
        let digest = Digest::of(bundle);
        fleet.client().upload(&digest, bundle).unwrap();
        let path = format!("/api/v1/models/walker/versions?oms={digest}");
        fleet.client().post_bytes(&path, content).unwrap_err().to_string()
    };
    let tampered = String::from_utf8(kept.clone())
        .unwrap()
        .replace("\"sig\":\"ME", "\"sig\":\"MF");
    assert_ne!(tampered.as_bytes(), kept);
    let content = fs::read(onnx()).unwrap();
    let error = upload(tampered.as_bytes(), &content);
    assert!(error.contains("does not verify"), "{error}");
    let another = fs::read(activity_recognition().join("models/v2/model.onnx")).unwrap();
    let error = upload(&kept, &another);
    assert!(error.contains("does not cover"), "{error}");
    let model = fleet.client().get("/api/v1/models/walker").unwrap();
    assert_eq!(model["versions"].as_array().unwrap().len(), 1);
}
