//! `Squeeze` without axes before operator set 13: every dimension of one goes. ONNX allows it, tract's own asks for the axes.

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::{
        internal::{InferenceOp, TractResult, expand},
        ops::array::Squeeze,
    },
};

/// Its name in a rewritten graph.
pub(crate) const SQUEEZE_ONES: &str = "SkerrySqueezeOnes";

pub(super) fn squeeze_ones(_: &ParsingContext, _: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Squeeze::new(None)), Vec::new()))
}
