//! `skerry`: the control plane and the operator's command line in one binary.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use skerry_control_plane::{
    app::Server,
    cli,
    config::{Config, ConfigError},
};

/// Runs machine-learning models on fleets of small devices, and keeps the fleet in hand.
#[derive(Parser)]
#[command(
    name = "skerry",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 64 bad configuration."
)]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the control plane: broker, database, API.
    Serve {
        /// The configuration (TOML); everything in it has a default.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Where databases, blobs and keys live; overrides the configuration.
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// Where the API listens; overrides the configuration.
        #[arg(long)]
        http_bind: Option<SocketAddr>,
    },
    #[command(flatten)]
    Operator(cli::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, data_dir, http_bind) = match arguments.command {
        Command::Operator(command) => return cli::run(command, &arguments.global),
        Command::Serve {
            config,
            data_dir,
            http_bind,
        } => (config, data_dir, http_bind),
    };
    let config = match configure(config, data_dir, http_bind) {
        Ok(config) => config,
        Err(error) => {
            cli::output::note(&format!("error: {:#}", anyhow::Error::new(error)));
            return ExitCode::from(64);
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn configure(
    file: Option<PathBuf>,
    data_dir: Option<PathBuf>,
    http_bind: Option<SocketAddr>,
) -> Result<Config, ConfigError> {
    let mut config = match (&file, &data_dir) {
        (Some(file), _) => Config::read(file)?,
        (None, Some(data_dir)) => Config::new(data_dir),
        (None, None) => Config::new("skerry-data".as_ref()),
    };
    if let Some(data_dir) = data_dir {
        config.data_dir = data_dir;
    }
    if let Some(http_bind) = http_bind {
        config.http_bind = http_bind;
    }
    Ok(config)
}

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    runtime.block_on(async {
        let server = Server::start(config).await?;
        if let Some(token) = server.first_api_token() {
            cli::output::note(&format!("first API token (shown once): {token}"));
        }
        cli::output::note(&format!("the API is at http://{}/api/v1", server.http_address()));
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => {}
        }
        server.shutdown().await;
        Ok(())
    })
}
