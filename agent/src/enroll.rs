//! Enrolment: the device makes its key, shows a one-time token, and learns who it is and whom to trust.
//!
//! Invariant: the root metadata and the certificate authority that are stored are those whose digests the token carries, and
//! the token is shown to nobody else. The identity is written last, and the key before anybody sees it: after a power cut the
//! device is enrolled and whole, or it asks again with the same key.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skerry_shared::{digest::Digest, id::DeviceId};

use crate::{
    clock::Clock,
    disk::{Access, Disk},
    tls::{self, DeviceKey},
};

/// Who this device is, and where its control plane and its broker are. What it proves that with is in files of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device_id: DeviceId,
    /// The control plane's address, for the renewal of the certificate.
    pub(crate) server: String,
    /// The certificate of the fleet's authority, in PEM.
    pub(crate) authority: String,
    pub(crate) mqtt: Broker,
    pub(crate) certificate: Life,
}

/// The broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Broker {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The authority of a foreign broker, in PEM; without one it is the fleet's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) authority: Option<String>,
    /// Without TLS, for a broker on this machine only.
    #[serde(default)]
    pub(crate) plain: bool,
}

impl Broker {
    /// What the control plane says, who is known by `server`.
    pub(crate) fn at(access: MqttAccess, server: &str) -> anyhow::Result<Broker> {
        let host = match access.host {
            Some(host) => host,
            None => Server::parse(server)?.host,
        };
        let here = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        if access.plain && !here {
            bail!("the control plane's broker at {host} speaks no TLS, and it is not on this machine");
        }
        if let Some(pem) = &access.authority {
            tls::certificates(pem.as_bytes()).context("the control plane's answer is malformed")?;
        }
        Ok(Broker {
            host,
            port: access.port,
            authority: access.authority,
            plain: access.plain,
        })
    }
}

/// From when to when the device's certificate counts.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Life {
    /// UTC milliseconds, of the control plane's clock.
    pub(crate) issued_at_ms: u64,
    /// UTC milliseconds.
    pub(crate) not_after_ms: u64,
}

const IDENTITY: &str = "identity.json";

impl Identity {
    /// Reads the identity that enrolment left.
    pub(crate) fn read(disk: &Disk, state_dir: &Path) -> anyhow::Result<Identity> {
        let bytes = disk.read(&state_dir.join(IDENTITY))?;
        let bytes = bytes.context("this device is not enrolled: run `skerry-agent enroll` first")?;
        serde_json::from_slice(&bytes).context("identity.json is damaged: enrol again")
    }

    pub(crate) fn write(&self, disk: &Disk, state_dir: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context("cannot encode the identity")?;
        Ok(disk.write(&state_dir.join(IDENTITY), &json, Access::OwnerOnly)?)
    }

    /// The fleet's authority.
    pub(crate) fn authority(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        tls::certificates(self.authority.as_bytes()).context("identity.json is damaged: enrol again")
    }

    /// Who has signed the broker's certificate.
    pub(crate) fn broker_authority(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let pem = self.mqtt.authority.as_ref().unwrap_or(&self.authority);
        tls::certificates(pem.as_bytes()).context("identity.json is damaged: enrol again")
    }
}

/// Seconds; whatever the control plane says.
const RETRY_MAX_SECONDS: u64 = 300;

/// What the control plane says to a device that wants to enrol.
#[derive(Deserialize)]
#[serde(untagged)]
enum EnrollAnswer {
    Enrolled(Box<Answer>),
    Pending {
        fingerprint: String,
        retry_after_seconds: u64,
    },
}

/// What the control plane says to a device that it takes.
#[derive(Deserialize)]
pub(crate) struct Answer {
    device_id: DeviceId,
    certificate: Certificate,
    mqtt: MqttAccess,
}

/// A certificate as the control plane gives it.
#[derive(Deserialize)]
pub(crate) struct Certificate {
    /// The device's certificate, then the authority's, in PEM.
    pub(crate) chain: String,
    #[serde(flatten)]
    pub(crate) life: Life,
}

/// The broker as the control plane names it.
#[derive(Deserialize)]
pub(crate) struct MqttAccess {
    /// Absent: the host of the API.
    host: Option<String>,
    port: u16,
    authority: Option<String>,
    #[serde(default)]
    plain: bool,
}

/// What the control plane's address says.
struct Server {
    url: String,
    host: String,
    port: u16,
}

impl Server {
    fn parse(text: &str) -> anyhow::Result<Server> {
        let url = text.trim_end_matches('/').to_owned();
        let uri: ureq::http::Uri = url.parse().with_context(|| format!("`{text}` is no URL"))?;
        if uri.scheme_str() != Some("https") {
            bail!("`{text}` must begin with https://: the token is shown to nobody who does not prove who he is");
        }
        let host = uri.host().with_context(|| format!("`{text}` names no host"))?;
        Ok(Server {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(443),
            url,
        })
    }
}

