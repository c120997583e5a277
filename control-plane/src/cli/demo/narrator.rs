//! What the demo tells while it works: lines, and on a terminal a progress bar for what takes long.

use std::{cell::RefCell, io::IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::output;

/// Tells on stderr; stdout is for the result.
pub(super) struct Narrator {
    terminal: bool,
    last: RefCell<String>,
}

impl Narrator {
    pub(super) fn new() -> Narrator {
        Narrator {
            terminal: std::io::stderr().is_terminal(),
            last: RefCell::default(),
        }
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        output::note(text);
    }

    /// Begins something that takes long: a bar on a terminal, plain lines elsewhere.
    pub(super) fn begin(&self, total: u64) -> Progress<'_> {
        let bar = if self.terminal {
            let style = ProgressStyle::with_template("   [{bar:24}] {pos}/{len} {msg}").expect("a valid template");
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style.progress_chars("=> "))
        } else {
            ProgressBar::hidden()
        };
        self.last.borrow_mut().clear();
        Progress { narrator: self, bar }
    }
}

/// Something that takes long. The bar goes when this goes.
pub(super) struct Progress<'a> {
    narrator: &'a Narrator,
    bar: ProgressBar,
}

impl Progress<'_> {
    pub(super) fn set(&self, done: u64, message: &str) {
        self.bar.set_position(done);
        let mut last = self.narrator.last.borrow_mut();
        if *last != message {
            self.bar.set_message(message.to_owned());
            if !self.narrator.terminal {
                output::note(&format!("   {message}"));
            }
            message.clone_into(&mut last);
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
