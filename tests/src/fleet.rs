//! The control plane under test, and what an operator does with it.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use skerry_control_plane::cli::{client::Client, trust::Trust};

use crate::{
    device::Device,
    fixtures::{self, IdentityTensor, MODEL},
    process::{PATIENCE, Process},
};

/// What a test changes about the control plane.
#[derive(Clone, Debug, Default)]
pub struct FleetConfig {
    /// More of the TOML configuration.
    pub toml: String,
    /// `mqtt://user:password@host:port` of a broker that runs elsewhere.
    pub external_broker: Option<String>,
}

/// A control plane with its offline keys, in a temporary folder.
pub struct Fleet {
    folder: tempfile::TempDir,
    program: PathBuf,
    config: FleetConfig,
    /// The addresses of the first start, which later starts keep.
    http: SocketAddr,
    mqtt: Option<SocketAddr>,
    token: String,
    trust: Trust,
    server: Option<Process>,
}

impl Fleet {
    /// Makes keys and starts a control plane. `program` is `env!("CARGO_BIN_EXE_skerry-under-test")`.
    pub fn start(program: &str) -> Result<Fleet> {
        Fleet::start_with(program, FleetConfig::default())
    }

    /// The same, with another configuration.
    pub fn start_with(program: &str, config: FleetConfig) -> Result<Fleet> {
        let folder = tempfile::Builder::new().prefix("skerry-test-").tempdir()?;
        skerry_control_plane::cli::keys::init(&folder.path().join("keys"))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut fleet = Fleet {
            folder,
            program: program.into(),
            config,
            http: any,
            mqtt: None,
            token: String::new(),
            trust: Trust::default(),
            server: None,
        };
        fleet.start_server()?;
        Ok(fleet)
    }

    /// Starts the control plane again, on the addresses that it had.
    pub fn start_server(&mut self) -> Result<()> {
        let path = self.path("skerry.toml");
        let broker = match (&self.config.external_broker, self.mqtt) {
            (Some(url), _) => format!("external_url = \"{url}\""),
            (None, Some(address)) => format!("embedded_bind = \"{address}\""),
            (None, None) => "embedded_bind = \"127.0.0.1:0\"".to_owned(),
        };
        let toml = format!(
            "data_dir = {:?}\n{}\n[http]\nbind = \"{}\"\n[mqtt]\n{broker}\n[signing]\ndir = {:?}\n",
            self.path("data"),
            self.config.toml,
            self.http,
            self.path("keys/online")
        );
        fs::write(&path, toml)?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--config"]).arg(&path);
        let server = Process::start("the control plane", command, &self.path("control-plane.log"))?;
        if self.token.is_empty() {
            let token = |line: &str| Some(line.split_once("first API token (shown once): ")?.1.to_owned());
            self.token = server.wait_for_line("its first token", token)?;
        }
        if self.config.external_broker.is_none() {
            let address = |line: &str| line.split_once("devices connect to MQTT at ")?.1.trim().parse().ok();
            self.mqtt = Some(server.wait_for_line("where its broker listens", address)?);
        }
        let address = |line: &str| {
            let (_, rest) = line.split_once("the console and the API are at https://")?;
            rest.trim_end_matches('/').parse().ok()
        };
        self.http = server.wait_for_line("that it listens", address)?;
        self.trust = Trust::of_file(&self.ca_path())?;
        self.server = Some(server);
        Ok(())
    }

