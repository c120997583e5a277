//! Routes of rollouts.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use skerry_shared::id::{ModelName, ModelVersion, RolloutId};
use tokio_stream::wrappers::BroadcastStream;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    extract::{CalledBy, Caller, JsonBody, UrlPath},
};
use crate::{
    app::{App, Change, now_ms},
    devices::Selector,
    rollouts::{self, NewRollout, Rollout, RolloutError, approval, group::GroupRule},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(events))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(abort))
        .routes(routes!(approve))
}

#[derive(Serialize, ToSchema)]
struct RolloutList {
    rollouts: Vec<Rollout>,
}

/// Lists rollouts, the newest first
#[utoipa::path(get, path = "/rollouts", operation_id = "list_rollouts", tag = "rollouts",
    responses((status = 200, description = "All rollouts", body = RolloutList)))]
async fn list(State(app): State<Arc<App>>) -> Result<Json<RolloutList>, Problem> {
    let rollouts = rollouts::list(&app.core).await?;
    Ok(Json(RolloutList { rollouts }))
}

/// Shows a rollout with its groups and devices
#[utoipa::path(get, path = "/rollouts/{id}", operation_id = "show_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The rollout", body = Rollout),
        (status = 404, description = "There is no such rollout"),
    ))]
async fn show(State(app): State<Arc<App>>, UrlPath(id): UrlPath<u64>) -> Result<Json<Rollout>, Problem> {
    Ok(Json(rollouts::get(&app.core, RolloutId(id)).await?))
}

/// A rollout to create.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewRollout)]
struct CreateBody {
    /// The registered model.
    #[schema(value_type = String)]
    model: ModelName,
    /// The version; its bundle must be published.
    #[schema(value_type = u64)]
    version: ModelVersion,
    /// Which devices, by label; all without it.
    #[serde(default)]
    #[schema(value_type = String)]
    selector: Selector,
    /// The deployment groups, in order.
    #[schema(min_items = 1, max_items = 32)]
    groups: Vec<GroupRule>,
    /// How long the version serves on probation on each device.
    probation_ms: Option<u64>,
    /// How long a device may say nothing, probation not counted.
    silent_after_seconds: Option<u64>,
    /// True lets the devices go below the lowest version of the model that signed metadata names; never to a blocked one.
    #[serde(default)]
    allow_downgrade: bool,
    /// False makes a draft.
    #[serde(default = "yes")]
    start: bool,
}

fn yes() -> bool {
    true
}

/// Creates a rollout
#[utoipa::path(post, path = "/rollouts", operation_id = "create_rollout", tag = "rollouts",
    request_body = CreateBody,
    responses(
        (status = 201, description = "Created; started unless it is a draft or waits for an approval", body = Rollout),
        (status = 404, description = "No bundle of this version is published"),
        (status = 409, description = "Another rollout of the model is not over on one of the devices"),
        (status = 422, description = "A group or the selector is refused, or chooses no device"),
    ))]
async fn create(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<Rollout>), Problem> {
    let new = NewRollout {
        model: body.model,
        version: body.version,
        selector: body.selector,
        groups: body.groups,
        probation_ms: body.probation_ms,
        allow_downgrade: body.allow_downgrade,
        silent_after_ms: body.silent_after_seconds.map(|seconds| seconds.saturating_mul(1000)),
        start: body.start,
    };
    let rollout = rollouts::create(&app.core, &app.config.rollouts, new, by).await?;
    tracing::info!(rollout.id = rollout.id.0, model.name = %rollout.model, model.version = %rollout.version, "a rollout is created");
    app.changes.send(Change::Rollout(rollout.id));
    Ok((StatusCode::CREATED, Json(rollout)))
}

/// Holds a rollout
///
/// No further devices are told; those under way go on.
#[utoipa::path(post, path = "/rollouts/{id}/pause", operation_id = "pause_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The rollout after the change", body = Rollout),
        (status = 404, description = "There is no such rollout"),
        (status = 409, description = "Its state does not allow it"),
    ))]
