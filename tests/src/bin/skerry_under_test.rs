//! The program `skerry` as the tests start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    skerry_control_plane::cli::main_with(std::env::args_os())
}
