//! Every call that changes something leaves an entry in the audit log: a walk over the OpenAPI document.

use std::collections::BTreeSet;

use axum::http::Request;
use serde_json::{Value, json};
use skerry_shared::digest::Digest;

use crate::{
    access::Role,
    audit::{self, Filter, chain::Entry},
    config::Config,
    devices,
    test_server::TestServer,
};

/// Calls that are not in the walk, each with the reason.
const NOT_WALKED: &[(&str, &str)] = &[
    (
        "upload_blob",
        "content under its own digest means nothing until a run, a bundle or a model names it, and that leaves an entry",
    ),
    ("make_audit_checkpoint", "it signs what the log is, and changes nothing"),
    ("enroll", "needs a device: `flow_the_audit_log_tells_the_whole_story`"),
    (
        "publish_bundle",
        "needs offline signatures: `flow_the_audit_log_tells_the_whole_story`",
    ),
    (
        "publish_targets",
        "needs offline signatures: `flow_the_audit_log_tells_the_whole_story`",
    ),
    (
        "publish_root",
        "needs offline signatures: `flow_the_audit_log_tells_the_whole_story`",
    ),
];

/// A server, and what has been called on it.
struct Walk {
    server: TestServer,
    /// The API token of whoever calls.
    token: String,
    called: BTreeSet<String>,
}

impl Walk {
    async fn newest(&self) -> Entry {
        let filter = Filter {
            limit: 1,
            ..Filter::default()
        };
        audit::list(&self.server.server.app().core, filter)
            .await
            .unwrap()
            .remove(0)
    }

    /// Makes a call that must succeed and leave an entry with this action, of whoever called.
    async fn call(
        &mut self,
        operation: &str,
        (method, path): (&str, &str),
        body: impl Into<Vec<u8>>,
        action: &str,
    ) -> Value {
        let before = self.newest().await.seq;
        let path = format!("/api/v1{path}");
        let answer = self.server.api_as(&self.token, method, &path, body.into()).await;
        assert!(answer.status.is_success(), "{operation}: {}", answer.body);
        let filter = Filter {
            action: Some(action.to_owned()),
            limit: 1,
            ..Filter::default()
        };
        let found = audit::list(&self.server.server.app().core, filter).await.unwrap();
        let entry = found
            .first()
            .filter(|entry| entry.seq > before && entry.action == action);
        let entry = entry.unwrap_or_else(|| panic!("{operation} left no entry `{action}`"));
        assert!(
            !entry.actor.is_empty() && entry.actor != audit::CONTROL_PLANE,
            "{operation}: nobody did it"
        );
        self.called.insert(operation.to_owned());
        serde_json::from_str(&answer.body).unwrap_or_default()
    }
}