    /// Kills the control plane, as a power cut would.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.take().context("the control plane runs")?.kill()
    }

    /// Ends the control plane, as an operator would.
    pub fn stop_server(&mut self) -> Result<()> {
        let status = self.server.take().context("the control plane runs")?.terminate()?;
        if !status.success() {
            bail!("the control plane ended with {status}");
        }
        Ok(())
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The API's address.
    pub fn url(&self) -> String {
        format!("https://{}", self.http)
    }

    /// The embedded broker's address.
    pub fn mqtt_address(&self) -> Option<SocketAddr> {
        self.mqtt
    }

    /// The fleet's authority, for other clients.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The certificate of the fleet's authority.
    pub fn ca_path(&self) -> PathBuf {
        self.path("data/tls/ca.pem")
    }

    /// The API token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The API, with the first token.
    pub fn client(&self) -> Client {
        Client::new(&self.url(), Some(self.token.clone()), &self.trust)
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs an operator's command to its end.
    pub fn skerry(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path());
        command
            .env("SKERRY_SERVER", self.url())
            .env("SKERRY_CA", self.ca_path())
            .env("SKERRY_TOKEN", &self.token);
        command.output().context("cannot run the program")
    }

    /// Runs an operator's command that must succeed, and gives its JSON.
    pub fn skerry_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.skerry(&[arguments, &["-o", "json"]].concat())?;
        if !output.status.success() {
            bail!("skerry {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("the output is no JSON")
    }

    /// Makes a one-time enrolment token.
    pub fn device_token(&self) -> Result<String> {
        let token = self.client().device_token(Duration::from_secs(600), 1, &json!({}))?;
        Ok(token["token"].as_str().context("no token")?.to_owned())
    }

    /// Enrols a device; it is not started.
    pub fn enroll(&self, id: &str) -> Result<Device> {
        Device::enroll(
            &self.program,
            &self.path("devices"),
            id,
            &self.url(),
            &self.device_token()?,
        )
    }

    /// Enrols a device with another agent than the program under test: the words that start it.
    pub fn enroll_with(&self, id: &str, agent: Vec<OsString>) -> Result<Device> {
        Device::enroll_with(agent, &self.path("devices"), id, &self.url(), &self.device_token()?)
    }

    /// Enrols and starts devices, and waits until they are connected.
    pub fn devices(&self, ids: &[&str]) -> Result<Vec<Device>> {
        let mut devices = Vec::with_capacity(ids.len());
        for id in ids {
            let mut device = self.enroll(id)?;
            device.start()?;
            devices.push(device);
        }
        self.wait("all devices to connect", || {
            let all = ids.iter().map(|id| self.device(id));
            Ok(all
                .collect::<Result<Vec<_>>>()?
                .iter()
                .all(|d| d["connected"] == true)
                .then_some(()))
        })?;
        Ok(devices)
    }

    /// What the control plane knows of a device.
    pub fn device(&self, id: &str) -> Result<Value> {
        Ok(self.client().get(&format!("/api/v1/devices/{id}"))?)
    }

    /// Registers, builds, signs and publishes version `n` of the demo's model, by the operator's commands.
    pub fn release(&self, version: u64) -> Result<Value> {
        self.build(version)?;
        let out = format!("bundle-v{version}");
        self.skerry_json(&["bundle", "sign", &out, "--keys", "keys"])?;
        self.skerry_json(&["bundle", "publish", &out])
    }

    /// Registers and builds version `n`, into the folder `bundle-v{n}`.
    pub fn build(&self, version: u64) -> Result<Value> {
        let example = fixtures::activity_recognition();
        let onnx = example.join(format!("models/v{version}/model.onnx"));
        let spec = example.join(format!("bundle-v{version}.toml"));
        let (onnx, spec) = (onnx.to_string_lossy(), spec.to_string_lossy());
        self.skerry_json(&["model", "register", MODEL, &onnx])?;
        let out = format!("bundle-v{version}");
        // v3 fails its golden vectors on purpose: devices must find out.
        let skip: &[&str] = if version == 3 { &["--skip-self-check"] } else { &[] };
        self.skerry_json(&[&["bundle", "build", "--spec", &spec, "--out", &out], skip].concat())
    }

    /// Releases version 1 of a model that gives back what it gets, into the folder `bundle-{model}`, and rolls it out.
    pub fn deploy_identity(&self, model: &str, tensors: &[IdentityTensor]) -> Result<Value> {
        fs::write(self.path("identity.onnx"), fixtures::identity_model(tensors))?;
        let mut spec = format!("model = \"{model}\"\nonnx = \"identity.onnx\"\n");
        for (side, prefix) in [("inputs", "x"), ("outputs", "y")] {
            for (at, tensor) in tensors.iter().enumerate() {
                let IdentityTensor { datatype, length, .. } = tensor;
                spec +=
                    &format!("[[{side}]]\nname = \"{prefix}{at}\"\ndatatype = \"{datatype}\"\nshape = [1, {length}]\n");
            }
        }
        spec += "[[stage]]\nname = \"identity\"\nmodel = true\n";
        fs::write(self.path("identity.toml"), spec)?;
        let out = format!("bundle-{model}");
        self.skerry_json(&["model", "register", model, "identity.onnx"])?;
        self.skerry_json(&["bundle", "build", "--spec", "identity.toml", "--out", &out])?;
        self.skerry_json(&["bundle", "sign", &out, "--keys", "keys"])?;
        self.skerry_json(&["bundle", "publish", &out])?;
        let body = json!({"model": model, "version": 1, "groups": [{"size": "rest"}], "probation_ms": 200});
        let rollout = self.client().post("/api/v1/rollouts", &body)?;
        let id = rollout["id"].as_u64().context("a rollout has a number")?;
        let rollout = self.wait_for_rollout(id, &["finished", "stopped", "paused"])?;
        if rollout["state"] != "finished" {
            bail!("the rollout of {model} did not finish: {rollout}");
        }
        Ok(rollout)
    }

    /// Creates a rollout with short probation and gives its number.
    pub fn roll_out(&self, version: u64, groups: &[&str]) -> Result<u64> {
        self.roll_out_on_probation(version, groups, 200)
    }

    /// Creates a rollout and gives its number.
    pub fn roll_out_on_probation(&self, version: u64, groups: &[&str], probation_ms: u64) -> Result<u64> {
        let groups: Vec<Value> = groups.iter().map(|size| json!({"size": size})).collect();
        let body = json!({"model": MODEL, "version": version, "groups": groups, "probation_ms": probation_ms});
        let rollout = self.client().post("/api/v1/rollouts", &body)?;
        rollout["id"].as_u64().context("a rollout has a number")
    }

    /// Waits until a rollout is in one of these states.
    pub fn wait_for_rollout(&self, id: u64, states: &[&str]) -> Result<Value> {
        self.wait(&format!("rollout {id} to be one of {states:?}"), || {
            let rollout = self.client().rollout(id)?;
            let state = rollout["state"].as_str().unwrap_or_default();
            Ok(states.contains(&state).then_some(rollout))
        })
    }

    /// Rolls a version out to all devices at once, and waits until they have committed it.
    pub fn deploy(&self, version: u64) -> Result<Value> {
        let id = self.roll_out(version, &["rest"])?;
        let rollout = self.wait_for_rollout(id, &["finished", "stopped", "paused"])?;
        if rollout["state"] != "finished" {
            bail!("the rollout of v{version} did not finish: {rollout}");
        }
        Ok(rollout)
    }

    /// Waits until `look` finds something. It looks again whenever the control plane says that something has changed.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        // Listening begins before the first look, so that nothing falls in between.
        let changes = self.changes()?;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if changes.recv_timeout(left).is_err() {
                bail!("waited in vain for {what}; the control plane's log:\n{}", self.log());
            }
            // Changes that came meanwhile are seen by the next look.
            while changes.try_recv().is_ok() {}
        }
    }

    /// A message for each change; it ends with the control plane.
    fn changes(&self) -> Result<mpsc::Receiver<()>> {
        let stream = self.client().stream("/api/v1/events")?;
        let (sender, receiver) = mpsc::channel();
        let mut lines = BufReader::new(stream).lines();
        // The first event says that listening has begun.
        lines.next().context("the stream of changes ended")??;
        thread::spawn(move || {
            for line in lines.map_while(std::io::Result::ok) {
                if line.starts_with("data:") && sender.send(()).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// The control plane's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("control-plane.log")).unwrap_or_default()
    }
}
