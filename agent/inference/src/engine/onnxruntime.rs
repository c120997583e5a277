//! Models on ONNX Runtime, where its shared library is on the machine. It is opened at run time; nothing here links to it.
//!
//! Invariant: a session has one thread and is used by one request at a time; a panic of the binding is an error of that call.

use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use half::f16;
use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{Session, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynValue, Tensor as OrtTensor},
};
use skerry_shared::oip::{Datatype, Tensor};

use crate::{ModelError, engine::Output, error::panic_words, model::ModelSource};

/// Where distributions put the library, looked at when no path is configured.
const SYSTEM_PATHS: &[&str] = &[
    "/usr/lib/libonnxruntime.so",
    "/usr/local/lib/libonnxruntime.so",
    "/usr/lib64/libonnxruntime.so",
    "/usr/lib/x86_64-linux-gnu/libonnxruntime.so",
    "/usr/lib/aarch64-linux-gnu/libonnxruntime.so",
    "/usr/lib/arm-linux-gnueabihf/libonnxruntime.so",
];

/// The library of this process: it is opened once and stays, since ONNX Runtime has one environment a process.
static OPENED: Mutex<Option<(PathBuf, OnnxRuntime)>> = Mutex::new(None);

/// Builds of ONNX Runtime since 1.32 keep a device's id and a data base of events in the user's folder and send them to their
/// makers, from the moment when the library is opened, unless this variable is set.
pub(crate) const SILENCE: &str = "ORT_DISABLE_TELEMETRY";

/// Keeps ONNX Runtime from reporting to its makers. To be called first in `main`: a library that would report is not opened.
pub fn silence_onnxruntime() {
    // SAFETY: changing the environment races with other threads that read it; `main` has started none yet.
    #[allow(unsafe_code)]
    unsafe {
        std::env::set_var(SILENCE, "1");
    }
}

/// The opened library.
#[derive(Clone)]
pub(crate) struct OnnxRuntime {
    environment: Environment,
}

impl OnnxRuntime {
    /// Where the library is: at `configured`, or where systems keep it. `None` when it is not there.
    pub(crate) fn find(configured: Option<&Path>) -> Option<PathBuf> {
        match configured {
            Some(path) if path.exists() => Some(path.to_owned()),
            Some(path) => {
                tracing::warn!(path = %path.display(), "there is no ONNX Runtime at the configured path");
                None
            }
            None => SYSTEM_PATHS.iter().map(PathBuf::from).find(|path| path.exists()),
        }
    }

    /// Opens the library, which takes some megabytes of memory; only when it is wanted, therefore.
    pub(crate) fn open(path: &Path) -> Result<OnnxRuntime, String> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        match &*opened {
            Some((of, runtime)) if of == path => return Ok(runtime.clone()),
            Some((of, _)) => return Err(format!("a process has one, and this one has {}", of.display())),
            None => {}
        }
        if std::env::var_os(SILENCE).is_none() {
            return Err(format!("{SILENCE} is not set: it would report to its makers"));
        }
        let open = || {
            let builder = ort::init_from(path).map_err(words)?;
            let environment = builder.with_telemetry(false).build().map_err(words)?;
            // What it warns of, models of strangers choose; what fails is an error of the call.
            environment.set_log_level(LogLevel::Fatal);
            Ok(OnnxRuntime { environment })
        };
        // The binding panics over a library that is none of ONNX Runtime.
        let runtime =
            catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err("it is no such library".to_owned()))?;
        *opened = Some((path.to_owned(), runtime.clone()));
        Ok(runtime)
    }
}

/// A session, with the outputs that the model promises.
pub(crate) struct OnnxRuntimeModel {
    session: Mutex<Session>,
    outputs: Vec<(String, Datatype)>,
}

