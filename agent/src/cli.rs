//! The agent's command line: enrol, run, status.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use serde_json::json;
use skerry_shared::id::DeviceId;
use skerry_tuf::VersionFloors;
use tokio_util::sync::CancellationToken;

use crate::{
    agent,
    config::Config,
    disk::Disk,
    doctor,
    enroll::{self, Credential},
    log,
    proof::{self, Proof},
    serve::door,
};

/// Runs signed machine-learning bundles on this device and keeps them up to date.
#[derive(Parser)]
#[command(name = "skerry-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes this device known to a control plane: with a one-time token, or by its key.
    #[command(
        after_help = "With a token from `skerry device token`:\n  SKERRY_ENROLL_TOKEN=TOKEN skerry-agent enroll --server URL\n\
                      Without one, by what `skerry device trust` shows:\n  skerry-agent enroll --server URL --trust TRUST\n\
                      A key on the factory's list enrols at once; any other waits for `skerry device approve`. Waiting may be\n\
                      broken off and taken up again."
    )]
    Enroll {
        /// The control plane's address, for example https://192.0.2.1:8080.
        #[arg(long)]
        server: String,
        /// The token, whole.
        #[arg(
            long,
            env = "SKERRY_ENROLL_TOKEN",
            hide_env_values = true,
            required_unless_present = "trust"
        )]
        token: Option<String>,
        /// What to trust, from `skerry device trust`, for a device without a token.
        #[arg(long, conflicts_with = "token")]
        trust: Option<String>,
        /// Where identity, trusted metadata and bundles live.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
        /// The device's id; without it the control plane chooses one.
        #[arg(long)]
        device_id: Option<DeviceId>,
    },
    /// Shows the fingerprint of this device's key, and makes the key if there is none: for a factory's list.
    Fingerprint {
        /// Where identity, trusted metadata and bundles live.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
    },
    /// Runs the agent until it is told to stop.
    #[command(
        after_help = "The inference API speaks the Open Inference Protocol v2, HTTP and gRPC on the same port.\n\nFor this device \
                            only:\n  skerry-agent run\nFor other machines too, with a token and TLS:\n  openssl rand -hex 32 \
                            >/etc/skerry/api-token\n  skerry-agent run --listen 0.0.0.0:8090 --api-token-file \
                            /etc/skerry/api-token \\\n      --api-certificate /etc/skerry/api.pem --api-key /etc/skerry/api.key\n\n\
                            The configuration is TOML; every key has a default:\n\n  [inference]\n  engine = \"auto\"               \
                            # the fastest that answers the golden vectors rightly; or \"tract\", \"onnxruntime\"\n  onnxruntime = \
                            \"/opt/lib/libonnxruntime.so\"  # without it, where systems keep it; absent is no error\n  \
                            model_memory_bytes = 268435456 # the most that loading a model may take; three quarters of what is \
                            free\n  load_seconds = 300             # the longest that loading may take"
    )]
    Run {
        /// Where identity, trusted metadata and bundles live.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
        #[command(flatten)]
        api: door::Options,
        /// The most bytes per second that downloads may use.
        #[arg(long, value_name = "BYTES_PER_SECOND")]
        bandwidth: Option<u64>,
        /// How often measurements are collected and sent, for example 500ms, 10s, 5m.
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = interval)]
        telemetry_interval: Duration,
        /// The most bytes that bundles may take on disk; without it the disk's free space is the limit.
        #[arg(long, value_name = "BYTES")]
        store_limit: Option<u64>,
        /// The configuration file; without it /etc/skerry/agent.toml, if that is there.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Loads a model that comes on standard input, to see what it does to its loader.
    #[command(hide = true)]
    LoadCheck {
        #[arg(long)]
        memory_bytes: u64,
        #[arg(long)]
        cpu_seconds: u64,
    },
    /// Proves offline what lies on this device: metadata, floors, every installed bundle, and where its model comes from.
    #[command(
        after_help = "Reads only; works while the agent runs and while it does not, with no network. Exit code 1 if anything is\n\
                      wrong. The digest of the root is to be compared with that of the operator's root.json (sha256sum)."
    )]
    Verify {
        /// Where identity, trusted metadata and bundles live.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
        /// How to print what was found.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Looks for what keeps this device from working, and says what to do about it.
    #[command(
        after_help = "It changes nothing and needs no running agent. Exit code 0: nothing is broken (warnings may be there); \
                            1: something is; the lines that begin with FAIL say what.\n\nExample:\n  sudo skerry-agent doctor\n  \
                            skerry-agent doctor -o json | jq '.findings[] | select(.level != \"ok\")'"
    )]
    Doctor {
        /// Where identity, trusted metadata and bundles live.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
        /// How the findings are printed.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// Shows what the agent on this device runs and does.
    Status {
        /// The state folder of the running agent.
        #[arg(long, default_value = "/var/lib/skerry")]
        state_dir: PathBuf,
        /// Waits at most so long until the device is in sync: connected, and no update under way. For example 2m.
        #[arg(long, value_name = "DURATION", value_parser = interval)]
        wait: Option<Duration>,
        /// The file with the API's token, if the agent runs with one.
        #[arg(long, value_name = "FILE", env = "SKERRY_API_TOKEN_FILE")]
        api_token_file: Option<PathBuf>,
    },
}

