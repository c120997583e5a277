//! `skerry rollout`: bring a published bundle to devices, group by group.

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion};

use super::{
    Done, Global, Output,
    client::{Client, list},
    output::{self, ago, text},
    parse::duration,
};
use crate::rollouts::GroupSize;

/// Commands about rollouts.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Creates a rollout and starts it.
    #[command(after_help = "Example: one device first, then the rest, and watch:\n  \
                            skerry rollout create activity-recognition 2 --group 1 --group rest --watch")]
    Create {
        /// The model.
        model: ModelName,
        /// The version; its bundle must be published.
        version: ModelVersion,
        /// A deployment group: 3 (devices), 20% (of them), label:site=north, rest. Repeatable, in order.
        #[arg(long = "group", value_name = "SIZE", default_values = ["1", "rest"])]
        groups: Vec<GroupSize>,
        /// Only devices with these labels.
        #[arg(long, default_value = "")]
        selector: String,
        /// How long the version serves on probation on each device.
        #[arg(long, value_parser = duration)]
        probation: Option<Duration>,
        /// Percent of a group that must succeed before the next begins.
        #[arg(long, default_value_t = 100)]
        success: u8,
        /// Percent of a group that may fail; more stops the rollout.
        #[arg(long, default_value_t = 0)]
        error: u8,
        /// How long a device may say nothing before the rollout pauses.
        #[arg(long, value_parser = duration)]
        silent_after: Option<Duration>,
        /// Leave it as a draft that `resume` starts.
        #[arg(long)]
        draft: bool,
        /// Follow it to its end.
        #[arg(long)]
        watch: bool,
    },
    /// Lists rollouts.
    List,
    /// Shows a rollout with its devices.
    Show {
        /// The rollout's number.
        id: u64,
    },
    /// Follows a rollout to its end: exit code 0 when it finishes, 1 when it stops.
    Watch {
        /// The rollout's number.
        id: u64,
    },
    /// Holds a rollout: no further devices.
    Pause {
        /// The rollout's number.
        id: u64,
    },
    /// Goes on with a paused rollout, or starts a draft.
    Resume {
        /// The rollout's number.
        id: u64,
    },
    /// Stops a rollout; devices that have not finished return to what they ran.
    Abort {
        /// The rollout's number.
        id: u64,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    let rollout = match command {
        Command::Create {
            model,
            version,
            groups,
            selector,
            probation,
            success,
            error,
            silent_after,
            draft,
            watch,
        } => {
            let groups: Vec<Value> = groups
                .into_iter()
                .map(|size| json!({"size": size, "success_percent": success, "error_percent": error}))
                .collect();
            let mut body = json!({
                "model": model, "version": version, "selector": selector, "groups": groups, "start": !draft,
            });
            if let Some(probation) = probation {
                body["probation_ms"] = json!(probation.as_millis() as u64);
            }
            if let Some(silent_after) = silent_after {
                body["silent_after_seconds"] = json!(silent_after.as_secs());
            }
            let rollout = client.post("/api/v1/rollouts", &body)?;
            if watch && let Some(id) = rollout["id"].as_u64() {
                return self::watch(&client, id, global.output);
            }
            rollout
        }
        Command::List => {
            let answer = client.get("/api/v1/rollouts")?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => {
                    let row = |r: &Value| {
                        let made = ago(r["created_at_ms"].as_u64());
                        [
                            text(r, "id"),
                            text(r, "model"),
                            text(r, "version"),
                            text(r, "state"),
                            made,
                            text(r, "reason"),
                        ]
                    };
                    let header = ["rollout", "model", "version", "state", "created", "reason"];
                    output::table(header, list(answer, "rollouts").iter().map(row));
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Show { id } => client.rollout(id)?,
        Command::Watch { id } => return watch(&client, id, global.output),
        Command::Pause { id } => client.post(&format!("/api/v1/rollouts/{id}/pause"), &json!({}))?,
        Command::Resume { id } => client.post(&format!("/api/v1/rollouts/{id}/resume"), &json!({}))?,
        Command::Abort { id } => client.post(&format!("/api/v1/rollouts/{id}/abort"), &json!({}))?,
    };
    match global.output {
        Output::Json => output::json(&rollout),
        Output::Table => show(&rollout),
    }
    Ok(ExitCode::SUCCESS)
}

fn watch(client: &Client, id: u64, form: Output) -> Done {
    let mut last = client.rollout(id)?;
    let mut line = String::new();
    let mut say = |rollout: &Value| {
        let now = progress_line(rollout);
        if now != line {
            output::note(&now);
            line = now;
        }
    };
    say(&last);
    while !is_over(&last) {
        client.events(&format!("/api/v1/rollouts/{id}/events"), |rollout| {
            say(&rollout);
            let over = is_over(&rollout);
            last = rollout;
            !over
        })?;
        // The stream may end early, for example when the control plane restarts: look, then listen again.
        last = client.rollout(id)?;
    }
    match form {
        Output::Json => output::json(&last),
        Output::Table => show(&last),
    }
    Ok(if last["state"] == "finished" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn is_over(rollout: &Value) -> bool {
    matches!(rollout["state"].as_str(), Some("finished" | "stopped"))
}

fn devices(rollout: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let groups = rollout["groups"].as_array().into_iter().flatten();
    groups.flat_map(|group| {
        group["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .map(move |device| (group, device))
    })
}

fn progress_line(rollout: &Value) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for (_, device) in devices(rollout) {
        *counts.entry(text(device, "state")).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    format!(
        "rollout {}: {} ({})",
        rollout["id"],
        text(rollout, "state"),
        counts.join(", ")
    )
}

fn show(rollout: &Value) {
    let reason = text(rollout, "reason");
    let reason = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    let (model, version) = (text(rollout, "model"), text(rollout, "version"));
    output::line(&format!(
        "rollout {} of {model} v{version}: {}{reason}",
        rollout["id"],
        text(rollout, "state")
    ));
    let row = |(group, device): (&Value, &Value)| {
        let error = match &device["error"] {
            Value::Object(_) => text(&device["error"], "message"),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        [
            text(group, "name"),
            text(device, "device"),
            text(device, "state"),
            error,
        ]
    };
    output::table(["group", "device", "state", "error"], devices(rollout).map(row));
}
