//! `ai.onnx.ml` operators that weigh features: `LinearClassifier`, which tract has for numbers as labels only, and `SVMRegressor`.

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{DatumType, InferenceOp, TDim, TValue, TVec, Tensor, TractResult, bail, ensure},
};

use super::{
    attributes::{floats, int, ints, string, strings},
    kernel::{Fact, Kernel, build},
    labels::Labels,
    post::PostTransform,
};

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// The features of an input as f32, row by row, and how many each row has.
fn rows(input: &Tensor) -> TractResult<(Vec<f32>, usize)> {
    let columns = input.shape().last().copied().unwrap_or(0);
    ensure!(
        columns > 0 && (1..=2).contains(&input.rank()),
        "features come in rows, not {:?}",
        input.shape()
    );
    let cast = input.cast_to::<f32>()?;
    Ok((cast.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(), columns))
}

fn count_of_rows(input: &Fact) -> TractResult<TDim> {
    match input.1.as_slice() {
        [_] => Ok(1.into()),
        [rows, _] => Ok(rows.clone()),
        other => bail!("features come in rows, not {other:?}"),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[derive(Debug)]
struct LinearClassifier {
    /// A row of weights a score.
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    labels: Labels,
    post: PostTransform,
}

impl LinearClassifier {
    /// Finishes the scores of one row and says which class has won. One score decides between two classes by its sign.
    fn decide(&self, scores: &mut Vec<f64>) -> usize {
        if let [score] = scores[..] {
            *scores = match self.post {
                PostTransform::Logistic => {
                    let mut both = [-score, score];
                    self.post.apply(&mut both);
                    both.to_vec()
                }
                _ => vec![1.0 - score, score],
            };
            return usize::from(score > 0.0);
        }
        let mut winner = 0;
        for class in 1..scores.len() {
            if scores[class] > scores[winner] {
                winner = class;
            }
        }
        self.post.apply(scores);
        winner
    }
}

impl Kernel for LinearClassifier {
    fn name(&self) -> &'static str {
        "LinearClassifier"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let rows = count_of_rows(&inputs[0])?;
        let scores: TVec<TDim> = [rows.clone(), self.labels.len().into()].into_iter().collect();
        Ok(vec![
            (self.labels.datum(), [rows].into_iter().collect()),
            (DatumType::F32, scores),
        ])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let (values, columns) = rows(&inputs[0])?;
        ensure!(
            self.coefficients.len() == columns * self.intercepts.len(),
            "LinearClassifier has {} coefficients for {columns} features and {} scores",
            self.coefficients.len(),
            self.intercepts.len()
        );
        let (mut winners, mut out) = (Vec::new(), Vec::new());
        for row in values.chunks_exact(columns) {
            let weights = self.coefficients.chunks_exact(columns).zip(&self.intercepts);
            let mut scores: Vec<f64> = weights
                .map(|(weights, base)| dot(row, weights) + f64::from(*base))
                .collect();
            winners.push(self.decide(&mut scores));
            out.extend(scores.iter().map(|score| *score as f32));
        }
        let scores = Tensor::from_shape(&[winners.len(), self.labels.len()], &out)?;
        Ok(vec![self.labels.choose(&winners)?, scores])
    }
}

pub(super) fn classifier(_: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::of(strings(node, "classlabels_strings")?, ints(node, "classlabels_ints"));
    let intercepts = floats(node, "intercepts");
    ensure!(
        labels.len() >= 2 && (intercepts.len() == labels.len() || (intercepts.len() == 1 && labels.len() == 2)),
        "LinearClassifier has {} scores for {} classes",
        intercepts.len(),
        labels.len()
    );
    let classifier = LinearClassifier {
        coefficients: floats(node, "coefficients").to_vec(),
        intercepts: intercepts.to_vec(),
        labels,
        post: PostTransform::parse(string(node, "post_transform", "NONE")?)?,
    };
    build(classifier, node)
}

#[derive(Clone, Copy, Debug)]
enum Similarity {
    Linear,
    Polynomial,
    Gaussian,
    Sigmoid,
}

/// How alike two rows are, in the sense of a support vector machine.
#[derive(Debug)]
struct Similar {
    kind: Similarity,
    gamma: f64,
    constant: f64,
    degree: f64,
}

impl Similar {
    fn of(node: &NodeProto) -> TractResult<Similar> {
        let kind = match string(node, "kernel_type", "LINEAR")? {
            "LINEAR" => Similarity::Linear,
            "POLY" => Similarity::Polynomial,
            "RBF" => Similarity::Gaussian,
            "SIGMOID" => Similarity::Sigmoid,
            other => bail!("kernel_type `{other}` is not known"),
        };
        let parameters = floats(node, "kernel_params");
        let parameter = |position: usize| parameters.get(position).copied().map_or(0.0, f64::from);
        Ok(Similar {
            kind,
            gamma: parameter(0),
            constant: parameter(1),
            degree: parameter(2),
        })
    }

    fn measure(&self, a: &[f32], b: &[f32]) -> f64 {
        match self.kind {
            Similarity::Linear => dot(a, b),
            Similarity::Polynomial => (self.gamma * dot(a, b) + self.constant).powf(self.degree),
            Similarity::Sigmoid => (self.gamma * dot(a, b) + self.constant).tanh(),
            Similarity::Gaussian => {
                let distance: f64 = a
                    .iter()
                    .zip(b)
                    .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                    .sum();
                (-self.gamma * distance).exp()
            }
        }
    }
}

#[derive(Debug)]
struct SvmRegressor {
    similar: Similar,
    /// Support vectors, row by row; none in the linear form, where the coefficients are weights of features.
    vectors: Vec<f32>,
    coefficients: Vec<f32>,
    rho: f64,
    /// The answer is only on which side of the border a row is.
    one_class: bool,
}

impl Kernel for SvmRegressor {
    fn name(&self) -> &'static str {
        "SVMRegressor"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let shape: TVec<TDim> = [count_of_rows(&inputs[0])?, 1.into()].into_iter().collect();
        Ok(vec![(DatumType::F32, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let (values, columns) = rows(&inputs[0])?;
        let wanted = if self.vectors.is_empty() {
            self.coefficients.len()
        } else {
            self.vectors.len() / self.coefficients.len()
        };
        ensure!(
            columns == wanted,
            "SVMRegressor takes {wanted} features, a row has {columns}"
        );
        let answer = |row: &[f32]| {
            let sum = if self.vectors.is_empty() {
                dot(row, &self.coefficients)
            } else {
                let vectors = self.vectors.chunks_exact(columns).zip(&self.coefficients);
                vectors
                    .map(|(vector, weight)| f64::from(*weight) * self.similar.measure(row, vector))
                    .sum()
            };
            let score = (sum + self.rho) as f32;
            if self.one_class {
                if score > 0.0 { 1.0 } else { -1.0 }
            } else {
                score
            }
        };
        let out: Vec<f32> = values.chunks_exact(columns).map(answer).collect();
        Ok(vec![Tensor::from_shape(&[out.len(), 1], &out)?])
    }
}

pub(super) fn svm_regressor(_: &ParsingContext, node: &NodeProto) -> Built {
    let (vectors, coefficients) = (floats(node, "support_vectors"), floats(node, "coefficients"));
    ensure!(
        !coefficients.is_empty() && vectors.len() % coefficients.len() == 0,
        "SVMRegressor has {} coefficients for {} numbers of support vectors",
        coefficients.len(),
        vectors.len()
    );
    let post = PostTransform::parse(string(node, "post_transform", "NONE")?)?;
    ensure!(
        post == PostTransform::None,
        "SVMRegressor with a post_transform is not supported"
    );
    let regressor = SvmRegressor {
        similar: Similar::of(node)?,
        vectors: vectors.to_vec(),
        coefficients: coefficients.to_vec(),
        rho: floats(node, "rho").first().copied().map_or(0.0, f64::from),
        one_class: int(node, "one_class", 0) != 0,
    };
    build(regressor, node)
}
