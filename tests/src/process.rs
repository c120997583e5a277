//! A process of the program under test, with its log.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// For anything that a loaded machine does slowly. A test that waits longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A running process. It is killed when this goes.
pub struct Process {
    name: String,
    child: Child,
    lines: mpsc::Receiver<String>,
    log: PathBuf,
}

impl Process {
    /// Starts a command; its stderr goes line by line to `log` and to [`Process::wait_for_line`].
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("cannot open the log")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                let _ = writeln!(file, "{line}");
                let _ = sender.send(line);
            }
        });
        Ok(Process {
            name: name.to_owned(),
            child,
            lines,
            log: log.to_owned(),
        })
    }

    /// Waits for a line of the log that `find` recognises, from where the last wait ended.
    pub fn wait_for_line<T>(&self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("{} never said {what}; its log:\n{}", self.name, self.log());
            };
            if let Some(found) = find(&line) {
                return Ok(found);
            }
        }
    }

    /// Forgets the lines that have come so far: what is waited for next is said from now on.
    pub fn forget_lines(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// The power cut: SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill")?;
        self.child.wait().context("cannot wait")?;
        Ok(())
    }

    /// SIGTERM, then the exit status.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .context("cannot run kill")?;
        if !sent.success() {
            bail!("cannot signal {}", self.name);
        }
        self.child.wait().context("cannot wait")
    }

    /// Waits until the process ends by itself.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.child.wait().context("cannot wait")
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The most memory that it has had, in kB.
    pub fn peak_kb(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kb = line.context("/proc tells no peak")?.trim().trim_end_matches(" kB");
        Ok(kb.parse()?)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
