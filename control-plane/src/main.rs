//! `skerry`: the operator's command line.

use std::process::ExitCode;

use clap::Parser;
use skerry_control_plane::cli;

/// Runs machine-learning models on fleets of small devices, and keeps the fleet in hand.
#[derive(Parser)]
#[command(name = "skerry", version, after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found.")]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: cli::Command,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    cli::run(arguments.command, &arguments.global)
}
