//! Routes of keys that may enrol without a token, and of what a device must know to trust this control plane.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use skerry_shared::{digest::Digest, id::DeviceId};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    extract::{CalledBy, JsonBody, UrlPath, UrlQuery},
};
use crate::{
    app::{App, Change, now_ms},
    ca::CONTROL_PLANE,
    devices::keys::{self, Asked, DeviceKey, KeyState, NewKey},
};

/// Keys in one call: a production batch, within the limit of a JSON body.
const KEYS_MAX: usize = 5000;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, add))
        .routes(routes!(approve))
        .routes(routes!(reject))
        .routes(routes!(trust))
}

/// A key that may enrol without a token, or asks to.
#[derive(Serialize, ToSchema)]
struct DeviceKeyView {
    /// The SHA-256 of the public key (SubjectPublicKeyInfo), in hex: `skerry-agent fingerprint` shows it on the device.
    fingerprint: String,
    state: KeyState,
    /// The id that its device gets; `null`: the one it asks for.
    #[schema(value_type = Option<String>)]
    device_id: Option<DeviceId>,
    labels: BTreeMap<String, String>,
    /// What the device says of itself. Nobody has checked it.
    asked: Asked,
    /// UTC milliseconds.
    created_at_ms: u64,
}

impl From<DeviceKey> for DeviceKeyView {
    fn from(key: DeviceKey) -> DeviceKeyView {
        DeviceKeyView {
            fingerprint: key.fingerprint.to_hex(),
            state: key.state,
            device_id: key.device,
            labels: key.labels,
            asked: key.asked,
            created_at_ms: key.created_at_ms,
        }
    }
}

#[derive(Deserialize)]
struct ListQuery {
    state: Option<KeyState>,
}

#[derive(Serialize, ToSchema)]
struct DeviceKeyList {
    keys: Vec<DeviceKeyView>,
}

/// Lists the keys that may enrol without a token, and those that ask to
#[utoipa::path(get, path = "/device-keys", operation_id = "list_device_keys", tag = "devices",
    params(("state" = Option<KeyState>, Query, description = "Only keys in this state, for example `pending`")),
    responses((status = 200, description = "The keys, oldest first", body = DeviceKeyList)))]
async fn list(
    State(app): State<Arc<App>>,
    UrlQuery(query): UrlQuery<ListQuery>,
) -> Result<Json<DeviceKeyList>, Problem> {
    let keys = keys::known(&app.core, query.state, now_ms()).await?;
    let keys = keys.into_iter().map(DeviceKeyView::from).collect();
    Ok(Json(DeviceKeyList { keys }))
}

/// A key for the factory's list.
#[derive(Deserialize, ToSchema)]
struct ListedKey {
    /// The SHA-256 of the public key (SubjectPublicKeyInfo), in hex.
    fingerprint: String,
    /// The id that its device gets; without it, the one it asks for.
    #[schema(value_type = Option<String>)]
    device_id: Option<DeviceId>,
    /// The labels that its device gets.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Keys for the factory's list.
#[derive(Deserialize, ToSchema)]
struct NewDeviceKeys {
    #[schema(max_items = 5000)]
    keys: Vec<ListedKey>,
}

/// How many keys were taken.
#[derive(Serialize, ToSchema)]
struct Listed {
    listed: usize,
}

/// Puts keys on the factory's list, all of them or none
#[utoipa::path(post, path = "/device-keys", operation_id = "list_factory_keys", tag = "devices",
    request_body = NewDeviceKeys,
    responses(
        (status = 201, description = "They may enrol now", body = Listed),
        (status = 422, description = "A fingerprint or a label is refused"),
    ))]
