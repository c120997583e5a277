//! What the API promises as a whole: its document, and its answers to calls that are not understood.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use skerry_shared::desired::Reported;

use crate::{
    access::{Role, roles},
    app::now_ms,
    config::Config,
    devices,
    test_server::{Answer, BODY_LIMIT_BYTES, TestServer},
};

fn assert_problem(answer: &Answer, status: u16, kind: &str) {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let body = answer.json();
    assert_eq!(body["type"], format!("urn:skerry:problem:{kind}"));
    assert_eq!(body["status"], status);
}

fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods.map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
    });
    operations.collect()
}

async fn document(server: &TestServer) -> Value {
    let answer = server
        .send(Request::get("/openapi.json").body(Body::empty()).unwrap())
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/json");
    answer.json()
}

#[tokio::test]
async fn the_document_names_every_call() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let calls: BTreeSet<String> = operations(&document)
        .iter()
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    for call in [
        "DELETE /api/v1/models/{name}/aliases/{alias}",
        "DELETE /api/v1/tokens/{id}",
        "GET /api/v1/blobs/{digest}",
        "GET /api/v1/bundles",
        "GET /api/v1/bundles/{model}/{version}",
        "GET /api/v1/devices",
        "GET /api/v1/devices/{id}",
        "GET /api/v1/events",
        "GET /api/v1/health",
        "GET /api/v1/models",
        "GET /api/v1/models/{name}",
        "GET /api/v1/models/{name}/versions/{version}",
        "GET /api/v1/models/{name}/versions/{version}/onnx",
        "GET /api/v1/rollouts",
        "GET /api/v1/rollouts/{id}",
        "GET /api/v1/rollouts/{id}/events",
        "GET /api/v1/telemetry/points",
        "GET /api/v1/telemetry/summary",
        "GET /api/v1/telemetry/totals",
        "GET /api/v1/tokens",
        "GET /api/v1/tuf/targets.json",
        "GET /api/v1/users",
        "GET /api/v1/whoami",
        "GET /tuf/{file}",
        "PATCH /api/v1/devices/{id}",
        "POST /api/v1/bundles",
        "POST /api/v1/device-tokens",
        "POST /api/v1/enroll",
        "POST /api/v1/models",
        "POST /api/v1/models/{name}/versions",
        "POST /api/v1/rollouts",
        "POST /api/v1/rollouts/{id}/abort",
        "POST /api/v1/rollouts/{id}/approve",
        "POST /api/v1/rollouts/{id}/pause",
        "POST /api/v1/rollouts/{id}/resume",
        "POST /api/v1/tokens",
        "POST /api/v1/users",
        "PATCH /api/v1/users/{name}",
        "PUT /api/v1/users/{name}/password",
        "PUT /api/v1/blobs/{digest}",
        "PUT /api/v1/models/{name}/aliases/{alias}",
        "PUT /api/v1/models/{name}/versions/{version}/tags/{key}",
    ] {
        assert!(calls.contains(call), "{call} is missing in {calls:#?}");
    }
}

#[tokio::test]
async fn every_documented_call_exists_and_asks_for_a_token_when_it_says_so() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    for (method, path, operation) in operations(&document) {
        let uri = path.replace(['{', '}'], "");
        let request = Request::builder().method(method.as_str()).uri(uri);
        let answer = server.send(request.body(Body::empty()).unwrap()).await;
        let asks = answer.status == StatusCode::UNAUTHORIZED;
        assert_eq!(
            asks,
            operation.get("security").is_some(),
            "{method} {path}: {}",
            answer.body
        );
        assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(!answer.body.contains("nothing at this address"), "{method} {path}");
    }
}

#[tokio::test]
async fn every_protected_call_names_its_role_and_holds_to_it() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let mut tokens = BTreeMap::new();
    for role in Role::ALL {
        tokens.insert(role, server.token_of(role).await);
    }
    let mut calls = 0;
    for (method, path, operation) in operations(&document) {
        let Some(needs) = operation["security"][0]["api_token"][0].as_str() else {
            assert!(operation.get("security").is_none(), "{method} {path} names no role");
            continue;
        };
        let noun = path.strip_prefix("/api/v1").unwrap();
        assert!(roles::is_listed(noun), "{method} {path} is not in the table of roles");
        let needs: Role = needs.parse().unwrap();
        let uri = path.replace(['{', '}'], "");
        for (role, token) in &tokens {
            let answer = server.start_answer(&method, &uri, token).await;
            if *role < needs {
                assert_eq!(
                    answer,
                    (403, "application/problem+json".to_owned()),
                    "{role}: {method} {path}"
                );
            } else {
                assert!(![401, 403].contains(&answer.0), "{role}: {method} {path}: {answer:?}");
            }
        }
        calls += 1;
    }
    assert!(calls > 30, "{calls}");
}

