//! `DynamicQuantizeLSTM` of ONNX Runtime: an `LSTM` with weights in eight bits. The weights become floats once, when the model is
//! loaded; the activations are not quantised at all, so that answers are nearer to those of the float model.

use std::collections::HashMap;

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::names::{input, inside, ints, node, with_int, with_ints};

const FLOAT: i64 = 1;

pub(super) fn dequantise_weights(graph: &mut GraphProto) {
    let is_quantised = |node: &NodeProto| node.op_type == "DynamicQuantizeLSTM";
    if !graph.node.iter().any(is_quantised) {
        return;
    }
    let dims = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.dims.clone()));
    let dims: HashMap<String, Vec<i64>> = dims.collect();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for old in std::mem::take(&mut graph.node) {
        match is_quantised(&old).then(|| as_lstm(&old, &dims)).flatten() {
            Some((new, constants)) => {
                nodes.extend(new);
                graph.initializer.extend(constants);
            }
            None => nodes.push(old),
        }
    }
    graph.node = nodes;
}

/// Inputs: X, W, R, B, sequence_lens, initial_h, initial_c, P, then scale and zero point of W and of R.
fn as_lstm(old: &NodeProto, dims: &HashMap<String, Vec<i64>>) -> Option<(Vec<NodeProto>, Vec<TensorProto>)> {
    let (mut nodes, mut constants) = (Vec::new(), Vec::new());
    let mut lstm = NodeProto {
        op_type: "LSTM".to_owned(),
        domain: String::new(),
        ..old.clone()
    };
    lstm.input.truncate(8);
    for (position, scale_at) in [(1, 8), (2, 10)] {
        let part = |word: &str| inside(old, &format!("{position}/{word}"));
        let (weights, scale, zero) = (input(old, position), input(old, scale_at), input(old, scale_at + 1));
        // One scale a direction, or one a column of each.
        let shape = match dims.get(scale)?.as_slice() {
            [directions] => [*directions, 1, 1],
            [directions, columns] => [*directions, 1, *columns],
            _ => return None,
        };
        constants.push(ints(&part("shape"), &shape));
        let shape_name = part("shape");
        nodes.push(with_int(node("Cast", &[weights], &part("weights")), "to", FLOAT));
        nodes.push(with_int(node("Cast", &[zero], &part("zero")), "to", FLOAT));
        nodes.push(node("Reshape", &[&part("zero"), &shape_name], &part("zeros")));
        nodes.push(node("Reshape", &[scale, &shape_name], &part("scales")));
        nodes.push(node("Sub", &[&part("weights"), &part("zeros")], &part("centred")));
        nodes.push(node("Mul", &[&part("centred"), &part("scales")], &part("float")));
        // They are transposed to what `LSTM` takes.
        nodes.push(with_ints(
            node("Transpose", &[&part("float")], &part("turned")),
            "perm",
            &[0, 2, 1],
        ));
        lstm.input[position] = part("turned");
    }
    while lstm.input.last().is_some_and(String::is_empty) {
        lstm.input.pop();
    }
    nodes.push(lstm);
    Some((nodes, constants))
}
