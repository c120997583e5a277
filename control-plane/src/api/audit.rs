//! Routes of the audit log.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    extract::{UrlPath, UrlQuery},
};
use crate::{
    app::App,
    audit::{self, Filter, chain::Entry},
    openapi,
};

/// Entries in one answer.
const LIMIT_MAX: u32 = 1000;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(export))
        .routes(routes!(checkpoint, make_checkpoint))
}

#[derive(Deserialize)]
struct ListQuery {
    before: Option<u64>,
    actor: Option<String>,
    action: Option<String>,
    object: Option<String>,
    #[serde(default = "hundred")]
    limit: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Serialize, ToSchema)]
struct EntryList {
    entries: Vec<Entry>,
}

/// Lists entries of the audit log, the newest first
#[utoipa::path(get, path = "/audit", operation_id = "list_audit", tag = "audit",
    params(
        ("before" = Option<u64>, Query, description = "Only entries before this one: the next page"),
        ("actor" = Option<String>, Query, description = "Only of this user, token or device"),
        ("action" = Option<String>, Query, description = "Only actions that begin like this, for example `rollout.`"),
        ("object" = Option<String>, Query, description = "Only of this object and what is below it, for example `model/m`"),
        ("limit" = Option<u32>, Query, description = "At most so many: 1 to 1000, 100 without it"),
    ),
    responses((status = 200, description = "The entries that match", body = EntryList)))]
async fn list(State(app): State<Arc<App>>, UrlQuery(query): UrlQuery<ListQuery>) -> Result<Json<EntryList>, Problem> {
    let filter = Filter {
        before: query.before,
        actor: query.actor,
        action: query.action,
        object: query.object,
        limit: query.limit.clamp(1, LIMIT_MAX),
    };
    let entries = audit::list(&app.core, filter).await?;
    Ok(Json(EntryList { entries }))
}

/// Shows an entry of the audit log
#[utoipa::path(get, path = "/audit/entries/{seq}", operation_id = "show_audit_entry", tag = "audit",
    params(("seq" = u64, Path, description = "The entry's number")),
    responses(
        (status = 200, description = "The entry", body = Entry),
        (status = 404, description = "There is no such entry"),
    ))]
async fn show(State(app): State<Arc<App>>, UrlPath(seq): UrlPath<u64>) -> Result<Json<Entry>, Problem> {
    let entry = audit::get(&app.core, seq).await?;
    entry
        .map(Json)
        .ok_or_else(|| Problem::not_found("there is no such entry"))
}

/// Exports the whole audit log
///
/// JSON lines: first the log's name, then the checkpoints, then the entries. `skerry audit verify --file` checks them without
/// a server.
#[utoipa::path(get, path = "/audit/export", operation_id = "export_audit", tag = "audit",
    responses((status = 200, description = "The log", body = String, content_type = "application/x-ndjson")))]
async fn export(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let lines = audit::export::stream(&app.core).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    ))
}

/// Gets the newest signed checkpoint of the audit log
///
/// Keep it off this machine: it finds a log that was cut or written anew.
#[utoipa::path(get, path = "/audit/checkpoint", operation_id = "audit_checkpoint", tag = "audit",
    responses(
        (status = 200, description = "A DSSE envelope; its payload is an `AuditCheckpoint`", body = openapi::DsseEnvelope),
        (status = 404, description = "None has been signed yet"),
    ))]
async fn checkpoint(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let newest = audit::checkpoint::newest(&app.core).await?;
    newest
        .map(Json)
        .ok_or_else(|| Problem::not_found("no checkpoint has been signed yet"))
}

/// Signs a checkpoint of the audit log as it is now
#[utoipa::path(post, path = "/audit/checkpoint", operation_id = "make_audit_checkpoint", tag = "audit",
    responses((status = 201, description = "A DSSE envelope; its payload is an `AuditCheckpoint`",
        body = openapi::DsseEnvelope)))]
async fn make_checkpoint(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    Ok((StatusCode::CREATED, Json(app.checkpoint().await?)))
}
