//! The control plane's one TOML file. Everything has a default; every mistake is named at once.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use skerry_broker::Limits;

#[cfg(feature = "oidc")]
use crate::access::oidc::OidcConfig;
use crate::{
    access::limits::RequestLimits,
    devices::Selector,
    https::ConnectionLimits,
    registry::oms::{Door, PublicKey},
    rollouts::approval::Policy,
    signing::online::SigningFolder,
};

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where databases, blobs and keys live.
    pub data_dir: PathBuf,
    /// Where the API and the console listen.
    pub http_bind: SocketAddr,
    /// Without TLS, behind a proxy on this machine that has it. Devices cannot enrol there.
    pub http_plain: bool,
    /// Certificates.
    pub tls: TlsConfig,
    /// The MQTT broker.
    pub mqtt: Mqtt,
    /// The embedded broker without TLS and without identities, for measurements: only on this machine.
    pub mqtt_plain: bool,
    /// Where devices find the broker, if that is another address than the one it is known by here.
    pub mqtt_advertise: Option<(String, u16)>,
    /// The folder with the online keys, `root.json` and the first `targets.json`.
    pub signing_dir: PathBuf,
    /// The file with the passphrase of the keys in it, if they are encrypted.
    pub signing_passphrase_file: Option<PathBuf>,
    /// How long telemetry is kept.
    pub telemetry_retention_days: u32,
    /// The largest request body: an ONNX file.
    pub body_limit_bytes: usize,
    /// How much anybody may ask of the API and the console.
    pub requests: RequestLimits,
    /// How many connections there may be.
    pub connections: Connections,
    /// How training scripts run.
    pub training: TrainingConfig,
    /// What the model registry asks for.
    pub registry: RegistryConfig,
    /// Which rollouts need a second person.
    pub rollouts: Policy,
    /// How people sign in through an identity provider, if they do.
    #[cfg(feature = "oidc")]
    pub oidc: Option<OidcConfig>,
}

/// How many connections there may be, at the API's port and at the embedded broker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Of the API and the console.
    pub https: ConnectionLimits,
    /// Of the embedded broker.
    pub mqtt: usize,
    /// Those of one network that are not identified yet. Whoever is counts no more, so that a fleet may be behind one address.
    pub mqtt_handshakes_per_network: usize,
}

impl Default for Connections {
    fn default() -> Connections {
        let limits = Limits::default();
        Connections {
            https: ConnectionLimits::default(),
            mqtt: limits.max_clients,
            mqtt_handshakes_per_network: limits.handshakes_per_network,
        }
    }
}

impl Connections {
    /// What the embedded broker gives its clients.
    pub(crate) fn broker(&self) -> Limits {
        Limits {
            max_clients: self.mqtt,
            handshakes_per_network: self.mqtt_handshakes_per_network,
            write_timeout: self.https.write_timeout,
            ..Limits::default()
        }
    }
}

/// What the model registry asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// True when nobody may approve a version that they have registered themselves.
    pub four_eyes: bool,
    /// Whose signatures of models count, and whether models need one.
    pub door: Door,
}

/// Certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// A certificate chain and its key, both in PEM, that people see instead of one of the fleet's own authority.
    pub files: Option<(PathBuf, PathBuf)>,
    /// More names and addresses of this control plane, for its own certificate.
    pub names: Vec<String>,
    /// How long a device's certificate lives; it is renewed at two thirds.
    pub device_life: Duration,
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig {
            files: None,
            names: Vec::new(),
            // A device that was stolen and not reported is locked out in a month.
            device_life: Duration::from_secs(30 * 86_400),
        }
    }
}

/// How training scripts run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingConfig {
    /// The interpreter of `.py` scripts: a name that is looked up in `PATH`, or an absolute path.
    pub python: PathBuf,
    /// Runs that are executed at once; the others wait. At least 1.
    pub max_concurrent_runs: usize,
}

impl Default for TrainingConfig {
    fn default() -> TrainingConfig {
        TrainingConfig {
            python: PathBuf::from("python3"),
            // A training script takes the whole machine, and the control plane needs some of it.
            max_concurrent_runs: 1,
        }
    }
}

