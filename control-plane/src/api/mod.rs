//! The REST API under `/api/v1`: JSON in and out, errors as problem details (RFC 9457), bearer tokens.
//!
//! Handlers translate; the domains decide. Invariant: nothing that a client sees names a path, a statement or a host.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod agent_package_tests;
pub(crate) mod agent_packages;
mod audit;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod audit_tests;
pub(crate) mod auth;
mod bundles;
mod device_keys;
mod devices;
mod document;
mod events;
mod extract;
pub(crate) mod load;
mod metadata;
mod models;
mod problem;
mod rollouts;
mod runs;
mod telemetry;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokens;
mod users;

use std::sync::Arc;

use axum::{Json, Router, extract::DefaultBodyLimit, http::StatusCode, middleware};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::App;

pub(crate) use extract::CalledBy;
pub(crate) use problem::Problem;

/// JSON bodies are small; only uploads have the configured limit.
const JSON_LIMIT_BYTES: usize = 1024 * 1024;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let (routes, api) = documented(&app).split_for_parts();
    routes
        .route("/openapi.json", document::route(&api))
        .nest("/api", Router::new().fallback(unknown))
        .method_not_allowed_fallback(async || {
            let title = "this address does not know the method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", title, "")
        })
        .layer(DefaultBodyLimit::max(JSON_LIMIT_BYTES))
        .with_state(app)
}

/// Every route of the API with its documentation.
fn documented(app: &Arc<App>) -> OpenApiRouter<Arc<App>> {
    let upload_limit = app.config.body_limit_bytes;
    let mut protected = OpenApiRouter::default()
        .merge(devices::routes())
        .merge(device_keys::routes())
        .merge(models::routes(upload_limit))
        .merge(bundles::routes(upload_limit))
        .merge(metadata::routes())
        .merge(agent_packages::routes(upload_limit))
        .merge(rollouts::routes())
        .merge(runs::routes())
        .merge(telemetry::routes())
        .merge(audit::routes())
        .merge(events::routes())
        .merge(users::routes())
        .merge(tokens::routes())
        .layer(middleware::from_fn_with_state(Arc::clone(app), auth::require_token));
    document::require_token(protected.get_openapi_mut());
    let open = OpenApiRouter::default()
        .routes(routes!(health))
        .merge(devices::open_routes());
    let count = middleware::from_fn_with_state(Arc::clone(app), load::count_address);
    let mut all = OpenApiRouter::with_openapi(document::empty())
        .nest("/api/v1", protected.merge(open.layer(count.clone())))
        .merge(
            metadata::open_routes()
                .merge(agent_packages::open_routes())
                .layer(count),
        );
    document::describe_failures(all.get_openapi_mut());
    document::name_wildcards(all.get_openapi_mut());
    all
}

async fn unknown() -> Problem {
    Problem::not_found("there is nothing at this address")
}

#[derive(Serialize, ToSchema)]
struct Health {
    /// Always `ok`: a control plane that is not does not answer.
    status: &'static str,
    /// The program's version.
    version: &'static str,
}

/// Says that the control plane answers
#[utoipa::path(get, path = "/health", operation_id = "health", tag = "system",
    responses((status = 200, description = "It answers", body = Health)))]
async fn health() -> Json<Health> {
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
    })
}
