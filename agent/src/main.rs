//! `skerry-agent`: the agent as its own small binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    skerry_agent::cli::main_with(std::env::args_os())
}
