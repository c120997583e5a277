//! The pure half of the audit log: what is hashed, how entries are chained, and where a chain breaks. No I/O, no clock.
//!
//! Invariant: two different entries never have the same hashed bytes, and no bytes hashed here mean anything elsewhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skerry_shared::digest::{Digest, Hasher};
use utoipa::ToSchema;

/// Stands before everything that is hashed for a log's beginning.
const BEGINNING: &[u8] = b"skerry audit log v1\n";
/// Stands before everything that is hashed for an entry.
const ENTRY: &[u8] = b"skerry audit entry v1\n";

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// Its place, from 1 and without gaps.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// The control plane's time, in UTC milliseconds.
    pub at_ms: u64,
    /// Who did it: a user, a token, `device NAME` or `control plane`.
    pub actor: String,
    /// What was done, for example `rollout.pause`.
    pub action: String,
    /// To what, for example `rollout/3`.
    pub object: String,
    /// What else is to be said; often `before` and `after`.
    pub details: BTreeMap<String, String>,
    /// The hash of the entry before; the first one has that of the log's origin.
    #[schema(value_type = String)]
    pub prev_hash: Digest,
    /// SHA-256 over all of the above.
    #[schema(value_type = String)]
    pub hash: Digest,
}

impl Entry {
    /// The hash that the entry must have: every field in order, each text and list with its length before it.
    pub fn computed_hash(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(ENTRY);
        hasher.update(&self.seq.to_be_bytes());
        hasher.update(&self.at_ms.to_be_bytes());
        for text in [&self.actor, &self.action, &self.object] {
            add_text(&mut hasher, text);
        }
        hasher.update(&(self.details.len() as u64).to_be_bytes());
        for (key, value) in &self.details {
            add_text(&mut hasher, key);
            add_text(&mut hasher, value);
        }
        hasher.update(self.prev_hash.as_bytes());
        hasher.finish()
    }
}

fn add_text(hasher: &mut Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_be_bytes());
    hasher.update(text.as_bytes());
}

/// The hash before the first entry of a log.
pub fn beginning(origin: &str) -> Digest {
    Digest::of(&[BEGINNING, origin.as_bytes()].concat())
}

/// What a signed checkpoint states: at `at_ms`, the log had `size` entries, and the last one had the hash `head`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditCheckpoint)]
pub struct Checkpoint {
    /// The log.
    pub origin: String,
    /// Its entries.
    pub size: u64,
    /// The hash of the last one.
    #[schema(value_type = String)]
    pub head: Digest,
    /// UTC milliseconds.
    pub at_ms: u64,
}

/// The first thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// An entry is not where it belongs.
    #[error("entry {expected} is missing: entry {found} stands in its place")]
    OutOfPlace {
        /// The place.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// An entry's content does not have the entry's hash.
    #[error("entry {0} was changed: its content does not have its hash")]
    Changed(u64),
    /// An entry does not follow the one before it.
    #[error("entry {0} does not follow the one before it: one of the two was exchanged")]
    Unchained(u64),
    /// A checkpoint knows more entries than there are.
    #[error(
        "entry {first_missing} is missing: the log ends before it, and had {size} entries when a checkpoint was signed"
    )]
    Truncated {
        /// The first entry that is not there.
        first_missing: u64,
        /// The entries at the checkpoint.
        size: u64,
    },
    /// The chain is whole, but not the one that a checkpoint was signed for.
    #[error(
        "the log was written anew: entry {size} is not the one that a checkpoint was signed for; the first false entry is one of {} to {size}",
        good + 1
    )]
    Rewritten {
        /// The last entry that a checkpoint confirms; 0 if none does.
        good: u64,
        /// The entries at the checkpoint.
        size: u64,
    },
    /// A checkpoint is of another log.
    #[error("the checkpoint is of the log `{0}`, which is another one")]
    OtherLog(String),
}

impl Break {
    /// The first entry that is certainly wrong, or missing.
    pub fn seq(&self) -> Option<u64> {
        match self {
            Break::OutOfPlace { expected: seq, .. }
            | Break::Changed(seq)
            | Break::Unchained(seq)
            | Break::Truncated { first_missing: seq, .. }
            | Break::Rewritten { size: seq, .. } => Some(*seq),
            Break::OtherLog(_) => None,
        }
    }
}

