//! The agent's log on stderr: for people with colours and times, for the journal with priorities.
//!
//! Under systemd stderr leads to the journal, which stamps the time itself and takes the level from `<N>` at a line's start
//! (sd-daemon(3)); so `journalctl -p warning` finds what it should. Invariant: an event is one line there, whatever it contains:
//! what came from outside cannot begin a line of its own with a level of its choice.

use std::{fmt, io::IsTerminal};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// Starts the log; `RUST_LOG` overrides the level.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if stderr_is_the_journal() {
        let format = Prioritised {
            inner: Format::default().without_time().with_level(false).with_ansi(false),
        };
        log.with_ansi(false).event_format(format).init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

fn stderr_is_the_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let stderr = rustix::fs::fstat(std::io::stderr()).ok();
    match (stream, stderr) {
        (Some(stream), Some(stderr)) => names(&stream, stderr.st_dev, stderr.st_ino),
        _ => false,
    }
}

/// True if `JOURNAL_STREAM` (systemd.exec(5)) names this file: a child whose stderr was redirected inherits the variable too.
fn names(stream: &str, device: u64, inode: u64) -> bool {
    stream == format!("{device}:{inode}")
}

/// The syslog priority of a level (syslog(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Lines with their priority before them.
struct Prioritised {
    inner: Format<Full, ()>,
}

impl<S> FormatEvent<S, DefaultFields> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        DefaultFields: for<'writer> FormatFields<'writer>,
    {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n').replace('\n', "\\n");
        writeln!(writer, "<{}>{line}", priority(*event.metadata().level()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_event_is_one_line_with_its_priority() {
        let lines = Lines::default();
        let written = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .with_ansi(false)
            .event_format(Prioritised {
                inner: Format::default().without_time().with_level(false).with_ansi(false),
            });
        tracing::subscriber::with_default(log.finish(), || {
            tracing::warn!(target: "t", code = "a\n<0>forged", "first");
            tracing::error!(target: "t", "second");
            tracing::info!(target: "t", "third");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].starts_with("<4>t: first") && lines[0].contains("forged"),
            "{text}"
        );
        assert_eq!(lines[1], "<3>t: second");
        assert_eq!(lines[2], "<6>t: third");
    }

    #[test]
    fn only_the_journals_own_stream_is_the_journal() {
        assert!(names("8:12345", 8, 12345));
        for (stream, device, inode) in [("8:12345", 8, 1), ("8:12345", 9, 12345), ("", 0, 0), ("8", 8, 12345)] {
            assert!(!names(stream, device, inode), "{stream}");
        }
    }
}
