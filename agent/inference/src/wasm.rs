//! The host side of `skerry:pipeline/step`: components without any authority, with limits on time and memory.
//!
//! Invariant: a step sees the tensors and parameters it is given, and nothing else; after a trap its instance is gone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use skerry_shared::{
    bundle::StepLimits,
    id::Platform,
    oip::{Datatype, Tensor, TensorMetadata},
};
use wasmtime::{
    Config, Engine, Store, StoreLimits, StoreLimitsBuilder, Trap,
    component::{Component, Linker},
};

use crate::{LoadError, StepError};

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, unused_qualifications)]
    wasmtime::component::bindgen!({ path: "wit", world: "step" });
}

use bindings::{Step as Instance, StepPre, skerry::pipeline::types};

/// The wasmtime that runs compiled components here, and must have compiled them.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// One tick of the epoch: the resolution of step time-outs.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a call after which the ticker sleeps.
const IDLE_TICKS: u32 = 100;
/// Warm instances kept per step: more concurrent calls make more for the moment.
const WARM_INSTANCES: usize = 4;

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

/// The WASM engine of a process, with the clock that stops steps which run too long.
#[derive(Clone)]
pub struct Runtime {
    engine: Engine,
    clock: Arc<Clock>,
}

impl Runtime {
    /// Starts an engine.
    ///
    /// # Errors
    /// [`LoadError::Runtime`] when the machine cannot run it.
    pub fn new() -> Result<Runtime, LoadError> {
        let failed = |error: String| LoadError::Runtime(error);
        let engine = Engine::new(&engine_config()).map_err(|error| failed(format!("{error:#}")))?;
        let clock = Clock::start(engine.clone()).map_err(|error| failed(error.to_string()))?;
        Ok(Runtime { engine, clock })
    }
}

/// Moves the engine's epoch on while steps run, and sleeps otherwise: an idle device stays idle.
struct Clock {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<thread::Thread>>,
}

impl Clock {
    fn start(engine: Engine) -> std::io::Result<Arc<Clock>> {
        let clock = Arc::new(Clock {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let ticking = Arc::downgrade(&clock);
        let handle = thread::Builder::new().name("step-clock".to_owned()).spawn(move || {
            let mut idle = 0;
            while let Some(clock) = ticking.upgrade() {
                if clock.stop.load(Ordering::SeqCst) {
                    return;
                }
                if clock.running.load(Ordering::SeqCst) > 0 {
                    idle = 0;
                } else {
                    idle += 1;
                }
                if idle > IDLE_TICKS {
                    clock.parked.store(true, Ordering::SeqCst);
                    // A call that began before `parked` was set has not woken us: look once more.
                    if clock.running.load(Ordering::SeqCst) == 0 && !clock.stop.load(Ordering::SeqCst) {
                        drop(clock);
                        thread::park();
                    } else {
                        clock.parked.store(false, Ordering::SeqCst);
                    }
                    idle = 0;
                    continue;
                }
                drop(clock);
                thread::sleep(TICK);
                engine.increment_epoch();
            }
        })?;
        *clock.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.thread().clone());
        Ok(clock)
    }

    fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    fn call_begins(&self) -> Call<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.parked.swap(false, Ordering::SeqCst) {
            self.wake();
        }
        Call(self)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }
}

/// A call under way.
struct Call<'a>(&'a Clock);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a store carries: the limits of its instance, and whether they were hit.
struct Guest {
    limits: StoreLimits,
    memory_refused: bool,
}

impl wasmtime::ResourceLimiter for Guest {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let granted = self.limits.memory_growing(current, desired, maximum)?;
        self.memory_refused |= !granted;
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
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
        let refused = |error: wasmtime::Error| StepError::Instantiate(format!("{error:#}"));
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
            limits,
            inputs: Vec::new(),
            outputs: Vec::new(),
            warm: Mutex::new(Vec::new()),
        };
        let mut warm = step.instantiate()?;
        let description = step.call(&mut warm, |warm| warm.instance.call_describe(&mut warm.store))?;
        step.inputs = description.inputs.into_iter().map(metadata_from_guest).collect();
        step.outputs = description.outputs.into_iter().map(metadata_from_guest).collect();
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
        let outputs = result.map_err(error_from_guest)?;
        outputs
            .into_iter()
            .map(|tensor| tensor_from_guest(tensor).map_err(StepError::Tensor))
            .collect()
    }

    fn instantiate(&self) -> Result<Warm, StepError> {
        let limits = StoreLimitsBuilder::new()
            .memory_size(usize::try_from(self.limits.memory_bytes).unwrap_or(usize::MAX))
            .instances(16)
            .memories(4)
            .tables(16)
            .table_elements(20_000)
            .build();
        let mut store = Store::new(
            &self.runtime.engine,
            Guest {
                limits,
                memory_refused: false,
            },
        );
        store.limiter(|guest| guest);
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
        warm.store.data_mut().memory_refused = false;
        call(warm).map_err(|error| self.trap(&warm.store, &error))
    }

    /// One tick more than the limit: the first may be almost over already.
    fn ticks(&self) -> u64 {
        u64::from(self.limits.timeout_ms).div_ceil(TICK.as_millis() as u64) + 1
    }

    fn trap(&self, store: &Store<Guest>, error: &wasmtime::Error) -> StepError {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => StepError::Timeout(self.limits.timeout_ms),
            _ if store.data().memory_refused => StepError::Memory(self.limits.memory_bytes),
            Some(trap) => StepError::Trap(trap.to_string()),
            None => StepError::Trap(format!("{error:#}")),
        }
    }

    fn put_back(&self, warm: Warm) {
        let mut waiting = self.warm.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WARM_INSTANCES {
            waiting.push(warm);
        }
    }
}

fn error_from_guest(error: types::Error) -> StepError {
    match error {
        types::Error::InvalidParameter(text) => StepError::Parameter(text),
        types::Error::InvalidInput(text) => StepError::Input(text),
        types::Error::Failed(text) => StepError::Failed(text),
    }
}

fn metadata_from_guest(metadata: types::TensorMetadata) -> TensorMetadata {
    let datatype = datatype_from_guest(metadata.datatype);
    TensorMetadata {
        name: metadata.name,
        datatype,
        shape: metadata.shape,
    }
}

fn tensor_to_guest(tensor: &Tensor) -> types::Tensor {
    types::Tensor {
        name: tensor.name().to_owned(),
        datatype: datatype_to_guest(tensor.datatype()),
        shape: tensor.shape().iter().map(|dim| *dim as u64).collect(),
        data: tensor.data().to_vec(),
    }
}

fn tensor_from_guest(tensor: types::Tensor) -> Result<Tensor, skerry_shared::oip::TensorError> {
    let shape = tensor
        .shape
        .iter()
        .map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX))
        .collect();
    Tensor::new(tensor.name, datatype_from_guest(tensor.datatype), shape, tensor.data)
}

/// Both directions of the datatypes, in one list.
macro_rules! datatypes {
    ($($name:ident),*) => {
        fn datatype_to_guest(datatype: Datatype) -> types::Datatype {
            match datatype { $(Datatype::$name => types::Datatype::$name),* }
        }
        fn datatype_from_guest(datatype: types::Datatype) -> Datatype {
            match datatype { $(types::Datatype::$name => Datatype::$name),* }
        }
    };
}
datatypes!(
    Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Fp32, Fp64, Bytes
);
