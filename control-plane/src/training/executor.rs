//! Runs scripts as local processes, a bounded number at once, in the order of their submission.
//!
//! The queue is the `scheduled` runs in the database; a notification says that it may have grown. Invariant: a run's processes
//! are dead before its end is in the database, and whoever waits for the end is told after that.

use std::{io, sync::Arc, time::Duration};

use skerry_shared::id::RunId;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Moved, Training,
    end::{CANCELLED, End, STOPPED, chain, failed},
    execution::{CODE, DRAIN, Execution, INPUTS, OUTPUT},
    log::Live,
    process,
    run::{Run, RunStatus},
    store,
};
use crate::{
    audit::{self, By, Fact},
    db::DbError,
};

/// After a database error: a disk that is full or a file that another process holds.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Takes up what an earlier process left. Its running runs have failed: what their scripts print goes nowhere, and nobody
/// counts their time. Processes with a run's id in their environment are certainly the run's, and are killed.
pub(super) async fn recover(training: &Training) -> Result<(), DbError> {
    let db = &training.0.parts.db;
    for id in db.read(|conn| store::with_status(conn, RunStatus::Running)).await? {
        tracing::warn!(run.id = %id, "a run was left running by a control plane that stopped");
        let of = id.clone();
        let killed = tokio::task::spawn_blocking(move || process::kill_strays(&of)).await;
        if killed.is_err() {
            tracing::error!(run.id = %id, "looking for stray processes panicked");
        }
        let (of, now) = (id.clone(), training.now());
        let end = End::new(RunStatus::Failed, None, STOPPED);
        db.write(move |conn| store::end(conn, &of, &end, now)).await?;
        remove_work(training, &id).await;
    }
    for id in db.read(|conn| store::with_status(conn, RunStatus::Scheduled)).await? {
        training.add_live(&id);
    }
    training.0.wake.notify_one();
    Ok(())
}

/// Kills a run; returns when it has ended, or when it should have.
pub(super) async fn cancel(training: &Training, id: &RunId, by: By) -> Result<(), DbError> {
    let live = training.lock_live().get(id).cloned();
    // Before the database is asked: a run that starts in between finds itself cancelled.
    if let Some(live) = &live {
        live.cancel.cancel();
    }
    let of = id.clone();
    let db = &training.0.parts.db;
    let never_started = db
        .write(move |conn| {
            let never_started = store::kill_scheduled(conn, &of, CANCELLED, by.at_ms)?;
            let before = if never_started { "scheduled" } else { "running" };
            let fact = Fact::new("run.cancel", format!("run/{of}")).with("before", before);
            audit::append(conn, &by, fact)?;
            Ok::<_, DbError>(never_started)
        })
        .await?;
    if never_started {
        has_ended(training, id);
    } else if let Some(live) = live {
        let patience = training.0.parts.limits.terminate_grace * 2 + DRAIN;
        if tokio::time::timeout(patience, live.ended()).await.is_err() {
            tracing::warn!(run.id = %id, "a cancelled run has not ended yet");
        }
    }
    Ok(())
}

/// Tells everybody that the end of a run is in the database.
fn has_ended(training: &Training, id: &RunId) {
    training.moved(Moved::Run(id.clone()));
    if let Some(live) = training.remove_live(id) {
        live.end();
    }
}

impl Training {
    /// Executes runs until `shutdown`; then stops the running ones, which have failed, and leaves the others scheduled.
    pub async fn execute(self, shutdown: CancellationToken) {
        let mut executing = JoinSet::new();
        let mut retry = RETRY_MIN;
        while !shutdown.is_cancelled() {
            let mut failed = false;
            while !shutdown.is_cancelled() && executing.len() < self.0.parts.config.max_concurrent_runs {
                match self.claim().await {
                    Ok(Some(run)) => {
                        retry = RETRY_MIN;
                        self.moved(Moved::Run(run.id.clone()));
                        let live = self.add_live(&run.id);
                        let training = self.clone();
                        executing.spawn(execute(training, run, live, shutdown.clone()));
                    }
                    Ok(None) => {
                        retry = RETRY_MIN;
                        break;
                    }
                    Err(error) => {
                        tracing::error!(error = %chain(error), "cannot take the next run, trying again");
                        failed = true;
                        break;
                    }
                }
            }
            tokio::select! {
                () = self.0.wake.notified() => {}
                Some(_) = executing.join_next() => {}
                // Without jitter: nobody else asks this database.
                () = tokio::time::sleep(retry), if failed => retry = (retry * 2).min(RETRY_MAX),
                () = shutdown.cancelled() => {}
            }
        }
        while executing.join_next().await.is_some() {}
        // Whoever reads the log of a run that waits would hold the HTTP server.
        let waiting: Vec<Arc<Live>> = self.lock_live().drain().map(|(_, live)| live).collect();
        waiting.iter().for_each(|live| live.end());
    }

    /// The run whose turn it is, which is `running` then.
    pub(super) async fn claim(&self) -> Result<Option<Run>, DbError> {
        let now = self.now();
        self.0.parts.db.write(move |conn| store::claim(conn, now)).await
    }
}

async fn execute(training: Training, run: Run, live: Arc<Live>, shutdown: CancellationToken) {
    let id = run.id.clone();
    let started = Instant::now();
    let end = match Execution::prepare(&training, &run, live, shutdown).await {
        Ok(execution) => execution.run().await,
        Err(error) => failed(&id, None, error),
    };
    tracing::info!(run.id = %id, status = end.status.as_str(), duration_ms = started.elapsed().as_millis() as u64,
        "a run ended");
    let (of, now) = (id.clone(), training.now());
    let stored = training
        .0
        .parts
        .db
        .write(move |conn| store::end(conn, &of, &end, now))
        .await;
    if let Err(error) = stored {
        tracing::error!(run.id = %id, error = %chain(error), "cannot store the end of a run; it fails at the next start");
    }
    remove_work(&training, &id).await;
    has_ended(&training, &id);
}

/// Removes all of a run's folder but its log: artifacts are blobs, and the rest is nobody's.
async fn remove_work(training: &Training, id: &RunId) {
    for name in [CODE, INPUTS, OUTPUT] {
        let path = training.folder_of(id).join(name);
        match tokio::fs::remove_dir_all(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove what a run left");
            }
            _ => {}
        }
    }
}
