//! Routes of the model registry.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion, RunId},
};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    Problem,
    extract::{CalledBy, Content, JsonBody, UrlPath, UrlQuery},
};
use crate::{
    app::{App, Change},
    registry::{self, Approver, ModelVersionInfo, NewVersion, Registered, RegisteredModel, RegistryError},
};

pub(super) fn routes(upload_limit: usize) -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(register).layer(DefaultBodyLimit::max(upload_limit)))
        .routes(routes!(show_version))
        .routes(routes!(download))
        .routes(routes!(approve))
        .routes(routes!(download_signature))
        .routes(routes!(set_tag))
        .routes(routes!(set_alias, remove_alias))
}

fn parse_name(text: &str) -> Result<ModelName, Problem> {
    text.parse().map_err(|error| Problem::refused(format!("{error}")))
}

#[derive(Serialize, ToSchema)]
struct ModelList {
    models: Vec<RegisteredModel>,
}

/// Lists registered models with their versions
#[utoipa::path(get, path = "/models", operation_id = "list_models", tag = "models",
    responses((status = 200, description = "All models", body = ModelList)))]
async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, Problem> {
    let models = registry::list(&app.core).await?;
    Ok(Json(ModelList { models }))
}

/// A model to register.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewModel)]
struct CreateBody {
    /// Its name.
    #[schema(value_type = String)]
    name: ModelName,
    /// One sentence for people.
    #[serde(default)]
    description: String,
    /// The user's tags.
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// Registers a model without versions
#[utoipa::path(post, path = "/models", operation_id = "create_model", tag = "models",
    request_body = CreateBody,
    responses(
        (status = 201, description = "Registered", body = RegisteredModel),
        (status = 409, description = "A model of this name is registered"),
    ))]
async fn create(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<RegisteredModel>), Problem> {
    registry::create_model(&app.core, body.name.clone(), body.description, body.tags, by).await?;
    app.changes.send(Change::Model(body.name.clone()));
    Ok((StatusCode::CREATED, Json(registry::get(&app.core, &body.name).await?)))
}

/// Shows a model with its versions
#[utoipa::path(get, path = "/models/{name}", operation_id = "show_model", tag = "models",
    params(("name" = String, Path, description = "The model")),
    responses(
        (status = 200, description = "The model", body = RegisteredModel),
        (status = 404, description = "There is no such model"),
    ))]
async fn show(State(app): State<Arc<App>>, UrlPath(name): UrlPath<String>) -> Result<Json<RegisteredModel>, Problem> {
    Ok(Json(registry::get(&app.core, &parse_name(&name)?).await?))
}

#[derive(Deserialize)]
struct RegisterQuery {
    run_id: Option<RunId>,
    #[serde(default)]
    description: String,
    oms: Option<Digest>,
}

/// Registers an ONNX file as the next version of a model
///
/// A model that is not registered yet is made. The same file again gives the version that it has. A signature by OpenSSF Model
/// Signing is uploaded first, as a blob, and named by its digest.
#[utoipa::path(post, path = "/models/{name}/versions", operation_id = "register_version", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("run_id" = Option<String>, Query, description = "The run that made the file: one of its artifacts"),
        ("description" = Option<String>, Query, description = "One sentence for people"),
        ("oms" = Option<String>, Query, description = "The digest of an uploaded OpenSSF Model Signing bundle that covers the file"),
    ),
    request_body(content_type = "application/octet-stream", description = "The ONNX file"),
    responses(
        (status = 201, description = "Registered", body = ModelVersionInfo),
        (status = 200, description = "The file is registered already", body = ModelVersionInfo),
        (status = 413, description = "The file is larger than the control plane allows"),
        (status = 422, description = "A device could not run the file, or its signature is missing or not good"),
    ))]
async fn register(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(name): UrlPath<String>,
    UrlQuery(query): UrlQuery<RegisterQuery>,
    Content(onnx): Content,
) -> Result<(StatusCode, Json<ModelVersionInfo>), Problem> {
    let model = parse_name(&name)?;
    if let Some(run) = &query.run_id {
        check_made_by(&app, run, onnx.clone()).await?;
    }
    let bundle = match query.oms {
        Some(digest) => Some(app.blobs.get(digest).await?),
        None => None,
    };
    let verified = app.config.registry.door.admit(bundle.as_deref());
    let verified = verified.map_err(RegistryError::from)?;
    let new = NewVersion {
        model: model.clone(),
        onnx,
        run_id: query.run_id,
        description: query.description,
        signature: bundle.zip(verified),
    };
    let (registered, version) = registry::register_version(&app.core, &app.blobs, new, by).await?;
    app.changes.send(Change::Model(model));
    let status = match registered {
        Registered::New => StatusCode::CREATED,
        Registered::Existing => StatusCode::OK,
    };
    Ok((status, Json(version)))
}

/// Refuses a run that did not make the file: the lineage in signed bundles comes from here.
async fn check_made_by(app: &App, run: &RunId, onnx: Bytes) -> Result<(), Problem> {
    let digest = tokio::task::spawn_blocking(move || Digest::of(&onnx)).await;
    let digest = digest.map_err(Problem::internal)?;
    let artifacts = app.training.get(run).await?.artifacts;
    if artifacts.iter().any(|artifact| artifact.digest == digest) {
        return Ok(());
    }
    Err(Problem::refused(format!("run {run} has no artifact with this content")))
}

/// Shows a version of a model
#[utoipa::path(get, path = "/models/{name}/versions/{version}", operation_id = "show_version", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("version" = u64, Path, description = "The version"),
    ),
    responses(
        (status = 200, description = "The version", body = ModelVersionInfo),
        (status = 404, description = "There is no such version"),
    ))]
