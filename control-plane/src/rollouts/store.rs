//! The SQL of rollouts.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use skerry_shared::id::{ModelVersion, RolloutId};

use super::{DeviceProgress, Group, Rollout, group::GroupRule};
use crate::db::{DbError, from_json, from_word, to_json, to_word};

const COLUMNS: &str = "id, model, version, target, index_digest, probation_ms, silent_after_ms, selector, state, reason, \
                       groups, created_at_ms, ended_at_ms, author, approval, allow_downgrade";
const UNDER_WAY: &str = "state NOT IN ('draft', 'finished', 'stopped')";

/// A group as stored: its devices have rows of their own.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    name: String,
    rule: GroupRule,
    accepted: bool,
}

fn stored_groups(rollout: &Rollout) -> String {
    let groups = rollout.groups.iter().map(|group| StoredGroup {
        name: group.name.clone(),
        rule: group.rule.clone(),
        accepted: group.accepted,
    });
    to_json(&groups.collect::<Vec<_>>())
}

pub(super) fn next_id(conn: &Connection) -> Result<RolloutId, DbError> {
    let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'rollouts'), 0) + 1";
    Ok(RolloutId(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as u64))
}

pub(super) fn insert(conn: &Connection, rollout: &Rollout) -> Result<(), DbError> {
    let sql = format!(
        "INSERT INTO rollouts ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
    );
    conn.execute(
        &sql,
        params![
            rollout.id.0 as i64,
            rollout.model.as_str(),
            rollout.version.0 as i64,
            rollout.target,
            rollout.index.to_string(),
            rollout.probation_ms,
            rollout.silent_after_ms as i64,
            String::from(rollout.selector.clone()),
            to_word(&rollout.state),
            rollout.reason,
            stored_groups(rollout),
            rollout.created_at_ms as i64,
            rollout.ended_at_ms.map(|at| at as i64),
            rollout.author,
            to_json(&rollout.approval),
            rollout.allow_downgrade,
        ],
    )?;
    let mut statement = conn.prepare_cached(
        "INSERT INTO rollout_devices (rollout, device, group_number, state, progress) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (number, group) in rollout.groups.iter().enumerate() {
        for progress in &group.devices {
            statement.execute(params![
                rollout.id.0 as i64,
                progress.device.as_str(),
                number as i64,
                to_word(&progress.state),
                to_json(&progress.detail)
            ])?;
        }
    }
    Ok(())
}

/// Writes what may change: state, reason, acceptance, approval, and the devices that differ.
pub(super) fn update(conn: &Connection, rollout: &Rollout) -> Result<(), DbError> {
    conn.execute(
        "UPDATE rollouts SET state = ?2, reason = ?3, groups = ?4, ended_at_ms = ?5, approval = ?6 WHERE id = ?1",
        params![
            rollout.id.0 as i64,
            to_word(&rollout.state),
            rollout.reason,
            stored_groups(rollout),
            rollout.ended_at_ms.map(|at| at as i64),
            to_json(&rollout.approval),
        ],
    )?;
    let mut statement = conn.prepare_cached(
        "UPDATE rollout_devices SET state = ?3, progress = ?4
         WHERE rollout = ?1 AND device = ?2 AND (state <> ?3 OR progress <> ?4)",
    )?;
    for progress in rollout.devices() {
        statement.execute(params![
            rollout.id.0 as i64,
            progress.device.as_str(),
            to_word(&progress.state),
            to_json(&progress.detail)
        ])?;
    }
    Ok(())
}

pub(super) fn get(conn: &Connection, id: RolloutId) -> Result<Option<Rollout>, DbError> {
    let mut statement = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM rollouts WHERE id = ?1"))?;
    let rollout = statement.query_row([id.0 as i64], |row| Ok(parse(row))).optional()?;
    rollout
        .transpose()?
        .map(|rollout| with_devices(conn, rollout))
        .transpose()
}

pub(super) fn list(conn: &Connection) -> Result<Vec<Rollout>, DbError> {
    select(conn, &format!("SELECT {COLUMNS} FROM rollouts ORDER BY id DESC"))
}

pub(super) fn under_way(conn: &Connection) -> Result<Vec<Rollout>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM rollouts WHERE {UNDER_WAY} ORDER BY id");
    select(conn, &sql)
}

pub(super) fn under_way_ids(conn: &Connection) -> Result<Vec<RolloutId>, DbError> {
    let mut statement = conn.prepare_cached(&format!("SELECT id FROM rollouts WHERE {UNDER_WAY} ORDER BY id"))?;
    let ids = statement.query_map([], |row| Ok(RolloutId(row.get::<_, i64>(0)? as u64)))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

fn select(conn: &Connection, sql: &str) -> Result<Vec<Rollout>, DbError> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| Ok(parse(row)))?;
    rows.map(|row| with_devices(conn, row??)).collect()
}

fn parse(row: &Row<'_>) -> Result<Rollout, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let groups: Vec<StoredGroup> = from_json(&row.get::<_, String>(10)?)?;
    let groups = groups.into_iter().map(|group| Group {
        name: group.name,
        rule: group.rule,
        accepted: group.accepted,
        devices: Vec::new(),
    });
    Ok(Rollout {
        id: RolloutId(row.get::<_, i64>(0)? as u64),
        model: row.get::<_, String>(1)?.parse().map_err(|e| corrupt(&e))?,
        version: ModelVersion(row.get::<_, i64>(2)? as u64),
        target: row.get(3)?,
        index: row.get::<_, String>(4)?.parse().map_err(|e| corrupt(&e))?,
        probation_ms: row.get(5)?,
        silent_after_ms: row.get::<_, i64>(6)? as u64,
        selector: row.get::<_, String>(7)?.parse().map_err(|e| corrupt(&e))?,
        state: from_word(row.get(8)?)?,
        reason: row.get(9)?,
        groups: groups.collect(),
        created_at_ms: row.get::<_, i64>(11)? as u64,
        ended_at_ms: row.get::<_, Option<i64>>(12)?.map(|at| at as u64),
        author: row.get(13)?,
        approval: from_json(&row.get::<_, String>(14)?)?,
        allow_downgrade: row.get(15)?,
    })
}

fn with_devices(conn: &Connection, mut rollout: Rollout) -> Result<Rollout, DbError> {
    let mut statement = conn.prepare_cached(
        "SELECT device, group_number, state, progress FROM rollout_devices WHERE rollout = ?1 ORDER BY group_number, device",
    )?;
    let mut rows = statement.query([rollout.id.0 as i64])?;
    while let Some(row) = rows.next()? {
        let device: String = row.get(0)?;
        let progress = DeviceProgress {
            device: device
                .parse()
                .map_err(|error: skerry_shared::id::InvalidId| DbError::Corrupt(error.to_string()))?,
            state: from_word(row.get(2)?)?,
            detail: from_json(&row.get::<_, String>(3)?)?,
        };
        let number = row.get::<_, i64>(1)? as usize;
        let group = rollout.groups.get_mut(number);
        group
            .ok_or_else(|| DbError::Corrupt(format!("rollout {} has no group {number}", rollout.id)))?
            .devices
            .push(progress);
    }
    Ok(rollout)
}
