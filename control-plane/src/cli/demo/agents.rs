//! The demo's devices: agents as processes of their own, which can be killed and started again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::wait::{Stop, wait_for};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// One device.
pub(super) struct Device {
    pub(super) id: String,
    state_dir: PathBuf,
    /// Bytes per second; the slow link of a device far out.
    pub(super) bandwidth: Option<u64>,
    process: Option<Child>,
    http: ureq::Agent,
}

impl Device {
    /// Enrols a device with a one-time token.
    pub(super) fn enroll(folder: &Path, id: &str, server: &str, token: &str) -> anyhow::Result<Device> {
        let state_dir = folder.join(id);
        fs::create_dir_all(&state_dir).with_context(|| format!("cannot make {}", state_dir.display()))?;
        let mut command = agent(&["enroll"], &state_dir)?;
        // The token is not an argument: those can be read by everybody on the machine.
        let enrolled = command
            .env("SKERRY_ENROLL_TOKEN", token)
            .args(["--server", server, "--device-id", id])
            .output()
            .context("cannot start the agent")?;
        if !enrolled.status.success() {
            bail!(
                "device {id} cannot enrol: {}",
                String::from_utf8_lossy(&enrolled.stderr).trim()
            );
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(10)));
        Ok(Device {
            id: id.to_owned(),
            state_dir,
            bandwidth: None,
            process: None,
            http: config.build().into(),
        })
    }

    /// Starts the agent and waits until its local API answers.
    pub(super) fn start(&mut self, stop: &Stop) -> anyhow::Result<()> {
        // Left by an earlier start: the new agent writes its own.
        let _ = fs::remove_file(self.address_file());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.state_dir.join("agent.log"))
            .context("cannot open an agent's log")?;
        let mut command = agent(&["run"], &self.state_dir)?;
        command.args(["--listen", "127.0.0.1:0", "--telemetry-interval", "1s"]);
        if let Some(bandwidth) = self.bandwidth {
            command.arg("--bandwidth").arg(bandwidth.to_string());
        }
        let process = command.stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(process.context("cannot start the agent")?);
        let what = format!("device {} to start", self.id);
        wait_for(&what, START_DEADLINE, stop, || Ok(self.status().ok())).map(|_| ())
    }

    /// The power cut.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("cannot kill the agent")?;
            process.wait().context("cannot wait for the agent")?;
        }
        Ok(())
    }

    fn address_file(&self) -> PathBuf {
        self.state_dir.join("inference-address")
    }

    /// The base of its local API.
    pub(super) fn url(&self) -> anyhow::Result<String> {
        let address = fs::read_to_string(self.address_file()).context("the agent has no address yet")?;
        Ok(format!("http://{}", address.trim()))
    }

    /// What the agent says of itself.
    pub(super) fn status(&self) -> anyhow::Result<Value> {
        let mut answer = self.http.get(format!("{}/skerry/v1/status", self.url()?)).call()?;
        Ok(answer.body_mut().read_json()?)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// This program as an agent: the same code as `skerry-agent`.
fn agent(words: &[&str], state_dir: &Path) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .arg("agent")
        .args(words)
        .arg("--state-dir")
        .arg(state_dir)
        .stdin(Stdio::null());
    Ok(command)
}
