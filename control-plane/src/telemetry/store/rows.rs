//! Row ids of devices, boots and series, by name: looked up once, made when they are new.

use std::collections::HashMap;

use rusqlite::{Connection, params};
use skerry_shared::id::{BootId, DeviceId, ModelName, ModelVersion};

use super::DAY_MS;
use crate::{
    db::{DbError, from_json},
    telemetry::decode::{Kind, SeriesKey},
};

/// Series of one device. A device that invents attributes is refused beyond it, and costs the others nothing.
pub(in crate::telemetry) const SERIES_MAX: usize = 4096;
/// Series remembered for all devices: about 60 MB. Above it the cache starts anew.
const CACHED_SERIES_MAX: usize = 250_000;

/// Row ids by name, as far as they were needed.
#[derive(Debug, Default)]
pub(in crate::telemetry) struct Cache(HashMap<DeviceId, Device>);

impl Cache {
    /// Starts anew when it has become too large.
    pub(super) fn trim(&mut self) {
        let series: usize = self.0.values().map(|device| device.series.len()).sum();
        if series > CACHED_SERIES_MAX {
            self.0.clear();
        }
    }

    pub(super) fn device(&mut self, conn: &Connection, id: &DeviceId, now_ms: u64) -> Result<&mut Device, DbError> {
        if !self.0.contains_key(id) {
            self.0.insert(id.clone(), Device::load(conn, id, now_ms)?);
        }
        Ok(self.0.get_mut(id).expect("it was just put there"))
    }
}

/// A device's row, and those that belong to it.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) row: i64,
    boots: HashMap<BootId, Seen>,
    series: HashMap<SeriesKey, (Seen, Option<(Role, i64)>)>,
}

/// A row that is marked once a day while it is used.
#[derive(Clone, Copy, Debug)]
struct Seen {
    row: i64,
    day: i64,
}

/// A series' row, and the row of the model version to whose sums it adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series {
    pub(super) row: i64,
    pub(super) role: Option<(Role, i64)>,
}

/// What a series means to the sums of its model version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Inferences,
    Errors,
    BadRequests,
    Latency,
}

impl Device {
    /// Reads a device's rows, and makes its own if it is new.
    fn load(conn: &Connection, id: &DeviceId, now_ms: u64) -> Result<Device, DbError> {
        conn.prepare_cached("INSERT INTO devices (device, last_at_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute(params![id.as_str(), now_ms as i64])?;
        let row: i64 = conn
            .prepare_cached("SELECT id FROM devices WHERE device = ?1")?
            .query_row([id.as_str()], |row| row.get(0))?;
        let sql = "SELECT id, last_day, metric, kind, unit, attributes, served FROM series WHERE device = ?1";
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([row])?;
        let mut series = HashMap::new();
        while let Some(row) = rows.next()? {
            let seen = Seen {
                row: row.get(0)?,
                day: row.get(1)?,
            };
            let kind: String = row.get(3)?;
            let kind =
                Kind::parse(&kind).ok_or_else(|| DbError::Corrupt(format!("`{kind}` is no kind of a metric")))?;
            let key = SeriesKey {
                metric: row.get(2)?,
                kind,
                unit: row.get(4)?,
                attributes: row.get(5)?,
            };
            let served: Option<i64> = row.get(6)?;
            let role = role(&key)?.zip(served).map(|((role, ..), served)| (role, served));
            series.insert(key, (seen, role));
        }
        Ok(Device {
            row,
            boots: HashMap::new(),
            series,
        })
    }

    /// The row of one start of the device's agent.
    pub(super) fn boot(&mut self, conn: &Connection, boot_id: &BootId, now_ms: u64) -> Result<i64, DbError> {
        let day = (now_ms / DAY_MS) as i64;
        if let Some(seen) = self.boots.get(boot_id)
            && seen.day == day
        {
            return Ok(seen.row);
        }
        let sql = "INSERT INTO boots (device, boot_id, last_day) VALUES (?1, ?2, ?3)
                   ON CONFLICT DO UPDATE SET last_day = excluded.last_day RETURNING id";
        let row = conn
            .prepare_cached(sql)?
            .query_row(params![self.row, boot_id.as_str(), day], |row| row.get(0))?;
        // A device has one boot at a time; the others are found in the table.
        self.boots.clear();
        self.boots.insert(boot_id.clone(), Seen { row, day });
        Ok(row)
    }

    /// A series; `None` when the device has too many.
    pub(super) fn series(
        &mut self,
        conn: &Connection,
        key: &SeriesKey,
        now_ms: u64,
    ) -> Result<Option<Series>, DbError> {
        let day = (now_ms / DAY_MS) as i64;
        if let Some((seen, role)) = self.series.get_mut(key) {
            if seen.day != day {
                seen.day = day;
                conn.prepare_cached("UPDATE series SET last_day = ?2 WHERE id = ?1")?
                    .execute([seen.row, day])?;
            }
            let (row, role) = (seen.row, *role);
            return Ok(Some(Series { row, role }));
        }
        if self.series.len() >= SERIES_MAX {
            return Ok(None);
        }
        let role = match role(key)? {
            Some((role, model, version)) => Some((role, served_row(conn, self.row, &model, version)?)),
            None => None,
        };
        let sql = "INSERT INTO series (device, metric, kind, unit, attributes, served, last_day)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        conn.prepare_cached(sql)?.execute(params![
            self.row,
            key.metric,
            key.kind.as_str(),
            key.unit,
            key.attributes,
            role.map(|(_, served)| served),
            day
        ])?;
        let row = conn.last_insert_rowid();
        self.series.insert(key.clone(), (Seen { row, day }, role));
        Ok(Some(Series { row, role }))
    }
}

/// What a series means, by its names; `None` for those that are only stored.
fn role(key: &SeriesKey) -> Result<Option<(Role, ModelName, ModelVersion)>, DbError> {
    if !key.metric.starts_with("skerry.inference.") {
        return Ok(None);
    }
    let attributes: serde_json::Value = from_json(&key.attributes)?;
    let role = match (key.metric.as_str(), key.kind, attributes["error.type"].as_str()) {
        ("skerry.inference.count", Kind::Delta, None) => Role::Inferences,
        ("skerry.inference.errors", Kind::Delta, Some("bundle")) => Role::Errors,
        ("skerry.inference.errors", Kind::Delta, Some("request")) => Role::BadRequests,
        ("skerry.inference.duration", Kind::Histogram, None) => Role::Latency,
        _ => return Ok(None),
    };
    let model = attributes["model.name"].as_str().and_then(|name| name.parse().ok());
    let version = attributes["model.version"].as_u64().map(ModelVersion);
    Ok(model.zip(version).map(|(model, version)| (role, model, version)))
}

fn served_row(conn: &Connection, device: i64, model: &ModelName, version: ModelVersion) -> Result<i64, DbError> {
    let version = version.0 as i64;
    conn.prepare_cached("INSERT INTO served (device, model, version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute(params![device, model.as_str(), version])?;
    let sql = "SELECT id FROM served WHERE device = ?1 AND model = ?2 AND version = ?3";
    let row = conn
        .prepare_cached(sql)?
        .query_row(params![device, model.as_str(), version], |row| row.get(0))?;
    Ok(row)
}
