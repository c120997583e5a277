//! The roles that root metadata gives keys to, by name, and the changes that an operator makes to them.
//!
//! Pure: not key files and not signatures. Invariant: a change leaves every role with at least as many keys as its
//! threshold, and no key that no role uses.

use std::{collections::BTreeSet, fmt, num::NonZeroU32};

use serde_json::Value;
use skerry_tuf::{KeyId, KeySet, PublicKey, Role, RoleKeys, Root, UnixTime};

/// A role, of TUF or our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum KeyRole {
    /// Names the keys of all roles; offline.
    Root,
    /// Says which bundles are valid; offline.
    Targets,
    /// Lists the newest targets; online.
    Snapshot,
    /// Lists the newest snapshot; online.
    Timestamp,
    /// Says which bundles a device runs; online.
    Assignment,
    /// Says what time it is, and what the audit log is; online.
    Time,
}

/// Why a root cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// The role has the key.
    #[error("role {0} has this key already")]
    Known(KeyRole),
    /// The role has no such key, or the beginning of the id fits several.
    #[error("role {role} has no one key whose id begins with `{id}`; `skerry keys show` lists them")]
    NoSuchKey {
        /// The role.
        role: KeyRole,
        /// What was asked for.
        id: String,
    },
    /// With several keys it must be said which one goes.
    #[error("role {0} has several keys: say which one with --key")]
    WhichKey(KeyRole),
    /// Fewer keys than the threshold.
    #[error("role {role} has {keys} keys: {threshold} of them cannot sign")]
    TooFewKeys {
        /// The role.
        role: KeyRole,
        /// Its keys.
        keys: usize,
        /// The threshold.
        threshold: u32,
    },
    /// The root is of an older kind that has no such role.
    #[error("the root metadata names no role {0}")]
    NoSuchRole(KeyRole),
}

/// The member of a key object that holds its name, for people.
const NAME: &str = "x_skerry_name";

impl KeyRole {
    /// All roles, offline ones first.
    pub const ALL: [KeyRole; 6] = [
        KeyRole::Root,
        KeyRole::Targets,
        KeyRole::Snapshot,
        KeyRole::Timestamp,
        KeyRole::Assignment,
        KeyRole::Time,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyRole::Root => "root",
            KeyRole::Targets => "targets",
            KeyRole::Snapshot => "snapshot",
            KeyRole::Timestamp => "timestamp",
            KeyRole::Assignment => "assignment",
            KeyRole::Time => "time",
        }
    }

    /// True when the control plane holds its keys.
    pub const fn is_online(self) -> bool {
        !matches!(self, KeyRole::Root | KeyRole::Targets)
    }

    /// The keys that a root names for it.
    pub fn keys_in(self, root: &Root) -> Option<KeySet> {
        match self {
            KeyRole::Root => Some(root.keys_of(Role::Root)),
            KeyRole::Targets => Some(root.keys_of(Role::Targets)),
            KeyRole::Snapshot => Some(root.keys_of(Role::Snapshot)),
            KeyRole::Timestamp => Some(root.keys_of(Role::Timestamp)),
            KeyRole::Assignment => root.assignment_keys(),
            KeyRole::Time => root.time_keys(),
        }
    }

    fn in_mut(self, root: &mut Root) -> Result<&mut RoleKeys, RoleError> {
        let extension = root.extension.as_mut();
        let role = match self {
            KeyRole::Root => Some(&mut root.roles.root),
            KeyRole::Targets => Some(&mut root.roles.targets),
            KeyRole::Snapshot => Some(&mut root.roles.snapshot),
            KeyRole::Timestamp => Some(&mut root.roles.timestamp),
            KeyRole::Assignment => extension.and_then(|extension| extension.assignment.as_mut()),
            KeyRole::Time => extension.and_then(|extension| extension.time.as_mut()),
        };
        role.ok_or(RoleError::NoSuchRole(self))
    }
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name that people gave a key.
pub fn name_of(key: &PublicKey) -> &str {
    key.extra.get(NAME).and_then(Value::as_str).unwrap_or_default()
}

/// Gives a key a name for people. Its id stays the same.
pub fn named(mut key: PublicKey, name: Option<&str>) -> PublicKey {
    if let Some(name) = name {
        key.extra.insert(NAME.to_owned(), Value::from(name));
    }
    key
}

/// The root that follows `root`, without a change yet.
pub fn successor(root: &Root, expires: UnixTime) -> Root {
    Root {
        version: root.version + 1,
        expires,
        ..root.clone()
    }
}

/// Adds a key to a role.
///
/// # Errors
/// [`RoleError`]; the root is as before.
pub fn add(root: &mut Root, role: KeyRole, key: PublicKey) -> Result<(), RoleError> {
    let id = key.id();
    if !role.in_mut(root)?.keyids.insert(id.clone()) {
        return Err(RoleError::Known(role));
    }
    root.keys.entry(id).or_insert(key);
    Ok(())
}

/// Takes a key from a role. `id` may be the beginning of its id.
///
/// # Errors
/// [`RoleError`]; the root is as before.
pub fn remove(root: &mut Root, role: KeyRole, id: &str) -> Result<KeyId, RoleError> {
    let keys = role.in_mut(root)?;
    let id = find(role, keys, id)?;
    check_threshold(role, keys.keyids.len() - 1, keys.threshold)?;
    keys.keyids.remove(&id);
    drop_unused(root);
    Ok(id)
}