/// Follows a log entry by entry. It remembers only the last hash, and what the given checkpoints say.
#[derive(Clone, Debug)]
pub struct Follower {
    origin: String,
    size: u64,
    head: Digest,
    /// By size, the smallest first; those that were met are gone.
    checkpoints: Vec<Checkpoint>,
    /// The last entry that a checkpoint has confirmed.
    good: u64,
    confirmed: usize,
}

impl Follower {
    /// Begins with an empty log. The checkpoints' signatures are the caller's business.
    ///
    /// # Errors
    /// [`Break::OtherLog`].
    pub fn new(origin: &str, mut checkpoints: Vec<Checkpoint>) -> Result<Follower, Break> {
        if let Some(other) = checkpoints.iter().find(|checkpoint| checkpoint.origin != origin) {
            return Err(Break::OtherLog(other.origin.chars().take(200).collect()));
        }
        // From the end: the next one to meet is the last of the list.
        checkpoints.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size));
        let mut follower = Follower {
            origin: origin.to_owned(),
            size: 0,
            head: beginning(origin),
            checkpoints,
            good: 0,
            confirmed: 0,
        };
        follower.meet()?;
        Ok(follower)
    }

    /// Takes the next entry.
    ///
    /// # Errors
    /// [`Break`], when it is not the one that belongs here.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Break> {
        let expected = self.size + 1;
        if entry.seq != expected {
            return Err(Break::OutOfPlace {
                expected,
                found: entry.seq,
            });
        }
        if entry.computed_hash() != entry.hash {
            return Err(Break::Changed(entry.seq));
        }
        if entry.prev_hash != self.head {
            return Err(Break::Unchained(entry.seq));
        }
        (self.size, self.head) = (entry.seq, entry.hash);
        self.meet()
    }

    /// Compares with the checkpoints of this size.
    fn meet(&mut self) -> Result<(), Break> {
        while let Some(checkpoint) = self.checkpoints.pop_if(|checkpoint| checkpoint.size == self.size) {
            if checkpoint.head != self.head {
                let (good, size) = (self.good, self.size);
                return Err(Break::Rewritten { good, size });
            }
            self.good = self.size;
            self.confirmed += 1;
        }
        Ok(())
    }

    /// Ends the log.
    ///
    /// # Errors
    /// [`Break::Truncated`], when a checkpoint knows more entries.
    pub fn end(self) -> Result<Verified, Break> {
        if let Some(missed) = self.checkpoints.last() {
            return Err(Break::Truncated {
                first_missing: self.size + 1,
                size: missed.size,
            });
        }
        Ok(Verified {
            origin: self.origin,
            size: self.size,
            head: self.head,
            confirmed_size: self.good,
            checkpoints: self.confirmed,
        })
    }
}

