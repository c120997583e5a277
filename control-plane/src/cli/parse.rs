//! Small values of the command line that parse once: durations, pairs, deployment groups.

use std::{str::FromStr, time::Duration};

use serde_json::Value;

/// A value that does not parse, with what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind}; for example {example}")]
pub struct BadValue {
    text: String,
    kind: &'static str,
    example: &'static str,
}

/// Parses `500ms`, `10s`, `5m`, `2h`, `7d`.
///
/// # Errors
/// [`BadValue`].
pub fn duration(text: &str) -> Result<Duration, BadValue> {
    let bad = || BadValue {
        text: text.to_owned(),
        kind: "duration",
        example: "500ms, 10s, 5m, 2h, 7d",
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let count: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    count.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(bad)
}

/// `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Before the first `=`.
    pub key: String,
    /// After it.
    pub value: String,
}

impl FromStr for Pair {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Pair {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(BadValue {
                text: text.to_owned(),
                kind: "pair",
                example: "site=north",
            }),
        }
    }
}

/// Pairs as a JSON object.
pub fn object(pairs: &[Pair]) -> Value {
    pairs
        .iter()
        .map(|pair| (pair.key.clone(), Value::from(pair.value.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7200));
        for text in ["", "10", "s", "-1s", "1w", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
