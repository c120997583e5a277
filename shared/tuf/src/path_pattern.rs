//! Patterns of target names, as delegations carry them (TUF §4.5, `PATHPATTERN`).
//!
//! `*` stands for any characters and `?` for one, neither for `/`; everything else, `[` included, stands for itself. Not a
//! file system glob. Invariant: a match takes at most (length of the pattern) × (length of the name) steps.

use serde::{Deserialize, Serialize};

use crate::target_name::TargetName;

/// A pattern such as `bundles/*/camera-?.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathPattern(String);

impl PathPattern {
    /// Makes a pattern of any text.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Returns the pattern as it stands in the metadata.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether the pattern stands for `name`.
    pub fn matches(&self, name: &TargetName) -> bool {
        let (mut patterns, mut segments) = (self.0.split('/'), name.as_str().split('/'));
        loop {
            match (patterns.next(), segments.next()) {
                (None, None) => return true,
                (Some(pattern), Some(segment)) if segment_matches(pattern, segment) => {}
                _ => return false,
            }
        }
    }
}

/// Matches one segment without recursion: on a mismatch, the last star takes one character more.
fn segment_matches(pattern: &str, segment: &str) -> bool {
    let (mut pattern, mut rest) = (pattern, segment);
    let mut last_star = None;
    loop {
        let mut pattern_chars = pattern.chars();
        let mut rest_chars = rest.chars();
        match (pattern_chars.next(), rest_chars.next()) {
            (Some('*'), _) => {
                pattern = pattern_chars.as_str();
                last_star = Some((pattern, rest));
            }
            (Some(expected), Some(found)) if expected == '?' || expected == found => {
                (pattern, rest) = (pattern_chars.as_str(), rest_chars.as_str());
            }
            (None, None) => return true,
            _ => {
                let Some((after_star, from)) = last_star else {
                    return false;
                };
                let mut from = from.chars();
                if from.next().is_none() {
                    return false;
                }
                (pattern, rest) = (after_star, from.as_str());
                last_star = Some((pattern, rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        PathPattern::new(pattern).matches(&TargetName::new(name).unwrap())
    }

    #[test]
    fn the_examples_of_the_specification_hold() {
        assert!(matches("targets/*.tgz", "targets/foo.tgz"));
        assert!(matches("targets/*.tgz", "targets/bar.tgz"));
        assert!(!matches("targets/*.tgz", "targets/foo.txt"));
        assert!(matches("foo-version-?.tgz", "foo-version-2.tgz"));
        assert!(matches("foo-version-?.tgz", "foo-version-a.tgz"));
        assert!(!matches("foo-version-?.tgz", "foo-version-alpha.tgz"));
        assert!(matches("*.tgz", "foo.tgz"));
        assert!(!matches("*.tgz", "targets/foo.tgz"));
        assert!(!matches("*.tgz", "foo.txt"));
    }

    #[test]
    fn wildcards_do_not_cross_a_slash() {
        for (pattern, name) in [
            ("*", "a/b"),
            ("a*b", "a/b"),
            ("a?b", "a/b"),
            ("*/*", "a/b/c"),
            ("a/*", "a"),
            ("**", "a/b"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(matches("*/*", "a/b"));
    }

    #[test]
    fn everything_but_the_two_wildcards_stands_for_itself() {
        assert!(matches("[ab]", "[ab]"));
        assert!(!matches("[ab]", "a"));
        assert!(!matches("README.md", "README.MD"));
        assert!(!matches("a.c", "abc"));
        assert!(!matches("", "a"));
        assert!(!matches("/a", "a"));
        assert!(matches("?", "é"));
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let pattern = format!("{}b", "*a".repeat(5_000));
        assert!(!matches(&pattern, &"a".repeat(255)));
        assert!(!matches(&format!("{}b", "*".repeat(100_000)), &"a".repeat(255)));
    }

    /// What the definition says, word for word, and slowly.
    fn by_definition(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => {
                by_definition(rest, name)
                    || matches!(name, [found, after @ ..] if *found != '/' && by_definition(pattern, after))
            }
            (['?', rest @ ..], [found, after @ ..]) => *found != '/' && by_definition(rest, after),
            ([expected, rest @ ..], [found, after @ ..]) => expected == found && by_definition(rest, after),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn matching_agrees_with_the_definition(pattern in "[ab*?/]{0,9}", name in "[ab]{1,4}(/[ab]{1,3}){0,2}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &name), by_definition(&chars(&pattern), &chars(&name)), "{} {}", pattern, name);
        }

        #[test]
        fn a_name_matches_itself_and_what_hides_a_character(name in "[a-zé.]{1,8}(/[a-zé]{1,8}){0,2}", at in any::<prop::sample::Index>()) {
            prop_assume!(TargetName::new(name.as_str()).is_ok());
            prop_assert!(matches(&name, &name));
            let mut chars: Vec<char> = name.chars().collect();
            let hidden = at.get_mut(&mut chars);
            let is_slash = *hidden == '/';
            for wildcard in ['?', '*'] {
                *at.get_mut(&mut chars) = wildcard;
                let pattern: String = chars.iter().collect();
                prop_assert_eq!(matches(&pattern, &name), !is_slash, "{} {}", pattern, name);
            }
        }

        #[test]
        fn as_many_slashes_as_the_pattern_or_no_match(pattern in "[*?/]{0,12}", name in "[ab]{1,3}(/[ab]{1,3}){0,4}") {
            let slashes = |text: &str| text.matches('/').count();
            prop_assert!(!matches(&pattern, &name) || slashes(&pattern) == slashes(&name));
        }
    }
}
