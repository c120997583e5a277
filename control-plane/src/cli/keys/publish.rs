//! Bringing finished drafts to the control plane, and newer roots from it.

use std::{fs, process::ExitCode};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use skerry_tuf::TrustedSet;

use super::{
    super::{Done, Global, Output, output},
    KeysFolder,
    folder::replace,
    report,
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
    if targets.is_some() {
        fs::remove_file(&targets_path).with_context(|| format!("cannot remove {}", targets_path.display()))?;
        output::note("the targets metadata is published");
    }
    if global.output == Output::Json {
        output::json(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn update(folder: &KeysFolder, global: &Global) -> Done {
    let root = folder.root_bytes()?;
    let mut trusted =
        TrustedSet::new(&root).with_context(|| format!("{} is unusable", folder.root_path().display()))?;
    let client = global.client();
    let before = trusted.root().version;
    loop {
        let next = trusted.next_root_file();
        match client.get_bytes(&format!("/tuf/{}", next.file_name)) {
            Ok(bytes) => trusted
                .update_root(&bytes)
                .map(|_| ())
                .with_context(|| format!("the control plane's {} is refused", next.file_name))?,
            Err(error) if error.is_not_found() => break,
            Err(error) => return Err(error.into()),
        }
    }
    if trusted.root().version > before {
        let Some(bytes) = trusted.bytes(skerry_tuf::Role::Root) else {
            return Err(anyhow::anyhow!("a trusted root always has its file").into());
        };
        replace(&folder.root_path(), bytes)?;
    }
    output::note(&format!("root.json has version {}", trusted.root().version));
    Ok(ExitCode::SUCCESS)
}