async fn pause(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(id): UrlPath<u64>,
) -> Result<Json<Rollout>, Problem> {
    changed(&app, rollouts::pause(&app.core, RolloutId(id), by).await)
}

/// Starts a draft, or goes on with a paused rollout
///
/// A group that could prove nothing counts as accepted by that.
#[utoipa::path(post, path = "/rollouts/{id}/resume", operation_id = "resume_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The rollout after the change", body = Rollout),
        (status = 404, description = "There is no such rollout"),
        (status = 409, description = "Its state does not allow it"),
    ))]
async fn resume(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(id): UrlPath<u64>,
) -> Result<Json<Rollout>, Problem> {
    changed(
        &app,
        rollouts::resume(&app.core, &app.config.rollouts, RolloutId(id), by).await,
    )
}

/// Stops a rollout
///
/// Devices that have not finished return to what they ran.
#[utoipa::path(post, path = "/rollouts/{id}/abort", operation_id = "abort_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The rollout after the change", body = Rollout),
        (status = 404, description = "There is no such rollout"),
        (status = 409, description = "Its state does not allow it"),
    ))]
async fn abort(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(id): UrlPath<u64>,
) -> Result<Json<Rollout>, Problem> {
    changed(&app, rollouts::abort(&app.core, RolloutId(id), by).await)
}

/// Approves a rollout that reaches production
///
/// Only a user who is not its author can; it begins or goes on then, unless it was made as a draft.
#[utoipa::path(post, path = "/rollouts/{id}/approve", operation_id = "approve_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The rollout after the change", body = Rollout),
        (status = 403, description = "The caller made it, or is no user"),
        (status = 404, description = "There is no such rollout"),
        (status = 409, description = "It does not wait for an approval"),
    ))]
async fn approve(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    UrlPath(id): UrlPath<u64>,
) -> Result<Json<Rollout>, Problem> {
    let policy = &app.config.rollouts;
    changed(
        &app,
        approval::approve(&app.core, policy, RolloutId(id), &actor, now_ms()).await,
    )
}

fn changed(app: &App, rollout: Result<Rollout, RolloutError>) -> Result<Json<Rollout>, Problem> {
    let rollout = rollout?;
    app.changes.send(Change::Rollout(rollout.id));
    Ok(Json(rollout))
}

/// Streams a rollout: as it is now, and again at each change
///
/// Server-sent events; the data of each is the rollout.
#[utoipa::path(get, path = "/rollouts/{id}/events", operation_id = "watch_rollout", tag = "rollouts",
    params(("id" = u64, Path, description = "The rollout")),
    responses(
        (status = 200, description = "The stream", content_type = "text/event-stream", body = Rollout),
        (status = 404, description = "There is no such rollout"),
    ))]
async fn events(
    State(app): State<Arc<App>>,
    UrlPath(id): UrlPath<u64>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let id = RolloutId(id);
    // Listening begins before the first look, so that no change falls in between.
    let changes = BroadcastStream::new(app.changes.subscribe());
    let first = rollouts::get(&app.core, id).await?;
    let ended = app.shutdown.clone().cancelled_owned();
    let later = changes
        // A listener that was too slow looks again.
        .filter(move |change| std::future::ready(!matches!(change, Ok(other) if *other != Change::Rollout(id))))
        .then(move |_| {
            let app = Arc::clone(&app);
            async move { rollouts::get(&app.core, id).await.ok() }
        })
        .filter_map(std::future::ready);
    let events = stream::once(std::future::ready(first)).chain(later).take_until(ended);
    let event = |rollout: Rollout| Event::default().json_data(rollout).unwrap_or_else(|_| Event::default());
    Ok(Sse::new(events.map(move |rollout| Ok(event(rollout)))).keep_alive(KeepAlive::default()))
}
