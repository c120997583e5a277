//! Making the first keys and metadata, and the key pair of one more person.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, bail};
use skerry_tuf::{KeySet, NewRoot, SigningKey, new_root, new_targets, sign_metadata};

use super::{
    super::{Done, output},
    NewSecret, ROOT_DAYS, TARGETS_DAYS,
    folder::{generate, store_key, write_new},
    sign::now,
};
use crate::signing::{
    passphrase::Passphrase,
    role::{KeyRole, named},
};

pub(super) fn run(dir: &Path, name: Option<&str>, secret: &NewSecret, online: Option<&Path>) -> Done {
    refuse_existing(dir)?;
    let offline = secret.get()?;
    let online = online.map(Passphrase::read).transpose().map_err(anyhow::Error::new)?;
    make(dir, name, offline.as_ref(), online.as_ref())?;
    output::note(&format!("keys are in {}", dir.display()));
    if offline.is_none() {
        output::note("root.key and targets.key are not encrypted: whoever reads them can sign");
    }
    output::note(&format!(
        "copy {} to the control plane's signing folder",
        dir.join("online").display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Makes the keys of all roles in `dir`, not encrypted, and `dir/online` with what the control plane gets.
///
/// # Errors
/// When a key is there already or the folder cannot be written.
pub fn init(dir: &Path) -> anyhow::Result<()> {
    refuse_existing(dir)?;
    make(dir, None, None, None)
}

fn refuse_existing(dir: &Path) -> anyhow::Result<()> {
    for file in ["root.key", "targets.key", "root.json", "online/assignment.key"] {
        let path = dir.join(file);
        if path.exists() {
            bail!("{} exists; keys are never overwritten", path.display());
        }
    }
    Ok(())
}

fn make(
    dir: &Path,
    name: Option<&str>,
    offline: Option<&Passphrase>,
    online: Option<&Passphrase>,
) -> anyhow::Result<()> {
    let online_dir = dir.join("online");
    fs::create_dir_all(&online_dir).with_context(|| format!("cannot make {}", online_dir.display()))?;
    let mut keys: Vec<(KeyRole, SigningKey)> = Vec::new();
    for role in KeyRole::ALL {
        keys.push((role, generate()?));
    }
    let [
        root_key,
        targets_key,
        snapshot_key,
        timestamp_key,
        assignment_key,
        time_key,
    ] = &keys[..]
    else {
        bail!("there are six roles");
    };
    let offline_set = |key: &(KeyRole, SigningKey)| KeySet::single(named(key.1.public_key(), name));
    let online_set = |key: &(KeyRole, SigningKey)| KeySet::single(key.1.public_key());
    let now = now()?;
    let root = new_root(NewRoot {
        version: 1,
        expires: now.plus_days(ROOT_DAYS),
        root: offline_set(root_key),
        timestamp: online_set(timestamp_key),
        snapshot: online_set(snapshot_key),
        targets: offline_set(targets_key),
        assignment: Some(online_set(assignment_key)),
        time: Some(online_set(time_key)),
    });
    let root = sign_metadata(&root, [&root_key.1]).context("cannot sign root")?;
    let targets = sign_metadata(&new_targets(1, now.plus_days(TARGETS_DAYS)), [&targets_key.1]);
    let targets = targets.context("cannot sign targets")?;
    for (role, key) in &keys {
        let (folder, passphrase) = match role.is_online() {
            true => (&online_dir, online),
            false => (&dir.to_owned(), offline),
        };
        store_key(&folder.join(format!("{role}.key")), key, passphrase)?;
    }
    for folder in [dir, &online_dir] {
        write_new(&folder.join("root.json"), &root, 0o644)?;
        write_new(&folder.join("targets.json"), &targets, 0o644)?;
    }
    Ok(())
}

pub(super) fn new_key(out: &Path, secret: &NewSecret) -> Done {
    if out.exists() {
        return Err(anyhow::anyhow!("{} exists; keys are never overwritten", out.display()).into());
    }
    if out.extension().is_none_or(|extension| extension != "key") {
        return Err(
            anyhow::anyhow!("a key file ends in .key: only such files are looked at when something is signed").into(),
        );
    }
    let passphrase = secret.get()?;
    let key = generate()?;
    store_key(out, &key, passphrase.as_ref())?;
    output::line(key.id().as_str());
    output::note(&format!(
        "{} stays with you; {} goes to whoever keeps the root: skerry keys add --role … --public-key {}",
        out.display(),
        out.with_extension("pub").display(),
        out.with_extension("pub").display()
    ));
    Ok(ExitCode::SUCCESS)
}
