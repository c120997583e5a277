//! What a script leaves: `metrics.jsonl`, read while it grows, and the files under `artifacts/`.
//!
//! All of it is a stranger's data. No link is followed, nothing but plain files is opened, and every size is bounded. The
//! functions block: callers run them on their own thread.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;

use super::{Limits, check::is_file_name};

/// MLflow's limit of a metric's key.
const KEY_BYTES: usize = 250;
/// A path below `artifacts/`; bounds the depth too.
const PATH_BYTES: usize = 1024;

/// A value of a metric as the script wrote it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct MetricLine {
    pub(super) key: String,
    pub(super) value: f64,
    #[serde(default)]
    pub(super) step: i64,
}

/// Reads `metrics.jsonl` as it grows.
pub(super) struct MetricsFile {
    path: PathBuf,
    limits: Limits,
    read: u64,
    /// A line whose end has not been read.
    partial: Vec<u8>,
    taken: usize,
    bad: usize,
    over: usize,
    failed: Option<io::Error>,
}

/// Whether a script will write more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// It runs: an unfinished line waits for its rest.
    Expected,
    /// It has ended: the last line may lack its end.
    Ended,
}

impl MetricsFile {
    /// A file that need not be there yet.
    pub(super) fn new(path: PathBuf, limits: Limits) -> MetricsFile {
        MetricsFile {
            path,
            limits,
            read: 0,
            partial: Vec::new(),
            taken: 0,
            bad: 0,
            over: 0,
            failed: None,
        }
    }

    /// The good lines since the last call.
    pub(super) fn read_on(&mut self, more: More) -> Vec<MetricLine> {
        if self.failed.is_none()
            && let Err(error) = self.fill()
        {
            self.failed = Some(error);
        }
        let complete = match more {
            More::Ended => self.partial.len(),
            More::Expected => self.partial.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1),
        };
        let lines: Vec<u8> = self.partial.drain(..complete).collect();
        let mut good = Vec::new();
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.trim_ascii().is_empty())
        {
            match serde_json::from_slice::<MetricLine>(line) {
                Ok(metric) if !is_key(&metric.key) => self.bad += 1,
                Err(_) => self.bad += 1,
                Ok(_) if self.taken == self.limits.metric_points => self.over += 1,
                Ok(metric) => {
                    self.taken += 1;
                    good.push(metric);
                }
            }
        }
        good
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut file = match open_plain(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.read))?;
        let room = self.limits.metrics_bytes - self.read;
        self.read += file.take(room).read_to_end(&mut self.partial)? as u64;
        if self.read == self.limits.metrics_bytes {
            let cut = format!("only the first {} bytes are read", self.limits.metrics_bytes);
            return Err(io::Error::other(cut));
        }
        Ok(())
    }

    /// What the user should know: lines for the log.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.bad > 0 {
            notes.push(format!(
                "metrics.jsonl: {} line(s) are not {{\"key\": text, \"value\": number, \"step\": integer}} and were left out",
                self.bad
            ));
        }
        if self.over > 0 {
            let limit = self.limits.metric_points;
            notes.push(format!(
                "metrics.jsonl: {} line(s) above the limit of {limit} were left out",
                self.over
            ));
        }
        if let Some(error) = &self.failed {
            notes.push(format!("metrics.jsonl: {error}"));
        }
        notes
    }
}

fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES).contains(&key.len()) && !key.chars().any(char::is_control)
}

/// Why a run's artifacts cannot be stored. Names are relative to `artifacts/`.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArtifactError {
    /// A name that is no text, or would not survive a URL or a terminal.
    #[error("artifact {0:?} has a name that cannot be stored")]
    Name(String),
    /// One is too large.
    #[error("artifact `{path}` is larger than {limit} bytes")]
    TooLarge {
        /// The artifact.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// All together are too large.
    #[error("the artifacts have more than {0} bytes together")]
    AllTooLarge(u64),
    /// Too many.
    #[error("there are more than {0} artifacts and folders")]
    TooMany(usize),
    /// One cannot be read.
    #[error("artifact `{path}` cannot be read")]
    Read {
        /// The artifact or folder.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The files under `artifacts/`.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Their paths below it, sorted.
    pub(super) paths: Vec<String>,
    /// Links, sockets and the like, which are left out.
    pub(super) skipped: Vec<String>,
}

/// Looks for artifacts. A folder that is missing, or is a link, has none.
pub(super) fn find_artifacts(folder: &Path, limits: &Limits) -> Result<Found, ArtifactError> {
    let mut found = Found::default();
    if !fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(found);
    }
    let (mut seen, mut total_bytes) = (0, 0);
    let mut folders = vec![String::new()];
    while let Some(inside) = folders.pop() {
        let read = |source| ArtifactError::Read {
            path: inside.clone(),
            source,
        };
        for entry in fs::read_dir(folder.join(&inside)).map_err(read)? {
            let entry = entry.map_err(read)?;
            seen += 1;
            if seen > limits.artifacts {
                return Err(ArtifactError::TooMany(limits.artifacts));
            }
            let name = entry.file_name();
            let path = match name.to_str().filter(|name| is_file_name(name)) {
                Some(name) if inside.is_empty() => name.to_owned(),
                Some(name) => format!("{inside}/{name}"),
                None => return Err(ArtifactError::Name(name.to_string_lossy().into_owned())),
            };
            if path.len() > PATH_BYTES {
                return Err(ArtifactError::Name(path));
            }
            // Of the entry itself, not of what a link points at.
            let metadata = entry.metadata().map_err(read)?;
            if metadata.is_dir() {
                folders.push(path);
            } else if !metadata.is_file() {
                found.skipped.push(path);
            } else if metadata.len() > limits.artifact_bytes {
                let limit = limits.artifact_bytes;
                return Err(ArtifactError::TooLarge { path, limit });
            } else {
                total_bytes += metadata.len();
                found.paths.push(path);
            }
        }
    }
    if total_bytes > limits.artifacts_bytes {
        return Err(ArtifactError::AllTooLarge(limits.artifacts_bytes));
    }
    found.paths.sort();
    found.skipped.sort();
    Ok(found)
}

