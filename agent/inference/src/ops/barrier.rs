//! An operator that gives what it takes, and that tract's rewriting does not see through.
//!
//! tract 0.23 replaces `DequantizeLinear → … → QuantizeLinear` by a table of 256 answers if it believes the operators between
//! to be element-wise. It believes so of `Softmax`, which is wrong, and it makes the table by the datatype that comes out even if
//! another goes in. `rewrite::quantised` puts this operator there.

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{InferenceOp, TValue, Tensor, TractResult},
};

use super::kernel::{Fact, Kernel, build};

/// Its name in a rewritten graph.
pub(crate) const BARRIER: &str = "SkerryBarrier";

#[derive(Debug)]
struct Barrier;

impl Kernel for Barrier {
    fn name(&self) -> &'static str {
        BARRIER
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        Ok(inputs.to_vec())
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        Ok(inputs.iter().map(|input| (**input).clone()).collect())
    }
}

pub(super) fn barrier(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    build(Barrier, node)
}
