//! The admin's page of users.

use askama::Template;
use axum::{
    Extension, Form,
    extract::{Path, State, rejection::FormRejection},
    http::HeaderMap,
    response::{Html, Redirect},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    Console, PageError, page,
    pages::Frame,
    session::Visit,
    sign_in::{Confirmed, check_csrf},
    view::access::UserRow,
};
use crate::{
    access::{self, Role, UserChange, UserName},
    app::{Change, now_ms},
};

#[derive(Template)]
#[template(path = "users.html")]
struct UsersPage {
    frame: Frame,
    users: Vec<UserRow>,
    roles: [Role; 4],
}

pub(super) async fn list(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
) -> Result<Html<String>, PageError> {
    let users = access::users(&console.app.core).await?;
    let frame = Frame::new("users", "", visit);
    page(&UsersPage {
        users: users.iter().map(|user| UserRow::new(user, frame.now_ms)).collect(),
        roles: Role::ALL,
        frame,
    })
}

#[derive(Deserialize)]
pub(super) struct UserForm {
    csrf: String,
    name: String,
    role: Role,
    password: String,
}

pub(super) async fn create(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    form: Result<Form<UserForm>, FormRejection>,
) -> Result<Redirect, PageError> {
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    check_csrf(&visit, &headers, &form.csrf)?;
    let password = Some(Zeroizing::new(form.password)).filter(|password| !password.is_empty());
    let name: UserName = form.name.parse().map_err(access::AccessError::from)?;
    let (app, by) = (&console.app, visit.grant.actor.by(now_ms()));
    app.access
        .create_user(&app.core, (name, form.role), password, by)
        .await?;
    Ok(changed(&console))
}

#[derive(Deserialize)]
pub(super) struct RoleForm {
    csrf: String,
    role: Role,
}

pub(super) async fn set_role(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(name): Path<String>,
    headers: HeaderMap,
    form: Result<Form<RoleForm>, FormRejection>,
) -> Result<Redirect, PageError> {
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    check_csrf(&visit, &headers, &form.csrf)?;
    let change = UserChange {
        role: Some(form.role),
        disabled: None,
    };
    apply(&console, &visit, &name, change).await
}

pub(super) async fn disable(
    State(console): State<Console>,
    Path(name): Path<String>,
    Confirmed(visit): Confirmed,
) -> Result<Redirect, PageError> {
    apply(&console, &visit, &name, shut_out(true)).await
}

pub(super) async fn enable(
    State(console): State<Console>,
    Path(name): Path<String>,
    Confirmed(visit): Confirmed,
) -> Result<Redirect, PageError> {
    apply(&console, &visit, &name, shut_out(false)).await
}

fn shut_out(disabled: bool) -> UserChange {
    UserChange {
        role: None,
        disabled: Some(disabled),
    }
}

async fn apply(console: &Console, visit: &Visit, name: &str, change: UserChange) -> Result<Redirect, PageError> {
    let missing = |_| PageError::NotFound("There is no such user.".to_owned());
    let by = visit.grant.actor.by(now_ms());
    access::change_user(&console.app.core, name.parse().map_err(missing)?, change, by).await?;
    Ok(changed(console))
}

fn changed(console: &Console) -> Redirect {
    console.app.changes.send(Change::Access);
    Redirect::to("/users")
}
