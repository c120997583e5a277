//! The demo's real models and components: loading, golden vectors, and requests that are wrong.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::PathBuf};

use skerry_inference::{
    GoldenError, InferError, LoadError, LoadedBundle, ModelError, Runtime, StepError, WASMTIME_VERSION, check_model,
    compile_component, host_platform,
};
use skerry_shared::{
    bundle::{
        GoldenVectors, Lineage, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind, StepLimits, Tolerance,
    },
    digest::Digest,
    oip::Tensor,
    schema::SchemaVersion,
};

const TOLERANCE: Tolerance = Tolerance {
    absolute: 1e-3,
    relative: 1e-2,
};

fn demo(path: &str) -> Vec<u8> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../firmware-examples/activity-recognition");
    std::fs::read(root.join(path)).unwrap()
}

struct Bundle {
    manifest: Manifest,
    content: BTreeMap<String, Vec<u8>>,
    golden: GoldenVectors,
}

impl Bundle {
    fn load(&self, runtime: &Runtime) -> Result<LoadedBundle, LoadError> {
        LoadedBundle::load(runtime, &self.manifest, &mut |resource| {
            Ok(self.content[resource.name.as_str()].clone())
        })
    }

    fn add(&mut self, name: &str, kind: ResourceKind, content: Vec<u8>) {
        let (digest, size_bytes) = (Digest::of(&content), content.len() as u64);
        self.manifest.resources.push(Resource {
            name: name.parse().unwrap(),
            digest,
            size_bytes,
            kind,
        });
        self.content.insert(name.to_owned(), content);
    }

    fn add_step(&mut self, name: &str, parameters: &[(&str, &str)]) {
        let wasm = demo(&format!("steps/{name}.wasm"));
        let component = format!("{name}.wasm");
        let kind = ResourceKind::CompiledComponent {
            component: component.parse().unwrap(),
            platform: host_platform(),
            wasmtime: WASMTIME_VERSION.to_owned(),
        };
        self.add(
            &format!("{name}.cwasm"),
            kind,
            compile_component(&wasm, &host_platform()).unwrap(),
        );
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let kind = StageKind::Step {
            component: component.parse().unwrap(),
            parameters: parameters.iter().map(pair).collect(),
            limits: StepLimits {
                memory_bytes: 16 << 20,
                timeout_ms: 1000,
            },
        };
        self.manifest.pipeline.stages.push(Stage {
            name: name.parse().unwrap(),
            kind,
            batch: None,
        });
    }
}

const SCALE: &str = "7.072306,6.794088,3.546373,2.111920,1.820751,3.516586";

fn bundle(variant: &str) -> Bundle {
    let golden: GoldenVectors = serde_json::from_slice(&demo(&format!("models/{variant}/golden.json"))).unwrap();
    let first = &golden.vectors[0];
    let pipeline = Pipeline {
        inputs: first.inputs.iter().map(Tensor::metadata).collect(),
        outputs: first.outputs.iter().map(Tensor::metadata).collect(),
        stages: Vec::new(),
        edges: Vec::new(),
    };
    let manifest = Manifest {
        schema: SchemaVersion::CURRENT,
        model: "activity-recognition".parse().unwrap(),
        version: "1".parse().unwrap(),
        created_at_ms: 0,
        resources: Vec::new(),
        pipeline,
        golden: None,
        lineage: Lineage::default(),
    };
    let mut bundle = Bundle {
        manifest,
        content: BTreeMap::new(),
        golden,
    };
    bundle.add_step("features", &[("channel_scale", SCALE)]);
    bundle.add(
        "model.onnx",
        ResourceKind::OnnxModel,
        demo(&format!("models/{variant}/model.onnx")),
    );
    let kind = StageKind::Model {
        resource: "model.onnx".parse().unwrap(),
    };
    bundle.manifest.pipeline.stages.push(Stage {
        name: "classifier".parse().unwrap(),
        kind,
        batch: None,
    });
    bundle.add_step("label", &[("labels", "Standing,Running,Walking,Badminton")]);
    bundle
}

fn golden_of(variant: &str) -> Result<(), GoldenError> {
    let bundle = bundle(variant);
    bundle
        .load(&Runtime::new().unwrap())
        .unwrap()
        .check_golden(&bundle.golden, TOLERANCE)
}

#[test]
fn good_versions_reproduce_their_golden_vectors() {
    golden_of("v1").unwrap();
    golden_of("v2").unwrap();
}

#[test]
fn a_broken_export_fails_its_golden_vectors() {
    assert!(matches!(golden_of("v3"), Err(GoldenError::Mismatch { .. })));
}

