//! Routes of blobs and published bundles.

use std::sync::Arc;

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    Problem,
    extract::{CalledBy, Content, JsonBody, UrlPath},
};
use crate::{
    app::{App, Change},
    publish::{self, PublishedBundle},
};

/// 2 MiB: the targets metadata in base64, with room.
const BUNDLE_BODY_BYTES: usize = 2 * 1024 * 1024;

pub(super) fn routes(upload_limit: usize) -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(upload, download).layer(DefaultBodyLimit::max(upload_limit)))
        .routes(routes!(list, create).layer(DefaultBodyLimit::max(BUNDLE_BODY_BYTES)))
        .routes(routes!(show))
}

fn parse_digest(hex: &str) -> Result<Digest, Problem> {
    Digest::from_hex(hex).map_err(|_| Problem::bad_request("a blob's address is its SHA-256 in 64 hex digits"))
}

/// Stores content under its digest
///
/// Sending the same content again changes nothing. `HEAD` says whether it is there.
#[utoipa::path(put, path = "/blobs/{digest}", operation_id = "upload_blob", tag = "bundles",
    params(("digest" = String, Path, description = "The content's SHA-256 in 64 hex digits")),
    request_body(content_type = "application/octet-stream", description = "The content"),
    responses(
        (status = 201, description = "Stored, durably"),
        (status = 413, description = "The content is larger than the control plane allows"),
        (status = 422, description = "The content has another digest"),
    ))]
async fn upload(
    State(app): State<Arc<App>>,
    UrlPath(digest): UrlPath<String>,
    Content(content): Content,
) -> Result<StatusCode, Problem> {
    app.blobs.put(parse_digest(&digest)?, content).await?;
    Ok(StatusCode::CREATED)
}

/// Gets content by its digest
#[utoipa::path(get, path = "/blobs/{digest}", operation_id = "download_blob", tag = "bundles",
    params(("digest" = String, Path, description = "The content's SHA-256 in 64 hex digits")),
    responses(
        (status = 200, description = "The content", content_type = "application/octet-stream"),
        (status = 404, description = "There is no such content"),
    ))]
async fn download(State(app): State<Arc<App>>, UrlPath(digest): UrlPath<String>) -> Result<impl IntoResponse, Problem> {
    let content = app.blobs.get(parse_digest(&digest)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], content))
}

#[derive(Serialize, ToSchema)]
struct BundleList {
    bundles: Vec<PublishedBundle>,
}

/// Lists published bundles
#[utoipa::path(get, path = "/bundles", operation_id = "list_bundles", tag = "bundles",
    responses((status = 200, description = "All published bundles", body = BundleList)))]
async fn list(State(app): State<Arc<App>>) -> Result<Json<BundleList>, Problem> {
    let bundles = publish::list(&app.core).await?;
    Ok(Json(BundleList { bundles }))
}

/// Shows the published bundle of a model version
#[utoipa::path(get, path = "/bundles/{model}/{version}", operation_id = "show_bundle", tag = "bundles",
    params(
        ("model" = String, Path, description = "The registered model"),
        ("version" = u64, Path, description = "Its version"),
    ),
    responses(
        (status = 200, description = "The bundle", body = PublishedBundle),
        (status = 404, description = "No bundle of this version is published"),
    ))]
async fn show(
    State(app): State<Arc<App>>,
    UrlPath((model, version)): UrlPath<(String, u64)>,
) -> Result<Json<PublishedBundle>, Problem> {
    let model: ModelName = model.parse().map_err(|error| Problem::refused(format!("{error}")))?;
    let bundle = publish::get_bundle(&app.core, &model, ModelVersion(version)).await?;
    Ok(Json(bundle))
}

/// A bundle to publish. Its chunk index and chunks must have been uploaded.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewBundle)]
struct CreateBody {
    /// The registered model.
    #[schema(value_type = String)]
    model: ModelName,
    /// Its version.
    #[schema(value_type = u64)]
    version: ModelVersion,
    /// The next TUF targets metadata, signed offline, in base64.
    targets: String,
}

/// Publishes a bundle that an offline key has signed
#[utoipa::path(post, path = "/bundles", operation_id = "publish_bundle", tag = "bundles",
    request_body = CreateBody,
    responses(
        (status = 201, description = "Published: rollouts may use it", body = PublishedBundle),
        (status = 409, description = "Somebody else published in between: sign again"),
        (status = 422, description = "A signature, a chunk or the manifest is refused"),
    ))]
async fn create(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<PublishedBundle>), Problem> {
    let targets = STANDARD
        .decode(body.targets)
        .map_err(|_| Problem::bad_request("targets is not base64"))?;
    let wanted = (body.model, body.version);
    let bundle = publish::publish(&app.core, &app.blobs, &app.keys, wanted, targets.into(), by).await?;
    tracing::info!(model.name = %bundle.model, model.version = %bundle.version, "a bundle is published");
    app.changes.send(Change::Bundle(bundle.model.clone(), bundle.version));
    Ok((StatusCode::CREATED, Json(bundle)))
}
