//! `skerry rollout`: bring a published bundle to devices, group by group.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, ModelVersion};

use super::{
    Done, Global, Output,
    client::{Client, ClientError, list},
    output::{self, ago, text},
    parse::duration,
};
use crate::rollouts::group::GroupSize;

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
        /// Let the devices go below the model's lowest version (`skerry bundle min-release`); never to a blocked one.
        #[arg(long)]
        allow_downgrade: bool,
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
    /// Approves a rollout that reaches production. Its author cannot, with none of its tokens; it begins then.
    Approve {
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
            allow_downgrade,
            draft,
            watch,
        } => {
            let groups: Vec<Value> = groups
                .into_iter()
                .map(|size| json!({"size": size, "success_percent": success, "error_percent": error}))
                .collect();
            let mut body = json!({
                "model": model, "version": version, "selector": selector, "groups": groups, "start": !draft,
                "allow_downgrade": allow_downgrade,
            });
            if let Some(probation) = probation {
                body["probation_ms"] = json!(probation.as_millis() as u64);
            }
            if let Some(silent_after) = silent_after {
                body["silent_after_seconds"] = json!(silent_after.as_secs());
            }
            let rollout = client.post("/api/v1/rollouts", &body)?;
            if rollout["approval"]["state"] == "needed" {
                output::note(&format!(
                    "it reaches production: another user must approve it, `skerry rollout approve {}`",
                    rollout["id"]
                ));
            }
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
        Command::Approve { id } => client.post(&format!("/api/v1/rollouts/{id}/approve"), &json!({}))?,
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
        let heard = client.events(&format!("/api/v1/rollouts/{id}/events"), |rollout| {
            say(&rollout);
            let over = is_over(&rollout);
            last = rollout;
            !over
        });
        match heard {
            Err(error) if !error.is_outage() => return Err(error.into()),
            // The stream may end early, for example when the control plane restarts: look, then listen again.
            _ if !is_over(&last) => {
                std::thread::sleep(OUTAGE.first_wait);
                last = patiently(OUTAGE, || client.rollout(id))?;
                say(&last);
            }
            _ => {}
        }
    }
    // Once more: the stream tells the state, this the whole.
    last = patiently(OUTAGE, || client.rollout(id))?;
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

/// How a call is repeated while the control plane cannot be reached.
#[derive(Clone, Copy)]
struct Patience {
    first_wait: Duration,
    /// Waits double up to here.
    longest_wait: Duration,
    in_all: Duration,
}

/// A restart on a slow board, with a migration, or an update of its machine.
const OUTAGE: Patience = Patience {
    first_wait: Duration::from_millis(200),
    longest_wait: Duration::from_secs(5),
    in_all: Duration::from_secs(120),
};

/// Without jitter: one person watches.
fn patiently<T>(patience: Patience, mut call: impl FnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let (start, mut wait) = (Instant::now(), patience.first_wait);
    loop {
        match call() {
            Err(error) if error.is_outage() && start.elapsed() + wait <= patience.in_all => {
                if wait == patience.first_wait {
                    output::note("the control plane cannot be reached, trying again");
                }
                std::thread::sleep(wait);
                wait = (wait * 2).min(patience.longest_wait);
            }
            other => return other,
        }
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        thread,
    };

    use super::*;
    use crate::cli::trust::Trust;

    fn rollout(state: &str) -> String {
        json!({"id": 1, "model": "m", "version": 2, "state": state, "reason": "", "groups": []}).to_string()
    }

    /// A server that gives each connection the next answer, and hangs up; an empty one is a server that dies.
    fn serve(answers: Vec<String>) -> (String, thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let serving = thread::spawn(move || {
            for answer in answers {
                let (mut socket, _) = listener.accept().unwrap();
                let request = BufReader::new(socket.try_clone().unwrap()).lines();
                for line in request.map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                }
                if !answer.is_empty() {
                    write!(socket, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{answer}").unwrap();
                }
            }
        });
        (server, serving)
    }

    #[test]
    fn a_watch_outlives_a_restart_of_the_control_plane() {
        let (running, finished) = (rollout("running"), rollout("finished"));
        let event = |rollout: &str| format!("data: {rollout}\n\n");
        let (server, serving) = serve(vec![
            running.clone(),
            event(&running),
            String::new(),
            String::new(),
            running.clone(),
            String::new(),
            running.clone(),
            event(&finished),
            finished.clone(),
        ]);
        let code = watch(&Client::new(&server, None, &Trust::default()), 1, Output::Json).ok();
        assert_eq!(format!("{code:?}"), format!("{:?}", Some(ExitCode::SUCCESS)));
        serving.join().unwrap();
    }

    #[test]
    fn patience_has_an_end_and_is_for_outages_only() {
        let impatient = Patience {
            in_all: Duration::ZERO,
            ..OUTAGE
        };
        let outage = || ClientError::Connection {
            server: String::new(),
            source: Box::new(ureq::Error::HostNotFound),
        };
        patiently::<()>(impatient, || Err(outage())).unwrap_err();
        let mut calls = 0;
        let refused = patiently::<()>(OUTAGE, || {
            calls += 1;
            Err(ClientError::Refused {
                status: 404,
                title: String::new(),
                detail: String::new(),
            })
        });
        assert!(refused.unwrap_err().is_not_found());
        assert_eq!(calls, 1);
    }
}
