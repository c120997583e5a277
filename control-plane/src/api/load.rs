//! The guards against too much: requests a second, requests at once, and the time that one may take.
//!
//! Sizes are limited where bodies are read. Invariant: a request that waits for its client holds a place no longer than its
//! time limit.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{Extensions, Method, StatusCode, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::Problem;
use crate::{
    access::{Credential, Network},
    app::App,
};

/// Where a request comes from. A proxy's `X-Forwarded-For` is not asked: anybody can write one.
pub(crate) fn network(extensions: &Extensions) -> Network {
    let connected = extensions.get::<ConnectInfo<SocketAddr>>();
    // Without a connection there is one client only: a test.
    let address = connected.map(|ConnectInfo(address)| address.ip());
    address.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()).into()
}

/// Where a request comes from, for handlers.
pub(crate) struct Client(pub(crate) Network);

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Client, Infallible> {
        Ok(Client(network(&parts.extensions)))
    }
}

/// Counts a request of somebody who has not signed in.
pub(crate) fn count_network(app: &App, extensions: &Extensions) -> Result<(), Problem> {
    let counted = app.access.load.count_network(network(extensions));
    counted.map_err(Problem::too_many)
}

/// Counts a request of somebody who has.
pub(crate) fn count_credential(app: &App, credential: &Credential) -> Result<(), Problem> {
    let counted = app.access.load.count_credential(credential);
    counted.map_err(Problem::too_many)
}

/// Counts the requests of routes that are open to anybody.
pub(crate) async fn count_address(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    count_network(&app, request.extensions())?;
    Ok(next.run(request).await)
}

/// Holds every request to a place and a time.
pub(crate) async fn bound(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(place) = app.access.load.request() else {
        return Problem::busy("too many requests are being answered").into_response();
    };
    let limits = &app.config.requests;
    let seconds = if is_upload(&request) {
        limits.upload_seconds
    } else {
        limits.request_seconds
    };
    let limit = Duration::from_secs(seconds.get().into());
    // An answer that goes on has its own limit: it has begun by then.
    let answer = tokio::time::timeout(limit, next.run(request)).await;
    drop(place);
    answer.unwrap_or_else(|_| {
        let title = "the request took too long";
        Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", title, "").into_response()
    })
}

/// True for the routes whose bodies are files.
fn is_upload(request: &Request) -> bool {
    let path = request.uri().path();
    let file = path.starts_with("/api/v1/blobs/") || path.starts_with("/api/v1/models/");
    file && matches!(*request.method(), Method::PUT | Method::POST)
}
