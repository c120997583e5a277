//! Where passphrases come from: a file, the environment, or a person at a terminal who does not see what they type.

use std::{
    cell::OnceCell,
    fs::File,
    io::{Read, Write},
    path::PathBuf,
};

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::signing::{key_file::KeyFileError, passphrase::Passphrase};

const ENVIRONMENT: &str = "SKERRY_KEYS_PASSPHRASE";
/// Longer than anybody types, and a limit for what is read.
const PASSPHRASE_BYTES_MAX: usize = 1024;

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

/// The terminal of this process, whatever stdin and stdout are.
struct Terminal(File);

impl Terminal {
    fn open() -> anyhow::Result<Terminal> {
        let tty = File::options().read(true).write(true).open("/dev/tty");
        Ok(Terminal(tty.context("there is no terminal to ask for a passphrase")?))
    }

    /// Asks for a line that is not shown.
    fn ask(&mut self, question: &str) -> anyhow::Result<Zeroizing<String>> {
        self.0
            .write_all(question.as_bytes())
            .context("cannot ask on the terminal")?;
        let quiet = Quiet::begin(&self.0)?;
        let line = read_line(&mut &self.0);
        drop(quiet);
        // The typed line end was not shown either.
        self.0.write_all(b"\n").context("cannot write to the terminal")?;
        line
    }
}

/// Reads a line into memory that is erased, byte by byte: a buffered reader would keep a copy.
fn read_line(from: &mut impl Read) -> anyhow::Result<Zeroizing<String>> {
    // All at once: a growing buffer would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX));
    let mut byte = Zeroizing::new([0]);
    while from.read(&mut *byte).context("cannot read the passphrase")? == 1 && byte[0] != b'\n' {
        if line.len() == PASSPHRASE_BYTES_MAX {
            bail!("the passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes");
        }
        line.push(byte[0]);
    }
    let text = std::str::from_utf8(&line).context("the passphrase is not UTF-8")?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl Quiet<'_> {
    fn begin(terminal: &File) -> anyhow::Result<Quiet<'_>> {
        let before = tcgetattr(terminal).context("cannot look at the terminal")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet).context("cannot hide what is typed")?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // Nothing better can be done than to leave it.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_its_end_and_has_a_limit() {
        assert_eq!(*read_line(&mut &b"correct horse\nrest"[..]).unwrap(), "correct horse");
        assert_eq!(*read_line(&mut &b"no end"[..]).unwrap(), "no end");
        assert!(read_line(&mut &[b'x'; PASSPHRASE_BYTES_MAX + 1][..]).is_err());
        assert!(read_line(&mut &[0xff, b'\n'][..]).is_err());
    }

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
