//! Routes of API tokens. An admin sees and makes all, everybody else their own.

use std::sync::Arc;

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    extract::{Caller, JsonBody, UrlPath},
};
use crate::{
    access::{self, Grant, NewToken, Owner, Role, Token, UserName},
    app::{App, Change, now_ms},
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
}

#[derive(Serialize, ToSchema)]
struct TokenList {
    tokens: Vec<Token>,
}

/// Lists API tokens: all for an admin, for others their own
#[utoipa::path(get, path = "/tokens", operation_id = "list_tokens", tag = "access",
    responses((status = 200, description = "The tokens, without their secrets", body = TokenList)))]
async fn list(State(app): State<Arc<App>>, Caller(actor): Caller) -> Result<Json<TokenList>, Problem> {
    let tokens = access::tokens(&app.core, &actor).await?;
    Ok(Json(TokenList { tokens }))
}

/// An API token to make.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewApiToken)]
struct CreateBody {
    /// What it is for.
    name: String,
    /// What it may do; without it, as much as whoever it acts for.
    role: Option<Role>,
    /// The user that it acts for; whoever calls without it.
    #[schema(value_type = Option<String>)]
    user: Option<UserName>,
    /// True for a token that acts for no user, for a program. Admins only.
    #[serde(default)]
    alone: bool,
    /// How long it can be used: at most 366 days; without it until it is revoked. It never outlives the token that made it.
    #[schema(minimum = 1, maximum = 31_622_400)]
    ttl_seconds: Option<u64>,
}

/// A new API token.
#[derive(Serialize, ToSchema)]
struct NewApiToken {
    #[serde(flatten)]
    token: Token,
    /// The token itself; it is not shown again.
    secret: String,
}

/// Makes an API token
#[utoipa::path(post, path = "/tokens", operation_id = "create_token", tag = "access",
    request_body = CreateBody,
    responses(
        (status = 201, description = "The token with its secret, which is not shown again", body = NewApiToken),
        (status = 403, description = "The role is more than the one behind it, or the token would be somebody else's"),
        (status = 404, description = "There is no such user"),
        (status = 422, description = "The name or the life is refused"),
    ))]
async fn create(
    State(app): State<Arc<App>>,
    Extension(grant): Extension<Grant>,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<(StatusCode, Json<NewApiToken>), Problem> {
    let owner = match (body.user, body.alone) {
        (None, false) => Owner::Maker,
        (None, true) => Owner::Nobody,
        (Some(user), false) => Owner::User(user),
        (Some(_), true) => {
            return Err(Problem::refused("a token acts for a user or stands alone, not both"));
        }
    };
    let new = NewToken {
        name: body.name,
        role: body.role,
        owner,
        ttl_ms: body.ttl_seconds.map(|seconds| seconds.saturating_mul(1000)),
    };
    let made = access::create_token(&app.core, &grant, new, now_ms()).await?;
    tracing::info!(token.id = %made.token.id, token.role = %made.token.role, "an API token is made");
    app.changes.send(Change::Access);
    let answer = NewApiToken {
        token: made.token,
        secret: made.text.to_string(),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Ends an API token
///
/// Streams and console sessions that it has opened end too.
#[utoipa::path(delete, path = "/tokens/{id}", operation_id = "revoke_token", tag = "access",
    params(("id" = String, Path, description = "The token's public part")),
    responses(
        (status = 204, description = "Ended"),
        (status = 404, description = "There is no such token, or it is not the caller's"),
        (status = 409, description = "Nobody could manage users afterwards"),
    ))]
async fn revoke(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    UrlPath(id): UrlPath<String>,
) -> Result<StatusCode, Problem> {
    let id = id.parse().map_err(|_| Problem::not_found("there is no such token"))?;
    access::revoke_token(&app.core, &actor, id, now_ms()).await?;
    app.changes.send(Change::Access);
    Ok(StatusCode::NO_CONTENT)
}