/// Puts a key in the place of another one: of `id`, or of the only one that the role has.
///
/// # Errors
/// [`RoleError`]; the root is as before.
pub fn replace(root: &mut Root, role: KeyRole, id: Option<&str>, key: PublicKey) -> Result<KeyId, RoleError> {
    let keys = role.in_mut(root)?;
    let old = match id {
        Some(id) => find(role, keys, id)?,
        None if keys.keyids.len() > 1 => return Err(RoleError::WhichKey(role)),
        None => find(role, keys, "")?,
    };
    if keys.keyids.contains(&key.id()) {
        return Err(RoleError::Known(role));
    }
    keys.keyids.remove(&old);
    add(root, role, key)?;
    drop_unused(root);
    Ok(old)
}

/// Says how many keys of a role must sign.
///
/// # Errors
/// [`RoleError::TooFewKeys`]; the root is as before.
pub fn set_threshold(root: &mut Root, role: KeyRole, threshold: NonZeroU32) -> Result<(), RoleError> {
    let keys = role.in_mut(root)?;
    check_threshold(role, keys.keyids.len(), threshold)?;
    keys.threshold = threshold;
    Ok(())
}

fn check_threshold(role: KeyRole, keys: usize, threshold: NonZeroU32) -> Result<(), RoleError> {
    match keys < threshold.get() as usize {
        true => Err(RoleError::TooFewKeys {
            role,
            keys,
            threshold: threshold.get(),
        }),
        false => Ok(()),
    }
}

fn find(role: KeyRole, keys: &RoleKeys, id: &str) -> Result<KeyId, RoleError> {
    let mut found = keys.keyids.iter().filter(|key| key.as_str().starts_with(id));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        _ => Err(RoleError::NoSuchKey {
            role,
            id: id.to_owned(),
        }),
    }
}

fn drop_unused(root: &mut Root) {
    let used = KeyRole::ALL.into_iter().filter_map(|role| role.keys_in(root));
    let used: BTreeSet<KeyId> = used.flat_map(|set| set.keys.into_keys()).collect();
    root.keys.retain(|id, _| used.contains(id));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_tuf::{NewRoot, SigningKey, new_root};

    use super::*;

    fn key(seed: u8) -> PublicKey {
        SigningKey::from_seed(&[seed; 32]).public_key()
    }

    fn root() -> Root {
        let single = |seed| KeySet::single(key(seed));
        new_root(NewRoot {
            version: 1,
            expires: UnixTime::from_seconds(0),
            root: single(1),
            timestamp: single(2),
            snapshot: single(3),
            targets: single(4),
            assignment: Some(single(5)),
            time: Some(single(6)),
        })
    }

    #[test]
    fn a_replaced_key_is_gone_and_the_others_stay() {
        for role in KeyRole::ALL {
            let mut root = root();
            let old = role.keys_in(&root).unwrap();
            let gone = replace(&mut root, role, None, key(9)).unwrap();
            assert!(old.keys.contains_key(&gone));
            assert_eq!(role.keys_in(&root), Some(KeySet::single(key(9))));
            assert!(!root.keys.contains_key(&gone));
            assert_eq!(root.keys.len(), 6);
        }
    }

    #[test]
    fn a_key_of_two_roles_stays_with_the_other_one() {
        let mut root = root();
        add(&mut root, KeyRole::Targets, key(1)).unwrap();
        replace(&mut root, KeyRole::Root, None, key(9)).unwrap();
        assert!(root.keys.contains_key(&key(1).id()));
    }

    #[test]
    fn a_threshold_that_cannot_be_met_is_refused() {
        let mut root = root();
        let two = NonZeroU32::new(2).unwrap();
        let error = set_threshold(&mut root, KeyRole::Root, two).unwrap_err();
        assert!(matches!(
            error,
            RoleError::TooFewKeys {
                keys: 1,
                threshold: 2,
                ..
            }
        ));
        add(&mut root, KeyRole::Root, key(11)).unwrap();
        set_threshold(&mut root, KeyRole::Root, two).unwrap();
        let id = key(11).id();
        let error = remove(&mut root, KeyRole::Root, id.as_str()).unwrap_err();
        assert!(matches!(
            error,
            RoleError::TooFewKeys {
                keys: 1,
                threshold: 2,
                ..
            }
        ));
    }

    #[test]
    fn with_several_keys_it_must_be_said_which_one_goes() {
        let mut root = root();
        add(&mut root, KeyRole::Targets, key(14)).unwrap();
        assert_eq!(
            add(&mut root, KeyRole::Targets, key(14)),
            Err(RoleError::Known(KeyRole::Targets))
        );
        let error = replace(&mut root, KeyRole::Targets, None, key(9)).unwrap_err();
        assert_eq!(error, RoleError::WhichKey(KeyRole::Targets));
        let first = key(4).id();
        let gone = replace(&mut root, KeyRole::Targets, Some(&first.as_str()[..8]), key(9)).unwrap();
        assert_eq!(gone, first);
    }

    #[test]
    fn a_name_does_not_change_the_id() {
        let anna = named(key(1), Some("anna"));
        assert_eq!((name_of(&anna), anna.id()), ("anna", key(1).id()));
        assert_eq!(name_of(&key(1)), "");
    }
}
