//! Which engine serves: every one that is present is loaded, proved and timed on the golden vectors; the fastest right one stays.
//!
//! What an attempt is, whoever asks says: in this process, or in one of its own (`loader`). Invariant: an engine whose attempt
//! failed is never chosen, however fast.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Plan, figures::Figures, onnxruntime::OnnxRuntime};
use crate::LoadError;

/// Which engines may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The fastest that is right, of those that are present.
    #[default]
    Auto,
    /// tract alone.
    Tract,
    /// ONNX Runtime if it is present and right, else tract.
    OnnxRuntime,
}

/// The engines of a process.
#[derive(Clone, Default)]
pub struct Engines {
    /// Where ONNX Runtime's library is.
    onnxruntime: Option<PathBuf>,
    choice: EngineChoice,
}

impl Engines {
    /// Looks for the engines that `choice` allows: ONNX Runtime's library at `onnxruntime`, or where systems keep it. A library
    /// that is absent is no error. It is opened when a model is loaded with it; one that cannot be opened serves no model.
    pub fn find(choice: EngineChoice, onnxruntime: Option<PathBuf>) -> Engines {
        let wanted = choice != EngineChoice::Tract;
        let onnxruntime = wanted.then(|| OnnxRuntime::find(onnxruntime.as_deref())).flatten();
        Engines { onnxruntime, choice }
    }

    /// What may serve, in the order in which it is tried.
    pub fn names(&self) -> Vec<EngineName> {
        let tract = [EngineName::Tract, EngineName::TractPlain];
        let second = self.onnxruntime.iter().map(|_| EngineName::OnnxRuntime);
        match self.choice {
            EngineChoice::OnnxRuntime => second.chain(tract).collect(),
            EngineChoice::Auto | EngineChoice::Tract => tract.into_iter().chain(second).collect(),
        }
    }

    /// The engine of this name, opened.
    pub(crate) fn candidate(&self, name: EngineName) -> Result<Candidate, LoadError> {
        match (name, &self.onnxruntime) {
            (EngineName::Tract, _) => Ok(Candidate::Tract(Plan::Optimised)),
            (EngineName::TractPlain, _) => Ok(Candidate::Tract(Plan::Plain)),
            (EngineName::OnnxRuntime, None) => Err(LoadError::Engine("it is not on this machine".to_owned())),
            (EngineName::OnnxRuntime, Some(path)) => {
                let opened = OnnxRuntime::open(path).map_err(LoadError::Engine)?;
                Ok(Candidate::OnnxRuntime(opened))
            }
        }
    }

    /// True when there is ONNX Runtime's library.
    pub fn has_onnxruntime(&self) -> bool {
        self.onnxruntime.is_some()
    }

    /// Where ONNX Runtime's library is.
    pub fn onnxruntime(&self) -> Option<&Path> {
        self.onnxruntime.as_deref()
    }
}

/// An engine in one of its forms.
#[derive(Clone)]
pub(crate) enum Candidate {
    Tract(Plan),
    OnnxRuntime(OnnxRuntime),
}

/// An engine in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    /// tract with its optimiser.
    Tract,
    /// tract as the file says, where its optimiser makes wrong answers.
    TractPlain,
    /// ONNX Runtime.
    #[serde(rename = "onnxruntime")]
    OnnxRuntime,
}

impl std::fmt::Display for EngineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EngineName::Tract => "tract",
            EngineName::TractPlain => "tract (plain)",
            EngineName::OnnxRuntime => "ONNX Runtime",
        })
    }
}

/// What an engine has shown with a bundle: its figures, or why it cannot serve it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The engine; it ran all models of the bundle.
    pub engine: EngineName,
    /// What it showed.
    pub outcome: Result<Figures, String>,
}

/// What [`choose`] has chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The engine that serves.
    pub engine: EngineName,
    /// Every attempt.
    pub measured: Vec<Measured>,
}

/// No engine can serve.
#[derive(Debug)]
pub struct Refused<E> {
    /// Why the engine that was tried first cannot.
    pub error: E,
    /// Every attempt.
    pub measured: Vec<Measured>,
}

/// Tries the engines and takes the fastest of those that are right. tract's plain plan is tried only where its optimised one
/// is not right, since it is never faster. Where `attempt` takes no times the first that is right serves.
///
/// # Errors
/// [`Refused`] when every attempt fails.
pub fn choose<E: std::error::Error>(
    engines: &Engines,
    mut attempt: impl FnMut(EngineName) -> Result<Figures, E>,
) -> Result<Chosen, Refused<E>> {
    let mut measured: Vec<Measured> = Vec::new();
    let (mut first_error, mut fastest) = (None, None);
    for engine in engines.names() {
        let tract_is_right = measured
            .iter()
            .any(|one| one.engine == EngineName::Tract && one.outcome.is_ok());
        if engine == EngineName::TractPlain && tract_is_right {
            continue;
        }
        let outcome = match attempt(engine) {
            Ok(figures) => {
                tracing::info!(%engine, time_us = figures.timing.map(|timing| timing.fastest_us), "answers rightly");
                Ok(figures)
            }
            Err(error) => {
                let words = skerry_shared::error::chain(&error);
                tracing::warn!(%engine, error = words, "cannot serve this bundle");
                first_error.get_or_insert(error);
                Err(words)
            }
        };
        measured.push(Measured {
            engine,
            outcome: outcome.clone(),
        });
        let Ok(figures) = outcome else { continue };
        if fastest.is_none_or(|(speed, _)| figures.speed() < speed) {
            fastest = Some((figures.speed(), engine));
        }
        if figures.timing.is_none() || engines.choice == EngineChoice::OnnxRuntime {
            break;
        }
    }
    match (fastest, first_error) {
        (Some((_, engine)), _) => Ok(Chosen { engine, measured }),
        (None, Some(error)) => Err(Refused { error, measured }),
        (None, None) => unreachable!("tract is always tried"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::{super::figures::Timing, *};

    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("wrong")]
    struct Wrong;

    fn took(us: u64) -> Result<Figures, Wrong> {
        Ok(Figures {
            timing: Some(Timing {
                fastest_us: us,
                p50_us: us,
                p95_us: us,
            }),
            ..Figures::loaded_in(Duration::ZERO)
        })
    }

    /// Chooses among tract's two plans as if they were any two engines.
    fn chosen(outcomes: [Result<Figures, Wrong>; 2]) -> (Result<EngineName, Wrong>, usize) {
        let mut outcomes = outcomes.into_iter();
        let chosen = choose(&Engines::default(), |_| outcomes.next().unwrap());
        match chosen {
            Ok(chosen) => (Ok(chosen.engine), chosen.measured.len()),
            Err(refused) => (Err(refused.error), refused.measured.len()),
        }
    }

    #[test]
    fn a_wrong_engine_is_never_taken() {
        assert_eq!(chosen([Err(Wrong), took(900)]), (Ok(EngineName::TractPlain), 2));
        assert_eq!(chosen([Err(Wrong), Err(Wrong)]), (Err(Wrong), 2));
    }

    #[test]
    fn the_plain_plan_is_not_tried_where_the_optimised_one_is_right() {
        assert_eq!(chosen([took(900), took(1)]), (Ok(EngineName::Tract), 1));
    }

    #[test]
    fn an_absent_library_is_no_error() {
        let engines = Engines::find(EngineChoice::Auto, Some(PathBuf::from("/nowhere/libonnxruntime.so")));
        assert!(!engines.has_onnxruntime());
        assert_eq!(engines.names(), [EngineName::Tract, EngineName::TractPlain]);
    }
}
