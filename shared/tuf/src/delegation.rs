//! Who else may sign for targets: the member `delegations` of targets metadata (TUF §4.5).
//!
//! Plain data; following it is the business of `search`. Invariant: a [`RoleName`] is a safe file name once encoded, and
//! never the name of a top-level role.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::key::{KeyId, PublicKey};
use crate::path_pattern::PathPattern;
use crate::target_name::TargetName;
use crate::threshold::KeySet;

/// Longest encoded role name: with a version of 20 digits and `.json` it is still a file name.
const MAX_ENCODED_BYTES: usize = 200;

/// The name of a delegated role: any text but nothing, a top-level role, or more than 200 bytes when encoded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

/// Why a text cannot name a delegated role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleNameError {
    /// The text has no characters.
    #[error("role name is empty")]
    Empty,
    /// The text is the name of a top-level role, whose keys only root may name.
    #[error("a delegated role has the name of a top-level role")]
    TopLevel,
    /// The text has more than 200 bytes when it is encoded.
    #[error("role name is too long for a file name")]
    TooLong,
}

impl RoleName {
    /// Checks `name` and makes a role name of it.
    ///
    /// # Errors
    ///
    /// The rule that the name breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, RoleNameError> {
        let name = Self(name.into());
        match name.as_str() {
            "" => Err(RoleNameError::Empty),
            "root" | "timestamp" | "snapshot" | "targets" => Err(RoleNameError::TopLevel),
            _ if name.encoded().len() > MAX_ENCODED_BYTES => Err(RoleNameError::TooLong),
            _ => Ok(name),
        }
    }

    /// Returns the name as it stands in the metadata.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the role's file in a repository or on disk, without a version: percent-encoded, with `.json`.
    pub fn file_name(&self) -> String {
        format!("{}.json", self.encoded())
    }

    /// The name under which a snapshot lists the role.
    pub(crate) fn listed_as(&self) -> String {
        format!("{}.json", self.0)
    }

    fn encoded(&self) -> String {
        percent_encoded(&self.0)
    }
}

impl TryFrom<String> for RoleName {
    type Error = RoleNameError;

    fn try_from(name: String) -> Result<Self, RoleNameError> {
        Self::new(name)
    }
}

impl From<RoleName> for String {
    fn from(name: RoleName) -> Self {
        name.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns `text` with every byte but the unreserved characters of RFC 3986 as `%XX`: no slash, no query, no fragment.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The member `delegations` of targets metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegations {
    /// Keys of the delegated roles by id.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Delegated roles, the first one asked first. Absent if a repository divides its targets in a way that we do not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<DelegatedRole>,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Delegations {
    /// Returns the keys that sign for `role`, as this delegator sees it. Ids without a key are left out.
    pub fn keys_of(&self, role: &DelegatedRole) -> KeySet {
        let key = |id: &KeyId| Some((id.clone(), self.keys.get(id)?.clone()));
        KeySet {
            keys: role.keyids.iter().filter_map(key).collect(),
            threshold: role.threshold,
        }
    }

    /// Adds a role after all others.
    pub fn delegate(&mut self, name: RoleName, keys: KeySet, paths: DelegatedPaths, search: SearchOrder) {
        self.roles.push(DelegatedRole {
            name,
            keyids: keys.keys.keys().cloned().collect(),
            threshold: keys.threshold,
            search,
            paths,
            extra: Map::new(),
        });
        self.keys.extend(keys.keys);
    }
}

/// A delegated role: who signs for which target names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WireRole", into = "WireRole")]
pub struct DelegatedRole {
    /// Name of the role.
    pub name: RoleName,
    /// Key ids. A repeated id counts once.
    pub keyids: BTreeSet<KeyId>,
    /// Number of distinct keys that must sign.
    pub threshold: NonZeroU32,
    /// What happens to a search that comes here.
    pub search: SearchOrder,
    /// The target names that are delegated.
    pub paths: DelegatedPaths,
    /// Members that this crate does not know.
    pub extra: Map<String, Value>,
}

/// Whether a search goes on after a delegated role that does not have the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchOrder {
    /// The next role is asked.
    Continue,
    /// The search ends: the role has the last word on its target names.
    Terminate,
}

/// The target names that a role may sign for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DelegatedPaths {
    /// Names that one of these patterns stands for.
    Patterns(Vec<PathPattern>),
    /// Names whose SHA-256, in lower-case hexadecimal, begins with one of these.
    HashPrefixes(Vec<String>),
}

impl DelegatedPaths {
    /// Tells whether the role may sign for `name`.
    pub fn contains(&self, name: &TargetName) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
            Self::HashPrefixes(prefixes) => {
                let digest = hex::encode(Sha256::digest(name.as_str()));
                prefixes.iter().any(|prefix| digest.starts_with(prefix.as_str()))
            }
        }
    }
}

