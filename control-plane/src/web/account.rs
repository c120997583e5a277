//! The page of whoever has signed in: its API tokens and its password. An admin sees all tokens here.

use askama::Template;
use axum::{
    Extension, Form,
    extract::{Path, State, rejection::FormRejection},
    http::HeaderMap,
    response::{Html, IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    Console, PageError, page,
    pages::Frame,
    session::Visit,
    sign_in::{Confirmed, check_csrf},
    view::access::TokenRow,
};
use crate::{
    access::{self, NewToken, Owner, Role, SignIn},
    api::load::Client,
    app::{Change, now_ms},
};

/// A quarter, as on the command line.
const TOKEN_DAYS: u64 = 90;

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    frame: Frame,
    tokens: Vec<TokenRow>,
    /// The roles that a new token can have.
    roles: Vec<Role>,
    has_password: bool,
    /// A token that has just been made: it is on this page only.
    made: Option<String>,
    days: u64,
}

pub(super) async fn show(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
) -> Result<Html<String>, PageError> {
    render(&console, visit, None).await
}

async fn render(console: &Console, visit: Visit, made: Option<String>) -> Result<Html<String>, PageError> {
    let actor = visit.grant.actor.clone();
    let tokens = access::tokens(&console.app.core, &actor).await?;
    let has_password = match &actor.user {
        Some(user) => access::user(&console.app.core, user.clone()).await?.has_password,
        None => false,
    };
    let frame = Frame::new("account", "", visit);
    page(&AccountPage {
        tokens: tokens.iter().map(|token| TokenRow::new(token, frame.now_ms)).collect(),
        roles: Role::ALL.into_iter().filter(|role| *role <= actor.role).collect(),
        has_password,
        frame,
        made,
        days: TOKEN_DAYS,
    })
}

#[derive(Deserialize)]
pub(super) struct TokenForm {
    csrf: String,
    name: String,
    role: Role,
    days: u64,
}

pub(super) async fn create_token(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<Html<String>, PageError> {
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    check_csrf(&visit, &headers, &form.csrf)?;
    let new = NewToken {
        name: form.name,
        role: Some(form.role),
        owner: Owner::Maker,
        ttl_ms: Some(form.days.saturating_mul(86_400_000)),
    };
    let made = access::create_token(&console.app.core, &visit.grant, new, now_ms()).await?;
    console.app.changes.send(Change::Access);
    render(&console, visit, Some(made.text.to_string())).await
}

pub(super) async fn revoke_token(
    State(console): State<Console>,
    Path(id): Path<String>,
    Confirmed(visit): Confirmed,
) -> Result<Redirect, PageError> {
    let missing = |_| PageError::NotFound("There is no such token.".to_owned());
    let id = id.parse().map_err(missing)?;
    access::revoke_token(&console.app.core, &visit.grant.actor, id, now_ms()).await?;
    console.app.changes.send(Change::Access);
    Ok(Redirect::to("/account"))
}

#[derive(Deserialize)]
pub(super) struct PasswordForm {
    csrf: String,
    current: String,
    password: String,
}

pub(super) async fn set_password(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Client(from): Client,
    headers: HeaderMap,
    form: Result<Form<PasswordForm>, FormRejection>,
) -> Result<Response, PageError> {
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    check_csrf(&visit, &headers, &form.csrf)?;
    let (current, password) = (Zeroizing::new(form.current), Zeroizing::new(form.password));
    let Some(user) = visit.grant.actor.user.clone() else {
        return Err(PageError::Refused("Only users have passwords.".to_owned()));
    };
    // A page that was left open must not be enough to take the account over.
    let (app, now) = (&console.app, now_ms());
    match app
        .access
        .sign_in(&app.core, (user.as_str(), current), from, now)
        .await?
    {
        SignIn::Granted(_) => {}
        SignIn::Wrong => return Err(PageError::Refused("The present password is another one.".to_owned())),
        SignIn::Wait { ms } => return Err(PageError::Wait(ms)),
    }
    let by = visit.grant.actor.by(now);
    app.access.set_password(&app.core, user, password, by).await?;
    app.changes.send(Change::Access);
    // The session has ended with the old password.
    Ok(Redirect::to("/login").into_response())
}
