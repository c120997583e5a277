//! The SQL of keys that may enrol without a token.

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::{digest::Digest, id::DeviceId};

use super::{
    Credential, Enrolment,
    keys::{Asked, Asking, DeviceKey, KeyState, NewKey},
};
use crate::db::{DbError, from_json, to_json};

const COLUMNS: &str = "fingerprint, state, device, labels, asked, created_at_ms";

pub(super) fn upsert(conn: &Connection, key: &NewKey, state: KeyState, now_ms: u64) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO device_keys (fingerprint, state, device, labels, asked, created_at_ms)
         VALUES (?1, ?2, ?3, ?4, '{}', ?5)
         ON CONFLICT (fingerprint) DO UPDATE SET state = ?2, device = ?3, labels = ?4, expires_at_ms = NULL",
        params![
            key.fingerprint.as_bytes(),
            state.as_str(),
            key.device.as_ref().map(DeviceId::as_str),
            to_json(&key.labels),
            now_ms as i64,
        ],
    )?;
    Ok(())
}

pub(super) fn get(conn: &Connection, fingerprint: &Digest) -> Result<Option<DeviceKey>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM device_keys WHERE fingerprint = ?1");
    let mut statement = conn.prepare_cached(&sql)?;
    statement
        .query_row([fingerprint.as_bytes()], |row| Ok(read(row)))
        .optional()?
        .transpose()
}

/// Oldest first; pending ones only until they expire.
pub(super) fn list(conn: &Connection, state: Option<KeyState>, now_ms: u64) -> Result<Vec<DeviceKey>, DbError> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM device_keys
         WHERE (?1 IS NULL OR state = ?1) AND (state != 'pending' OR expires_at_ms > ?2)
         ORDER BY created_at_ms, fingerprint"
    ))?;
    let rows = statement.query_map(params![state.map(KeyState::as_str), now_ms as i64], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

/// How many wait, once those are forgotten that have not asked for too long.
pub(super) fn waiting(conn: &Connection, now_ms: u64) -> Result<u64, DbError> {
    let forget = "DELETE FROM device_keys WHERE state = 'pending' AND expires_at_ms <= ?1";
    conn.execute(forget, [now_ms as i64])?;
    let sql = "SELECT count(*) FROM device_keys WHERE state = 'pending'";
    Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64)
}

/// How many of a network wait.
pub(super) fn waiting_of(conn: &Connection, network: &str) -> Result<u64, DbError> {
    let sql = "SELECT count(*) FROM device_keys WHERE state = 'pending' AND network = ?1";
    Ok(conn.query_row(sql, [network], |row| row.get::<_, i64>(0))? as u64)
}

/// The network of which the most wait, and how many.
pub(super) fn fullest_network(conn: &Connection) -> Result<Option<(String, u64)>, DbError> {
    let sql = "SELECT network, count(*) FROM device_keys WHERE state = 'pending'
               GROUP BY network ORDER BY count(*) DESC, network LIMIT 1";
    let found = conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)));
    Ok(found.optional()?)
}

/// Forgets the pending key of a network that came last.
pub(super) fn forget_newest_of(conn: &Connection, network: &str) -> Result<(), DbError> {
    let sql = "DELETE FROM device_keys WHERE fingerprint = (
                   SELECT fingerprint FROM device_keys WHERE state = 'pending' AND network = ?1
                   ORDER BY created_at_ms DESC, fingerprint LIMIT 1)";
    conn.execute(sql, [network])?;
    Ok(())
}

pub(super) fn ask(conn: &Connection, asking: &Asking, now_ms: u64, expires_at_ms: u64) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO device_keys (fingerprint, state, labels, asked, created_at_ms, expires_at_ms, network)
         VALUES (?1, 'pending', '{}', ?2, ?3, ?4, ?5)",
        params![
            asking.fingerprint.as_bytes(),
            to_json(&asking.asked),
            now_ms as i64,
            expires_at_ms as i64,
            asking.network.to_string(),
        ],
    )?;
    Ok(())
}

pub(super) fn ask_again(
    conn: &Connection,
    fingerprint: &Digest,
    asked: &Asked,
    expires_at_ms: u64,
) -> Result<(), DbError> {
    let sql = "UPDATE device_keys SET asked = ?2, expires_at_ms = ?3 WHERE fingerprint = ?1";
    conn.execute(
        sql,
        params![fingerprint.as_bytes(), to_json(asked), expires_at_ms as i64],
    )?;
    Ok(())
}

/// True when the id that a new device takes was given to another key, whose device has not come yet.
pub(super) fn is_kept_for_another(conn: &Connection, enrolment: &Enrolment) -> Result<bool, DbError> {
    let own = match &enrolment.credential {
        Credential::Key(fingerprint) => Some(fingerprint.as_bytes()),
        Credential::Token(_) => None,
    };
    let sql = "SELECT count(*) > 0 FROM device_keys
               WHERE device = ?1 AND state IN ('listed', 'approved') AND fingerprint IS NOT ?2";
    Ok(conn.query_row(sql, params![enrolment.device.as_str(), own], |row| row.get(0))?)
}

fn read(row: &Row<'_>) -> Result<DeviceKey, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let state: String = row.get(1)?;
    let state = KeyState::parse(&state).ok_or_else(|| DbError::Corrupt(format!("a device key is `{state}`")))?;
    let device = row.get::<_, Option<String>>(2)?.map(|id| id.parse()).transpose();
    Ok(DeviceKey {
        fingerprint: Digest::from_bytes(row.get(0)?),
        state,
        device: device.map_err(|error: skerry_shared::id::InvalidId| corrupt(&error))?,
        labels: from_json(&row.get::<_, String>(3)?)?,
        asked: from_json(&row.get::<_, String>(4)?)?,
        created_at_ms: row.get::<_, i64>(5)? as u64,
    })
}
