//! The guard in front of the API: who calls, whether the role suffices, and that an answer ends when the permission does.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use futures_util::StreamExt;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Problem, load};
use crate::{
    access::{self, Grant, Role, roles},
    app::{App, Change, now_ms},
};

/// Lets a request through that carries a valid token of a sufficient role.
pub(super) async fn require_token(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let Some(token) = bearer.and_then(|value| value.strip_prefix("Bearer ")) else {
        load::count_network(&app, request.extensions())?;
        return Err(unauthorized(
            "this call needs the header `Authorization: Bearer <API token>`",
        ));
    };
    let Some(grant) = access::token_grant(&app.core, token.trim(), now_ms()).await? else {
        load::count_network(&app, request.extensions())?;
        return Err(unauthorized("the API token is not known, or over"));
    };
    load::count_credential(&app, &grant.credential)?;
    let path = request.extensions().get::<MatchedPath>();
    let path = path.and_then(|path| path.as_str().strip_prefix("/api/v1"));
    // A route without a path is none that anybody has listed.
    let needs = path.map_or(Role::Admin, |path| roles::needed(request.method(), path));
    if grant.actor.role < needs {
        return Err(Problem::forbidden(&grant.actor, needs));
    }
    request.extensions_mut().insert(grant.actor.clone());
    request.extensions_mut().insert(grant.clone());
    until_over(&app, grant, needs, next.run(request).await)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "not authorized", detail)
}

/// Cuts an answer that goes on when its grant ends: an event stream, a log that is followed.
///
/// # Errors
/// When too many go on already.
pub(crate) fn until_over(app: &Arc<App>, grant: Grant, needs: Role, answer: Response) -> Result<Response, Problem> {
    if answer.body().size_hint().exact().is_some() {
        return Ok(answer);
    }
    let Some(place) = app.access.load.stream() else {
        return Err(Problem::busy("too many answers go on already"));
    };
    let (parts, body) = answer.into_parts();
    let over = over(Arc::clone(app), grant, needs);
    let over = Box::pin(async move {
        over.await;
        drop(place);
    });
    let body = Body::from_stream(body.into_data_stream().take_until(over));
    Ok(Response::from_parts(parts, body))
}

/// Returns when a grant has ended, or its role has become too small.
async fn over(app: Arc<App>, grant: Grant, needs: Role) {
    // Listening begins before the first look, so that no change falls in between.
    let mut changes = app.changes.subscribe();
    loop {
        let ends_at_ms = match access::grant(&app.core, &grant.credential, now_ms()).await {
            Ok(Some(now)) if now.actor.role >= needs => now.ends_at_ms,
            Ok(_) => return,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(error, "cannot look whether a stream may go on, it ends");
                return;
            }
        };
        let end = async {
            match ends_at_ms {
                Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(now_ms()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = access_change(&mut changes) => {}
            () = end => {}
        }
    }
}

async fn access_change(changes: &mut Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Access) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The sender lives in the app, which the stream holds.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
