//! Runs the pipeline of a bundle: ONNX models with tract or ONNX Runtime, sandboxed WASM steps with wasmtime.
//!
//! It knows neither network nor trust: what it loads has been verified by the caller. It has no compiler either, unless the
//! publisher's feature `compile` is on. Invariant: whatever a model, a step or a request does, it ends in an error of that
//! load or that request, never in the process.

mod admission;
mod bundle;
#[cfg(feature = "compile")]
mod compile;
mod engine;
mod error;
mod golden;
mod loader;
mod model;
mod operators;
mod ops;
mod pipeline;
mod rewrite;
mod wasm;

pub use bundle::{LoadedBundle, Read};
#[cfg(feature = "compile")]
pub use compile::{CompileError, PLATFORMS, compile_component};
pub use engine::choice::{Chosen, EngineChoice, EngineName, Engines, Measured, Refused, choose};
pub use engine::figures::{Figures, Timing};
pub use engine::onnxruntime::silence_onnxruntime;
pub use error::{GoldenError, InferError, LoadError, ModelError, ProveError, StepError};
pub use loader::{Loader, LoaderError, LoaderLimits, run_child};
pub use model::{CheckedModel, check_model};
pub use operators::UnknownOperator;
pub use wasm::{Runtime, WASMTIME_VERSION, host_platform};
