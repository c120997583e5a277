//! The SQL of training: experiments, runs, their metrics and artifacts.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion, RunId},
};

use super::{
    end::End,
    outputs::MetricLine,
    run::{Artifact, Experiment, MetricPoint, NewRun, RegisteredVersion, Run, RunStatus},
};
use crate::{
    audit::By,
    db::{DbError, from_json, to_json},
};

/// Runs in one list: more than a person reads.
const LIST_MAX: i64 = 1000;

const COLUMNS: &str = "runs.id, experiments.name, runs.status, runs.script, runs.code, runs.inputs, runs.dataset, \
     runs.params, runs.timeout_seconds, runs.register_as, runs.exit_status, runs.signal, runs.error, \
     runs.registered_version, runs.created_at_ms, runs.started_at_ms, runs.ended_at_ms, \
     runs.submitted_by";
const FROM: &str = "runs JOIN experiments ON experiments.id = runs.experiment_id";

pub(super) fn count_scheduled(conn: &Connection) -> Result<usize, DbError> {
    let sql = "SELECT count(*) FROM runs WHERE status = 'scheduled'";
    Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))? as usize)
}

pub(super) fn insert(
    conn: &Connection,
    id: &RunId,
    new: &NewRun,
    dataset: Option<Digest>,
    by: &By,
) -> Result<(), DbError> {
    conn.execute(
        "INSERT INTO experiments (name, created_at_ms) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING",
        params![new.experiment, by.at_ms as i64],
    )?;
    conn.execute(
        "INSERT INTO runs (id, experiment_id, status, script, code, inputs, dataset, params, timeout_seconds, register_as,
                           created_at_ms, submitted_by)
         VALUES (?1, (SELECT id FROM experiments WHERE name = ?2), 'scheduled', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            id.as_str(),
            new.experiment,
            new.script.name,
            new.script.digest.to_string(),
            to_json(&new.inputs),
            dataset.map(|digest| digest.to_string()),
            to_json(&new.params),
            new.timeout.as_secs() as i64,
            new.register_as.as_ref().map(ModelName::as_str),
            by.at_ms as i64,
            by.actor,
        ],
    )?;
    Ok(())
}

