//! The SQL of devices and their enrolment tokens.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::{
    desired::{BundleAssignment, Reported},
    digest::Digest,
    id::{DeviceId, Generation, ModelName},
};

use super::{Admission, Device, DeviceError, Enrolment, Recorded};
use crate::db::{DbError, from_json, to_json};

const COLUMNS: &str = "id, labels, platform, agent_version, connected, enrolled_at_ms, last_seen_at_ms, generation, desired, reported, \
     certificate_not_after_ms, revoked_at_ms, duplicate_seen_at_ms";

pub(super) fn insert_token(
    conn: &Connection,
    hash: &Digest,
    labels: &BTreeMap<String, String>,
    uses: u32,
    now_ms: u64,
    expires_at_ms: u64,
) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO device_tokens (hash, labels, uses_left, created_at_ms, expires_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            hash.as_bytes(),
            to_json(labels),
            uses,
            now_ms as i64,
            expires_at_ms as i64
        ],
    )?;
    Ok(())
}

pub(super) fn enroll_by_token(
    conn: &Connection,
    enrolment: &Enrolment,
    hash: &Digest,
    now_ms: u64,
) -> Result<(), DeviceError> {
    let token = conn
        .query_row(
            "SELECT labels, uses_left, expires_at_ms FROM device_tokens WHERE hash = ?1",
            [hash.as_bytes()],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)),
        )
        .optional()
        .map_err(DbError::from)?;
    let (labels, uses_left, expires_at_ms) = token.ok_or(DeviceError::UnknownToken)?;
    if now_ms as i64 >= expires_at_ms {
        return Err(DeviceError::ExpiredToken);
    }
    if is_repeated(conn, enrolment, hash)? {
        return enroll_again(conn, enrolment);
    }
    if uses_left < 1 {
        return Err(DeviceError::UsedToken);
    }
    insert_new(conn, enrolment, &labels, Some(hash), now_ms)?;
    conn.execute(
        "UPDATE device_tokens SET uses_left = uses_left - 1 WHERE hash = ?1",
        [hash.as_bytes()],
    )
    .map_err(DbError::from)?;
    Ok(())
}

pub(super) fn enroll_by_key(
    conn: &Connection,
    enrolment: &Enrolment,
    fingerprint: &Digest,
    now_ms: u64,
) -> Result<(), DeviceError> {
    let labels = super::keys::labels_of(conn, fingerprint)?;
    match device_of_key(conn, &enrolment.public_key)? {
        // One key, one device: who was revoked cannot come back under another name.
        Some(device) if device != enrolment.device => match admission(conn, &device)? {
            Some(known) if known.revoked => Err(DeviceError::Revoked(device)),
            _ => Err(DeviceError::Exists(device)),
        },
        Some(_) => enroll_again(conn, enrolment),
        None => insert_new(conn, enrolment, &labels, None, now_ms),
    }
}

/// A device that has enrolled, and perhaps never read the answer.
fn enroll_again(conn: &Connection, enrolment: &Enrolment) -> Result<(), DeviceError> {
    if admission(conn, &enrolment.device)?.is_some_and(|known| known.revoked) {
        return Err(DeviceError::Revoked(enrolment.device.clone()));
    }
    conn.execute(
        "UPDATE devices SET certificate_not_after_ms = ?2, platform = ?3, agent_version = ?4 WHERE id = ?1",
        params![
            enrolment.device.as_str(),
            enrolment.certificate_not_after_ms as i64,
            enrolment.platform.as_str(),
            enrolment.agent_version,
        ],
    )
    .map_err(DbError::from)?;
    Ok(())
}

