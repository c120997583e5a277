//! How a verified bundle comes into memory: first in a process of its own, which may die of it, then here.
//!
//! What that process has measured is kept by the bundle's digest, so that a start of the agent and a rollback load at once, with the
//! engine that was chosen. Invariant: a bundle that was never proved apart by this agent is not loaded here.

mod kept;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use serde::Deserialize;
use skerry_inference::{
    EngineChoice, Engines, LoadedBundle, Loader, LoaderError, LoaderLimits, ProveError, Read, Refused, Runtime, choose,
};
use skerry_shared::{bundle::Manifest, desired::ReportedError, digest::Digest};

pub(crate) use self::kept::Kept;
use crate::proc_text;

/// The time that loading may take: a large model on a slow card takes a minute.
const LOAD_SECONDS: u64 = 300;
/// Less is not even enough for the program itself.
const MODEL_MEMORY_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// The limit where the kernel does not say what is free: 1 GiB.
const MODEL_MEMORY_BYTES_UNKNOWN: u64 = 1024 * 1024 * 1024;

/// `[inference]` of the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Which engines may serve: `auto`, `tract` or `onnxruntime`.
    pub(crate) engine: EngineChoice,
    /// ONNX Runtime's shared library; without it, where systems keep it.
    pub(crate) onnxruntime: Option<PathBuf>,
    /// The most memory that loading a bundle may take; without it, three quarters of what is free then.
    pub(crate) model_memory_bytes: Option<u64>,
    /// The longest that loading a bundle may take with one engine.
    pub(crate) load_seconds: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            engine: EngineChoice::Auto,
            onnxruntime: None,
            model_memory_bytes: None,
            load_seconds: LOAD_SECONDS,
        }
    }
}

impl Config {
    /// Says what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.load_seconds == 0 {
            return Err("`load_seconds` is 0: nothing loads in no time".to_owned());
        }
        match self.model_memory_bytes {
            Some(bytes) if bytes < MODEL_MEMORY_BYTES_MIN => Err(format!(
                "`model_memory_bytes` is {bytes}; less than {MODEL_MEMORY_BYTES_MIN} loads nothing"
            )),
            _ => Ok(()),
        }
    }

    /// The engines that may serve.
    pub(crate) fn engines(&self) -> Engines {
        Engines::find(self.engine, self.onnxruntime.clone())
    }

    fn limits(&self) -> LoaderLimits {
        let free = || Some(available_bytes()? / 4 * 3);
        let memory_bytes = self.model_memory_bytes.or_else(free);
        LoaderLimits {
            memory_bytes: memory_bytes
                .unwrap_or(MODEL_MEMORY_BYTES_UNKNOWN)
                .max(MODEL_MEMORY_BYTES_MIN),
            time: Duration::from_secs(self.load_seconds),
        }
    }
}

/// Where bundles are loaded first. An agent has one.
#[cfg_attr(test, expect(clippy::large_enum_variant, reason = "the other variant is for tests"))]
pub(crate) enum Loading {
    /// In this process alone: in tests that start a thousand devices on simulated disks.
    #[cfg(test)]
    Here,
    /// In a process of its own, then here.
    Apart {
        /// The words that make this program load apart.
        words: Vec<OsString>,
        config: Config,
        kept: Kept,
    },
}

impl Loading {
    /// Loads a bundle and proves it on its golden vectors, beside whatever serves.
    pub(crate) fn load(
        &mut self,
        runtime: &Runtime,
        manifest: &Manifest,
        index: Digest,
        read: &mut Read<'_>,
    ) -> Result<LoadedBundle, ReportedError> {
        match self {
            #[cfg(test)]
            Loading::Here => LoadedBundle::load_best(runtime, manifest, read).map_err(failed),
            Loading::Apart { words, config, kept } => {
                if let Some(chosen) = kept.get(index) {
                    let loaded = LoadedBundle::load_proved(runtime, manifest, chosen.engine, read);
                    return Ok(loaded.map_err(failed)?.with_measured(chosen.measured.clone()));
                }
                let loader = Loader {
                    // Also after an update has put another file in its place.
                    program: PathBuf::from("/proc/self/exe"),
                    words: words.clone(),
                    limits: config.limits(),
                };
                let library = runtime.engines().onnxruntime();
                let chosen = choose(runtime.engines(), |engine| {
                    loader.prove(manifest, engine, library.map(PathBuf::from), read)
                });
                let chosen = chosen.map_err(refused)?;
                // The same bytes: they are read by digest again.
                let loaded = LoadedBundle::load_proved(runtime, manifest, chosen.engine, read).map_err(failed)?;
                kept.keep(index, &chosen);
                Ok(loaded.with_measured(chosen.measured))
            }
        }
    }
}

fn failed(error: ProveError) -> ReportedError {
    let code = match &error {
        ProveError::Load(_) => "load",
        ProveError::Golden(_) => "golden_mismatch",
    };
    ReportedError {
        code: code.to_owned(),
        message: format!("{:#}", anyhow::Error::new(error)),
    }
}

/// Every engine's own reason, since none of them alone explains it.
fn refused(refused: Refused<LoaderError>) -> ReportedError {
    let code = refused.error.code();
    let message = match refused.measured.as_slice() {
        [_only] => format!("{:#}", anyhow::Error::new(refused.error)),
        several => {
            let reasons = several.iter().map(|one| {
                let reason = one.outcome.as_ref().err().map_or("", String::as_str);
                format!("{}: {reason}", one.engine)
            });
            reasons.collect::<Vec<_>>().join("; ")
        }
    };
    ReportedError {
        code: code.to_owned(),
        message,
    }
}

/// What the kernel thinks can be given to programs without swapping.
fn available_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(proc_text::kib(&memory, "MemAvailable:")? * 1024)
}
