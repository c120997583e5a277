//! What `skerry bundle build --spec FILE` reads: the parts of a bundle by path, and how they make a pipeline.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use skerry_shared::{
    bundle::{Edge, StepLimits, Tolerance},
    id::{ModelName, ResourceName},
    oip::TensorMetadata,
};

/// A checked bundle spec. Paths are absolute or relative to the working directory.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The registered model.
    pub model: ModelName,
    /// The ONNX file.
    pub onnx: PathBuf,
    /// Golden vectors, with the tolerance for floating-point outputs.
    pub golden: Option<(PathBuf, Tolerance)>,
    /// What a request carries; empty means: as in the first golden vector.
    pub inputs: Vec<TensorMetadata>,
    /// What an answer carries; empty means: as in the first golden vector.
    pub outputs: Vec<TensorMetadata>,
    /// Labels, a model card: files for people.
    pub documents: Vec<PathBuf>,
    /// The stages; without edges, in order.
    pub stages: Vec<SpecStage>,
    /// Which tensor goes where; none at all for a chain.
    pub edges: Vec<Edge>,
}

/// One stage of a spec.
#[derive(Clone, Debug)]
pub struct SpecStage {
    /// Its name.
    pub name: ResourceName,
    /// What runs.
    pub kind: SpecStageKind,
    /// At most so many rows in a call.
    pub batch: Option<NonZeroU32>,
}

/// What a stage runs.
#[derive(Clone, Debug)]
pub enum SpecStageKind {
    /// The spec's ONNX file, or another one.
    Model(PathBuf),
    /// A portable WASM component.
    Step {
        /// Its file.
        component: PathBuf,
        /// Passed to its `configure`.
        parameters: BTreeMap<String, String>,
        /// What one call may use.
        limits: StepLimits,
    },
}

/// Why a spec was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It cannot be read.
    #[error("cannot read bundle spec {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or has fields that a spec does not have.
    #[error("bundle spec {path} does not parse: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Position and reason.
        reason: String,
    },
    /// It parses, but says something impossible. All mistakes are named.
    #[error("bundle spec {path} has {} mistake(s):{}", mistakes.len(), list(mistakes))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each mistake.
        mistakes: Vec<String>,
    },
}

fn list(mistakes: &[String]) -> String {
    mistakes.iter().map(|mistake| format!("\n  - {mistake}")).collect()
}

/// 16 MiB: enough for a step that handles a camera frame.
const DEFAULT_MEMORY_BYTES: u64 = 16 * 1024 * 1024;
/// One second: a step that needs longer is stuck.
const DEFAULT_TIMEOUT_MS: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: String,
    onnx: PathBuf,
    golden: Option<PathBuf>,
    tolerance: Option<Tolerance>,
    #[serde(default)]
    inputs: Vec<TensorMetadata>,
    #[serde(default)]
    outputs: Vec<TensorMetadata>,
    #[serde(default)]
    documents: Vec<PathBuf>,
    #[serde(default)]
    stage: Vec<FileStage>,
    #[serde(default)]
    edge: Vec<Edge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStage {
    name: String,
    model: Option<FileModel>,
    batch: Option<NonZeroU32>,
    component: Option<PathBuf>,
    memory_bytes: Option<u64>,
    timeout_ms: Option<u32>,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
}

/// `model = true` is the registered one, `model = "other.onnx"` another that goes with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum FileModel {
    Registered(bool),
    Other(PathBuf),
}