fn insert_new(
    conn: &Connection,
    enrolment: &Enrolment,
    labels: &str,
    token: Option<&Digest>,
    now_ms: u64,
) -> Result<(), DeviceError> {
    if get(conn, &enrolment.device)?.is_some() || super::key_store::is_kept_for_another(conn, enrolment)? {
        return Err(DeviceError::Exists(enrolment.device.clone()));
    }
    // Whoever was revoked does not come back under another name, by a token either.
    if let Some(device) = device_of_key(conn, &enrolment.public_key)?
        && admission(conn, &device)?.is_some_and(|known| known.revoked)
    {
        return Err(DeviceError::Revoked(device));
    }
    conn.execute(
        "INSERT INTO devices (id, labels, platform, agent_version, public_key, certificate_not_after_ms, enrolled_at_ms, token_hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            enrolment.device.as_str(),
            labels,
            enrolment.platform.as_str(),
            enrolment.agent_version,
            enrolment.public_key,
            enrolment.certificate_not_after_ms as i64,
            now_ms as i64,
            token.map(Digest::as_bytes),
        ],
    )
    .map_err(DbError::from)?;
    Ok(())
}

/// The device that has enrolled with this key.
pub(super) fn device_of_key(conn: &Connection, key: &str) -> Result<Option<DeviceId>, DbError> {
    let sql = "SELECT id FROM devices WHERE public_key = ?1 ORDER BY enrolled_at_ms LIMIT 1";
    let id = conn.query_row(sql, [key], |row| row.get::<_, String>(0)).optional()?;
    parsed(id)
}

/// The device with this key's digest that has access.
pub(super) fn device_of_fingerprint(conn: &Connection, fingerprint: &Digest) -> Result<Option<DeviceId>, DbError> {
    let mut statement = conn.prepare_cached("SELECT id, public_key FROM devices WHERE revoked_at_ms IS NULL")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let key: String = row.get(1)?;
        if hex::decode(key).is_ok_and(|key| Digest::of(&key) == *fingerprint) {
            return parsed(Some(row.get(0)?));
        }
    }
    Ok(None)
}

fn parsed(id: Option<String>) -> Result<Option<DeviceId>, DbError> {
    let id = id.map(|id| id.parse()).transpose();
    id.map_err(|error: skerry_shared::id::InvalidId| DbError::Corrupt(error.to_string()))
}

pub(super) fn set_duplicate(conn: &Connection, id: &DeviceId, now_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE devices SET duplicate_seen_at_ms = ?2 WHERE id = ?1";
    conn.execute(sql, params![id.as_str(), now_ms as i64])?;
    Ok(())
}

/// True when this device has enrolled with this token and this key before.
fn is_repeated(conn: &Connection, enrolment: &Enrolment, token: &Digest) -> Result<bool, DbError> {
    let sql = "SELECT count(*) > 0 FROM devices WHERE id = ?1 AND token_hash = ?2 AND public_key = ?3";
    let known = params![enrolment.device.as_str(), token.as_bytes(), enrolment.public_key];
    Ok(conn.query_row(sql, known, |row| row.get(0))?)
}

/// The device that has enrolled with this token and this key.
pub(super) fn enrolled_with(conn: &Connection, token: &Digest, key: &str) -> Result<Option<DeviceId>, DbError> {
    let sql = "SELECT id FROM devices WHERE token_hash = ?1 AND public_key = ?2 ORDER BY enrolled_at_ms LIMIT 1";
    let id = conn.query_row(sql, params![token.as_bytes(), key], |row| row.get::<_, String>(0));
    parsed(id.optional()?)
}

/// All devices.
///
/// # Errors
/// The database's.
pub fn list(conn: &Connection) -> Result<Vec<Device>, DbError> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM devices ORDER BY id"))?;
    let rows = statement.query_map([], |row| Ok(device(row)))?;
    rows.map(|row| row?).collect()
}

/// One device, if it is there.
///
/// # Errors
/// The database's.
pub fn get(conn: &Connection, id: &DeviceId) -> Result<Option<Device>, DbError> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM devices WHERE id = ?1"))?;
    statement
        .query_row([id.as_str()], |row| Ok(device(row)))
        .optional()?
        .transpose()
}