#[tokio::test]
async fn a_refused_role_is_told_what_it_would_take() {
    let server = TestServer::start().await;
    let token = server.token_of(Role::Viewer).await;
    let answer = server.api_as(&token, "POST", "/api/v1/rollouts/1/abort", "").await;
    assert_problem(&answer, 403, "forbidden");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("operator") && detail.contains("viewer"), "{detail}");
}

#[tokio::test]
async fn users_and_tokens_are_made_changed_and_ended_over_the_api() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let schema = |path: &str, method: &str, status: &str| {
        document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"].clone()
    };
    let alice = json!({"name": "alice", "role": "operator", "password": "correct horse battery"});
    let made = server.api("POST", "/api/v1/users", alice.to_string()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_fits(&document, &schema("/api/v1/users", "post", "201"), &made.json(), "user");
    assert!(!made.body.contains("horse") && !made.body.contains("argon2"));
    assert_problem(
        &server.api("POST", "/api/v1/users", alice.to_string()).await,
        409,
        "conflict",
    );
    for bad in [
        json!({"name": "Alice", "role": "viewer"}),
        json!({"name": "bob", "role": "root"}),
        json!({"name": "bob", "role": "viewer", "password": "short"}),
    ] {
        assert_problem(
            &server.api("POST", "/api/v1/users", bad.to_string()).await,
            422,
            "refused",
        );
    }

    let body = json!({"name": "ci", "user": "alice", "role": "viewer", "ttl_seconds": 3600});
    let made = server.api("POST", "/api/v1/tokens", body.to_string()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_fits(
        &document,
        &schema("/api/v1/tokens", "post", "201"),
        &made.json(),
        "token",
    );
    let (secret, id) = (
        made.json()["secret"].as_str().unwrap().to_owned(),
        made.json()["id"].clone(),
    );
    let who = server.api_as(&secret, "GET", "/api/v1/whoami", "").await.json();
    assert_eq!(who, json!({"name": "alice/ci", "user": "alice", "role": "viewer"}));
    let listed = server.api("GET", "/api/v1/tokens", "").await;
    assert_fits(
        &document,
        &schema("/api/v1/tokens", "get", "200"),
        &listed.json(),
        "tokens",
    );
    assert!(!listed.body.contains(&secret) && listed.body.contains(id.as_str().unwrap()));

    let change = json!({"disabled": true}).to_string();
    let changed = server.api("PATCH", "/api/v1/users/alice", change).await;
    assert_eq!(changed.json()["disabled"], true);
    assert_problem(
        &server.api_as(&secret, "GET", "/api/v1/devices", "").await,
        401,
        "unauthorized",
    );
    let path = format!("/api/v1/tokens/{}", id.as_str().unwrap());
    assert_eq!(server.api("DELETE", &path, "").await.status, StatusCode::NO_CONTENT);
    assert_problem(&server.api("DELETE", &path, "").await, 404, "not-found");
    assert_problem(
        &server.api("PATCH", "/api/v1/users/nobody", "{}").await,
        404,
        "not-found",
    );
}

#[tokio::test]
async fn the_last_way_in_stays_open() {
    let server = TestServer::start().await;
    let tokens = server.api("GET", "/api/v1/tokens", "").await.json();
    let path = format!("/api/v1/tokens/{}", tokens["tokens"][0]["id"].as_str().unwrap());
    assert_problem(&server.api("DELETE", &path, "").await, 409, "conflict");
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_revoked() {
    let server = TestServer::start().await;
    let body = json!({"name": "watcher", "role": "viewer", "alone": true});
    let made = server.api("POST", "/api/v1/tokens", body.to_string()).await.json();
    let mut stream = server.stream("/api/v1/events", made["secret"].as_str().unwrap()).await;
    assert!(stream.next().await.unwrap().contains("everything"));
    let path = format!("/api/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(server.api("DELETE", &path, "").await.status, StatusCode::NO_CONTENT);
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn a_stream_ends_when_its_user_is_shut_out_and_not_when_another_is() {
    let server = TestServer::start().await;
    for name in ["alice", "bob"] {
        let body = json!({"name": name, "role": "viewer"}).to_string();
        server.api("POST", "/api/v1/users", body).await;
    }
    let body = json!({"name": "watcher", "user": "alice"}).to_string();
    let made = server.api("POST", "/api/v1/tokens", body).await.json();
    let mut stream = server.stream("/api/v1/events", made["secret"].as_str().unwrap()).await;
    stream.next().await.unwrap();
    let shut_out = json!({"disabled": true}).to_string();
    server.api("PATCH", "/api/v1/users/bob", shut_out.clone()).await;
    assert!(stream.next().await.unwrap().contains("access"));
    server.api("PATCH", "/api/v1/users/alice", shut_out).await;
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_again() {
    let few = |config: &mut Config| {
        config.requests.per_token.burst = NonZeroU32::new(5).unwrap();
        config.requests.per_token.per_second = NonZeroU32::MIN;
        config.requests.per_address = config.requests.per_token;
    };
    let server = TestServer::start_configured(few).await;
    let viewer = server.token_of(Role::Viewer).await;
    let mut last = server.api_as(&viewer, "GET", "/api/v1/devices", "").await;
    // More than the burst, and than what comes back while they are sent.
    for _ in 0..100 {
        last = server.api_as(&viewer, "GET", "/api/v1/devices", "").await;
        if last.status == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
    }
    assert_problem(&last, 429, "too-many-requests");
    assert_eq!(last.header("retry-after"), "1");
    // Others are not held up by it.
    assert_eq!(server.api("GET", "/api/v1/devices", "").await.status, StatusCode::OK);

    for (path, token) in [("/api/v1/health", ""), ("/api/v1/devices", "Bearer skp_wrong")] {
        let mut refused = false;
        for _ in 0..100 {
            let request = Request::get(path).header("authorization", token);
            let answer = server.send(request.body(Body::empty()).unwrap()).await;
            refused |= answer.status == StatusCode::TOO_MANY_REQUESTS;
        }
        assert!(refused, "{path}");
    }
}

#[tokio::test]
async fn a_control_plane_that_has_enough_to_do_says_so() {
    let server = TestServer::start().await;
    let load = &server.server.app().access.load;
    let mut places = Vec::new();
    while let Some(place) = load.stream() {
        places.push(place);
    }
    let answer = server.start_answer("GET", "/api/v1/events", &server.token).await;
    assert_eq!(answer, (503, "application/problem+json".to_owned()));
    places.clear();
    assert_eq!(server.start_answer("GET", "/api/v1/events", &server.token).await.0, 200);

    while let Some(place) = load.request() {
        places.push(place);
    }
    let answer = server.api("GET", "/api/v1/devices", "").await;
    assert_problem(&answer, 503, "busy");
    assert_eq!(answer.header("retry-after"), "1");
    places.clear();
    assert_eq!(server.api("GET", "/api/v1/devices", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_never_comes_ends_the_request() {
    let hasty = |config: &mut Config| config.requests.request_seconds = NonZeroU32::MIN;
    let server = TestServer::start_configured(hasty).await;
    let never = Body::from_stream(futures_util::stream::pending::<Result<String, std::io::Error>>());
    let answer = server.api("POST", "/api/v1/models", never).await;
    assert_problem(&answer, 408, "timeout");
}

#[tokio::test]
async fn a_rollout_to_production_takes_two_persons() {
    let production = |config: &mut Config| config.rollouts.production = Some("stage=production".parse().unwrap());
    let server = TestServer::start_configured(production).await;
    let document = document(&server).await;
    let alice = server.token_of_user("alice", Role::Operator).await;
    let bob = server.token_of_user("bob", Role::Operator).await;
    let looks = server.token_of_user("carol", Role::Viewer).await;
    server.enroll("dev-1", &[("stage", "production")]).await;
    server.publish("motion", 2).await;
    let body = json!({"model": "motion", "version": 2, "groups": [{"size": "1"}]}).to_string();
    let made = server.api_as(&alice, "POST", "/api/v1/rollouts", body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    let made = made.json();
    assert_eq!(
        (&made["state"], &made["author"]),
        (&json!("draft"), &json!("alice/test"))
    );
    assert_eq!(made["approval"], json!({"state": "needed", "starts": true}));
    let schema = &document["paths"]["/api/v1/rollouts/{id}"]["get"]["responses"]["200"]["content"]["application/json"];
    assert_fits(&document, &schema["schema"], &made, "rollout");

    let resumed = server.api_as(&bob, "POST", "/api/v1/rollouts/1/resume", "").await;
    assert_problem(&resumed, 409, "approval-needed");
    // The author with a second token of her own, made for the purpose.
    let second = server
        .api_as(&alice, "POST", "/api/v1/tokens", json!({"name": "other"}).to_string())
        .await;
    let second = second.json()["secret"].as_str().unwrap().to_owned();
    let approve = async |token: &str| server.api_as(token, "POST", "/api/v1/rollouts/1/approve", "").await;
    for own in [&alice, &second] {
        assert_problem(&approve(own).await, 403, "four-eyes");
    }
    assert_problem(&approve(&looks).await, 403, "forbidden");
    // The first token is nobody's: no person stands behind it.
    assert_problem(&approve(&server.token).await, 403, "four-eyes");
    // Nobody but an admin takes the device out of production to get around it.
    let relabel = json!({"labels": {"stage": null}}).to_string();
    let relabelled = server.api_as(&alice, "PATCH", "/api/v1/devices/dev-1", relabel).await;
    assert_problem(&relabelled, 403, "forbidden");

    let approved = approve(&bob).await;
    assert_eq!(approved.status, StatusCode::OK, "{}", approved.body);
    assert_eq!(approved.json()["approval"]["by"], "bob/test");
    assert_fits(&document, &schema["schema"], &approved.json(), "approved rollout");
    assert_problem(&approve(&bob).await, 409, "conflict");
}

#[tokio::test]
async fn every_operation_is_described_with_its_failures() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let summary = operation["summary"].as_str().unwrap_or_default();
        assert!(
            !summary.is_empty() && !summary.ends_with('.'),
            "{method} {path}: {summary:?}"
        );
        assert!(
            ids.insert(operation["operationId"].as_str().unwrap()),
            "{method} {path}"
        );
        let failure = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"];
        assert_eq!(
            failure["$ref"], "#/components/schemas/ProblemDetails",
            "{method} {path}"
        );
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{method} {path}: {parameter}");
        }
        let named: BTreeSet<&str> = path
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next())
            .collect();
        let documented = operation["parameters"].as_array().into_iter().flatten();
        let documented: BTreeSet<&str> = documented
            .filter(|parameter| parameter["in"] == "path")
            .filter_map(|parameter| parameter["name"].as_str())
            .collect();
        assert_eq!(named, documented, "{method} {path}");
    }
    for reference in references(&document) {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match value {
                Value::String(text) if key == "$ref" => vec![text.as_str()],
                other => references(other),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// An object's members and those that must be there, with everything that `allOf` adds.
fn members<'a>(document: &'a Value, schema: &'a Value) -> (BTreeMap<&'a str, &'a Value>, BTreeSet<&'a str>) {
    let schema = resolve(document, schema);
    let (mut properties, mut required) = (BTreeMap::new(), BTreeSet::new());
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let (more, must) = members(document, part);
        properties.extend(more);
        required.extend(must);
    }
    let own = schema["properties"].as_object().into_iter().flatten();
    properties.extend(own.map(|(name, schema)| (name.as_str(), schema)));
    required.extend(
        schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str),
    );
    (properties, required)
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

/// The value has the members that its schema requires, and none that it does not know.
fn assert_fits(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolve(document, schema);
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = |choice: &&Value| {
            // Choices of objects are told apart by a member that has one value in each.
            let tag = choice["properties"]["state"]["enum"].as_array();
            (choice["type"] == "null") == value.is_null() && tag.is_none_or(|tag| tag.contains(&value["state"]))
        };
        let choice = choices.iter().find(fits);
        return assert_fits(document, choice.unwrap(), value, place);
    }
    let (properties, required) = members(document, schema);
    match value {
        Value::Object(found) if !properties.is_empty() => {
            for name in required {
                assert!(found.contains_key(name), "{place}: no {name}");
            }
            for (name, member) in found {
                let schema = properties.get(name.as_str());
                let schema = schema.unwrap_or_else(|| panic!("{place}: {name} is not documented"));
                assert_fits(document, schema, member, &format!("{place}.{name}"));
            }
        }
        Value::Array(items) => {
            for item in items {
                assert_fits(document, &schema["items"], item, place);
            }
        }
        Value::String(text) if schema["enum"].is_array() => {
            assert!(schema["enum"].as_array().unwrap().contains(value), "{place}: {text}");
        }
        other => {
            let name = match other {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) | Value::Object(_) => "object",
            };
            let types = &schema["type"];
            let fits = types == name || types.as_array().is_some_and(|types| types.contains(&json!(name)));
            assert!(fits, "{place} is a {name}, documented as {schema}");
        }
    }
}

fn reported() -> Reported {
    let index = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let error = json!({"code": "golden_mismatch", "message": "output 0 differs"});
    let outcome = |kind: &str, rollout: Value| {
        json!({"generation": 2, "model": "motion", "version": 2, "rollout": rollout, "wire_bytes": 9,
               "result": {"kind": kind, "error": error}})
    };
    let mut succeeded = outcome("succeeded", Value::Null);
    succeeded["result"] = json!({"kind": "succeeded"});
    let value = json!({
        "schema": "1.0", "device": "dev-1", "boot_id": "0123456789abcdef0123456789abcdef", "seq": 1,
        "device_time_ms": 5, "generation": 2,
        "agent": {"version": "0.1.0", "platform": "pulley64", "inference_address": "127.0.0.1:8090"},
        "update": {"state": "download", "model": "motion", "version": 3, "rollout": 4, "have_bytes": 1, "total_bytes": 2,
                   "waits": {"code": "expired", "message": "the timestamp is of yesterday"}},
        "bundles": [{"model": "motion", "version": 1, "slot": "current", "index": index}],
        "outcomes": [outcome("failed", json!(4)), outcome("rolled_back", Value::Null), succeeded],
        "alarms": [{"code": "time_untrusted", "message": "the clock disagrees"}],
    });
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_device_is_answered_as_documented() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    let schema = &document["paths"]["/api/v1/devices/{id}"]["get"]["responses"]["200"]["content"]["application/json"];
    server.enroll("dev-1", &[("site", "north")]).await;
    let silent = server.api("GET", "/api/v1/devices/dev-1", "").await.json();
    assert_fits(&document, &schema["schema"], &silent, "silent device");
    assert_eq!(silent.get("update"), None);

    devices::record_reported(&server.server.app().core, reported(), devices::Heard::At(now_ms()))
        .await
        .unwrap();
    let device = server.api("GET", "/api/v1/devices/dev-1", "").await.json();
    assert_fits(&document, &schema["schema"], &device, "device");
    assert_eq!(device["outcomes"][0]["result"]["error"]["code"], "golden_mismatch");
    assert_eq!(device["reported_generation"], 2);
    assert_eq!(device["alarms"][0]["code"], "time_untrusted");
}

#[tokio::test]
async fn a_model_and_a_token_are_answered_as_documented() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    for (path, body) in [
        ("/api/v1/models", json!({"name": "motion", "tags": {"team": "wrist"}})),
        ("/api/v1/device-tokens", json!({"labels": {"site": "north"}})),
    ] {
        let answer = server.api("POST", path, body.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        let schema = &document["paths"][path]["post"]["responses"]["201"]["content"]["application/json"]["schema"];
        assert_fits(&document, schema, &answer.json(), path);
    }
}

#[tokio::test]
async fn a_rollout_and_a_bundle_are_answered_as_documented() {
    let server = TestServer::start().await;
    let document = document(&server).await;
    server.enroll("dev-1", &[]).await;
    server.publish("motion", 2).await;
    let body = json!({"model": "motion", "version": 2, "groups": [{"size": "1"}]});
    let rollout = server.api("POST", "/api/v1/rollouts", body.to_string()).await;
    assert_eq!(rollout.status, StatusCode::CREATED, "{}", rollout.body);
    for (path, found) in [
        ("/api/v1/rollouts", "/api/v1/rollouts"),
        ("/api/v1/rollouts/{id}", "/api/v1/rollouts/1"),
        ("/api/v1/bundles", "/api/v1/bundles"),
        ("/api/v1/models/{name}", "/api/v1/models/motion"),
    ] {
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_fits(&document, schema, &server.api("GET", found, "").await.json(), path);
    }
}

#[tokio::test]
async fn streams_end_with_the_control_plane() {
    let server = TestServer::start().await;
    server.enroll("dev-1", &[]).await;
    server.publish("motion", 2).await;
    let body = json!({"model": "motion", "version": 2, "groups": [{"size": "1"}]});
    server.api("POST", "/api/v1/rollouts", body.to_string()).await;
    server.server.app().shutdown.cancel();
    // Reading an answer to its end would wait for ever on a stream that does not.
    for path in ["/api/v1/events", "/api/v1/rollouts/1/events"] {
        let answer = server.api("GET", path, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.header("content-type"), "text/event-stream", "{path}");
    }
}

#[tokio::test]
async fn an_unknown_address_or_method_is_a_problem() {
    let server = TestServer::start().await;
    for path in ["/api", "/api/v1", "/api/v1/nothing", "/api/v2/devices"] {
        assert_problem(&server.api("GET", path, "").await, 404, "not-found");
    }
    for (method, path) in [
        ("DELETE", "/api/v1/devices"),
        ("POST", "/tuf/timestamp.json"),
        ("POST", "/openapi.json"),
    ] {
        assert_problem(&server.api(method, path, "").await, 405, "method-not-allowed");
    }
}

#[tokio::test]
async fn malformed_input_is_a_problem() {
    let server = TestServer::start().await;
    let long_query = "/api/v1/devices?selector=a%00b";
    for (method, path, body, status, kind) in [
        ("POST", "/api/v1/models", "{", 400, "bad-request"),
        ("POST", "/api/v1/models", "{\"name\": \"a/b\"}", 422, "refused"),
        ("GET", "/api/v1/bundles/motion/first", "", 400, "bad-request"),
        ("GET", "/api/v1/models/%ff", "", 400, "bad-request"),
        ("GET", "/api/v1/blobs/zz", "", 400, "bad-request"),
        ("GET", long_query, "", 422, "refused"),
        ("GET", "/api/v1/devices?selector=a&selector=b", "", 400, "bad-request"),
        (
            "POST",
            "/api/v1/models/motion/versions?run_id=7",
            "",
            400,
            "bad-request",
        ),
    ] {
        let answer = server.api(method, path, body).await;
        assert_problem(&answer, status, kind);
    }
}

#[tokio::test]
async fn a_body_beyond_its_limit_is_a_problem() {
    let server = TestServer::start().await;
    let large = vec![b' '; BODY_LIMIT_BYTES + 1];
    let path = format!("/api/v1/blobs/{}", "0".repeat(64));
    assert_problem(&server.api("PUT", &path, large).await, 413, "too-large");
    let large = vec![b' '; super::JSON_LIMIT_BYTES + 1];
    assert_problem(&server.api("POST", "/api/v1/models", large).await, 413, "too-large");
}

#[tokio::test]
async fn a_missing_or_wrong_token_is_a_problem() {
    let server = TestServer::start().await;
    for authorization in ["", "Bearer skp_wrong", "Basic abc"] {
        let request = Request::get("/api/v1/devices").header("authorization", authorization);
        let answer = server.send(request.body(Body::empty()).unwrap()).await;
        assert_problem(&answer, 401, "unauthorized");
    }
}

/// The requests for certificates of two devices.
fn requests() -> [String; 2] {
    let request = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        request.pem().unwrap()
    };
    [request(), request()]
}

/// What a device says when it enrols.
fn enrolment(token: &str, device: Option<&str>, request: &str) -> String {
    let body = json!({
        "token": token, "device_id": device, "request": request,
        "platform": "pulley64", "agent_version": "0.1.0",
    });
    body.to_string()
}

async fn device_token(server: &TestServer, uses: u32) -> String {
    let body = json!({"ttl_seconds": 60, "uses": uses, "labels": {}}).to_string();
    let answer = server.api("POST", "/api/v1/device-tokens", body).await;
    answer.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_enrolment_whose_answer_was_lost_can_be_repeated() {
    let server = TestServer::start().await;
    let token = device_token(&server, 1).await;
    let [own, other] = requests();
    let enroll = async |device, request: &str| {
        server
            .api("POST", "/api/v1/enroll", enrolment(&token, device, request))
            .await
    };
    let first = enroll(None, &own).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.body);
    let again = enroll(None, &own).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
    let (first, again) = (first.json(), again.json());
    assert_eq!(first["device_id"], again["device_id"]);
    assert_ne!(first["certificate"]["chain"], again["certificate"]["chain"]);
    let id = first["device_id"].as_str();
    assert_eq!(enroll(id, &own).await.status, StatusCode::CREATED);
    for (device, request) in [(id, &other), (None, &other), (Some("another"), &own)] {
        assert_eq!(
            enroll(device, request).await.status,
            StatusCode::FORBIDDEN,
            "{device:?}"
        );
    }
    let devices = server.api("GET", "/api/v1/devices", "").await.json();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn another_token_or_key_does_not_take_a_device_over() {
    let server = TestServer::start().await;
    let (own, other) = (device_token(&server, 2).await, device_token(&server, 1).await);
    let [first, second] = requests();
    let enroll = async |body| server.api("POST", "/api/v1/enroll", body).await.status;
    assert_eq!(enroll(enrolment(&own, Some("d-1"), &first)).await, StatusCode::CREATED);
    for taken in [
        enrolment(&other, Some("d-1"), &first),
        enrolment(&own, Some("d-1"), &second),
    ] {
        assert_eq!(enroll(taken).await, StatusCode::CONFLICT);
    }
}

/// What a device without a token says when it enrols.
fn keyed(device: Option<&str>, request: &str) -> String {
    let mut body: Value = serde_json::from_str(&enrolment("", device, request)).unwrap();
    body["token"] = Value::Null;
    body.to_string()
}

fn fingerprint_of(request: &str) -> String {
    use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
    let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
    crate::ca::Request::parse(&der).unwrap().fingerprint().to_hex()
}

#[tokio::test]
async fn a_device_waits_until_an_operator_has_approved_its_key() {
    let server = TestServer::start().await;
    let [own, other] = requests();
    let enroll = async |request: &str| {
        server
            .api("POST", "/api/v1/enroll", keyed(Some("kitchen-1"), request))
            .await
    };
    for _ in 0..2 {
        let waits = enroll(&own).await;
        assert_eq!(waits.status, StatusCode::ACCEPTED, "{}", waits.body);
        assert_eq!(waits.json()["fingerprint"], fingerprint_of(&own));
    }
    let pending = server.api("GET", "/api/v1/device-keys?state=pending", "").await.json();
    assert_eq!(pending["keys"].as_array().unwrap().len(), 1);
    assert_eq!(pending["keys"][0]["asked"]["device"], "kitchen-1");
    assert!(
        server.api("GET", "/api/v1/devices", "").await.json()["devices"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    let path = format!("/api/v1/device-keys/{}/approve", fingerprint_of(&own));
    let body = json!({"device_id": "kitchen-7", "labels": {"site": "north"}}).to_string();
    assert_eq!(server.api("POST", &path, body).await.status, StatusCode::OK);
    let enrolled = enroll(&own).await;
    assert_eq!(enrolled.status, StatusCode::CREATED, "{}", enrolled.body);
    assert_eq!(enrolled.json()["device_id"], "kitchen-7", "the operator's word counts");
    // The answer may have been lost.
    assert_eq!(enroll(&own).await.status, StatusCode::CREATED);
    let device = server.api("GET", "/api/v1/devices/kitchen-7", "").await.json();
    assert_eq!(device["labels"], json!({"site": "north"}));

    let late = format!("/api/v1/device-keys/{}/reject", fingerprint_of(&own));
    assert_eq!(
        server.api("POST", &late, "").await.status,
        StatusCode::CONFLICT,
        "it is in already"
    );
    // Another key is another device, whatever it calls itself.
    assert_eq!(enroll(&other).await.status, StatusCode::ACCEPTED);
    let path = format!("/api/v1/device-keys/{}", fingerprint_of(&other));
    let taken = json!({"device_id": "kitchen-7"}).to_string();
    let approve = server.api("POST", &format!("{path}/approve"), taken).await;
    assert_eq!(approve.status, StatusCode::CONFLICT);
    assert_eq!(
        server.api("POST", &format!("{path}/reject"), "{}").await.status,
        StatusCode::OK
    );
    assert_problem(&enroll(&other).await, 403, "key-rejected");
    let nobody = format!("/api/v1/device-keys/{}/approve", "0".repeat(64));
    assert_problem(&server.api("POST", &nobody, "{}").await, 404, "not-found");
}

#[tokio::test]
async fn a_key_on_the_factorys_list_enrols_at_once_and_only_for_one_device() {
    let server = TestServer::start().await;
    let [own, _] = requests();
    let list =
        |fingerprint: &str| json!({"keys": [{"fingerprint": fingerprint, "labels": {"batch": "7"}}]}).to_string();
    assert_eq!(
        server.api("POST", "/api/v1/device-keys", list("abc")).await.status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    let listed = server
        .api("POST", "/api/v1/device-keys", list(&fingerprint_of(&own)))
        .await;
    assert_eq!(listed.status, StatusCode::CREATED, "{}", listed.body);
    let enroll = async |device| server.api("POST", "/api/v1/enroll", keyed(device, &own)).await;
    let first = enroll(None).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.body);
    let id = first.json()["device_id"].as_str().unwrap().to_owned();
    assert_eq!(enroll(None).await.json()["device_id"], id.as_str());
    assert_eq!(enroll(Some("another")).await.status, StatusCode::CONFLICT);
    let device = server.api("GET", &format!("/api/v1/devices/{id}"), "").await.json();
    assert_eq!(device["labels"], json!({"batch": "7"}));
    // The id of a listed key is kept for it, also from whoever has a token.
    let [late, thief] = requests();
    let kept = json!({"keys": [{"fingerprint": fingerprint_of(&late), "device_id": "kept"}]}).to_string();
    assert_eq!(
        server.api("POST", "/api/v1/device-keys", kept).await.status,
        StatusCode::CREATED
    );
    let token = device_token(&server, 2).await;
    let stolen = server
        .api("POST", "/api/v1/enroll", enrolment(&token, Some("kept"), &thief))
        .await;
    assert_eq!(stolen.status, StatusCode::CONFLICT, "{}", stolen.body);
    assert_eq!(
        server.api("POST", "/api/v1/enroll", keyed(None, &late)).await.json()["device_id"],
        "kept"
    );
    // Whoever was revoked does not come back by the list, under no name, and not with a token.
    let revoked = server.api("POST", &format!("/api/v1/devices/{id}/revoke"), "").await;
    assert_eq!(revoked.status, StatusCode::OK);
    for name in [None, Some(id.as_str()), Some("another")] {
        assert_problem(&enroll(name).await, 403, "device-revoked");
    }
    let by_token = server
        .api("POST", "/api/v1/enroll", enrolment(&token, Some("another"), &own))
        .await;
    assert_problem(&by_token, 403, "device-revoked");
}

#[tokio::test]
async fn what_is_left_of_a_revoked_devices_token_lets_nobody_in() {
    let server = TestServer::start().await;
    let token = device_token(&server, 5).await;
    let [own, fresh] = requests();
    let enrolled = server
        .api("POST", "/api/v1/enroll", enrolment(&token, Some("d-1"), &own))
        .await;
    assert_eq!(enrolled.status, StatusCode::CREATED);
    assert_eq!(
        server.api("POST", "/api/v1/devices/d-1/revoke", "").await.status,
        StatusCode::OK
    );
    let again = server
        .api("POST", "/api/v1/enroll", enrolment(&token, Some("d-2"), &fresh))
        .await;
    assert_problem(&again, 403, "token-used");
}

/// A device that asks from an address without a token.
fn asking(key: &[u8], address: &str) -> devices::keys::Asking {
    devices::keys::Asking {
        fingerprint: skerry_shared::digest::Digest::of(key),
        network: address.parse::<std::net::IpAddr>().unwrap().into(),
        asked: Default::default(),
    }
}

#[tokio::test]
async fn attack_a_flood_of_unknown_keys_fills_no_more_than_its_place() {
    let server = TestServer::start().await;
    let core = server.server.app().core.clone();
    let now = now_ms();
    // The test's own calls come from there, too.
    let here = "0.0.0.0";
    for n in 0..500_u32 {
        let flood = asking(&n.to_le_bytes(), here);
        devices::keys::admit(&core, flood, now).await.unwrap();
    }
    let [own, _] = requests();
    let refused = server.api("POST", "/api/v1/enroll", keyed(None, &own)).await;
    assert_problem(&refused, 503, "too-many-pending");
    // A token still opens the door, and so does the list.
    let token = device_token(&server, 1).await;
    let by_token = server
        .api("POST", "/api/v1/enroll", enrolment(&token, None, &own))
        .await;
    assert_eq!(by_token.status, StatusCode::CREATED, "{}", by_token.body);
    // A day later nobody remembers them.
    let a_day_later = now + 25 * 3600 * 1000;
    let admitted = devices::keys::admit(&core, asking(b"late", here), a_day_later);
    assert_eq!(admitted.await.unwrap(), devices::keys::Admitted::Pending);
    assert_eq!(devices::keys::known(&core, None, a_day_later).await.unwrap().len(), 1);
}

#[tokio::test]
async fn attack_a_flood_of_unknown_keys_from_one_address_gives_way_to_the_others() {
    let server = TestServer::start().await;
    let core = server.server.app().core.clone();
    let now = now_ms();
    let ask = |key: String, address: &'static str| {
        let asking = asking(key.as_bytes(), address);
        devices::keys::admit(&core, asking, now)
    };
    devices::keys::admit(&core, asking(b"early", "192.0.2.1"), now - 1000)
        .await
        .unwrap();
    for n in 0..499 {
        ask(format!("flood {n}"), "192.0.2.1").await.unwrap();
    }
    // 300 others come, from two addresses; each gets a place, as long as it has fewer than the flood.
    for n in 0..150 {
        ask(format!("site {n}"), "198.51.100.1").await.unwrap();
        ask(format!("other site {n}"), "2001:db8::1").await.unwrap();
    }
    let waiting = devices::keys::known(&core, None, now).await.unwrap();
    assert_eq!(waiting.len(), 500);
    let waits = |key: String| {
        let fingerprint = skerry_shared::digest::Digest::of(key.as_bytes());
        waiting.iter().any(|known| known.fingerprint == fingerprint)
    };
    assert!((0..150).all(|n| waits(format!("site {n}")) && waits(format!("other site {n}"))));
    // The flood cannot take them back, and what had waited there longest is still there.
    assert!(waits("early".to_owned()));
    let back = ask("flood again".to_owned(), "192.0.2.1").await.unwrap_err();
    assert!(matches!(back, devices::DeviceError::TooManyPending), "{back}");
}
