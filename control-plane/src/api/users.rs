//! Routes of users.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use zeroize::Zeroizing;

use super::{
    Problem,
    extract::{CalledBy, Caller, JsonBody, UrlPath},
};
use crate::{
    access::{self, Role, User, UserChange, UserName},
    app::{App, Change},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(change))
        .routes(routes!(set_password))
        .routes(routes!(whoami))
}

#[derive(Serialize, ToSchema)]
struct UserList {
    users: Vec<User>,
}

/// Lists users
#[utoipa::path(get, path = "/users", operation_id = "list_users", tag = "access",
    responses((status = 200, description = "All users", body = UserList)))]
async fn list(State(app): State<Arc<App>>) -> Result<Json<UserList>, Problem> {
    let users = access::users(&app.core).await?;
    Ok(Json(UserList { users }))
}

/// A user to make.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewUser)]
struct CreateBody {
    /// Its name: 1 to 64 of `a-z`, `0-9` and `-_.@+`.
    #[schema(value_type = String)]
    name: UserName,
    /// What it may do.
    role: Role,
    /// At least 12 characters; without one the user has tokens only.
    password: Option<String>,
}

/// Makes a user
#[utoipa::path(post, path = "/users", operation_id = "create_user", tag = "access",
    request_body = CreateBody,
    responses(
        (status = 201, description = "Made", body = User),
        (status = 409, description = "The name is taken"),
        (status = 422, description = "The name or the password is refused"),
    ))]
async fn create(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<User>), Problem> {
    let who = (body.name, body.role);
    let password = body.password.map(Zeroizing::new);
    let user = app.access.create_user(&app.core, who, password, by).await?;
    tracing::info!(user.name = %user.name, user.role = %user.role, "a user is made");
    app.changes.send(Change::Access);
    Ok((StatusCode::CREATED, Json(user)))
}

/// Changes to a user.
#[derive(Deserialize, ToSchema)]
#[schema(as = UserChange)]
struct ChangeBody {
    /// A new role; it counts at once, for sessions and tokens too.
    role: Option<Role>,
    /// True ends all that the user has signed in with, and keeps it out.
    disabled: Option<bool>,
}

/// Changes a user's role, or shuts it out
#[utoipa::path(patch, path = "/users/{name}", operation_id = "change_user", tag = "access",
    params(("name" = String, Path, description = "The user")),
    request_body = ChangeBody,
    responses(
        (status = 200, description = "The user after the change", body = User),
        (status = 404, description = "There is no such user"),
        (status = 409, description = "Nobody could manage users afterwards"),
    ))]
async fn change(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(name): UrlPath<String>,
    JsonBody(body): JsonBody<ChangeBody>,
) -> Result<Json<User>, Problem> {
    let change = UserChange {
        role: body.role,
        disabled: body.disabled,
    };
    let user = access::change_user(&app.core, parse_name(&name)?, change, by).await?;
    app.changes.send(Change::Access);
    Ok(Json(user))
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewPassword)]
struct PasswordBody {
    /// At least 12 characters.
    password: String,
}

/// Sets a user's password
///
/// It ends the user's sessions; tokens go on.
#[utoipa::path(put, path = "/users/{name}/password", operation_id = "set_password", tag = "access",
    params(("name" = String, Path, description = "The user")),
    request_body = PasswordBody,
    responses(
        (status = 200, description = "The user", body = User),
        (status = 404, description = "There is no such user"),
        (status = 422, description = "The password is refused"),
    ))]
async fn set_password(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(name): UrlPath<String>,
    JsonBody(body): JsonBody<PasswordBody>,
) -> Result<Json<User>, Problem> {
    let (name, password) = (parse_name(&name)?, Zeroizing::new(body.password));
    let user = app.access.set_password(&app.core, name, password, by).await?;
    app.changes.send(Change::Access);
    Ok(Json(user))
}

fn parse_name(text: &str) -> Result<UserName, Problem> {
    text.parse().map_err(|_| Problem::not_found("there is no such user"))
}

/// Who the API token belongs to.
#[derive(Serialize, ToSchema)]
struct Whoami {
    /// As it stands in the audit log: `alice/ci` for a token of alice, `alice:ci` for one that stands alone.
    name: String,
    /// The user that the token acts for.
    #[schema(value_type = Option<String>)]
    user: Option<UserName>,
    /// What it may do now.
    role: Role,
}

/// Says who the API token belongs to, and what it may do
#[utoipa::path(get, path = "/whoami", operation_id = "whoami", tag = "access",
    responses((status = 200, description = "Who calls", body = Whoami)))]
async fn whoami(Caller(actor): Caller) -> Json<Whoami> {
    Json(Whoami {
        name: actor.name,
        user: actor.user,
        role: actor.role,
    })
}
