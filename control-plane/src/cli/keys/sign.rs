//! Signing drafts: what a draft changes is shown, somebody says yes, and then it is said how far the draft is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use skerry_tuf::{KeyId, Limits, Root, Signed, Targets, UnixTime};

use super::{
    super::{
        Done, Output,
        output::{self, shown},
        terminal,
    },
    KeysFolder, Secret, changes,
    folder::replace,
};
use crate::signing::{
    draft::{Demand, Draft, Holder},
    role::KeyRole,
};

pub(super) fn now() -> anyhow::Result<UnixTime> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    Ok(UnixTime::from_seconds(now.as_secs() as i64))
}

/// What is signed, and how it is asked for.
#[derive(clap::Args, Debug)]
pub struct SignOptions {
    /// The draft; without it DIR/root-draft.json.
    file: Option<PathBuf>,
    /// The folder with your keys and the trusted root.json.
    #[arg(long, default_value = "keys")]
    keys: PathBuf,
    /// The published targets metadata that a draft of targets is compared with; without it DIR/targets.json, which
    /// `skerry keys update` fetches.
    #[arg(long)]
    targets: Option<PathBuf>,
    /// Signs without a question: for scripts whose author has looked at the draft.
    #[arg(long)]
    yes: bool,
    /// How the keys are opened.
    #[command(flatten)]
    secret: Secret,
}

pub(super) fn run(options: &SignOptions, print: Output) -> Done {
    sign(options, print, terminal::confirm)
}

fn sign(options: &SignOptions, print: Output, ask: impl FnOnce(&str) -> anyhow::Result<bool>) -> Done {
    let folder = &KeysFolder::new(&options.keys);
    let path = options.file.clone().unwrap_or_else(|| folder.root_draft_path());
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let draft = Draft::parse(&bytes).with_context(|| format!("{} is no root or targets metadata", path.display()))?;
    let roots = roots_for(folder, &draft)?;
    let lines = match &draft {
        Draft::Root(next) => {
            refuse_disguised_keys(&roots[0], next.unverified())?;
            changes::of_root(&roots[0], next.unverified())
        }
        Draft::Targets(next) => {
            let published = published(folder, options.targets.as_deref(), &roots[0])?;
            let next = next.unverified();
            let mut lines = vec![compared_with(published.as_ref(), next)];
            lines.extend(changes::of_targets(published.as_ref(), next));
            lines
        }
    };
    say(&draft, &lines, print);
    if !options.yes {
        consent(ask("sign this?"))?;
    }
    add_signatures(&path, &bytes, folder, (&options.secret, print), &lines)
}

/// What a person has answered.
///
/// # Errors
/// A no, or nobody to ask.
pub(super) fn consent(answer: anyhow::Result<bool>) -> anyhow::Result<()> {
    let yes = answer.context("nothing is signed without a yes: look at the changes above and say --yes")?;
    if !yes {
        bail!("nothing was signed");
    }
    Ok(())
}

/// What whoever signs puts their name to. On stderr where stdout is for a program.
pub(super) fn say(draft: &Draft, lines: &[String], print: Output) {
    let out = match print {
        Output::Table => output::line,
        Output::Json => output::note,
    };
    out(&format!("{} version {}", draft.role(), draft.version()));
    for line in lines {
        out(&format!("  {line}"));
    }
}

/// Signs `bytes` with the keys that are here, writes them to `path`, and says how far the draft is.
pub(super) fn add_signatures(
    path: &Path,
    bytes: &[u8],
    folder: &KeysFolder,
    (secret, print): (&Secret, Output),
    lines: &[String],
) -> Done {
    let draft = Draft::parse(bytes).with_context(|| format!("{} is no root or targets metadata", path.display()))?;
    let roots = roots_for(folder, &draft)?;
    let keys = folder.private_keys(secret)?;
    let (mut bytes, mut signed) = (bytes.to_vec(), Vec::new());
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
    replace(path, &bytes)?;
    let draft = Draft::parse(&bytes).context("the signed draft is unusable")?;
    let demands: Vec<Demand> = roots.iter().flat_map(|root| draft.demands(root)).collect();
    match print {
        Output::Json => output::json(&as_json(&draft, lines, &signed, &demands)),
        Output::Table => report(&demands),
    }
    Ok(ExitCode::SUCCESS)
}

