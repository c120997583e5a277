//! One run, from its claim to its end: folders, script, log, metrics, artifacts, model version.
//!
//! A run has a folder: `inputs/`, `code/`, `output/` with `output/artifacts/`, and `log`. The script's working folder is
//! `output/`. Metrics are read at an interval and at the end, not pushed. Invariant: when [`Execution::run`] returns, the run's
//! processes are dead.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustix::process::Signal;
use skerry_shared::{digest::Digest, id::ModelVersion};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Moved, Training,
    end::{CANCELLED, End, RunError, STOPPED, failed},
    log::{Live, LogWriter},
    outputs::{self, MetricsFile, More},
    process::{self, Exit, Group},
    run::{Artifact, Run, RunStatus},
    store,
};
use crate::{
    audit::By,
    registry::{self, NewVersion, Registered},
};

/// The name of the log in a run's folder.
pub(super) const LOG: &str = "log";
pub(super) const CODE: &str = "code";
pub(super) const INPUTS: &str = "inputs";
pub(super) const OUTPUT: &str = "output";
/// What `register_as` registers.
const MODEL_ARTIFACT: &str = "model.onnx";

/// One read of a script's output.
const READ_BYTES: usize = 16 * 1024;
/// How long the end of the output is awaited when the script is dead. Only a process that left its group and emptied its
/// environment holds the pipe longer.
pub(super) const DRAIN: Duration = Duration::from_secs(2);
/// How long before processes are looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Left-out artifacts that are named in the log.
const SKIPPED_NAMED: usize = 20;

/// Why a script is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    TimeLimit,
    Cancelled,
    Shutdown,
}

/// A run that is executed.
pub(super) struct Execution<'a> {
    training: &'a Training,
    run: &'a Run,
    live: Arc<Live>,
    shutdown: CancellationToken,
    folder: PathBuf,
    log: LogWriter,
    /// Taken while its thread has it.
    metrics: Option<MetricsFile>,
}

