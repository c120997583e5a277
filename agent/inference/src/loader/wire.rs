//! What the two processes say to each other: lines of JSON, and the bytes of resources with their length before them.

use std::{
    io::{self, BufRead, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skerry_shared::{bundle::Manifest, id::ResourceName};

use crate::{EngineName, Figures};

/// The longest line: a manifest has 256 KiB at most.
const LINE_BYTES_MAX: u64 = 512 * 1024;
/// What stands for a length where the parent has no such resource.
const ABSENT: u64 = u64::MAX;

/// The first line, to the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) engine: EngineName,
    /// ONNX Runtime's library, if that is the engine.
    pub(super) onnxruntime: Option<PathBuf>,
    pub(super) manifest: Manifest,
}

/// A line from the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// It needs this resource.
    Want(ResourceName),
    /// The last line: it loads and answers rightly.
    Proved(Figures),
    /// The last line: it does not load.
    DoesNotLoad(String),
    /// The last line: it answers wrongly.
    AnswersWrongly(String),
}

/// Writes a line.
pub(super) fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads a line; `None` at the end.
pub(super) fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Writes the bytes of a resource, or that there are none.
pub(super) fn write_bytes(to: &mut impl Write, bytes: Option<&[u8]>) -> io::Result<()> {
    let length = bytes.map_or(ABSENT, |bytes| bytes.len() as u64);
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes.unwrap_or_default())?;
    to.flush()
}

/// Reads the bytes of a resource.
pub(super) fn read_bytes(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    match u64::from_le_bytes(length) {
        ABSENT => Err(io::ErrorKind::NotFound.into()),
        length => {
            let mut bytes = Vec::new();
            from.take(length).read_to_end(&mut bytes)?;
            match bytes.len() as u64 == length {
                true => Ok(bytes),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_breaks_off_is_an_error() {
        let mut pipe = Vec::new();
        write_line(&mut pipe, &Said::Want("model.onnx".parse().unwrap())).unwrap();
        write_bytes(&mut pipe, Some(b"abc")).unwrap();
        write_bytes(&mut pipe, None).unwrap();
        let mut from = &pipe[..];
        assert!(matches!(read_line(&mut from).unwrap(), Some(Said::Want(name)) if name.as_str() == "model.onnx"));
        assert_eq!(read_bytes(&mut from).unwrap(), b"abc");
        assert_eq!(read_bytes(&mut from).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(read_line::<Said>(&mut from).unwrap().is_none());
        let mut torn = &pipe[..pipe.len() - 9];
        read_line::<Said>(&mut torn).unwrap();
        assert_eq!(read_bytes(&mut torn).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
