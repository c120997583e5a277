//! What `ai.onnx.ml` does with scores at the end: `post_transform`.

use tract_onnx::tract_hir::internal::{TractResult, bail};

/// The transforms of ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    pub(super) fn parse(word: &str) -> TractResult<PostTransform> {
        Ok(match word {
            "NONE" => PostTransform::None,
            "SOFTMAX" => PostTransform::Softmax,
            "LOGISTIC" => PostTransform::Logistic,
            "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
            "PROBIT" => PostTransform::Probit,
            other => bail!("post_transform `{other}` is not known"),
        })
    }

    pub(super) fn numbered(number: i64) -> TractResult<PostTransform> {
        Ok(match number {
            0 => PostTransform::None,
            1 => PostTransform::Softmax,
            2 => PostTransform::Logistic,
            3 => PostTransform::SoftmaxZero,
            4 => PostTransform::Probit,
            other => bail!("post_transform {other} is not known"),
        })
    }

    /// Transforms the scores of one row.
    pub(super) fn apply(self, scores: &mut [f64]) {
        match self {
            PostTransform::None => (),
            PostTransform::Logistic => scores.iter_mut().for_each(|score| *score = logistic(*score)),
            PostTransform::Probit => scores.iter_mut().for_each(|score| *score = probit(*score)),
            PostTransform::Softmax => softmax(scores, |_| true),
            // A score of zero says nothing about its class and stays zero.
            PostTransform::SoftmaxZero => softmax(scores, |score| score.abs() > 1e-7),
        }
    }
}

pub(super) fn logistic(score: f64) -> f64 {
    1.0 / (1.0 + (-score).exp())
}

fn softmax(scores: &mut [f64], counts: impl Fn(f64) -> bool) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for score in scores.iter_mut() {
        *score = if counts(*score) {
            (*score - max).exp()
        } else {
            *score * (-max).exp()
        };
    }
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

/// The inverse of the normal distribution by Winitzki's approximation of the inverse error function, which ONNX Runtime uses too.
fn probit(score: f64) -> f64 {
    const A: f64 = 0.147;
    let x = 2.0 * score - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let half = 2.0 / (std::f64::consts::PI * A) + log / 2.0;
    let root = ((half * half - log / A).sqrt() - half).sqrt();
    std::f64::consts::SQRT_2 * root.copysign(x)
}