async fn mutating_operations(server: &TestServer) -> BTreeSet<String> {
    let document = server.api("GET", "/openapi.json", "").await.json();
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|item| item.as_object().unwrap().iter());
    operations
        .filter(|(method, _)| matches!(method.as_str(), "post" | "put" | "patch" | "delete"))
        .map(|(_, operation)| operation["operationId"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_changes_something_leaves_an_entry() {
    let production = |config: &mut Config| config.rollouts.production = Some("stage=production".parse().unwrap());
    let server = TestServer::start_configured(production).await;
    let mut walk = Walk {
        token: server.token.clone(),
        server,
        called: BTreeSet::new(),
    };
    models(&mut walk).await;
    devices_and_rollouts(&mut walk).await;
    device_keys(&mut walk).await;
    runs(&mut walk).await;
    users_and_tokens(&mut walk).await;

    let all = mutating_operations(&walk.server).await;
    let left_out: BTreeSet<String> = NOT_WALKED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(
        left_out.is_subset(&all),
        "a call that is left out is not there any more"
    );
    let known: BTreeSet<String> = &walk.called | &left_out;
    let missing: Vec<_> = all.difference(&known).collect();
    assert!(
        missing.is_empty(),
        "make these calls here, or say why they leave no entry: {missing:?}"
    );
    walk.server.server.shutdown().await;
}

#[tokio::test]
async fn sign_ins_stand_in_the_log_and_those_that_had_to_wait_are_counted() {
    let server = TestServer::start().await;
    server.token_of_user("alice", Role::Viewer).await;
    let sign_in = async |form: String| {
        let request = Request::post("/login").header("content-type", "application/x-www-form-urlencoded");
        server.send(request.body(form.into()).unwrap()).await.status.as_u16()
    };
    let mut refused = 0;
    for _ in 0..8 {
        refused += usize::from(sign_in("user=alice&password=wrong".to_owned()).await == 401);
    }
    assert!((1..8).contains(&refused), "some are refused, some must wait");
    assert_eq!(sign_in(format!("token={}", server.token)).await, 303);
    let filter = Filter {
        action: Some("sign-in".to_owned()),
        limit: 100,
        ..Filter::default()
    };
    let entries = audit::list(&server.server.app().core, filter).await.unwrap();
    assert_eq!((entries[0].action.as_str(), entries.len()), ("sign-in", refused + 1));
    assert_eq!(entries[0].details["turned_away_before"], (8 - refused).to_string());
    assert!(entries.iter().all(|entry| !format!("{entry:?}").contains("wrong")));
    server.server.shutdown().await;
}

async fn models(walk: &mut Walk) {
    let path = "../firmware-examples/activity-recognition/models/v1/model.onnx";
    let onnx = std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let body = r#"{"name": "m"}"#;
    walk.call("create_model", ("POST", "/models"), body, "model.create")
        .await;
    let versions = ("POST", "/models/m/versions");
    walk.call("register_version", versions, onnx, "model.register").await;
    let approve = ("POST", "/models/m/versions/1/approve");
    walk.call("approve_version", approve, "", "model.approve").await;
    let tag = ("PUT", "/models/m/versions/1/tags/stage");
    walk.call("set_tag", tag, r#"{"value": "x"}"#, "model.tag").await;
    let alias = "/models/m/aliases/champion";
    walk.call("set_alias", ("PUT", alias), r#"{"version": 1}"#, "model.alias")
        .await;
    walk.call("remove_alias", ("DELETE", alias), "", "model.alias_remove")
        .await;
}

async fn devices_and_rollouts(walk: &mut Walk) {
    let token = ("POST", "/device-tokens");
    walk.call("create_device_token", token, "{}", "device_token.create")
        .await;
    let package = "/agent-packages/skerry-agent_0.1.0-1_arm64.deb";
    let (call, publish) = ("publish_agent_package", "agent_package.publish");
    walk.call(call, ("POST", package), "!<arch>\n", publish).await;
    walk.server.enroll("dev-1", &[]).await;
    // The route wants a certificate of the device, which nobody here has: this is the call that it makes.
    let (core, id) = (&walk.server.server.app().core, "dev-1".parse().unwrap());
    devices::renew(core, &id, hex::encode("dev-1"), 1, 1).await.unwrap();
    assert_eq!(walk.newest().await.action, "device.renew");
    walk.called.insert("renew_certificate".to_owned());
    let labels = r#"{"labels": {"site": "north"}}"#;
    walk.call("change_device", ("PATCH", "/devices/dev-1"), labels, "device.labels")
        .await;
    walk.server.publish("p", 1).await;
    let body = r#"{"model": "p", "version": 1, "groups": [{"size": "rest"}]}"#;
    walk.call("create_rollout", ("POST", "/rollouts"), body, "rollout.create")
        .await;
    for word in ["pause", "resume", "abort"] {
        let path = format!("/rollouts/1/{word}");
        let operation = format!("{word}_rollout");
        walk.call(&operation, ("POST", &path), "", &format!("rollout.{word}"))
            .await;
    }

    walk.call("revoke_device", ("POST", "/devices/dev-1/revoke"), "", "device.revoke")
        .await;

    // Four eyes: what somebody else has drafted for production.
    let alice = walk.server.token_of_user("alice", Role::Operator).await;
    walk.server.enroll("dev-2", &[("stage", "production")]).await;
    walk.server.publish("q", 1).await;
    let body = r#"{"model": "q", "version": 1, "groups": [{"size": "rest"}]}"#;
    let draft = walk.server.api_as(&alice, "POST", "/api/v1/rollouts", body).await;
    assert_eq!(draft.json()["state"], "draft", "{}", draft.body);
    let bob = walk.server.token_of_user("bob", Role::Operator).await;
    let admin = std::mem::replace(&mut walk.token, bob);
    let approve = ("POST", "/rollouts/2/approve");
    walk.call("approve_rollout", approve, "", "rollout.approve").await;
    walk.token = admin;
}

async fn device_keys(walk: &mut Walk) {
    let fingerprint = "a".repeat(64);
    let body = json!({"keys": [{"fingerprint": fingerprint}]}).to_string();
    walk.call("list_factory_keys", ("POST", "/device-keys"), body, "device_key.list")
        .await;
    let path = format!("/device-keys/{fingerprint}");
    let reject = format!("{path}/reject");
    walk.call("reject_device_key", ("POST", &reject), "", "device_key.reject")
        .await;
    let approve = format!("{path}/approve");
    walk.call("approve_device_key", ("POST", &approve), "{}", "device_key.approve")
        .await;
}

async fn runs(walk: &mut Walk) {
    let script = "#!/bin/sh\nexec sleep 600\n";
    let digest = Digest::of(script.as_bytes());
    let path = format!("/api/v1/blobs/{}", digest.to_hex());
    assert!(walk.server.api("PUT", &path, script).await.status.is_success());
    let body = json!({"script": {"name": "wait.sh", "digest": digest}}).to_string();
    let run = walk.call("submit_run", ("POST", "/runs"), body, "run.submit").await;
    let path = format!("/runs/{}/cancel", run["id"].as_str().unwrap());
    walk.call("cancel_run", ("POST", &path), "", "run.cancel").await;
}

async fn users_and_tokens(walk: &mut Walk) {
    let body = r#"{"name": "ada", "role": "operator"}"#;
    walk.call("create_user", ("POST", "/users"), body, "user.create").await;
    let body = r#"{"role": "viewer"}"#;
    walk.call("change_user", ("PATCH", "/users/ada"), body, "user.change")
        .await;
    let body = r#"{"password": "a long enough passphrase"}"#;
    walk.call("set_password", ("PUT", "/users/ada/password"), body, "user.password")
        .await;
    let body = r#"{"name": "ci", "user": "ada"}"#;
    let token = walk
        .call("create_token", ("POST", "/tokens"), body, "token.create")
        .await;
    let path = format!("/tokens/{}", token["id"].as_str().unwrap());
    walk.call("revoke_token", ("DELETE", &path), "", "token.revoke").await;
}
