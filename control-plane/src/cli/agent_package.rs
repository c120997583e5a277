//! `skerry agent-package`: the agent's packages that the control plane hands out to new devices.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Done, Global, Output,
    client::{encode, list},
    output::{self, ago, bytes, text},
};
use crate::agent_package::PackageName;

/// Commands about the agent's packages.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Gives the control plane packages of the agent; each replaces the one for the same machines.
    #[command(
        after_help = "The files are what packaging/release.sh makes. Check their signature before: whoever installs by \
                            the line of `skerry device token` trusts this control plane for the program.\n\nExample:\n  \
                            skerry agent-package publish packaging/out/*.deb packaging/out/*.tar.gz"
    )]
    Publish {
        /// skerry-agent_VERSION_ARCHITECTURE.deb or skerry-agent-VERSION-TARGET.tar.gz.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Lists the packages that new devices are given.
    List,
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let packages = match command {
        Command::Publish { files } => {
            // All names first: nothing is sent if one is wrong.
            let mut named = Vec::with_capacity(files.len());
            for path in files {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let name: PackageName = name.parse().map_err(anyhow::Error::new)?;
                named.push((name, path));
            }
            let mut packages = Vec::with_capacity(named.len());
            for (name, path) in named {
                let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let address = format!("/api/v1/agent-packages/{}", encode(name.as_str()));
                packages.push(client.post_bytes(&address, &content)?);
            }
            packages
        }
        Command::List => list(client.get("/api/v1/agent-packages")?, "packages"),
    };
    match global.output {
        Output::Json => output::json(&json!({"packages": packages})),
        Output::Table => output::table(
            ["architecture", "format", "version", "size", "published", "file"],
            packages.iter().map(row),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn row(package: &Value) -> [String; 6] {
    [
        text(package, "architecture"),
        text(package, "format"),
        text(package, "version"),
        bytes(package["size_bytes"].as_u64().unwrap_or_default()),
        ago(package["published_at_ms"].as_u64()),
        text(package, "file"),
    ]
}
