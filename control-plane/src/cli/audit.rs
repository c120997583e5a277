//! `skerry audit`: reads the audit log, takes it and its checkpoints away, and proves that it is whole.

use std::{
    fs::{self, File},
    io::{BufReader, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use skerry_shared::dsse::{Envelope, Signers};
use skerry_tuf::{TrustedSet, UnixTime};

use super::{
    Done, Failure, Global, Output,
    client::{encode, list},
    output::{self, pairs, text},
};
use crate::audit::{
    chain::{Checkpoint, Verified},
    checkpoint::{self, PAYLOAD_TYPE},
    export::{Against, verify},
};

/// Commands about the audit log.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "The log is a chain: each entry's hash covers the one before it. What the chain alone cannot show is a log that\n\
                  was cut or written anew from its end; a signed checkpoint that you keep elsewhere can:\n  \
                  skerry audit checkpoint --out checkpoint.json     # now and then, to another machine\n  \
                  skerry audit verify --checkpoint checkpoint.json --keys keys/root.json\n\
                  Without a server, from a file:\n  \
                  skerry audit export --out audit.jsonl\n  \
                  skerry audit verify --file audit.jsonl --checkpoint checkpoint.json --keys keys/root.json"
)]
pub(super) enum Command {
    /// Lists entries, the newest first.
    List {
        /// Only of this user, token or device (`device NAME`).
        #[arg(long)]
        actor: Option<String>,
        /// Only actions that begin like this, for example `rollout.`.
        #[arg(long)]
        action: Option<String>,
        /// Only of this object and what is below it, for example `model/activity-recognition`.
        #[arg(long)]
        object: Option<String>,
        /// Only entries before this one.
        #[arg(long, value_name = "SEQ")]
        before: Option<u64>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Shows an entry.
    Show {
        /// The entry's number.
        seq: u64,
    },
    /// Writes the whole log as JSON lines.
    Export {
        /// The file; without it, standard output.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Has the control plane sign how the log is now, and takes the checkpoint away.
    Checkpoint {
        /// The file; without it, standard output.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Proves that the log is whole, or names the first entry that is not. Exit code 1 if it is not.
    Verify {
        /// An export; without it, the control plane is asked for one.
        #[arg(long)]
        file: Option<PathBuf>,
        /// A checkpoint that was kept elsewhere, or a file with one in each line; can be given several times.
        #[arg(long, value_name = "FILE")]
        checkpoint: Vec<PathBuf>,
        /// A root metadata file that you trust: its `time` keys must have signed the checkpoints; can be given several times,
        /// for a log that is older than the newest key.
        #[arg(long, value_name = "ROOT")]
        keys: Vec<PathBuf>,
    },
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    let client = global.client();
    match command {
        Command::List {
            actor,
            action,
            object,
            before,
            limit,
        } => {
            let mut path = format!("/api/v1/audit?limit={limit}");
            for (key, value) in [("actor", actor), ("action", action), ("object", object)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{key}={}", encode(&value)));
                }
            }
            if let Some(before) = before {
                path.push_str(&format!("&before={before}"));
            }
            let answer = client.get(&path)?;
            match global.output {
                Output::Json => output::json(&answer),
                Output::Table => {
                    let header = ["seq", "time", "actor", "action", "object", "details"];
                    output::table(header, list(answer, "entries").iter().map(row));
                }
            }
        }
        Command::Show { seq } => {
            let entry = client.get(&format!("/api/v1/audit/entries/{seq}"))?;
            match global.output {
                Output::Json => output::json(&entry),
                Output::Table => show(&entry),
            }
        }
        Command::Export { out } => {
            let mut lines = client.stream("/api/v1/audit/export")?;
            match out {
                Some(path) => {
                    let written = File::create(&path).and_then(|mut file| {
                        std::io::copy(&mut lines, &mut file)?;
                        file.sync_all()
                    });
                    written.with_context(|| format!("cannot write {}", path.display()))?;
                }
                None => {
                    let copied = std::io::copy(&mut lines, &mut std::io::stdout().lock());
                    copied.context("the export broke off")?;
                }
            }
        }
        Command::Checkpoint { out } => {
            let envelope = client.post("/api/v1/audit/checkpoint", &json!({}))?;
            match out {
                Some(path) => write(&path, &envelope)?,
                None => output::json_line(&envelope),
            }
        }
        Command::Verify { file, checkpoint, keys } => {
            let signers = keys.iter().map(|path| time_keys(path)).collect::<Result<Vec<_>, _>>()?;
            let mut kept = Vec::new();
            for path in &checkpoint {
                kept.extend(read_checkpoints(path, &signers)?);
            }
            let lines: Box<dyn Read> = match &file {
                Some(path) => {
                    let file = File::open(path);
                    Box::new(file.with_context(|| format!("cannot read {}", path.display()))?)
                }
                None => Box::new(client.stream("/api/v1/audit/export")?),
            };
            let signed = !signers.is_empty();
            return verified(verify(BufReader::new(lines), Against { kept, signers }), signed, global);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, value: &Value) -> anyhow::Result<()> {
    let written = File::create(path).and_then(|mut file| writeln!(file, "{value}"));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// The `time` keys of a root that the operator trusts.
fn time_keys(path: &Path) -> anyhow::Result<Signers> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let set = TrustedSet::new(&bytes).with_context(|| format!("{} is no usable root metadata", path.display()))?;
    let keys = set.root().time_keys();
    let keys = keys.with_context(|| format!("{} names no time key", path.display()))?;
    Ok(checkpoint::signers(&keys))
}

/// Checkpoints that were kept: with keys their signatures must be good; without, they are trusted as they lie there.
fn read_checkpoints(path: &Path, signers: &[Signers]) -> anyhow::Result<Vec<Checkpoint>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut checkpoints = Vec::new();
    for line in bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
    {
        let read = || -> anyhow::Result<Checkpoint> {
            let envelope = Envelope::from_json(line)?;
            if signers.is_empty() {
                return Ok(serde_json::from_slice(&envelope.unverified_payload(PAYLOAD_TYPE)?)?);
            }
            Ok(checkpoint::open(&envelope, signers)?)
        };
        checkpoints.push(read().with_context(|| format!("{} is refused", path.display()))?);
    }
    if checkpoints.is_empty() {
        bail!("{} has no checkpoint in it", path.display());
    }
    Ok(checkpoints)
}

fn verified(result: Result<Verified, crate::audit::export::ExportError>, signed: bool, global: &Global) -> Done {
    match result {
        Ok(verified) => {
            match global.output {
                Output::Json => output::json(&json!({"whole": true, "log": verified, "signatures_checked": signed})),
                Output::Table => {
                    output::line(&format!(
                        "the log {} is whole: {} entries",
                        verified.origin, verified.size
                    ));
                    output::line(&format!("head  {}", verified.head));
                    output::line(&match (verified.checkpoints, signed) {
                        (0, true) => "no checkpoint was met: nothing shows that it was not cut".to_owned(),
                        (0, false) => {
                            "no checkpoint was given: nothing shows that it was not cut (--checkpoint, --keys)"
                                .to_owned()
                        }
                        (met, true) => format!(
                            "{met} signed checkpoints confirm entries up to {}",
                            verified.confirmed_size
                        ),
                        (met, false) => format!(
                            "{met} checkpoints confirm entries up to {}; their signatures were not checked (--keys)",
                            verified.confirmed_size
                        ),
                    });
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if global.output == Output::Json {
                let found = json!({"whole": false, "first_bad_seq": error.seq(), "reason": error.to_string()});
                output::json(&found);
            }
            Err(Failure::Failed(
                anyhow::Error::new(error).context("the audit log is not whole"),
            ))
        }
    }
}

fn time(entry: &Value) -> String {
    UnixTime::from_millis(entry["at_ms"].as_i64().unwrap_or(0)).to_string()
}

fn row(entry: &Value) -> [String; 6] {
    [
        text(entry, "seq"),
        time(entry),
        text(entry, "actor"),
        text(entry, "action"),
        text(entry, "object"),
        pairs(&entry["details"]),
    ]
}

fn show(entry: &Value) {
    for key in ["seq", "actor", "action", "object", "prev_hash", "hash"] {
        output::line(&format!("{key:10} {}", text(entry, key)));
        if key == "seq" {
            output::line(&format!("{:10} {}", "time", time(entry)));
        }
    }
    for (key, value) in entry["details"].as_object().into_iter().flatten() {
        output::line(&format!("  {key}: {}", value.as_str().unwrap_or_default()));
    }
}
