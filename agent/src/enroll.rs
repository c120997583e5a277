//! Enrolment: the device makes its key, shows a one-time token, and learns who it is and whom to trust.
//!
//! Invariant: the root that is stored is the one whose digest the token carries.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skerry_shared::{digest::Digest, id::DeviceId};

use crate::disk::{Access, Disk};

/// Who this device is, and how it reaches the broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device_id: DeviceId,
    pub(crate) mqtt: Broker,
}

/// The broker and this device's credentials there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Broker {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: String,
    pub(crate) password: String,
}

const IDENTITY: &str = "identity.json";
const KEY: &str = "device.key";

impl Identity {
    /// Reads the identity that enrolment left.
    pub(crate) fn read(disk: &Disk, state_dir: &Path) -> anyhow::Result<Identity> {
        let bytes = disk.read(&state_dir.join(IDENTITY))?;
        let bytes = bytes.context("this device is not enrolled: run `skerry-agent enroll` first")?;
        serde_json::from_slice(&bytes).context("identity.json is damaged: enrol again")
    }
}

#[derive(Deserialize)]
struct Answer {
    device_id: DeviceId,
    mqtt: MqttAccess,
}

#[derive(Deserialize)]
struct MqttAccess {
    /// Absent: the host of the API.
    host: Option<String>,
    port: u16,
    username: String,
    password: String,
}

/// The host in a URL.
fn host_of(server: &str) -> anyhow::Result<String> {
    let uri: ureq::http::Uri = server.parse().with_context(|| format!("`{server}` is no URL"))?;
    let host = uri.host().with_context(|| format!("`{server}` names no host"))?;
    Ok(host.to_owned())
}

/// Enrols this device and leaves its identity in `state_dir`.
pub(crate) fn enroll(
    state_dir: &Path,
    server: &str,
    token: &str,
    device: Option<DeviceId>,
) -> anyhow::Result<DeviceId> {
    let disk = Disk::real();
    disk.make_folder(&state_dir.join("trust"))?;
    if disk.read(&state_dir.join(IDENTITY))?.is_some() {
        bail!("this device is enrolled already; another state folder, or an empty one, makes another device");
    }
    let pinned = token
        .split_once('.')
        .and_then(|(_, digest)| Digest::from_hex(digest).ok());
    let pinned = pinned.context("the enrolment token is malformed: copy it whole, with the part after the dot")?;
    // The same key if an earlier try broke off: the file is the device's identity.
    let key_path = state_dir.join(KEY);
    let mut seed = [0; 32];
    match disk.read(&key_path)? {
        Some(bytes) => hex::decode_to_slice(bytes.trim_ascii(), &mut seed).context("device.key is damaged")?,
        None => {
            getrandom::fill(&mut seed).context("no randomness from the system")?;
            disk.write(&key_path, hex::encode(seed).as_bytes(), Access::OwnerOnly)?;
        }
    }
    let public_key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
    let body = json!({
        "token": token,
        "device_id": device,
        "public_key": hex::encode(public_key.as_bytes()),
        "platform": skerry_inference::host_platform(),
        "agent_version": env!("CARGO_PKG_VERSION"),
    });
    // The root first: a false server never sees the token.
    let root = fetch_root(server, pinned)?;
    if Digest::of(&root) != pinned {
        bail!("the control plane's root metadata is not the one that the token names: do not trust this server");
    }
    let answer = call(server, &body)?;
    disk.write(&state_dir.join("trust/root.json"), &root, Access::Everybody)?;
    let MqttAccess {
        host,
        port,
        username,
        password,
    } = answer.mqtt;
    let host = match host {
        Some(host) => host,
        None => host_of(server)?,
    };
    let identity = Identity {
        device_id: answer.device_id,
        mqtt: Broker {
            host,
            port,
            username,
            password,
        },
    };
    let json = serde_json::to_vec_pretty(&identity).context("cannot encode the identity")?;
    disk.write(&state_dir.join(IDENTITY), &json, Access::OwnerOnly)?;
    Ok(identity.device_id)
}

fn http() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)));
    config.build().into()
}

/// The root metadata that the token names. It need not be the first one, nor the newest: later ones are walked to.
fn fetch_root(server: &str, pinned: Digest) -> anyhow::Result<Vec<u8>> {
    let url = format!("{}/tuf/root/{}", server.trim_end_matches('/'), pinned.to_hex());
    let response = http().get(&url).call();
    let mut response = response.with_context(|| format!("cannot reach the control plane at {server}"))?;
    if !response.status().is_success() {
        bail!(
            "there is no control plane at {server}: {url} answers {}",
            response.status()
        );
    }
    let limit = skerry_tuf::Limits::default().bytes_for(skerry_tuf::Role::Root) as u64;
    let root = response.body_mut().with_config().limit(limit).read_to_vec();
    root.context("the control plane's root metadata broke off or is too large")
}

fn call(server: &str, body: &Value) -> anyhow::Result<Answer> {
    let url = format!("{}/api/v1/enroll", server.trim_end_matches('/'));
    let response = http().post(&url).send_json(body);
    let mut response = response.with_context(|| format!("cannot reach the control plane at {server}"))?;
    let status = response.status();
    let text = response
        .body_mut()
        .read_to_string()
        .context("the control plane's answer broke off")?;
    if !status.is_success() {
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let word = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        bail!(
            "the control plane refused ({status}): {} {}",
            word("title"),
            word("detail")
        );
    }
    serde_json::from_str(&text).context("the control plane's answer is malformed")
}
