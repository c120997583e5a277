//! Changing the targets metadata: the next version, or a change of the draft that is under way.
//!
//! Invariant: what somebody else has put into that draft is signed here only after a yes.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use skerry_tuf::{KeyId, Limits, Root, Signed, Targets, sign_metadata};

use super::{
    super::{Done, Global, output, terminal},
    KeysFolder, Secret, TARGETS_DAYS, changes,
    folder::replace,
    sign::{add_signatures, consent, now, published, roots_for, say, trusted_targets},
};
use crate::signing::draft::Draft;

/// How targets metadata is changed: which is the current one, and who signs the next.
#[derive(clap::Args, Debug)]
pub struct EditTargets {
    /// The folder with root.json; targets-draft.json is written there, signed by the keys that are there.
    #[arg(long = "keys", default_value = "keys")]
    dir: PathBuf,
    /// The current targets metadata, for a machine without a network; without it the control plane is asked.
    #[arg(long)]
    targets: Option<PathBuf>,
    /// Signs without a question also what somebody else has changed in a draft that lies there.
    #[arg(long)]
    yes: bool,
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

/// Makes the next targets metadata, or changes the draft under way, and signs it.
pub(crate) fn edit_targets(
    edit: &EditTargets,
    global: &Global,
    change: impl FnOnce(&mut Targets) -> anyhow::Result<()>,
) -> Done {
    let folder = &KeysFolder::new(&edit.dir);
    let path = folder.targets_draft_path();
    let bytes = match &edit.targets {
        Some(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => global.client().get_bytes("/api/v1/tuf/targets.json")?,
    };
    let root = folder.root()?;
    let current = trusted_targets(&bytes, &root)?;
    // A version that others have signed on top of must not be signed again with other content.
    if published(folder, None, &root)?.is_some_and(|known| known.version > current.version) {
        let known = folder.targets_path();
        let error = anyhow::anyhow!("the current targets metadata is older than {}", known.display());
        return Err(error.into());
    }
    let draft = folder.draft(&path)?.map(|bytes| {
        let draft = Signed::<Targets>::parse(&bytes, &Limits::default());
        draft.with_context(|| format!("{} is unusable: remove it to begin again", path.display()))
    });
    let mut next = match draft.transpose()? {
        None => successor(&current)?,
        Some(draft) if draft.unverified().version <= current.version => {
            output::note(&format!(
                "{} is older than what is published: a new draft takes its place",
                path.display()
            ));
            successor(&current)?
        }
        Some(draft) => {
            let next = draft.unverified().clone();
            let draft = Draft::Targets(Box::new(draft));
            match check(&current, &draft, &roots_for(folder, &draft)?, &folder.held()?)? {
                Origin::Here => {}
                Origin::Elsewhere(lines) => {
                    output::note(&format!(
                        "{} is under way, and no key here has signed what it changes already:",
                        path.display()
                    ));
                    say(&draft, &lines, global.output);
                    if !edit.yes {
                        consent(terminal::confirm("sign this, too?"))?;
                    }
                }
            }
            next
        }
    };
    change(&mut next)?;
    next.expires = now()?.plus_days(TARGETS_DAYS);
    let unsigned = sign_metadata(&next, []).context("cannot encode the targets metadata")?;
    replace(&path, &unsigned)?;
    let lines = changes::of_targets(Some(&current), &next);
    say(
        &Draft::parse(&unsigned).context("the draft is unusable")?,
        &lines,
        global.output,
    );
    output::note(&format!(
        "{} is targets version {}; when enough have signed it: skerry keys publish --dir {}",
        path.display(),
        next.version,
        folder.dir().display()
    ));
    add_signatures(&path, &unsigned, folder, (&edit.secret, global.output), &lines)
}

fn successor(current: &Targets) -> anyhow::Result<Targets> {
    let version = current
        .version
        .checked_add(1)
        .context("there is no version after the current one")?;
    Ok(Targets {
        version,
        ..current.clone()
    })
}

/// Whose a draft is.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// A key of this folder has signed it, or it changes nothing.
    Here,
    /// Somebody else's, with what it changes.
    Elsewhere(Vec<String>),
}

/// Looks at a draft that was found in the folder, where others can put files, too.
fn check(current: &Targets, draft: &Draft, roots: &[Root], held: &[KeyId]) -> anyhow::Result<Origin> {
    let Draft::Targets(signed) = draft else {
        bail!("the draft is no targets metadata");
    };
    let next = signed.unverified();
    if current.version.checked_add(1) != Some(next.version) {
        bail!(
            "the draft has version {}, but version {} is published: remove the draft to begin again",
            next.version,
            current.version
        );
    }
    for (name, file) in &current.targets {
        let kept = next.find(name);
        if kept.is_none_or(|kept| kept.hashes != file.hashes || kept.length != file.length) {
            bail!(
                "the draft loses or changes `{}`, which is published: remove the draft, and find out who made it",
                output::shown(name.as_str())
            );
        }
    }
    let same = Targets {
        version: next.version,
        expires: next.expires,
        ..current.clone()
    };
    let demands = roots.iter().flat_map(|root| draft.demands(root));
    let mut signers = demands.flat_map(|demand| demand.signed);
    if same == *next || signers.any(|holder| held.contains(&holder.id)) {
        return Ok(Origin::Here);
    }
    Ok(Origin::Elsewhere(changes::of_targets(Some(current), next)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_tuf::{SigningKey, TargetFile, TargetName, UnixTime, new_targets};

    use super::*;
    use crate::cli::keys::sign::tests::{key, root};

    fn name(text: &str) -> TargetName {
        TargetName::new(text).unwrap()
    }

    fn current() -> Targets {
        let mut targets = new_targets(4, UnixTime::from_seconds(2_000_000_000));
        targets.add_target(name("har/1/index"), TargetFile::describe(b"one"));
        targets
    }

    /// What is thought of a draft, by the holder of key 4.
    fn judged(next: &Targets, signer: Option<&SigningKey>) -> anyhow::Result<Origin> {
        let bytes = sign_metadata(next, signer).unwrap();
        check(
            &current(),
            &Draft::parse(&bytes).unwrap(),
            &[root()],
            &[key(4).public_key().id()],
        )
    }

    #[test]
    fn what_somebody_else_has_put_into_a_draft_is_shown() {
        let mut next = successor(&current()).unwrap();
        assert_eq!(judged(&next, None).unwrap(), Origin::Here, "it changes nothing");
        next.add_target(name("evil/1/index"), TargetFile::describe(b"evil"));
        for signer in [None, Some(&key(9))] {
            match judged(&next, signer).unwrap() {
                Origin::Elsewhere(lines) => assert!(lines[0].contains("+ bundle evil/1/index"), "{lines:?}"),
                Origin::Here => panic!("nobody here has signed it"),
            }
        }
        assert_eq!(judged(&next, Some(&key(4))).unwrap(), Origin::Here);
    }

    #[test]
    fn a_draft_that_is_not_the_next_or_loses_a_bundle_is_refused() {
        let mut next = successor(&current()).unwrap();
        next.targets.clear();
        let refused = judged(&next, Some(&key(4))).unwrap_err();
        assert!(refused.to_string().contains("har/1/index"), "{refused}");
        next.add_target(name("har/1/index"), TargetFile::describe(b"two"));
        assert!(judged(&next, Some(&key(4))).is_err());
        let next = Targets {
            version: 9,
            ..current()
        };
        let refused = judged(&next, Some(&key(4))).unwrap_err();
        assert!(refused.to_string().contains("version 9"), "{refused}");
    }
}