/// A log that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The log.
    pub origin: String,
    /// Its entries.
    pub size: u64,
    /// The hash of the last one.
    pub head: Digest,
    /// Entries up to this one are confirmed by a signed checkpoint; the rest only by the chain.
    pub confirmed_size: u64,
    /// How many checkpoints were met.
    pub checkpoints: usize,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORIGIN: &str = "skerry/test";

    fn log(length: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut prev_hash = beginning(ORIGIN);
        for seq in 1..=length {
            let mut entry = Entry {
                seq,
                at_ms: 1000 + seq,
                actor: "ada".to_owned(),
                action: "rollout.pause".to_owned(),
                object: format!("rollout/{seq}"),
                details: [("before".to_owned(), "running".to_owned())].into(),
                prev_hash,
                hash: prev_hash,
            };
            entry.hash = entry.computed_hash();
            prev_hash = entry.hash;
            entries.push(entry);
        }
        entries
    }

    fn checkpoint(entries: &[Entry], size: usize) -> Checkpoint {
        Checkpoint {
            origin: ORIGIN.to_owned(),
            size: size as u64,
            head: size.checked_sub(1).map_or(beginning(ORIGIN), |last| entries[last].hash),
            at_ms: 0,
        }
    }

    fn verify(entries: &[Entry], checkpoints: Vec<Checkpoint>) -> Result<Verified, Break> {
        let mut follower = Follower::new(ORIGIN, checkpoints)?;
        entries.iter().try_for_each(|entry| follower.follow(entry))?;
        follower.end()
    }

    #[test]
    fn a_whole_log_is_accepted_and_says_how_far_it_is_confirmed() {
        let entries = log(5);
        let checkpoints = vec![
            checkpoint(&entries, 3),
            checkpoint(&entries, 0),
            checkpoint(&entries, 3),
        ];
        let verified = verify(&entries, checkpoints).unwrap();
        assert_eq!(
            (verified.size, verified.confirmed_size, verified.checkpoints),
            (5, 3, 3)
        );
    }

    #[test]
    fn a_deleted_entry_is_named() {
        let mut entries = log(5);
        entries.remove(2);
        let found = verify(&entries, vec![]).unwrap_err();
        assert_eq!(found, Break::OutOfPlace { expected: 3, found: 4 });
    }

    #[test]
    fn two_entries_that_changed_places_are_named() {
        let mut entries = log(5);
        entries.swap(1, 3);
        let found = verify(&entries, vec![]).unwrap_err();
        assert_eq!(found, Break::OutOfPlace { expected: 2, found: 4 });
        // With their numbers exchanged too.
        (entries[1].seq, entries[3].seq) = (2, 4);
        assert_eq!(verify(&entries, vec![]).unwrap_err(), Break::Changed(2));
        // And hashed anew.
        entries[1].hash = entries[1].computed_hash();
        assert_eq!(verify(&entries, vec![]).unwrap_err(), Break::Unchained(2));
    }

    #[test]
    fn an_entry_from_another_log_does_not_begin_this_one() {
        let mut entries = log(1);
        entries[0].prev_hash = beginning("skerry/other");
        entries[0].hash = entries[0].computed_hash();
        assert_eq!(verify(&entries, vec![]).unwrap_err(), Break::Unchained(1));
    }

    #[test]
    fn a_truncated_log_is_found_by_a_checkpoint_that_was_kept() {
        let entries = log(5);
        let kept = vec![checkpoint(&entries, 4)];
        assert_eq!(verify(&entries[..3], vec![]).unwrap().size, 3);
        let found = verify(&entries[..3], kept).unwrap_err();
        assert_eq!(
            found,
            Break::Truncated {
                first_missing: 4,
                size: 4
            }
        );
    }

    #[test]
    fn a_log_that_was_written_anew_is_found_by_a_checkpoint_that_was_kept() {
        let entries = log(5);
        let kept = vec![checkpoint(&entries, 2), checkpoint(&entries, 4)];
        let mut forged = entries[..2].to_vec();
        for mut entry in entries[2..].iter().cloned() {
            entry.actor = "eve".to_owned();
            entry.prev_hash = forged.last().unwrap().hash;
            entry.hash = entry.computed_hash();
            forged.push(entry);
        }
        assert_eq!(verify(&forged, vec![]).unwrap().size, 5);
        let found = verify(&forged, kept).unwrap_err();
        assert_eq!(found, Break::Rewritten { good: 2, size: 4 });
    }

    #[test]
    fn a_checkpoint_of_another_log_is_refused() {
        let mut other = checkpoint(&[], 0);
        other.origin = "skerry/other".to_owned();
        assert!(matches!(verify(&[], vec![other]), Err(Break::OtherLog(_))));
    }

    #[test]
    fn texts_cannot_be_moved_between_fields() {
        let entry = |actor: &str, action: &str| {
            let mut entry = log(1).remove(0);
            (entry.actor, entry.action) = (actor.to_owned(), action.to_owned());
            entry.computed_hash()
        };
        assert_ne!(entry("ab", "c"), entry("a", "bc"));
    }

    proptest! {
        #[test]
        fn any_change_of_any_field_is_found(seq in 1..=6_u64, field in 0..8_usize, at in any::<prop::sample::Index>(), bit in 0..7_u8) {
            let mut entries = log(6);
            let entry = &mut entries[(seq - 1) as usize];
            let flip_text = |text: &mut String| {
                let mut bytes = std::mem::take(text).into_bytes();
                let place = at.index(bytes.len());
                bytes[place] ^= 1 << bit;
                *text = String::from_utf8(bytes).unwrap();
            };
            let flip = |digest: &mut Digest| {
                let mut bytes = *digest.as_bytes();
                bytes[at.index(32)] ^= 1 << bit;
                *digest = Digest::from_bytes(bytes);
            };
            match field {
                0 => entry.seq ^= 1 << bit,
                1 => entry.at_ms ^= 1 << bit,
                2 => flip_text(&mut entry.actor),
                3 => flip_text(&mut entry.action),
                4 => flip_text(&mut entry.object),
                5 => entry.details.values_mut().for_each(flip_text),
                6 => flip(&mut entry.prev_hash),
                _ => flip(&mut entry.hash),
            }
            prop_assert_eq!(verify(&entries, vec![]).unwrap_err().seq(), Some(seq));
        }
    }
}
