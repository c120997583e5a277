//! The stream that tells pages to look again. It says what moved, never what it is now: the page asks for that.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use tokio_stream::wrappers::BroadcastStream;

use super::{Console, PageError, session::Visit};
use crate::app::{Change, now_ms};

/// Tells a page that anything may have moved: at the beginning, and after it was too slow.
const ALL: &str = "all";

pub(super) async fn events(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    let permit = console
        .streams
        .try_acquire_owned()
        .map_err(|_| PageError::Busy("Too many pages are live."))?;
    let changes = BroadcastStream::new(console.app.changes.subscribe());
    let words = changes.map(|change| change.map_or_else(|_| ALL.to_owned(), |change| words(&change)));
    let shutdown = console.app.shutdown.clone();
    let left = Duration::from_millis(visit.expires_at_ms.saturating_sub(now_ms()));
    let ended = async move {
        tokio::select! {
            () = shutdown.cancelled_owned() => {}
            () = tokio::time::sleep(left) => {}
        }
        drop(permit);
    };
    let events = stream::once(std::future::ready(ALL.to_owned()))
        .chain(words)
        .take_until(Box::pin(ended));
    let events = events.map(|words| Ok(Event::default().data(words)));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// A change as pages watch for it: its kind, or its kind and name.
fn words(change: &Change) -> String {
    match change {
        Change::Device(device) => format!("device:{device}"),
        Change::Model(model) => format!("model:{model}"),
        Change::Bundle(model, version) => format!("bundle:{model}:{version}"),
        Change::Run(run) => format!("run:{run}"),
        Change::Rollout(rollout) => format!("rollout:{rollout}"),
        Change::Telemetry => "telemetry".to_owned(),
        Change::Metadata => "metadata".to_owned(),
        Change::Access => "access".to_owned(),
        Change::DeviceKeys => "device-keys".to_owned(),
    }
}
