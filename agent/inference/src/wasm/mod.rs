//! The host side of `skerry:pipeline/step`: components without any authority, with limits on time and memory.
//!
//! Invariant: a step sees the tensors and parameters it is given, and nothing else; after a trap its instance is gone.

mod clock;
mod convert;
mod guest;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use skerry_shared::{
    bundle::StepLimits,
    id::Platform,
    oip::{Tensor, TensorMetadata},
};
use wasmtime::{
    Config, Engine, Store, Trap,
    component::{Component, Linker},
};

use crate::{Engines, LoadError, StepError};

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    wasmtime::component::bindgen!({ path: "wit", world: "step" });
}

use bindings::{Step as Instance, StepPre, skerry::pipeline::types};
use clock::{Clock, TICK};
use convert::{error_from_guest, metadata_from_guest, shortened, tensor_to_guest, tensors_from_guest};
use guest::Guest;

/// The wasmtime that runs compiled components here, and must have compiled them.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Warm instances kept per step: more concurrent calls make more for the moment.
const WARM_INSTANCES: usize = 4;

/// The most memory that a manifest can give a step on a device: 256 MiB.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The longest time that a manifest can give a call. Whoever asks for an inference has given up by then.
const TIMEOUT_MS_MAX: u32 = 60_000;
/// Live resource handles of a component: `skerry:pipeline/step` has none, so these are the guest's own.
const HANDLES_MAX: usize = 1000;
/// What wasmtime says when an answer exceeds `set_hostcall_fuel`; it has no type for it. A test would notice other words.
const FUEL_EXHAUSTED: &str = "fuel allocated for hostcalls has been exhausted";

/// The platform for which this process needs compiled components.
pub fn host_platform() -> Platform {
    let name = if cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        "x86_64-unknown-linux-gnu"
    } else if cfg!(all(target_arch = "aarch64", target_os = "linux", target_env = "gnu")) {
        "aarch64-unknown-linux-gnu"
    } else if cfg!(target_pointer_width = "32") {
        "pulley32"
    } else {
        "pulley64"
    };
    name.parse().expect("a valid platform name")
}

/// The one configuration of both sides: compiled code only loads into an engine that is configured the same.
pub(crate) fn engine_config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // The default reserves 4 GiB of addresses for each memory, which 32-bit devices do not have.
    config.memory_reservation(64 * 1024 * 1024);
    config.memory_reservation_for_growth(1024 * 1024);
    config.memory_guard_size(64 * 1024);
    config.max_wasm_stack(512 * 1024);
    config
}

/// What bundles run on in a process: the engines of models, and the WASM engine with the clock that stops steps which run too
/// long.
#[derive(Clone)]
pub struct Runtime {
    engine: Engine,
    clock: Arc<Clock>,
    engines: Engines,
}

impl Runtime {
    /// Starts the WASM engine; models run on tract.
    ///
    /// # Errors
    /// [`LoadError::Runtime`] when the machine cannot run it.
    pub fn new() -> Result<Runtime, LoadError> {
        Runtime::with_engines(Engines::default())
    }

    /// Starts the WASM engine; models run on what `engines` has.
    ///
    /// # Errors
    /// [`LoadError::Runtime`] when the machine cannot run it.
    pub fn with_engines(engines: Engines) -> Result<Runtime, LoadError> {
        let failed = |error: String| LoadError::Runtime(error);
        let engine = Engine::new(&engine_config()).map_err(|error| failed(format!("{error:#}")))?;
        let clock = Clock::start(engine.clone()).map_err(|error| failed(error.to_string()))?;
        Ok(Runtime { engine, clock, engines })
    }

    /// The engines that models may run on.
    pub fn engines(&self) -> &Engines {
        &self.engines
    }
}

struct Warm {
    store: Store<Guest>,
    instance: Instance,
}

/// A configured step.
pub(crate) struct Step {
    runtime: Runtime,
    pre: StepPre<Guest>,
    parameters: Vec<types::Parameter>,
    limits: StepLimits,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
    warm: Mutex<Vec<Warm>>,
}

