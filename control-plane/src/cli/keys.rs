//! `skerry keys`: the signing keys. Root and targets stay on the operator's side; the control plane gets the folder
//! `online` and nothing else.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use clap::Subcommand;
use skerry_tuf::{KeySet, NewRoot, SigningKey, UnixTime, new_root, new_targets, sign_metadata};

use super::{Done, output};
use crate::signing::key_file;

/// Ten years: root is rotated by hand, and a fleet must not stop because nobody did.
const ROOT_DAYS: u32 = 3650;
/// One year: `bundle sign` renews it each time.
pub const TARGETS_DAYS: u32 = 365;

/// Commands about keys.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Makes one key per role, the root metadata and an empty targets metadata.
    #[command(
        after_help = "The folder then holds root.key and targets.key, which stay with you (a USB stick is a good place), and \
                            online/, which the control plane needs: copy it to the folder that `[signing] dir` names."
    )]
    Init {
        /// The folder to make; nothing in it is ever overwritten.
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
}

pub(super) fn run(command: Command) -> Done {
    match command {
        Command::Init { dir } => {
            init(&dir)?;
            output::note(&format!("keys are in {}", dir.display()));
            output::note(&format!(
                "copy {} to the control plane's signing folder",
                dir.join("online").display()
            ));
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Makes the keys of all roles in `dir`, and `dir/online` with what the control plane gets.
///
/// # Errors
/// When a key is there already or the folder cannot be written.
pub fn init(dir: &Path) -> anyhow::Result<()> {
    let online = dir.join("online");
    for path in [
        dir.join("root.key"),
        dir.join("targets.key"),
        online.join("assignment.key"),
    ] {
        if path.exists() {
            bail!("{} exists; keys are never overwritten", path.display());
        }
    }
    fs::create_dir_all(&online).with_context(|| format!("cannot make {}", online.display()))?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let now = UnixTime::from_seconds(now.as_secs() as i64);

    let key = || -> anyhow::Result<SigningKey> {
        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).context("no randomness from the system")?;
        Ok(SigningKey::generate(entropy))
    };
    let (root_key, targets_key) = (key()?, key()?);
    let (snapshot_key, timestamp_key, assignment_key, time_key) = (key()?, key()?, key()?, key()?);
    let root = new_root(NewRoot {
        version: 1,
        expires: now.plus_days(ROOT_DAYS),
        root: KeySet::single(root_key.public_key()),
        timestamp: KeySet::single(timestamp_key.public_key()),
        snapshot: KeySet::single(snapshot_key.public_key()),
        targets: KeySet::single(targets_key.public_key()),
        assignment: Some(KeySet::single(assignment_key.public_key())),
        time: Some(KeySet::single(time_key.public_key())),
    });
    let root = sign_metadata(&root, [&root_key]).context("cannot sign root")?;
    let targets = sign_metadata(&new_targets(1, now.plus_days(TARGETS_DAYS)), [&targets_key]);
    let targets = targets.context("cannot sign targets")?;

    write_new(&dir.join("root.key"), &key_file::encode("root", &root_key), 0o600)?;
    write_new(
        &dir.join("targets.key"),
        &key_file::encode("targets", &targets_key),
        0o600,
    )?;
    for (role, key) in [
        ("snapshot", &snapshot_key),
        ("timestamp", &timestamp_key),
        ("assignment", &assignment_key),
        ("time", &time_key),
    ] {
        write_new(&online.join(format!("{role}.key")), &key_file::encode(role, key), 0o600)?;
    }
    for folder in [dir, &online] {
        write_new(&folder.join("root.json"), &root, 0o644)?;
        write_new(&folder.join("targets.json"), &targets, 0o644)?;
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}
