//! Which engine serves: every one that is present is loaded, proved and timed on the golden vectors; the fastest right one stays.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{Plan, onnxruntime::OnnxRuntime};

/// Rounds over the golden vectors when time is taken; the shortest counts, since load of other programs only lengthens.
const ROUNDS: usize = 5;
/// The longest that an engine is timed. A slow model is timed once.
const TIMING_MAX: Duration = Duration::from_millis(500);

/// Which engines may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// The fastest that is right, of those that are present.
    #[default]
    Auto,
    /// tract alone.
    Tract,
    /// ONNX Runtime if it is present, else tract.
    OnnxRuntime,
}

impl std::str::FromStr for EngineChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<EngineChoice, String> {
        match word {
            "auto" => Ok(EngineChoice::Auto),
            "tract" => Ok(EngineChoice::Tract),
            "onnxruntime" => Ok(EngineChoice::OnnxRuntime),
            other => Err(format!("`{other}` is no engine: auto, tract or onnxruntime")),
        }
    }
}

/// The engines of a process.
#[derive(Clone, Default)]
pub struct Engines {
    onnxruntime: Option<OnnxRuntime>,
    choice: EngineChoice,
}

impl Engines {
    /// Looks for the engines that `choice` allows: ONNX Runtime's library at `onnxruntime`, or where systems keep it. A library
    /// that is absent, or that cannot be used, is no error.
    pub fn find(choice: EngineChoice, onnxruntime: Option<PathBuf>) -> Engines {
        let wanted = choice != EngineChoice::Tract;
        let onnxruntime = wanted.then(|| OnnxRuntime::find(onnxruntime.as_deref())).flatten();
        Engines { onnxruntime, choice }
    }

    /// What may serve, in the order in which it is tried.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let tract = [Candidate::Tract(Plan::Optimised), Candidate::Tract(Plan::Plain)];
        let second = self.onnxruntime.iter().cloned().map(Candidate::OnnxRuntime);
        match self.choice {
            EngineChoice::OnnxRuntime => second.chain(tract).collect(),
            EngineChoice::Auto | EngineChoice::Tract => tract.into_iter().chain(second).collect(),
        }
    }

    /// True when the first that is right serves, and no other is timed.
    pub(crate) fn first_right_serves(&self) -> bool {
        self.choice == EngineChoice::OnnxRuntime
    }

    /// True when there is ONNX Runtime's library.
    pub fn has_onnxruntime(&self) -> bool {
        self.onnxruntime.is_some()
    }
}

/// An engine in one of its forms.
#[derive(Clone)]
pub(crate) enum Candidate {
    Tract(Plan),
    OnnxRuntime(OnnxRuntime),
}

impl Candidate {
    pub(crate) fn name(&self) -> EngineName {
        match self {
            Candidate::Tract(Plan::Optimised) => EngineName::Tract,
            Candidate::Tract(Plan::Plain) => EngineName::TractPlain,
            Candidate::OnnxRuntime(_) => EngineName::OnnxRuntime,
        }
    }
}

/// An engine in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineName {
    /// tract with its optimiser.
    Tract,
    /// tract as the file says, where its optimiser makes wrong answers.
    TractPlain,
    /// ONNX Runtime.
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

/// What an engine did with the golden vectors of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The engine; it ran all models of the bundle.
    pub engine: EngineName,
    /// The time of one pass over all vectors, or why it cannot serve.
    pub outcome: Result<Duration, String>,
}

/// The shortest time of one pass.
pub(crate) fn time(mut pass: impl FnMut()) -> Duration {
    let began = Instant::now();
    let mut shortest = Duration::MAX;
    for _ in 0..ROUNDS {
        let round = Instant::now();
        pass();
        shortest = shortest.min(round.elapsed());
        if began.elapsed() > TIMING_MAX {
            break;
        }
    }
    shortest
}

/// Which of those measured serves: the fastest right one.
pub(crate) fn fastest(measured: &[Measured]) -> Option<EngineName> {
    let right = measured
        .iter()
        .filter_map(|one| one.outcome.as_ref().ok().map(|time| (time, one.engine)));
    right.min_by_key(|(time, _)| **time).map(|(_, engine)| engine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_engine_is_never_taken_and_the_fastest_right_one_is() {
        let of = |engine, outcome: Result<u64, &str>| Measured {
            engine,
            outcome: outcome.map(Duration::from_micros).map_err(str::to_owned),
        };
        let measured = [
            of(EngineName::Tract, Err("wrong")),
            of(EngineName::TractPlain, Ok(900)),
            of(EngineName::OnnxRuntime, Ok(100)),
        ];
        assert_eq!(fastest(&measured), Some(EngineName::OnnxRuntime));
        assert_eq!(fastest(&measured[..2]), Some(EngineName::TractPlain));
        assert_eq!(fastest(&measured[..1]), None);
    }

    #[test]
    fn an_absent_library_is_no_error() {
        let engines = Engines::find(EngineChoice::Auto, Some(PathBuf::from("/nowhere/libonnxruntime.so")));
        assert!(!engines.has_onnxruntime());
        let names: Vec<EngineName> = engines.candidates().iter().map(Candidate::name).collect();
        assert_eq!(names, [EngineName::Tract, EngineName::TractPlain]);
    }
}
