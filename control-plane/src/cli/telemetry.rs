//! `skerry telemetry`: what devices have measured.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::{
    Done, Global, Output,
    client::{encode, list},
    output::{self, ago, text},
};

/// Commands about telemetry.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Shows inferences, errors and latency per device and model version.
    Show {
        /// Only this device.
        #[arg(long, default_value = "")]
        device: String,
        /// Only this model.
        #[arg(long, default_value = "")]
        model: String,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let Command::Show { device, model } = command;
    let path = format!(
        "/api/v1/telemetry/summary?device={}&model={}",
        encode(&device),
        encode(&model)
    );
    let answer = global.client().get(&path)?;
    match global.output {
        Output::Json => output::json(&answer),
        Output::Table => {
            let header = [
                "device",
                "model",
                "version",
                "inferences",
                "errors",
                "p50",
                "p95",
                "max",
                "last",
            ];
            output::table(header, list(answer, "rows").iter().map(row));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(row: &Value) -> [String; 9] {
    let duration = |key: &str| match row[key].as_f64() {
        Some(seconds) if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2} s"),
        None => String::new(),
    };
    [
        text(row, "device"),
        text(row, "model"),
        text(row, "version"),
        text(row, "inferences"),
        text(row, "errors"),
        duration("p50_seconds"),
        duration("p95_seconds"),
        duration("max_seconds"),
        ago(row["last_at_ms"].as_u64()),
    ]
}
