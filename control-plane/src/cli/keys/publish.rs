//! Bringing finished drafts to the control plane, and newer metadata from it.

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use skerry_tuf::{Expiry, Role, TrustedSet};

use super::{
    super::{Done, Global, Output, output},
    KeysFolder,
    folder::replace,
    report,
    sign::{now, published},
};
use crate::signing::draft::{Demand, Draft};

pub(super) fn run(folder: &KeysFolder, global: &Global) -> Done {
    let (root_path, targets_path) = (folder.root_draft_path(), folder.targets_draft_path());
    let targets = folder.draft(&targets_path)?;
    let encoded = targets.as_ref().map(|bytes| STANDARD.encode(bytes));
    let answer = match folder.draft(&root_path)? {
        Some(root) => {
            let trusted = folder.root()?;
            let draft = Draft::parse(&root).with_context(|| format!("{} is unusable", root_path.display()))?;
            let demands = draft.demands(&trusted);
            if !demands.iter().all(Demand::is_met) {
                report(&demands);
                return Err(anyhow::anyhow!(
                    "root version {} lacks signatures: nothing was published",
                    draft.version()
                )
                .into());
            }
            let body = json!({"root": STANDARD.encode(&root), "targets": encoded});
            let answer = global.client().post("/api/v1/tuf/root", &body)?;
            let before = folder
                .root_path()
                .with_file_name(format!("{}.root.json", trusted.version));
            replace(&before, &folder.root_bytes()?)?;
            replace(&folder.root_path(), &root)?;
            fs::remove_file(&root_path).with_context(|| format!("cannot remove {}", root_path.display()))?;
            output::note(&format!(
                "root version {} is published; the other key holders need the new {} or `skerry keys update`",
                draft.version(),
                folder.root_path().display()
            ));
            answer
        }
        None if encoded.is_some() => global
            .client()
            .post("/api/v1/tuf/targets.json", &json!({"targets": encoded}))?,
        None => {
            let error = anyhow::anyhow!(
                "there is neither {} nor {}",
                root_path.display(),
                targets_path.display()
            );
            return Err(error.into());
        }
    };
    if let Some(targets) = targets {
        replace(&folder.targets_path(), &targets)?;
        fs::remove_file(&targets_path).with_context(|| format!("cannot remove {}", targets_path.display()))?;
        output::note("the targets metadata is published");
    }
    if global.output == Output::Json {
        output::json(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

/// Walks to the newest root, and to the targets metadata that is published under it.
pub(super) fn update(folder: &KeysFolder, global: &Global) -> Done {
    let root = folder.root_bytes()?;
    let mut trusted =
        TrustedSet::new(&root).with_context(|| format!("{} is unusable", folder.root_path().display()))?;
    let client = global.client();
    let fetch = |name: &str| client.get_bytes(&format!("/tuf/{name}"));
    let refused = |name: &str| format!("the control plane's {name} is refused");
    let before = trusted.root().version;
    loop {
        let next = trusted.next_root_file();
        match fetch(&next.file_name) {
            Ok(bytes) => trusted
                .update_root(&bytes)
                .map(|_| ())
                .with_context(|| refused(&next.file_name))?,
            Err(error) if error.is_not_found() => break,
            Err(error) => return Err(error.into()),
        }
    }
    if trusted.root().version > before {
        store(&trusted, Role::Root, &folder.root_path())?;
    }
    let expiry = Expiry::Enforce(now()?);
    let name = Role::Timestamp.file_name();
    let timestamp = trusted.update_timestamp(&fetch(name)?, expiry);
    timestamp.with_context(|| refused(name))?;
    if let Some(wanted) = trusted.wanted_snapshot() {
        let snapshot = trusted.update_snapshot(&fetch(&wanted.file_name)?, expiry);
        snapshot.with_context(|| refused(&wanted.file_name))?;
    }
    if let Some(wanted) = trusted.wanted_targets() {
        let targets = trusted.update_targets(&fetch(&wanted.file_name)?, expiry);
        targets.with_context(|| refused(&wanted.file_name))?;
    }
    let known = published(folder, None, trusted.root())?;
    let (known, found) = (known.as_ref(), trusted.targets());
    if known.map(|known| known.version) > found.map(|found| found.version) {
        let error = anyhow::anyhow!(
            "the control plane shows older targets metadata than {}: somebody has set it back",
            folder.targets_path().display()
        );
        return Err(error.into());
    }
    store(&trusted, Role::Targets, &folder.targets_path())?;
    output::note(&format!(
        "root.json has version {}, targets.json has version {}",
        trusted.root().version,
        trusted.targets().map_or(0, |targets| targets.version)
    ));
    Ok(ExitCode::SUCCESS)
}

fn store(trusted: &TrustedSet, role: Role, path: &Path) -> anyhow::Result<()> {
    let bytes = trusted.bytes(role);
    let bytes = bytes.with_context(|| format!("the control plane has no {} metadata", role.as_str()))?;
    replace(path, bytes)
}
