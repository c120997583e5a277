//! The SQL of users and tokens.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Credential, Role, Token, TokenId, User, UserName};
use crate::db::{DbError, from_word, to_word};

/// A user with what only a sign-in needs.
pub(super) struct StoredUser {
    pub(super) user: User,
    pub(super) password: Option<String>,
    pub(super) epoch: u64,
}

/// A token with what only its check needs.
pub(super) struct StoredToken {
    pub(super) token: Token,
    pub(super) hash: [u8; 32],
    /// The owner's role and whether it is disabled.
    pub(super) owner: Option<(Role, bool)>,
}

const USER: &str = "SELECT name, role, password, disabled, epoch, created_at_ms FROM users";
const TOKEN: &str = "SELECT t.id, t.hash, t.name, t.owner, t.person, t.role, t.created_at_ms, t.expires_at_ms,
    t.last_used_at_ms, u.role, u.disabled FROM access_tokens t LEFT JOIN users u ON u.name = t.owner";

pub(super) fn user(conn: &Connection, name: &UserName) -> Result<Option<StoredUser>, DbError> {
    let mut statement = conn.prepare_cached(&format!("{USER} WHERE name = ?1"))?;
    let found = statement.query_row([name.as_str()], |row| Ok(parse_user(row)));
    found.optional()?.transpose()
}

pub(super) fn users(conn: &Connection) -> Result<Vec<StoredUser>, DbError> {
    let mut statement = conn.prepare_cached(&format!("{USER} ORDER BY name"))?;
    let rows = statement.query_map([], |row| Ok(parse_user(row)))?;
    rows.map(|row| row?).collect()
}

fn parse_user(row: &Row<'_>) -> Result<StoredUser, DbError> {
    let password: Option<String> = row.get(2)?;
    Ok(StoredUser {
        user: User {
            name: parse_name(row.get(0)?)?,
            role: from_word(row.get(1)?)?,
            has_password: password.is_some(),
            disabled: row.get(3)?,
            created_at_ms: row.get::<_, i64>(5)? as u64,
        },
        password,
        epoch: row.get::<_, i64>(4)? as u64,
    })
}

fn parse_name(text: String) -> Result<UserName, DbError> {
    text.parse()
        .map_err(|error: super::InvalidName| DbError::Corrupt(error.to_string()))
}

pub(super) fn insert_user(conn: &Connection, user: &User, password: Option<&str>) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO users (name, role, password, created_at_ms) VALUES (?1, ?2, ?3, ?4)",
        params![
            user.name.as_str(),
            to_word(&user.role),
            password,
            user.created_at_ms as i64
        ],
    )?;
    Ok(())
}

pub(super) fn set_role(conn: &Connection, name: &UserName, role: Role) -> Result<(), DbError> {
    let sql = "UPDATE users SET role = ?2 WHERE name = ?1";
    conn.execute(sql, params![name.as_str(), to_word(&role)])?;
    Ok(())
}

/// Sets whether a user is shut out. Its sessions end and do not come back.
pub(super) fn set_disabled(conn: &Connection, name: &UserName, disabled: bool) -> Result<(), DbError> {
    let sql = "UPDATE users SET disabled = ?2, epoch = epoch + 1 WHERE name = ?1";
    conn.execute(sql, params![name.as_str(), disabled])?;
    Ok(())
}

/// Sets a password. The user's sessions end: whoever has one may not know the new password.
pub(super) fn set_password(conn: &Connection, name: &UserName, password: &str) -> Result<(), DbError> {
    let sql = "UPDATE users SET password = ?2, epoch = epoch + 1 WHERE name = ?1";
    conn.execute(sql, params![name.as_str(), password])?;
    Ok(())
}

#[cfg(feature = "oidc")]
pub(super) fn user_of_subject(conn: &Connection, subject: &str) -> Result<Option<StoredUser>, DbError> {
    let mut statement = conn.prepare_cached(&format!("{USER} WHERE subject = ?1"))?;
    let found = statement.query_row([subject], |row| Ok(parse_user(row)));
    found.optional()?.transpose()
}

/// Says who the identity provider knows a user as.
#[cfg(feature = "oidc")]
pub(super) fn set_subject(conn: &Connection, name: &UserName, subject: &str) -> Result<(), DbError> {
    let sql = "UPDATE users SET subject = ?2 WHERE name = ?1";
    conn.execute(sql, params![name.as_str(), subject])?;
    Ok(())
}

pub(super) fn count_users(conn: &Connection) -> Result<u64, DbError> {
    Ok(conn.query_row("SELECT count(*) FROM users", [], |row| row.get::<_, i64>(0))? as u64)
}

