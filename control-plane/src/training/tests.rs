//! Runs with real processes: what a script can do, and what is left of it.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use futures_util::{StreamExt, TryStreamExt};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};
use skerry_shared::id::ModelVersion;
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::broadcast, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    run::{InputFile, RunStatus},
    *,
};
use crate::{
    app::CORE_MIGRATIONS,
    db::{DbError, Durability},
    registry,
};

fn by() -> By {
    By::new("ada", crate::app::now_ms())
}

/// A run that hangs fails its test; nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane's training in a temporary folder, as one process of it after another.
struct Fixture {
    folder: tempfile::TempDir,
    moved: broadcast::Sender<Moved>,
    limits: Limits,
    training: Training,
    executor: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Fixture {
    /// Nothing is executed yet.
    async fn idle(limits: Limits) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let moved = broadcast::channel(10_000).0;
        let training = open(folder.path(), &moved, limits).await;
        Fixture {
            folder,
            moved,
            limits,
            training,
            executor: None,
        }
    }

    async fn new() -> Fixture {
        Fixture::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Fixture {
        let mut fixture = Fixture::idle(limits).await;
        fixture.start();
        fixture
    }

    fn start(&mut self) {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(self.training.clone().execute(shutdown.clone()));
        self.executor = Some((shutdown, task));
    }

    async fn stop(&mut self) {
        let (shutdown, task) = self.executor.take().unwrap();
        shutdown.cancel();
        task.await.unwrap();
    }

    /// The next process with the same data.
    async fn reopen(&mut self) {
        self.training = open(self.folder.path(), &self.moved, self.limits).await;
    }

    async fn upload(&self, name: &str, content: &[u8]) -> InputFile {
        let digest = Digest::of(content);
        let blobs = &self.training.0.parts.blobs;
        blobs.put(digest, Bytes::copy_from_slice(content)).await.unwrap();
        InputFile {
            name: name.to_owned(),
            digest,
        }
    }

    async fn shell(&self, script: &str) -> NewRun {
        NewRun {
            experiment: "tests".to_owned(),
            script: self
                .upload("script.sh", format!("#!/bin/sh\n{script}").as_bytes())
                .await,
            inputs: Vec::new(),
            params: BTreeMap::new(),
            timeout: PATIENCE,
            register_as: None,
        }
    }

    /// A script with two children, one of which leaves the process group; all hold the FIFO open.
    async fn children(&self, end: &str) -> (NewRun, pipe::Receiver) {
        let path = self.folder.path().join("alive");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let alive = pipe::OpenOptions::new().open_receiver(&path).unwrap();
        let script = format!("exec 3> \"$2\"; sleep 600 & setsid sleep 600 & echo ready; {end}");
        let new = NewRun {
            params: [("alive".to_owned(), path.to_str().unwrap().to_owned())].into(),
            ..self.shell(&script).await
        };
        (new, alive)
    }

    async fn submit(&self, script: &str) -> RunId {
        self.training.submit(self.shell(script).await, by()).await.unwrap().id
    }

    async fn until(&self, id: &RunId, wanted: impl Fn(&Run) -> bool) -> Run {
        let mut moved = self.moved.subscribe();
        let wait = async {
            loop {
                let run = self.training.get(id).await.unwrap();
                if wanted(&run) {
                    return run;
                }
                moved.recv().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap()
    }

    async fn ended(&self, id: &RunId) -> Run {
        self.until(id, |run| run.status.has_ended()).await
    }

    async fn run(&self, script: &str) -> Run {
        self.ended(&self.submit(script).await).await
    }

    async fn log(&self, id: &RunId) -> String {
        let log = self.training.log(id, LogEnd::RunEnded).await.unwrap();
        let log: Vec<Bytes> = tokio::time::timeout(PATIENCE, log.try_collect())
            .await
            .unwrap()
            .unwrap();
        String::from_utf8(log.concat()).unwrap()
    }

    /// Lets a script go on that reads from the FIFO `gate` in its working folder.
    async fn open_gate(&self, id: &RunId) {
        let gate = self.training.folder_of(id).join("output/gate");
        tokio::fs::write(gate, "go\n").await.unwrap();
    }
}

async fn open(folder: &Path, moved: &broadcast::Sender<Moved>, limits: Limits) -> Training {
    let moved = moved.clone();
    let parts = Parts {
        db: Db::open(&folder.join("core.db"), Durability::Full, CORE_MIGRATIONS).unwrap(),
        blobs: BlobStore::open_folder(&folder.join("blobs")).unwrap(),
        folder: folder.join("runs"),
        config: TrainingConfig::default(),
        limits,
        now_ms: crate::app::now_ms,
        moved: Box::new(move |what| drop(moved.send(what))),
    };
    Training::open(parts).await.unwrap()
}

/// Returns when nobody has the FIFO of [`Fixture::children`] open: when they are dead.
async fn dead(mut alive: pipe::Receiver) {
    let read = tokio::time::timeout(PATIENCE, alive.read_u8()).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

fn onnx() -> Vec<u8> {
    let path = "../firmware-examples/activity-recognition/models/v1/model.onnx";
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[tokio::test]
async fn a_run_keeps_its_exit_status_and_what_it_printed() {
    let fixture = Fixture::new().await;
    let run = fixture.run("echo out; echo err >&2; printf more; exit 3").await;
    assert_eq!(
        (run.status, run.exit_status, run.signal),
        (RunStatus::Failed, Some(3), None)
    );
    assert_eq!(run.error.as_deref(), Some("the script ended with exit status 3"));
    assert!(run.started_at_ms >= Some(run.created_at_ms) && run.ended_at_ms >= run.started_at_ms);
    let log = fixture.log(&run.id).await;
    assert_eq!(log, "out\nerr\nmore\nskerry: the script ended with exit status 3\n");
}

#[tokio::test]
async fn a_script_that_is_killed_keeps_its_signal() {
    let fixture = Fixture::new().await;
    let run = fixture.run("kill -SEGV $$").await;
    assert_eq!(
        (run.status, run.exit_status, run.signal),
        (RunStatus::Failed, None, Some(11))
    );
}

#[tokio::test]
async fn a_script_gets_its_inputs_and_parameters() {
    let fixture = Fixture::new().await;
    let mut new = fixture
        .shell(r#"echo "$@"; cat "$SKERRY_INPUT_DIR/a.csv"; echo "$SKERRY_RUN_ID"; pwd; echo "$SKERRY_OUTPUT_DIR""#)
        .await;
    new.inputs = vec![fixture.upload("a.csv", b"1,2\n").await];
    new.params = [
        ("alpha".to_owned(), "-1 2".to_owned()),
        ("b".to_owned(), "$(id)".to_owned()),
    ]
    .into();
    let submitted = fixture.training.submit(new, by()).await.unwrap();
    assert_eq!(submitted.status, RunStatus::Scheduled);
    let run = fixture.ended(&submitted.id).await;
    assert_eq!(run.status, RunStatus::Finished, "{run:?}");
    let output = fixture.training.folder_of(&run.id).join("output");
    let (id, output) = (&run.id, output.display());
    let expected = format!("--alpha -1 2 --b $(id)\n1,2\n{id}\n{output}\n{output}\n");
    assert_eq!(fixture.log(&run.id).await, expected);
    let lines = format!("{}  a.csv\n", Digest::of(b"1,2\n").to_hex());
    assert_eq!(run.dataset, Some(Digest::of(lines.as_bytes())));
}

#[tokio::test]
async fn a_python_script_needs_no_shebang() {
    let fixture = Fixture::new().await;
    let script = b"import sys, os\nprint(sys.argv[1:], len(os.listdir(os.environ['SKERRY_INPUT_DIR'])))\n";
    let new = NewRun {
        script: fixture.upload("train.py", script).await,
        params: [("k".to_owned(), "v".to_owned())].into(),
        ..fixture.shell("").await
    };
    let run = fixture.training.submit(new, by()).await.unwrap();
    assert_eq!(fixture.log(&run.id).await, "['--k', 'v'] 0\n");
    assert_eq!(fixture.ended(&run.id).await.status, RunStatus::Finished);
}

#[tokio::test]
async fn a_file_that_cannot_be_executed_fails_its_run() {
    let fixture = Fixture::new().await;
    let new = NewRun {
        script: fixture.upload("script", b"\0").await,
        ..fixture.shell("").await
    };
    let run = fixture.training.submit(new, by()).await.unwrap();
    let run = fixture.ended(&run.id).await;
    assert_eq!(run.status, RunStatus::Failed);
    let error = run.error.unwrap();
    assert!(
        error.starts_with("the script or its interpreter cannot be started: "),
        "{error}"
    );
}

#[tokio::test]
async fn the_environment_of_the_server_stays_with_the_server() {
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let fixture = Fixture::new().await;
    let run = fixture.run("env").await;
    let log = fixture.log(&run.id).await;
    let mut names: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    // The shell's own.
    names.retain(|name| !["_", "PWD", "OLDPWD", "SHLVL"].contains(name));
    names.sort_unstable();
    let ours = ["SKERRY_INPUT_DIR", "SKERRY_OUTPUT_DIR", "SKERRY_RUN_ID"];
    let all = [&["HOME", "LANG", "PATH", "PYTHONUNBUFFERED"], ours.as_slice()].concat();
    names.retain(|name| *name != "HOME" || std::env::var_os("HOME").is_some());
    assert_eq!(names, all);
}

#[tokio::test]
async fn a_run_past_its_time_limit_is_killed_with_its_children() {
    let fixture = Fixture::new().await;
    let (new, alive) = fixture.children("exec sleep 600").await;
    let timeout = Duration::from_secs(1);
    let run = fixture.training.submit(NewRun { timeout, ..new }, by()).await.unwrap();
    let run = fixture.ended(&run.id).await;
    assert_eq!((run.status, run.signal), (RunStatus::Failed, Some(15)));
    assert_eq!(run.error.as_deref(), Some("the script reached its time limit of 1 s"));
    assert!(fixture.log(&run.id).await.starts_with("ready\n"));
    dead(alive).await;
}

#[tokio::test]
async fn children_do_not_outlive_a_run_that_ended_well() {
    let fixture = Fixture::new().await;
    let (new, alive) = fixture.children("true").await;
    let run = fixture.training.submit(new, by()).await.unwrap();
    assert_eq!(fixture.ended(&run.id).await.status, RunStatus::Finished);
    dead(alive).await;
}

#[tokio::test]
async fn a_process_that_got_away_and_prints_for_ever_does_not_hold_its_run() {
    let fixture = Fixture::new().await;
    // Without its environment and its group it is nobody's: the broken pipe ends it when nobody reads any more.
    let run = fixture
        .run("mkfifo gate; env -i setsid sh -c 'echo > gate; exec yes' & read x < gate")
        .await;
    assert_eq!(run.status, RunStatus::Finished);
    let log = fixture.log(&run.id).await;
    assert!(log.contains("skerry: a process that cannot be found any more has kept the output open"));
}

#[tokio::test]
async fn a_cancelled_run_is_killed() {
    let fixture = Fixture::new().await;
    let id = fixture.submit("exec sleep 600").await;
    fixture.until(&id, |run| run.status == RunStatus::Running).await;
    let run = fixture.training.cancel(&id, by()).await.unwrap();
    assert_eq!(run.status, RunStatus::Killed);
    assert_eq!(run.error.as_deref(), Some("the run was cancelled"));
    let again = fixture.training.cancel(&id, by()).await;
    assert!(matches!(again, Err(TrainingError::Ended(_))));
}

#[tokio::test]
async fn a_script_that_ignores_termination_is_killed_after_the_grace() {
    let fixture = Fixture::with(Limits {
        terminate_grace: Duration::from_millis(50),
        ..Limits::default()
    })
    .await;
    let id = fixture
        .submit("trap '' TERM; echo ready; while :; do sleep 600; done")
        .await;
    let mut log = Box::pin(fixture.training.log(&id, LogEnd::RunEnded).await.unwrap());
    assert_eq!(log.next().await.unwrap().unwrap(), "ready\n");
    let run = fixture.training.cancel(&id, by()).await.unwrap();
    assert_eq!((run.status, run.signal), (RunStatus::Killed, Some(9)));
}

#[tokio::test]
async fn a_run_that_is_cancelled_before_its_turn_never_starts() {
    let fixture = Fixture::idle(Limits::default()).await;
    let id = fixture.submit("echo started").await;
    let (run, log) = tokio::join!(fixture.training.cancel(&id, by()), fixture.log(&id));
    let run = run.unwrap();
    assert_eq!((run.status, run.started_at_ms), (RunStatus::Killed, None));
    assert_eq!(log, "");
}

#[tokio::test]
async fn a_log_is_followed_live_to_its_end() {
    let fixture = Fixture::new().await;
    let id = fixture
        .submit("mkfifo gate; echo first; read x < gate; echo second $x")
        .await;
    let mut log = Box::pin(fixture.training.log(&id, LogEnd::RunEnded).await.unwrap());
    assert_eq!(log.next().await.unwrap().unwrap(), "first\n");
    assert_eq!(fixture.training.get(&id).await.unwrap().status, RunStatus::Running);
    let now = fixture.training.log(&id, LogEnd::Now).await.unwrap();
    assert_eq!(now.try_collect::<Vec<_>>().await.unwrap().concat(), b"first\n");
    fixture.open_gate(&id).await;
    let rest: Vec<Bytes> = log.try_collect().await.unwrap();
    assert_eq!(rest.concat(), b"second go\n");
    // The end of the log is the end of the run.
    assert_eq!(fixture.training.get(&id).await.unwrap().status, RunStatus::Finished);
}

#[tokio::test]
async fn a_log_stops_growing_at_its_limit_and_says_so() {
    let fixture = Fixture::with(Limits {
        log_bytes: 1000,
        ..Limits::default()
    })
    .await;
    let run = fixture.run("head -c 100000 /dev/zero | tr '\\0' x").await;
    assert_eq!(run.status, RunStatus::Finished);
    let log = fixture.log(&run.id).await;
    let kept = "x".repeat(1000);
    let expected = format!(
        "{kept}\nskerry: the log is cut here, at its limit of 1000 bytes\nskerry: 99000 bytes of output were dropped\n"
    );
    assert_eq!(log, expected);
}

#[tokio::test]
async fn metrics_are_there_while_the_run_goes_on_and_keep_their_history() {
    let fixture = Fixture::with(Limits {
        metrics_every: Duration::from_millis(10),
        ..Limits::default()
    })
    .await;
    let id = fixture
        .submit(
            r#"mkfifo gate
            echo '{"key":"loss","value":2,"step":1}' >> metrics.jsonl
            read x < gate
            echo 'no metric' >> metrics.jsonl
            echo '{"key":"loss","value":1,"step":5}' >> metrics.jsonl
            echo '{"key":"loss","value":3,"step":2}' >> metrics.jsonl
            printf '{"key":"accuracy","value":0.5}' >> metrics.jsonl"#,
        )
        .await;
    let run = fixture.until(&id, |run| !run.metrics.is_empty()).await;
    assert_eq!(run.status, RunStatus::Running);
    fixture.open_gate(&id).await;
    let run = fixture.ended(&id).await;
    assert_eq!(run.status, RunStatus::Finished);
    let latest = [("accuracy".to_owned(), 0.5), ("loss".to_owned(), 1.0)];
    assert_eq!(run.metrics, latest.into());
    let history = fixture.training.metrics(&id).await.unwrap();
    let history: Vec<_> = history.iter().map(|p| (p.key.as_str(), p.value, p.step)).collect();
    assert_eq!(
        history,
        [
            ("loss", 2.0, 1),
            ("loss", 1.0, 5),
            ("loss", 3.0, 2),
            ("accuracy", 0.5, 0)
        ]
    );
    let log = fixture.log(&id).await;
    assert!(log.starts_with("skerry: metrics.jsonl: 1 line(s) are not"), "{log}");
}

#[tokio::test]
async fn artifacts_are_stored_and_the_rest_is_removed() {
    let fixture = Fixture::new().await;
    let run = fixture
        .run("cd artifacts; mkdir plots; printf 1 > plots/a.txt; printf 22 > b; ln -s /etc/passwd p; echo x > ../loose")
        .await;
    assert_eq!(run.status, RunStatus::Finished);
    let found: Vec<_> = run.artifacts.iter().map(|a| (a.path.as_str(), a.size_bytes)).collect();
    assert_eq!(found, [("b", 2), ("plots/a.txt", 1)]);
    assert_eq!(fixture.training.artifact(&run.id, "plots/a.txt").await.unwrap(), "1");
    for path in ["p", "../loose", "plots/../b", "/etc/passwd"] {
        let missing = fixture.training.artifact(&run.id, path).await;
        assert!(matches!(missing, Err(TrainingError::NoArtifact { .. })), "{path}");
    }
    assert_eq!(
        fixture.log(&run.id).await,
        "skerry: artifact `p` is a link or no plain file and is not kept\n"
    );
    let left = std::fs::read_dir(fixture.training.folder_of(&run.id)).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["log"]);
}

#[tokio::test]
async fn a_run_with_too_large_an_artifact_fails() {
    let fixture = Fixture::with(Limits {
        artifact_bytes: 10,
        ..Limits::default()
    })
    .await;
    let run = fixture.run("printf 12345678901 > artifacts/a").await;
    assert_eq!((run.status, run.exit_status), (RunStatus::Failed, Some(0)));
    assert_eq!(run.error.as_deref(), Some("artifact `a` is larger than 10 bytes"));
}

#[tokio::test]
async fn a_model_is_registered_with_its_run() {
    let fixture = Fixture::new().await;
    let script = r#"cp "$SKERRY_INPUT_DIR/v1.onnx" artifacts/model.onnx"#;
    let new = NewRun {
        inputs: vec![fixture.upload("v1.onnx", &onnx()).await],
        register_as: Some("activity".parse().unwrap()),
        ..fixture.shell(script).await
    };
    let mut moved = fixture.moved.subscribe();
    let run = fixture.training.submit(new.clone(), by()).await.unwrap();
    let run = fixture.ended(&run.id).await;
    assert_eq!(run.status, RunStatus::Finished, "{:?}", run.error);
    let registered = run.registered.unwrap();
    assert_eq!(registered.version, ModelVersion(1));
    let version = registry::get_version(&fixture.training.0.parts.db, &registered.model, registered.version).await;
    let version = version.unwrap();
    assert_eq!(version.run_id, Some(run.id));
    assert_eq!(version.digest, Digest::of(&onnx()));
    while moved.recv().await.unwrap() != Moved::Model(registered.model.clone()) {}

    // The same file is the same version, made by the first run.
    let again = fixture.training.submit(new, by()).await.unwrap();
    let again = fixture.ended(&again.id).await;
    assert_eq!(again.registered, Some(registered));
    assert!(fixture.log(&again.id).await.contains("is activity version 1 already"));
}

#[tokio::test]
async fn a_model_that_no_device_could_run_fails_its_run() {
    let fixture = Fixture::new().await;
    let model: ModelName = "activity".parse().unwrap();
    let new = NewRun {
        register_as: Some(model.clone()),
        ..fixture.shell("echo nonsense > artifacts/model.onnx").await
    };
    let run = fixture.training.submit(new, by()).await.unwrap();
    let run = fixture.ended(&run.id).await;
    assert_eq!((run.status, run.exit_status), (RunStatus::Failed, Some(0)));
    let error = run.error.unwrap();
    assert!(
        error.starts_with("artifacts/model.onnx cannot be registered"),
        "{error}"
    );
    assert_eq!((run.artifacts.len(), run.registered), (1, None));
    let registered = registry::get(&fixture.training.0.parts.db, &model).await;
    assert!(registered.is_err());
}

#[tokio::test]
async fn a_run_that_should_have_made_a_model_fails_without_one() {
    let fixture = Fixture::new().await;
    let new = NewRun {
        register_as: Some("activity".parse().unwrap()),
        ..fixture.shell("true").await
    };
    let run = fixture.training.submit(new, by()).await.unwrap();
    let error = fixture.ended(&run.id).await.error.unwrap();
    assert_eq!(error, "artifacts/model.onnx is not there, so nothing was registered");
}

#[tokio::test]
async fn one_run_after_another_is_executed() {
    let fixture = Fixture::new().await;
    let first = fixture.submit("mkfifo gate; echo ready; read x < gate").await;
    let second = fixture.submit("true").await;
    let mut log = Box::pin(fixture.training.log(&first, LogEnd::RunEnded).await.unwrap());
    log.next().await.unwrap().unwrap();
    assert_eq!(
        fixture.training.get(&second).await.unwrap().status,
        RunStatus::Scheduled
    );
    fixture.open_gate(&first).await;
    let (first, second) = (fixture.ended(&first).await, fixture.ended(&second).await);
    assert!(second.started_at_ms >= first.ended_at_ms);
    let listed = fixture.training.list(Some("tests".to_owned())).await.unwrap();
    assert_eq!(
        listed.iter().map(|run| &run.id).collect::<Vec<_>>(),
        [&second.id, &first.id]
    );
    assert!(
        fixture
            .training
            .list(Some("other".to_owned()))
            .await
            .unwrap()
            .is_empty()
    );
    let experiments = fixture.training.experiments().await.unwrap();
    assert_eq!((experiments.len(), experiments[0].runs), (1, 2));
}

#[tokio::test]
async fn a_refused_run_leaves_nothing() {
    let fixture = Fixture::idle(Limits {
        scheduled_runs: 1,
        ..Limits::default()
    })
    .await;
    let good = fixture.shell("true").await;
    let digest = Digest::of(b"never uploaded");
    let missing = InputFile {
        name: "a".to_owned(),
        digest,
    };
    let refused = fixture.training.submit(
        NewRun {
            inputs: vec![missing],
            ..good.clone()
        },
        by(),
    );
    assert!(matches!(refused.await, Err(TrainingError::MissingBlob { .. })));
    let mut bad = good.clone();
    bad.script.name = "../script.sh".to_owned();
    assert!(matches!(
        fixture.training.submit(bad, by()).await,
        Err(TrainingError::Refused(_))
    ));
    assert!(fixture.training.experiments().await.unwrap().is_empty());

    fixture.training.submit(good.clone(), by()).await.unwrap();
    let refused = fixture.training.submit(good, by()).await;
    assert!(matches!(refused, Err(TrainingError::QueueFull(1))));
    assert_eq!(fixture.training.list(None).await.unwrap().len(), 1);
    assert_eq!(fixture.training.lock_live().len(), 1);
}

#[tokio::test]
async fn a_shutdown_stops_scripts_and_keeps_the_queue() {
    let mut fixture = Fixture::new().await;
    let (new, alive) = fixture.children("exec sleep 600").await;
    let running = fixture.training.submit(new, by()).await.unwrap().id;
    let waiting = fixture.submit("echo started").await;
    let mut log = Box::pin(fixture.training.log(&running, LogEnd::RunEnded).await.unwrap());
    assert_eq!(log.next().await.unwrap().unwrap(), "ready\n");
    let follower = fixture.training.log(&waiting, LogEnd::RunEnded).await.unwrap();
    fixture.stop().await;
    dead(alive).await;
    let stopped = fixture.training.get(&running).await.unwrap();
    assert_eq!(stopped.status, RunStatus::Failed);
    assert_eq!(
        stopped.error.as_deref(),
        Some("the control plane stopped during the run")
    );
    // The reader of a log that has not begun does not keep the server.
    assert!(follower.try_collect::<Vec<_>>().await.unwrap().is_empty());
    assert_eq!(
        fixture.training.get(&waiting).await.unwrap().status,
        RunStatus::Scheduled
    );

    fixture.reopen().await;
    fixture.start();
    assert_eq!(fixture.ended(&waiting).await.status, RunStatus::Finished);
    assert_eq!(fixture.log(&waiting).await, "started\n");
}

#[tokio::test]
async fn a_database_error_does_not_leave_a_run_waiting() {
    let mut fixture = Fixture::idle(Limits::default()).await;
    let id = fixture.submit("true").await;
    // Nothing else shall wake the executor.
    fixture.training.0.wake.notified().await;
    let rename = async |from: &str, to: &str| {
        let sql = format!("ALTER TABLE {from} RENAME TO {to}");
        let db = &fixture.training.0.parts.db;
        let renamed = db.write(move |conn| Ok::<_, DbError>(conn.execute_batch(&sql)?)).await;
        renamed.unwrap();
    };
    rename("runs", "away").await;
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(fixture.training.clone().execute(shutdown.clone()));
    // On this one thread the executor asks first, and the writer keeps the order.
    tokio::task::yield_now().await;
    rename("away", "runs").await;
    fixture.executor = Some((shutdown, task));
    assert_eq!(fixture.ended(&id).await.status, RunStatus::Finished);
    fixture.stop().await;
}

#[tokio::test]
async fn a_run_left_running_by_a_dead_server_is_failed_at_start_with_its_processes() {
    let mut fixture = Fixture::idle(Limits::default()).await;
    let id = fixture.submit("true").await;
    let claimed = fixture.training.claim().await.unwrap().unwrap();
    assert_eq!((claimed.id.clone(), claimed.status), (id.clone(), RunStatus::Running));
    // It has said something: before that it may be in the middle of exec, where nobody can see its environment.
    let start = async |run: &str| {
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "echo; sleep 600"])
            .env(process::RUN_ID_VARIABLE, run);
        let (group, mut output) = process::Group::start(command).unwrap();
        output.read_u8().await.unwrap();
        group
    };
    let stray = start(id.as_str()).await;
    let other = start("0123456789abcdef0123456789abcdef").await;
    fixture.reopen().await;
    let run = fixture.training.get(&id).await.unwrap();
    assert_eq!(run.status, RunStatus::Failed);
    assert_eq!(run.error.as_deref(), Some("the control plane stopped during the run"));
    stray.exited().await.unwrap();
    assert_eq!(stray.reap().unwrap(), process::Exit::Signal(9));
    // Another run's process lives, and so dies of what comes first.
    other.signal(Signal::TERM);
    other.exited().await.unwrap();
    assert_eq!(other.reap().unwrap(), process::Exit::Signal(15));
}
