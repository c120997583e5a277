//! `skerry serve`: the control plane as a long-running process.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;

use super::output;
use crate::{
    app::Server,
    config::{Config, ConfigError},
};

/// A configuration that cannot be used (EX_USAGE of sysexits).
const BAD_CONFIGURATION: u8 = 64;

/// Options of `serve`; each one overrides the configuration.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The configuration (TOML); everything in it has a default.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where databases, blobs and keys live.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the API and the console listen.
    #[arg(long)]
    http_bind: Option<SocketAddr>,
}

pub(super) fn run(options: Options) -> ExitCode {
    let config = match configure(options) {
        Ok(config) => config,
        Err(error) => {
            output::note(&format!("error: {:#}", anyhow::Error::new(error)));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    log_to_stderr("info");
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Writes the log to stderr; `RUST_LOG` overrides the level.
pub(super) fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

fn configure(options: Options) -> Result<Config, ConfigError> {
    let mut config = match (&options.config, &options.data_dir) {
        (Some(file), _) => Config::read(file)?,
        (None, Some(data_dir)) => Config::new(data_dir),
        (None, None) => Config::new("skerry-data".as_ref()),
    };
    if let Some(data_dir) = options.data_dir {
        config.data_dir = data_dir;
    }
    if let Some(http_bind) = options.http_bind {
        config.http_bind = http_bind;
    }
    Ok(config)
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        // Before anything listens: a signal that comes early must not be lost.
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let server = Server::start(config).await?;
        if let Some(token) = server.first_api_token() {
            output::note(&format!("first API token (shown once): {token}"));
        }
        if let Some(address) = server.mqtt_address() {
            output::note(&format!("devices connect to MQTT at {address}"));
        }
        let certificates = &server.app().certificates;
        if certificates.people_trust_the_authority() && server.is_secured() {
            let authority = certificates.authority();
            output::note(&format!(
                "to be trusted by browsers and `skerry --ca`: {}, SHA-256 {}",
                authority.path().display(),
                authority.digest().to_hex()
            ));
        }
        output::note(&format!("the console and the API are at {}/", server.url()));
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => {}
        }
        server.shutdown().await;
        Ok(())
    })
}
