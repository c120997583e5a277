//! Signing drafts, and saying how far they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use skerry_tuf::{KeyId, Limits, Root, Signed, Targets, UnixTime, sign_metadata};

use super::{
    super::{Done, Global, Output, output},
    KeysFolder, Secret, TARGETS_DAYS,
    folder::replace,
};
use crate::signing::{
    draft::{Demand, Draft, Holder},
    role::{KeyRole, name_of},
};

pub(super) fn now() -> anyhow::Result<UnixTime> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(UnixTime::from_seconds(now.as_secs() as i64))
}

pub(super) fn run(file: Option<PathBuf>, folder: &KeysFolder, secret: &Secret, print: Output) -> Done {
    let path = file.unwrap_or_else(|| folder.root_draft_path());
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let draft = Draft::parse(&bytes).with_context(|| format!("{} is no root or targets metadata", path.display()))?;
    let roots = roots_for(folder, &draft)?;
    if let Draft::Root(next) = &draft {
        refuse_disguised_keys(&roots[0], next.unverified())?;
    }
    if print == Output::Table {
        explain(&draft, &roots[0]);
    }
    let keys = folder.private_keys(secret)?;
    let (mut bytes, mut signed) = (bytes, Vec::new());
    for root in &roots {
        let (more, by) = draft.sign(&bytes, root, &keys).context("cannot sign")?;
        (bytes, signed) = (more, [signed, by].concat());
    }
    signed.sort();
    signed.dedup();
    if signed.is_empty() {
        let error = anyhow::anyhow!(
            "none of the keys in {} signs for {}; `skerry keys show` lists who does",
            folder.dir().display(),
            path.display()
        );
        return Err(error.into());
    }
    replace(&path, &bytes)?;
    let draft = Draft::parse(&bytes).context("the signed draft is unusable")?;
    let demands: Vec<Demand> = roots.iter().flat_map(|root| draft.demands(root)).collect();
    match print {
        Output::Json => output::json(&as_json(&draft, &signed, &demands)),
        Output::Table => report(&demands),
    }
    Ok(ExitCode::SUCCESS)
}

/// The roots by which a draft is measured. Targets metadata may be meant for the root that is itself a draft.
fn roots_for(folder: &KeysFolder, draft: &Draft) -> anyhow::Result<Vec<Root>> {
    let trusted = folder.root()?;
    let mut roots = vec![trusted];
    if let Draft::Targets(_) = draft
        && let Some(next) = root_draft(folder)?
        && KeyRole::Targets.keys_in(&next) != KeyRole::Targets.keys_in(&roots[0])
    {
        roots.push(next);
    }
    Ok(roots)
}

fn root_draft(folder: &KeysFolder) -> anyhow::Result<Option<Root>> {
    let path = folder.root_draft_path();
    let Some(bytes) = folder.draft(&path)? else {
        return Ok(None);
    };
    let draft = Signed::<Root>::parse(&bytes, &Limits::default());
    let draft = draft.with_context(|| format!("{} is unusable", path.display()))?;
    Ok(Some(draft.unverified().clone()))
}

/// A key that stands under the id of another one changes no id, and so no line of what the signer is shown.
fn refuse_disguised_keys(trusted: &Root, next: &Root) -> anyhow::Result<()> {
    for (id, key) in &next.keys {
        if trusted.keys.get(id).is_some_and(|known| known.keyval != key.keyval) {
            anyhow::bail!("the draft has another key under the id {id}: do not sign it, and find out who made it");
        }
    }
    Ok(())
}

/// What whoever signs puts their name to.
fn explain(draft: &Draft, trusted: &Root) {
    output::line(&format!("{} version {}", draft.role(), draft.version()));
    match draft {
        Draft::Root(draft) => {
            for change in changes(trusted, draft.unverified()) {
                output::line(&format!("  {change}"));
            }
        }
        Draft::Targets(draft) => {
            let targets = draft.unverified();
            output::line(&format!(
                "  {} bundles, expires {}",
                targets.targets.len(),
                targets.expires
            ));
            let extension = targets.extension.clone().unwrap_or_default();
            for (name, blocked) in &extension.blocked {
                output::line(&format!("  blocked: {} ({})", name.as_str(), blocked.reason));
            }
            for (model, lowest) in &extension.min_release {
                output::line(&format!("  lowest version of {model}: {lowest}"));
            }
        }
    }
}

/// What a new root changes, in words.
fn changes(old: &Root, new: &Root) -> Vec<String> {
    let mut changes = Vec::new();
    if old.consistent_snapshot != new.consistent_snapshot {
        changes.push(
            "files have other names: consistent_snapshot changes, which this control plane cannot serve".to_owned(),
        );
    }
    for role in KeyRole::ALL {
        let (Some(before), Some(after)) = (role.keys_in(old), role.keys_in(new)) else {
            changes.push(format!("{role}: appears or disappears"));
            continue;
        };
        for (id, key) in after.keys.iter().filter(|(id, _)| !before.keys.contains_key(*id)) {
            changes.push(format!("{role}: gets key {id} {}", name_of(key)));
        }
        for (id, key) in before.keys.iter().filter(|(id, _)| !after.keys.contains_key(*id)) {
            changes.push(format!("{role}: loses key {id} {}", name_of(key)));
        }
        if before.threshold != after.threshold {
            changes.push(format!(
                "{role}: {} instead of {} of {} keys must sign",
                after.threshold,
                before.threshold,
                after.keys.len()
            ));
        }
    }
    if changes.is_empty() {
        changes.push("no role changes".to_owned());
    }
    changes.push(format!("expires {}", new.expires));
    changes
}