fn device(row: &Row<'_>) -> Result<Device, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let reported: Option<String> = row.get(9)?;
    Ok(Device {
        id: row.get::<_, String>(0)?.parse().map_err(|e| corrupt(&e))?,
        labels: from_json(&row.get::<_, String>(1)?)?,
        platform: row.get::<_, String>(2)?.parse().map_err(|e| corrupt(&e))?,
        agent_version: row.get(3)?,
        connected: row.get(4)?,
        enrolled_at_ms: row.get::<_, i64>(5)? as u64,
        last_seen_at_ms: row.get::<_, Option<i64>>(6)?.map(|at| at as u64),
        generation: Generation(row.get::<_, i64>(7)? as u64),
        desired: from_json(&row.get::<_, String>(8)?)?,
        reported: reported.map(|text| from_json(&text)).transpose()?,
        certificate_not_after_ms: row.get::<_, Option<i64>>(10)?.map(|at| at as u64),
        revoked_at_ms: row.get::<_, Option<i64>>(11)?.map(|at| at as u64),
        duplicate_seen_at_ms: row.get::<_, Option<i64>>(12)?.map(|at| at as u64),
    })
}

pub(super) fn set_labels(conn: &Connection, id: &DeviceId, labels: &BTreeMap<String, String>) -> Result<(), DbError> {
    conn.execute(
        "UPDATE devices SET labels = ?2 WHERE id = ?1",
        params![id.as_str(), to_json(labels)],
    )?;
    Ok(())
}

/// Makes `assignment` the device's intent for that model: one generation more. For use inside another domain's write.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub fn set_assignment(
    conn: &Connection,
    id: &DeviceId,
    assignment: BundleAssignment,
) -> Result<Generation, DeviceError> {
    change_desired(conn, id, |desired| {
        desired.retain(|other| other.model != assignment.model);
        desired.push(assignment);
        desired.sort_by(|a, b| a.model.cmp(&b.model));
    })
}

/// Takes a model from the device's intent: one generation more.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub fn remove_assignment(conn: &Connection, id: &DeviceId, model: &ModelName) -> Result<Generation, DeviceError> {
    change_desired(conn, id, |desired| desired.retain(|other| other.model != *model))
}

/// Makes a new generation of the same intent: the device looks again at whether it may.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub fn say_again(conn: &Connection, id: &DeviceId) -> Result<Generation, DeviceError> {
    change_desired(conn, id, |_| {})
}

fn change_desired(
    conn: &Connection,
    id: &DeviceId,
    change: impl FnOnce(&mut Vec<BundleAssignment>),
) -> Result<Generation, DeviceError> {
    let mut device = get(conn, id)?.ok_or_else(|| DeviceError::NotFound(id.clone()))?;
    change(&mut device.desired);
    let generation = Generation(device.generation.0 + 1);
    conn.execute(
        "UPDATE devices SET desired = ?2, generation = ?3 WHERE id = ?1",
        params![id.as_str(), to_json(&device.desired), generation.0 as i64],
    )
    .map_err(DbError::from)?;
    Ok(generation)
}

pub(super) fn record_reported(
    conn: &Connection,
    reported: &Reported,
    heard_at_ms: Option<u64>,
) -> Result<Recorded, DeviceError> {
    let id = &reported.device;
    let known = get(conn, id)?.ok_or_else(|| DeviceError::NotFound(id.clone()))?;
    if let Some(at_ms) = heard_at_ms {
        record_heard(conn, id, at_ms)?;
    }
    let recorded = if reported.generation < known.generation {
        Recorded::Behind
    } else {
        Recorded::UpToDate
    };
    match known.reported.filter(|old| old.boot_id == reported.boot_id) {
        Some(old) if old.seq > reported.seq => return Ok(Recorded::Older),
        // The same again.
        Some(old) if old.seq == reported.seq => return Ok(recorded),
        _ => {}
    }
    conn.execute(
        "UPDATE devices SET reported = ?2, agent_version = ?3 WHERE id = ?1",
        params![id.as_str(), to_json(reported), reported.agent.version],
    )
    .map_err(DbError::from)?;
    Ok(recorded)
}