/// How a command prints its result.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The command line's grammar, for manual pages and shell completions.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the agent's command line. `arguments` begins with the program's name. It is all of `main`: nothing runs before.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    skerry_inference::silence_onnxruntime();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let done = match arguments.command {
        Command::Enroll {
            server,
            token,
            trust,
            state_dir,
            device_id,
        } => {
            let credential = match (token, trust) {
                (Some(token), _) => Credential::Token(token),
                (None, trust) => Credential::Key {
                    trust: trust.unwrap_or_default(),
                },
            };
            enroll::enroll(&state_dir, &server, &credential, device_id, note)
                .map(|device| say(&format!("enrolled as {device}")))
        }
        Command::Fingerprint { state_dir } => {
            enroll::fingerprint(&Disk::real(), &state_dir).map(|fingerprint| say(&fingerprint.to_hex()))
        }
        Command::Run {
            state_dir,
            api,
            bandwidth,
            telemetry_interval,
            store_limit,
            config,
        } => Config::read(config.as_deref())
            .map_err(anyhow::Error::new)
            .and_then(|config| {
                run(agent::Options {
                    state_dir,
                    api,
                    bandwidth,
                    telemetry_interval,
                    store_limit,
                    config,
                    loader_words: loader_words(),
                })
            }),
        Command::LoadCheck {
            memory_bytes,
            cpu_seconds,
        } => return skerry_inference::run_child(memory_bytes, cpu_seconds),
        Command::Verify { state_dir, output } => verify(&state_dir, output),
        Command::Doctor { state_dir, output } => {
            let report = doctor::examine(&state_dir);
            match output {
                Output::Table => say(&report.table()),
                Output::Json => say(&format!("{:#}", report.json())),
            }
            return if report.is_healthy() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Command::Status {
            state_dir,
            wait,
            api_token_file,
        } => status(&state_dir, wait, api_token_file.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Shorter intervals would wear the flash out: each costs an fsync.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A text that is no telemetry interval.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no interval of 100ms or more; for example 500ms, 10s, 5m, 1h")]
struct BadInterval(String);

fn interval(text: &str) -> Result<Duration, BadInterval> {
    let bad = || BadInterval(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (count, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    let ms = count.parse::<u32>().map_err(|_| bad())?;
    let interval = Duration::from_millis(u64::from(ms) * unit_ms);
    if interval < INTERVAL_MIN {
        Err(bad())
    } else {
        Ok(interval)
    }
}

/// The words before `run` (`skerry agent` has one), and the one that loads a model instead.
fn loader_words() -> Vec<OsString> {
    let words = std::env::args_os().skip(1).take_while(|word| word != "run");
    words.chain(["load-check".into()]).collect()
}

/// Beside the result: on stderr, so that what reads stdout is not disturbed.
fn note(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn say(text: &str) {
    use std::io::Write;
    // A closed pipe is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn run(options: agent::Options) -> anyhow::Result<()> {
    log::start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            stop.cancel();
        });
        agent::run(options, shutdown).await
    })?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(())
}

fn verify(state_dir: &Path, output: Output) -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = skerry_tuf::UnixTime::from_seconds(now.unwrap_or_default().as_secs() as i64);
    let disk = Disk::real();
    let device = enroll::Identity::read(&disk, state_dir)?.device_id;
    let proof = proof::prove(&disk, state_dir, &skerry_inference::host_platform(), now)?;
    match output {
        Output::Json => say(&serde_json::to_string_pretty(
            &json!({"device": device, "proof": proof}),
        )?),
        Output::Table => {
            say(&format!("device {device}"));
            print(&proof);
        }
    }
    match proof.broken.as_slice() {
        [] => Ok(()),
        [only] => bail!("{}: {}", only.place, only.reason),
        more => bail!("{} things are wrong", more.len()),
    }
}

