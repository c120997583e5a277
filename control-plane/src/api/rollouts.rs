//! Routes of rollouts.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion, RolloutId};
use tokio_stream::wrappers::BroadcastStream;

use super::{Problem, extract::JsonBody};
use crate::{
    app::{App, Change, now_ms},
    devices::Selector,
    rollouts::{self, GroupRule, NewRollout, Rollout, RolloutError},
};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/rollouts", get(list).post(create))
        .route("/rollouts/{id}", get(show))
        .route("/rollouts/{id}/events", get(events))
        .route("/rollouts/{id}/pause", post(pause))
        .route("/rollouts/{id}/resume", post(resume))
        .route("/rollouts/{id}/abort", post(abort))
}

async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"rollouts": rollouts::list(&app.core).await?})))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<Rollout>, Problem> {
    Ok(Json(rollouts::get(&app.core, RolloutId(id)).await?))
}

#[derive(Deserialize)]
struct CreateBody {
    model: ModelName,
    version: ModelVersion,
    #[serde(default)]
    selector: Selector,
    groups: Vec<GroupRule>,
    probation_ms: Option<u64>,
    silent_after_seconds: Option<u64>,
    #[serde(default = "yes")]
    start: bool,
}

fn yes() -> bool {
    true
}

async fn create(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<Rollout>), Problem> {
    let new = NewRollout {
        model: body.model,
        version: body.version,
        selector: body.selector,
        groups: body.groups,
        probation_ms: body.probation_ms,
        silent_after_ms: body.silent_after_seconds.map(|seconds| seconds.saturating_mul(1000)),
        start: body.start,
    };
    let rollout = rollouts::create(&app.core, new, now_ms()).await?;
    tracing::info!(rollout.id = rollout.id.0, model.name = %rollout.model, model.version = %rollout.version, "a rollout is created");
    app.changes.send(Change::Rollout(rollout.id));
    Ok((StatusCode::CREATED, Json(rollout)))
}

async fn pause(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<Rollout>, Problem> {
    changed(&app, rollouts::pause(&app.core, RolloutId(id)).await)
}

async fn resume(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<Rollout>, Problem> {
    changed(&app, rollouts::resume(&app.core, RolloutId(id)).await)
}

async fn abort(State(app): State<Arc<App>>, Path(id): Path<u64>) -> Result<Json<Rollout>, Problem> {
    changed(&app, rollouts::abort(&app.core, RolloutId(id)).await)
}

fn changed(app: &App, rollout: Result<Rollout, RolloutError>) -> Result<Json<Rollout>, Problem> {
    let rollout = rollout?;
    app.changes.send(Change::Rollout(rollout.id));
    Ok(Json(rollout))
}

/// The rollout now, and again at each change.
async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<u64>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let id = RolloutId(id);
    // Listening begins before the first look, so that no change falls in between.
    let changes = BroadcastStream::new(app.changes.subscribe());
    let first = rollouts::get(&app.core, id).await?;
    let later = changes
        // A listener that was too slow looks again.
        .filter(move |change| std::future::ready(!matches!(change, Ok(other) if *other != Change::Rollout(id))))
        .then(move |_| {
            let app = Arc::clone(&app);
            async move { rollouts::get(&app.core, id).await.ok() }
        })
        .filter_map(std::future::ready);
    let events = stream::once(std::future::ready(first)).chain(later);
    let event = |rollout: Rollout| Event::default().json_data(rollout).unwrap_or_else(|_| Event::default());
    Ok(Sse::new(events.map(move |rollout| Ok(event(rollout)))).keep_alive(KeepAlive::default()))
}
