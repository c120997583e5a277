//! `skerry device`: enrolment tokens, state and labels.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::id::DeviceId;

use super::{
    Done, Global, Output,
    client::encode,
    device_keys,
    output::{self, ago, pairs, text},
    parse::{Pair, duration, object},
};

/// Commands about devices.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Makes an enrolment token; it is shown once.
    #[command(
        after_help = "On the device:\n  SKERRY_ENROLL_TOKEN=TOKEN skerry-agent enroll --server URL\n  skerry-agent run\n\n\
                      A device without an agent gets one by the line that is shown beside the token, from the packages that\n\
                      `skerry agent-package publish` has given to the control plane. Call with a --server that devices reach, too:\n\
                      the line has that address.\n\n\
                      Without a token a device enrols by its key: see `skerry device trust`."
    )]
    Token {
        /// How long it can be used.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: std::time::Duration,
        /// How many devices may use it.
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// A label for the devices that use it, for example site=north; repeatable.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Pair>,
    },
    /// Shows what a device must know to trust this control plane; it is no secret.
    #[command(
        after_help = "A device that has it and no token asks with its key alone:\n  skerry-agent enroll --server URL --trust TRUST\n\
                      It enrols at once if its key is on the factory's list (`skerry device keys add`), and otherwise waits for\n\
                      `skerry device approve`."
    )]
    Trust,
    /// Lists the keys that may enrol without a token, and those that ask to.
    Keys {
        /// Only keys in this state.
        #[arg(long, value_parser = ["listed", "pending", "approved", "rejected"])]
        state: Option<String>,
    },
    /// Puts a factory's list of key fingerprints into the registry.
    #[command(
        after_help = "A line of the file is FINGERPRINT [DEVICE_ID [KEY=VALUE]...]; empty lines and lines that begin with # are\n\
                      passed over. `skerry-agent fingerprint` shows a device's fingerprint and makes its key if it has none.\n\
                      All keys of a file are taken, or none."
    )]
    AddKeys {
        /// The file; - is the standard input.
        file: std::path::PathBuf,
    },
    /// Lets a device enrol that waits. Compare the fingerprint with the one that the device itself shows.
    Approve {
        /// Its fingerprint, or at least its first 24 digits.
        fingerprint: String,
        /// The id it gets; without it, the one it asks for.
        #[arg(long)]
        device_id: Option<DeviceId>,
        /// A label it gets, for example site=north; repeatable.
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<Pair>,
    },
    /// Refuses a device that waits.
    Reject {
        /// Its fingerprint, or at least its first 24 digits.
        fingerprint: String,
    },
    /// Lists devices.
    List {
        /// Only devices with these labels, for example site=north,kind=wrist.
        #[arg(long, default_value = "")]
        selector: String,
    },
    /// Shows one device.
    Show {
        /// The device.
        device: DeviceId,
    },
    /// Sets labels (KEY=VALUE) and removes them (KEY-).
    Label {
        /// The device.
        device: DeviceId,
        /// KEY=VALUE or KEY-.
        #[arg(required = true)]
        changes: Vec<String>,
    },
    /// Takes a device's access away, for good: its connection ends at once.
    #[command(
        after_help = "Its certificate is refused from now on, and not renewed; its id stays taken, and what is left of \
                      the token that it came by lets nobody in. A foreign broker knows nothing of \
                      it: remove the device there as well."
    )]
    Revoke {
        /// The device.
        device: DeviceId,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    match command {
        Command::Token { ttl, uses, labels } => {
            let token = client.device_token(ttl, uses, &object(&labels))?;
            match global.output {
                Output::Json => output::json(&token),
                Output::Table => {
                    output::line(&text(&token, "token"));
                    output::note(&format!("for {uses} device(s); it is not shown again. On the device:"));
                    let server = client.server();
                    // Not as an argument: everybody on the machine can read those.
                    output::note(&format!(
                        "  SKERRY_ENROLL_TOKEN={} skerry-agent enroll --server {server}",
                        text(&token, "token")
                    ));
                    if let Some(line) = token["install_line"].as_str() {
                        output::note(
                            "or, on a device without an agent (leave out `| sudo sh` to read first what it would do):",
                        );
                        output::note(&format!("  {line}"));
                    }
                }
            }
        }
        Command::Trust => {
            let trust = client.get("/api/v1/device-trust")?;
            match global.output {
                Output::Json => output::json(&trust),
                Output::Table => {
                    output::line(&text(&trust, "trust"));
                    output::note("On the device:");
                    let (server, trust) = (client.server(), text(&trust, "trust"));
                    output::note(&format!("  skerry-agent enroll --server {server} --trust {trust}"));
                }
            }
        }
        Command::Keys { state } => {
            let query = state.map(|state| format!("?state={state}")).unwrap_or_default();
            let answer = client.get(&format!("/api/v1/device-keys{query}"))?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::table(
                    ["fingerprint", "state", "device", "asks as", "platform", "since"],
                    super::client::list(answer, "keys").iter().map(key_row),
                ),
            }
        }
        Command::AddKeys { file } => {
            let keys = device_keys::read_list(&file)?;
            let answer = client.post("/api/v1/device-keys", &json!({"keys": keys}))?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::line(&format!("{} key(s) may enrol", answer["listed"])),
            }
        }
        Command::Approve {
            fingerprint,
            device_id,
            labels,
        } => {
            let fingerprint = device_keys::whole(&client, &fingerprint)?;
            let body = json!({"device_id": device_id, "labels": object(&labels)});
            let key = client.post(&format!("/api/v1/device-keys/{fingerprint}/approve"), &body)?;
            match global.output {
                Output::Json => output::json(&key),
                Output::Table => output::line(&format!("{fingerprint} may enrol")),
            }
        }
        Command::Reject { fingerprint } => {
            let fingerprint = device_keys::whole(&client, &fingerprint)?;
            let key = client.post(&format!("/api/v1/device-keys/{fingerprint}/reject"), &json!({}))?;
            match global.output {
                Output::Json => output::json(&key),
                Output::Table => output::line(&format!("{fingerprint} is refused from now on")),
            }
        }
        Command::List { selector } => {
            let answer = client.get(&format!("/api/v1/devices?selector={}", encode(&selector)))?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => output::table(
                    ["device", "link", "state", "models", "last seen", "labels"],
                    super::client::list(answer, "devices").iter().map(row),
                ),
            }
        }
        Command::Show { device } => {
            let device = client.get(&format!("/api/v1/devices/{device}"))?;
            match global.output {
                Output::Json => output::json(&device),
                Output::Table => show(&device),
            }
        }
        Command::Label { device, changes } => {
            let mut labels = serde_json::Map::new();
            for change in &changes {
                match change.strip_suffix('-') {
                    Some(key) if !change.contains('=') => {
                        labels.insert(key.to_owned(), Value::Null);
                    }
                    _ => {
                        let pair: Pair = change.parse().map_err(anyhow::Error::new)?;
                        labels.insert(pair.key, pair.value.into());
                    }
                }
            }
            let device = client.patch(&format!("/api/v1/devices/{device}"), &json!({"labels": labels}))?;
            match global.output {
                Output::Json => output::json(&device),
                Output::Table => output::line(&format!("{}: {}", text(&device, "id"), pairs(&device["labels"]))),
            }
        }
        Command::Revoke { device } => {
            let device = client.post(&format!("/api/v1/devices/{device}/revoke"), &json!({}))?;
            match global.output {
                Output::Json => output::json(&device),
                Output::Table => output::line(&format!("{} has no access any more", text(&device, "id"))),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn key_row(key: &Value) -> [String; 6] {
    [
        text(key, "fingerprint"),
        text(key, "state"),
        text(key, "device_id"),
        text(&key["asked"], "device"),
        text(&key["asked"], "platform"),
        ago(key["created_at_ms"].as_u64()),
    ]
}

fn row(device: &Value) -> [String; 6] {
    let link = match (&device["revoked_at_ms"], &device["connected"]) {
        (Value::Number(_), _) => "revoked",
        _ if device["duplicate_seen_at_ms"].is_number() => "two of one identity",
        (_, Value::Bool(true)) => "connected",
        _ => "offline",
    };
    [
        text(device, "id"),
        link.to_owned(),
        text(&device["update"], "state"),
        models(device),
        ago(device["last_seen_at_ms"].as_u64()),
        pairs(&device["labels"]),
    ]
}

fn models(device: &Value) -> String {
    let current = device["bundles"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|bundle| bundle["slot"] == "current");
    current
        .map(|b| format!("{} v{}", text(b, "model"), b["version"]))
        .collect::<Vec<_>>()
        .join(", ")
}

/// What is known of a device, one fact a row.
fn facts(device: &Value) -> Vec<[String; 2]> {
    let mut facts = vec![
        ["device".to_owned(), text(device, "id")],
        ["platform".to_owned(), text(device, "platform")],
        ["agent".to_owned(), text(device, "agent_version")],
        [
            "access".to_owned(),
            match device["revoked_at_ms"].as_u64() {
                Some(at_ms) => format!("revoked {}", ago(Some(at_ms))),
                None => "granted".to_owned(),
            },
        ],
        ["connected".to_owned(), text(device, "connected")],
        ["last seen".to_owned(), ago(device["last_seen_at_ms"].as_u64())],
        ["labels".to_owned(), pairs(&device["labels"])],
        [
            "certificate ends".to_owned(),
            match device["certificate_not_after_ms"].as_u64() {
                Some(at_ms) => skerry_tuf::UnixTime::from_millis(at_ms as i64).to_string(),
                None => "it has none: enrol it again".to_owned(),
            },
        ],
        [
            "two agents as one".to_owned(),
            match device["duplicate_seen_at_ms"].as_u64() {
                Some(at_ms) => format!("seen {}: revoke it, or enrol one of them anew", ago(Some(at_ms))),
                None => "never seen".to_owned(),
            },
        ],
        [
            "generation".to_owned(),
            format!("{} (reported {})", device["generation"], device["reported_generation"]),
        ],
        ["state".to_owned(), text(&device["update"], "state")],
        ["inference API".to_owned(), text(device, "inference_address")],
    ];
    if device["update"]["waits"].is_object() {
        let waits = &device["update"]["waits"];
        let why = format!("{}: {}", text(waits, "code"), text(waits, "message"));
        facts.push(["waits".to_owned(), why]);
    }
    for alarm in device["alarms"].as_array().into_iter().flatten() {
        let (code, message) = (text(alarm, "code"), text(alarm, "message"));
        facts.push(["alarm".to_owned(), format!("{code}: {message}")]);
    }
    facts
}

fn show(device: &Value) {
    output::table(["field", "value"], facts(device));
    let bundles = device["bundles"].as_array().cloned().unwrap_or_default();
    output::line("");
    let bundle = |b: &Value| [text(b, "model"), text(b, "version"), text(b, "slot")];
    output::table(["model", "version", "slot"], bundles.iter().map(bundle));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<'a>(facts: &'a [[String; 2]], field: &str) -> Vec<&'a str> {
        let values = facts.iter().filter(|[name, _]| name == field);
        values.map(|[_, value]| value.as_str()).collect()
    }

    #[test]
    fn a_device_shows_its_alarms_and_what_is_wrong_with_its_identity() {
        let device = json!({
            "id": "dev-1", "connected": true, "revoked_at_ms": 1, "duplicate_seen_at_ms": 1,
            "alarms": [
                {"code": "stale_metadata", "message": "nothing is installed"},
                {"code": "time_untrusted", "message": "nobody has answered"},
            ],
            "update": {"state": "sync", "waits": {"code": "expired", "message": "the timestamp is of yesterday"}},
        });
        let facts = facts(&device);
        assert_eq!(
            values(&facts, "alarm"),
            [
                "stale_metadata: nothing is installed",
                "time_untrusted: nobody has answered"
            ]
        );
        assert_eq!(values(&facts, "waits"), ["expired: the timestamp is of yesterday"]);
        assert!(values(&facts, "access")[0].starts_with("revoked "));
        assert!(values(&facts, "two agents as one")[0].starts_with("seen "));
    }

    #[test]
    fn a_device_without_alarms_shows_none() {
        let device = json!({"id": "dev-1", "connected": true, "revoked_at_ms": null, "duplicate_seen_at_ms": null});
        let facts = facts(&device);
        assert!(values(&facts, "alarm").is_empty() && values(&facts, "waits").is_empty());
        assert_eq!(values(&facts, "access"), ["granted"]);
        assert_eq!(values(&facts, "two agents as one"), ["never seen"]);
    }
}
