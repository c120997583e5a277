//! Routes of telemetry.

use std::{fmt::Display, str::FromStr, sync::Arc};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Problem, extract::UrlQuery};
use crate::{
    app::App,
    telemetry::{
        StoredPoint, Summary, Totals,
        query::{self, LIMIT_DEFAULT, PointFilter, SummaryFilter},
    },
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(summary))
        .routes(routes!(points))
        .routes(routes!(totals))
}

/// Parses a filter; an empty one is none.
fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<Option<T>, Problem> {
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

#[derive(Serialize, ToSchema)]
struct SummaryList {
    rows: Vec<Summary>,
}

/// Shows inferences, errors and latency per device and model version
#[utoipa::path(get, path = "/telemetry/summary", operation_id = "telemetry_summary", tag = "telemetry",
    params(
        ("device" = Option<String>, Query, description = "Only this device"),
        ("model" = Option<String>, Query, description = "Only this model"),
        ("since_ms" = Option<u64>, Query,
            description = "Only from the hour of this time on, by the control plane's clock; without it, all that is kept"),
    ),
    responses(
        (status = 200, description = "By device, model and version", body = SummaryList),
        (status = 422, description = "A filter is no name"),
    ))]
async fn summary(
    State(app): State<Arc<App>>,
    UrlQuery(asked): UrlQuery<SummaryQuery>,
) -> Result<Json<SummaryList>, Problem> {
    let filter = SummaryFilter {
        device: parse(&asked.device)?,
        model: parse(&asked.model)?,
        since_ms: asked.since_ms,
    };
    let rows = query::summary(&app.telemetry, filter).await?;
    Ok(Json(SummaryList { rows }))
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

#[derive(Serialize, ToSchema)]
struct PointList {
    points: Vec<StoredPoint>,
}

/// Shows the points of a device, the newest first
#[utoipa::path(get, path = "/telemetry/points", operation_id = "telemetry_points", tag = "telemetry",
    params(
        ("device" = String, Query, description = "The device"),
        ("metric" = Option<String>, Query, description = "Only this metric, for example `process.memory.usage`"),
        ("since_ms" = Option<u64>, Query, description = "Received then or later, by the control plane's clock"),
        ("limit" = Option<u32>, Query, description = "At most so many: 1000 without it, never more than 10000"),
    ),
    responses(
        (status = 200, description = "The points", body = PointList),
        (status = 422, description = "No device is named"),
    ))]
async fn points(
    State(app): State<Arc<App>>,
    UrlQuery(asked): UrlQuery<PointsQuery>,
) -> Result<Json<PointList>, Problem> {
    let device = parse(&asked.device)?.ok_or_else(|| Problem::refused("points are asked for by device"))?;
    let filter = PointFilter {
        device,
        metric: Some(asked.metric).filter(|metric| !metric.is_empty()),
        since_ms: asked.since_ms,
        limit: asked.limit.unwrap_or(LIMIT_DEFAULT),
    };
    let points = query::points(&app.telemetry, filter).await?;
    Ok(Json(PointList { points }))
}

/// Shows how much telemetry was ever stored
#[utoipa::path(get, path = "/telemetry/totals", operation_id = "telemetry_totals", tag = "telemetry",
    responses((status = 200, description = "Counters that only grow", body = Totals)))]
async fn totals(State(app): State<Arc<App>>) -> Result<Json<Totals>, Problem> {
    Ok(Json(query::totals(&app.telemetry).await?))
}
