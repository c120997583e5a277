//! Graphs of small models: where tensors go, what is refused when they do not fit, and calls in batches.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;

use prost::Message;
use skerry_inference::{InferError, LoadError, LoadedBundle, Runtime};
use skerry_shared::{
    bundle::{Edge, Lineage, Manifest, Pipeline, PipelineError, Resource, ResourceKind, Stage, StageKind},
    digest::Digest,
    oip::{Datatype, Tensor, TensorMetadata},
    schema::SchemaVersion,
};
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

/// A tensor of `FP32`; -1 is a dimension called `N`.
fn fp32(name: &str, shape: &[i64]) -> TensorMetadata {
    TensorMetadata {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: shape.to_vec(),
    }
}

fn value(tensor: &TensorMetadata) -> ValueInfoProto {
    let dim = |length: &i64| Dimension {
        value: Some(match length {
            -1 => dimension::Value::DimParam("N".to_owned()),
            length => dimension::Value::DimValue(*length),
        }),
        ..Dimension::default()
    };
    let tensor_type = type_proto::Tensor {
        elem_type: 1,
        shape: Some(TensorShapeProto {
            dim: tensor.shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: tensor.name.clone(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor_type)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// A model of one operator.
fn onnx(operator: &str, inputs: &[TensorMetadata], output: &TensorMetadata) -> Vec<u8> {
    let node = NodeProto {
        op_type: operator.to_owned(),
        input: inputs.iter().map(|input| input.name.clone()).collect(),
        output: vec![output.name.clone()],
        ..NodeProto::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            version: 17,
            ..OperatorSetIdProto::default()
        }],
        graph: Some(GraphProto {
            name: "g".to_owned(),
            node: vec![node],
            input: inputs.iter().map(value).collect(),
            output: vec![value(output)],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

#[derive(Default)]
struct Bundle {
    stages: Vec<Stage>,
    resources: Vec<Resource>,
    content: Vec<Vec<u8>>,
}

impl Bundle {
    /// A bundle with a model of one operator more.
    fn with(mut self, name: &str, operator: &str, inputs: &[TensorMetadata], output: &TensorMetadata) -> Bundle {
        let content = onnx(operator, inputs, output);
        let resource = Resource {
            name: format!("{name}.onnx").parse().unwrap(),
            digest: Digest::of(&content),
            size_bytes: content.len() as u64,
            kind: ResourceKind::OnnxModel,
        };
        self.stages.push(Stage {
            name: name.parse().unwrap(),
            kind: StageKind::Model {
                resource: resource.name.clone(),
            },
            batch: None,
        });
        self.resources.push(resource);
        self.content.push(content);
        self
    }

    fn batch(mut self, rows: u32) -> Bundle {
        self.stages.last_mut().unwrap().batch = NonZeroU32::new(rows);
        self
    }

    fn manifest(&self, inputs: &[TensorMetadata], outputs: &[TensorMetadata], edges: &[(&str, &str)]) -> Manifest {
        let edge = |(from, to): &(&str, &str)| Edge {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        };
        let pipeline = Pipeline {
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
            stages: self.stages.clone(),
            edges: edges.iter().map(edge).collect(),
        };
        Manifest {
            schema: pipeline.schema(),
            model: "graph".parse().unwrap(),
            version: "1".parse().unwrap(),
            created_at_ms: 0,
            resources: self.resources.clone(),
            pipeline,
            golden: None,
            lineage: Lineage::default(),
        }
    }

    fn load(&self, manifest: &Manifest) -> Result<LoadedBundle, LoadError> {
        let mut read = |resource: &Resource| {
            let position = self.resources.iter().position(|other| other == resource);
            Ok(self.content[position.unwrap()].clone())
        };
        LoadedBundle::load(&Runtime::new().unwrap(), manifest, &mut read)
    }
}

fn ask(bundle: &LoadedBundle, shape: &[usize], values: &[f32]) -> Result<Vec<Tensor>, InferError> {
    bundle.infer(vec![Tensor::from_f32("x", shape.to_vec(), values).unwrap()])
}

/// `-x` and `relu(x)` side by side, then their sum.
fn diamond() -> Bundle {
    Bundle::default()
        .with("sum", "Add", &[fp32("a", &[2]), fp32("b", &[2])], &fp32("c", &[2]))
        .with("negative", "Neg", &[fp32("x", &[2])], &fp32("n", &[2]))
        .with("positive", "Relu", &[fp32("x", &[2])], &fp32("p", &[2]))
}

const DIAMOND: [(&str, &str); 5] = [
    ("inputs:x", "negative:x"),
    ("inputs:x", "positive:x"),
    ("negative:n", "sum:a"),
    ("positive:p", "sum:b"),
    ("sum:c", "outputs:y"),
];

#[test]
fn a_tensor_goes_to_all_who_take_it_and_each_takes_it_under_its_own_name() {
    let bundle = diamond();
    let manifest = bundle.manifest(&[fp32("x", &[2])], &[fp32("y", &[2])], &DIAMOND);
    let loaded = bundle.load(&manifest).unwrap();
    for _ in 0..2 {
        let answer = ask(&loaded, &[2], &[3.0, -4.0]).unwrap();
        assert_eq!(answer, [Tensor::from_f32("y", vec![2], &[0.0, 4.0]).unwrap()]);
    }
}

#[test]
fn a_tensor_of_the_request_and_one_from_the_middle_can_be_in_the_answer() {
    let bundle = diamond();
    let outputs = [fp32("y", &[2]), fp32("same", &[2]), fp32("middle", &[2])];
    let edges = [
        &DIAMOND[..],
        &[("inputs:x", "outputs:same"), ("negative:n", "outputs:middle")],
    ]
    .concat();
    let loaded = bundle
        .load(&bundle.manifest(&[fp32("x", &[2])], &outputs, &edges))
        .unwrap();
    let answer = ask(&loaded, &[2], &[1.0, -1.0]).unwrap();
    let values: Vec<Vec<f32>> = answer.iter().map(|tensor| tensor.to_f32().unwrap()).collect();
    assert_eq!(values, [[0.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]);
}

#[test]
fn an_edge_that_does_not_fit_is_named_with_both_shapes_and_types() {
    let load = |given: TensorMetadata| {
        let bundle = diamond();
        let manifest = bundle.manifest(&[given], &[fp32("y", &[2])], &DIAMOND);
        bundle.load(&manifest).err().unwrap().to_string()
    };
    assert_eq!(
        load(fp32("x", &[3])),
        "edge `inputs:x -> negative:x` does not fit: FP32 [3] is given, FP32 [2] is taken"
    );
    let whole = TensorMetadata {
        datatype: Datatype::Int64,
        ..fp32("x", &[2])
    };
    assert_eq!(
        load(whole),
        "edge `inputs:x -> negative:x` does not fit: INT64 [2] is given, FP32 [2] is taken"
    );
}

#[test]
fn what_the_stages_lack_is_named() {
    let bundle = diamond();
    let load = |change: &dyn Fn(&mut Vec<Edge>)| {
        let mut manifest = bundle.manifest(&[fp32("x", &[2])], &[fp32("y", &[2])], &DIAMOND);
        change(&mut manifest.pipeline.edges);
        bundle.load(&manifest).err().unwrap().to_string()
    };
    assert_eq!(
        load(&|edges| edges[2].from = "negative:z".parse().unwrap()),
        "edge `negative:z -> sum:a`: there is no `negative:z`, only [\"n\"]"
    );
    assert_eq!(
        load(&|edges| edges[2].to = "sum:z".parse().unwrap()),
        "edge `negative:n -> sum:z`: there is no `sum:z`, only [\"a\", \"b\"]"
    );
    assert_eq!(
        load(&|edges| edges[2].to = "positive:x".parse().unwrap()),
        "two edges end at `positive:x`"
    );
    assert_eq!(
        load(&|edges| {
            edges.remove(1);
        }),
        "no edge ends at `positive:x`, which takes FP32 [2]"
    );
}

#[test]
fn a_cycle_is_refused_before_anything_is_read() {
    let bundle = diamond();
    let mut manifest = bundle.manifest(&[fp32("x", &[2])], &[fp32("y", &[2])], &DIAMOND);
    manifest.pipeline.edges[0].from = "sum:c".parse().unwrap();
    let mut read = |_: &Resource| panic!("nothing may be read");
    let error = LoadedBundle::load(&Runtime::new().unwrap(), &manifest, &mut read);
    let error = error.err().unwrap();
    assert!(
        matches!(&error, LoadError::Graph(PipelineError::Cycle(names)) if names.len() == 3),
        "{error}"
    );
}

#[test]
fn a_graph_in_a_manifest_of_the_old_schema_is_refused() {
    let bundle = diamond();
    let mut manifest = bundle.manifest(&[fp32("x", &[2])], &[fp32("y", &[2])], &DIAMOND);
    manifest.schema = SchemaVersion { major: 1, minor: 0 };
    let error = bundle.load(&manifest).err().unwrap().to_string();
    assert!(error.contains("schema 1.0") && error.contains("schema 2.0"), "{error}");
}

/// One stage, `-x`, which takes `taken` and is called with batches.
fn batched(taken: &[i64], rows: u32) -> (Bundle, Manifest) {
    let bundle = Bundle::default()
        .with("negative", "Neg", &[fp32("x", taken)], &fp32("y", taken))
        .batch(rows);
    let mut any = taken.to_vec();
    any[0] = -1;
    let manifest = bundle.manifest(&[fp32("x", &any)], &[fp32("y", &any)], &[]);
    (bundle, manifest)
}

#[test]
fn rows_come_back_in_order_whatever_the_cut() {
    for (taken, rows) in [([1, 2], 1), ([-1, 2], 1), ([-1, 2], 2), ([-1, 2], 100)] {
        let (bundle, manifest) = batched(&taken, rows);
        let loaded = bundle.load(&manifest).unwrap();
        for count in [0, 1, 2, 5] {
            let values: Vec<f32> = (0..2 * count).map(|value| value as f32).collect();
            let answer = ask(&loaded, &[count, 2], &values).unwrap();
            let expected: Vec<f32> = values.iter().map(|value| -value).collect();
            assert_eq!(answer, [Tensor::from_f32("y", vec![count, 2], &expected).unwrap()]);
        }
    }
}

#[test]
fn a_stage_with_a_fixed_number_of_rows_cannot_be_called_with_batches() {
    for (taken, rows) in [([4, 2], 4), ([4, 2], 1), ([1, 2], 8)] {
        let (bundle, manifest) = batched(&taken, rows);
        let error = bundle.load(&manifest).err().unwrap();
        assert!(matches!(error, LoadError::Batch { .. }), "{error}");
    }
}

#[test]
fn more_rows_than_a_request_may_have_are_refused() {
    let (bundle, manifest) = batched(&[-1, 2], 64);
    let loaded = bundle.load(&manifest).unwrap();
    let error = ask(&loaded, &[5000, 2], &[0.0; 10_000]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "stage `negative` in batches: there are 5000 rows, at most 4096 are allowed"
    );
}
