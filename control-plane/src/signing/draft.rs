//! A metadata file on its way from key holder to key holder: who has signed, who may, and whether it is enough.
//!
//! Not the file's way itself. Invariant: a signature is counted only if it verifies, and once per key.

use std::num::NonZeroU32;

use skerry_tuf::{Error, KeyId, KeySet, Limits, Metadata, Role, Root, Signed, SigningKey, Targets, add_signature};

use super::role::name_of;

/// A metadata file that may lack signatures.
#[derive(Debug)]
pub enum Draft {
    /// A root: it needs a threshold of the root before it and of its own keys.
    Root(Box<Signed<Root>>),
    /// Targets metadata.
    Targets(Box<Signed<Targets>>),
}

/// One threshold that a draft must meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Whose keys: for example `root version 2`.
    pub keys_of: String,
    /// Keys with a good signature.
    pub signed: Vec<Holder>,
    /// Keys without.
    pub missing: Vec<Holder>,
    /// How many must sign.
    pub threshold: NonZeroU32,
}

/// A key for people to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub id: KeyId,
    /// Its name, which may be empty.
    pub name: String,
}

impl Demand {
    /// True when enough keys have signed.
    pub fn is_met(&self) -> bool {
        self.signed.len() >= self.threshold.get() as usize
    }
}

impl Draft {
    /// Reads a draft; nothing in it is trusted.
    ///
    /// # Errors
    /// It is neither root nor targets metadata.
    pub fn parse(bytes: &[u8]) -> Result<Draft, Error> {
        let limits = Limits::default();
        match Signed::parse(bytes, &limits) {
            Ok(root) => Ok(Draft::Root(Box::new(root))),
            Err(Error::WrongType { .. }) => {
                Signed::parse(bytes, &limits).map(|targets| Draft::Targets(Box::new(targets)))
            }
            Err(error) => Err(error),
        }
    }

    /// The role, for people.
    pub fn role(&self) -> Role {
        match self {
            Draft::Root(_) => Role::Root,
            Draft::Targets(_) => Role::Targets,
        }
    }

    /// The version.
    pub fn version(&self) -> u64 {
        match self {
            Draft::Root(draft) => draft.unverified().version,
            Draft::Targets(draft) => draft.unverified().version,
        }
    }

    /// What is needed and what is there, under the trusted root.
    pub fn demands(&self, trusted: &Root) -> Vec<Demand> {
        match self {
            Draft::Root(draft) => {
                let new = draft.unverified();
                let mut demands = Vec::new();
                if new.version > trusted.version {
                    demands.push(demand(draft, &trusted.keys_of(Role::Root), trusted.version));
                }
                demands.push(demand(draft, &new.keys_of(Role::Root), new.version));
                demands
            }
            Draft::Targets(draft) => vec![demand(draft, &trusted.keys_of(Role::Targets), trusted.version)],
        }
    }

    /// Returns `bytes`, which this draft was made of, with the signatures of those `keys` that it asks for, and their ids.
    ///
    /// # Errors
    /// The file would become too large.
    pub fn sign(&self, bytes: &[u8], trusted: &Root, keys: &[SigningKey]) -> Result<(Vec<u8>, Vec<KeyId>), Error> {
        let wanted: Vec<KeyId> = self
            .demands(trusted)
            .into_iter()
            .flat_map(|demand| demand.signed.into_iter().chain(demand.missing))
            .map(|holder| holder.id)
            .collect();
        let (mut bytes, mut signed) = (bytes.to_vec(), Vec::new());
        for key in keys.iter().filter(|key| wanted.contains(&key.id())) {
            bytes = match self {
                Draft::Root(_) => add_signature::<Root>(&bytes, key)?,
                Draft::Targets(_) => add_signature::<Targets>(&bytes, key)?,
            };
            signed.push(key.id());
        }
        Ok((bytes, signed))
    }
}

