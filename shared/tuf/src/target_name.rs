//! Names of targets, safe to use as a relative path with `/` between segments.
//!
//! Not a file system path: files on the device are named by digest. Invariant: a [`TargetName`] can leave no folder and
//! name no device file, whatever it is joined to.

use serde::{Deserialize, Serialize};

/// Longest accepted target name; the longest file name that common file systems store.
const MAX_LENGTH_BYTES: usize = 255;

/// The name of a target: 1 to 255 bytes, segments joined by `/`, without `.` or `..` segments, `\` or control characters.
///
/// It has no string traits on purpose: each use says [`TargetName::as_str`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

/// Why a text cannot be a target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetNameError {
    /// The text has no characters.
    #[error("target name is empty")]
    Empty,
    /// The text has more than 255 bytes.
    #[error("target name is longer than 255 bytes")]
    TooLong,
    /// The text begins with `/`.
    #[error("target name is an absolute path")]
    Absolute,
    /// A segment between slashes is empty, so two names could mean one path.
    #[error("target name has an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`, so the name could leave its folder.
    #[error("target name has a `.` or `..` segment")]
    Traversal,
    /// The text has a backslash, NUL or another control character.
    #[error("target name has a backslash or a control character")]
    ForbiddenCharacter,
}

impl TargetName {
    /// Checks `name` and makes a target name of it.
    ///
    /// # Errors
    ///
    /// The first rule that the name breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, TargetNameError> {
        let name = name.into();
        if name.is_empty() {
            return Err(TargetNameError::Empty);
        }
        if name.len() > MAX_LENGTH_BYTES {
            return Err(TargetNameError::TooLong);
        }
        if name
            .chars()
            .any(|character| character == '\\' || character.is_control())
        {
            return Err(TargetNameError::ForbiddenCharacter);
        }
        if name.starts_with('/') {
            return Err(TargetNameError::Absolute);
        }
        for segment in name.split('/') {
            match segment {
                "" => return Err(TargetNameError::EmptySegment),
                "." | ".." => return Err(TargetNameError::Traversal),
                _ => {}
            }
        }
        Ok(Self(name))
    }

    /// Returns the name as it stands in the metadata.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TargetName {
    type Error = TargetNameError;

    fn try_from(name: String) -> Result<Self, TargetNameError> {
        Self::new(name)
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unsafe_names_are_refused() {
        use TargetNameError::{Absolute, Empty, EmptySegment, ForbiddenCharacter, TooLong, Traversal};
        let long = "a".repeat(256);
        for (name, error) in [
            ("", Empty),
            (long.as_str(), TooLong),
            ("/etc/passwd", Absolute),
            ("..", Traversal),
            (".", Traversal),
            ("../x", Traversal),
            ("a/../b", Traversal),
            ("a/./b", Traversal),
            ("a/..", Traversal),
            ("a//b", EmptySegment),
            ("a/", EmptySegment),
            ("a\\b", ForbiddenCharacter),
            ("a\0b", ForbiddenCharacter),
            ("a\nb", ForbiddenCharacter),
            ("a\u{7f}", ForbiddenCharacter),
            ("a\u{85}", ForbiddenCharacter),
        ] {
            assert_eq!(TargetName::new(name), Err(error), "{name:?}");
        }
    }

    #[test]
    fn ordinary_names_are_accepted() {
        for name in [
            "a",
            "bundles/activity/3.json",
            "..a",
            "a..",
            "...",
            "modèle.onnx",
            &"a".repeat(255),
        ] {
            assert_eq!(TargetName::new(name).unwrap().as_str(), name);
        }
    }

    proptest! {
        #[test]
        fn an_accepted_name_never_leaves_its_folder(name in "[./\\\\a\\x00]{0,12}") {
            if let Ok(name) = TargetName::new(name) {
                let path = std::path::Path::new(name.as_str());
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
