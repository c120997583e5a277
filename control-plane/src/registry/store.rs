//! The SQL of the model registry.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};

use super::{Approval, ModelSignature, ModelVersionInfo, RegisteredModel};
use crate::db::{DbError, from_json, to_json};

const VERSION_COLUMNS: &str = "model, version, digest, size_bytes, run_id, description, tags, inputs, outputs, created_at_ms, \
     registered_by, approved_by, approved_at_ms";

pub(super) fn insert_model(
    conn: &Connection,
    name: &ModelName,
    description: &str,
    tags: &BTreeMap<String, String>,
    now_ms: u64,
) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO models (name, description, tags, created_at_ms) VALUES (?1, ?2, ?3, ?4)",
        params![name.as_str(), description, to_json(tags), now_ms as i64],
    )?;
    Ok(())
}

pub(super) fn models(conn: &Connection) -> Result<Vec<RegisteredModel>, DbError> {
    let mut statement = conn.prepare("SELECT name FROM models ORDER BY name")?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut models = Vec::with_capacity(names.len());
    for name in names {
        let name = name.parse().map_err(|error| DbError::Corrupt(format!("{error}")))?;
        models.extend(model(conn, &name)?);
    }
    Ok(models)
}

pub(super) fn model(conn: &Connection, name: &ModelName) -> Result<Option<RegisteredModel>, DbError> {
    let row = conn
        .query_row(
            "SELECT description, tags, created_at_ms FROM models WHERE name = ?1",
            [name.as_str()],
            |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            },
        )
        .optional()?;
    let Some((description, tags, created_at_ms)) = row else {
        return Ok(None);
    };
    let mut statement = conn.prepare_cached("SELECT alias, version FROM model_aliases WHERE model = ?1")?;
    let aliases = statement.query_map([name.as_str()], |row| {
        Ok((row.get::<_, String>(0)?, ModelVersion(row.get::<_, i64>(1)? as u64)))
    })?;
    let aliases: BTreeMap<String, ModelVersion> = aliases.collect::<Result<_, _>>()?;
    let signatures = signatures(conn, name)?;
    let sql = format!("SELECT {VERSION_COLUMNS} FROM model_versions WHERE model = ?1 ORDER BY version");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([name.as_str()], |row| Ok(version_info(row, &aliases, &signatures)))?;
    let versions = rows.map(|row| row?).collect::<Result<_, DbError>>()?;
    let created_at_ms = created_at_ms as u64;
    let tags = from_json(&tags)?;
    Ok(Some(RegisteredModel {
        name: name.clone(),
        description,
        tags,
        aliases,
        versions,
        created_at_ms,
    }))
}

fn signatures(conn: &Connection, name: &ModelName) -> Result<BTreeMap<ModelVersion, ModelSignature>, DbError> {
    let sql = "SELECT version, key, subject, bundle, verified_at_ms FROM model_signatures WHERE model = ?1";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([name.as_str()])?;
    let mut signatures = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let bundle = row.get::<_, String>(3)?.parse();
        let signature = ModelSignature {
            key: row.get(1)?,
            subject: row.get(2)?,
            bundle: bundle.map_err(|error| DbError::Corrupt(format!("{error}")))?,
            verified_at_ms: row.get::<_, i64>(4)? as u64,
        };
        signatures.insert(ModelVersion(row.get::<_, i64>(0)? as u64), signature);
    }
    Ok(signatures)
}

fn version_info(
    row: &Row<'_>,
    aliases: &BTreeMap<String, ModelVersion>,
    signatures: &BTreeMap<ModelVersion, ModelSignature>,
) -> Result<ModelVersionInfo, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let version = ModelVersion(row.get::<_, i64>(1)? as u64);
    let run_id: Option<String> = row.get(4)?;
    let (approved_by, approved_at_ms): (Option<String>, Option<i64>) = (row.get(11)?, row.get(12)?);
    Ok(ModelVersionInfo {
        model: row.get::<_, String>(0)?.parse().map_err(|e| corrupt(&e))?,
        version,
        digest: row.get::<_, String>(2)?.parse().map_err(|e| corrupt(&e))?,
        size_bytes: row.get::<_, i64>(3)? as u64,
        run_id: run_id.map(|id| id.parse()).transpose().map_err(|e| corrupt(&e))?,
        description: row.get(5)?,
        tags: from_json(&row.get::<_, String>(6)?)?,
        aliases: aliases
            .iter()
            .filter(|(_, v)| **v == version)
            .map(|(alias, _)| alias.clone())
            .collect(),
        inputs: from_json(&row.get::<_, String>(7)?)?,
        outputs: from_json(&row.get::<_, String>(8)?)?,
        created_at_ms: row.get::<_, i64>(9)? as u64,
        registered_by: row.get(10)?,
        approval: approved_by.zip(approved_at_ms).map(|(by, at_ms)| Approval {
            by,
            at_ms: at_ms as u64,
        }),
        signature: signatures.get(&version).cloned(),
    })
}

