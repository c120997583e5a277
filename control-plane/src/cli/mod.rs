//! The operator's command line: one file per noun. It speaks to the control plane over its REST API only, and keeps the
//! offline keys on its own side.
//!
//! Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found.

mod agent_package;
mod audit;
pub mod bundle;
mod ca;
pub mod client;
#[cfg(feature = "demo")]
mod demo;
mod device;
mod device_keys;
pub mod keys;
mod model;
mod oms;
pub mod output;
pub mod parse;
mod rollout;
mod run;
mod serve;
mod telemetry;
mod terminal;
mod token;
pub mod trust;
mod user;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use client::{Client, ClientError};
use output::Output;
use trust::Trust;

/// Runs machine-learning models on fleets of small devices, and keeps the fleet in hand.
#[derive(Parser, Debug)]
#[command(
    name = "skerry",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 64 bad configuration.\n\n\
                  Begin with `skerry demo`: a control plane and five devices on this machine, from registration to rollback."
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command that asks the control plane.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The control plane's address.
    #[arg(
        long,
        global = true,
        env = "SKERRY_SERVER",
        default_value = "https://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub server: String,
    /// An API token; without one, the file `~/.config/skerry/token` is read.
    #[arg(
        long,
        global = true,
        env = "SKERRY_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// The certificate of the control plane's authority, in PEM; without it `skerry-data/tls/ca.pem`,
    /// `~/.config/skerry/ca.pem`, then the system's are looked for.
    #[arg(long, global = true, env = "SKERRY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The SHA-256 of that certificate, as `skerry serve` prints it: enough when the file is not at hand.
    #[arg(
        long,
        global = true,
        env = "SKERRY_CA_SHA256",
        value_name = "HEX",
        conflicts_with = "ca"
    )]
    pub ca_sha256: Option<String>,
    /// Found once, for all calls.
    #[arg(skip)]
    trust: Trust,
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Output,
}

impl Global {
    fn client(&self) -> Client {
        Client::new(&self.server, self.token.clone().or_else(token_from_file), &self.trust)
    }
}

fn token_from_file() -> Option<String> {
    let home = std::env::var_os("HOME")?;
    let text = std::fs::read_to_string(PathBuf::from(home).join(".config/skerry/token")).ok()?;
    Some(text.trim().to_owned())
}

/// The commands.
#[derive(Subcommand, Debug)]
enum Command {
    /// Starts the control plane: broker, database, API, console.
    Serve(serve::Options),
    /// Shows the whole loop on this machine: a control plane, five devices, a good and a bad rollout.
    #[cfg(feature = "demo")]
    Demo(demo::Options),
    /// The device's agent, for trying things out; a device has the smaller `skerry-agent`.
    #[cfg(feature = "demo")]
    #[command(disable_help_flag = true)]
    Agent {
        /// Arguments of `skerry-agent`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Signing keys: make, rotate and share them, sign with them.
    #[command(subcommand)]
    Keys(keys::Command),
    /// The fleet's certificate authority: certificates for brokers that run elsewhere.
    #[command(subcommand)]
    Ca(ca::Command),
    /// Devices: enrolment tokens, state, labels.
    #[command(subcommand)]
    Device(device::Command),
    /// The agent's packages that new devices are given: publish, list.
    #[command(subcommand)]
    AgentPackage(agent_package::Command),
    /// Training runs: submit, follow, cancel.
    #[command(subcommand)]
    Run(run::Command),
    /// Registered models and their versions.
    #[command(subcommand)]
    Model(model::Command),
    /// Bundles: build, sign, publish, inspect.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Rollouts: create, approve, watch, pause, resume, abort.
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// What devices have measured.
    #[command(subcommand)]
    Telemetry(telemetry::Command),
    /// The audit log: who changed what, and proof that nobody has touched it since.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Users and their roles: add, list, set-role, disable, password.
    #[command(subcommand)]
    User(user::Command),
    /// API tokens: create, list, revoke.
    #[command(subcommand)]
    Token(token::Command),
}

impl Command {
    fn asks_the_control_plane(&self) -> bool {
        match self {
            Command::Serve(_) | Command::Ca(_) => false,
            // A machine without a network must do these, whatever the environment says of a control plane.
            Command::Keys(command) => match command {
                keys::Command::Publish { .. } | keys::Command::Update { .. } => true,
                keys::Command::Renew { edit } => edit.asks_the_control_plane(),
                _ => false,
            },
            Command::Bundle(bundle::Command::Block { edit, .. } | bundle::Command::MinRelease { edit, .. }) => {
                edit.asks_the_control_plane()
            }
            Command::Bundle(bundle::Command::Verify { .. } | bundle::Command::Inspect { .. }) => false,
            Command::Audit(audit::Command::Verify { file, .. }) => file.is_none(),
            #[cfg(feature = "demo")]
            Command::Demo(_) | Command::Agent { .. } => false,
            _ => true,
        }
    }
}

/// A command's failure with its exit code.
pub(crate) enum Failure {
    /// The thing asked for is not there.
    NotFound(anyhow::Error),
    /// Anything else.
    Failed(anyhow::Error),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        if error.is_not_found() {
            Failure::NotFound(error.into())
        } else {
            Failure::Failed(error.into())
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        match error.downcast::<ClientError>() {
            Ok(error) => error.into(),
            Err(error) => Failure::Failed(error),
        }
    }
}

type Done = Result<ExitCode, Failure>;

/// Runs the command line to its exit code. `arguments` begins with the program's name. It is all of `main`: nothing runs before.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    skerry_inference::silence_onnxruntime();
    let Arguments { command, mut global } = Arguments::parse_from(arguments);
    if command.asks_the_control_plane() {
        match Trust::find(&global) {
            Ok(trust) => global.trust = trust,
            Err(error) => {
                output::note(&format!("error: {error:#}"));
                return ExitCode::from(1);
            }
        }
    }
    let global = &global;
    let done = match command {
        Command::Serve(options) => return serve::run(options),
        #[cfg(feature = "demo")]
        Command::Demo(options) => return demo::run(options, global.output),
        #[cfg(feature = "demo")]
        Command::Agent { arguments } => {
            return skerry_agent::cli::main_with([OsString::from("skerry agent")].into_iter().chain(arguments));
        }
        Command::Ca(command) => ca::run(command),
        Command::Keys(command) => keys::run(command, global),
        Command::Device(command) => device::run(command, global),
        Command::AgentPackage(command) => agent_package::run(command, global),
        Command::Run(command) => run::run(command, global),
        Command::Model(command) => model::run(command, global),
        Command::Bundle(command) => bundle::run(command, global),
        Command::Rollout(command) => rollout::run(command, global),
        Command::Telemetry(command) => telemetry::run(command, global),
        Command::Audit(command) => audit::run(command, global),
        Command::User(command) => user::run(command, global),
        Command::Token(command) => token::run(command, global),
    };
    match done {
        Ok(code) => code,
        Err(Failure::NotFound(error)) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::from(3)
        }
        Err(Failure::Failed(error)) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::from(1)
        }
    }
}
