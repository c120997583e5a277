//! How results reach people and programs: tables and JSON on stdout, progress on stderr.
//!
//! Much of what is printed was written by others: devices, models, metadata. Invariant: no control character of theirs reaches a
//! terminal, where it could move the cursor and rewrite what stands there.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs: the API's own objects.
    Json,
}

/// Writes text to stdout, with control characters escaped but for line ends and tabs.
pub fn line(text: &str) {
    write_line(&escaped(text, |c| matches!(c, '\n' | '\t')));
}

/// A closed pipe ends the program quietly, as it does with any filter.
fn write_line(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if writeln!(stdout, "{text}").is_err() {
        std::process::exit(0);
    }
}

/// A text of somebody else's as a part of a line: it cannot begin a line of its own.
pub fn shown(text: &str) -> String {
    escaped(text, |_| false)
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match is_harmless(c) || keep(c) {
            true => escaped.push(c),
            false => escaped.extend(c.escape_unicode()),
        }
    }
    escaped
}

/// False for control characters, and for those that turn the order of a line around or end it (Unicode's bidirectional
/// controls, line and paragraph separators, and what has no width).
fn is_harmless(c: char) -> bool {
    let steers = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !steers
}

/// Prints a JSON value, indented. JSON escapes control characters itself.
pub fn json(value: &Value) {
    write_line(&serde_json::to_string_pretty(value).expect("JSON values always encode"));
}

/// Prints a JSON value in one line.
pub fn json_line(value: &Value) {
    write_line(&value.to_string());
}

/// Prints a table; rows are in the order of `header`.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.map(str::to_uppercase));
    for row in rows {
        table.add_row(row.map(|cell| shown(&cell)));
    }
    line(&table.trim_fmt());
}

/// Says on stderr what goes on, as [`line`] does.
pub fn note(text: &str) {
    let text = escaped(text, |c| matches!(c, '\n' | '\t'));
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A progress bar over bytes on a terminal; nothing elsewhere.
pub fn progress_bytes(total: u64, what: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}").expect("a valid template");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.with_style(style.progress_chars("=> "))
        .with_message(what.to_owned())
}

/// A text member, or nothing.
pub fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Labels and the like: `a=b, c=d`.
pub fn pairs(value: &Value) -> String {
    let pair = |(key, value): (&String, &Value)| match value {
        Value::String(text) => format!("{key}={text}"),
        other => format!("{key}={other}"),
    };
    value
        .as_object()
        .map(|map| map.iter().map(pair).collect::<Vec<_>>().join(", "))
        .unwrap_or_default()
}

/// How long ago a time in UTC milliseconds was, in words.
pub fn ago(at_ms: Option<u64>) -> String {
    let Some(at_ms) = at_ms else { return "never".to_owned() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let passed = now.saturating_sub(Duration::from_millis(at_ms)).as_secs();
    match passed {
        0..=1 => "now".to_owned(),
        2..=119 => format!("{passed} s ago"),
        120..=7199 => format!("{} min ago", passed / 60),
        7200..=172_799 => format!("{} h ago", passed / 3600),
        _ => format!("{} days ago", passed / 86_400),
    }
}

/// Bytes in a unit that reads well.
pub fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(shown("Grüße, 世界 – ok"), "Grüße, 世界 – ok");
        assert_eq!(shown("a\u{1b}[2Kb"), "a\\u{1b}[2Kb");
        assert_eq!(shown("a\nb\rc\u{9b}d"), "a\\u{a}b\\u{d}c\\u{9b}d");
        assert_eq!(shown("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(escaped("a\nb\u{7f}", |c| c == '\n'), "a\nb\\u{7f}");
    }
}
