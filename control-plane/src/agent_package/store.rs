//! The SQL of agent packages.

use rusqlite::{Connection, Row, params};

use super::AgentPackage;
use crate::db::DbError;

/// Stores a package in the place of its architecture and format.
pub(super) fn put(conn: &Connection, package: &AgentPackage) -> Result<(), DbError> {
    conn.execute(
        "INSERT OR REPLACE INTO agent_packages (architecture, format, file, version, digest, size_bytes, published_at_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            package.architecture,
            package.format,
            package.file,
            package.version,
            package.digest.to_string(),
            package.size_bytes as i64,
            package.published_at_ms as i64
        ],
    )?;
    Ok(())
}

/// All packages. At most one an architecture and format.
pub(super) fn all(conn: &Connection) -> Result<Vec<AgentPackage>, DbError> {
    let mut statement = conn.prepare_cached(
        "SELECT architecture, format, file, version, digest, size_bytes, published_at_ms FROM agent_packages
         ORDER BY architecture, format",
    )?;
    let rows = statement.query_map([], |row| Ok(package(row)))?;
    rows.map(|row| row?).collect()
}

fn package(row: &Row<'_>) -> Result<AgentPackage, DbError> {
    let digest: String = row.get(4)?;
    Ok(AgentPackage {
        architecture: row.get(0)?,
        format: row.get(1)?,
        file: row.get(2)?,
        version: row.get(3)?,
        digest: digest.parse().map_err(|error| DbError::Corrupt(format!("{error}")))?,
        size_bytes: row.get::<_, i64>(5)? as u64,
        published_at_ms: row.get::<_, i64>(6)? as u64,
    })
}
