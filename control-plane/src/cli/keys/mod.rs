//! `skerry keys`: the signing keys. Root and targets stay on the operator's side; the control plane gets the folder
//! `online` and nothing else.
//!
//! Only `publish` and `update` talk to the control plane: everything else works on a machine without a network, on files
//! that travel by hand.

mod changes;
mod edit;
mod folder;
mod init;
mod publish;
mod secret;
mod show;
mod sign;
mod targets;

use std::{num::NonZeroU32, path::PathBuf};

use clap::Subcommand;

use super::{Done, Global};
use crate::signing::role::KeyRole;

pub use folder::KeysFolder;
pub use init::init;
pub use secret::{NewSecret, Secret};
pub use sign::SignOptions;
pub(crate) use sign::report;
pub use targets::EditTargets;
pub(crate) use targets::edit_targets;

/// Ten years: root is rotated by hand, and a fleet must not stop because nobody did.
const ROOT_DAYS: u32 = 3650;
/// One year: `bundle sign` renews it each time.
pub const TARGETS_DAYS: u32 = 365;

/// Commands about keys.
#[derive(Subcommand, Debug)]
#[command(
    after_help = "One person, one machine:\n  skerry keys init\n\nTwo of three people must sign (each has a folder and a passphrase of their own):\n  \
    anna$  skerry keys init --name anna\n  \
    ben$   skerry keys new --out ben.key --name ben      # ben.pub goes to Anna, ben.key stays\n  \
    anna$  skerry keys add --role root --public-key ben.pub --name ben\n  \
    anna$  skerry keys threshold --role root 2\n  \
    anna$  skerry keys sign                              # keys/root-draft.json, then by USB stick to Ben\n  \
    ben$   skerry keys sign root-draft.json --keys .     # with Anna's root.json beside ben.key; it shows and asks\n  \
    anna$  skerry keys publish\n\nA stolen key of the control plane:\n  \
    skerry keys rotate --role timestamp                # the new key file is in keys/online: copy it to the server\n  \
    skerry keys sign && skerry keys publish"
)]
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
        /// Your name, kept with the keys in the public root metadata.
        #[arg(long)]
        name: Option<String>,
        /// How the new key is protected.
        #[command(flatten)]
        secret: NewSecret,
        /// Encrypts the keys in online/ too, with the first line of this file; the control plane then needs it as
        /// `[signing] passphrase_file`.
        #[arg(long, value_name = "FILE")]
        online_passphrase_file: Option<PathBuf>,
    },
    /// Makes a key pair for a person: FILE, and FILE with the ending .pub for whoever keeps the root.
    New {
        /// The key file to make.
        #[arg(long)]
        out: PathBuf,
        /// How the new key is protected.
        #[command(flatten)]
        secret: NewSecret,
    },
    /// Shows roles, thresholds and keys, and which of them are in this folder.
    Show {
        /// The folder with root.json.
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
    /// Adds a key to a role: a new one, or the public key of another person. Writes root-draft.json, not yet signed.
    Add {
        /// What is changed.
        #[command(flatten)]
        change: Change,
        /// Another person's public key (PEM), from `skerry keys new`; without it a new key is made here.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The holder's name, kept with the key in the public root metadata.
        #[arg(long)]
        name: Option<String>,
        /// How the new key is protected.
        #[command(flatten)]
        secret: NewSecret,
    },
    /// Puts a key in the place of an old one. Writes root-draft.json, not yet signed.
    #[command(
        after_help = "A new key of an online role is in online/: copy it to the control plane's signing folder before \
                            `skerry keys publish`. While the control plane has both keys it signs with those that the newest \
                            root names. After new targets keys run `skerry keys renew`, too: the targets metadata must be \
                            signed by them."
    )]
    Rotate {
        /// What is changed.
        #[command(flatten)]
        change: Change,
        /// Which key goes, by the beginning of its id; not needed if the role has only one.
        #[arg(long, value_name = "ID")]
        key: Option<String>,
        /// Another person's public key (PEM); without it a new key is made here.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The holder's name, kept with the key in the public root metadata.
        #[arg(long)]
        name: Option<String>,
        /// How the new key is protected.
        #[command(flatten)]
        secret: NewSecret,
    },
    /// Takes a key from a role. Writes root-draft.json, not yet signed.
    Remove {
        /// What is changed.
        #[command(flatten)]
        change: Change,
        /// The key, by the beginning of its id.
        #[arg(value_name = "ID")]
        key: String,
    },
    /// Says how many keys of a role must sign. Writes root-draft.json, not yet signed.
    Threshold {
        /// What is changed.
        #[command(flatten)]
        change: Change,
        /// The number of keys.
        threshold: NonZeroU32,
    },
    /// Makes the next targets metadata with the same content: for new targets keys, or before it expires.
    Renew {
        /// How the targets metadata is changed.
        #[command(flatten)]
        edit: EditTargets,
    },
    /// Shows what a draft of root or targets metadata changes, asks, and adds this folder's signatures. Needs no network.
    #[command(
        after_help = "The file travels between the key holders until enough have signed: a root needs the threshold of the \
                            root before it and its own. The command says what the file changes, line by line: a root against \
                            root.json, targets metadata against the published one (DIR/targets.json, or --targets), with every \
                            bundle and its digest, what is blocked, the lowest versions, delegations and the expiry. Then it asks, \
                            signs, and says whose signatures are missing. Compare what it shows with what you were told, and not \
                            by the same way that the file came."
    )]
    Sign(SignOptions),
    /// Uploads root-draft.json and targets-draft.json once enough keys have signed them.
    #[command(
        after_help = "The control plane takes all of it or nothing. It refuses a root whose online keys are not in its signing \
                            folder yet: copy the new files of online/ there first. A device that was offline for many roots \
                            walks all of them."
    )]
    Publish {
        /// The folder with the drafts; afterwards root.json there is the new root.
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
    /// Brings root.json up to date from the control plane, root by root, and then targets.json, checking every signature.
    Update {
        /// The folder with root.json.
        #[arg(long, default_value = "keys")]
        dir: PathBuf,
    },
}

/// What every change of the root needs to know.
#[derive(clap::Args, Debug)]
pub struct Change {
    /// The role.
    #[arg(long, value_enum)]
    role: KeyRole,
    /// The folder with root.json.
    #[arg(long, default_value = "keys")]
    dir: PathBuf,
}

pub(super) fn run(command: Command, global: &Global) -> Done {
    match command {
        Command::Init {
            dir,
            name,
            secret,
            online_passphrase_file,
        } => init::run(&dir, name.as_deref(), &secret, online_passphrase_file.as_deref()),
        Command::New { out, secret } => init::new_key(&out, &secret),
        Command::Show { dir } => show::run(&KeysFolder::new(&dir), global.output),
        Command::Add {
            change,
            public_key,
            name,
            secret,
        } => edit::add(&change, public_key.as_deref(), name.as_deref(), &secret),
        Command::Rotate {
            change,
            key,
            public_key,
            name,
            secret,
        } => edit::rotate(&change, key.as_deref(), public_key.as_deref(), name.as_deref(), &secret),
        Command::Remove { change, key } => edit::remove(&change, &key),
        Command::Threshold { change, threshold } => edit::threshold(&change, threshold),
        Command::Renew { edit } => edit_targets(&edit, global, |_| Ok(())),
        Command::Sign(options) => sign::run(&options, global.output),
        Command::Publish { dir } => publish::run(&KeysFolder::new(&dir), global),
        Command::Update { dir } => publish::update(&KeysFolder::new(&dir), global),
    }
}
