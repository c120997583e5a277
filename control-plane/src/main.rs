//! `skerry`: the control plane and the operator's command line in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    skerry_control_plane::cli::main_with(std::env::args_os())
}