impl<'a> Execution<'a> {
    /// Makes the run's folders and its log.
    pub(super) async fn prepare(
        training: &'a Training,
        run: &'a Run,
        live: Arc<Live>,
        shutdown: CancellationToken,
    ) -> Result<Execution<'a>, RunError> {
        let folder = training.folder_of(&run.id);
        let artifacts = folder.join(OUTPUT).join("artifacts");
        for path in [folder.join(CODE), folder.join(INPUTS), artifacts] {
            let made = tokio::fs::create_dir_all(&path).await;
            made.map_err(|source| RunError::Write { path, source })?;
        }
        let limits = training.0.parts.limits;
        let path = folder.join(LOG);
        let log = LogWriter::create(path.clone(), limits.log_bytes, Arc::clone(&live)).await;
        Ok(Execution {
            log: log.map_err(|source| RunError::Write { path, source })?,
            metrics: Some(MetricsFile::new(folder.join(OUTPUT).join("metrics.jsonl"), limits)),
            training,
            run,
            live,
            shutdown,
            folder,
        })
    }

    /// Runs the script and stores what it made.
    pub(super) async fn run(mut self) -> End {
        let end = match self.run_script().await {
            Ok((exit, stop)) => match self.after(exit, stop).await {
                Ok(end) => end,
                Err(error) => failed(&self.run.id, Some(exit), error),
            },
            Err(error) => failed(&self.run.id, None, error),
        };
        let mut logged = self.log.finish().await;
        if let Some(error) = &end.error {
            logged = logged.and(self.log.note(error).await);
        }
        if let Err(error) = logged {
            tracing::warn!(run.id = %self.run.id, %error, "cannot write the end of a run's log");
        }
        end
    }

    async fn run_script(&mut self) -> Result<(Exit, Option<Stop>), RunError> {
        let program = self.write_files().await?;
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]);
        for (key, value) in &self.run.params {
            command.arg(format!("--{key}")).arg(value);
        }
        self.environment(&mut command);
        let start = |source| RunError::Start {
            program: program[0].clone(),
            source,
        };
        let (group, output) = Group::start(command).map_err(start)?;
        let ended = self.attend(group, output).await;
        if ended.is_err() {
            self.kill_strays().await?;
        }
        let (exit, stop, output) = ended?;
        self.drain(output).await?;
        self.take_metrics(More::Ended).await?;
        Ok((exit, stop))
    }

    /// Writes the inputs and the script; returns the program and its first arguments.
    async fn write_files(&self) -> Result<Vec<PathBuf>, RunError> {
        let blobs = &self.training.0.parts.blobs;
        for input in &self.run.inputs {
            let content = blobs.get(input.digest).await?;
            let path = self.folder.join(INPUTS).join(&input.name);
            let written = tokio::fs::write(&path, content).await;
            written.map_err(|source| RunError::Write { path, source })?;
        }
        let content = blobs.get(self.run.code).await?;
        let path = self.folder.join(CODE).join(&self.run.script);
        let script = path.clone();
        let written = on_thread(move || process::write_executable(&path, &content)).await?;
        written.map_err(|source| RunError::Write {
            path: script.clone(),
            source,
        })?;
        if Path::new(&self.run.script)
            .extension()
            .is_some_and(|extension| extension == "py")
        {
            return Ok(vec![self.training.0.parts.config.python.clone(), script]);
        }
        Ok(vec![script])
    }

    /// An environment without the control plane's secrets: nothing is inherited but what every program needs.
    fn environment(&self, command: &mut Command) {
        command.env_clear();
        for (name, default) in [
            ("PATH", Some("/usr/local/bin:/usr/bin:/bin")),
            ("HOME", None),
            ("LANG", Some("C.UTF-8")),
        ] {
            if let Some(value) = std::env::var_os(name).or(default.map(Into::into)) {
                command.env(name, value);
            }
        }
        command
            .env("SKERRY_INPUT_DIR", self.folder.join(INPUTS))
            .env("SKERRY_OUTPUT_DIR", self.folder.join(OUTPUT))
            .env(process::RUN_ID_VARIABLE, self.run.id.as_str())
            // Python would keep its output back until it ends, and the log could not be followed.
            .env("PYTHONUNBUFFERED", "1")
            .current_dir(self.folder.join(OUTPUT));
    }

    /// Reads what the script prints and measures, until it has ended or is made to.
    async fn attend(
        &mut self,
        group: Group,
        mut output: pipe::Receiver,
    ) -> Result<(Exit, Option<Stop>, pipe::Receiver), RunError> {
        let limits = self.training.0.parts.limits;
        let time_limit = Instant::now() + Duration::from_secs(self.run.timeout_seconds);
        let mut metrics = tokio::time::interval(limits.metrics_every);
        metrics.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut exited = pin!(group.exited());
        let (cancel, shutdown) = (self.live.cancel.clone(), self.shutdown.clone());
        let mut buffer = vec![0; READ_BYTES];
        let (mut open, mut stop, mut kill_at) = (true, None, time_limit);
        loop {
            let now_stop = tokio::select! {
                result = &mut exited => {
                    result.map_err(RunError::Wait)?;
                    break;
                }
                read = output.read(&mut buffer), if open => {
                    let read = read.map_err(RunError::Output)?;
                    open = read > 0;
                    self.append(&buffer[..read]).await?;
                    continue;
                }
                _ = metrics.tick() => {
                    self.take_metrics(More::Expected).await?;
                    continue;
                }
                () = tokio::time::sleep_until(kill_at), if stop.is_some() => {
                    group.signal(Signal::KILL);
                    kill_at += limits.terminate_grace;
                    continue;
                }
                () = tokio::time::sleep_until(time_limit), if stop.is_none() => Stop::TimeLimit,
                () = cancel.cancelled(), if stop.is_none() => Stop::Cancelled,
                () = shutdown.cancelled(), if stop.is_none() => Stop::Shutdown,
            };
            stop = Some(now_stop);
            kill_at = Instant::now() + limits.terminate_grace;
            group.signal(Signal::TERM);
        }
        let exit = on_thread(move || group.reap()).await?.map_err(RunError::Wait)?;
        Ok((exit, stop, output))
    }

    /// Kills what left the process group, and reads the rest of the output.
    async fn drain(&mut self, mut output: pipe::Receiver) -> Result<(), RunError> {
        let deadline = Instant::now() + DRAIN;
        let mut buffer = vec![0; READ_BYTES];
        while Instant::now() < deadline {
            // Again and again, because a process in the middle of `exec` has no environment. The output's end is the proof
            // that none is left: all of them inherited the pipe.
            self.kill_strays().await?;
            let look = Instant::now() + LOOK_AGAIN;
            // The clock is asked too: a pipe that always has something to read never lets a time-out happen.
            while Instant::now() < look
                && let Ok(read) = tokio::time::timeout_at(look, output.read(&mut buffer)).await
            {
                match read.map_err(RunError::Output)? {
                    0 => return Ok(()),
                    read => self.append(&buffer[..read]).await?,
                }
            }
        }
        self.note("a process that cannot be found any more has kept the output open")
            .await
    }

    async fn kill_strays(&self) -> Result<(), RunError> {
        let id = self.run.id.clone();
        on_thread(move || process::kill_strays(&id)).await
    }

    async fn append(&mut self, output: &[u8]) -> Result<(), RunError> {
        let path = || self.folder.join(LOG);
        let appended = self.log.append(output).await;
        appended.map_err(|source| RunError::Write { path: path(), source })
    }

    async fn note(&mut self, text: &str) -> Result<(), RunError> {
        let path = || self.folder.join(LOG);
        let noted = self.log.note(text).await;
        noted.map_err(|source| RunError::Write { path: path(), source })
    }

    async fn take_metrics(&mut self, more: More) -> Result<(), RunError> {
        let mut file = self.metrics.take().ok_or(RunError::Panic)?;
        let (file, lines) = on_thread(move || {
            let lines = file.read_on(more);
            (file, lines)
        })
        .await?;
        let notes = match more {
            More::Expected => Vec::new(),
            More::Ended => file.notes(),
        };
        self.metrics = Some(file);
        if !lines.is_empty() {
            let (id, now) = (self.run.id.clone(), self.training.now());
            let db = &self.training.0.parts.db;
            db.write(move |conn| store::add_metrics(conn, &id, &lines, now)).await?;
            self.training.moved(Moved::Run(self.run.id.clone()));
        }
        for note in notes {
            self.note(&note).await?;
        }
        Ok(())
    }

    /// What the script's end means for the run.
    async fn after(&mut self, exit: Exit, stop: Option<Stop>) -> Result<End, RunError> {
        let ended = |status, error| Ok(End::new(status, Some(exit), error));
        match (stop, exit) {
            (Some(Stop::Cancelled), _) => ended(RunStatus::Killed, CANCELLED.to_owned()),
            (Some(Stop::Shutdown), _) => ended(RunStatus::Failed, STOPPED.to_owned()),
            (Some(Stop::TimeLimit), _) => {
                let limit = self.run.timeout_seconds;
                ended(
                    RunStatus::Failed,
                    format!("the script reached its time limit of {limit} s"),
                )
            }
            (None, Exit::Signal(signal)) => {
                ended(RunStatus::Failed, format!("the script was killed by signal {signal}"))
            }
            (None, Exit::Status(0)) => self.keep_artifacts(exit).await,
            (None, Exit::Status(status)) => {
                ended(RunStatus::Failed, format!("the script ended with exit status {status}"))
            }
        }
    }

    async fn keep_artifacts(&mut self, exit: Exit) -> Result<End, RunError> {
        let folder = self.folder.join(OUTPUT).join("artifacts");
        let (limits, within) = (self.training.0.parts.limits, folder.clone());
        let found = on_thread(move || outputs::find_artifacts(&within, &limits)).await??;
        for path in found.skipped.iter().take(SKIPPED_NAMED) {
            self.note(&format!("artifact `{path}` is a link or no plain file and is not kept"))
                .await?;
        }
        let mut artifacts = Vec::new();
        let mut model = None;
        for path in found.paths {
            let (within, name) = (folder.clone(), path.clone());
            let read =
                move || outputs::read_artifact(&within, &name, &limits).map(|content| (Digest::of(&content), content));
            let (digest, content) = on_thread(read).await??;
            let content = Bytes::from(content);
            let size_bytes = content.len() as u64;
            if path == MODEL_ARTIFACT {
                model = Some(content.clone());
            }
            self.training.0.parts.blobs.put(digest, content).await?;
            artifacts.push(Artifact {
                path,
                digest,
                size_bytes,
            });
        }
        // A run whose model is refused keeps its artifacts: somebody must find out why.
        let end = match self.register(model).await {
            Ok(registered) => End {
                status: RunStatus::Finished,
                exit: Some(exit),
                error: None,
                registered,
                artifacts,
            },
            Err(error) => End {
                artifacts,
                ..failed(&self.run.id, Some(exit), error)
            },
        };
        Ok(end)
    }

    async fn register(&mut self, onnx: Option<Bytes>) -> Result<Option<ModelVersion>, RunError> {
        let Some(model) = self.run.register_as.clone() else {
            return Ok(None);
        };
        let new = NewVersion {
            model: model.clone(),
            onnx: onnx.ok_or(RunError::NoModel)?,
            run_id: Some(self.run.id.clone()),
            description: String::new(),
            signature: None,
        };
        let parts = &self.training.0.parts;
        let by = By::new(&self.run.submitted_by, self.training.now());
        let (registered, info) = registry::register_version(&parts.db, &parts.blobs, new, by).await?;
        let version = info.version;
        match registered {
            Registered::New => self.training.moved(Moved::Model(model)),
            Registered::Existing => {
                self.note(&format!("this model.onnx is {model} version {version} already"))
                    .await?;
            }
        }
        Ok(Some(version))
    }
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RunError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RunError::Panic)
}