impl Step {
    /// Loads a component compiled for this platform, and configures it once to learn what it takes and gives.
    pub(crate) fn load(
        runtime: &Runtime,
        compiled: &[u8],
        parameters: &BTreeMap<String, String>,
        limits: StepLimits,
    ) -> Result<Step, StepError> {
        let refused = |error: wasmtime::Error| StepError::Instantiate(shortened(format!("{error:#}")));
        // SAFETY: compiled code is as trusted as this program. The caller hands over a resource of a bundle whose digest it
        // has verified under the `targets` signature; wasmtime itself checks version and configuration.
        #[allow(unsafe_code)]
        let component = unsafe { Component::deserialize(&runtime.engine, compiled) }.map_err(refused)?;
        // An empty linker: a component that imports anything does not instantiate.
        let linker = Linker::new(&runtime.engine);
        let pre = linker
            .instantiate_pre(&component)
            .and_then(StepPre::new)
            .map_err(refused)?;
        let parameter = |(name, value): (&String, &String)| types::Parameter {
            name: name.clone(),
            value: value.clone(),
        };
        let mut step = Step {
            runtime: runtime.clone(),
            pre,
            parameters: parameters.iter().map(parameter).collect(),
            limits: StepLimits {
                memory_bytes: limits.memory_bytes.min(MEMORY_BYTES_MAX),
                timeout_ms: limits.timeout_ms.min(TIMEOUT_MS_MAX),
            },
            inputs: Vec::new(),
            outputs: Vec::new(),
            warm: Mutex::new(Vec::new()),
        };
        let mut warm = step.instantiate()?;
        let description = step.call(&mut warm, |warm| warm.instance.call_describe(&mut warm.store))?;
        step.inputs = metadata_from_guest(description.inputs)?;
        step.outputs = metadata_from_guest(description.outputs)?;
        step.put_back(warm);
        Ok(step)
    }

    pub(crate) fn inputs(&self) -> &[TensorMetadata] {
        &self.inputs
    }

    pub(crate) fn outputs(&self) -> &[TensorMetadata] {
        &self.outputs
    }

    /// Runs the step once.
    pub(crate) fn process(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, StepError> {
        let waiting = self.warm.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut warm = match waiting {
            Some(warm) => warm,
            None => self.instantiate()?,
        };
        let tensors: Vec<types::Tensor> = inputs.iter().map(tensor_to_guest).collect();
        // An error here is a trap: the instance is dropped, since nothing is known about its memory.
        let result = self.call(&mut warm, |warm| warm.instance.call_process(&mut warm.store, &tensors))?;
        self.put_back(warm);
        tensors_from_guest(result.map_err(error_from_guest)?)
    }

    fn instantiate(&self) -> Result<Warm, StepError> {
        let memory_bytes = usize::try_from(self.limits.memory_bytes).unwrap_or(usize::MAX);
        let mut store = Store::new(&self.runtime.engine, Guest::new(memory_bytes));
        store.limiter(|guest| guest);
        // An answer is copied out of the guest, which can point to the same bytes many times.
        store.set_hostcall_fuel(memory_bytes);
        store.set_max_component_handles(HANDLES_MAX);
        let _call = self.runtime.clock.call_begins();
        store.set_epoch_deadline(self.ticks());
        let instance = self
            .pre
            .instantiate(&mut store)
            .map_err(|error| self.trap(&store, &error))?;
        let mut warm = Warm { store, instance };
        let configured = self.call(&mut warm, |warm| {
            warm.instance.call_configure(&mut warm.store, &self.parameters)
        })?;
        configured.map_err(error_from_guest)?;
        Ok(warm)
    }

    fn call<T>(&self, warm: &mut Warm, call: impl FnOnce(&mut Warm) -> wasmtime::Result<T>) -> Result<T, StepError> {
        let _call = self.runtime.clock.call_begins();
        warm.store.set_epoch_deadline(self.ticks());
        warm.store.data_mut().call_begins();
        call(warm).map_err(|error| self.trap(&warm.store, &error))
    }

    /// One tick more than the limit: the first may be almost over already.
    fn ticks(&self) -> u64 {
        u64::from(self.limits.timeout_ms).div_ceil(TICK.as_millis() as u64) + 1
    }

    fn trap(&self, store: &Store<Guest>, error: &wasmtime::Error) -> StepError {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => StepError::Timeout(self.limits.timeout_ms),
            _ if store.data().memory_refused() => StepError::Memory(self.limits.memory_bytes),
            Some(trap) => StepError::Trap(trap.to_string()),
            None if error.to_string().ends_with(FUEL_EXHAUSTED) => StepError::Answer(self.limits.memory_bytes),
            None => StepError::Trap(shortened(format!("{error:#}"))),
        }
    }

    fn put_back(&self, warm: Warm) {
        // Full, and it will stay full: one that leaks would fail every call from now on.
        if warm.store.data().memory_refused() {
            return;
        }
        let mut waiting = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WARM_INSTANCES {
            waiting.push(warm);
        }
    }
}