impl OnnxRuntimeModel {
    pub(crate) fn load(runtime: &OnnxRuntime, source: &ModelSource<'_>) -> Result<OnnxRuntimeModel, ModelError> {
        let onnx = source.encoded();
        let load = || {
            let builder = Session::builder(&runtime.environment).map_err(words)?;
            // A device shares its few cores between models, sensors and the agent; requests run beside one another instead.
            let builder = builder.with_intra_threads(1).map_err(words)?;
            let builder = builder.with_inter_threads(1).map_err(words)?;
            let mut builder = builder
                .with_optimization_level(GraphOptimizationLevel::All)
                .map_err(words)?;
            builder.commit_from_memory(&onnx).map_err(words)
        };
        let outputs = source
            .outputs
            .iter()
            .map(|output| (output.name.clone(), output.datatype))
            .collect();
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(session)) => Ok(OnnxRuntimeModel {
                session: Mutex::new(session),
                outputs,
            }),
            Ok(Err(error)) => Err(ModelError::OnnxRuntime(error)),
            Err(panic) => Err(ModelError::OnnxRuntime(format!(
                "its binding panicked: {}",
                panic_words(&*panic)
            ))),
        }
    }

    /// Runs the model once.
    pub(crate) fn run(&self, inputs: &[Tensor]) -> Result<Vec<Output>, String> {
        let run = || {
            let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
            for input in inputs {
                values.push((Cow::Borrowed(input.name()), to_value(input)?.into()));
            }
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            let outputs = session.run(values).map_err(words)?;
            let taken = self.outputs.iter().map(|(name, datatype)| {
                let value = outputs
                    .get(name)
                    .ok_or_else(|| format!("ONNX Runtime gave no `{name}`"))?;
                from_value(value, *datatype)
            });
            taken.collect()
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(done) => done,
            Err(panic) => Err(format!("ONNX Runtime's binding panicked: {}", panic_words(&*panic))),
        }
    }
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Calls `$then!(type)` with the Rust type of a datatype that travels as plain numbers.
macro_rules! by_number {
    ($datatype:expr, $then:ident, $otherwise:expr) => {
        match $datatype {
            Datatype::Uint8 => $then!(u8),
            Datatype::Uint16 => $then!(u16),
            Datatype::Uint32 => $then!(u32),
            Datatype::Uint64 => $then!(u64),
            Datatype::Int8 => $then!(i8),
            Datatype::Int16 => $then!(i16),
            Datatype::Int32 => $then!(i32),
            Datatype::Int64 => $then!(i64),
            Datatype::Fp16 => $then!(f16),
            Datatype::Fp32 => $then!(f32),
            Datatype::Fp64 => $then!(f64),
            Datatype::Bool | Datatype::Bytes => $otherwise,
        }
    };
}

fn to_value(tensor: &Tensor) -> Result<DynValue, String> {
    let shape = tensor.shape().to_vec();
    macro_rules! numbers {
        ($number:ty) => {{
            let number = |bytes: &[u8]| <$number>::from_le_bytes(bytes.try_into().expect("chunks of this size"));
            let values: Vec<$number> = tensor.data().chunks_exact(size_of::<$number>()).map(number).collect();
            OrtTensor::from_array((shape, values)).map_err(words)?.into_dyn()
        }};
    }
    let other = || -> Result<DynValue, String> {
        if let Some(elements) = tensor.to_byte_elements() {
            let texts = elements
                .into_iter()
                .map(|bytes| Ok(std::str::from_utf8(bytes).map_err(words)?.to_owned()));
            let texts = texts.collect::<Result<Vec<String>, String>>()?;
            let value = OrtTensor::from_string_array((tensor.shape().to_vec(), texts.as_slice()));
            return Ok(value.map_err(words)?.into_dyn());
        }
        if tensor.datatype() == Datatype::Bool {
            let values: Vec<bool> = tensor.data().iter().map(|byte| *byte != 0).collect();
            let value = OrtTensor::from_array((tensor.shape().to_vec(), values));
            return Ok(value.map_err(words)?.into_dyn());
        }
        Err(unsupported(tensor.datatype()))
    };
    Ok(by_number!(tensor.datatype(), numbers, other()?))
}

fn from_value(value: &DynValue, datatype: Datatype) -> Result<Output, String> {
    let sizes = |shape: &[i64]| {
        shape
            .iter()
            .map(|dim| usize::try_from(*dim).unwrap_or(0))
            .collect::<Vec<usize>>()
    };
    macro_rules! numbers {
        ($number:ty) => {{
            let (shape, values) = value.try_extract_tensor::<$number>().map_err(words)?;
            let size = size_of::<$number>();
            let mut data = vec![0; values.len() * size];
            for (bytes, value) in data.chunks_exact_mut(size).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            (sizes(shape), data)
        }};
    }
    let other = || -> Result<Output, String> {
        match datatype {
            Datatype::Bool => {
                let (shape, values) = value.try_extract_tensor::<bool>().map_err(words)?;
                Ok((sizes(shape), values.iter().map(|value| u8::from(*value)).collect()))
            }
            Datatype::Bytes => {
                let (shape, values) = value.try_extract_strings().map_err(words)?;
                let mut data = Vec::new();
                for text in values {
                    data.extend(u32::try_from(text.len()).map_err(words)?.to_le_bytes());
                    data.extend(text.as_bytes());
                }
                Ok((sizes(shape), data))
            }
            _ => Err(unsupported(datatype)),
        }
    };
    Ok(by_number!(datatype, numbers, other()?))
}

fn unsupported(datatype: Datatype) -> String {
    format!("{datatype} does not go in or out of ONNX Runtime here")
}
