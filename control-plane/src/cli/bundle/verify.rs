//! `skerry bundle verify`: shows what [`verify`] proved, as a tree from the bundle back to its data set.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use serde_json::json;
use skerry_shared::{digest::Digest, lineage::Link};
use skerry_tuf::UnixTime;

use crate::{
    bundle::verify::{BundleError, VerifiedFolder, verify},
    cli::{
        Done, Output,
        output::{self, bytes, shown},
    },
    training::{check::dataset_digest, run::InputFile},
};

pub(super) fn run(bundle: &Path, keys: &Path, roots: Vec<PathBuf>, dataset: Option<&Path>, how: Output) -> Done {
    let roots = if roots.is_empty() {
        vec![keys.join("root.json")]
    } else {
        roots
    };
    let read = |path: PathBuf| -> anyhow::Result<(PathBuf, Vec<u8>)> {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path, bytes))
    };
    let roots = roots.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::from_seconds(now.as_secs() as i64);
    let verified = verify(bundle, &roots, now).map_err(anyhow::Error::new)?;
    if let Some(folder) = dataset {
        check_dataset(&verified, folder)?;
    }
    match how {
        Output::Json => output::json(&json!({"bundle": verified, "dataset_checked": dataset.is_some()})),
        Output::Table => print(&verified, dataset.is_some()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the files of a folder with the data set that the lineage names.
fn check_dataset(verified: &VerifiedFolder, folder: &Path) -> anyhow::Result<()> {
    let mut inputs = Vec::new();
    let cannot = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let content = fs::read(entry.path()).with_context(|| format!("cannot read {}", entry.path().display()))?;
        inputs.push(InputFile {
            name: entry.file_name().to_string_lossy().into_owned(),
            digest: Digest::of(&content),
        });
    }
    let found = dataset_digest(&inputs).with_context(|| format!("{} has no files", folder.display()))?;
    let named = verified.lineage.iter().find(|link| link.what == "data set");
    let named = named
        .and_then(|link| link.value.as_deref())
        .and_then(|text| text.parse().ok());
    if named != Some(found) {
        return Err(BundleError::Dataset { found, named }.into());
    }
    Ok(())
}

fn print(verified: &VerifiedFolder, dataset_checked: bool) {
    let summary = &verified.summary;
    output::line(&format!(
        "{} v{}  bundle {}",
        summary.model, summary.version, summary.index
    ));
    let expired = if verified.expired { ", EXPIRED" } else { "" };
    let branch = |text: &str| output::line(&format!("├─ {text}"));
    branch(&format!(
        "content        {} files in {} chunks, {}, all whole",
        verified.files,
        verified.chunks,
        bytes(summary.total_bytes)
    ));
    branch(&format!(
        "signatures     targets version {}, {} of the keys in root version {}, expire {}{expired}",
        verified.targets_version, verified.threshold, verified.root_version, verified.targets_expire
    ));
    match &verified.blocked {
        Some(reason) => branch(&format!("allowed        NO, BLOCKED: {}", shown(reason))),
        None if summary.version.0 < verified.min_release => branch(&format!(
            "allowed        only with a downgrade: the lowest version is {}",
            verified.min_release
        )),
        None if verified.min_release > 0 => {
            branch(&format!(
                "allowed        yes, the lowest version is {}",
                verified.min_release
            ));
        }
        None => branch("allowed        yes, by this metadata"),
    }
    branch(&format!("built          {}", time(verified.created_at_ms)));
    output::line("└─ lineage");
    for (depth, link) in verified.lineage.iter().enumerate() {
        let checked = if link.what == "data set" && dataset_checked {
            ", checked"
        } else {
            ""
        };
        output::line(&format!("{}└─ {}{checked}", "   ".repeat(depth + 1), words(link)));
    }
}

fn words(link: &Link) -> String {
    let value = match (link.what, &link.value) {
        ("approval", None) => "NOT APPROVED".to_owned(),
        (_, None) => "not known".to_owned(),
        (_, Some(value)) => value.clone(),
    };
    let by = link.by.as_ref().filter(|by| !by.is_empty());
    let by = by.map_or_else(String::new, |by| format!(" by {by}"));
    let at = link
        .at_ms
        .map_or_else(String::new, |at_ms| format!(", {}", time(at_ms)));
    format!("{:13} {value}{by}{at}", link.what)
}

fn time(at_ms: u64) -> String {
    UnixTime::from_millis(i64::try_from(at_ms).unwrap_or(i64::MAX)).to_string()
}