/// A delegated role as it stands in JSON.
#[derive(Serialize, Deserialize)]
struct WireRole {
    name: RoleName,
    keyids: BTreeSet<KeyId>,
    threshold: NonZeroU32,
    terminating: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<PathPattern>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hash_prefixes: Option<Vec<String>>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

/// A delegated role has neither `paths` nor `path_hash_prefixes`, or both.
#[derive(Debug, thiserror::Error)]
#[error("delegated role {0:?} must have either paths or path_hash_prefixes")]
struct AmbiguousPaths(String);

impl TryFrom<WireRole> for DelegatedRole {
    type Error = AmbiguousPaths;

    fn try_from(wire: WireRole) -> Result<Self, AmbiguousPaths> {
        let paths = match (wire.paths, wire.path_hash_prefixes) {
            (Some(patterns), None) => DelegatedPaths::Patterns(patterns),
            (None, Some(prefixes)) => DelegatedPaths::HashPrefixes(prefixes),
            _ => return Err(AmbiguousPaths(wire.name.into())),
        };
        Ok(Self {
            name: wire.name,
            keyids: wire.keyids,
            threshold: wire.threshold,
            search: match wire.terminating {
                true => SearchOrder::Terminate,
                false => SearchOrder::Continue,
            },
            paths,
            extra: wire.extra,
        })
    }
}

impl From<DelegatedRole> for WireRole {
    fn from(role: DelegatedRole) -> Self {
        let (paths, path_hash_prefixes) = match role.paths {
            DelegatedPaths::Patterns(patterns) => (Some(patterns), None),
            DelegatedPaths::HashPrefixes(prefixes) => (None, Some(prefixes)),
        };
        Self {
            name: role.name,
            keyids: role.keyids,
            threshold: role.threshold,
            terminating: role.search == SearchOrder::Terminate,
            paths,
            path_hash_prefixes,
            extra: role.extra,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn name(text: &str) -> TargetName {
        TargetName::new(text).unwrap()
    }

    #[test]
    fn a_role_cannot_take_the_place_of_a_top_level_role() {
        for top in ["root", "timestamp", "snapshot", "targets"] {
            assert_eq!(RoleName::new(top), Err(RoleNameError::TopLevel));
        }
        assert_eq!(RoleName::new(""), Err(RoleNameError::Empty));
        assert_eq!(RoleName::new("/".repeat(67)), Err(RoleNameError::TooLong));
        assert!(RoleName::new("a".repeat(200)).is_ok());
    }

    #[test]
    fn file_names_of_roles_are_encoded() {
        for (role, file) in [
            ("camera", "camera.json"),
            ("?", "%3F.json"),
            ("#", "%23.json"),
            ("../camera", "..%2Fcamera.json"),
            ("%2F", "%252F.json"),
            ("é~_-.", "%C3%A9~_-..json"),
        ] {
            assert_eq!(RoleName::new(role).unwrap().file_name(), file);
        }
    }

    #[test]
    fn paths_or_hash_prefixes_but_not_both_and_not_none() {
        let role = |more: Value| {
            let mut role = json!({"name": "a", "keyids": [], "threshold": 1, "terminating": false});
            role.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<DelegatedRole>(role)
        };
        assert!(role(json!({})).is_err());
        assert!(role(json!({"paths": [], "path_hash_prefixes": []})).is_err());
        assert!(role(json!({"paths": ["*"]})).is_ok());
        let both = role(json!({"path_hash_prefixes": ["ab"], "x_more": 1})).unwrap();
        assert_eq!(both.extra, json!({"x_more": 1}).as_object().unwrap().clone());
    }

    #[test]
    fn a_hash_prefix_stands_for_a_share_of_all_names() {
        // SHA-256 of "a" begins with ca978112.
        let prefixes =
            |list: &[&str]| DelegatedPaths::HashPrefixes(list.iter().map(|text| (*text).to_owned()).collect());
        assert!(prefixes(&["00", "ca97"]).contains(&name("a")));
        assert!(!prefixes(&["ca97"]).contains(&name("b")));
        assert!(!prefixes(&["CA97"]).contains(&name("a")));
        assert!(!prefixes(&[]).contains(&name("a")));
    }

    proptest! {
        #[test]
        fn an_encoded_role_name_is_one_safe_segment(text in "\\PC{1,20}") {
            if let Ok(role) = RoleName::new(text) {
                let file = role.file_name();
                prop_assert!(file.bytes().all(|byte| byte.is_ascii_graphic() && !b"/\\?#&".contains(&byte)));
                prop_assert!(file != "." && file != "..");
            }
        }

        #[test]
        fn different_role_names_have_different_files(left in "[a%2F/.]{1,6}", right in "[a%2F/.]{1,6}") {
            let file = |text: &str| RoleName::new(text).unwrap().file_name();
            prop_assert_eq!(left == right, file(&left) == file(&right));
        }

        #[test]
        fn every_name_is_in_exactly_one_of_the_sixteen_bins(text in "[a-z]{1,12}") {
            let bins = (0..16).filter(|bin| DelegatedPaths::HashPrefixes(vec![format!("{bin:x}")]).contains(&name(&text)));
            prop_assert_eq!(bins.count(), 1);
        }
    }
}