/// The MQTT broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mqtt {
    /// Runs in this process.
    Embedded {
        /// Where it listens.
        bind: SocketAddr,
    },
    /// Runs elsewhere, and has its own users and rules.
    External {
        /// Its host name.
        host: String,
        /// Its port.
        port: u16,
        /// How the control plane gets in.
        access: BrokerAccess,
    },
}

/// How the control plane gets into a broker that runs elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerAccess {
    /// By certificates, over TLS.
    Tls {
        /// The authority of the broker's certificate, in PEM, if it is not the fleet's own.
        ca: Option<PathBuf>,
        /// The control plane's certificate there and its key, in PEM, if it is not of the fleet's own authority.
        own: Option<(PathBuf, PathBuf)>,
    },
    /// By a password, without TLS; only on this machine.
    Plain {
        /// The control plane's user name there.
        username: String,
        /// The control plane's password there.
        password: String,
    },
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something impossible.
    #[error("configuration {path} has {} mistake(s):{}", mistakes.len(), list(mistakes))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each mistake.
        mistakes: Vec<String>,
    },
}

fn list(mistakes: &[String]) -> String {
    mistakes.iter().map(|mistake| format!("\n  - {mistake}")).collect()
}

/// More runs at once than any machine that this is for has use for: a mistake in the file.
const CONCURRENT_RUNS_MAX: usize = 64;
/// 256 MiB: the largest models that fit a device, with room.
const BODY_LIMIT_BYTES: usize = 256 * 1024 * 1024;
/// A month: long enough to compare a version with the one before it.
const RETENTION_DAYS: u32 = 30;

impl Config {
    /// The defaults, for a data folder.
    pub fn new(data_dir: &Path) -> Config {
        Config {
            data_dir: data_dir.to_owned(),
            http_bind: SocketAddr::from(([127, 0, 0, 1], 8080)),
            http_plain: false,
            tls: TlsConfig::default(),
            mqtt: Mqtt::Embedded {
                bind: SocketAddr::from(([127, 0, 0, 1], 8883)),
            },
            mqtt_plain: false,
            mqtt_advertise: None,
            signing_dir: data_dir.join("keys"),
            signing_passphrase_file: None,
            telemetry_retention_days: RETENTION_DAYS,
            body_limit_bytes: BODY_LIMIT_BYTES,
            requests: RequestLimits::default(),
            connections: Connections::default(),
            training: TrainingConfig::default(),
            rollouts: Policy::default(),
            registry: RegistryConfig::default(),
            #[cfg(feature = "oidc")]
            oidc: None,
        }
    }

    /// Where the online keys are.
    pub(crate) fn signing(&self) -> SigningFolder {
        SigningFolder {
            dir: self.signing_dir.clone(),
            passphrase_file: self.signing_passphrase_file.clone(),
        }
    }

    /// Where the embedded broker listens, if there is one.
    pub(crate) fn embedded_bind(&self) -> Option<SocketAddr> {
        match self.mqtt {
            Mqtt::Embedded { bind } => Some(bind),
            Mqtt::External { .. } => None,
        }
    }

