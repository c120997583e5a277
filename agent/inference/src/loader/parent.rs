//! The side that starts the loading process, answers what it wants, and judges how it ended.

use std::{
    ffi::OsString,
    io::{BufReader, Read as _},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use skerry_shared::{bundle::Manifest, id::ResourceName};

use super::wire::{Job, Said, read_line, write_bytes, write_line};
use crate::{EngineName, Figures, Read, engine::onnxruntime::SILENCE};

/// Between two looks whether the process has ended, after it has said its last word.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What is kept of the process's complaints.
const STDERR_BYTES_MAX: usize = 4096;
/// What is passed on of them.
const COMPLAINT_CHARACTERS_MAX: usize = 200;
/// What Rust says before it aborts over an allocation, and tract when it panics over one.
const ALLOCATION_FAILED: [&str; 2] = ["memory allocation of", "failed to allocate"];

/// What loading may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderLimits {
    /// Memory that the process may write, its own few megabytes included.
    pub memory_bytes: u64,
    /// Wall time, and processor time.
    pub time: Duration,
}

/// Loads bundles in processes of their own.
#[derive(Clone, Debug)]
pub struct Loader {
    /// The program, and the words that make it call [`run_child`](super::run_child).
    pub program: PathBuf,
    /// Its first words. The limits follow as `--memory-bytes` and `--cpu-seconds`.
    pub words: Vec<OsString>,
    /// What it may take.
    pub limits: LoaderLimits,
}

/// Why a bundle was not loaded, or answered wrongly, in a process of its own.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// There is no such process.
    #[error("cannot start a process that loads the model")]
    Start(#[source] std::io::Error),
    /// A resource cannot be read here.
    #[error("cannot read resource `{name}`")]
    Read {
        /// The resource.
        name: ResourceName,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("loading took longer than its limit of {} s and was ended", .0.as_secs())]
    Time(Duration),
    /// It wanted too much memory.
    #[error("loading wanted more memory than its limit of {0} bytes and was ended")]
    Memory(u64),
    /// The model ended its loader.
    #[error("the model ended the process that loaded it ({how}){complaint}")]
    Crashed {
        /// The signal or exit code.
        how: String,
        /// What the process said last, if anything.
        complaint: String,
    },
    /// It does not load.
    #[error("{0}")]
    DoesNotLoad(String),
    /// It fails its golden vectors.
    #[error("{0}")]
    AnswersWrongly(String),
}

impl LoaderError {
    /// A stable word.
    pub fn code(&self) -> &'static str {
        match self {
            LoaderError::Start(_) => "loader",
            LoaderError::Time(_) => "load_time",
            LoaderError::Memory(_) => "load_memory",
            LoaderError::Crashed { .. } => "load_crash",
            LoaderError::Read { .. } | LoaderError::DoesNotLoad(_) => "load",
            LoaderError::AnswersWrongly(_) => "golden_mismatch",
        }
    }
}

impl Loader {
    /// Loads a bundle with this engine and proves it on its golden vectors, in a process of its own. Nothing of it stays.
    ///
    /// # Errors
    /// [`LoaderError`], within the time limit whatever the bundle does.
    pub fn prove(
        &self,
        manifest: &Manifest,
        engine: EngineName,
        onnxruntime: Option<PathBuf>,
        read: &mut Read<'_>,
    ) -> Result<Figures, LoaderError> {
        let job = Job {
            engine,
            onnxruntime,
            manifest: manifest.clone(),
        };
        let mut child = self.start().map_err(LoaderError::Start)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(LoaderError::Start(std::io::ErrorKind::BrokenPipe.into()));
        };
        let child = Mutex::new(child);
        let (conversation, status, late, complaint) = thread::scope(|scope| {
            let (ended, wait) = mpsc::channel::<()>();
            let child = &child;
            let timer = scope.spawn(move || {
                let late = wait.recv_timeout(self.limits.time) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    let _gone_already = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
                }
                late
            });
            let complaints = scope.spawn(move || last_words(stderr));
            let conversation = converse(&job, stdin, stdout, read);
            let status = wait_for(child);
            drop(ended);
            let late = timer.join().unwrap_or(false);
            (conversation, status, late, complaints.join().unwrap_or_default())
        });
        let status = status.map_err(LoaderError::Start)?;
        self.judge(conversation?, status, late, &complaint)
    }

    fn start(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.words)
            .args(["--memory-bytes", &self.limits.memory_bytes.to_string()])
            .args(["--cpu-seconds", &self.limits.time.as_secs().max(1).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Tokens and sockets of the service manager are none of its business; where libraries are may be.
        command.env_clear().env(SILENCE, "1");
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", path);
        }
        command.spawn()
    }

    fn judge(
        &self,
        said: Option<Said>,
        status: ExitStatus,
        late: bool,
        complaint: &str,
    ) -> Result<Figures, LoaderError> {
        if late || status.signal() == Some(Signal::XCPU.as_raw()) {
            return Err(LoaderError::Time(self.limits.time));
        }
        let wants_memory = ALLOCATION_FAILED.iter().any(|words| complaint.contains(words));
        match said {
            Some(Said::Proved(figures)) if status.success() => Ok(figures),
            _ if wants_memory => Err(LoaderError::Memory(self.limits.memory_bytes)),
            Some(Said::DoesNotLoad(reason)) if status.success() => Err(LoaderError::DoesNotLoad(reason)),
            Some(Said::AnswersWrongly(reason)) if status.success() => Err(LoaderError::AnswersWrongly(reason)),
            _ => Err(LoaderError::Crashed {
                how: status.to_string(),
                complaint: sentence(complaint),
            }),
        }
    }
}

/// Gives the process what it wants until its last word. A process that breaks off has said nothing; how it ended says why.
fn converse(
    job: &Job,
    mut stdin: ChildStdin,
    stdout: ChildStdout,
    read: &mut Read<'_>,
) -> Result<Option<Said>, LoaderError> {
    let mut stdout = BufReader::new(stdout);
    if write_line(&mut stdin, job).is_err() {
        return Ok(None);
    }
    loop {
        let name = match read_line(&mut stdout) {
            Ok(Some(Said::Want(name))) => name,
            Ok(last) => return Ok(last),
            Err(_) => return Ok(None),
        };
        let resource = job.manifest.resource(&name);
        let bytes = resource.map(&mut *read).transpose();
        let bytes = bytes.map_err(|source| LoaderError::Read { name, source })?;
        if write_bytes(&mut stdin, bytes.as_deref()).is_err() {
            return Ok(None);
        }
    }
}

/// Waits for the end of a process that somebody else may kill meanwhile.
fn wait_for(child: &Mutex<Child>) -> std::io::Result<ExitStatus> {
    loop {
        let status = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?;
        match status {
            Some(status) => return Ok(status),
            None => thread::sleep(LOOK_EVERY),
        }
    }
}

/// The end of what the process complains; the rest is read and dropped, so that it never waits for us.
fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut piece) {
        kept.extend_from_slice(&piece[..length]);
        let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last line, as the end of a sentence.
fn sentence(complaint: &str) -> String {
    let line = complaint.lines().rev().find(|line| !line.trim().is_empty());
    let printable = |line: &str| -> String {
        let characters = line.trim().chars().filter(|c| !c.is_control());
        characters.take(COMPLAINT_CHARACTERS_MAX).collect()
    };
    line.map_or_else(String::new, |line| format!(": {}", printable(line)))
}