pub(super) fn version(
    conn: &Connection,
    name: &ModelName,
    version: ModelVersion,
) -> Result<Option<ModelVersionInfo>, DbError> {
    let found = model(conn, name)?;
    Ok(found.and_then(|model| model.versions.into_iter().find(|info| info.version == version)))
}

pub(super) fn version_by_digest(
    conn: &Connection,
    name: &ModelName,
    digest: &Digest,
) -> Result<Option<ModelVersionInfo>, DbError> {
    let found = model(conn, name)?;
    Ok(found.and_then(|model| model.versions.into_iter().find(|info| info.digest == *digest)))
}

pub(super) fn next_version(conn: &Connection, name: &ModelName) -> Result<ModelVersion, DbError> {
    let sql = "SELECT coalesce(max(version), 0) + 1 FROM model_versions WHERE model = ?1";
    let next: i64 = conn.query_row(sql, [name.as_str()], |row| row.get(0))?;
    Ok(ModelVersion(next as u64))
}

pub(super) fn insert_version(conn: &Connection, info: &ModelVersionInfo) -> Result<(), DbError> {
    conn.execute(
        &format!("INSERT INTO model_versions ({VERSION_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"),
        params![
            info.model.as_str(),
            info.version.0 as i64,
            info.digest.to_string(),
            info.size_bytes as i64,
            info.run_id.as_ref().map(|id| id.as_str()),
            info.description,
            to_json(&info.tags),
            to_json(&info.inputs),
            to_json(&info.outputs),
            info.created_at_ms as i64,
            info.registered_by,
            info.approval.as_ref().map(|approval| &approval.by),
            info.approval.as_ref().map(|approval| approval.at_ms as i64),
        ],
    )?;
    Ok(())
}

pub(super) fn set_alias(
    conn: &Connection,
    model: &ModelName,
    alias: &str,
    version: ModelVersion,
) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO model_aliases (model, alias, version) VALUES (?1, ?2, ?3)
         ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
        params![model.as_str(), alias, version.0 as i64],
    )?;
    Ok(())
}

pub(super) fn remove_alias(conn: &Connection, model: &ModelName, alias: &str) -> Result<bool, DbError> {
    let sql = "DELETE FROM model_aliases WHERE model = ?1 AND alias = ?2";
    Ok(conn.execute(sql, params![model.as_str(), alias])? > 0)
}

pub(super) fn set_tags(
    conn: &Connection,
    model: &ModelName,
    version: ModelVersion,
    tags: &BTreeMap<String, String>,
) -> Result<(), DbError> {
    conn.execute(
        "UPDATE model_versions SET tags = ?3 WHERE model = ?1 AND version = ?2",
        params![model.as_str(), version.0 as i64, to_json(tags)],
    )?;
    Ok(())
}

pub(super) fn set_approval(
    conn: &Connection,
    model: &ModelName,
    version: ModelVersion,
    approval: &Approval,
) -> Result<(), DbError> {
    conn.execute(
        "UPDATE model_versions SET approved_by = ?3, approved_at_ms = ?4 WHERE model = ?1 AND version = ?2",
        params![model.as_str(), version.0 as i64, approval.by, approval.at_ms as i64],
    )?;
    Ok(())
}

pub(super) fn set_signature(
    conn: &Connection,
    model: &ModelName,
    version: ModelVersion,
    signature: &ModelSignature,
) -> Result<(), DbError> {
    conn.execute(
        "INSERT OR REPLACE INTO model_signatures (model, version, bundle, key, subject, verified_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            model.as_str(),
            version.0 as i64,
            signature.bundle.to_string(),
            signature.key,
            signature.subject,
            signature.verified_at_ms as i64
        ],
    )?;
    Ok(())
}
