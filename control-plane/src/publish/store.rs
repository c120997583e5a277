//! The SQL of published metadata and bundles.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};
use skerry_tuf::Role;

use super::{PublishedBundle, Refusal, RefusalCode};
use crate::db::{DbError, from_word, to_word};

const SELECT: &str = "SELECT model, version, target, index_digest, index_bytes, total_bytes, wire_bytes, published_at_ms, \
                      code, reason FROM bundles LEFT JOIN bundle_refusals USING (target)";
const COLUMNS: &str = "model, version, target, index_digest, index_bytes, total_bytes, wire_bytes, published_at_ms";

pub(super) fn is_empty(conn: &Connection) -> Result<bool, DbError> {
    Ok(conn.query_row("SELECT count(*) = 0 FROM tuf_current", [], |row| row.get(0))?)
}

pub(super) fn put_file(conn: &Connection, name: &str, content: &[u8]) -> Result<(), DbError> {
    let sql = "INSERT INTO tuf_files (name, content) VALUES (?1, ?2)
               ON CONFLICT (name) DO UPDATE SET content = excluded.content";
    conn.execute(sql, params![name, content])?;
    Ok(())
}

/// Stores a root under its published name, and its digest.
pub(super) fn put_root(conn: &Connection, version: u64, content: &[u8]) -> Result<(), DbError> {
    put_file(conn, &format!("{version}.root.json"), content)?;
    conn.execute(
        "INSERT INTO tuf_roots (version, digest) VALUES (?1, ?2)",
        params![version as i64, Digest::of(content).to_hex()],
    )?;
    Ok(())
}

const ROOT_FILE: &str = "SELECT f.content FROM tuf_roots r JOIN tuf_files f ON f.name = r.version || '.root.json'";

pub(super) fn newest_root(conn: &Connection) -> Result<Option<Vec<u8>>, DbError> {
    let sql = format!("{ROOT_FILE} ORDER BY r.version DESC LIMIT 1");
    Ok(conn.query_row(&sql, [], |row| row.get(0)).optional()?)
}

pub(super) fn root_by_digest(conn: &Connection, digest: &Digest) -> Result<Option<Vec<u8>>, DbError> {
    let sql = format!("{ROOT_FILE} WHERE r.digest = ?1");
    Ok(conn.query_row(&sql, [digest.to_hex()], |row| row.get(0)).optional()?)
}

pub(super) fn is_target(conn: &Connection, name: &str) -> Result<bool, DbError> {
    let sql = "SELECT count(*) > 0 FROM bundles WHERE target = ?1";
    Ok(conn.query_row(sql, [name], |row| row.get(0))?)
}

/// Stores a role's newest file under its published name: only the timestamp's name carries no version.
pub(super) fn put(
    conn: &Connection,
    role: Role,
    version: u64,
    content: &[u8],
    expires_at_ms: i64,
) -> Result<(), DbError> {
    let name = match role {
        Role::Timestamp => role.file_name().to_owned(),
        _ => format!("{version}.{}", role.file_name()),
    };
    put_file(conn, &name, content)?;
    conn.execute(
        "INSERT INTO tuf_current (role, version, name, expires_at_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (role) DO UPDATE
         SET version = excluded.version, name = excluded.name, expires_at_ms = excluded.expires_at_ms",
        params![role.as_str(), version as i64, name, expires_at_ms],
    )?;
    Ok(())
}

/// The version of a role's newest file; 0 when there is none.
pub(super) fn version(conn: &Connection, role: Role) -> Result<u64, DbError> {
    let sql = "SELECT version FROM tuf_current WHERE role = ?1";
    let version: Option<i64> = conn.query_row(sql, [role.as_str()], |row| row.get(0)).optional()?;
    Ok(version.unwrap_or(0) as u64)
}

pub(super) fn expires_at_ms(conn: &Connection, role: Role) -> Result<i64, DbError> {
    let sql = "SELECT expires_at_ms FROM tuf_current WHERE role = ?1";
    Ok(conn.query_row(sql, [role.as_str()], |row| row.get(0))?)
}

pub(super) fn current(conn: &Connection, role: Role) -> Result<(u64, Vec<u8>), DbError> {
    let sql = "SELECT c.version, f.content FROM tuf_current c JOIN tuf_files f ON f.name = c.name WHERE c.role = ?1";
    Ok(conn.query_row(sql, [role.as_str()], |row| {
        Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))
    })?)
}

