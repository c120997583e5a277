//! Nodes and names for rewritten parts.

use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto, attribute_proto::AttributeType};

/// A node of the main domain, named after its output.
pub(super) fn node(operator: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.to_owned(),
        name: output.to_owned(),
        input: input.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

pub(super) fn with_int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    });
    node
}

pub(super) fn with_ints(mut node: NodeProto, name: &str, values: &[i64]) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..AttributeProto::default()
    });
    node
}

/// A constant of integers.
pub(super) fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// A name inside a rewritten node. No exporter writes the separator.
pub(super) fn inside(node: &NodeProto, part: &str) -> String {
    let output = node.output.iter().find(|name| !name.is_empty());
    format!("{}‣{part}", output.map_or("", String::as_str))
}

/// An input that may be left out.
pub(super) fn input(node: &NodeProto, position: usize) -> &str {
    node.input.get(position).map_or("", String::as_str)
}