/// Reads one of the found files.
pub(super) fn read_artifact(folder: &Path, path: &str, limits: &Limits) -> Result<Vec<u8>, ArtifactError> {
    let read = |source| ArtifactError::Read {
        path: path.to_owned(),
        source,
    };
    let limit = limits.artifact_bytes;
    let mut content = Vec::new();
    let file = open_plain(&folder.join(path)).map_err(read)?;
    // It may have grown since it was found.
    file.take(limit + 1).read_to_end(&mut content).map_err(read)?;
    if content.len() as u64 > limit {
        let path = path.to_owned();
        return Err(ArtifactError::TooLarge { path, limit });
    }
    Ok(content)
}

/// Opens a plain file; a link is an error, and a FIFO without a writer does not block.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no plain file")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn metric(key: &str, value: f64, step: i64) -> MetricLine {
        let key = key.to_owned();
        MetricLine { key, value, step }
    }

    #[test]
    fn a_line_is_read_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::new(path.clone(), Limits::default());
        assert_eq!(file.read_on(More::Expected), []);
        fs::write(&path, "{\"key\":\"a\",\"value\":1,\"step\":1}\n{\"key\":\"b\"").unwrap();
        assert_eq!(file.read_on(More::Expected), [metric("a", 1.0, 1)]);
        fs::write(
            &path,
            "{\"key\":\"a\",\"value\":1,\"step\":1}\n{\"key\":\"b\",\"value\":0.5}",
        )
        .unwrap();
        assert_eq!(file.read_on(More::Expected), []);
        assert_eq!(file.read_on(More::Ended), [metric("b", 0.5, 0)]);
        assert!(file.notes().is_empty());
    }

    #[test]
    fn bad_lines_and_lines_above_the_limit_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = "{\"key\":\"a\",\"value\":NaN}\nnot json\n{\"key\":\"\",\"value\":1}\n\n";
        fs::write(&path, format!("{lines}{}", "{\"key\":\"a\",\"value\":1}\n".repeat(3))).unwrap();
        let limits = Limits {
            metric_points: 2,
            ..Limits::default()
        };
        let mut file = MetricsFile::new(path, limits);
        assert_eq!(file.read_on(More::Ended).len(), 2);
        let notes = file.notes().join("\n");
        assert!(notes.contains("3 line(s) are not"), "{notes}");
        assert!(notes.contains("1 line(s) above the limit of 2"), "{notes}");
    }

    #[test]
    fn a_metrics_file_that_is_a_link_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        symlink("/dev/zero", &path).unwrap();
        let mut file = MetricsFile::new(path, Limits::default());
        assert_eq!(file.read_on(More::Ended), []);
        assert_eq!(file.notes().len(), 1);
    }

    #[test]
    fn links_are_left_out_and_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = folder.path().join("artifacts");
        fs::create_dir_all(artifacts.join("deep/er")).unwrap();
        fs::write(artifacts.join("deep/er/file"), "x").unwrap();
        fs::write(artifacts.join("a"), "x").unwrap();
        symlink("/etc/passwd", artifacts.join("secret")).unwrap();
        symlink("/etc", artifacts.join("etc")).unwrap();
        let found = find_artifacts(&artifacts, &Limits::default()).unwrap();
        assert_eq!(found.paths, ["a", "deep/er/file"]);
        assert_eq!(found.skipped, ["etc", "secret"]);
        let read = read_artifact(&artifacts, "secret", &Limits::default());
        assert!(matches!(read, Err(ArtifactError::Read { .. })));

        symlink("/etc", folder.path().join("link")).unwrap();
        let found = find_artifacts(&folder.path().join("link"), &Limits::default()).unwrap();
        assert!(found.paths.is_empty() && found.skipped.is_empty());
    }

    #[test]
    fn too_many_or_too_large_artifacts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), "1234").unwrap();
        }
        let find = |limits| find_artifacts(folder.path(), &limits);
        let limits = Limits::default();
        let refused = find(Limits { artifacts: 2, ..limits });
        assert!(matches!(refused, Err(ArtifactError::TooMany(2))));
        let artifact_bytes = 3;
        let refused = find(Limits {
            artifact_bytes,
            ..limits
        });
        assert!(matches!(refused, Err(ArtifactError::TooLarge { limit: 3, .. })));
        let artifacts_bytes = 11;
        let refused = find(Limits {
            artifacts_bytes,
            ..limits
        });
        assert!(matches!(refused, Err(ArtifactError::AllTooLarge(11))));
    }
}