pub(super) fn file(conn: &Connection, name: &str) -> Result<Option<Vec<u8>>, DbError> {
    let sql = "SELECT content FROM tuf_files WHERE name = ?1";
    Ok(conn.query_row(sql, [name], |row| row.get(0)).optional()?)
}

pub(super) fn insert_bundle(conn: &Connection, bundle: &PublishedBundle) -> Result<(), DbError> {
    conn.execute(
        &format!(
            "INSERT INTO bundles ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (model, version) DO UPDATE SET published_at_ms = excluded.published_at_ms"
        ),
        params![
            bundle.model.as_str(),
            bundle.version.0 as i64,
            bundle.target,
            bundle.index.to_string(),
            bundle.index_bytes as i64,
            bundle.total_bytes as i64,
            bundle.wire_bytes as i64,
            bundle.published_at_ms as i64
        ],
    )?;
    Ok(())
}

/// The targets of blocked bundles.
pub(super) fn blocked(conn: &Connection) -> Result<BTreeSet<String>, DbError> {
    let mut statement = conn.prepare("SELECT target FROM bundle_refusals WHERE code = ?1")?;
    let targets = statement.query_map([to_word(&RefusalCode::Blocked)], |row| row.get(0))?;
    Ok(targets.collect::<Result<_, _>>()?)
}

pub(super) fn clear_refusals(conn: &Connection) -> Result<(), DbError> {
    conn.execute("DELETE FROM bundle_refusals", [])?;
    Ok(())
}

pub(super) fn insert_refusal(conn: &Connection, target: &str, refusal: &Refusal) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO bundle_refusals (target, code, reason) VALUES (?1, ?2, ?3)",
        params![target, to_word(&refusal.code), refusal.reason],
    )?;
    Ok(())
}

/// Why the bundle of a target may not be installed.
///
/// # Errors
/// The database's.
pub(crate) fn refusal(conn: &Connection, target: &str) -> Result<Option<Refusal>, DbError> {
    let mut statement = conn.prepare_cached("SELECT code, reason FROM bundle_refusals WHERE target = ?1")?;
    let mut rows = statement.query([target])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Refusal {
        code: from_word(row.get(0)?)?,
        reason: row.get(1)?,
    }))
}

pub(super) fn bundles(conn: &Connection) -> Result<Vec<PublishedBundle>, DbError> {
    let mut statement = conn.prepare(&format!("{SELECT} ORDER BY model, version"))?;
    let rows = statement.query_map([], |row| Ok(bundle_row(row)))?;
    rows.map(|row| row?).collect()
}

pub(super) fn bundle(
    conn: &Connection,
    model: &ModelName,
    version: ModelVersion,
) -> Result<Option<PublishedBundle>, DbError> {
    let sql = format!("{SELECT} WHERE model = ?1 AND version = ?2");
    conn.query_row(&sql, params![model.as_str(), version.0 as i64], |row| {
        Ok(bundle_row(row))
    })
    .optional()?
    .transpose()
}

pub(super) fn is_published(conn: &Connection, index: &Digest) -> Result<bool, DbError> {
    let sql = "SELECT count(*) > 0 FROM bundles WHERE index_digest = ?1";
    Ok(conn.query_row(sql, [index.to_string()], |row| row.get(0))?)
}

fn bundle_row(row: &Row<'_>) -> Result<PublishedBundle, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    Ok(PublishedBundle {
        model: row.get::<_, String>(0)?.parse().map_err(|e| corrupt(&e))?,
        version: ModelVersion(row.get::<_, i64>(1)? as u64),
        target: row.get(2)?,
        index: row.get::<_, String>(3)?.parse().map_err(|e| corrupt(&e))?,
        index_bytes: row.get::<_, i64>(4)? as u64,
        total_bytes: row.get::<_, i64>(5)? as u64,
        wire_bytes: row.get::<_, i64>(6)? as u64,
        published_at_ms: row.get::<_, i64>(7)? as u64,
        refused: match row.get::<_, Option<String>>(8)? {
            Some(code) => Some(Refusal {
                code: from_word(code)?,
                reason: row.get(9)?,
            }),
            None => None,
        },
    })
}
