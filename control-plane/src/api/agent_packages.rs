//! Routes of the agent's packages, and of the script that installs one.

use std::sync::Arc;

use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{
    Problem,
    extract::{CalledBy, Content, UrlPath, UrlQuery},
};
use crate::{
    agent_package::{self, AgentPackage, PackageError, PackageName, Values},
    app::App,
};

pub(super) fn routes(upload_limit: usize) -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(publish).layer(DefaultBodyLimit::max(upload_limit)))
}

/// For devices that have no identity yet. The program is no secret, and the script holds nothing but what its caller sent.
pub(super) fn open_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(download))
        .routes(routes!(install_script))
        .routes(routes!(anchor))
}

#[derive(Serialize, ToSchema)]
struct AgentPackageList {
    packages: Vec<AgentPackage>,
}

/// Lists the agent's packages that new devices are given
#[utoipa::path(get, path = "/agent-packages", operation_id = "list_agent_packages", tag = "devices",
    responses((status = 200, description = "At most one for each architecture and format", body = AgentPackageList)))]
async fn list(State(app): State<Arc<App>>) -> Result<Json<AgentPackageList>, Problem> {
    let packages = agent_package::list(&app.core).await?;
    Ok(Json(AgentPackageList { packages }))
}

/// Stores a package of the agent for new devices
///
/// It replaces the one of the same architecture and format. The name says what it is for.
#[utoipa::path(post, path = "/agent-packages/{file}", operation_id = "publish_agent_package", tag = "devices",
    params(("file" = String, Path,
        description = "`skerry-agent_VERSION_ARCHITECTURE.deb` or `skerry-agent-VERSION-TARGET.tar.gz`")),
    request_body(content_type = "application/octet-stream", description = "The package"),
    responses(
        (status = 201, description = "Stored, durably", body = AgentPackage),
        (status = 413, description = "The package is larger than the control plane allows"),
        (status = 422, description = "The name is none of a package, or the content is not what the name says"),
    ))]
async fn publish(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(file): UrlPath<String>,
    Content(content): Content,
) -> Result<(StatusCode, Json<AgentPackage>), Problem> {
    let name: PackageName = file.parse().map_err(|error| Problem::refused(format!("{error}")))?;
    let package = agent_package::publish(&app.core, &app.blobs, name, content, by).await?;
    tracing::info!(file = package.file, "an agent package is published");
    Ok((StatusCode::CREATED, Json(package)))
}

/// Gets a package of the agent
#[utoipa::path(get, path = "/agent-packages/{file}", operation_id = "download_agent_package", tag = "devices",
    params(("file" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The package", content_type = "application/octet-stream"),
        (status = 404, description = "There is no such package, or it was replaced"),
    ))]
async fn download(State(app): State<Arc<App>>, UrlPath(file): UrlPath<String>) -> Result<impl IntoResponse, Problem> {
    let content = agent_package::content(&app.core, &app.blobs, &file).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], content))
}

#[derive(Deserialize)]
struct ScriptQuery {
    token: String,
}

/// Gets the script that installs and enrols the agent
///
/// It names each package by its digest, and reaches this control plane by the name in the request's `Host`.
#[utoipa::path(get, path = "/install.sh", operation_id = "install_script", tag = "devices",
    params(("token" = String, Query, description = "A one-time enrolment token, which the script will use")),
    responses(
        (status = 200, description = "A script for a POSIX shell", content_type = "text/x-shellscript"),
        (status = 422, description = "The token or the address has characters that do not belong there"),
    ))]
async fn install_script(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    UrlQuery(query): UrlQuery<ScriptQuery>,
) -> Result<impl IntoResponse, Problem> {
    let host = host(&headers).ok_or_else(|| Problem::bad_request("the request has no Host"))?;
    let packages = agent_package::list(&app.core).await?;
    let values = Values {
        server: &format!("https://{host}"),
        token: &query.token,
        anchor: &app.certificates.anchor_pem(),
    };
    let script = agent_package::script(&values, &packages).map_err(|error| Problem::refused(error.to_string()))?;
    // The token in it must not stay anywhere on the way.
    let headers = [
        (header::CONTENT_TYPE, "text/x-shellscript"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, script))
}

/// Gets the certificate by which a device without an agent knows this control plane
///
/// Whoever has it from here compares the file's SHA-256 with one that came on a trusted way, as the line of an enrolment token
/// does.
#[utoipa::path(get, path = "/install.pem", operation_id = "install_certificate", tag = "devices",
    responses((status = 200, description = "The certificate in PEM", content_type = "application/x-pem-file")))]
async fn anchor(State(app): State<Arc<App>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/x-pem-file")],
        app.certificates.anchor_pem(),
    )
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// The line that installs an agent with this token, for whoever has reached the control plane by these headers' `Host`. None
/// where the control plane speaks no HTTPS, or the `Host` is no plain address.
pub(crate) fn install_line(app: &App, headers: &HeaderMap, token: &str) -> Option<String> {
    if app.config.http_plain {
        return None;
    }
    let server = format!("https://{}", host(headers)?);
    agent_package::install_line(&server, token, &app.certificates.anchor_pem()).ok()
}

impl From<PackageError> for Problem {
    fn from(error: PackageError) -> Problem {
        match error {
            PackageError::NotFound(_) => Problem::not_found(error.to_string()),
            PackageError::Content(_) => Problem::refused(error.to_string()),
            PackageError::Blob(error) => error.into(),
            PackageError::Db(error) => error.into(),
        }
    }
}
