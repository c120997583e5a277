//! `skerry run`: training runs on the control plane.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, RunId},
};

use super::{
    Done, Global, Output,
    client::{Client, ClientError, list},
    output::{self, ago, bytes, pairs, text},
    parse::{Pair, duration, object},
};

/// Commands about training runs.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Uploads a training script with its inputs and runs it on the control plane.
    #[command(
        after_help = "Example:\n  skerry run submit --script train.py --input data --param variant=v2 --register-as activity-recognition --follow\n\n\
                            The script gets each parameter as `--key value`, finds its inputs in $SKERRY_INPUT_DIR, writes metrics as lines of JSON to \
                            $SKERRY_OUTPUT_DIR/metrics.jsonl and files to $SKERRY_OUTPUT_DIR/artifacts. artifacts/model.onnx is what --register-as registers."
    )]
    Submit {
        /// The script.
        #[arg(long)]
        script: PathBuf,
        /// A file, or a folder whose files are inputs; repeatable.
        #[arg(long = "input")]
        inputs: Vec<PathBuf>,
        /// A parameter; repeatable.
        #[arg(long = "param", value_name = "KEY=VALUE")]
        params: Vec<Pair>,
        /// The experiment.
        #[arg(long, default_value = "default")]
        experiment: String,
        /// When the script is killed.
        #[arg(long, default_value = "1h", value_parser = duration)]
        timeout: Duration,
        /// Register artifacts/model.onnx as the next version of this model.
        #[arg(long)]
        register_as: Option<ModelName>,
        /// Print the log until the run ends; exit code 1 if it does not finish well.
        #[arg(long)]
        follow: bool,
    },
    /// Lists runs.
    List,
    /// Shows a run.
    Show {
        /// The run.
        run: RunId,
    },
    /// Prints a run's log.
    Logs {
        /// The run.
        run: RunId,
        /// Go on until the run ends.
        #[arg(long)]
        follow: bool,
    },
    /// Kills a run.
    Cancel {
        /// The run.
        run: RunId,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let run = match command {
        Command::Submit {
            script,
            inputs,
            params,
            experiment,
            timeout,
            register_as,
            follow,
        } => {
            let script = upload(&client, &script)?;
            let mut uploaded = Vec::new();
            for input in &inputs {
                for file in files_of(input)? {
                    uploaded.push(upload(&client, &file)?);
                }
            }
            let body = json!({
                "experiment": experiment, "script": script, "inputs": uploaded, "params": object(&params),
                "timeout_seconds": timeout.as_secs(), "register_as": register_as,
            });
            let run = client.post("/api/v1/runs", &body)?;
            if !follow {
                run
            } else {
                let id = text(&run, "id");
                output::note(&format!("run {id}"));
                print_logs(&client, &id, true)?;
                let run = client.get(&format!("/api/v1/runs/{id}"))?;
                print(&run, global);
                let good = run["status"] == "finished";
                return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
        Command::List => {
            let answer = client.get("/api/v1/runs")?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => {
                    let row = |r: &Value| {
                        let made = ago(r["created_at_ms"].as_u64());
                        [
                            text(r, "id"),
                            text(r, "status"),
                            made,
                            pairs(&r["params"]),
                            pairs(&r["metrics"]),
                        ]
                    };
                    let header = ["run", "status", "created", "parameters", "metrics"];
                    output::table(header, list(answer, "runs").iter().map(row));
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Show { run } => client.get(&format!("/api/v1/runs/{run}"))?,
        Command::Logs { run, follow } => {
            print_logs(&client, run.as_str(), follow)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Cancel { run } => client.post(&format!("/api/v1/runs/{run}/cancel"), &json!({}))?,
    };
    print(&run, global);
    Ok(ExitCode::SUCCESS)
}

fn print(run: &Value, global: &Global) {
    if global.output == Output::Json {
        return output::json(run);
    }
    let registered = match &run["registered"] {
        Value::Null => String::new(),
        r => format!("{} v{}", text(r, "model"), r["version"]),
    };
    let rows = [
        ["run".to_owned(), text(run, "id")],
        ["status".to_owned(), text(run, "status")],
        ["error".to_owned(), text(run, "error")],
        ["exit status".to_owned(), text(run, "exit_status")],
        ["parameters".to_owned(), pairs(&run["params"])],
        ["metrics".to_owned(), pairs(&run["metrics"])],
        ["data set".to_owned(), text(run, "dataset")],
        ["code".to_owned(), text(run, "code")],
        ["registered".to_owned(), registered],
    ];
    output::table(
        ["field", "value"],
        rows.into_iter().filter(|[_, value]| !value.is_empty()),
    );
    let artifacts = run["artifacts"].as_array().cloned().unwrap_or_default();
    if !artifacts.is_empty() {
        output::line("");
        let row = |a: &Value| [text(a, "path"), bytes(a["size_bytes"].as_u64().unwrap_or(0))];
        output::table(["artifact", "size"], artifacts.iter().map(row));
    }
}

fn print_logs(client: &Client, run: &str, follow: bool) -> anyhow::Result<()> {
    let mut log = client.stream(&format!("/api/v1/runs/{run}/logs?follow={follow}"))?;
    let mut buffer = [0; 8192];
    loop {
        let read = log.read(&mut buffer);
        let count = read.map_err(|source| ClientError::Read {
            server: client.server().to_owned(),
            source,
        })?;
        if count == 0 || std::io::stdout().write_all(&buffer[..count]).is_err() {
            return Ok(());
        }
    }
}

fn upload(client: &Client, path: &Path) -> anyhow::Result<Value> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} has no name", path.display()))?;
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let digest = Digest::of(&content);
    client.upload(&digest, &content)?;
    Ok(json!({"name": name, "digest": digest}))
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", path.display());
    if !fs::metadata(path).with_context(context)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_type().with_context(context)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
