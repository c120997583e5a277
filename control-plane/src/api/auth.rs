//! API tokens: random, stored as digests, shown once.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use rusqlite::{OptionalExtension, params};
use skerry_shared::digest::Digest;

use super::Problem;
use crate::{
    access::{Actor, Role},
    app::{App, random_hex},
    db::{Db, DbError},
};

/// Makes the first token if there is none.
pub(crate) async fn ensure_first_token(db: &Db, now_ms: u64) -> anyhow::Result<Option<String>> {
    let token = format!("skp_{}", random_hex::<32>()?);
    let hash = Digest::of(token.as_bytes());
    let made = db
        .write(move |conn| {
            let none: bool = conn.query_row("SELECT count(*) = 0 FROM api_tokens", [], |row| row.get(0))?;
            if none {
                conn.execute(
                    "INSERT INTO api_tokens (hash, name, created_at_ms) VALUES (?1, 'first', ?2)",
                    params![hash.as_bytes(), now_ms as i64],
                )?;
            }
            Ok::<_, DbError>(none)
        })
        .await?;
    Ok(made.then_some(token))
}

/// Who has the API token with this digest, if anybody.
pub(crate) async fn actor(db: &Db, token: Digest) -> Result<Option<Actor>, DbError> {
    db.read(move |conn| {
        let sql = "SELECT name FROM api_tokens WHERE hash = ?1";
        let name = conn.query_row(sql, [token.as_bytes()], |row| row.get(0)).optional()?;
        let role = Role::Admin;
        Ok(name.map(|name| Actor { name, role }))
    })
    .await
}

/// Lets a request through that carries a known token.
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
        return Err(unauthorized(
            "this call needs the header `Authorization: Bearer <API token>`",
        ));
    };
    let Some(actor) = actor(&app.core, Digest::of(token.trim().as_bytes())).await? else {
        return Err(unauthorized("the API token is not known"));
    };
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "not authorized", detail)
}