fn demand<T: Metadata>(draft: &Signed<T>, keys: &KeySet, root_version: u64) -> Demand {
    let mut demand = Demand {
        keys_of: format!("the {} keys of root version {root_version}", T::ROLE),
        signed: Vec::new(),
        missing: Vec::new(),
        threshold: keys.threshold,
    };
    for (id, key) in &keys.keys {
        let holder = Holder {
            id: id.clone(),
            name: name_of(key).to_owned(),
        };
        let alone = KeySet {
            keys: [(id.clone(), key.clone())].into(),
            threshold: NonZeroU32::MIN,
        };
        match draft.check(&alone, root_version) {
            Ok(()) => demand.signed.push(holder),
            Err(_) => demand.missing.push(holder),
        }
    }
    demand
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_tuf::{NewRoot, UnixTime, new_root, new_targets, sign_metadata};

    use super::*;
    use crate::signing::role::{self, KeyRole};

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn root(root_seeds: &[u8], threshold: u32) -> Root {
        let threshold = NonZeroU32::new(threshold).unwrap();
        let set = |seeds: &[u8], threshold| KeySet::new(seeds.iter().map(|seed| key(*seed).public_key()), threshold);
        let single = |seed| set(&[seed], NonZeroU32::MIN);
        new_root(NewRoot {
            version: 1,
            expires: UnixTime::from_seconds(0),
            root: set(root_seeds, threshold),
            timestamp: single(2),
            snapshot: single(3),
            targets: set(&[4, 14, 24], threshold),
            assignment: Some(single(5)),
            time: Some(single(6)),
        })
    }

    fn missing(demands: &[Demand]) -> Vec<bool> {
        demands.iter().map(Demand::is_met).collect()
    }

    #[test]
    fn a_root_needs_the_old_and_the_new_threshold() {
        let trusted = root(&[1, 11, 21], 2);
        let mut next = role::successor(&trusted, UnixTime::from_seconds(1));
        let old = key(1).id();
        role::replace(&mut next, KeyRole::Root, Some(old.as_str()), key(31).public_key()).unwrap();
        let unsigned = sign_metadata(&next, []).unwrap();
        let step = |bytes: &[u8], seeds: &[u8]| {
            let keys: Vec<_> = seeds.iter().map(|seed| key(*seed)).collect();
            let (bytes, _) = Draft::parse(bytes).unwrap().sign(bytes, &trusted, &keys).unwrap();
            let met = missing(&Draft::parse(&bytes).unwrap().demands(&trusted));
            (bytes, met)
        };
        // 1 counts for the old root only, 31 for the new one only, 11 for both.
        let (bytes, met) = step(&unsigned, &[1]);
        assert_eq!(met, [false, false]);
        let (bytes, met) = step(&bytes, &[31]);
        assert_eq!(met, [false, false]);
        let (_, met) = step(&bytes, &[11]);
        assert_eq!(met, [true, true]);
        let (_, met) = step(&unsigned, &[1, 11]);
        assert_eq!(met, [true, false]);
    }

    #[test]
    fn a_key_that_the_draft_does_not_ask_for_does_not_sign() {
        let trusted = root(&[1], 1);
        let bytes = sign_metadata(&new_targets(2, UnixTime::from_seconds(1)), []).unwrap();
        let draft = Draft::parse(&bytes).unwrap();
        let (bytes, signed) = draft.sign(&bytes, &trusted, &[key(1), key(9), key(14)]).unwrap();
        assert_eq!(signed, [key(14).id()]);
        let demands = Draft::parse(&bytes).unwrap().demands(&trusted);
        assert_eq!((demands[0].signed.len(), demands[0].missing.len()), (1, 2));
    }

    #[test]
    fn signing_twice_counts_once() {
        let trusted = root(&[1, 11], 2);
        let next = role::successor(&trusted, UnixTime::from_seconds(1));
        let mut bytes = sign_metadata(&next, []).unwrap();
        for _ in 0..2 {
            (bytes, _) = Draft::parse(&bytes).unwrap().sign(&bytes, &trusted, &[key(1)]).unwrap();
        }
        let demands = Draft::parse(&bytes).unwrap().demands(&trusted);
        assert_eq!(missing(&demands), [false, false]);
    }

    #[test]
    fn other_metadata_is_no_draft() {
        let timestamp = br#"{"signatures":[],"signed":{"_type":"timestamp","spec_version":"1.0.31"}}"#;
        assert_eq!(Draft::parse(timestamp).unwrap_err().code(), "wrong_type");
    }
}
