//! The SQL of the audit log.

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::digest::Digest;

use super::{
    Filter,
    chain::{Entry, beginning},
};
use crate::db::{DbError, from_json, to_json};

const COLUMNS: &str = "seq, at_ms, actor, action, object, details, prev_hash, hash";

pub(super) fn origin(conn: &Connection) -> Result<String, DbError> {
    Ok(conn
        .prepare_cached("SELECT origin FROM audit_log")?
        .query_row([], |row| row.get(0))?)
}

/// The number and the hash of the last entry.
pub(super) fn head(conn: &Connection) -> Result<(u64, Digest), DbError> {
    let sql = "SELECT seq, hash FROM audit_entries ORDER BY seq DESC LIMIT 1";
    let last = conn
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, [u8; 32]>(1)?)))
        .optional()?;
    match last {
        Some((seq, hash)) => Ok((seq, Digest::from_bytes(hash))),
        None => Ok((0, beginning(&origin(conn)?))),
    }
}

pub(super) fn insert(conn: &Connection, entry: &Entry) -> Result<(), DbError> {
    let sql = format!("INSERT INTO audit_entries ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
    conn.prepare_cached(&sql)?.execute(params![
        entry.seq as i64,
        entry.at_ms as i64,
        entry.actor,
        entry.action,
        entry.object,
        to_json(&entry.details),
        entry.prev_hash.as_bytes(),
        entry.hash.as_bytes(),
    ])?;
    Ok(())
}

pub(super) fn get(conn: &Connection, seq: u64) -> Result<Option<Entry>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM audit_entries WHERE seq = ?1");
    let found = conn.query_row(&sql, [seq as i64], |row| Ok(entry(row))).optional()?;
    found.transpose()
}

/// Entries that match, the newest first.
pub(super) fn newest(conn: &Connection, filter: &Filter) -> Result<Vec<Entry>, DbError> {
    // `substr` and not LIKE: what a person types has no wildcards.
    let sql = format!(
        "SELECT {COLUMNS} FROM audit_entries
         WHERE seq < ?1 AND (?2 IS NULL OR actor = ?2) AND (?3 IS NULL OR substr(action, 1, length(?3)) = ?3)
           AND (?4 IS NULL OR object = ?4 OR substr(object, 1, length(?4) + 1) = ?4 || '/')
         ORDER BY seq DESC LIMIT ?5"
    );
    let before = filter
        .before
        .map_or(i64::MAX, |seq| i64::try_from(seq).unwrap_or(i64::MAX));
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(
        params![
            before,
            filter.actor,
            filter.action,
            filter.object,
            i64::from(filter.limit)
        ],
        |row| Ok(entry(row)),
    )?;
    rows.map(|row| row?).collect()
}

/// At most `limit` entries after `after`, in order.
pub(super) fn following(conn: &Connection, after: u64, limit: u32) -> Result<Vec<Entry>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM audit_entries WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params![after as i64, limit], |row| Ok(entry(row)))?;
    rows.map(|row| row?).collect()
}

fn entry(row: &Row<'_>) -> Result<Entry, DbError> {
    let text: String = row.get(5)?;
    // Text that we have not written is no error but a changed entry: it gets a detail that no entry has, and so a hash that
    // does not fit.
    let details = from_json(&text).ok().filter(|details| to_json(details) == text);
    let hash = |column| {
        let bytes = <[u8; 32]>::try_from(row.get::<_, Vec<u8>>(column)?);
        Ok::<_, DbError>(Digest::from_bytes(bytes.unwrap_or_default()))
    };
    Ok(Entry {
        seq: row.get::<_, i64>(0)? as u64,
        at_ms: row.get::<_, i64>(1)? as u64,
        actor: row.get(2)?,
        action: row.get(3)?,
        object: row.get(4)?,
        details: details.unwrap_or_else(|| [("unreadable".to_owned(), text)].into()),
        prev_hash: hash(6)?,
        hash: hash(7)?,
    })
}

/// The newest checkpoint: its size and its envelope.
pub(super) fn checkpoint(conn: &Connection) -> Result<Option<(u64, Vec<u8>)>, DbError> {
    let sql = "SELECT size, envelope FROM audit_checkpoints ORDER BY size DESC LIMIT 1";
    let row = conn.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)));
    Ok(row.optional()?)
}

/// All checkpoints of at most `size` entries, the oldest first.
pub(super) fn checkpoints(conn: &Connection, size: u64) -> Result<Vec<Vec<u8>>, DbError> {
    let mut statement = conn.prepare_cached("SELECT envelope FROM audit_checkpoints WHERE size <= ?1 ORDER BY size")?;
    let rows = statement.query_map([size as i64], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn insert_checkpoint(conn: &Connection, size: u64, at_ms: u64, envelope: &[u8]) -> Result<(), DbError> {
    let sql = "INSERT INTO audit_checkpoints (size, at_ms, envelope) VALUES (?1, ?2, ?3)";
    conn.execute(sql, params![size as i64, at_ms as i64, envelope])?;
    Ok(())
}
