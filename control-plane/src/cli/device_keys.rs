//! Fingerprints on the command line: a factory's list, and the beginning of one that a person types.

use std::{io::Read, path::Path};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    client::{Client, list},
    parse::{Pair, object},
};

/// 96 bits: nobody makes a key whose fingerprint begins as another one's does for so long.
const BEGINNING_MIN: usize = 24;

/// Reads a factory's list as the API takes it.
pub(super) fn read_list(path: &Path) -> anyhow::Result<Vec<Value>> {
    let mut content = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_string(&mut content)
            .context("cannot read the standard input")?;
    } else {
        content = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    parse_list(&content).with_context(|| path.display().to_string())
}

fn parse_list(content: &str) -> anyhow::Result<Vec<Value>> {
    let mut keys = Vec::new();
    for (number, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        let fingerprint = words.next().unwrap_or_default().to_ascii_lowercase();
        if fingerprint.len() != 64 || !fingerprint.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!(
                "line {}: `{fingerprint}` is no fingerprint: 64 hexadecimal digits",
                number + 1
            );
        }
        let mut device = None;
        let mut labels: Vec<Pair> = Vec::new();
        for word in words {
            match word.contains('=') {
                true => labels.push(
                    word.parse()
                        .map_err(anyhow::Error::new)
                        .with_context(|| format!("line {}", number + 1))?,
                ),
                false if device.is_none() && labels.is_empty() => device = Some(word),
                false => bail!("line {}: `{word}` is no KEY=VALUE", number + 1),
            }
        }
        keys.push(json!({"fingerprint": fingerprint, "device_id": device, "labels": object(&labels)}));
    }
    if keys.is_empty() {
        bail!("there is no fingerprint in it");
    }
    Ok(keys)
}

/// The whole fingerprint that begins so, among those that wait.
pub(super) fn whole(client: &Client, beginning: &str) -> anyhow::Result<String> {
    let beginning = beginning.to_ascii_lowercase();
    if beginning.len() == 64 {
        return Ok(beginning);
    }
    if beginning.len() < BEGINNING_MIN {
        bail!(
            "give at least {BEGINNING_MIN} digits of the fingerprint: a key that begins as a shorter one does can be made"
        );
    }
    let keys = list(client.get("/api/v1/device-keys?state=pending")?, "keys");
    let fingerprints = keys.iter().filter_map(|key| key["fingerprint"].as_str());
    let mut matching = fingerprints.filter(|fingerprint| fingerprint.starts_with(&beginning));
    match (matching.next(), matching.next()) {
        (Some(fingerprint), None) => Ok(fingerprint.to_owned()),
        (None, _) => {
            bail!("no device waits whose fingerprint begins with {beginning} (`skerry device keys --state pending`)")
        }
        (Some(_), Some(_)) => bail!("more than one waits whose fingerprint begins with {beginning}: give more of it"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_ids_and_labels_or_neither() {
        let (one, two) = ("a".repeat(64), "B".repeat(64));
        let keys = parse_list(&format!("# batch 7\n\n{one}\n {two} dev-2 site=north kind=wrist\n")).unwrap();
        assert_eq!(keys[0], json!({"fingerprint": one, "device_id": null, "labels": {}}));
        assert_eq!(keys[1]["fingerprint"], "b".repeat(64));
        assert_eq!(keys[1]["device_id"], "dev-2");
        assert_eq!(keys[1]["labels"], json!({"site": "north", "kind": "wrist"}));
    }

    #[test]
    fn a_bad_line_is_named_and_nothing_is_taken() {
        let good = "a".repeat(64);
        for (bad, word) in [
            ("abc".to_owned(), "line 2"),
            (format!("{good} dev-1 dev-2"), "dev-2"),
            (format!("{good} =x"), "line 2"),
        ] {
            let error = format!("{:#}", parse_list(&format!("{good}\n{bad}")).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        assert!(parse_list("# nothing\n").is_err());
    }
}
