//! Where passphrases come from: a file, the environment, or a person at a terminal who does not see what they type.

use std::{cell::OnceCell, path::PathBuf};

use anyhow::{Context, bail};
use zeroize::Zeroizing;

use crate::{
    cli::terminal::Terminal,
    signing::{key_file::KeyFileError, passphrase::Passphrase},
};

const ENVIRONMENT: &str = "SKERRY_KEYS_PASSPHRASE";

/// How to open keys that are there.
#[derive(clap::Args, Debug, Default)]
pub struct Secret {
    /// The file whose first line is the passphrase of the keys; without it `SKERRY_KEYS_PASSPHRASE`, or the terminal is
    /// asked if a key is encrypted.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Asked once for all keys.
    #[arg(skip)]
    known: OnceCell<Passphrase>,
}

/// How to protect keys that are made.
#[derive(clap::Args, Debug, Default)]
pub struct NewSecret {
    /// The file whose first line protects the new key; without it `SKERRY_KEYS_PASSPHRASE`, or the terminal is asked.
    #[arg(long, value_name = "FILE", conflicts_with = "no_passphrase")]
    passphrase_file: Option<PathBuf>,
    /// Leaves the new key unencrypted: whoever can read its file can sign.
    #[arg(long)]
    no_passphrase: bool,
}

impl NewSecret {
    /// Keys that are not encrypted.
    pub fn none() -> NewSecret {
        NewSecret {
            passphrase_file: None,
            no_passphrase: true,
        }
    }

    /// True when there is something else to do than to ask a person.
    pub(super) fn is_said(&self) -> bool {
        self.no_passphrase || self.passphrase_file.is_some()
    }

    /// The passphrase for new keys; none if that was said.
    pub(super) fn get(&self) -> anyhow::Result<Option<Passphrase>> {
        if self.no_passphrase {
            return Ok(None);
        }
        if let Some(given) = given(self.passphrase_file.as_ref())? {
            return Ok(Some(given));
        }
        let mut terminal = Terminal::open().context(
            "a new key needs a passphrase: give --passphrase-file or SKERRY_KEYS_PASSPHRASE, or --no-passphrase",
        )?;
        let first = Passphrase::new(terminal.ask("passphrase for the new keys: ")?)?;
        let second = terminal.ask("the same again: ")?;
        if Passphrase::new(second).ok().as_ref() != Some(&first) {
            bail!("the two passphrases differ; nothing was made");
        }
        Ok(Some(first))
    }
}

impl Secret {
    /// The passphrase, for a key that turned out to be encrypted.
    pub(super) fn get(&self) -> Result<Passphrase, KeyFileError> {
        if let Some(known) = self.known.get() {
            return Ok(known.clone());
        }
        let needed = |error: anyhow::Error| KeyFileError::PassphraseNeeded(format!("a key here ({error:#})"));
        let passphrase = match given(self.passphrase_file.as_ref()).map_err(needed)? {
            Some(given) => given,
            None => {
                let mut terminal = Terminal::open()
                    .context("give --passphrase-file or SKERRY_KEYS_PASSPHRASE")
                    .map_err(needed)?;
                let typed = terminal.ask("passphrase: ").map_err(needed)?;
                Passphrase::new(typed).map_err(|error| needed(error.into()))?
            }
        };
        Ok(self.known.get_or_init(|| passphrase).clone())
    }
}

fn given(file: Option<&PathBuf>) -> anyhow::Result<Option<Passphrase>> {
    if let Some(file) = file {
        return Ok(Some(Passphrase::read(file)?));
    }
    match std::env::var(ENVIRONMENT) {
        Ok(text) => {
            let passphrase = Passphrase::new(Zeroizing::new(text));
            Ok(Some(passphrase.with_context(|| format!("{ENVIRONMENT} is of no use"))?))
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_the_file_is_the_passphrase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        std::fs::write(&path, "correct horse\nmore\n").unwrap();
        let secret = Secret {
            passphrase_file: Some(path.clone()),
            known: OnceCell::new(),
        };
        let expected = Passphrase::new(Zeroizing::new("correct horse".to_owned())).unwrap();
        assert_eq!(secret.get().unwrap(), expected);
        std::fs::write(&path, "short\n").unwrap();
        assert!(Passphrase::read(&path).is_err());
    }
}