async fn add(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<NewDeviceKeys>,
) -> Result<(StatusCode, Json<Listed>), Problem> {
    if body.keys.len() > KEYS_MAX {
        return Err(Problem::refused(format!("a call takes at most {KEYS_MAX} keys")));
    }
    let new = |key: ListedKey| {
        Ok(NewKey {
            fingerprint: fingerprint(&key.fingerprint).map_err(|_| {
                let shown: String = key.fingerprint.chars().take(80).collect();
                Problem::refused(format!("`{shown}` is no fingerprint: 64 hexadecimal digits"))
            })?,
            device: key.device_id,
            labels: key.labels,
        })
    };
    if body
        .keys
        .iter()
        .any(|key| key.device_id.as_ref().is_some_and(|id| id.as_str() == CONTROL_PLANE))
    {
        return Err(Problem::refused("a device id is the control plane's own"));
    }
    let new = body.keys.into_iter().map(new).collect::<Result<Vec<_>, Problem>>()?;
    let listed = keys::list_keys(&app.core, new, by).await?;
    app.changes.send(Change::DeviceKeys);
    tracing::info!(keys = listed, "keys were put on the factory's list");
    Ok((StatusCode::CREATED, Json(Listed { listed })))
}

/// What an approved device gets.
#[derive(Deserialize, ToSchema, Default)]
#[schema(as = DeviceApproval)]
struct ApproveBody {
    /// Its id; without it, the one it asks for.
    #[schema(value_type = Option<String>)]
    device_id: Option<DeviceId>,
    /// Its labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Lets a device enrol that waits
///
/// Compare the fingerprint with the one that the device itself shows: everything else about it is its own word.
#[utoipa::path(post, path = "/device-keys/{fingerprint}/approve", operation_id = "approve_device_key", tag = "devices",
    params(("fingerprint" = String, Path, description = "The key")),
    request_body = ApproveBody,
    responses(
        (status = 200, description = "The key; its device enrols when it asks again", body = DeviceKeyView),
        (status = 404, description = "No device has asked with this key"),
        (status = 409, description = "Another device has this id"),
        (status = 422, description = "A label is malformed"),
    ))]
async fn approve(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(key): UrlPath<String>,
    JsonBody(body): JsonBody<ApproveBody>,
) -> Result<Json<DeviceKeyView>, Problem> {
    let key = NewKey {
        fingerprint: fingerprint(&key)?,
        device: body.device_id,
        labels: body.labels,
    };
    let decided = keys::decide(&app.core, key, KeyState::Approved, by).await?;
    app.changes.send(Change::DeviceKeys);
    tracing::info!(fingerprint = %decided.fingerprint.to_hex(), "a device's key was approved");
    Ok(Json(decided.into()))
}

/// Refuses a device that waits
#[utoipa::path(post, path = "/device-keys/{fingerprint}/reject", operation_id = "reject_device_key", tag = "devices",
    params(("fingerprint" = String, Path, description = "The key")),
    responses(
        (status = 200, description = "The key; its device is refused from now on", body = DeviceKeyView),
        (status = 404, description = "No device has asked with this key"),
        (status = 409, description = "Its device has enrolled: revoke it"),
    ))]
async fn reject(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(key): UrlPath<String>,
) -> Result<Json<DeviceKeyView>, Problem> {
    let key = NewKey {
        fingerprint: fingerprint(&key)?,
        device: None,
        labels: BTreeMap::new(),
    };
    let decided = keys::decide(&app.core, key, KeyState::Rejected, by).await?;
    app.changes.send(Change::DeviceKeys);
    tracing::info!(fingerprint = %decided.fingerprint.to_hex(), "a device's key was rejected");
    Ok(Json(decided.into()))
}

fn fingerprint(text: &str) -> Result<Digest, Problem> {
    Digest::from_hex(text).map_err(|_| Problem::not_found("there is no such key"))
}

/// What a device must know to trust this control plane. No secret.
#[derive(Serialize, ToSchema)]
struct DeviceTrust {
    /// `ROOT.AUTHORITY`, for `skerry-agent enroll --trust`.
    trust: String,
    /// The SHA-256 of the TUF root metadata.
    #[schema(value_type = String)]
    root: Digest,
    /// The SHA-256 of the certificate authority's certificate.
    #[schema(value_type = String)]
    authority: Digest,
}

/// Shows what a device must know to trust this control plane
#[utoipa::path(get, path = "/device-trust", operation_id = "show_device_trust", tag = "devices",
    responses((status = 200, description = "The two digests", body = DeviceTrust)))]
async fn trust(State(app): State<Arc<App>>) -> Json<DeviceTrust> {
    let (root, authority) = (app.keys.root_digest(), app.certificates.authority().digest());
    Json(DeviceTrust {
        trust: format!("{}.{}", root.to_hex(), authority.to_hex()),
        root,
        authority,
    })
}
