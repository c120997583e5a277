//! Names of users and tokens, parsed once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name as it fits a log line and a table.
const NAME_MAX: usize = 64;

/// A user's name: 1 to 64 of `a-z`, `0-9` and `-_.@+`, beginning with a letter or digit. No capitals, so that no two names look
/// alike; no `/` and `:`, which separate names in the log. Nobody is `token`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

/// A text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name: 1 to 64 of a-z, 0-9, `-`, `_`, `.`, `@` and `+`, beginning with a letter or digit")]
pub struct InvalidName(String);

impl UserName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text == super::FIRST_PERSON {
            return Err(InvalidName(text.to_owned()));
        }
        check(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit())?;
        Ok(UserName(text.to_owned()))
    }
}

impl TryFrom<String> for UserName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> String {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the name of a token: like a user's, and capitals are allowed, since nobody signs in with it.
pub(super) fn check_token_name(text: &str) -> Result<(), InvalidName> {
    check(text, |c| c.is_ascii_alphanumeric())
}

fn check(text: &str, letter: impl Fn(char) -> bool) -> Result<(), InvalidName> {
    let known =
        text.len() <= NAME_MAX && text.starts_with(&letter) && text.chars().all(|c| letter(c) || "-_.@+".contains(c));
    if known {
        Ok(())
    } else {
        Err(InvalidName(text.chars().take(80).filter(|c| !c.is_control()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_taken_for_others_are_refused() {
        for text in ["alice", "a", "ci-2", "bob@example.org", "x+y_z.0"] {
            assert!(text.parse::<UserName>().is_ok(), "{text}");
        }
        let long = "a".repeat(65);
        for text in [
            "", "Alice", "al ice", "alice/ci", "token:x", "token", "-x", "älice", "a\nb", &long,
        ] {
            assert!(text.parse::<UserName>().is_err(), "{text}");
        }
    }
}
