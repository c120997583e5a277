//! Finds the inputs whose data decides a shape or a branch: a `Reshape`'s shape, a `Slice`'s ends, the sample rate that an `If` asks
//! for. tract plans with shapes that it knows, so these are part of what a plan is made for.

use std::collections::HashSet;

use skerry_shared::oip::{Datatype, TensorMetadata};
use tract_onnx::pb::{GraphProto, NodeProto};

/// Elements of such an input: shapes and scalars are short. Data by the thousand would make a plan a request.
const ELEMENTS_MAX: i64 = 16;

/// For each input, whether its data decides a shape.
pub(super) fn find(graph: &GraphProto, inputs: &[TensorMetadata]) -> Vec<bool> {
    inputs
        .iter()
        .map(|input| is_short(input) && decides(graph, &input.name))
        .collect()
}

fn is_short(input: &TensorMetadata) -> bool {
    let whole = matches!(input.datatype, Datatype::Int64 | Datatype::Int32 | Datatype::Bool);
    let short = match input.shape.as_slice() {
        [] => true,
        [length] => (0..=ELEMENTS_MAX).contains(length),
        _ => false,
    };
    whole && short
}

/// Follows the input through arithmetic on shapes, into inner graphs too, to a place that wants a constant.
fn decides(graph: &GraphProto, input: &str) -> bool {
    let mut reached = HashSet::from([input]);
    loop {
        let before = reached.len();
        if follow(graph, &mut reached) {
            return true;
        }
        if reached.len() == before {
            return false;
        }
    }
}

fn follow<'a>(graph: &'a GraphProto, reached: &mut HashSet<&'a str>) -> bool {
    for node in &graph.node {
        let takes: Vec<usize> = (0..node.input.len())
            .filter(|at| reached.contains(node.input[*at].as_str()))
            .collect();
        if takes.iter().any(|at| wants_constant(node, *at)) {
            return true;
        }
        if !takes.is_empty() && is_shape_arithmetic(&node.op_type) {
            reached.extend(node.output.iter().map(String::as_str));
        }
        let inner = node
            .attribute
            .iter()
            .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        for inner in inner {
            if follow(inner, reached) {
                return true;
            }
        }
    }
    false
}

fn wants_constant(node: &NodeProto, at: usize) -> bool {
    match node.op_type.as_str() {
        "Reshape" | "Expand" | "Tile" | "Unsqueeze" | "Squeeze" | "TopK" | "Split" | "OneHot" | "CumSum" | "Trilu"
        | "Upsample" | "CenterCropPad" => at == 1,
        "Pad" => at == 1 || at == 3,
        "Slice" | "Resize" => at >= 1,
        "ConstantOfShape" | "If" => at == 0,
        "Range" => true,
        operator => operator.starts_with("Reduce") && at == 1,
    }
}

fn is_shape_arithmetic(operator: &str) -> bool {
    matches!(
        operator,
        "Identity"
            | "Cast"
            | "Equal"
            | "Not"
            | "And"
            | "Or"
            | "Greater"
            | "Less"
            | "GreaterOrEqual"
            | "LessOrEqual"
            | "Gather"
            | "Concat"
            | "Unsqueeze"
            | "Squeeze"
            | "Add"
            | "Sub"
            | "Mul"
            | "Div"
            | "Where"
            | "Min"
            | "Max"
            | "Neg"
            | "Abs"
            | "Floor"
            | "Ceil"
    )
}