#[test]
fn wrong_requests_are_named_and_harmless() {
    let bundle = bundle("v1");
    let loaded = bundle.load(&Runtime::new().unwrap()).unwrap();
    let window = |shape: Vec<usize>, value: f32| {
        let values = vec![value; shape.iter().product()];
        Tensor::from_f32("window", shape, &values).unwrap()
    };
    assert!(matches!(loaded.infer(vec![]), Err(InferError::MissingInput(name)) if name == "window"));
    let stranger = window(vec![1, 6, 100], 0.0).renamed("x");
    assert!(matches!(loaded.infer(vec![stranger]), Err(InferError::UnknownInput(name)) if name == "x"));
    let error = loaded.infer(vec![window(vec![1, 3, 100], 0.0)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `window` is FP32 [1, 3, 100], expected FP32 [1, 6, 100]"
    );
    let error = loaded.infer(vec![window(vec![1, 6, 100], f32::NAN)]).unwrap_err();
    assert!(
        matches!(
            &error,
            InferError::Step {
                source: StepError::Input(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.is_bad_request());
    loaded.infer(bundle.golden.vectors[0].inputs.clone()).unwrap();
}

#[test]
fn several_threads_get_the_same_answers() {
    let bundle = bundle("v2");
    let loaded = bundle.load(&Runtime::new().unwrap()).unwrap();
    let answer = loaded.infer(bundle.golden.vectors[0].inputs.clone()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert_eq!(loaded.infer(bundle.golden.vectors[0].inputs.clone()).unwrap(), answer);
                }
            });
        }
    });
}

#[test]
fn a_component_of_another_wasmtime_is_refused_by_both_names() {
    let mut bundle = bundle("v1");
    if let ResourceKind::CompiledComponent { wasmtime, .. } = &mut bundle.manifest.resources[0].kind {
        *wasmtime = "47.0.0".to_owned();
    }
    let error = bundle.load(&Runtime::new().unwrap()).err().unwrap().to_string();
    assert!(error.contains("47.0.0") && error.contains(WASMTIME_VERSION), "{error}");
}

#[test]
fn a_refused_parameter_is_said_when_the_bundle_loads() {
    let mut bundle = bundle("v1");
    if let StageKind::Step { parameters, .. } = &mut bundle.manifest.pipeline.stages[0].kind {
        parameters.insert("channel_scale".to_owned(), "one".to_owned());
    }
    let error = bundle.load(&Runtime::new().unwrap()).err().unwrap();
    assert!(
        matches!(
            error,
            LoadError::Step {
                source: StepError::Parameter(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn too_little_memory_stops_the_step_only() {
    let mut bundle = bundle("v1");
    if let StageKind::Step { limits, .. } = &mut bundle.manifest.pipeline.stages[0].kind {
        limits.memory_bytes = 65536;
    }
    assert!(bundle.load(&Runtime::new().unwrap()).is_err());
}

#[test]
fn a_stage_whose_input_is_not_given_is_named() {
    let mut bundle = bundle("v1");
    bundle.manifest.pipeline.stages.remove(0);
    let error = bundle.load(&Runtime::new().unwrap()).err().unwrap().to_string();
    let expected = "edge `inputs:features -> classifier:features`: there is no `inputs:features`, only [\"window\"]";
    assert_eq!(error, expected);
}

#[test]
fn a_truncated_model_is_refused() {
    let onnx = demo("models/v2/model.onnx");
    for len in [0, 1, 100, onnx.len() / 2, onnx.len() - 1] {
        assert!(
            matches!(
                check_model(&onnx[..len]),
                Err(ModelError::Parse(_) | ModelError::NotAdmitted(_))
            ),
            "{len}"
        );
    }
    assert_eq!(check_model(&onnx).unwrap().outputs[0].shape, [1, 4]);
}

#[test]
fn a_model_that_lies_about_its_data_is_refused() {
    use tract_onnx::{pb::ModelProto, prelude::Framework};
    let mut proto: ModelProto = tract_onnx::onnx()
        .proto_model_for_read(&mut demo("models/v2/model.onnx").as_slice())
        .unwrap();
    let graph = proto.graph.as_mut().unwrap();
    let tensor = graph
        .initializer
        .iter_mut()
        .max_by_key(|tensor| tensor.raw_data.len())
        .unwrap();
    tensor.dims[0] += 1;
    let bytes = prost::Message::encode_to_vec(&proto);
    let error = check_model(&bytes).unwrap_err();
    assert!(matches!(error, ModelError::NotAdmitted(_)), "{error}");
}