/// What a device shows when it enrols, and what it trusts before that.
pub(crate) enum Credential {
    /// A one-time token, which carries both digests.
    Token(String),
    /// The two digests, `ROOT.AUTHORITY`; the device's key speaks for itself.
    Key {
        /// No secret.
        trust: String,
    },
}

impl Credential {
    /// The digests of the root metadata and of the authority's certificate.
    fn pins(&self) -> anyhow::Result<(Digest, Digest)> {
        let (digests, what) = match self {
            Credential::Token(token) => (token.split_once('.').map(|(_, rest)| rest), "the enrolment token"),
            Credential::Key { trust } => (Some(trust.as_str()), "what to trust"),
        };
        let mut parts = digests.unwrap_or_default().split('.').map(Digest::from_hex);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(root)), Some(Ok(authority)), None) => Ok((root, authority)),
            _ => bail!("{what} is malformed: copy it whole, with its two digests"),
        }
    }
}

/// The fingerprint of this device's key, which is made if there is none.
pub(crate) fn fingerprint(disk: &Disk, state_dir: &Path) -> anyhow::Result<Digest> {
    disk.make_folder(state_dir)?;
    Ok(DeviceKey::make(disk, state_dir)?.fingerprint())
}

/// Enrols this device and leaves its identity in `state_dir`. Without a token it waits until an operator has approved its key;
/// `say` tells whoever looks.
pub(crate) fn enroll(
    state_dir: &Path,
    server: &str,
    credential: &Credential,
    device: Option<DeviceId>,
    say: impl Fn(&str),
) -> anyhow::Result<DeviceId> {
    let disk = Disk::real();
    let (root_pin, authority_pin) = credential.pins()?;
    let server = Server::parse(server)?;
    let key = begin(&disk, state_dir)?;
    // The authority and the root first: a false server never sees the token.
    let reach = || format!("cannot reach the control plane at {}", server.url);
    let clock = Clock::of_this_machine(0);
    let authority = tls::fetch_authority(&server.host, server.port, authority_pin).with_context(reach)?;
    let http = tls::http(std::slice::from_ref(&authority), None, &clock)?;
    let root = fetch_root(&http, &server.url, root_pin)?;
    if Digest::of(&root) != root_pin {
        bail!("the control plane's root metadata is not the one that the token names: do not trust this server");
    }
    let mut body = json!({
        "device_id": device,
        "request": key.request()?,
        "platform": skerry_inference::host_platform(),
        "agent_version": env!("CARGO_PKG_VERSION"),
    });
    if let Credential::Token(token) = credential {
        body["token"] = json!(token);
    }
    let answer = ask(&http, &server.url, &body, say)?;
    let enrolled = Enrolled::new(answer, root, &authority, server.url)?;
    enrolled.write(&disk, state_dir, &key)?;
    Ok(enrolled.identity.device_id)
}

/// What is done before anybody is asked: the folders, and a key that no power cut takes back. It is the same key if an
/// earlier try broke off.
pub(crate) fn begin(disk: &Disk, state_dir: &Path) -> anyhow::Result<DeviceKey> {
    // Both by name: of a folder that is there already only its own name is made sure.
    disk.make_folder(state_dir)?;
    disk.make_folder(&state_dir.join("trust"))?;
    if disk.read(&state_dir.join(IDENTITY))?.is_some() {
        bail!("this device is enrolled already; another state folder, or an empty one, makes another device");
    }
    DeviceKey::make(disk, state_dir)
}

/// All that enrolment leaves on the disk beside the key.
pub(crate) struct Enrolled {
    root: Vec<u8>,
    chain: String,
    pub(crate) identity: Identity,
}

impl Enrolled {
    /// What follows from an answer of the control plane at `server`, whose root metadata and authority are the pinned ones.
    pub(crate) fn new(
        answer: Answer,
        root: Vec<u8>,
        authority: &CertificateDer<'_>,
        server: String,
    ) -> anyhow::Result<Enrolled> {
        Ok(Enrolled {
            root,
            chain: answer.certificate.chain,
            identity: Identity {
                device_id: answer.device_id,
                authority: pem(authority),
                mqtt: Broker::at(answer.mqtt, &server)?,
                certificate: answer.certificate.life,
                server,
            },
        })
    }

    /// Leaves it on the disk. Until this returns the device may ask again, with the same key.
    pub(crate) fn write(&self, disk: &Disk, state_dir: &Path, key: &DeviceKey) -> anyhow::Result<()> {
        // First: it refuses the certificate of another key, and then nothing is written.
        tls::write_first(disk, state_dir, key, &self.chain)?;
        disk.write(&state_dir.join("trust/root.json"), &self.root, Access::Everybody)?;
        // Last: with it the device is enrolled.
        self.identity.write(disk, state_dir)
    }
}

