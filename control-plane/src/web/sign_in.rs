//! Signing in and out, and the guards of everything else.

use askama::Template;
use axum::{
    Form,
    extract::{FromRequest, MatchedPath, Request, State, rejection::FormRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{Html, IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use skerry_shared::digest::Digest;
use zeroize::Zeroizing;

use super::{
    Console, PageError, page,
    session::{SESSION_SECONDS, Visit},
};
use crate::{
    access::{self, Grant, Role, SignIn, roles},
    api::{
        auth,
        load::{self, Client},
    },
    app::now_ms,
};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    error: Option<String>,
    /// True when people may sign in through an identity provider.
    has_provider: bool,
}

impl LoginPage {
    fn new(console: &Console, error: Option<String>) -> LoginPage {
        let has_provider = has_provider(console);
        LoginPage { error, has_provider }
    }
}

#[cfg(feature = "oidc")]
fn has_provider(console: &Console) -> bool {
    console.app.oidc.is_some()
}

#[cfg(not(feature = "oidc"))]
fn has_provider(_: &Console) -> bool {
    false
}

pub(super) async fn form(State(console): State<Console>) -> Result<Html<String>, PageError> {
    page(&LoginPage::new(&console, None))
}

/// A user with a password, or an API token.
#[derive(Deserialize)]
pub(super) struct LoginForm {
    #[serde(default)]
    user: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    token: String,
}

pub(super) async fn login(
    State(console): State<Console>,
    Client(from): Client,
    headers: HeaderMap,
    form: Result<Form<LoginForm>, FormRejection>,
) -> Result<Response, PageError> {
    require_same_origin(&headers)?;
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    let (app, now) = (&console.app, now_ms());
    let password = Zeroizing::new(form.password);
    let token = Zeroizing::new(form.token);
    let signed_in = if form.user.is_empty() {
        // The token comes before the wait: whoever sends wrong ones must not keep a right one out. A token has 256 random
        // bits, so that none is found by trying.
        match access::token_grant(&app.core, token.trim(), now).await? {
            Some(grant) => SignIn::Granted(grant),
            None => match app.access.wrong_token(from, now) {
                Ok(()) => SignIn::Wrong,
                Err(ms) => SignIn::Wait { ms },
            },
        }
    } else {
        app.access.sign_in(&app.core, (&form.user, password), from, now).await?
    };
    let (status, error) = match signed_in {
        SignIn::Granted(grant) => {
            app.access.record_sign_in(&app.core, &grant.actor, from, now).await?;
            let id = open_session(&console, grant, &headers, now)?;
            return Ok(with_cookie(&console, Redirect::to("/"), &id, SESSION_SECONDS));
        }
        SignIn::Wrong if form.user.is_empty() => (StatusCode::UNAUTHORIZED, "This API token is not known.".to_owned()),
        SignIn::Wrong => (
            StatusCode::UNAUTHORIZED,
            "User and password do not belong together.".to_owned(),
        ),
        SignIn::Wait { ms } => return Err(PageError::Wait(ms)),
    };
    Ok((status, page(&LoginPage::new(&console, Some(error)))?).into_response())
}

/// Opens a new session and returns its id: a session id from before the sign-in, which somebody else may know, is worth nothing after it.
pub(super) fn open_session(
    console: &Console,
    grant: Grant,
    headers: &HeaderMap,
    now_ms: u64,
) -> Result<String, PageError> {
    if let Some(before) = session_id(console, headers) {
        console.sessions.close(before);
    }
    let name = grant.actor.name;
    let id = console
        .sessions
        .open(grant.credential, now_ms)
        .map_err(|error| PageError::internal(std::io::Error::other(error.to_string())))?;
    tracing::info!(actor = name, "a browser has signed in");
    Ok(id)
}

/// A form that needs nothing but to come from our own page.
#[derive(Deserialize)]
struct CsrfForm {
    csrf: String,
}

pub(super) async fn logout(
    State(console): State<Console>,
    headers: HeaderMap,
    Confirmed(_): Confirmed,
) -> Result<Response, PageError> {
    if let Some(id) = session_id(&console, &headers) {
        console.sessions.close(id);
    }
    Ok(with_cookie(&console, Redirect::to("/login"), "", 0))
}

/// An answer that gives the browser its session.
pub(super) fn with_cookie(console: &Console, answer: impl IntoResponse, id: &str, seconds: u64) -> Response {
    let (name, secure) = (console.cookie.name(), console.cookie.attribute());
    let cookie = format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    let mut response = answer.into_response();
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
    let session = session_id(&console, request.headers()).and_then(|id| console.sessions.get(id, now_ms()));
    let Some(session) = session else {
        return Ok(Redirect::to("/login").into_response());
    };
    let Some(grant) = access::grant(&console.app.core, &session.credential, now_ms()).await? else {
        return Ok(Redirect::to("/login").into_response());
    };
    if let Err(problem) = load::count_credential(&console.app, &grant.credential) {
        return Ok(problem.into_response());
    }
    let path = request.extensions().get::<MatchedPath>();
    let needs = path.map_or(Role::Admin, |path| roles::needed(request.method(), path.as_str()));
    if grant.actor.role < needs {
        return Err(PageError::Role {
            needs,
            has: grant.actor.role,
        });
    }
    request.extensions_mut().insert(grant.actor.clone());
    request.extensions_mut().insert(Visit {
        csrf: session.csrf,
        expires_at_ms: session.expires_at_ms,
        grant: grant.clone(),
    });
    Ok(auth::until_over(&console.app, grant, needs, next.run(request).await).into_response())
}

fn session_id<'a>(console: &Console, headers: &'a HeaderMap) -> Option<&'a str> {
    cookie(headers, console.cookie.name())
}

/// A cookie's value.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    cookies
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find_map(|(name, value)| (name == wanted).then_some(value))
}

/// A press of a button: a form that comes from a page of this session and has nothing else in it.
pub(super) struct Confirmed(pub(super) Visit);

impl FromRequest<Console> for Confirmed {
    type Rejection = PageError;

    async fn from_request(request: Request, console: &Console) -> Result<Self, PageError> {
        let visit = request.extensions().get::<Visit>().cloned();
        let visit = visit.ok_or(PageError::Forbidden)?;
        let headers = request.headers().clone();
        require_same_origin(&headers)?;
        let form = Form::<CsrfForm>::from_request(request, console).await;
        let Form(form) = form.map_err(|_| PageError::Forbidden)?;
        check_csrf(&visit, &headers, &form.csrf)?;
        Ok(Confirmed(visit))
    }
}

/// Refuses a form with more in it that does not come from a page of this session.
pub(super) fn check_csrf(visit: &Visit, headers: &HeaderMap, csrf: &str) -> Result<(), PageError> {
    require_same_origin(headers)?;
    // Digests are compared, so that a comparison that stops early tells nothing.
    if Digest::of(csrf.as_bytes()) != Digest::of(visit.csrf.as_bytes()) {
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
