#![allow(clippy::unwrap_used)]

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};

use super::{for_all, for_tract, names::node};

fn model(opset: i64, node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: opset,
        }],
        graph: Some(GraphProto {
            node,
            initializer,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// The graph as text, `output = Operator(inputs)`.
fn shown(proto: &ModelProto) -> Vec<String> {
    let show = |node: &NodeProto| format!("{} = {}({})", node.output.join(","), node.op_type, node.input.join(","));
    proto.graph.as_ref().unwrap().node.iter().map(show).collect()
}

fn zero(name: &str, data_type: i32) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        data_type,
        int32_data: vec![0],
        ..TensorProto::default()
    }
}

#[test]
fn quantised_operators_become_float_ones_between_their_scales() {
    let mut add = node("QLinearAdd", &["a", "sa", "za", "b", "sb", "", "sy", "zy"], "y");
    add.domain = "com.microsoft".to_owned();
    let mut proto = model(17, vec![add], vec![zero("za", 2), zero("zy", 2)]);
    for_tract(&mut proto);
    assert_eq!(
        shown(&proto),
        [
            "y‣float 0 = DequantizeLinear(a,sa,za)",
            "y‣float 3 = DequantizeLinear(b,sb)",
            "y‣float = Add(y‣float 0,y‣float 3)",
            "y = QuantizeLinear(y‣float,sy,zy)",
        ]
    );
}

fn quantised_chain(operator: &str, zero_type: i32) -> usize {
    let nodes = vec![
        node("DequantizeLinear", &["x", "s", "z"], "f"),
        node(operator, &["f"], "g"),
        node("QuantizeLinear", &["g", "s", "zq"], "y"),
    ];
    let mut proto = model(17, nodes, vec![zero("z", 2), zero("zq", zero_type)]);
    for_tract(&mut proto);
    let shown = shown(&proto);
    shown.iter().filter(|line| line.contains("SkerryBarrier")).count()
}

#[test]
fn a_barrier_stands_only_where_a_table_would_be_wrong() {
    assert_eq!(quantised_chain("Relu", 2), 0);
    assert_eq!(quantised_chain("Softmax", 2), 1);
    assert_eq!(quantised_chain("Relu", 3), 1);
}

#[test]
fn a_squeeze_without_axes_is_marked_where_the_operator_set_asks_for_them() {
    let squeeze = |opset| {
        let mut proto = model(opset, vec![node("Squeeze", &["x"], "y")], vec![]);
        for_tract(&mut proto);
        shown(&proto)
    };
    assert_eq!(squeeze(11), ["y = SkerrySqueezeOnes(x)"]);
    assert_eq!(squeeze(13), ["y = Squeeze(x)"]);
}

#[test]
fn a_map_of_classes_becomes_a_table() {
    let mut zip = node("ZipMap", &["p"], "y");
    zip.domain = "ai.onnx.ml".to_owned();
    zip.attribute.push(AttributeProto {
        ints: vec![0, 1, 2],
        ..AttributeProto::default()
    });
    let mut proto = model(17, vec![zip], vec![]);
    proto.graph.as_mut().unwrap().output.push(ValueInfoProto {
        name: "y".to_owned(),
        ..ValueInfoProto::default()
    });
    assert!(for_all(&mut proto));
    assert_eq!(shown(&proto), ["y = Identity(p)"]);
    assert!(!for_all(&mut proto));
}
