//! The REST API under `/api/v1`: JSON in and out, errors as problem details (RFC 9457), bearer tokens.
//!
//! Handlers translate; the domains decide. Invariant: nothing that a client sees names a path, a statement or a host.

pub(crate) mod auth;
mod bundles;
mod devices;
mod models;
mod problem;
mod runs;

use std::sync::Arc;

use axum::{Json, Router, extract::DefaultBodyLimit, middleware, routing::get};
use serde_json::{Value, json};

use crate::app::App;

pub(crate) use problem::Problem;

/// JSON bodies are small; only uploads have the configured limit.
const JSON_LIMIT_BYTES: usize = 1024 * 1024;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let upload_limit = app.config.body_limit_bytes;
    let protected = Router::new()
        .merge(devices::routes())
        .merge(models::routes(upload_limit))
        .merge(bundles::routes(upload_limit))
        .merge(runs::routes())
        .layer(middleware::from_fn_with_state(Arc::clone(&app), auth::require_token));
    let open = Router::new()
        .route("/health", get(health))
        .merge(devices::open_routes());
    Router::new()
        .nest("/api/v1", protected.merge(open))
        .merge(bundles::open_routes())
        .fallback(async || Problem::not_found("there is nothing at this address"))
        .layer(DefaultBodyLimit::max(JSON_LIMIT_BYTES))
        .with_state(app)
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}