fn print(proof: &Proof) {
    match &proof.root {
        Some(root) => say(&format!("├─ root      version {}, {}", root.version, root.digest)),
        None => say("├─ root      UNUSABLE"),
    }
    match &proof.targets {
        Some(targets) => {
            let expired = if targets.expired { ", EXPIRED" } else { "" };
            say(&format!(
                "├─ targets   version {}, expire {}{expired}",
                targets.version, targets.expire
            ));
        }
        None => say("├─ targets   none that is believed"),
    }
    let VersionFloors {
        root,
        timestamp,
        snapshot,
        targets,
    } = proof.floors;
    say(&format!(
        "├─ floors    root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}"
    ));
    for bundle in &proof.bundles {
        say(&format!(
            "├─ {:9} {} v{}, {}",
            bundle.slot, bundle.model, bundle.version, bundle.index
        ));
        if let Some(reason) = &bundle.blocked {
            // Quoted, so that no control character of the reason reaches the terminal.
            say(&format!("│  ├─ BLOCKED: {reason:?}"));
        }
        if let Some(lowest) = bundle.min_release {
            say(&format!(
                "│  ├─ BELOW the lowest version that may be installed, which is {lowest}"
            ));
        }
        let Some(content) = &bundle.content else { continue };
        say(&format!(
            "│  ├─ {} files, {} bytes, all whole and signed; {} golden vectors",
            content.files, content.bytes, content.golden_vectors
        ));
        for (depth, link) in content.lineage.iter().enumerate() {
            let missing = if link.what == "approval" {
                "NOT APPROVED"
            } else {
                "not known"
            };
            let value = link.value.as_deref().unwrap_or(missing);
            let by = link.by.as_ref().map_or_else(String::new, |by| format!(" by {by}"));
            say(&format!("│  {}└─ {:13} {value}{by}", "   ".repeat(depth), link.what));
        }
    }
    match proof.broken.as_slice() {
        [] => say("└─ everything is as it was signed"),
        broken => broken
            .iter()
            .for_each(|broken| say(&format!("└─ BROKEN: {}: {}", broken.place, broken.reason))),
    }
}

/// How often a waiting `status` looks again.
const LOOK_EVERY: Duration = Duration::from_millis(250);

fn status(state_dir: &Path, wait: Option<Duration>, token_file: Option<&Path>) -> anyhow::Result<()> {
    let token = token_file.map(door::token_text).transpose()?;
    let end = std::time::Instant::now() + wait.unwrap_or_default();
    loop {
        let status = ask_status(state_dir, token.as_ref().map(|token| token.as_str()));
        let settled = status.as_ref().is_ok_and(is_in_sync);
        let over = std::time::Instant::now() >= end;
        if settled || over {
            say(&serde_json::to_string_pretty(&status?)?);
            if wait.is_some() && !settled {
                anyhow::bail!("the device is not in sync yet: see `connected` and `update` above");
            }
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// True when the device is connected and has what it should have.
fn is_in_sync(status: &serde_json::Value) -> bool {
    status["connected"] == true && status["update"]["state"] == "idle"
}

fn ask_status(state_dir: &Path, token: Option<&str>) -> anyhow::Result<serde_json::Value> {
    let path = state_dir.join("inference-address");
    let address =
        std::fs::read_to_string(&path).with_context(|| format!("no agent has run with {}", state_dir.display()))?;
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5)));
    let agent: ureq::Agent = config.build().into();
    let mut request = agent.get(format!("http://{}/skerry/v1/status", address.trim()));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = request.call();
    if let Err(ureq::Error::StatusCode(401)) = answer {
        bail!("the agent's API wants its token: --api-token-file FILE");
    }
    answer
        .context("the agent does not answer: is it running?")?
        .body_mut()
        .read_json()
        .context("bad answer")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_units_and_a_least_value() {
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(interval("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(interval("5m").unwrap(), Duration::from_secs(300));
        for text in ["", "10", "s", "-1s", "1d", "0s", "99ms", "99999999999s"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn in_sync_is_connected_and_at_rest() {
        use serde_json::json;
        assert!(is_in_sync(&json!({"connected": true, "update": {"state": "idle"}})));
        assert!(!is_in_sync(
            &json!({"connected": true, "update": {"state": "download"}})
        ));
        assert!(!is_in_sync(&json!({"connected": false, "update": {"state": "idle"}})));
        assert!(!is_in_sync(&json!({})));
    }
}
