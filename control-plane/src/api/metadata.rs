//! Routes of TUF metadata: what devices read, and what key holders publish.

use std::sync::Arc;

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::header,
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use skerry_shared::digest::Digest;
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    Problem,
    extract::{CalledBy, JsonBody, UrlPath},
};
use crate::{
    app::{App, Change},
    publish,
};

/// 2 MiB: root and targets metadata in base64, with room.
const BODY_BYTES: usize = 2 * 1024 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(targets, publish_targets).layer(DefaultBodyLimit::max(BODY_BYTES)))
        .routes(routes!(publish_root).layer(DefaultBodyLimit::max(BODY_BYTES)))
}

/// TUF metadata protects itself: anybody may read it.
pub(super) fn open_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(metadata)).routes(routes!(root))
}

/// Gets the current TUF targets metadata
#[utoipa::path(get, path = "/tuf/targets.json", operation_id = "current_targets", tag = "bundles",
    responses((status = 200, description = "The signed metadata, byte for byte", content_type = "application/json")))]
async fn targets(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let content = publish::current_targets(&app.core).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], content))
}

/// Targets metadata to publish.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewTargets)]
struct TargetsBody {
    /// The next TUF targets metadata, signed offline, in base64.
    targets: String,
}

/// The version that is published now.
#[derive(Serialize, ToSchema)]
#[schema(as = PublishedMetadata)]
struct PublishedView {
    /// Version of the metadata.
    version: u64,
}

/// Publishes TUF targets metadata that names no new bundle
///
/// It blocks versions, raises the lowest one that may be installed, or expires later.
#[utoipa::path(post, path = "/tuf/targets.json", operation_id = "publish_targets", tag = "bundles",
    request_body = TargetsBody,
    responses(
        (status = 200, description = "Published: devices that run a blocked bundle are woken", body = PublishedView),
        (status = 409, description = "Somebody else published in between: sign again"),
        (status = 422, description = "A signature is refused, or a published bundle is lost"),
    ))]
async fn publish_targets(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<TargetsBody>,
) -> Result<Json<PublishedView>, Problem> {
    let bytes = decode(&body.targets, "targets")?;
    let version = publish::publish_targets(&app.core, &app.keys, bytes.into(), by).await?;
    tracing::info!(metadata.version = version, "targets metadata is published");
    app.changes.send(Change::Metadata);
    app.desired_changed.notify_one();
    Ok(Json(PublishedView { version }))
}

/// A root to publish.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewRoot)]
struct RootBody {
    /// The next TUF root metadata, signed offline, in base64.
    root: String,
    /// The next TUF targets metadata, if the root takes the keys of the current one away, in base64.
    #[serde(default)]
    targets: Option<String>,
}

/// Publishes the next TUF root
///
/// The control plane signs snapshot and timestamp with the keys that it names, which must be in its signing folder.
#[utoipa::path(post, path = "/tuf/root", operation_id = "publish_root", tag = "bundles",
    request_body = RootBody,
    responses(
        (status = 200, description = "Published", body = PublishedView),
        (status = 409, description = "The control plane lacks a key that the root gives to it, or the targets metadata must come with it"),
        (status = 422, description = "It is not the next root, or not signed by enough keys of the newest root and of itself"),
    ))]
async fn publish_root(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<RootBody>,
) -> Result<Json<PublishedView>, Problem> {
    let root = decode(&body.root, "root")?;
    let targets = body.targets.map(|text| decode(&text, "targets")).transpose()?;
    let targets = targets.map(Into::into);
    let version = publish::publish_root(&app.core, &app.keys, root.into(), targets, by).await?;
    tracing::info!(metadata.version = version, "a root is published");
    app.changes.send(Change::Metadata);
    app.desired_changed.notify_one();
    Ok(Json(PublishedView { version }))
}

fn decode(text: &str, what: &str) -> Result<Vec<u8>, Problem> {
    STANDARD
        .decode(text)
        .map_err(|_| Problem::bad_request(format!("{what} is not base64")))
}

/// Gets a TUF root by its digest
///
/// An enrolment token carries the digest of the root that was the newest when it was made.
#[utoipa::path(get, path = "/tuf/root/{digest}", operation_id = "tuf_root", tag = "bundles",
    params(("digest" = String, Path, description = "The file's SHA-256 in 64 hex digits")),
    responses(
        (status = 200, description = "The signed metadata, byte for byte", content_type = "application/json"),
        (status = 404, description = "The repository never had such a root"),
    ))]
async fn root(State(app): State<Arc<App>>, UrlPath(digest): UrlPath<String>) -> Result<impl IntoResponse, Problem> {
    let digest = Digest::from_hex(&digest)
        .map_err(|_| Problem::bad_request("a root's digest is its SHA-256 in 64 hex digits"))?;
    let content = publish::root_by_digest(&app.core, digest).await?;
    let content = content.ok_or_else(|| Problem::not_found("the repository never had such a root"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], content))
}

/// Gets a TUF metadata file
#[utoipa::path(get, path = "/tuf/{file}", operation_id = "tuf_metadata", tag = "bundles",
    params(("file" = String, Path, description = "Its name, for example `timestamp.json` or `2.targets.json`")),
    responses(
        (status = 200, description = "The signed metadata, byte for byte", content_type = "application/json"),
        (status = 404, description = "There is no such file"),
    ))]
async fn metadata(State(app): State<Arc<App>>, UrlPath(file): UrlPath<String>) -> Result<impl IntoResponse, Problem> {
    let content = publish::metadata_file(&app.core, &file).await?;
    let content = content.ok_or_else(|| Problem::not_found("there is no such metadata file"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], content))
}
