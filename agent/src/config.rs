//! The agent's configuration file: TOML, every table and key optional. Each module owns the type of its table; this one reads
//! the file.
//!
//! What belongs to one start of the agent (folders, addresses) is a word of its command line instead.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::loading;

/// Where the file is looked for when the command line names none. It may be absent.
const DEFAULT_PATH: &str = "/etc/skerry/agent.toml";

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// `[inference]`: engines, and what loading a model may take.
    pub(crate) inference: loading::Config,
}

/// Why the file was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} has a mistake: {reason}")]
    Parse { path: PathBuf, reason: String },
}

impl Config {
    /// Reads the file at `path`, or the one in `/etc` if there is one.
    ///
    /// # Errors
    /// [`ConfigError`]: a file that is there must be right.
    pub(crate) fn read(path: Option<&Path>) -> Result<Config, ConfigError> {
        let (path, may_lack) = match path {
            Some(path) => (path, false),
            None => (Path::new(DEFAULT_PATH), true),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text).map_err(|reason| ConfigError::Parse {
                path: path.to_owned(),
                reason,
            }),
            Err(error) if may_lack && error.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.inference.check()?;
        Ok(config)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_inference::EngineChoice;

    use super::*;

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.inference.engine, EngineChoice::Auto);
        assert_eq!(config.inference.load_seconds, loading::Config::default().load_seconds);
    }

    #[test]
    fn every_key_is_read_and_an_unknown_one_is_a_mistake() {
        let config = Config::parse(
            "[inference]\nengine = \"onnxruntime\"\nonnxruntime = \"/opt/libonnxruntime.so\"\nmodel_memory_bytes = 268435456\nload_seconds = 9\n",
        )
        .unwrap();
        assert_eq!(config.inference.engine, EngineChoice::OnnxRuntime);
        assert_eq!(config.inference.model_memory_bytes, Some(268_435_456));
        assert_eq!(config.inference.load_seconds, 9);
        for wrong in [
            "[inference]\nmodel_memory = 1\n",
            "[inference]\nengine = \"fastest\"\n",
            "[inference]\nload_seconds = 0\n",
            "[inference]\nmodel_memory_bytes = 1000\n",
            "inference = 1",
            "[outference]",
        ] {
            assert!(Config::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let error = Config::read(Some(&folder.path().join("agent.toml"))).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }));
    }
}