/// Says how many signatures are there, and whose are missing.
pub(crate) fn report(demands: &[Demand]) {
    for demand in demands {
        output::line(&format!(
            "{} of {} signatures by {}",
            demand.signed.len(),
            demand.threshold,
            demand.keys_of
        ));
        if !demand.is_met() {
            for holder in &demand.missing {
                output::line(&format!("  missing: {}", in_words(holder)));
            }
        }
    }
}

fn in_words(holder: &Holder) -> String {
    match holder.name.is_empty() {
        true => holder.id.to_string(),
        false => format!("{} ({})", holder.id, holder.name),
    }
}

fn as_json(draft: &Draft, signed: &[KeyId], demands: &[Demand]) -> Value {
    let holders = |holders: &[Holder]| -> Vec<Value> {
        let holder = |holder: &Holder| json!({"id": holder.id, "name": holder.name});
        holders.iter().map(holder).collect()
    };
    let demand = |demand: &Demand| {
        json!({
            "keys_of": demand.keys_of,
            "threshold": demand.threshold,
            "signed": holders(&demand.signed),
            "missing": holders(&demand.missing),
            "met": demand.is_met(),
        })
    };
    json!({
        "role": draft.role().as_str(),
        "version": draft.version(),
        "signed_now": signed,
        "demands": demands.iter().map(demand).collect::<Vec<_>>(),
    })
}

/// How targets metadata is changed: which is the current one, and who signs the next.
#[derive(clap::Args, Debug)]
pub struct EditTargets {
    /// The folder with root.json; targets-draft.json is written there, signed by the keys that are there.
    #[arg(long = "keys", default_value = "keys")]
    dir: PathBuf,
    /// The current targets metadata, for a machine without a network; without it the control plane is asked.
    #[arg(long)]
    targets: Option<PathBuf>,
    /// How the keys are opened.
    #[command(flatten)]
    secret: Secret,
}

impl EditTargets {
    /// False on a machine without a network.
    pub(in crate::cli) fn asks_the_control_plane(&self) -> bool {
        self.targets.is_none()
    }
}

/// Makes the next targets metadata, or changes the draft under way.
pub(crate) fn edit_targets(
    edit: &EditTargets,
    global: &Global,
    change: impl FnOnce(&mut Targets) -> anyhow::Result<()>,
) -> Done {
    let folder = &KeysFolder::new(&edit.dir);
    let current = current_targets(folder, edit.targets.as_deref(), global)?;
    let mut next = match targets_draft(folder)? {
        Some(draft) if draft.version == current.version + 1 => draft,
        _ => Targets {
            version: current.version + 1,
            ..current
        },
    };
    change(&mut next)?;
    next.expires = now()?.plus_days(TARGETS_DAYS);
    let unsigned = sign_metadata(&next, []).context("cannot encode the targets metadata")?;
    let path = folder.targets_draft_path();
    replace(&path, &unsigned)?;
    output::note(&format!(
        "{} is targets version {}; when enough have signed it: skerry keys publish --dir {}",
        path.display(),
        next.version,
        folder.dir().display()
    ));
    run(Some(path), folder, &edit.secret, global.output)
}

fn targets_draft(folder: &KeysFolder) -> anyhow::Result<Option<Targets>> {
    let path = folder.targets_draft_path();
    let Some(bytes) = folder.draft(&path)? else {
        return Ok(None);
    };
    let draft = Signed::<Targets>::parse(&bytes, &Limits::default());
    let draft = draft.with_context(|| format!("{} is unusable: remove it to begin again", path.display()))?;
    Ok(Some(draft.unverified().clone()))
}

/// The current targets metadata, checked by the trusted root.
fn current_targets(folder: &KeysFolder, file: Option<&Path>, global: &Global) -> anyhow::Result<Targets> {
    let bytes = match file {
        Some(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => global.client().get_bytes("/api/v1/tuf/targets.json")?,
    };
    let root = folder.root()?;
    let current = Signed::<Targets>::parse(&bytes, &Limits::default());
    let current = current.context("the current targets metadata is unusable")?;
    let demand = Draft::Targets(Box::new(current.clone())).demands(&root);
    if !demand.iter().all(Demand::is_met) {
        bail!(
            "the current targets metadata is not signed by enough targets keys of root version {}; \
             `skerry keys update` fetches a newer root",
            root.version
        );
    }
    Ok(current.unverified().clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_tuf::{NewRoot, SigningKey, new_root};

    use super::*;

    #[test]
    fn a_draft_with_another_key_under_a_known_id_is_not_signed() {
        let key = |seed: u8| SigningKey::from_seed(&[seed; 32]).public_key();
        let set = |seed| skerry_tuf::KeySet::single(key(seed));
        let root = new_root(NewRoot {
            version: 1,
            expires: UnixTime::from_seconds(2_000_000_000),
            root: set(1),
            timestamp: set(2),
            snapshot: set(3),
            targets: set(4),
            assignment: None,
            time: None,
        });
        let mut next = root.clone();
        next.version = 2;
        assert!(refuse_disguised_keys(&root, &next).is_ok());
        next.keys.get_mut(&key(4).id()).unwrap().keyval = key(66).keyval;
        assert!(
            changes(&root, &next).iter().all(|line| !line.contains("key")),
            "nothing else shows it"
        );
        let refused = refuse_disguised_keys(&root, &next).unwrap_err();
        assert!(refused.to_string().contains("another key"), "{refused}");
    }
}
