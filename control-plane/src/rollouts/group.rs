//! Deployment groups as an operator writes them: which devices, and what they must prove.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::devices::Selector;

/// How a group's devices are chosen, and what they must prove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupRule {
    /// Which devices of those that earlier groups have left: `3`, `20%`, `label:site=north` or `rest`.
    #[schema(value_type = String)]
    pub size: GroupSize,
    /// Percent of them that must succeed before the next group begins; 1 to 100.
    #[serde(default = "hundred")]
    pub success_percent: u8,
    /// Percent of them that may fail; more stops the rollout.
    #[serde(default)]
    pub error_percent: u8,
}

fn hundred() -> u8 {
    100
}

/// Which devices a group takes of those that earlier groups have left. As text: `3`, `20%`, `label:site=north`, `rest`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GroupSize {
    /// This many.
    Count(u32),
    /// This share of all devices of the rollout, rounded up.
    Percent(u8),
    /// Those with these labels.
    Labels(Selector),
    /// All that are left.
    Rest,
}

/// A text that is no group size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no deployment group; for example 1 (devices), 20% (of them), label:site=north, rest")]
pub struct InvalidGroupSize(String);

impl FromStr for GroupSize {
    type Err = InvalidGroupSize;
    fn from_str(text: &str) -> Result<Self, InvalidGroupSize> {
        let bad = || InvalidGroupSize(text.chars().take(200).collect());
        if text == "rest" {
            return Ok(GroupSize::Rest);
        }
        if let Some(labels) = text.strip_prefix("label:") {
            let selector = labels.parse::<Selector>().map_err(|_| bad())?;
            return if selector == Selector::default() {
                Err(bad())
            } else {
                Ok(GroupSize::Labels(selector))
            };
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 1..=100) => Ok(GroupSize::Percent(percent)),
                _ => Err(bad()),
            };
        }
        match text.parse() {
            Ok(count @ 1..) => Ok(GroupSize::Count(count)),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupSize::Count(count) => write!(f, "{count}"),
            GroupSize::Percent(percent) => write!(f, "{percent}%"),
            GroupSize::Labels(selector) => write!(f, "label:{}", String::from(selector.clone())),
            GroupSize::Rest => f.write_str("rest"),
        }
    }
}

impl TryFrom<String> for GroupSize {
    type Error = InvalidGroupSize;
    fn try_from(text: String) -> Result<Self, InvalidGroupSize> {
        text.parse()
    }
}

impl From<GroupSize> for String {
    fn from(size: GroupSize) -> String {
        size.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn group_sizes_have_four_forms() {
        for text in ["1", "20%", "label:site=north", "rest"] {
            assert_eq!(text.parse::<GroupSize>().unwrap().to_string(), text);
        }
        for text in ["0", "0%", "101%", "all", "label:x", "label:", ""] {
            assert!(text.parse::<GroupSize>().is_err(), "{text}");
        }
    }
}