pub(super) fn record_heard(conn: &Connection, id: &DeviceId, at_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE devices SET last_seen_at_ms = max(coalesce(last_seen_at_ms, 0), ?2) WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![id.as_str(), at_ms as i64])?;
    Ok(())
}

pub(super) fn set_connected(conn: &Connection, id: &DeviceId, connected: bool) -> Result<(), DbError> {
    conn.execute(
        "UPDATE devices SET connected = ?2 WHERE id = ?1",
        params![id.as_str(), connected],
    )?;
    Ok(())
}

/// The devices whose desired state is newer than the published one.
///
/// # Errors
/// The database's.
pub fn unpublished(conn: &Connection) -> Result<Vec<Device>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM devices WHERE generation > published_generation ORDER BY id");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([], |row| Ok(device(row)))?;
    rows.map(|row| row?).collect()
}

/// Notes that a generation has been handed to the broker.
///
/// # Errors
/// The database's.
pub fn mark_published(conn: &Connection, id: &DeviceId, generation: Generation) -> Result<(), DbError> {
    conn.execute(
        "UPDATE devices SET published_generation = max(published_generation, ?2) WHERE id = ?1",
        params![id.as_str(), generation.0 as i64],
    )?;
    Ok(())
}

/// Makes a device's desired state unpublished: it is published again.
///
/// # Errors
/// The database's.
pub fn mark_unpublished(conn: &Connection, id: &DeviceId) -> Result<(), DbError> {
    conn.execute(
        "UPDATE devices SET published_generation = 0 WHERE id = ?1",
        [id.as_str()],
    )?;
    Ok(())
}

/// Makes every desired state unpublished, to be signed by another key.
///
/// # Errors
/// The database's.
pub fn publish_all_again(conn: &Connection) -> Result<(), DbError> {
    conn.execute("UPDATE devices SET published_generation = 0", [])?;
    Ok(())
}

/// Makes every desired state unpublished: the broker may have lost its memory.
///
/// # Errors
/// The database's.
pub fn mark_all_unpublished(conn: &Connection) -> Result<(), DbError> {
    conn.execute("UPDATE devices SET published_generation = 0, connected = 0", [])?;
    Ok(())
}

/// What decides whether a device gets in; `None` for one that is not enrolled.
///
/// # Errors
/// The database's.
pub fn admission(conn: &Connection, id: &DeviceId) -> Result<Option<Admission>, DbError> {
    let sql = "SELECT public_key, revoked_at_ms IS NOT NULL FROM devices WHERE id = ?1";
    let admission = |row: &Row<'_>| {
        Ok(Admission {
            public_key: row.get(0)?,
            revoked: row.get(1)?,
        })
    };
    let mut statement = conn.prepare_cached(sql)?;
    Ok(statement.query_row([id.as_str()], admission).optional()?)
}

pub(super) fn set_certificate_end(conn: &Connection, id: &DeviceId, not_after_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE devices SET certificate_not_after_ms = ?2 WHERE id = ?1";
    conn.execute(sql, params![id.as_str(), not_after_ms as i64])?;
    Ok(())
}

pub(super) fn revoke(conn: &Connection, id: &DeviceId, now_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE devices SET revoked_at_ms = ?2 WHERE id = ?1";
    conn.execute(sql, params![id.as_str(), now_ms as i64])?;
    // It knows the token that it came by: what is left of that lets nobody in any more.
    let sql = "UPDATE device_tokens SET uses_left = 0 WHERE hash = (SELECT token_hash FROM devices WHERE id = ?1)";
    conn.execute(sql, [id.as_str()])?;
    Ok(())
}