/// The roots by which a draft is measured. Targets metadata may be meant for the root that is itself a draft.
pub(super) fn roots_for(folder: &KeysFolder, draft: &Draft) -> anyhow::Result<Vec<Root>> {
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

/// A key that stands under the id of another one changes no id, and so no line of what the signer is shown; a new key under a
/// false id would pass for that of a person whose id the signers know.
fn refuse_disguised_keys(trusted: &Root, next: &Root) -> anyhow::Result<()> {
    for (id, key) in &next.keys {
        let good = match trusted.keys.get(id) {
            Some(known) => (&known.keytype, &known.scheme, &known.keyval) == (&key.keytype, &key.scheme, &key.keyval),
            None => key.id() == *id,
        };
        if !good {
            bail!(
                "the draft has another key under the id {}: do not sign it, and find out who made it",
                shown(id.as_str())
            );
        }
    }
    Ok(())
}

/// The published targets metadata, as far as it is known on this machine.
pub(super) fn published(folder: &KeysFolder, file: Option<&Path>, root: &Root) -> anyhow::Result<Option<Targets>> {
    if let Some(path) = file {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        return trusted_targets(&bytes, root).map(Some);
    }
    let path = folder.targets_path();
    let Some(bytes) = folder.draft(&path)? else {
        return Ok(None);
    };
    match trusted_targets(&bytes, root) {
        Ok(targets) => Ok(Some(targets)),
        Err(error) => {
            output::note(&format!("{} is not used: {error:#}", path.display()));
            Ok(None)
        }
    }
}

/// Targets metadata that the trusted root vouches for.
pub(super) fn trusted_targets(bytes: &[u8], root: &Root) -> anyhow::Result<Targets> {
    let targets = Signed::<Targets>::parse(bytes, &Limits::default());
    let targets = targets.context("the current targets metadata is unusable")?;
    let demand = Draft::Targets(Box::new(targets.clone())).demands(root);
    if !demand.iter().all(Demand::is_met) {
        bail!(
            "the current targets metadata is not signed by enough targets keys of root version {}; \
             `skerry keys update` fetches a newer root",
            root.version
        );
    }
    Ok(targets.unverified().clone())
}

/// Says what the changes are changes of.
fn compared_with(published: Option<&Targets>, next: &Targets) -> String {
    match published {
        None => {
            "the published targets metadata is not here (--targets, or `skerry keys update`): this is ALL that the \
                 draft says, not what it changes"
                .to_owned()
        }
        Some(published) if published.version.checked_add(1) == Some(next.version) => {
            format!("compared with version {}, which is published:", published.version)
        }
        Some(published) => format!(
            "compared with version {}, which is NOT the one before it (`skerry keys update` fetches the newest):",
            published.version
        ),
    }
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
        true => shown(holder.id.as_str()),
        false => format!("{} ({})", shown(holder.id.as_str()), shown(&holder.name)),
    }
}

fn as_json(draft: &Draft, lines: &[String], signed: &[KeyId], demands: &[Demand]) -> Value {
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
        "changes": lines,
        "signed_now": signed,
        "demands": demands.iter().map(demand).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use skerry_tuf::{NewRoot, SigningKey, new_root};

    use super::*;

    /// The key that a fixed seed gives.
    pub(in crate::cli::keys) fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    /// A root with one key a role, those of the seeds 1 to 4.
    pub(in crate::cli::keys) fn root() -> Root {
        let set = |seed| skerry_tuf::KeySet::single(key(seed).public_key());
        new_root(NewRoot {
            version: 1,
            expires: UnixTime::from_seconds(2_000_000_000),
            root: set(1),
            timestamp: set(2),
            snapshot: set(3),
            targets: set(4),
            assignment: None,
            time: None,
        })
    }

    #[test]
    fn a_draft_with_another_key_under_a_known_id_is_not_signed() {
        let root = root();
        let mut next = root.clone();
        next.version = 2;
        assert!(refuse_disguised_keys(&root, &next).is_ok());
        next.keys.get_mut(&key(4).public_key().id()).unwrap().keyval = key(66).public_key().keyval;
        let refused = refuse_disguised_keys(&root, &next).unwrap_err();
        assert!(refused.to_string().contains("another key"), "{refused}");
    }

    #[test]
    fn nothing_is_signed_without_a_yes() {
        let place = tempfile::tempdir().unwrap();
        super::super::init(place.path()).unwrap();
        let draft = place.path().join("draft.json");
        let next = skerry_tuf::new_targets(2, UnixTime::from_seconds(2_000_000_000));
        let unsigned = skerry_tuf::sign_metadata(&next, []).unwrap();
        fs::write(&draft, &unsigned).unwrap();
        let options = |yes| SignOptions {
            file: Some(draft.clone()),
            keys: place.path().to_owned(),
            targets: None,
            yes,
            secret: Secret::default(),
        };
        let nobody = |_: &str| anyhow::bail!("there is no terminal");
        for answer in [Ok(false), nobody("")] {
            assert!(sign(&options(false), Output::Json, |_| answer).is_err());
            assert_eq!(fs::read(&draft).unwrap(), unsigned);
        }
        let by = || {
            Signed::<Targets>::parse(&fs::read(&draft).unwrap(), &Limits::default())
                .unwrap()
                .signatures()
                .len()
        };
        assert!(sign(&options(false), Output::Json, |_| Ok(true)).is_ok());
        assert_eq!(by(), 1);
        fs::write(&draft, &unsigned).unwrap();
        assert!(sign(&options(true), Output::Json, |_| panic!("nobody is asked")).is_ok());
        assert_eq!(by(), 1);
    }

    #[test]
    fn a_new_key_under_somebody_elses_id_is_not_signed() {
        let root = root();
        let mut next = root.clone();
        next.version = 2;
        let ben = key(7).public_key().id();
        next.keys.insert(ben.clone(), key(66).public_key());
        next.roles.targets.keyids.insert(ben.clone());
        let refused = refuse_disguised_keys(&root, &next).unwrap_err();
        assert!(refused.to_string().contains(ben.as_str()), "{refused}");
        next.keys.insert(ben, key(7).public_key());
        assert!(refuse_disguised_keys(&root, &next).is_ok());
    }

    #[test]
    fn it_is_said_when_the_draft_is_compared_with_an_older_version_or_with_none() {
        let version = |version| skerry_tuf::new_targets(version, UnixTime::from_seconds(2_000_000_000));
        let words = |published: Option<u64>| compared_with(published.map(version).as_ref(), &version(5));
        assert!(words(Some(4)).contains("which is published"));
        assert!(words(Some(3)).contains("NOT"));
        assert!(words(None).contains("ALL"));
    }
}
