//! Routes of devices and their enrolment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    routing::{get, post},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    id::{DeviceId, Platform},
};

use super::{Problem, problem::JsonBody};
use crate::{
    app::{App, Change, now_ms, random_hex},
    devices::{self, Device, Enrolment, Selector},
    mqtt::CONTROL_PLANE,
};

/// A month: longer tokens are forgotten, and found by somebody else.
const TOKEN_TTL_MAX: Duration = Duration::from_secs(31 * 86_400);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/devices", get(list))
        .route("/devices/{id}", get(show).patch(change))
        .route("/device-tokens", post(create_token))
}

/// Enrolment has no bearer token: the one-time token is in the body.
pub(super) fn open_routes() -> Router<Arc<App>> {
    Router::new().route("/enroll", post(enroll))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    selector: String,
}

async fn list(State(app): State<Arc<App>>, Query(query): Query<ListQuery>) -> Result<Json<Value>, Problem> {
    let selector: Selector = query
        .selector
        .parse()
        .map_err(|error| Problem::refused(format!("{error}")))?;
    let devices = devices::list(&app.core, &selector).await?;
    Ok(Json(
        json!({"devices": devices.iter().map(to_json).collect::<Vec<_>>()}),
    ))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(to_json(&devices::get(&app.core, &parse_id(&id)?).await?)))
}

#[derive(Deserialize)]
struct ChangeBody {
    labels: BTreeMap<String, Option<String>>,
}

async fn change(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    JsonBody(body): JsonBody<ChangeBody>,
) -> Result<Json<Value>, Problem> {
    let id = parse_id(&id)?;
    devices::set_labels(&app.core, &id, body.labels).await?;
    app.changes.send(Change::Device(id.clone()));
    Ok(Json(to_json(&devices::get(&app.core, &id).await?)))
}

fn parse_id(text: &str) -> Result<DeviceId, Problem> {
    text.parse().map_err(|_| Problem::not_found("there is no such device"))
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default = "one_day")]
    ttl_seconds: u64,
    #[serde(default = "one")]
    uses: u32,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn one_day() -> u64 {
    86_400
}

fn one() -> u32 {
    1
}

async fn create_token(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<TokenBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    if body.uses == 0 || body.ttl_seconds == 0 || body.ttl_seconds > TOKEN_TTL_MAX.as_secs() {
        return Err(Problem::refused(
            "a token needs at least one use and a life of 1 second to 31 days",
        ));
    }
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(|error| Problem::internal(std::io::Error::other(error.to_string())))?;
    let now = now_ms();
    let expires_at_ms = now + body.ttl_seconds * 1000;
    let uses = body.uses;
    devices::create_token(&app.core, Digest::of(&secret), body.labels, uses, now, expires_at_ms).await?;
    // The root's digest travels with the token, on the way that the operator trusts.
    let token = format!(
        "skt_{}.{}",
        URL_SAFE_NO_PAD.encode(secret),
        app.keys.root_digest().to_hex()
    );
    Ok((
        StatusCode::CREATED,
        Json(json!({"token": token, "expires_at_ms": expires_at_ms, "uses": uses})),
    ))
}

#[derive(Deserialize)]
struct EnrollBody {
    token: String,
    device_id: Option<DeviceId>,
    public_key: String,
    platform: Platform,
    agent_version: String,
}

async fn enroll(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<EnrollBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let secret = body.token.strip_prefix("skt_").and_then(|token| token.split_once('.'));
    let secret = secret.and_then(|(secret, _)| URL_SAFE_NO_PAD.decode(secret).ok());
    let secret = secret.ok_or_else(|| Problem::bad_request("the enrolment token is malformed"))?;
    let mut key = [0; 32];
    let key_is_valid = hex::decode_to_slice(&body.public_key, &mut key).is_ok()
        && ed25519_dalek::VerifyingKey::from_bytes(&key).is_ok_and(|key| !key.is_weak());
    if !key_is_valid || body.agent_version.len() > 64 {
        return Err(Problem::refused(
            "public_key must be an ed25519 key in hex, agent_version at most 64 bytes",
        ));
    }
    let random = |error: anyhow::Error| Problem::internal(std::io::Error::other(error.to_string()));
    let device = match body.device_id {
        Some(device) => device,
        None => format!("dev-{}", random_hex::<4>().map_err(random)?)
            .parse()
            .expect("a valid device id"),
    };
    if device.as_str() == CONTROL_PLANE {
        return Err(Problem::refused("this device id is the control plane's own"));
    }
    let password = random_hex::<32>().map_err(random)?;
    let enrolment = Enrolment {
        secret,
        device,
        public_key: body.public_key,
        platform: body.platform,
        agent_version: body.agent_version,
        secret_hash: Digest::of(password.as_bytes()),
    };
    let device = devices::enroll(&app.core, enrolment, now_ms()).await?;
    tracing::info!(device.id = %device, "a device enrolled");
    app.changes.send(Change::Device(device.clone()));
    let (host, port) = &app.mqtt_address;
    let answer = json!({
        "device_id": device,
        "mqtt": {"host": host, "port": port, "username": device, "password": password},
        "root": STANDARD.encode(app.keys.root_bytes()),
    });
    Ok((StatusCode::CREATED, Json(answer)))
}

fn to_json(device: &Device) -> Value {
    let desired: Vec<Value> = device
        .desired
        .iter()
        .map(|a| json!({"model": a.model, "version": a.version, "rollout": a.rollout}))
        .collect();
    let mut value = json!({
        "id": device.id,
        "labels": device.labels,
        "platform": device.platform,
        "agent_version": device.agent_version,
        "connected": device.connected,
        "enrolled_at_ms": device.enrolled_at_ms,
        "last_seen_at_ms": device.last_seen_at_ms,
        "generation": device.generation,
        "desired": desired,
        "bundles": [],
        "outcomes": [],
    });
    if let Some(reported) = &device.reported {
        value["reported_generation"] = json!(reported.generation);
        value["update"] = json!(reported.update);
        value["bundles"] = json!(reported.bundles);
        value["outcomes"] = json!(reported.outcomes);
        value["inference_address"] = json!(reported.agent.inference_address);
    }
    value
}