    /// The broker's address for devices. A broker that listens on every address has none of its own: devices then use the
    /// host at which they found the API.
    pub(crate) fn advertised(&self, host: &str, port: u16) -> (Option<String>, u16) {
        match &self.mqtt_advertise {
            Some((host, port)) => (Some(host.clone()), *port),
            None => {
                let anywhere = host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
                ((!anywhere).then(|| host.to_owned()), port)
            }
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`], with every mistake at once.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(read)?;
        Config::parse(&text).map_err(|mistakes| ConfigError::Invalid {
            path: path.to_owned(),
            mistakes,
        })
    }

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| vec![error.to_string().trim().to_owned()])?;
        let mut mistakes = Vec::new();
        // Section by section, so that a mistake in one does not hide those in the others.
        let mut section = Sections {
            table,
            mistakes: &mut mistakes,
        };
        let data_dir: Option<PathBuf> = section.take("data_dir");
        let http: HttpSection = section.take("http").unwrap_or_default();
        let tls: TlsSection = section.take("tls").unwrap_or_default();
        let mqtt: MqttSection = section.take("mqtt").unwrap_or_default();
        let signing: SigningSection = section.take("signing").unwrap_or_default();
        let telemetry: TelemetrySection = section.take("telemetry").unwrap_or_default();
        let limits: LimitsSection = section.take("limits").unwrap_or_default();
        let rollouts: RolloutsSection = section.take("rollouts").unwrap_or_default();
        let training: TrainingSection = section.take("training").unwrap_or_default();
        let registry: RegistrySection = section.take("registry").unwrap_or_default();
        #[cfg(feature = "oidc")]
        let oidc: Option<OidcConfig> = section.take("oidc");
        section.finish();

        let mut config = Config::new(&data_dir.unwrap_or_else(|| PathBuf::from("skerry-data")));
        if let Some(bind) = address("http.bind", http.bind, &mut mistakes) {
            config.http_bind = bind;
        }
        config.http_plain = http.plain;
        if http.plain && !config.http_bind.ip().is_loopback() {
            mistakes.push("http.plain is for a proxy on this machine: http.bind must be a loopback address".to_owned());
        }
        tls.apply(&mut config.tls, &mut mistakes);
        if let Some(url) = &mqtt.external_url {
            match parse_mqtt_url(url) {
                Some(external) => config.mqtt = external,
                None => mistakes.push(
                    "mqtt.external_url must look like mqtts://host:8883, or on this machine like \
                     mqtt://user:password@127.0.0.1:1883"
                        .to_owned(),
                ),
            }
        }
        if let Some(bind) = address("mqtt.embedded_bind", mqtt.embedded_bind, &mut mistakes) {
            if mqtt.external_url.is_some() {
                mistakes.push("mqtt.embedded_bind and mqtt.external_url exclude each other".to_owned());
            } else {
                config.mqtt = Mqtt::Embedded { bind };
            }
        }
        let own = match (mqtt.certificate, mqtt.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                mistakes.push("mqtt.certificate and mqtt.key belong together".to_owned());
                None
            }
        };
        match &mut config.mqtt {
            Mqtt::External {
                access: access @ BrokerAccess::Tls { .. },
                ..
            } => *access = BrokerAccess::Tls { ca: mqtt.ca, own },
            _ if mqtt.ca.is_some() || own.is_some() => {
                mistakes.push("mqtt.ca, mqtt.certificate and mqtt.key are for an external_url with mqtts://".to_owned())
            }
            _ => {}
        }
        config.mqtt_plain = mqtt.plain;
        if mqtt.plain && !matches!(&config.mqtt, Mqtt::Embedded { bind } if bind.ip().is_loopback()) {
            mistakes.push("mqtt.plain is for the embedded broker on a loopback address only".to_owned());
        }
        if let Some(text) = &mqtt.advertise {
            match text
                .rsplit_once(':')
                .map(|(host, port)| (host.to_owned(), port.parse()))
            {
                Some((host, Ok(port))) if !host.is_empty() => config.mqtt_advertise = Some((host, port)),
                _ => mistakes.push(format!(
                    "mqtt.advertise: `{text}` is no address like broker.example:1883"
                )),
            }
        }
        if let Some(dir) = signing.dir {
            config.signing_dir = dir;
        }
        config.signing_passphrase_file = signing.passphrase_file;
        if let Some(days) = telemetry.retention_days {
            config.telemetry_retention_days = days;
            if days == 0 {
                mistakes.push("telemetry.retention_days must be at least 1".to_owned());
            }
        }
        if let Some(limit) = limits.body_bytes {
            config.body_limit_bytes = limit;
            if limit < 1024 {
                mistakes.push("limits.body_bytes must be at least 1024".to_owned());
            }
        }
        limits.apply(&mut config.requests, &mut config.connections, &mut mistakes);
        if let Some(text) = rollouts.production {
            match text.parse::<Selector>() {
                // An empty one is all devices, which is a way to want it.
                Ok(production) => config.rollouts.production = Some(production),
                Err(error) => mistakes.push(format!("rollouts.production: {error}")),
            }
        }
        training.apply(&mut config.training, &mut mistakes);
        config.registry = registry.read(&mut mistakes);
        #[cfg(feature = "oidc")]
        {
            if let Some(oidc) = &oidc {
                oidc.check(&mut mistakes);
            }
            config.oidc = oidc;
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }
}

struct Sections<'a> {
    table: toml::Table,
    mistakes: &'a mut Vec<String>,
}

impl Sections<'_> {
    fn take<T: serde::de::DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self.table.remove(name)?;
        match value.try_into() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.mistakes.push(format!("{name}: {}", error.to_string().trim()));
                None
            }
        }
    }

    fn finish(self) {
        for name in self.table.keys() {
            self.mistakes.push(format!("unknown section or field `{name}`"));
        }
    }
}

fn address(name: &str, text: Option<String>, mistakes: &mut Vec<String>) -> Option<SocketAddr> {
    let text = text?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            mistakes.push(format!("{name}: `{text}` is no address like 127.0.0.1:8080"));
            None
        }
    }
}

/// `mqtts://host:port`, or on this machine `mqtt://user:password@host:port`.
fn parse_mqtt_url(url: &str) -> Option<Mqtt> {
    let (access, address) = match url.strip_prefix("mqtts://") {
        Some(address) => (BrokerAccess::Tls { ca: None, own: None }, address),
        None => {
            let (credentials, address) = url.strip_prefix("mqtt://")?.rsplit_once('@')?;
            let (username, password) = credentials.split_once(':')?;
            let (username, password) = (username.to_owned(), password.to_owned());
            (BrokerAccess::Plain { username, password }, address)
        }
    };
    let (host, port) = address.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = port.parse().ok()?;
    let usable = match &access {
        BrokerAccess::Tls { .. } => is_name(&host),
        BrokerAccess::Plain { username, .. } => {
            let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            !username.is_empty() && here
        }
    };
    usable.then_some(Mqtt::External { host, port, access })
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct HttpSection {
    bind: Option<String>,
    plain: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TlsSection {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    names: Vec<String>,
    device_certificate_life: Option<String>,
}

/// Shorter ones would be renewed all the time.
const DEVICE_LIFE_MIN: Duration = Duration::from_secs(5);
/// A year: longer ones would make revoking everything that counts.
const DEVICE_LIFE_MAX: Duration = Duration::from_secs(366 * 86_400);

impl TlsSection {
    fn apply(self, config: &mut TlsConfig, mistakes: &mut Vec<String>) {
        match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => config.files = Some((certificate, key)),
            (None, None) => {}
            _ => mistakes.push("tls.certificate and tls.key belong together".to_owned()),
        }
        for name in &self.names {
            if !is_name(name) {
                mistakes.push(format!("tls.names: `{name}` is no host name and no address"));
            }
        }
        config.names = self.names;
        if let Some(text) = self.device_certificate_life {
            match duration(&text) {
                Some(life) if (DEVICE_LIFE_MIN..=DEVICE_LIFE_MAX).contains(&life) => config.device_life = life,
                _ => mistakes.push(format!(
                    "tls.device_certificate_life: `{text}` is no time from 5s to 366d, like 30d"
                )),
            }
        }
    }
}

/// A count with its unit: `90s`, `12h`, `30d`.
fn duration(text: &str) -> Option<Duration> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    count
        .parse::<u32>()
        .ok()
        .map(|count| Duration::from_secs(u64::from(count) * seconds))
}

/// True for a name or an address that a certificate can carry.
pub(crate) fn is_name(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_host_name(text)
}

/// True for a host name as certificates have it, without wildcards.
pub(crate) fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct MqttSection {
    embedded_bind: Option<String>,
    plain: bool,
    external_url: Option<String>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    advertise: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct SigningSection {
    dir: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TelemetrySection {
    retention_days: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LimitsSection {
    body_bytes: Option<usize>,
    requests_per_second_per_token: Option<u32>,
    burst_per_token: Option<u32>,
    requests_per_second_per_address: Option<u32>,
    burst_per_address: Option<u32>,
    requests_at_once: Option<u32>,
    streams_at_once: Option<u32>,
    request_seconds: Option<u32>,
    upload_seconds: Option<u32>,
    connections: Option<u32>,
    connections_per_address: Option<u32>,
    mqtt_connections: Option<u32>,
    mqtt_handshakes_per_address: Option<u32>,
    write_seconds: Option<u32>,
}

impl LimitsSection {
    fn apply(self, limits: &mut RequestLimits, connections: &mut Connections, mistakes: &mut Vec<String>) {
        let fields = [
            (
                "requests_per_second_per_token",
                self.requests_per_second_per_token,
                &mut limits.per_token.per_second,
            ),
            ("burst_per_token", self.burst_per_token, &mut limits.per_token.burst),
            (
                "requests_per_second_per_address",
                self.requests_per_second_per_address,
                &mut limits.per_address.per_second,
            ),
            (
                "burst_per_address",
                self.burst_per_address,
                &mut limits.per_address.burst,
            ),
            ("requests_at_once", self.requests_at_once, &mut limits.requests_at_once),
            ("streams_at_once", self.streams_at_once, &mut limits.streams_at_once),
            ("request_seconds", self.request_seconds, &mut limits.request_seconds),
            ("upload_seconds", self.upload_seconds, &mut limits.upload_seconds),
        ];
        for (name, value, limit) in fields {
            match value.map(NonZeroU32::new) {
                Some(Some(value)) => *limit = value,
                Some(None) => mistakes.push(format!("limits.{name} must be at least 1")),
                None => {}
            }
        }
        let counts = [
            ("connections", self.connections, &mut connections.https.in_all),
            (
                "connections_per_address",
                self.connections_per_address,
                &mut connections.https.per_network,
            ),
            ("mqtt_connections", self.mqtt_connections, &mut connections.mqtt),
            (
                "mqtt_handshakes_per_address",
                self.mqtt_handshakes_per_address,
                &mut connections.mqtt_handshakes_per_network,
            ),
        ];
        for (name, value, limit) in counts {
            match value {
                Some(0) => mistakes.push(format!("limits.{name} must be at least 1")),
                Some(value) => *limit = value as usize,
                None => {}
            }
        }
        match self.write_seconds {
            Some(0) => mistakes.push("limits.write_seconds must be at least 1".to_owned()),
            Some(seconds) => connections.https.write_timeout = Duration::from_secs(seconds.into()),
            None => {}
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RolloutsSection {
    production: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TrainingSection {
    python: Option<PathBuf>,
    max_concurrent_runs: Option<usize>,
}

impl TrainingSection {
    fn apply(self, config: &mut TrainingConfig, mistakes: &mut Vec<String>) {
        if let Some(python) = self.python {
            // A script has its own working folder, so a relative path would mean another file in every run.
            let is_name = python.components().count() == 1 && !python.to_string_lossy().contains('/');
            if !is_name && !python.is_absolute() {
                mistakes.push("training.python must be a program's name or an absolute path".to_owned());
            }
            config.python = python;
        }
        if let Some(max) = self.max_concurrent_runs {
            if !(1..=CONCURRENT_RUNS_MAX).contains(&max) {
                mistakes.push(format!(
                    "training.max_concurrent_runs must be 1 to {CONCURRENT_RUNS_MAX}"
                ));
            }
            config.max_concurrent_runs = max;
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RegistrySection {
    four_eyes: bool,
    oms_keys: Vec<PathBuf>,
    require_oms: bool,
}

impl RegistrySection {
    fn read(self, mistakes: &mut Vec<String>) -> RegistryConfig {
        if self.require_oms && self.oms_keys.is_empty() {
            mistakes.push("registry.require_oms without registry.oms_keys lets no model in".to_owned());
        }
        let mut keys = Vec::new();
        for path in &self.oms_keys {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
            match text.and_then(|text| PublicKey::from_pem(&text).map_err(|error| error.to_string())) {
                Ok(key) => keys.push(key),
                Err(error) => mistakes.push(format!("registry.oms_keys: {}: {error}", path.display())),
            }
        }
        RegistryConfig {
            four_eyes: self.four_eyes,
            door: Door {
                keys,
                require: self.require_oms,
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_model_signatures_are_read_at_the_start() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("key.pem");
        std::fs::write(&path, "nonsense").unwrap();
        let keys = format!("[registry]\noms_keys = [\"{}\", \"/nowhere.pem\"]", path.display());
        let mistakes = Config::parse(&keys).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].contains("no P-256 key") && mistakes[1].contains("/nowhere.pem"));
        let nobody = Config::parse("[registry]\nrequire_oms = true").unwrap_err();
        assert!(nobody[0].contains("lets no model in"));
    }

    #[test]
    fn a_relative_interpreter_and_no_run_at_all_are_refused() {
        let text = "[training]\npython = \"venv/bin/python\"\nmax_concurrent_runs = 0\n";
        let mistakes = Config::parse(text).unwrap_err().join("\n");
        for part in ["training.python", "training.max_concurrent_runs"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
    }

    #[test]
    fn an_interpreter_is_a_name_or_an_absolute_path() {
        for python in ["python3.13", "/opt/venv/bin/python"] {
            let config = Config::parse(&format!("[training]\npython = \"{python}\"")).unwrap();
            assert_eq!(config.training.python, Path::new(python));
        }
    }

    #[test]
    fn three_mistakes_are_all_named() {
        let text = "colour = 1\n[http]\nbind = \"here\"\n[mqtt]\nexternal_url = \"http://x\"\n";
        let mistakes = Config::parse(text).unwrap_err().join("\n");
        for part in ["`colour`", "http.bind: `here`", "mqtt.external_url"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
    }

    #[test]
    fn names_are_host_names_or_addresses() {
        for name in [
            "skerry.example",
            "a",
            "192.0.2.1",
            "2001:db8::1",
            "xn--bcher-kva.example",
        ] {
            assert!(is_name(name), "{name}");
        }
        for name in [
            "",
            "a..b",
            "-a",
            "a b",
            "*.example",
            "https://a",
            "a:8080",
            &"a".repeat(64),
        ] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn certificates_are_configured_whole() {
        let text = "[tls]\ncertificate = \"a.pem\"\nnames = [\"a b\"]\ndevice_certificate_life = \"1s\"\n";
        let mistakes = Config::parse(text).unwrap_err().join("\n");
        for part in ["tls.key", "`a b`", "`1s`"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
        let config = Config::parse("[tls]\ndevice_certificate_life = \"36h\"").unwrap();
        assert_eq!(config.tls.device_life, Duration::from_secs(36 * 3600));
        for text in ["", "d", "30", "-1d", "367d", "30d ", "1é"] {
            let text = format!("[tls]\ndevice_certificate_life = \"{text}\"");
            assert!(Config::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn http_without_tls_stays_on_this_machine() {
        assert!(Config::parse("[http]\nplain = true").unwrap().http_plain);
        let open = "[http]\nplain = true\nbind = \"0.0.0.0:8080\"";
        assert!(Config::parse(open).unwrap_err()[0].contains("http.plain"));
    }

    #[cfg(feature = "oidc")]
    #[test]
    fn oidc_mistakes_are_all_named() {
        let text = "[oidc]\nissuer = \"http://login.example\"\nclient_id = \"skerry\"\n\
                    redirect_url = \"https://skerry.example/\"\nroles = {}\n";
        let mistakes = Config::parse(text).unwrap_err().join("\n");
        for part in ["oidc.issuer", "/login/oidc/callback", "oidc.roles"] {
            assert!(mistakes.contains(part), "{part}: {mistakes}");
        }
        let good = "[oidc]\nissuer = \"https://login.example\"\nclient_id = \"skerry\"\n\
                    redirect_url = \"https://skerry.example/login/oidc/callback\"\nroles = { staff = \"viewer\" }\n";
        assert_eq!(Config::parse(good).unwrap().oidc.unwrap().groups_claim, "groups");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.http_bind.port(), 8080);
        assert_eq!(config.signing_dir, Path::new("skerry-data/keys"));
    }

    #[test]
    fn telemetry_is_kept_for_a_day_at_least() {
        let kept = |days: u32| Config::parse(&format!("[telemetry]\nretention_days = {days}"));
        assert_eq!(kept(7).unwrap().telemetry_retention_days, 7);
        assert!(kept(0).unwrap_err()[0].contains("telemetry.retention_days"));
    }

    #[test]
    fn limits_are_numbers_from_one_on() {
        let text = "[limits]\nburst_per_token = 7\nrequest_seconds = 5";
        let limits = Config::parse(text).unwrap().requests;
        assert_eq!((limits.per_token.burst.get(), limits.request_seconds.get()), (7, 5));
        let text = "[limits]\nconnections_per_address = 9\nmqtt_handshakes_per_address = 8\nwrite_seconds = 7";
        let connections = Config::parse(text).unwrap().connections;
        assert_eq!(connections.https.per_network, 9);
        let broker = connections.broker();
        assert_eq!((broker.handshakes_per_network, broker.write_timeout.as_secs()), (8, 7));
        let none = "[limits]\nconnections = 0\nmqtt_connections = 0\nwrite_seconds = 0";
        assert_eq!(Config::parse(none).unwrap_err().len(), 3);
        let mistakes = Config::parse("[limits]\nburst_per_token = 0\nstreams_at_once = 0").unwrap_err();
        assert!(mistakes[0].contains("burst_per_token") && mistakes[1].contains("streams_at_once"));
    }

    #[test]
    fn production_is_a_label_selector() {
        let config = |text: &str| Config::parse(&format!("[rollouts]\nproduction = \"{text}\""));
        let production = config("stage=production").unwrap().rollouts.production.unwrap();
        assert_eq!(production, "stage=production".parse().unwrap());
        assert_eq!(Config::parse("").unwrap().rollouts.production, None);
        assert!(config("production").unwrap_err()[0].contains("rollouts.production"));
    }

    #[test]
    fn devices_learn_an_address_that_they_can_use() {
        let mut config = Config::new(Path::new("data"));
        assert_eq!(
            config.advertised("127.0.0.1", 1883),
            (Some("127.0.0.1".to_owned()), 1883)
        );
        assert_eq!(config.advertised("0.0.0.0", 1883), (None, 1883));
        config = Config::parse("[mqtt]\nadvertise = \"broker.example:8883\"").unwrap();
        assert_eq!(
            config.advertised("0.0.0.0", 1883),
            (Some("broker.example".to_owned()), 8883)
        );
        for text in ["broker.example", ":1883", "broker.example:port"] {
            assert!(
                Config::parse(&format!("[mqtt]\nadvertise = \"{text}\"")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn an_external_broker_has_a_url() {
        let external =
            |url: &str| Config::parse(&format!("[mqtt]\nexternal_url = \"{url}\"")).map(|config| config.mqtt);
        let expected = |host: &str, port, access| Mqtt::External {
            host: host.to_owned(),
            port,
            access,
        };
        let plain = BrokerAccess::Plain {
            username: "cp".to_owned(),
            password: "p@ss".to_owned(),
        };
        let tls = BrokerAccess::Tls { ca: None, own: None };
        assert_eq!(
            external("mqtt://cp:p@ss@127.0.0.1:1884"),
            Ok(expected("127.0.0.1", 1884, plain))
        );
        assert_eq!(
            external("mqtts://broker.example:8883"),
            Ok(expected("broker.example", 8883, tls.clone()))
        );
        assert_eq!(
            external("mqtts://[2001:db8::1]:8883"),
            Ok(expected("2001:db8::1", 8883, tls))
        );
        for bad in [
            "mqtt://cp:pass@broker.example:1883",
            "mqtts://cp:pass@broker.example:8883",
            "mqtts://broker.example",
            "mqtt://127.0.0.1:1883",
        ] {
            assert!(external(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_broker_without_tls_stays_on_this_machine() {
        assert!(Config::parse("[mqtt]\nplain = true").unwrap().mqtt_plain);
        for more in [
            "embedded_bind = \"0.0.0.0:1883\"",
            "external_url = \"mqtts://broker.example:8883\"",
        ] {
            let mistakes = Config::parse(&format!("[mqtt]\nplain = true\n{more}")).unwrap_err();
            assert!(mistakes[0].contains("mqtt.plain"), "{mistakes:?}");
        }
    }

    #[test]
    fn certificates_of_an_external_broker_are_configured_whole() {
        let config = Config::parse(
            "[mqtt]\nexternal_url = \"mqtts://broker.example:8883\"\nca = \"ca.pem\"\ncertificate = \"c.pem\"\nkey = \"c.key\"",
        );
        let Mqtt::External { access, .. } = config.unwrap().mqtt else {
            panic!("it is external");
        };
        let own = Some(("c.pem".into(), "c.key".into()));
        let ca = Some("ca.pem".into());
        assert_eq!(access, BrokerAccess::Tls { ca, own });
        assert!(Config::parse("[mqtt]\nca = \"ca.pem\"").is_err());
        let half = "[mqtt]\nexternal_url = \"mqtts://broker.example:8883\"\nkey = \"c.key\"";
        assert!(Config::parse(half).is_err());
    }
}
