//! Routes of the model registry.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post, put},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion, RunId};

use super::{Problem, problem::JsonBody};
use crate::{
    app::{App, Change, now_ms},
    registry::{self, NewVersion, Registered},
};

pub(super) fn routes(upload_limit: usize) -> Router<Arc<App>> {
    Router::new()
        .route("/models", get(list).post(create))
        .route("/models/{name}", get(show))
        .route(
            "/models/{name}/versions",
            post(register).layer(DefaultBodyLimit::max(upload_limit)),
        )
        .route("/models/{name}/versions/{version}", get(show_version))
        .route("/models/{name}/versions/{version}/onnx", get(download))
        .route("/models/{name}/versions/{version}/tags/{key}", put(set_tag))
        .route("/models/{name}/aliases/{alias}", put(set_alias).delete(remove_alias))
}

fn parse_name(text: &str) -> Result<ModelName, Problem> {
    text.parse().map_err(|error| Problem::refused(format!("{error}")))
}

async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"models": registry::list(&app.core).await?})))
}

#[derive(Deserialize)]
struct CreateBody {
    name: ModelName,
    #[serde(default)]
    description: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

async fn create(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    registry::create_model(&app.core, body.name.clone(), body.description, body.tags, now_ms()).await?;
    app.changes.send(Change::Model(body.name.clone()));
    Ok((
        StatusCode::CREATED,
        Json(json!(registry::get(&app.core, &body.name).await?)),
    ))
}

async fn show(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!(registry::get(&app.core, &parse_name(&name)?).await?)))
}

#[derive(Deserialize)]
struct RegisterQuery {
    run_id: Option<RunId>,
    #[serde(default)]
    description: String,
}

async fn register(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<RegisterQuery>,
    onnx: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let model = parse_name(&name)?;
    let new = NewVersion {
        model: model.clone(),
        onnx,
        run_id: query.run_id,
        description: query.description,
    };
    let (registered, version) = registry::register_version(&app.core, &app.blobs, new, now_ms()).await?;
    app.changes.send(Change::Model(model));
    let status = match registered {
        Registered::New => StatusCode::CREATED,
        Registered::Existing => StatusCode::OK,
    };
    Ok((status, Json(json!(version))))
}

async fn show_version(
    State(app): State<Arc<App>>,
    Path((name, version)): Path<(String, u64)>,
) -> Result<Json<Value>, Problem> {
    Ok(Json(json!(
        registry::get_version(&app.core, &parse_name(&name)?, ModelVersion(version)).await?
    )))
}

async fn download(
    State(app): State<Arc<App>>,
    Path((name, version)): Path<(String, u64)>,
) -> Result<impl IntoResponse, Problem> {
    let version = registry::get_version(&app.core, &parse_name(&name)?, ModelVersion(version)).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/octet-stream")],
        app.blobs.get(version.digest).await?,
    ))
}

#[derive(Deserialize)]
struct TagBody {
    value: String,
}

async fn set_tag(
    State(app): State<Arc<App>>,
    Path((name, version, key)): Path<(String, u64, String)>,
    JsonBody(body): JsonBody<TagBody>,
) -> Result<Json<Value>, Problem> {
    let (model, version) = (parse_name(&name)?, ModelVersion(version));
    registry::set_tag(&app.core, &model, version, key, body.value).await?;
    app.changes.send(Change::Model(model.clone()));
    Ok(Json(json!(registry::get_version(&app.core, &model, version).await?)))
}

#[derive(Deserialize)]
struct AliasBody {
    version: ModelVersion,
}

async fn set_alias(
    State(app): State<Arc<App>>,
    Path((name, alias)): Path<(String, String)>,
    JsonBody(body): JsonBody<AliasBody>,
) -> Result<Json<Value>, Problem> {
    let model = parse_name(&name)?;
    registry::set_alias(&app.core, &model, alias, body.version).await?;
    app.changes.send(Change::Model(model.clone()));
    Ok(Json(json!(
        registry::get_version(&app.core, &model, body.version).await?
    )))
}

async fn remove_alias(
    State(app): State<Arc<App>>,
    Path((name, alias)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let model = parse_name(&name)?;
    registry::remove_alias(&app.core, &model, alias).await?;
    app.changes.send(Change::Model(model));
    Ok(StatusCode::NO_CONTENT)
}
