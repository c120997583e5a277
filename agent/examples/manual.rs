//! Writes the manual pages and shell completions of `skerry-agent` into a folder: `man/`, `bash/`, `zsh/`, `fish/`.
//!
//! An example and not a subcommand, so that what generates them is not linked into what a device runs:
//! `cargo run -p skerry-agent --example manual -- FOLDER`. The same sources give the same bytes.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap_complete::Shell;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("usage: manual FOLDER")?;
    let folder = PathBuf::from(folder);
    let man = folder.join("man");
    fs::create_dir_all(&man).context("cannot make the folder")?;
    clap_mangen::generate_to(skerry_agent::cli::command(), &man).context("cannot write the manual pages")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let place = folder.join(shell.to_string());
        fs::create_dir_all(&place).context("cannot make the folder")?;
        clap_complete::generate_to(shell, &mut skerry_agent::cli::command(), "skerry-agent", &place)
            .with_context(|| format!("cannot write the completions for {shell}"))?;
    }
    Ok(())
}
