//! Routes of telemetry.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Problem;
use crate::{
    app::App,
    telemetry::query::{self, LIMIT_DEFAULT, PointFilter, SummaryFilter},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/telemetry/summary", get(summary))
        .route("/telemetry/points", get(points))
        .route("/telemetry/totals", get(totals))
}

/// An empty filter is no filter.
fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Option<T>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map_err(|error| Problem::refused(format!("{error}")))?;
    Ok(Some(parsed))
}

#[derive(Deserialize)]
struct SummaryQuery {
    #[serde(default)]
    device: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    since_ms: u64,
}

async fn summary(State(app): State<Arc<App>>, Query(asked): Query<SummaryQuery>) -> Result<Json<Value>, Problem> {
    let filter = SummaryFilter {
        device: parse(&asked.device)?,
        model: parse(&asked.model)?,
        since_ms: asked.since_ms,
    };
    Ok(Json(json!({"rows": query::summary(&app.telemetry, filter).await?})))
}

#[derive(Deserialize)]
struct PointsQuery {
    #[serde(default)]
    device: String,
    #[serde(default)]
    metric: String,
    #[serde(default)]
    since_ms: u64,
    limit: Option<u32>,
}

async fn points(State(app): State<Arc<App>>, Query(asked): Query<PointsQuery>) -> Result<Json<Value>, Problem> {
    let device = parse(&asked.device)?.ok_or_else(|| Problem::refused("points are asked for by device"))?;
    let filter = PointFilter {
        device,
        metric: Some(asked.metric).filter(|metric| !metric.is_empty()),
        since_ms: asked.since_ms,
        limit: asked.limit.unwrap_or(LIMIT_DEFAULT),
    };
    Ok(Json(json!({"points": query::points(&app.telemetry, filter).await?})))
}

async fn totals(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!(query::totals(&app.telemetry).await?)))
}
