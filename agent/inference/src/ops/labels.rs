//! The classes of a classifier: numbers or texts.

use tract_onnx::tract_hir::internal::{DatumType, Tensor, TractResult, tensor1};

/// Labels by class.
#[derive(Debug)]
pub(super) enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

impl Labels {
    /// Texts if there are any.
    pub(super) fn of(texts: Vec<String>, ints: &[i64]) -> Labels {
        if texts.is_empty() {
            Labels::Ints(ints.to_vec())
        } else {
            Labels::Texts(texts)
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Labels::Ints(labels) => labels.len(),
            Labels::Texts(labels) => labels.len(),
        }
    }

    pub(super) fn datum(&self) -> DatumType {
        match self {
            Labels::Ints(_) => DatumType::I64,
            Labels::Texts(_) => DatumType::String,
        }
    }

    /// The labels of the classes that have won, a row each.
    pub(super) fn choose(&self, winners: &[usize]) -> TractResult<Tensor> {
        Ok(match self {
            Labels::Ints(labels) => {
                let winners: Vec<i64> = winners.iter().map(|class| labels[*class]).collect();
                Tensor::from_shape(&[winners.len()], &winners)?
            }
            Labels::Texts(labels) => {
                let winners: Vec<String> = winners.iter().map(|class| labels[*class].clone()).collect();
                tensor1(&winners)
            }
        })
    }
}
