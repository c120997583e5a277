//! Users: who there is, in which role, and who is shut out.

use rusqlite::Connection;
use serde::Serialize;
use utoipa::ToSchema;

use super::{AccessError, Role, UserName, require_admin, store};
use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
};

/// More people than operate one fleet; it bounds the lists.
pub(super) const USERS_MAX: u64 = 1000;

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    /// Its name.
    #[schema(value_type = String)]
    pub name: UserName,
    /// What it may do.
    pub role: Role,
    /// True if it can sign in with a password.
    pub has_password: bool,
    /// True while it is shut out, with all its tokens.
    pub disabled: bool,
    /// UTC milliseconds.
    pub created_at_ms: u64,
}

/// What to change of a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserChange {
    /// A new role; it counts from the next request on.
    pub role: Option<Role>,
    /// True shuts the user out, with its sessions and tokens; false lets it in again, without the sessions.
    pub disabled: Option<bool>,
}

/// Changes a user.
///
/// # Errors
/// [`AccessError::NoUser`], [`AccessError::LastAdmin`], or the database's; nothing has changed then.
pub async fn change_user(db: &Db, name: UserName, change: UserChange, by: By) -> Result<User, AccessError> {
    db.write(move |conn| {
        let before = require_user(conn, &name)?;
        if let Some(role) = change.role {
            store::set_role(conn, &name, role)?;
        }
        if let Some(disabled) = change.disabled
            && disabled != before.disabled
        {
            store::set_disabled(conn, &name, disabled)?;
        }
        require_admin(conn, by.at_ms)?;
        let after = require_user(conn, &name)?;
        let fact = Fact::new("user.change", format!("user/{name}"))
            .with("role", after.role)
            .with("role_before", before.role)
            .with("disabled", after.disabled)
            .with("disabled_before", before.disabled);
        audit::append(conn, &by, fact)?;
        Ok(after)
    })
    .await
}

/// All users.
///
/// # Errors
/// The database's.
pub async fn users(db: &Db) -> Result<Vec<User>, DbError> {
    let stored = db.read(store::users).await?;
    Ok(stored.into_iter().map(|stored| stored.user).collect())
}

/// One user.
///
/// # Errors
/// [`AccessError::NoUser`], or the database's.
pub async fn user(db: &Db, name: UserName) -> Result<User, AccessError> {
    db.read(move |conn| require_user(conn, &name)).await
}

pub(super) fn require_user(conn: &Connection, name: &UserName) -> Result<User, AccessError> {
    let stored = store::user(conn, name)?;
    Ok(stored.ok_or_else(|| AccessError::NoUser(name.clone()))?.user)
}
