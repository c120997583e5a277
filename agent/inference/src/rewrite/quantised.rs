//! Quantised graphs: ONNX Runtime's `QLinear…` operators said with standard ones, and barriers where tract would take a chain
//! between dequantising and quantising for what it is not.

use std::collections::HashMap;

use tract_onnx::pb::{GraphProto, NodeProto};

use super::names::{input, inside, node};
use crate::ops::BARRIER;

const UINT8: i32 = 2;

/// Operators that tract believes to be element-wise and that are not.
const NOT_ELEMENT_WISE: &[&str] = &["Softmax", "LogSoftmax", "Hardmax"];

/// Replaces `QLinear…` of `com.microsoft` by `DequantizeLinear`, the float operator and `QuantizeLinear`, which is their
/// definition.
pub(super) fn as_float(graph: &mut GraphProto) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for old in std::mem::take(&mut graph.node) {
        match parts(&old) {
            Some(new) => nodes.extend(new),
            None => nodes.push(old),
        }
    }
    graph.node = nodes;
}

fn parts(old: &NodeProto) -> Option<Vec<NodeProto>> {
    let operator = old
        .op_type
        .strip_prefix("QLinear")
        .filter(|_| old.domain == "com.microsoft")?;
    // Groups of tensor, scale, zero point; the output has no tensor.
    let (groups, output) = match operator {
        "Add" | "Mul" => (vec![0, 3], 6),
        "Sigmoid" | "LeakyRelu" | "GlobalAveragePool" | "AveragePool" | "Softmax" => (vec![0], 3),
        "Concat" => ((2..old.input.len()).step_by(3).collect(), 0),
        _ => return None,
    };
    let channels_last = |name: &str| old.attribute.iter().any(|a| a.name == name && a.i != 0);
    if channels_last("channels_last") {
        return None;
    }
    let mut new = Vec::with_capacity(groups.len() + 2);
    let mut floats = Vec::with_capacity(groups.len());
    for group in groups {
        let float = inside(old, &format!("float {group}"));
        let taken = [input(old, group), input(old, group + 1), input(old, group + 2)];
        let taken = if taken[2].is_empty() { &taken[..2] } else { &taken[..] };
        new.push(node("DequantizeLinear", taken, &float));
        floats.push(float);
    }
    let mut float = NodeProto {
        op_type: operator.to_owned(),
        domain: String::new(),
        input: floats,
        output: vec![inside(old, "float")],
        ..old.clone()
    };
    // These say how the quantised form is stored, which the float form has no word for.
    float
        .attribute
        .retain(|attribute| !matches!(attribute.name.as_str(), "channels_last" | "opset"));
    let quantise = [float.output[0].as_str(), input(old, output), input(old, output + 1)];
    let quantise = if quantise[2].is_empty() {
        &quantise[..2]
    } else {
        &quantise[..]
    };
    let last = node("QuantizeLinear", quantise, old.output.first()?);
    new.push(float);
    new.push(last);
    Some(new)
}

/// Puts a barrier behind each `DequantizeLinear` whose chain tract would replace by a wrong table: see [`crate::ops::BARRIER`].
pub(super) fn put_barriers(graph: &mut GraphProto) {
    let mut barriers = Vec::new();
    {
        let chain = Chains::of(graph);
        for (position, node) in graph.node.iter().enumerate() {
            if node.op_type == "DequantizeLinear" && chain.misleads(position) {
                barriers.push(position);
            }
        }
    }
    for position in barriers {
        let old = &mut graph.node[position];
        let before = inside(old, "before the barrier");
        let output = std::mem::replace(&mut old.output[0], before.clone());
        let mut barrier = node(BARRIER, &[&before], &output);
        barrier.name = format!("{before}‣barrier");
        graph.node.push(barrier);
    }
}

/// Who uses a tensor, and of which type constants are.
struct Chains<'a> {
    graph: &'a GraphProto,
    users: HashMap<&'a str, Vec<usize>>,
    types: HashMap<&'a str, i32>,
}

impl<'a> Chains<'a> {
    fn of(graph: &'a GraphProto) -> Chains<'a> {
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        for (position, node) in graph.node.iter().enumerate() {
            for name in &node.input {
                users.entry(name).or_default().push(position);
            }
        }
        let initializers = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.data_type));
        let constants = graph
            .node
            .iter()
            .filter(|node| node.op_type == "Constant")
            .filter_map(|node| {
                let tensor = node.attribute.iter().find_map(|attribute| attribute.t.as_ref())?;
                Some((node.output.first()?.as_str(), tensor.data_type))
            });
        let types = initializers.chain(constants).collect();
        Chains { graph, users, types }
    }

    /// True when the chain of single users that begins here ends in a `QuantizeLinear` and has on its way what tract takes
    /// for element-wise, or comes out in another type than it went in.
    fn misleads(&self, dequantise: usize) -> bool {
        let first = &self.graph.node[dequantise];
        let mut at = first;
        let mut seen_other = false;
        // A chain has no circle: admission has seen to it.
        while let Some([user]) = at
            .output
            .first()
            .and_then(|name| self.users.get(name.as_str()))
            .map(Vec::as_slice)
        {
            at = &self.graph.node[*user];
            let of = |name: &str| self.types.get(name).copied();
            if at.op_type == "QuantizeLinear" {
                let from = of(input(first, 2));
                let to = if input(at, 2).is_empty() {
                    Some(UINT8)
                } else {
                    of(input(at, 2))
                };
                return seen_other || from.is_none() || from != to;
            }
            // With a second tensor it is no chain. Constants, such as the limits of a `Clip`, are part of the operator.
            let tensors = at.input.iter().filter(|name| !name.is_empty() && of(name).is_none());
            if tensors.count() != 1 {
                return false;
            }
            seen_other |= NOT_ELEMENT_WISE.contains(&at.op_type.as_str());
        }
        false
    }
}
