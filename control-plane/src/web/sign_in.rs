//! Signing in and out, and the guards of everything else.

use askama::Template;
use axum::{
    Form,
    extract::{MatchedPath, Request, State, rejection::FormRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use skerry_shared::digest::Digest;

use super::{
    Console, PageError, page,
    session::{SESSION_SECONDS, Session},
};
use crate::{
    access::{self, Role, roles},
    api::auth,
    app::now_ms,
};

const COOKIE: &str = "skerry_session";

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    error: Option<&'static str>,
}

pub(super) async fn form() -> Result<Html<String>, PageError> {
    page(&LoginPage { error: None })
}

#[derive(Deserialize)]
pub(super) struct LoginForm {
    token: String,
}

pub(super) async fn login(
    State(console): State<Console>,
    headers: HeaderMap,
    form: Result<Form<LoginForm>, FormRejection>,
) -> Result<Response, PageError> {
    require_same_origin(&headers)?;
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    let now = now_ms();
    let grant = access::token_grant(&console.app.core, form.token.trim(), now).await?;
    // The token comes before the limit, which all browsers share: whoever sends wrong ones must not keep a right one out.
    // A token has 256 random bits, so that none is found by trying.
    let Some(grant) = grant else {
        let (status, error) = if console.attempts.may_try(now) {
            (StatusCode::UNAUTHORIZED, "This API token is not known.")
        } else {
            (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many wrong tokens. Try again in a minute.",
            )
        };
        console.attempts.failed(now);
        return Ok((status, page(&LoginPage { error: Some(error) })?).into_response());
    };
    let id = console
        .sessions
        .open(grant.credential, now)
        .map_err(|error| PageError::internal(std::io::Error::other(error.to_string())))?;
    tracing::info!("a browser has signed in");
    Ok(with_cookie(Redirect::to("/"), &id, SESSION_SECONDS))
}

/// A form that needs nothing but to come from our own page.
#[derive(Deserialize)]
pub(super) struct CsrfForm {
    csrf: String,
}

pub(super) async fn logout(
    State(console): State<Console>,
    session: axum::Extension<Session>,
    headers: HeaderMap,
    form: Result<Form<CsrfForm>, FormRejection>,
) -> Result<Response, PageError> {
    check_form(&session, &headers, form)?;
    if let Some(id) = session_id(&headers) {
        console.sessions.close(id);
    }
    Ok(with_cookie(Redirect::to("/login"), "", 0))
}

/// `Secure` is missing on purpose: the control plane itself speaks plain HTTP, and browsers would drop the cookie.
fn with_cookie(redirect: Redirect, id: &str, seconds: u64) -> Response {
    let cookie = format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}");
    let mut response = redirect.into_response();
    let value = HeaderValue::from_str(&cookie).expect("an id in hex is a valid header");
    response.headers_mut().insert(header::SET_COOKIE, value);
    response
}

/// Lets a request through that has a session whose token or user still counts and has the route's role; sends the others to the sign-in.
pub(super) async fn require_session(
    State(console): State<Console>,
    mut request: Request,
    next: Next,
) -> Result<Response, PageError> {
    let session = session_id(request.headers()).and_then(|id| console.sessions.get(id, now_ms()));
    let Some(session) = session else {
        return Ok(Redirect::to("/login").into_response());
    };
    let Some(grant) = access::grant(&console.app.core, &session.credential, now_ms()).await? else {
        return Ok(Redirect::to("/login").into_response());
    };
    let path = request.extensions().get::<MatchedPath>();
    let needs = path.map_or(Role::Admin, |path| roles::needed(request.method(), path.as_str()));
    if grant.actor.role < needs {
        return Err(PageError::Role {
            needs,
            has: grant.actor.role,
        });
    }
    request.extensions_mut().insert(grant.actor.clone());
    request.extensions_mut().insert(grant.clone());
    request.extensions_mut().insert(session);
    Ok(auth::until_over(&console.app, grant, needs, next.run(request).await))
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// Refuses a form that does not come from a page of this session.
pub(super) fn check_form(
    session: &Session,
    headers: &HeaderMap,
    form: Result<Form<CsrfForm>, FormRejection>,
) -> Result<(), PageError> {
    require_same_origin(headers)?;
    let Form(form) = form.map_err(|_| PageError::Forbidden)?;
    // Digests are compared, so that a comparison that stops early tells nothing.
    if Digest::of(form.csrf.as_bytes()) != Digest::of(session.csrf.as_bytes()) {
        return Err(PageError::Forbidden);
    }
    Ok(())
}

/// `Sec-Fetch-Site` is the browser's own word, but only where the connection is trustworthy; `Origin` comes with every form.
/// A client that sends neither is no browser, and no other site can use it.
fn require_same_origin(headers: &HeaderMap) -> Result<(), PageError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().unwrap_or("?"))
    };
    let same = match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some() && authority == text("host")
        }
        (None, None) => true,
    };
    if same { Ok(()) } else { Err(PageError::Forbidden) }
}
