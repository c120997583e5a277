//! `skerry ca`: what is to be signed by the fleet's certificate authority by hand, on the control plane's machine.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Subcommand;

use super::{Done, output, parse::duration};
use crate::{
    app::now_ms,
    ca::{Authority, ServerNames},
    config::is_name,
};

/// Commands about the certificate authority.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Makes a certificate and a key for a broker that runs elsewhere, so that devices know it.
    #[command(
        after_help = "Run it again before the certificate ends, and have the broker read the files anew.\n\n\
                            Example:\n  skerry ca issue-broker --data-dir /var/lib/skerry-control-plane --name broker.example --out ."
    )]
    IssueBroker {
        /// The data folder of the control plane.
        #[arg(long, default_value = "skerry-data", value_name = "DIR")]
        data_dir: PathBuf,
        /// A name or an address of the broker; repeatable.
        #[arg(long = "name", required = true, value_name = "NAME", value_parser = name)]
        names: Vec<String>,
        /// How long the certificate counts.
        #[arg(long, default_value = "365d", value_parser = duration)]
        life: Duration,
        /// Where broker.pem and broker.key are written.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// A text that is no name of a server.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is no host name and no address")]
struct BadName(String);

fn name(text: &str) -> Result<String, BadName> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(BadName(text.to_owned())),
    }
}

pub(super) fn run(command: Command) -> Done {
    let Command::IssueBroker {
        data_dir,
        names,
        life,
        out,
    } = command;
    let folder = data_dir.join("tls");
    let known = folder.join("ca.key").is_file();
    if !known {
        let error = anyhow::anyhow!(
            "there is no authority in {}: `skerry serve` makes it at its first start (--data-dir names another folder)",
            folder.display()
        );
        return Err(error.into());
    }
    let authority = Authority::open(&folder, now_ms()).map_err(anyhow::Error::new)?;
    let issued = authority.issue_broker(&ServerNames::of(&names), life, now_ms());
    let (chain, key) = issued.map_err(anyhow::Error::new)?;
    write(&out.join("broker.pem"), chain.as_bytes(), 0o644)?;
    write(&out.join("broker.key"), key.as_bytes(), 0o600)?;
    output::note(&format!(
        "broker.pem and broker.key are in {}; clients are verified by {}",
        out.display(),
        authority.path().display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &std::path::Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    // Anew, so that an old file's mode does not stay.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(cannot),
        _ => {}
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(cannot)
}
