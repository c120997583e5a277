//! Tree ensembles: `TreeEnsembleClassifier`, `TreeEnsembleRegressor` and the `TreeEnsemble` that replaces both in operator set 5.
//!
//! tract has the classifier only, in a form that took a hundred times as long as ONNX Runtime's. Scores are summed in f64.

mod forest;
mod parse;

use forest::Forest;
use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{DatumType, InferenceOp, TDim, TValue, TVec, Tensor, TractResult, bail, ensure},
};

use super::{
    attributes::{int, ints, string, strings},
    kernel::{Fact, Kernel, build},
    labels::Labels,
    post::{PostTransform, logistic},
};

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// Trees, and how the leaves of all become one row of scores.
#[derive(Debug)]
struct Ensemble {
    forest: Forest,
    targets: usize,
    aggregate: Aggregate,
    base: Vec<f64>,
    post: PostTransform,
}

/// The scores of one row, with what no leaf has touched told apart: ONNX Runtime does not let it win.
struct Scores {
    values: Vec<f64>,
    touched: Vec<bool>,
}

impl Ensemble {
    fn scores(&self, row: &[f64], scores: &mut Scores) {
        scores.values.fill(0.0);
        scores.touched.fill(false);
        for leaf in self.forest.leaves(row) {
            for weight in leaf {
                let value = &mut scores.values[weight.target];
                let first = !std::mem::replace(&mut scores.touched[weight.target], true);
                *value = match self.aggregate {
                    Aggregate::Sum | Aggregate::Average => *value + weight.weight,
                    _ if first => weight.weight,
                    Aggregate::Min => value.min(weight.weight),
                    Aggregate::Max => value.max(weight.weight),
                };
            }
        }
        if self.aggregate == Aggregate::Average {
            let trees = self.forest.trees() as f64;
            scores.values.iter_mut().for_each(|value| *value /= trees);
        }
    }

    /// Calls `each` with the scores of every row.
    fn each_row(&self, input: &Tensor, mut each: impl FnMut(&mut Scores)) -> TractResult<()> {
        let columns = input.shape().last().copied().unwrap_or(0);
        self.forest.check_columns(columns)?;
        let input = input.cast_to::<f64>()?;
        let mut scores = Scores {
            values: vec![0.0; self.targets],
            touched: vec![false; self.targets],
        };
        for row in input
            .try_as_plain_ram()?
            .as_slice::<f64>()?
            .chunks_exact(columns.max(1))
        {
            self.scores(row, &mut scores);
            each(&mut scores);
        }
        Ok(())
    }
}

/// The rows of an input: all dimensions but the last.
fn rows(input: &Fact) -> TractResult<TDim> {
    match input.1.as_slice() {
        [_] => Ok(1.into()),
        [rows, _] => Ok(rows.clone()),
        other => bail!("tree ensembles take rows of features, not {other:?}"),
    }
}

fn float_type(input: DatumType, doubles: bool) -> DatumType {
    if doubles && input == DatumType::F64 {
        DatumType::F64
    } else {
        DatumType::F32
    }
}

fn tensor_of(values: Vec<f64>, shape: &[usize], datum: DatumType) -> TractResult<Tensor> {
    let tensor = Tensor::from_shape(shape, &values)?;
    Ok(tensor.cast_to_dt(datum)?.into_owned())
}

#[derive(Debug)]
struct Regressor {
    ensemble: Ensemble,
    name: &'static str,
    /// The datatype follows a f64 input (operator set 5 only).
    doubles: bool,
}

