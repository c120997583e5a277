//! Signing in through an identity provider: the way there and the way back.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde::Deserialize;
use skerry_shared::digest::Digest;

use super::{Console, PageError, page, session::SESSION_SECONDS, sign_in};
use crate::{
    access::oidc::{CALLBACK_PATH, Oidc, OidcError},
    api::load::Client,
    app::{Change, now_ms},
};

/// The two ways.
pub(super) fn routes() -> Router<Console> {
    Router::new()
        .route("/login/oidc", get(begin))
        .route(CALLBACK_PATH, get(callback))
}

impl From<OidcError> for PageError {
    fn from(error: OidcError) -> PageError {
        match error {
            OidcError::UnknownState => {
                PageError::Refused("This sign-in was not begun here, or it took too long.".to_owned())
            }
            OidcError::Busy => PageError::Busy("Too many people are signing in."),
            OidcError::Declined
            | OidcError::NoName
            | OidcError::NoRole(_)
            | OidcError::Taken(_)
            | OidcError::ShutOut(_) => PageError::Refused(format!("You cannot sign in: {error}.")),
            OidcError::Access(error) => error.into(),
            OidcError::Db(error) => error.into(),
            OidcError::Config { .. } | OidcError::Provider { .. } => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::new(error)), "a sign-in failed");
                PageError::Refused("The identity provider's answer is refused; the log says why.".to_owned())
            }
        }
    }
}

fn provider(console: &Console) -> Result<&Arc<Oidc>, PageError> {
    let none = || PageError::NotFound("No identity provider is configured.".to_owned());
    console.app.oidc.as_ref().ok_or_else(none)
}

async fn begin(State(console): State<Console>, Client(from): Client) -> Result<Response, PageError> {
    let begun = provider(&console)?.begin(from, now_ms()).await?;
    let (name, secure) = (console.cookie.state_name(), console.cookie.attribute());
    // Lax: it must come back with the provider's redirect.
    let cookie = format!(
        "{name}={}; Path=/; HttpOnly; SameSite=Lax; Max-Age=600{secure}",
        begun.state
    );
    let mut response = Redirect::to(&begun.url).into_response();
    let value = HeaderValue::from_str(&cookie).map_err(PageError::internal)?;
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(response)
}

#[derive(Deserialize)]
struct Back {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
}

/// Whoever comes back gets a page and no redirect: with a redirect the browser would still count it as the provider's doing,
/// and keep the new session's strict cookie to itself.
#[derive(Template)]
#[template(path = "signed_in.html")]
struct SignedInPage;

async fn callback(
    State(console): State<Console>,
    Client(from): Client,
    headers: HeaderMap,
    back: Result<Query<Back>, QueryRejection>,
) -> Result<Response, PageError> {
    let Query(back) = back.map_err(|_| PageError::Malformed)?;
    let own = sign_in::cookie(&headers, console.cookie.state_name()).unwrap_or_default();
    // Digests are compared, so that a comparison that stops early tells nothing.
    if own.is_empty() || Digest::of(own.as_bytes()) != Digest::of(back.state.as_bytes()) {
        return Err(OidcError::UnknownState.into());
    }
    let (app, now) = (&console.app, now_ms());
    let finished = provider(&console)?
        .finish(&app.core, (&back.state, back.code), from, now)
        .await;
    if let Err(OidcError::NoRole(name) | OidcError::Taken(name) | OidcError::ShutOut(name)) = &finished {
        app.access.record_refused(&app.core, name.as_str(), from, now).await?;
    }
    let grant = finished?;
    // The role may be another one than before, and streams that are open hold to the one before.
    app.changes.send(Change::Access);
    app.access.record_sign_in(&app.core, &grant.actor, from, now).await?;
    let id = sign_in::open_session(&console, grant, &headers, now)?;
    Ok(sign_in::with_cookie(
        &console,
        page(&SignedInPage)?,
        &id,
        SESSION_SECONDS,
    ))
}