pub(super) fn token(conn: &Connection, id: &TokenId) -> Result<Option<StoredToken>, DbError> {
    let mut statement = conn.prepare_cached(&format!("{TOKEN} WHERE t.id = ?1"))?;
    let found = statement.query_row([id.as_str()], |row| Ok(parse_token(row)));
    found.optional()?.transpose()
}

pub(super) fn tokens(conn: &Connection) -> Result<Vec<StoredToken>, DbError> {
    let mut statement = conn.prepare_cached(&format!("{TOKEN} ORDER BY t.owner, t.created_at_ms, t.id"))?;
    let rows = statement.query_map([], |row| Ok(parse_token(row)))?;
    rows.map(|row| row?).collect()
}

fn parse_token(row: &Row<'_>) -> Result<StoredToken, DbError> {
    let at = |column| Ok::<_, DbError>(row.get::<_, Option<i64>>(column)?.map(|at| at as u64));
    let owner_role: Option<String> = row.get(9)?;
    let owner_disabled: Option<bool> = row.get(10)?;
    Ok(StoredToken {
        token: Token {
            id: row
                .get::<_, String>(0)?
                .parse()
                .map_err(|error: super::InvalidTokenId| DbError::Corrupt(error.to_string()))?,
            name: row.get(2)?,
            owner: row.get::<_, Option<String>>(3)?.map(parse_name).transpose()?,
            person: row.get(4)?,
            role: from_word(row.get(5)?)?,
            created_at_ms: row.get::<_, i64>(6)? as u64,
            expires_at_ms: at(7)?,
            last_used_at_ms: at(8)?,
        },
        hash: row.get(1)?,
        owner: owner_role
            .map(from_word)
            .transpose()?
            .map(|role| (role, owner_disabled.unwrap_or(true))),
    })
}

pub(super) fn insert_token(conn: &Connection, token: &Token, hash: &[u8; 32]) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO access_tokens (id, hash, name, owner, person, role, created_at_ms, expires_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            token.id.as_str(),
            hash,
            token.name,
            token.owner.as_ref().map(UserName::as_str),
            token.person,
            to_word(&token.role),
            token.created_at_ms as i64,
            token.expires_at_ms.map(|at| at as i64),
        ],
    )?;
    Ok(())
}

pub(super) fn delete_token(conn: &Connection, id: &TokenId) -> Result<(), DbError> {
    conn.execute("DELETE FROM access_tokens WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

pub(super) fn set_last_used(conn: &Connection, id: &TokenId, at_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE access_tokens SET last_used_at_ms = ?2 WHERE id = ?1";
    conn.execute(sql, params![id.as_str(), at_ms as i64])?;
    Ok(())
}

pub(super) fn count_tokens(conn: &Connection) -> Result<u64, DbError> {
    Ok(conn.query_row("SELECT count(*) FROM access_tokens", [], |row| row.get::<_, i64>(0))? as u64)
}

/// Forgets tokens whose time is over, so that they do not count.
pub(super) fn delete_expired(conn: &Connection, now_ms: u64) -> Result<(), DbError> {
    let sql = "DELETE FROM access_tokens WHERE expires_at_ms <= ?1";
    conn.execute(sql, [now_ms as i64])?;
    Ok(())
}

/// Ways in for an admin: passwords, and tokens that are valid at this time.
pub(super) fn ways_in_for_admins(conn: &Connection, now_ms: u64) -> Result<u64, DbError> {
    let sql = "SELECT (SELECT count(*) FROM users
            WHERE role = 'admin' AND NOT disabled AND (password IS NOT NULL OR subject IS NOT NULL))
        + (SELECT count(*) FROM access_tokens t LEFT JOIN users u ON u.name = t.owner
            WHERE t.role = 'admin' AND (t.expires_at_ms IS NULL OR t.expires_at_ms > ?1)
            AND (t.owner IS NULL OR (u.role = 'admin' AND NOT u.disabled)))";
    Ok(conn.query_row(sql, [now_ms as i64], |row| row.get::<_, i64>(0))? as u64)
}

/// What a credential stands for now: its token or its user.
pub(super) enum Holder {
    Token(StoredToken),
    User(StoredUser),
}

pub(super) fn holder(conn: &Connection, credential: &Credential) -> Result<Option<Holder>, DbError> {
    match credential {
        Credential::Token(id) => Ok(token(conn, id)?.map(Holder::Token)),
        Credential::SignIn { user: name, epoch } => {
            let user = user(conn, name)?.filter(|stored| stored.epoch == *epoch);
            Ok(user.map(Holder::User))
        }
    }
}