/// Asks until the answer is yes or no. Whoever stops waiting may ask again later, with the same key.
fn ask(http: &ureq::Agent, server: &str, body: &Value, say: impl Fn(&str)) -> anyhow::Result<Answer> {
    let mut waits = false;
    loop {
        match post(http, &format!("{server}/api/v1/enroll"), body)? {
            EnrollAnswer::Enrolled(answer) => return Ok(*answer),
            EnrollAnswer::Pending {
                fingerprint,
                retry_after_seconds,
            } => {
                if !waits {
                    say(&format!(
                        "this device waits to be approved. Its key has the fingerprint\n  {fingerprint}\n\
                         Where the control plane is: skerry device approve {}",
                        fingerprint.get(..24).unwrap_or(&fingerprint)
                    ));
                    waits = true;
                }
                std::thread::sleep(Duration::from_secs(retry_after_seconds.clamp(1, RETRY_MAX_SECONDS)));
            }
        }
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let base64 = STANDARD.encode(certificate);
    for line in base64.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// The root metadata that the token names. It need not be the first one, nor the newest: later ones are walked to.
fn fetch_root(http: &ureq::Agent, server: &str, pinned: Digest) -> anyhow::Result<Vec<u8>> {
    let url = format!("{server}/tuf/root/{}", pinned.to_hex());
    let response = http.get(&url).call();
    let mut response = response.with_context(|| format!("cannot reach the control plane at {server}"))?;
    if response.status() == ureq::http::StatusCode::NOT_FOUND {
        bail!("its root metadata is not the one that the token names: do not trust this server");
    }
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

/// The control plane's no, or that it is broken; with its words.
#[derive(Debug, thiserror::Error)]
#[error("the control plane refused ({status}): {title} {detail}")]
pub(crate) struct Refused {
    pub(crate) status: ureq::http::StatusCode,
    title: String,
    detail: String,
}

/// Posts JSON to the control plane and reads its answer; a refusal is an error with its words.
pub(crate) fn post<T: serde::de::DeserializeOwned>(http: &ureq::Agent, url: &str, body: &Value) -> anyhow::Result<T> {
    let response = http.post(url).send_json(body);
    let mut response = response.with_context(|| format!("cannot reach the control plane at {url}"))?;
    let status = response.status();
    let text = response
        .body_mut()
        .read_to_string()
        .context("the control plane's answer broke off")?;
    if !status.is_success() {
        let problem: Value = serde_json::from_str(&text).unwrap_or_default();
        let word = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        return Err(Refused {
            status,
            title: word("title"),
            detail: word("detail"),
        }
        .into());
    }
    serde_json::from_str(&text).context("the control plane's answer is malformed")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_two_digests() {
        let (root, authority) = (Digest::of(b"root"), Digest::of(b"authority"));
        let token = format!("skt_secret.{}.{}", root.to_hex(), authority.to_hex());
        let pins = |token: &str| Credential::Token(token.to_owned()).pins();
        assert_eq!(pins(&token).unwrap(), (root, authority));
        let trust = format!("{}.{}", root.to_hex(), authority.to_hex());
        assert_eq!(Credential::Key { trust }.pins().unwrap(), (root, authority));
        let old = format!("skt_secret.{}", root.to_hex());
        for bad in ["", "skt_secret", &old, &format!("{token}.x"), &format!("{token}0")] {
            assert!(pins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_server_must_prove_who_it_is() {
        let server = Server::parse("https://[::1]:8443/").unwrap();
        assert_eq!(
            (server.host.as_str(), server.port, server.url.as_str()),
            ("::1", 8443, "https://[::1]:8443")
        );
        assert_eq!(Server::parse("https://skerry.example").unwrap().port, 443);
        for bad in ["http://192.0.2.1:8080", "skerry.example", "", "https://"] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_broker_without_tls_is_believed_on_this_machine_only() {
        let access = |host: Option<&str>, plain| MqttAccess {
            host: host.map(str::to_owned),
            port: 1883,
            authority: None,
            plain,
        };
        let server = "https://192.0.2.1:8080";
        assert!(Broker::at(access(Some("127.0.0.1"), true), server).unwrap().plain);
        assert!(Broker::at(access(Some("192.0.2.1"), true), server).is_err());
        assert!(Broker::at(access(None, true), server).is_err());
        assert_eq!(Broker::at(access(None, false), server).unwrap().host, "192.0.2.1");
    }

    #[test]
    fn a_refusal_is_told_by_its_status_and_its_words() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/v1/renew", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            // The body is `{}`.
            while !request.ends_with(b"{}") {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let body = r#"{"title": "Forbidden", "detail": "this device is revoked"}"#;
            let head = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length";
            write!(connection, "{head}: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let refused = post::<Value>(&config.into(), &url, &json!({})).unwrap_err();
        server.join().unwrap();
        assert!(
            refused.to_string().ends_with("Forbidden this device is revoked"),
            "{refused}"
        );
        assert_eq!(refused.downcast_ref::<Refused>().unwrap().status, 403);
    }

    #[test]
    fn a_certificate_survives_its_text() {
        let certificate = CertificateDer::from(vec![0x30; 100]);
        assert_eq!(tls::certificates(pem(&certificate).as_bytes()).unwrap(), [certificate]);
    }
}
