//! The whole log as JSON lines, and the check of it that needs nothing else: no server, no database.
//!
//! The first line names the log, then come the checkpoints, then the entries. Invariant: the check believes no line; it hashes
//! every entry itself, and reads one line at a time.

use std::io::{BufRead, Read};

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use skerry_shared::dsse::{Envelope, Signers};

use super::{
    chain::{Break, Checkpoint, Entry, Follower, Verified},
    checkpoint::{self, CheckpointError},
    store,
};
use crate::db::{Db, DbError};

/// Entries read at once.
const PAGE: u32 = 500;
/// The longest line: an entry with all its details at their limits, four bytes a character.
const LINE_MAX: u64 = 1024 * 1024;
/// The most checkpoints of one export: one an hour for a century.
const CHECKPOINTS_MAX: usize = 1_000_000;

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    /// The log, and its length when the export began.
    Log {
        origin: String,
        size: u64,
    },
    Checkpoint(Envelope),
    Entry(Entry),
}

impl Line {
    fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a line has string keys only, so it always encodes");
        line.push(b'\n');
        line
    }
}

/// The log as it is now, as a stream of lines.
///
/// # Errors
/// The database's. The stream fails when it can be read no further.
pub async fn stream(db: &Db) -> Result<impl Stream<Item = Result<Bytes, DbError>> + use<>, DbError> {
    let (head, size) = db
        .read(|conn| {
            let origin = store::origin(conn)?;
            let (size, _) = store::head(conn)?;
            let mut head = Line::Log { origin, size }.encode();
            for envelope in store::checkpoints(conn, size)? {
                let envelope = Envelope::from_json(&envelope).map_err(|error| DbError::Corrupt(error.to_string()))?;
                head.extend(Line::Checkpoint(envelope).encode());
            }
            Ok::<_, DbError>((head, size))
        })
        .await?;
    let db = db.clone();
    let entries = stream::try_unfold(0, move |after| {
        let db = db.clone();
        async move {
            let page = db.read(move |conn| store::following(conn, after, PAGE)).await?;
            let page: Vec<Entry> = page.into_iter().filter(|entry| entry.seq <= size).collect();
            let Some(last) = page.last().map(|entry| entry.seq) else {
                return Ok(None);
            };
            let lines: Vec<u8> = page.into_iter().flat_map(|entry| Line::Entry(entry).encode()).collect();
            Ok(Some((Bytes::from(lines), last)))
        }
    });
    let head = stream::once(std::future::ready(Ok(Bytes::from(head))));
    Ok(futures_util::StreamExt::chain(head, entries))
}

/// Why an export was refused.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error("cannot read the export")]
    Read(#[source] std::io::Error),
    /// A line is no line of an export.
    #[error("line {0} of the export is damaged: it is not what an export has there")]
    Line(u64),
    /// It ends before the end.
    #[error("entry {} is missing: the export breaks off there, and says itself that it has {size}", last + 1)]
    BrokeOff {
        /// The last entry.
        last: u64,
        /// The entries that it should have.
        size: u64,
    },
    /// A checkpoint has no good signature.
    #[error("line {line} of the export")]
    Checkpoint {
        /// The line.
        line: u64,
        /// Why.
        source: CheckpointError,
    },
    /// The log is not whole.
    #[error(transparent)]
    Broken(#[from] Break),
}

impl ExportError {
    /// The first entry that is certainly wrong, or missing.
    pub fn seq(&self) -> Option<u64> {
        match self {
            ExportError::Broken(found) => found.seq(),
            ExportError::BrokeOff { last, .. } => Some(last + 1),
            ExportError::Read(_) | ExportError::Line(_) | ExportError::Checkpoint { .. } => None,
        }
    }
}

/// What an export is checked against.
#[derive(Debug, Default)]
pub struct Against {
    /// Checkpoints that were kept elsewhere.
    pub kept: Vec<Checkpoint>,
    /// The time keys of the trusted roots; with none, the signatures of the export's own checkpoints are not checked, and
    /// what they say is not used.
    pub signers: Vec<Signers>,
}

/// Checks an export.
///
/// # Errors
/// [`ExportError`] naming the first thing that is wrong.
pub fn verify(mut lines: impl BufRead, against: Against) -> Result<Verified, ExportError> {
    let mut number = 0;
    let Some(Line::Log { origin, size }) = next(&mut lines, &mut number)? else {
        return Err(ExportError::Line(1));
    };
    let mut checkpoints = against.kept;
    let mut line = next(&mut lines, &mut number)?;
    while let Some(Line::Checkpoint(envelope)) = line {
        if checkpoints.len() >= CHECKPOINTS_MAX {
            return Err(ExportError::Line(number));
        }
        if !against.signers.is_empty() {
            let opened = checkpoint::open(&envelope, &against.signers);
            checkpoints.push(opened.map_err(|source| ExportError::Checkpoint { line: number, source })?);
        }
        line = next(&mut lines, &mut number)?;
    }
    let mut follower = Follower::new(&origin, checkpoints)?;
    while let Some(entry) = line {
        let Line::Entry(entry) = entry else {
            return Err(ExportError::Line(number));
        };
        follower.follow(&entry)?;
        line = next(&mut lines, &mut number)?;
    }
    let verified = follower.end()?;
    if verified.size < size {
        return Err(ExportError::BrokeOff {
            last: verified.size,
            size,
        });
    }
    Ok(verified)
}

/// The next line; `None` at the end. A line must be as it was written: one that says a thing twice is damaged.
fn next(lines: &mut impl BufRead, number: &mut u64) -> Result<Option<Line>, ExportError> {
    let mut bytes = Vec::new();
    let read = lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes);
    if read.map_err(ExportError::Read)? == 0 {
        return Ok(None);
    }
    *number += 1;
    let line: Line = serde_json::from_slice(&bytes).map_err(|_| ExportError::Line(*number))?;
    if line.encode() != bytes {
        return Err(ExportError::Line(*number));
    }
    Ok(Some(line))
}
