//! The stream of changes: what moved, so that a driver looks again instead of asking on and on.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use skerry_shared::id::{DeviceId, ModelName, ModelVersion, RolloutId, RunId};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::app::{App, Change};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(events))
}

/// Something that moved.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Moved {
    /// Listening has begun, or changes were missed: look at everything.
    Everything,
    /// A device: its connection, labels, desired or reported state.
    Device {
        #[schema(value_type = String)]
        id: DeviceId,
    },
    /// A registered model.
    Model {
        #[schema(value_type = String)]
        name: ModelName,
    },
    /// A published bundle.
    Bundle {
        #[schema(value_type = String)]
        model: ModelName,
        #[schema(value_type = u64)]
        version: ModelVersion,
    },
    /// A training run: its status or metrics.
    Run {
        #[schema(value_type = String)]
        id: RunId,
    },
    /// A rollout, or one of its devices.
    Rollout {
        #[schema(value_type = u64)]
        id: RolloutId,
    },
    /// Telemetry of some devices is stored.
    Telemetry,
    /// Root or targets metadata: a bundle may be forbidden now.
    Metadata,
    /// A user or an API token.
    Access,
    /// A key that may enrol without a token, or asks to.
    DeviceKeys,
}

impl From<Result<Change, BroadcastStreamRecvError>> for Moved {
    fn from(change: Result<Change, BroadcastStreamRecvError>) -> Moved {
        match change {
            Ok(Change::Device(id)) => Moved::Device { id },
            Ok(Change::Model(name)) => Moved::Model { name },
            Ok(Change::Bundle(model, version)) => Moved::Bundle { model, version },
            Ok(Change::Run(id)) => Moved::Run { id },
            Ok(Change::Rollout(id)) => Moved::Rollout { id },
            Ok(Change::Telemetry) => Moved::Telemetry,
            Ok(Change::Metadata) => Moved::Metadata,
            Ok(Change::Access) => Moved::Access,
            Ok(Change::DeviceKeys) => Moved::DeviceKeys,
            Err(BroadcastStreamRecvError::Lagged(_)) => Moved::Everything,
        }
    }
}

/// Says what moves, as server-sent events
///
/// The first event comes at once. An event names what has changed and not how: read it again.
#[utoipa::path(get, path = "/events", operation_id = "events", tag = "system",
    responses((status = 200, description = "The stream; it ends with the control plane", body = Moved, content_type = "text/event-stream")))]
async fn events(State(app): State<Arc<App>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let later = BroadcastStream::new(app.changes.subscribe()).map(Moved::from);
    let ended = app.shutdown.clone().cancelled_owned();
    let moved = stream::once(std::future::ready(Moved::Everything))
        .chain(later)
        .take_until(ended);
    let event = |moved: Moved| Event::default().json_data(moved).unwrap_or_default();
    Sse::new(moved.map(move |moved| Ok(event(moved)))).keep_alive(KeepAlive::default())
}