pub(super) fn experiments(conn: &Connection) -> Result<Vec<Experiment>, DbError> {
    let mut statement = conn.prepare_cached(
        "SELECT id, name, created_at_ms, (SELECT count(*) FROM runs WHERE experiment_id = experiments.id)
         FROM experiments ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Experiment {
            id: row.get::<_, i64>(0)? as u64,
            name: row.get(1)?,
            created_at_ms: row.get::<_, i64>(2)? as u64,
            runs: row.get::<_, i64>(3)? as u64,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn list(conn: &Connection, experiment: Option<&str>) -> Result<Vec<Run>, DbError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {FROM} WHERE ?1 IS NULL OR experiments.name = ?1 ORDER BY runs.seq DESC LIMIT {LIST_MAX}"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map([experiment], |row| Ok(run(row)))?;
    let mut runs: Vec<Run> = rows.map(|row| row?).collect::<Result<_, DbError>>()?;
    for run in &mut runs {
        complete(conn, run)?;
    }
    Ok(runs)
}

pub(super) fn get(conn: &Connection, id: &RunId) -> Result<Option<Run>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM {FROM} WHERE runs.id = ?1");
    let found = conn
        .prepare_cached(&sql)?
        .query_row([id.as_str()], |row| Ok(run(row)))
        .optional()?;
    let Some(mut run) = found.transpose()? else {
        return Ok(None);
    };
    complete(conn, &mut run)?;
    Ok(Some(run))
}

/// A run without its metrics and artifacts.
fn run(row: &Row<'_>) -> Result<Run, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let time = |index| Ok::<_, DbError>(row.get::<_, Option<i64>>(index)?.map(|ms| ms as u64));
    let dataset: Option<String> = row.get(6)?;
    let register_as: Option<String> = row.get(9)?;
    let register_as: Option<ModelName> = register_as
        .map(|name| name.parse())
        .transpose()
        .map_err(|e| corrupt(&e))?;
    let version = row
        .get::<_, Option<i64>>(13)?
        .map(|version| ModelVersion(version as u64));
    Ok(Run {
        id: row.get::<_, String>(0)?.parse().map_err(|e| corrupt(&e))?,
        experiment: row.get(1)?,
        status: status(&row.get::<_, String>(2)?)?,
        script: row.get(3)?,
        code: row.get::<_, String>(4)?.parse().map_err(|e| corrupt(&e))?,
        inputs: from_json(&row.get::<_, String>(5)?)?,
        dataset: dataset
            .map(|digest| digest.parse())
            .transpose()
            .map_err(|e| corrupt(&e))?,
        params: from_json(&row.get::<_, String>(7)?)?,
        timeout_seconds: row.get::<_, i64>(8)? as u64,
        exit_status: row.get(10)?,
        signal: row.get(11)?,
        error: row.get(12)?,
        registered: register_as
            .clone()
            .zip(version)
            .map(|(model, version)| RegisteredVersion { model, version }),
        register_as,
        metrics: BTreeMap::new(),
        artifacts: Vec::new(),
        created_at_ms: row.get::<_, i64>(14)? as u64,
        started_at_ms: time(15)?,
        ended_at_ms: time(16)?,
        submitted_by: row.get(17)?,
    })
}

fn status(text: &str) -> Result<RunStatus, DbError> {
    use RunStatus::{Failed, Finished, Killed, Running, Scheduled};
    let all = [Scheduled, Running, Finished, Failed, Killed];
    let found = all.into_iter().find(|status| status.as_str() == text);
    found.ok_or_else(|| DbError::Corrupt(format!("run status {text}")))
}

fn complete(conn: &Connection, run: &mut Run) -> Result<(), DbError> {
    let mut statement = conn.prepare_cached("SELECT key, value FROM run_latest_metrics WHERE run_id = ?1")?;
    let rows = statement.query_map([run.id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    run.metrics = rows.collect::<Result<_, _>>()?;
    let sql = "SELECT path, digest, size_bytes FROM run_artifacts WHERE run_id = ?1 ORDER BY path";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([run.id.as_str()])?;
    while let Some(row) = rows.next()? {
        let digest = row.get::<_, String>(1)?.parse();
        run.artifacts.push(Artifact {
            path: row.get(0)?,
            digest: digest.map_err(|error| DbError::Corrupt(format!("{error}")))?,
            size_bytes: row.get::<_, i64>(2)? as u64,
        });
    }
    Ok(())
}

/// The ids of all runs with a status, the oldest first.
pub(super) fn with_status(conn: &Connection, status: RunStatus) -> Result<Vec<RunId>, DbError> {
    let mut statement = conn.prepare_cached("SELECT id FROM runs WHERE status = ?1 ORDER BY seq")?;
    let rows = statement.query_map([status.as_str()], |row| row.get::<_, String>(0))?;
    rows.map(|id| id?.parse().map_err(|error| DbError::Corrupt(format!("{error}"))))
        .collect()
}

/// Makes the run that has waited longest `running`.
pub(super) fn claim(conn: &Connection, now_ms: u64) -> Result<Option<Run>, DbError> {
    let id: Option<String> = conn
        .query_row(
            "UPDATE runs SET status = 'running', started_at_ms = ?1
             WHERE seq = (SELECT min(seq) FROM runs WHERE status = 'scheduled') RETURNING id",
            [now_ms as i64],
            |row| row.get(0),
        )
        .optional()?;
    match id {
        Some(id) => {
            let id = id.parse().map_err(|error| DbError::Corrupt(format!("{error}")))?;
            get(conn, &id)
        }
        None => Ok(None),
    }
}

/// Kills a run that waits; false when it does not wait any more.
pub(super) fn kill_scheduled(conn: &Connection, id: &RunId, error: &str, now_ms: u64) -> Result<bool, DbError> {
    let sql = "UPDATE runs SET status = 'killed', error = ?2, ended_at_ms = ?3 WHERE id = ?1 AND status = 'scheduled'";
    Ok(conn.execute(sql, params![id.as_str(), error, now_ms as i64])? > 0)
}

/// Ends a run that is `running`; one that has ended stays as it is.
pub(super) fn end(conn: &Connection, id: &RunId, end: &End, now_ms: u64) -> Result<(), DbError> {
    let changed = conn.execute(
        "UPDATE runs SET status = ?2, exit_status = ?3, signal = ?4, error = ?5, registered_version = ?6, ended_at_ms = ?7
         WHERE id = ?1 AND status = 'running'",
        params![
            id.as_str(),
            end.status.as_str(),
            end.exit_status(),
            end.signal(),
            end.error,
            end.registered.map(|version| version.0 as i64),
            now_ms as i64
        ],
    )?;
    if changed == 0 {
        return Ok(());
    }
    let sql = "INSERT INTO run_artifacts (run_id, path, digest, size_bytes) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = conn.prepare_cached(sql)?;
    for artifact in &end.artifacts {
        statement.execute(params![
            id.as_str(),
            artifact.path,
            artifact.digest.to_string(),
            artifact.size_bytes as i64
        ])?;
    }
    Ok(())
}

/// Adds metrics to the history of a run.
pub(super) fn add_metrics(conn: &Connection, id: &RunId, lines: &[MetricLine], now_ms: u64) -> Result<(), DbError> {
    let sql = "SELECT coalesce(max(seq), 0) FROM run_metrics WHERE run_id = ?1";
    let last: i64 = conn.prepare_cached(sql)?.query_row([id.as_str()], |row| row.get(0))?;
    let mut history = conn.prepare_cached(
        "INSERT INTO run_metrics (run_id, seq, key, value, step, recorded_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let mut latest = conn.prepare_cached(
        "INSERT INTO run_latest_metrics (run_id, key, value, step) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value, step = excluded.step
         WHERE excluded.step >= step",
    )?;
    for (seq, line) in (last + 1..).zip(lines) {
        history.execute(params![
            id.as_str(),
            seq,
            line.key,
            line.value,
            line.step,
            now_ms as i64
        ])?;
        latest.execute(params![id.as_str(), line.key, line.value, line.step])?;
    }
    Ok(())
}

pub(super) fn metrics(conn: &Connection, id: &RunId) -> Result<Vec<MetricPoint>, DbError> {
    let sql = "SELECT key, value, step, recorded_at_ms FROM run_metrics WHERE run_id = ?1 ORDER BY seq";
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map([id.as_str()], |row| {
        Ok(MetricPoint {
            key: row.get(0)?,
            value: row.get(1)?,
            step: row.get(2)?,
            recorded_at_ms: row.get::<_, i64>(3)? as u64,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
