//! The web console: pages made on the server, embedded in the program, live by server-sent events.
//!
//! Pages are whole without JavaScript; the script only swaps in what a fresh copy of the same page shows. Invariant: no page
//! but the sign-in is shown without a session, and nothing a device or user wrote reaches a page unescaped.

mod account;
mod assets;
mod audit;
mod device_keys;
mod enrolment;
mod error;
mod live;
#[cfg(feature = "oidc")]
mod oidc;
mod pages;
mod rollouts;
mod session;
mod sign_in;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod users;
mod view;

use std::sync::Arc;

use askama::Template;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::Semaphore;

use self::{
    error::PageError,
    session::{Cookie, Sessions},
};
use crate::{
    api::{Problem, load},
    app::App,
};

/// A form here has two short fields.
const FORM_LIMIT_BYTES: usize = 8 * 1024;
/// Pages that may be live at once; above it they stay as they are until reloaded.
const STREAMS_MAX: usize = 256;

/// What every page's answer says to the browser: nothing from elsewhere, no inline script or style, no framing.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // Not `no-referrer`: with it browsers send `Origin: null` with our own forms.
    (header::REFERRER_POLICY, "same-origin"),
];

/// What the console's handlers share.
#[derive(Clone)]
pub(crate) struct Console {
    app: Arc<App>,
    sessions: Arc<Sessions>,
    cookie: Cookie,
    streams: Arc<Semaphore>,
}

/// All routes of the console; it also answers for addresses that nobody knows.
pub(crate) fn router(app: Arc<App>) -> Router {
    let console = Console {
        cookie: Cookie::of(&app.config),
        app,
        sessions: Arc::default(),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
    };
    let protected = Router::new()
        .route("/", get(pages::fleet))
        .route("/devices/{id}", get(pages::device))
        .route("/device-keys/{fingerprint}/approve", post(device_keys::approve))
        .route("/device-keys/{fingerprint}/reject", post(device_keys::reject))
        .route("/device-tokens", post(enrolment::create_token))
        .route("/models", get(pages::models))
        .route("/audit", get(audit::list))
        .route("/rollouts", get(rollouts::list))
        .route("/rollouts/{id}", get(rollouts::show))
        .route("/rollouts/{id}/pause", post(rollouts::pause))
        .route("/rollouts/{id}/resume", post(rollouts::resume))
        .route("/rollouts/{id}/abort", post(rollouts::abort))
        .route("/rollouts/{id}/approve", post(rollouts::approve))
        .route("/account", get(account::show))
        .route("/account/tokens", post(account::create_token))
        .route("/account/tokens/{id}/revoke", post(account::revoke_token))
        .route("/account/password", post(account::set_password))
        .route("/users", get(users::list).post(users::create))
        .route("/users/{name}/role", post(users::set_role))
        .route("/users/{name}/disable", post(users::disable))
        .route("/users/{name}/enable", post(users::enable))
        .route("/console/events", get(live::events))
        .route("/logout", post(sign_in::logout))
        .layer(middleware::from_fn_with_state(
            console.clone(),
            sign_in::require_session,
        ));
    let count = middleware::from_fn_with_state(Arc::clone(&console.app), load::count_address);
    let open = Router::new()
        .route("/login", get(sign_in::form).post(sign_in::login))
        .route("/assets/{file}", get(assets::serve));
    #[cfg(feature = "oidc")]
    let open = open.merge(oidc::routes());
    let open = open.layer(count);
    Router::new()
        .merge(protected)
        .merge(open)
        .fallback(unknown)
        .layer(middleware::map_response(add_headers))
        .layer(DefaultBodyLimit::max(FORM_LIMIT_BYTES))
        .with_state(console)
}

async fn add_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn unknown(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        return PageError::NotFound("There is no such page.".to_owned()).into_response();
    }
    Problem::not_found("there is nothing at this address").into_response()
}

/// A rendered template as an answer.
fn page(template: &impl Template) -> Result<Html<String>, PageError> {
    template.render().map(Html).map_err(PageError::internal)
}
