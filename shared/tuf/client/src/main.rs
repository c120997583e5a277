//! `skerry-tuf-client`: our TUF client over plain HTTP, for conformance suites and other people's repositories.
//!
//! Not part of a device: the agent drives the same [`skerry_tuf::TrustedSet`] over its own transport and disk. The command
//! line is the one that the public TUF conformance suite defines. Exit code 0 is success, 1 any failure.

mod client;
mod folder;
mod http;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use skerry_tuf::{Expiry, TargetName, UnixTime};

use crate::client::Client;
use crate::folder::Folder;
use crate::http::Repository;

#[derive(Debug, Parser)]
#[command(name = "skerry-tuf-client", version, about)]
struct Cli {
    /// Folder of the trusted metadata.
    #[arg(long)]
    metadata_dir: PathBuf,
    /// Where the repository keeps its metadata.
    #[arg(long)]
    metadata_url: Option<String>,
    #[command(flatten)]
    download: DownloadArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct DownloadArgs {
    /// Target to download; may be given more than once.
    #[arg(long = "target-name")]
    target_names: Vec<String>,
    /// Where the repository keeps its targets.
    #[arg(long)]
    target_base_url: Option<String>,
    /// Folder for the targets.
    #[arg(long)]
    target_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trusts a root file from now on.
    Init {
        /// The root file.
        root: PathBuf,
    },
    /// Brings the metadata up to date.
    Refresh,
    /// Brings the metadata up to date, then downloads targets.
    Download,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skerry-tuf-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let folder = Folder::open(&cli.metadata_dir)?;
    if let Command::Init { root } = &cli.command {
        return client::init(&folder, root);
    }
    // §5.1: one time for the whole cycle.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let expiry = Expiry::Enforce(UnixTime::from_seconds(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)));
    let metadata = Repository::new(cli.metadata_url.context("--metadata-url is missing")?);
    let mut client = Client::load(folder, metadata, expiry)?;
    client.refresh()?;
    if !matches!(cli.command, Command::Download) {
        return Ok(());
    }
    let args = cli.download;
    let targets = Repository::new(args.target_base_url.context("--target-base-url is missing")?);
    let into = Folder::open(&args.target_dir.context("--target-dir is missing")?)?;
    if args.target_names.is_empty() {
        anyhow::bail!("--target-name is missing");
    }
    for name in args.target_names {
        let name = TargetName::new(name.as_str()).with_context(|| format!("cannot ask for target {name:?}"))?;
        client
            .download(&name, &targets, &into)
            .with_context(|| format!("cannot download {}", name.as_str()))?;
    }
    Ok(())
}