impl Kernel for Regressor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let shape: TVec<TDim> = [rows(&inputs[0])?, self.ensemble.targets.into()].into_iter().collect();
        Ok(vec![(float_type(inputs[0].0, self.doubles), shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let targets = self.ensemble.targets;
        let mut out = Vec::new();
        self.ensemble.each_row(&inputs[0], |scores| {
            for (target, base) in self.ensemble.base.iter().enumerate() {
                scores.values[target] += base;
            }
            self.ensemble.post.apply(&mut scores.values);
            out.extend_from_slice(&scores.values);
        })?;
        let shape = [out.len() / targets, targets];
        let datum = float_type(inputs[0].datum_type(), self.doubles);
        Ok(vec![tensor_of(out, &shape, datum)?])
    }
}

#[derive(Debug)]
struct Classifier {
    ensemble: Ensemble,
    labels: Labels,
    /// Two classes, of which the leaves score one.
    one_sided: bool,
    all_positive: bool,
}

impl Classifier {
    /// Finishes the scores of a row and says which class has won.
    fn decide(&self, scores: &mut Scores) -> usize {
        let base = &self.ensemble.base;
        let values = &mut scores.values;
        if !self.one_sided {
            for (class, base) in base.iter().enumerate() {
                values[class] += base;
                scores.touched[class] = true;
            }
            let mut winner: Option<usize> = None;
            for class in (0..values.len()).filter(|class| scores.touched[*class]) {
                if winner.is_none_or(|winner| values[class] > values[winner]) {
                    winner = Some(class);
                }
            }
            let winner = winner.unwrap_or(0);
            self.ensemble.post.apply(values);
            return winner;
        }
        let touched = scores.touched.iter().position(|touched| *touched).unwrap_or(0);
        let mut score = values[touched];
        if let Some(base) = base.get(1).or(base.first()) {
            score += base;
        }
        let wins = score > if self.all_positive { 0.5 } else { 0.0 };
        let (first, second) = match self.ensemble.post {
            PostTransform::Logistic if !self.all_positive => (logistic(-score), logistic(score)),
            _ if self.all_positive => (1.0 - score, score),
            _ => (-score, score),
        };
        values.copy_from_slice(&[first, second]);
        usize::from(wins)
    }
}

impl Kernel for Classifier {
    fn name(&self) -> &'static str {
        "TreeEnsembleClassifier"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let rows = rows(&inputs[0])?;
        let scores: TVec<TDim> = [rows.clone(), self.labels.len().into()].into_iter().collect();
        Ok(vec![
            (self.labels.datum(), [rows].into_iter().collect()),
            (DatumType::F32, scores),
        ])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let (mut winners, mut out) = (Vec::new(), Vec::new());
        self.ensemble.each_row(&inputs[0], |scores| {
            winners.push(self.decide(scores));
            out.extend_from_slice(&scores.values);
        })?;
        let rows = winners.len();
        let scores = tensor_of(out, &[rows, self.labels.len()], DatumType::F32)?;
        Ok(vec![self.labels.choose(&winners)?, scores])
    }
}

pub(super) fn classifier(context: &ParsingContext, node: &NodeProto) -> Built {
    let labels = Labels::of(strings(node, "classlabels_strings")?, ints(node, "classlabels_int64s"));
    ensure!(labels.len() >= 2, "TreeEnsembleClassifier has {} classes", labels.len());
    let parsed = parse::classic(context, node, "class", labels.len())?;
    let mut classes: Vec<usize> = parsed.weights.iter().map(|weight| weight.target).collect();
    classes.dedup();
    let one_sided = labels.len() == 2 && classes.iter().all(|class| *class == classes[0]);
    let classifier = Classifier {
        one_sided,
        all_positive: parsed.weights.iter().all(|weight| weight.weight >= 0.0),
        ensemble: Ensemble {
            targets: labels.len(),
            aggregate: Aggregate::Sum,
            base: base(parse::doubles(context, node, "base_values")?, labels.len())?,
            post: PostTransform::parse(string(node, "post_transform", "NONE")?)?,
            forest: parsed.forest(labels.len())?,
        },
        labels,
    };
    build(classifier, node)
}

fn base(base: Vec<f64>, targets: usize) -> TractResult<Vec<f64>> {
    ensure!(
        base.is_empty() || base.len() == targets || (base.len() == 1 && targets == 2),
        "there are {} base values for {targets} targets",
        base.len()
    );
    Ok(base)
}

pub(super) fn regressor(context: &ParsingContext, node: &NodeProto) -> Built {
    let Some(targets) = usize::try_from(int(node, "n_targets", 1))
        .ok()
        .filter(|targets| *targets > 0)
    else {
        bail!("TreeEnsembleRegressor has no targets");
    };
    let parsed = parse::classic(context, node, "target", targets)?;
    let ensemble = Ensemble {
        targets,
        aggregate: match string(node, "aggregate_function", "SUM")? {
            "AVERAGE" => Aggregate::Average,
            "SUM" => Aggregate::Sum,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            other => bail!("aggregate_function `{other}` is not known"),
        },
        base: base(parse::doubles(context, node, "base_values")?, targets)?,
        post: PostTransform::parse(string(node, "post_transform", "NONE")?)?,
        forest: parsed.forest(targets)?,
    };
    let regressor = Regressor {
        ensemble,
        name: "TreeEnsembleRegressor",
        doubles: false,
    };
    build(regressor, node)
}

pub(super) fn ensemble(context: &ParsingContext, node: &NodeProto) -> Built {
    let Some(targets) = usize::try_from(int(node, "n_targets", 1))
        .ok()
        .filter(|targets| *targets > 0)
    else {
        bail!("TreeEnsemble has no targets");
    };
    let ensemble = Ensemble {
        targets,
        aggregate: match int(node, "aggregate_function", 1) {
            0 => Aggregate::Average,
            1 => Aggregate::Sum,
            2 => Aggregate::Min,
            3 => Aggregate::Max,
            other => bail!("aggregate_function {other} is not known"),
        },
        base: Vec::new(),
        post: PostTransform::numbered(int(node, "post_transform", 0))?,
        forest: parse::modern(context, node)?.forest(targets)?,
    };
    let regressor = Regressor {
        ensemble,
        name: "TreeEnsemble",
        doubles: true,
    };
    build(regressor, node)
}
