//! Routes of blobs, published bundles and TUF metadata.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};

use super::{Problem, problem::JsonBody};
use crate::{
    app::{App, Change, now_ms},
    publish,
};

/// 2 MiB: the targets metadata in base64, with room.
const BUNDLE_BODY_BYTES: usize = 2 * 1024 * 1024;

pub(super) fn routes(upload_limit: usize) -> Router<Arc<App>> {
    Router::new()
        .route(
            "/blobs/{digest}",
            put(upload).get(download).layer(DefaultBodyLimit::max(upload_limit)),
        )
        .route(
            "/bundles",
            get(list).post(create).layer(DefaultBodyLimit::max(BUNDLE_BODY_BYTES)),
        )
        .route("/bundles/{model}/{version}", get(show))
        .route("/tuf/targets.json", get(targets))
}

/// TUF metadata protects itself: anybody may read it.
pub(super) fn open_routes() -> Router<Arc<App>> {
    Router::new().route("/tuf/{file}", get(metadata))
}

fn parse_digest(hex: &str) -> Result<Digest, Problem> {
    Digest::from_hex(hex).map_err(|_| Problem::bad_request("a blob's address is its SHA-256 in 64 hex digits"))
}

async fn upload(
    State(app): State<Arc<App>>,
    Path(digest): Path<String>,
    content: Bytes,
) -> Result<StatusCode, Problem> {
    app.blobs.put(parse_digest(&digest)?, content).await?;
    Ok(StatusCode::CREATED)
}

async fn download(State(app): State<Arc<App>>, Path(digest): Path<String>) -> Result<impl IntoResponse, Problem> {
    let content = app.blobs.get(parse_digest(&digest)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], content))
}

async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"bundles": publish::list(&app.core).await?})))
}

async fn show(
    State(app): State<Arc<App>>,
    Path((model, version)): Path<(String, u64)>,
) -> Result<Json<Value>, Problem> {
    let model: ModelName = model.parse().map_err(|error| Problem::refused(format!("{error}")))?;
    Ok(Json(json!(
        publish::get_bundle(&app.core, &model, ModelVersion(version)).await?
    )))
}

#[derive(Deserialize)]
struct CreateBody {
    model: ModelName,
    version: ModelVersion,
    targets: String,
}

async fn create(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let targets = STANDARD
        .decode(body.targets)
        .map_err(|_| Problem::bad_request("targets is not base64"))?;
    let wanted = (body.model, body.version);
    let bundle = publish::publish(&app.core, &app.blobs, &app.keys, wanted, targets.into(), now_ms()).await?;
    tracing::info!(model.name = %bundle.model, model.version = %bundle.version, "a bundle is published");
    app.changes.send(Change::Bundle(bundle.model.clone(), bundle.version));
    Ok((StatusCode::CREATED, Json(json!(bundle))))
}

async fn targets(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let content = publish::current_targets(&app.core).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], content))
}

async fn metadata(State(app): State<Arc<App>>, Path(file): Path<String>) -> Result<impl IntoResponse, Problem> {
    let content = publish::metadata_file(&app.core, &file).await?;
    let content = content.ok_or_else(|| Problem::not_found("there is no such metadata file"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], content))
}
