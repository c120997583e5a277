//! `ZipMap`: scikit-learn's classifiers end in a list of maps from class to probability, which no tensor protocol can carry. The
//! table of probabilities that it is made of goes out under the same name, a column a class.

use tract_onnx::pb::{GraphProto, TensorShapeProto, TypeProto, tensor_shape_proto, type_proto};

const FLOAT: i32 = 1;

/// Says whether there was one.
pub(super) fn as_tensor(graph: &mut GraphProto) -> bool {
    let mut found = false;
    for node in graph.node.iter_mut().filter(|node| node.op_type == "ZipMap") {
        let (Some(output), [_]) = (node.output.first(), node.input.as_slice()) else {
            continue;
        };
        let Some(output) = graph.output.iter_mut().find(|value| value.name == *output) else {
            continue;
        };
        let classes = node
            .attribute
            .iter()
            .map(|attribute| attribute.ints.len() + attribute.strings.len());
        let classes = classes.max().unwrap_or(0) as i64;
        let dimension = |value| tensor_shape_proto::Dimension {
            value: Some(value),
            ..tensor_shape_proto::Dimension::default()
        };
        let rows = dimension(tensor_shape_proto::dimension::Value::DimParam("rows".to_owned()));
        let columns = dimension(tensor_shape_proto::dimension::Value::DimValue(classes));
        let shape = TensorShapeProto {
            dim: vec![rows, columns],
        };
        output.r#type = Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: FLOAT,
                shape: Some(shape),
            })),
            ..TypeProto::default()
        });
        "Identity".clone_into(&mut node.op_type);
        node.domain.clear();
        node.attribute.clear();
        found = true;
    }
    found
}