async fn show_version(
    State(app): State<Arc<App>>,
    UrlPath((name, version)): UrlPath<(String, u64)>,
) -> Result<Json<ModelVersionInfo>, Problem> {
    let version = registry::get_version(&app.core, &parse_name(&name)?, ModelVersion(version)).await?;
    Ok(Json(version))
}

/// Gets a version's ONNX file
#[utoipa::path(get, path = "/models/{name}/versions/{version}/onnx", operation_id = "download_version", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("version" = u64, Path, description = "The version"),
    ),
    responses(
        (status = 200, description = "The ONNX file", content_type = "application/octet-stream"),
        (status = 404, description = "There is no such version"),
    ))]
async fn download(
    State(app): State<Arc<App>>,
    UrlPath((name, version)): UrlPath<(String, u64)>,
) -> Result<impl IntoResponse, Problem> {
    let version = registry::get_version(&app.core, &parse_name(&name)?, ModelVersion(version)).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/octet-stream")],
        app.blobs.get(version.digest).await?,
    ))
}

/// Gets the OpenSSF Model Signing bundle of a version
#[utoipa::path(get, path = "/models/{name}/versions/{version}/oms", operation_id = "download_signature", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("version" = u64, Path, description = "The version"),
    ),
    responses(
        (status = 200, description = "The Sigstore bundle, as it came", content_type = "application/json"),
        (status = 404, description = "There is no such version, or it came without a signature"),
    ))]
async fn download_signature(
    State(app): State<Arc<App>>,
    UrlPath((name, version)): UrlPath<(String, u64)>,
) -> Result<impl IntoResponse, Problem> {
    let (model, version) = (parse_name(&name)?, ModelVersion(version));
    let bundle = registry::signature_bundle(&app.core, &app.blobs, &model, version).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bundle))
}

/// Approves a version
///
/// Bundles that are built from now on carry who approved it, and when.
#[utoipa::path(post, path = "/models/{name}/versions/{version}/approve", operation_id = "approve_version", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("version" = u64, Path, description = "The version"),
    ),
    responses(
        (status = 200, description = "The version, approved", body = ModelVersionInfo),
        (status = 403, description = "Whoever registered it may not approve it here"),
        (status = 404, description = "There is no such version"),
        (status = 409, description = "It is approved already"),
    ))]
async fn approve(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath((name, version)): UrlPath<(String, u64)>,
) -> Result<Json<ModelVersionInfo>, Problem> {
    let (model, version) = (parse_name(&name)?, ModelVersion(version));
    let approver = match app.config.registry.four_eyes {
        true => Approver::SomebodyElse,
        false => Approver::Anybody,
    };
    let version = registry::approve(&app.core, &model, version, approver, by).await?;
    app.changes.send(Change::Model(model));
    Ok(Json(version))
}

/// A tag's value.
#[derive(Deserialize, ToSchema)]
#[schema(as = Tag)]
struct TagBody {
    value: String,
}

/// Sets a tag of a version
#[utoipa::path(put, path = "/models/{name}/versions/{version}/tags/{key}", operation_id = "set_tag", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("version" = u64, Path, description = "The version"),
        ("key" = String, Path, description = "The tag's key"),
    ),
    request_body = TagBody,
    responses(
        (status = 200, description = "The version", body = ModelVersionInfo),
        (status = 404, description = "There is no such version"),
    ))]
async fn set_tag(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath((name, version, key)): UrlPath<(String, u64, String)>,
    JsonBody(body): JsonBody<TagBody>,
) -> Result<Json<ModelVersionInfo>, Problem> {
    let (model, version) = (parse_name(&name)?, ModelVersion(version));
    registry::set_tag(&app.core, &model, version, (key, body.value), by).await?;
    app.changes.send(Change::Model(model.clone()));
    Ok(Json(registry::get_version(&app.core, &model, version).await?))
}

/// The version that an alias names.
#[derive(Deserialize, ToSchema)]
#[schema(as = Alias)]
struct AliasBody {
    #[schema(value_type = u64)]
    version: ModelVersion,
}

/// Points an alias at a version
#[utoipa::path(put, path = "/models/{name}/aliases/{alias}", operation_id = "set_alias", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("alias" = String, Path, description = "The alias, for example `champion`"),
    ),
    request_body = AliasBody,
    responses(
        (status = 200, description = "The version that it names now", body = ModelVersionInfo),
        (status = 404, description = "There is no such version"),
    ))]
async fn set_alias(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath((name, alias)): UrlPath<(String, String)>,
    JsonBody(body): JsonBody<AliasBody>,
) -> Result<Json<ModelVersionInfo>, Problem> {
    let model = parse_name(&name)?;
    registry::set_alias(&app.core, &model, alias, body.version, by).await?;
    app.changes.send(Change::Model(model.clone()));
    Ok(Json(registry::get_version(&app.core, &model, body.version).await?))
}

/// Removes an alias
#[utoipa::path(delete, path = "/models/{name}/aliases/{alias}", operation_id = "remove_alias", tag = "models",
    params(
        ("name" = String, Path, description = "The model"),
        ("alias" = String, Path, description = "The alias"),
    ),
    responses(
        (status = 204, description = "Removed"),
        (status = 404, description = "There is no such alias"),
    ))]
async fn remove_alias(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath((name, alias)): UrlPath<(String, String)>,
) -> Result<StatusCode, Problem> {
    let model = parse_name(&name)?;
    registry::remove_alias(&app.core, &model, alias, by).await?;
    app.changes.send(Change::Model(model));
    Ok(StatusCode::NO_CONTENT)
}
