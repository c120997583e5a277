//! A person at a terminal, who answers a question, or types a secret and does not see it.
//!
//! Invariant: what was typed is erased from memory when it has been used, and the terminal shows again what is typed, whatever
//! happens in between.

use std::{
    fs::File,
    io::{Read, Write},
};

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longer than anybody types, and a limit for what is read.
const LINE_BYTES_MAX: usize = 1024;

/// The terminal of this process, whatever stdin and stdout are.
pub(super) struct Terminal(File);

impl Terminal {
    /// Opens it.
    ///
    /// # Errors
    /// When the process has none.
    pub(super) fn open() -> anyhow::Result<Terminal> {
        let tty = File::options().read(true).write(true).open("/dev/tty");
        Ok(Terminal(tty.context("there is no terminal to ask at")?))
    }

    /// Asks for a line that is not shown.
    ///
    /// # Errors
    /// When it cannot be hidden or read.
    pub(super) fn ask(&mut self, question: &str) -> anyhow::Result<Zeroizing<String>> {
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

/// Asks whether to go on.
///
/// # Errors
/// When the process has no terminal, or it cannot be read.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    let mut terminal = Terminal::open()?;
    let question = format!("{question} [y/N] ");
    terminal
        .0
        .write_all(question.as_bytes())
        .context("cannot ask on the terminal")?;
    let answer = read_line(&mut &terminal.0)?;
    Ok(is_yes(&answer))
}

/// Everything but a clear yes is a no.
fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Reads a line into memory that is erased, byte by byte: a buffered reader would keep a copy.
fn read_line(from: &mut impl Read) -> anyhow::Result<Zeroizing<String>> {
    // All at once: a growing buffer would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    let mut byte = Zeroizing::new([0]);
    while from.read(&mut *byte).context("cannot read the line")? == 1 && byte[0] != b'\n' {
        if line.len() == LINE_BYTES_MAX {
            bail!("the line is longer than {LINE_BYTES_MAX} bytes");
        }
        line.push(byte[0]);
    }
    let text = std::str::from_utf8(&line).context("the line is not UTF-8")?;
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
    fn only_a_clear_yes_is_one() {
        assert!(["y", "Y", "yes", " Yes\r"].iter().all(|answer| is_yes(answer)));
        assert!(["", "n", "yep", "yes please"].iter().all(|answer| !is_yes(answer)));
    }

    #[test]
    fn a_line_ends_at_its_end_and_has_a_limit() {
        assert_eq!(*read_line(&mut &b"correct horse\nrest"[..]).unwrap(), "correct horse");
        assert_eq!(*read_line(&mut &b"no end"[..]).unwrap(), "no end");
        assert!(read_line(&mut &[b'x'; LINE_BYTES_MAX + 1][..]).is_err());
        assert!(read_line(&mut &[0xff, b'\n'][..]).is_err());
    }
}