impl Spec {
    /// Reads and checks a spec.
    ///
    /// # Errors
    /// [`SpecError`], with every mistake at once.
    pub fn read(path: &Path) -> Result<Spec, SpecError> {
        let read = |source| SpecError::Read {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Spec::parse(&text, folder, path)
    }

    fn parse(text: &str, folder: &Path, path: &Path) -> Result<Spec, SpecError> {
        let file: File = toml::from_str(text).map_err(|error| SpecError::Parse {
            path: path.to_owned(),
            reason: error.to_string().trim().to_owned(),
        })?;
        let mut mistakes = Vec::new();
        let model = file
            .model
            .parse::<ModelName>()
            .map_err(|error| mistakes.push(error.to_string()));
        let mut existing = |what: &str, relative: &Path| {
            let path = folder.join(relative);
            if !path.is_file() {
                mistakes.push(format!("{what}: no file at {}", path.display()));
            }
            path
        };
        let onnx = existing("onnx", &file.onnx);
        let golden = file.golden.as_deref().map(|golden| existing("golden", golden));
        let documents = file
            .documents
            .iter()
            .map(|document| existing("documents", document))
            .collect();
        let tolerance = file.tolerance.unwrap_or(Tolerance {
            absolute: 1e-4,
            relative: 1e-3,
        });
        let stages: Vec<SpecStage> = file
            .stage
            .into_iter()
            .filter_map(|stage| check_stage(stage, (folder, &onnx), &mut mistakes))
            .collect();
        let registered = |stage: &&SpecStage| matches!(&stage.kind, SpecStageKind::Model(path) if *path == onnx);
        if stages.iter().filter(registered).count() != 1 {
            mistakes.push("exactly one [[stage]] must have `model = true`".to_owned());
        }
        if golden.is_none() && (file.inputs.is_empty() || file.outputs.is_empty()) {
            mistakes.push("without `golden`, `inputs` and `outputs` must describe the pipeline".to_owned());
        }
        let bad = |value: f64| !value.is_finite() || value < 0.0;
        if bad(tolerance.absolute) || bad(tolerance.relative) {
            mistakes.push("tolerance must be finite and not negative".to_owned());
        }
        match model {
            Ok(model) if mistakes.is_empty() => Ok(Spec {
                model,
                onnx,
                golden: golden.map(|golden| (golden, tolerance)),
                inputs: file.inputs,
                outputs: file.outputs,
                documents,
                stages,
                edges: file.edge,
            }),
            _ => Err(SpecError::Invalid {
                path: path.to_owned(),
                mistakes,
            }),
        }
    }
}

fn check_stage(stage: FileStage, (folder, onnx): (&Path, &Path), mistakes: &mut Vec<String>) -> Option<SpecStage> {
    let name = stage
        .name
        .parse::<ResourceName>()
        .map_err(|error| mistakes.push(format!("stage: {error}")))
        .ok()?;
    let kind = match (stage.model, stage.component) {
        (Some(FileModel::Registered(true)), None) => SpecStageKind::Model(onnx.to_owned()),
        (Some(FileModel::Other(path)), None) => {
            let path = folder.join(path);
            if !path.is_file() {
                mistakes.push(format!("stage `{name}`: no file at {}", path.display()));
            }
            SpecStageKind::Model(path)
        }
        (None | Some(FileModel::Registered(false)), Some(component)) => {
            let component = folder.join(component);
            if !component.is_file() {
                mistakes.push(format!("stage `{name}`: no file at {}", component.display()));
            }
            let limits = StepLimits {
                memory_bytes: stage.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES),
                timeout_ms: stage.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS),
            };
            if limits.memory_bytes == 0 || limits.timeout_ms == 0 {
                mistakes.push(format!("stage `{name}`: limits must be above zero"));
            }
            SpecStageKind::Step {
                component,
                parameters: stage.parameters,
                limits,
            }
        }
        _ => {
            mistakes.push(format!(
                "stage `{name}`: give one of `model = true`, `model = \"….onnx\"` and `component = \"….wasm\"`"
            ));
            return None;
        }
    };
    let batch = stage.batch;
    Some(SpecStage { name, kind, batch })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named() {
        let text = "model = \"a/b\"\nonnx = \"gone.onnx\"\n[[stage]]\nname = \"x\"\n";
        let error = Spec::parse(text, Path::new("/nowhere"), Path::new("s.toml"))
            .unwrap_err()
            .to_string();
        for part in [
            "`a/b` is not a valid model name",
            "gone.onnx",
            "stage `x`",
            "without `golden`",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn a_graph_of_two_models_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["detect.onnx", "classify.onnx", "nms.wasm", "golden.json"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let text = r#"
            model = "street"
            onnx = "detect.onnx"
            golden = "golden.json"
            [[stage]]
            name = "detector"
            model = true
            [[stage]]
            name = "nms"
            component = "nms.wasm"
            [[stage]]
            name = "classifier"
            model = "classify.onnx"
            batch = 8
            [[edge]]
            from = "nms:crops"
            to = "classifier:input:0"
        "#;
        let spec = Spec::parse(text, folder.path(), Path::new("s.toml")).unwrap();
        assert_eq!(spec.edges[0].to.tensor, "input:0");
        assert_eq!(spec.stages[2].batch, NonZeroU32::new(8));
        assert!(matches!(&spec.stages[2].kind, SpecStageKind::Model(path) if path.ends_with("classify.onnx")));
        for (right, wrong) in [
            ("nms:crops", "crops"),
            ("batch = 8", "batch = 0"),
            ("classify.onnx", "gone.onnx"),
        ] {
            let error = Spec::parse(&text.replace(right, wrong), folder.path(), Path::new("s.toml"));
            assert!(error.is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let error = Spec::parse("modle = \"x\"", Path::new("."), Path::new("s.toml"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("modle"), "{error}");
    }
}
