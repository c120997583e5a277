//! API tokens: random, stored as digests, shown once.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::Response,
};
use rusqlite::params;
use skerry_shared::digest::Digest;

use super::Problem;
use crate::{
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

/// True when an API token with this digest exists.
pub(crate) async fn is_known(db: &Db, token: Digest) -> Result<bool, DbError> {
    db.read(move |conn| {
        let sql = "SELECT count(*) > 0 FROM api_tokens WHERE hash = ?1";
        Ok(conn.query_row(sql, [token.as_bytes()], |row| row.get(0))?)
    })
    .await
}

/// Lets a request through that carries a known token.
pub(super) async fn require_token(
    State(app): State<Arc<App>>,
    request: Request,
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
    if !is_known(&app.core, Digest::of(token.trim().as_bytes())).await? {
        return Err(unauthorized("the API token is not known"));
    }
    Ok(next.run(request).await)
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "not authorized", detail)
}
