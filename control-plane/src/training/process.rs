//! The processes of a run: a group of its own that is ended as a whole.
//!
//! A script's children are in its process group. Those that left it (`setsid`) are found by their environment, which holds the
//! run's id; only one that left the group and emptied its environment gets away. Invariant: no signal goes to a process that
//! is not certainly the run's.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::OpenOptionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use skerry_shared::id::RunId;
use tokio::net::unix::pipe;

/// Tells a script its run, and us whose process it is.
pub(super) const RUN_ID_VARIABLE: &str = "SKERRY_RUN_ID";

/// Held while an executable file is open for writing and while a process starts: between fork and exec a new process has
/// copies of all our descriptors, and a file that somebody has open for writing cannot be executed (ETXTBSY).
static FORK: Mutex<()> = Mutex::new(());

/// Writes a file that can be executed.
pub(super) fn write_executable(path: &Path, content: &[u8]) -> io::Result<()> {
    let _held = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o700).open(path)?;
    file.write_all(content)
}

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// By itself.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// A script and its children. Dropping it kills them.
pub(super) struct Group {
    leader: Child,
    /// The leader's id and the group's. It stays theirs until the leader is reaped.
    id: Pid,
    reaped: bool,
}

impl Group {
    /// Starts a group; what all of them print comes out of one pipe, in its order.
    ///
    /// # Errors
    /// When the program cannot be executed.
    pub(super) fn start(mut command: Command) -> io::Result<(Group, pipe::Receiver)> {
        let (output, input) = io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input)
            .process_group(0);
        let leader = {
            let _held = FORK.lock().unwrap_or_else(PoisonError::into_inner);
            command.spawn()?
        };
        let id = Pid::from_child(&leader);
        let group = Group {
            leader,
            id,
            reaped: false,
        };
        // `command` holds the pipe's other end: the end of the output would never come.
        drop(command);
        Ok((group, pipe::Receiver::from_owned_fd(OwnedFd::from(output))?))
    }

    /// Sends a signal to all of them.
    pub(super) fn signal(&self, signal: Signal) {
        // The only likely error is that none is left.
        let _ = kill_process_group(self.id, signal);
    }

    /// Returns when the script has ended. It is not reaped then, so that its id stays its own.
    pub(super) fn exited(&self) -> impl Future<Output = io::Result<()>> + use<> {
        let id = self.id;
        async move {
            let wait = move || {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                rustix::io::retry_on_intr(|| waitid(WaitId::Pid(id), options))
            };
            let waited = tokio::task::spawn_blocking(wait).await;
            waited.map_err(io::Error::other)??;
            Ok(())
        }
    }

    /// Kills what is left of the group and says how the script ended. To be called after [`Group::exited`]: it blocks until
    /// then.
    pub(super) fn reap(mut self) -> io::Result<Exit> {
        self.signal(Signal::KILL);
        let status = self.leader.wait()?;
        self.reaped = true;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::KILL);
            // The killed leader would stay a zombie. It is gone at once, so this does not block for long.
            let _ = self.leader.wait();
        }
    }
}

/// How often processes are looked for: one that forks may hide its child from the first look.
#[cfg(target_os = "linux")]
const LOOKS: usize = 8;

/// Kills every process that has the run's id in its environment. The id has 128 random bits and is given to nobody else, so
/// such a process is the run's, whatever has happened since it started.
#[cfg(target_os = "linux")]
pub(super) fn kill_strays(run: &RunId) {
    let mark = format!("{RUN_ID_VARIABLE}={run}");
    for _ in 0..LOOKS {
        if kill_marked(mark.as_bytes()) == 0 {
            return;
        }
    }
}

#[cfg(target_os = "linux")]
fn kill_marked(mark: &[u8]) -> usize {
    use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw) else {
            continue;
        };
        // First the descriptor, then the question: the answer is then about the process that gets the signal, or about one
        // that has its id because it is dead, and a signal to the dead is an error.
        let Ok(process) = pidfd_open(id, PidfdFlags::empty()) else {
            continue;
        };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let is_marked = environment.split(|byte| *byte == 0).any(|variable| variable == mark);
        if is_marked && pidfd_send_signal(&process, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    killed
}

/// Elsewhere nobody can ask a process for its environment: a child that left the group gets away.
#[cfg(not(target_os = "linux"))]
pub(super) fn kill_strays(_run: &RunId) {}
