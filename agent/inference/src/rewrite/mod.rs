//! Rewrites a graph before an engine reads it: what can be said with operators that exist needs no operator of our own.
//!
//! [`for_all`] changes what a model *is* here (a map becomes a tensor), [`for_tract`] only how it is said. Pure. Invariant: names
//! of inputs and outputs stay, and so do the names of all tensors that nodes outside a rewritten part use.

mod names;
mod quantised;
mod recurrent;
mod zip_map;

use tract_onnx::pb::{GraphProto, ModelProto};

use crate::ops;

/// What every engine gets.
pub(crate) fn for_all(proto: &mut ModelProto) -> bool {
    proto.graph.as_mut().is_some_and(zip_map::as_tensor)
}

/// What tract gets.
pub(crate) fn for_tract(proto: &mut ModelProto) {
    let is_main = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let main = proto.opset_import.iter().find(|import| is_main(&import.domain));
    let opset = main.map_or(0, |import| import.version);
    if let Some(graph) = &mut proto.graph {
        rewrite(graph, opset);
    }
}

fn rewrite(graph: &mut GraphProto, opset: i64) {
    for node in &mut graph.node {
        let attributes = &mut node.attribute;
        let inner = attributes
            .iter_mut()
            .flat_map(|attribute| attribute.g.iter_mut().chain(&mut attribute.graphs));
        inner.for_each(|graph| rewrite(graph, opset));
        let without_axes = node.op_type == "Squeeze" && node.attribute.is_empty();
        if without_axes && opset < 13 {
            ops::SQUEEZE_ONES.clone_into(&mut node.op_type);
        }
    }
    recurrent::dequantise_weights(graph);
    quantised::as_float(graph);
    // After the others, since they make such nodes.
    quantised::put_barriers(graph);
}

#[cfg(test)]
mod tests;
