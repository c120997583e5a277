//! `skerry demo`: the whole loop on this machine, with a real control plane, five agents as processes, and a real model.
//!
//! It does what an operator would do, by the same calls. Invariant: it ends well only if every claim that it prints has held.

mod agents;
mod files;
mod narrator;
mod replay;
mod steps;
mod summary;
mod wait;

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
    sync::Mutex,
};

use anyhow::{Context, bail};
use clap::Args;

use super::{Output, client::Client, keys, output, trust::Trust};
use crate::{
    app::Server,
    config::{Config, Mqtt},
};
use narrator::Narrator;
use wait::Stop;

/// The first port that is tried for the console, and the last.
const PORTS: std::ops::RangeInclusive<u16> = 8080..=8179;

/// Options of `demo`.
#[derive(Args, Debug)]
#[command(
    after_help = "With --once --output json the last line of stdout is one JSON object. In it, per device: bundle_bytes is the \
                        size of v2's bundle, wire_bytes the median of what a device received to get it, deploy_ms_p50 the median time \
                        from `rollout create` to serving of v1, whose rollout has one group."
)]
pub(super) struct Options {
    /// End after the loop: exit code 0 only if every step held.
    #[arg(long)]
    once: bool,
}

pub(super) fn run(options: Options, output: Output) -> ExitCode {
    match demo(&options, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn demo(options: &Options, form: Output) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("skerry-demo-").tempdir();
    let folder = folder.context("cannot make a temporary folder")?;
    let log = File::create(folder.path().join("control-plane.log")).context("cannot make the log")?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .init();
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let stop = Stop::default();
    let interrupted = stop.clone();
    runtime.spawn(async move {
        // A failure to listen leaves the default: Ctrl-C ends the process.
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupted.set();
        }
    });
    let narrator = Narrator::new();
    let server = runtime.block_on(start(folder.path()))?;
    let url = server.url();
    let token = server
        .first_api_token()
        .context("a new control plane makes a token")?
        .to_owned();
    narrator.say(&format!(
        "1. The control plane runs at {url}/, with broker, databases and keys in {}.",
        folder.path().display()
    ));

    let authority = server.app().certificates.authority();
    let trust = Trust::of_pem(authority.pem().as_bytes())?;
    let client = Client::new(&url, Some(token.clone()), &trust);
    let shown = steps::run(&client, folder.path(), &narrator, &stop).and_then(|(summary, fleet)| {
        match form {
            Output::Json => output::json_line(&summary.to_json()),
            Output::Table => summary.print(),
        }
        if !options.once {
            // The token is in the fragment, which browsers keep to themselves.
            narrator.say(&format!(
                "The fleet goes on. Console: {url}/login#{token}\n\
                 Your browser does not know this fleet's authority: import {}, or say that you trust the page, whose\n\
                 certificate is signed by the one with SHA-256 {}.\nCtrl-C ends everything.",
                authority.path().display(),
                authority.digest().to_hex(),
            ));
            fleet.go_on_until(&stop)?;
        }
        drop(fleet);
        summary.check()
    });
    runtime.block_on(server.shutdown());
    if shown.is_err() {
        // What went wrong is in the logs: keep them.
        narrator.say(&format!("the logs are in {}", folder.keep().display()));
    }
    shown
}

async fn start(folder: &Path) -> anyhow::Result<Server> {
    let keys_dir = folder.join("keys");
    keys::init(&keys_dir)?;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let Some(port) = PORTS.clone().find(free) else {
        bail!("no port from {} to {} is free", PORTS.start(), PORTS.end());
    };
    let mut config = Config::new(&folder.join("control-plane"));
    config.signing_dir = keys_dir.join("online");
    config.http_bind = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    config.mqtt = Mqtt::Embedded {
        bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    Server::start(config).await
}
