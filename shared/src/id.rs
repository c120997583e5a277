//! Names and numbers that identify things. Each parses once, at the edge; holding one means that it is well formed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

/// A newtype over a string with one rule. The same text is its display, its JSON and its place in a topic.
macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    return Ok($name(text.to_owned()));
                }
                // A hostile name may be long: keep enough to recognise it.
                let text = text.chars().take(80).collect();
                Err(InvalidId { kind: $kind, text, rule: $rule })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

/// Letters, digits and the given punctuation; begins with a letter or digit. Neither `/ + # $` (MQTT) nor `..` (paths).
fn is_name(text: &str, max_len: usize, punctuation: &str) -> bool {
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins_well
        && text.len() <= max_len
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c))
        && !text.contains("..")
}

string_id! {
    /// A device. It is also its MQTT client id and a level of its topics.
    DeviceId, "device id", "1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or digit",
    |text| is_name(text, 64, "-_") && !text.contains(|c: char| c.is_ascii_uppercase())
}

string_id! {
    /// A registered model.
    ModelName, "model name", "1 to 128 of A-Z, a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit",
    |text| is_name(text, 128, "-_.")
}

string_id! {
    /// A file inside a bundle. Never used as a path on a device.
    ResourceName, "resource name", "1 to 128 of A-Z, a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit",
    |text| is_name(text, 128, "-_.")
}

string_id! {
    /// A compile target such as `aarch64-unknown-linux-gnu`, or `pulley32` / `pulley64`.
    Platform, "platform", "1 to 64 of a-z, 0-9, `-` and `_`",
    |text| is_name(text, 64, "-_")
}

string_id! {
    /// One training execution (MLflow): 32 lower-case hex digits.
    RunId, "run id", "32 lower-case hex digits",
    |text| text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

string_id! {
    /// One start of a device's agent: 32 lower-case hex digits, drawn at start.
    BootId, "boot id", "32 lower-case hex digits",
    |text| text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A newtype over a counter.
macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }
    };
}

number_id! {
    /// The version of a registered model (MLflow): immutable, counted from 1.
    ModelVersion
}
number_id! {
    /// The counter of a device's desired state. It only grows.
    Generation
}
number_id! {
    /// A rollout.
    RolloutId
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mqtt_and_path_syntax_is_no_device_id() {
        for text in [
            "",
            "+",
            "#",
            "a/b",
            "$sys",
            "A",
            "a..b",
            "-a",
            "a b",
            "a\0",
            &"a".repeat(65),
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
        }
        assert_eq!("dev-1".parse::<DeviceId>().unwrap().as_str(), "dev-1");
    }

    #[test]
    fn a_bad_id_in_json_is_named() {
        let error = serde_json::from_str::<DeviceId>("\"a/b\"").unwrap_err();
        assert!(error.to_string().contains("`a/b` is not a valid device id"), "{error}");
    }
}
