//! The text of an API token: `skp_<id>_<secret>_<checksum>`, all in hex.
//!
//! The prefix is for programs that look for secrets where none belong; the checksum tells a token that was cut off from one
//! that is not known, without a look into the database. Invariant: only the digest of the text is stored.

use std::{fmt, str::FromStr};

use skerry_shared::digest::Digest;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What every token begins with.
const PREFIX: &str = "skp_";
/// Enough that no two tokens of a control plane share an id.
const ID_BYTES: usize = 8;
/// 256 bits: none is found by trying, so that a fast hash is enough.
const SECRET_BYTES: usize = 32;

/// The public part of a token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(String);

/// A text that is no token's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token has this id: 16 hex digits, as `skerry token list` shows them")]
pub struct InvalidTokenId;

impl TokenId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = InvalidTokenId;
    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        if text.len() == 2 * ID_BYTES && is_hex(text) {
            Ok(TokenId(text.to_owned()))
        } else {
            Err(InvalidTokenId)
        }
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token as its owner has it.
pub(super) struct Presented {
    pub(super) id: TokenId,
    hash: Digest,
}

impl Presented {
    /// Reads a token; `None` for what is none, or one that was cut off.
    pub(super) fn parse(text: &str) -> Option<Presented> {
        let (body, checksum) = text.rsplit_once('_')?;
        let (id, secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
        let whole = secret.len() == 2 * SECRET_BYTES && is_hex(secret) && checksum == self::checksum(body);
        whole.then_some(Presented {
            id: id.parse().ok()?,
            hash: Digest::of(text.as_bytes()),
        })
    }

    /// True if it is the token whose digest is stored. It takes as long for every digest.
    pub(super) fn is(&self, stored: &[u8; 32]) -> bool {
        self.hash.as_bytes().ct_eq(stored).into()
    }
}

/// A new token: its id, the digest to store, and the text to show once.
pub(super) struct Fresh {
    pub(super) id: TokenId,
    pub(super) hash: Digest,
    pub(super) text: Zeroizing<String>,
}

impl Fresh {
    /// Makes one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn make() -> Result<Fresh, getrandom::Error> {
        let mut id = [0; ID_BYTES];
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        getrandom::fill(&mut id)?;
        getrandom::fill(secret.as_mut())?;
        let id = TokenId(hex::encode(id));
        let body = Zeroizing::new(format!("{PREFIX}{id}_{}", &*Zeroizing::new(hex::encode(&secret))));
        let text = Zeroizing::new(format!("{}_{}", &*body, checksum(&body)));
        Ok(Fresh {
            id,
            hash: Digest::of(text.as_bytes()),
            text,
        })
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32c::crc32c(body.as_bytes()))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_a_damaged_one_is_told_apart() {
        let fresh = Fresh::make().unwrap();
        let read = Presented::parse(&fresh.text).unwrap();
        assert_eq!(read.id, fresh.id);
        assert!(read.is(fresh.hash.as_bytes()));
        assert!(!read.is(Fresh::make().unwrap().hash.as_bytes()));
        let mut damaged = fresh.text.to_string();
        damaged.truncate(damaged.len() - 1);
        assert!(Presented::parse(&damaged).is_none());
        let first_digit = PREFIX.len() + 2 * ID_BYTES + 1;
        let other = if fresh.text.as_bytes()[first_digit] == b'0' {
            "1"
        } else {
            "0"
        };
        let mut mistyped = fresh.text.to_string();
        mistyped.replace_range(first_digit..=first_digit, other);
        assert!(Presented::parse(&mistyped).is_none());
        for text in [
            "",
            "skp_",
            "skp___",
            "skp_wrong",
            "Bearer x",
            "skp_0123456789abcdef__00000000",
        ] {
            assert!(Presented::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_secret_scanner_finds_a_token_by_its_form() {
        let text = Fresh::make().unwrap().text;
        let parts: Vec<&str> = text.split('_').collect();
        assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [3, 16, 64, 8]);
        assert_eq!(parts[0], "skp");
    }
}
