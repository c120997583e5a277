//! A device under test: an agent as a process, with its state folder.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};

use crate::{
    fixtures::{MODEL, Window},
    process::Process,
};

/// A device. Its agent is killed when this goes.
pub struct Device {
    /// Its id.
    pub id: String,
    /// Where the agent keeps everything.
    pub state_dir: PathBuf,
    /// More arguments of `skerry-agent run`.
    pub arguments: Vec<String>,
    /// The program that runs it and its first words: the one under test and `agent`, unless a bench chooses another.
    pub agent: Vec<OsString>,
    process: Option<Process>,
    url: String,
    http: ureq::Agent,
}

impl Device {
    /// Enrols a device with a token.
    pub fn enroll(program: &Path, folder: &Path, id: &str, server: &str, token: &str) -> Result<Device> {
        Device::enroll_with(vec![program.into(), "agent".into()], folder, id, server, token)
    }

    /// The same, with the words that start an agent.
    pub fn enroll_with(agent: Vec<OsString>, folder: &Path, id: &str, server: &str, token: &str) -> Result<Device> {
        let state_dir = folder.join(id);
        fs::create_dir_all(&state_dir)?;
        let (program, words) = agent.split_first().context("no program")?;
        let output = Command::new(program)
            .args(words)
            .args(["enroll", "--server", server, "--device-id", id, "--state-dir"])
            .arg(&state_dir)
            .env("SKERRY_ENROLL_TOKEN", token)
            .output()
            .context("cannot run the agent")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Device::enrolled_with(agent, &state_dir, id)
    }

    /// A device whose state folder has an identity already.
    pub fn enrolled(program: &Path, state_dir: &Path, id: &str) -> Result<Device> {
        Device::enrolled_with(vec![program.into(), "agent".into()], state_dir, id)
    }

    fn enrolled_with(agent: Vec<OsString>, state_dir: &Path, id: &str) -> Result<Device> {
        let state_dir = state_dir.to_owned();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)));
        Ok(Device {
            id: id.to_owned(),
            state_dir,
            arguments: vec!["--telemetry-interval".to_owned(), "200ms".to_owned()],
            agent,
            process: None,
            url: String::new(),
            http: config.build().into(),
        })
    }

    /// Starts the agent and waits until its local API listens.
    pub fn start(&mut self) -> Result<()> {
        let (program, words) = self.agent.split_first().context("no program")?;
        let mut command = Command::new(program);
        command
            .args(words)
            .args(["run", "--listen", "127.0.0.1:0", "--state-dir"]);
        command.arg(&self.state_dir).args(&self.arguments);
        let process = Process::start(&self.id, command, &self.log_path())?;
        let address = |line: &str| Some(line.split_once("local API listens address=")?.1.trim().to_owned());
        self.url = format!(
            "http://{}",
            process.wait_for_line("where its local API listens", address)?
        );
        self.process = Some(process);
        Ok(())
    }

    /// The power cut.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the agent runs")?.kill()
    }

    /// Ends the agent as its service manager would.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.take().context("the agent runs")?.terminate()?;
        if !status.success() {
            bail!("the agent ended with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }

    /// The agent's process.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// The base of its local API.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the agent says of itself.
    pub fn status(&self) -> Result<Value> {
        let mut answer = self.http.get(format!("{}/skerry/v1/status", self.url)).call()?;
        Ok(answer.body_mut().read_json()?)
    }

    /// The version of the demo's model in the slot that serves.
    pub fn serves(&self) -> Result<Option<u64>> {
        let status = self.status()?;
        let bundles = status["bundles"].as_array().into_iter().flatten();
        let mut current = bundles.filter(|b| b["slot"] == "current" && b["model"] == MODEL);
        Ok(current.next().and_then(|bundle| bundle["version"].as_u64()))
    }

    /// Posts a body to the inference API of the demo's model: status and answer.
    pub fn post_inference(&self, model: &str, body: &Value) -> Result<(u16, Value)> {
        let url = format!("{}/v2/models/{model}/infer", self.url);
        let mut answer = self.http.post(url).send_json(body)?;
        let status = answer.status().as_u16();
        Ok((status, answer.body_mut().read_json()?))
    }

    /// What the wearer does, by the device's own answer, and the version that says so.
    pub fn infer(&self, window: &Window) -> Result<(u64, String)> {
        let body =
            json!({"inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 6, 100], "data": window.samples}]});
        let (status, answer) = self.post_inference(MODEL, &body)?;
        if status != 200 {
            bail!("status {status}: {answer}");
        }
        let outputs = answer["outputs"].as_array().context("no outputs")?;
        let label = outputs
            .iter()
            .find(|output| output["name"] == "label")
            .context("no label")?;
        let label = label["data"][0].as_str().context("no label")?.to_owned();
        let version = answer["model_version"].as_str().context("no version")?.parse()?;
        Ok((version, label))
    }

    /// How this device connects to the broker, by what enrolment has left.
    pub fn broker_tls(&self) -> Result<Arc<ClientConfig>> {
        let identity: Value = serde_json::from_slice(&fs::read(self.state_dir.join("identity.json"))?)?;
        let authority = identity["authority"].as_str().context("no authority")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let chain = CertificateDer::pem_file_iter(self.state_dir.join("device.pem"))?;
        let key = PrivateKeyDer::from_pem_file(self.state_dir.join("device.key"))?;
        let config = ClientConfig::builder_with_provider(skerry_control_plane::ca::crypto())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?;
        Ok(Arc::new(config))
    }

    fn log_path(&self) -> PathBuf {
        self.state_dir.with_extension("log")
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}
