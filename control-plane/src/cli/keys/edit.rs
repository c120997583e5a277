//! Changing the root: each change makes `root-draft.json`, the next root without signatures.

use std::{num::NonZeroU32, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use skerry_tuf::{Limits, PublicKey, Root, Signed, sign_metadata};

use super::{
    super::{Done, output},
    Change, KeysFolder, NewSecret, ROOT_DAYS,
    folder::{generate, key_file_name, replace, store_key},
    sign::now,
};
use crate::signing::{
    key_file,
    role::{self, KeyRole, RoleError},
};

pub(super) fn add(change: &Change, public_key: Option<&Path>, name: Option<&str>, secret: &NewSecret) -> Done {
    let folder = KeysFolder::new(&change.dir);
    let root = begin(&folder)?;
    let key = role::named(new_key(change, public_key, secret)?, name);
    let id = key.id();
    finish(&folder, root, |root| role::add(root, change.role, key))?;
    output::note(&format!("role {} gets the key {id}", change.role));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rotate(
    change: &Change,
    old: Option<&str>,
    public_key: Option<&Path>,
    name: Option<&str>,
    secret: &NewSecret,
) -> Done {
    let folder = KeysFolder::new(&change.dir);
    let root = begin(&folder)?;
    // Before a key is made for nothing.
    let keys = change.role.keys_in(&root).ok_or(RoleError::NoSuchRole(change.role));
    if old.is_none() && keys.map_err(anyhow::Error::new)?.keys.len() > 1 {
        return Err(anyhow::Error::new(RoleError::WhichKey(change.role)).into());
    }
    let key = role::named(new_key(change, public_key, secret)?, name);
    let id = key.id();
    let mut gone = None;
    finish(&folder, root, |root| {
        gone = Some(role::replace(root, change.role, old, key)?);
        Ok(())
    })?;
    let gone = gone.map(|id| id.to_string()).unwrap_or_default();
    output::note(&format!("role {}: the key {id} takes the place of {gone}", change.role));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn remove(change: &Change, key: &str) -> Done {
    let folder = KeysFolder::new(&change.dir);
    let root = begin(&folder)?;
    finish(&folder, root, |root| role::remove(root, change.role, key).map(|_| ()))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn threshold(change: &Change, threshold: NonZeroU32) -> Done {
    let folder = KeysFolder::new(&change.dir);
    let root = begin(&folder)?;
    finish(&folder, root, |root| role::set_threshold(root, change.role, threshold))?;
    Ok(ExitCode::SUCCESS)
}

/// The draft under way, or the root that follows the trusted one.
fn begin(folder: &KeysFolder) -> anyhow::Result<Root> {
    let trusted = folder.root()?;
    let path = folder.root_draft_path();
    let Some(bytes) = folder.draft(&path)? else {
        return Ok(role::successor(&trusted, now()?.plus_days(ROOT_DAYS)));
    };
    let draft = Signed::<Root>::parse(&bytes, &Limits::default());
    let draft = draft.with_context(|| format!("{} is unusable: remove it to begin again", path.display()))?;
    let version = draft.unverified().version;
    if version != trusted.version + 1 {
        bail!(
            "{} has version {version}, but root.json has {}: remove the draft to begin again",
            path.display(),
            trusted.version
        );
    }
    if !draft.signatures().is_empty() {
        output::note("the draft changes: signatures that it had are gone, and it must be signed anew");
    }
    Ok(draft.unverified().clone())
}

fn finish(
    folder: &KeysFolder,
    mut root: Root,
    change: impl FnOnce(&mut Root) -> Result<(), RoleError>,
) -> anyhow::Result<()> {
    change(&mut root)?;
    let unsigned = sign_metadata(&root, []).context("cannot encode the root")?;
    let path = folder.root_draft_path();
    replace(&path, &unsigned)?;
    output::note(&format!(
        "{} is root version {}, not yet signed: skerry keys sign --keys {}",
        path.display(),
        root.version,
        folder.dir().display()
    ));
    let trusted = folder.root()?;
    let targets = |root: &Root| KeyRole::Targets.keys_in(root);
    if targets(&trusted) != targets(&root) {
        output::note("the targets keys change: run `skerry keys renew` too, before `skerry keys publish`");
    }
    Ok(())
}

/// Another person's public key, or a new key whose private half stays here.
fn new_key(change: &Change, public_key: Option<&Path>, secret: &NewSecret) -> anyhow::Result<PublicKey> {
    if let Some(path) = public_key {
        return Ok(key_file::read_public(path)?);
    }
    // Online keys are opened by a server that starts unattended.
    let online = change.role.is_online();
    let passphrase = if online && !secret.is_said() {
        None
    } else {
        secret.get()?
    };
    let key = generate()?;
    let public = key.public_key();
    let name = key_file_name(change.role.as_str(), &public);
    let dir = match online {
        true => change.dir.join("online"),
        false => change.dir.clone(),
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join(name);
    store_key(&path, &key, passphrase.as_ref())?;
    match online {
        true => output::note(&format!(
            "copy {} to the control plane's signing folder before the root is published",
            path.display()
        )),
        false => output::note(&format!("the new key is {}", path.display())),
    }
    Ok(public)
}
