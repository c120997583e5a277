//! Compiles components ahead of time, for every platform: the publisher's side. Devices have no compiler.

use skerry_shared::id::Platform;

use crate::wasm::engine_config;

/// The platforms that bundles carry. 32-bit ARM has no Cranelift backend and interprets.
pub const PLATFORMS: &[&str] = &["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "pulley32"];

/// Why a component cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The platform is none that wasmtime knows.
    #[error("cannot compile for {platform}: {reason}")]
    Platform {
        /// The platform.
        platform: Platform,
        /// wasmtime's own words.
        reason: String,
    },
    /// Not a component, or one that uses what is not supported.
    #[error("not a usable component: {0}")]
    Component(String),
}

/// Compiles a portable component for `platform`.
///
/// # Errors
/// [`CompileError`].
pub fn compile_component(wasm: &[u8], platform: &Platform) -> Result<Vec<u8>, CompileError> {
    let unknown = |error: wasmtime::Error| CompileError::Platform {
        platform: platform.clone(),
        reason: format!("{error:#}"),
    };
    let mut config = engine_config();
    config.target(platform.as_str()).map_err(unknown)?;
    let engine = wasmtime::Engine::new(&config).map_err(unknown)?;
    engine
        .precompile_component(wasm)
        .map_err(|error| CompileError::Component(format!("{error:#}")))
}
