//! `ai.onnx.ml` operators on rows of numbers: scale, replace, threshold, choose and join columns.

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{DatumType, InferenceOp, TValue, Tensor, TractResult, bail, ensure},
};

use super::{
    attributes::{float, floats, int, ints},
    kernel::{Fact, Kernel, build},
};

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// The values of one attribute for all columns, or one a column.
fn per_column(values: &[f32], columns: usize, what: &str) -> TractResult<()> {
    ensure!(
        values.len() == 1 || values.len() == columns,
        "`{what}` has {} values for {columns} columns",
        values.len()
    );
    Ok(())
}

fn columns(tensor: &Tensor) -> usize {
    tensor.shape().last().copied().unwrap_or(1).max(1)
}

/// `(x - offset) * scale`, in f32 as ONNX says.
#[derive(Debug)]
struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Kernel for Scaler {
    fn name(&self) -> &'static str {
        "Scaler"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        Ok(vec![(DatumType::F32, inputs[0].1.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let columns = columns(&inputs[0]);
        per_column(&self.offset, columns, "offset")?;
        per_column(&self.scale, columns, "scale")?;
        let mut out = inputs[0].cast_to::<f32>()?.into_owned();
        for row in out.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?.chunks_mut(columns) {
            for (column, value) in row.iter_mut().enumerate() {
                let of = |values: &[f32]| values[if values.len() == 1 { 0 } else { column }];
                *value = (*value - of(&self.offset)) * of(&self.scale);
            }
        }
        Ok(vec![out])
    }
}

pub(super) fn scaler(_: &ParsingContext, node: &NodeProto) -> Built {
    let or = |values: &[f32], default| {
        if values.is_empty() {
            vec![default]
        } else {
            values.to_vec()
        }
    };
    let scaler = Scaler {
        offset: or(floats(node, "offset"), 0.0),
        scale: or(floats(node, "scale"), 1.0),
    };
    build(scaler, node)
}

/// One where the value is greater than the threshold, zero elsewhere.
#[derive(Debug)]
struct Binarizer {
    threshold: f32,
}

impl Kernel for Binarizer {
    fn name(&self) -> &'static str {
        "Binarizer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        Ok(vec![inputs[0].clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let mut out = inputs[0].cast_to::<f64>()?.into_owned();
        for value in out.try_as_plain_ram_mut()?.as_slice_mut::<f64>()? {
            *value = f64::from(u8::from(*value > f64::from(self.threshold)));
        }
        Ok(vec![out.cast_to_dt(inputs[0].datum_type())?.into_owned()])
    }
}

pub(super) fn binarizer(_: &ParsingContext, node: &NodeProto) -> Built {
    let threshold = float(node, "threshold", 0.0);
    build(Binarizer { threshold }, node)
}

/// Puts known values where the replaced one (often NaN) stands.
#[derive(Debug)]
enum Imputer {
    Floats { replaced: f32, by: Vec<f32> },
    Ints { replaced: i64, by: Vec<i64> },
}

impl Kernel for Imputer {
    fn name(&self) -> &'static str {
        "Imputer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        Ok(vec![inputs[0].clone()])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let columns = columns(&inputs[0]);
        let at = |length: usize, position: usize| {
            let column = if length == 1 { 0 } else { position % columns };
            ensure!(column < length, "Imputer has {length} values for {columns} columns");
            Ok(column)
        };
        let datum = inputs[0].datum_type();
        match self {
            Imputer::Floats { replaced, by } => {
                let mut out = inputs[0].cast_to::<f32>()?.into_owned();
                let mut values = out.try_as_plain_ram_mut()?;
                for (position, value) in values.as_slice_mut::<f32>()?.iter_mut().enumerate() {
                    if *value == *replaced || (value.is_nan() && replaced.is_nan()) {
                        *value = by[at(by.len(), position)?];
                    }
                }
                Ok(vec![out.cast_to_dt(datum)?.into_owned()])
            }
            Imputer::Ints { replaced, by } => {
                let mut out = inputs[0].cast_to::<i64>()?.into_owned();
                let mut values = out.try_as_plain_ram_mut()?;
                for (position, value) in values.as_slice_mut::<i64>()?.iter_mut().enumerate() {
                    if *value == *replaced {
                        *value = by[at(by.len(), position)?];
                    }
                }
                Ok(vec![out.cast_to_dt(datum)?.into_owned()])
            }
        }
    }
}

pub(super) fn imputer(_: &ParsingContext, node: &NodeProto) -> Built {
    let (by_floats, by_ints) = (floats(node, "imputed_value_floats"), ints(node, "imputed_value_int64s"));
    let imputer = match (by_floats.is_empty(), by_ints.is_empty()) {
        (false, true) => Imputer::Floats {
            replaced: float(node, "replaced_value_float", 0.0),
            by: by_floats.to_vec(),
        },
        (true, false) => Imputer::Ints {
            replaced: int(node, "replaced_value_int64", 0),
            by: by_ints.to_vec(),
        },
        _ => bail!("Imputer needs imputed values of one datatype"),
    };
    build(imputer, node)
}

/// Chooses columns by number.
#[derive(Debug)]
struct ArrayFeatureExtractor;

impl Kernel for ArrayFeatureExtractor {
    fn name(&self) -> &'static str {
        "ArrayFeatureExtractor"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let (datum, mut shape) = inputs[0].clone();
        let chosen = inputs[1].1.iter().product();
        // A vector gives one row.
        if shape.len() == 1 {
            shape.insert(0, 1.into());
        }
        match shape.last_mut() {
            Some(last) => *last = chosen,
            None => bail!("ArrayFeatureExtractor needs at least one dimension"),
        }
        Ok(vec![(datum, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let columns = columns(&inputs[0]);
        let chosen = inputs[1].cast_to::<i64>()?;
        let chosen = chosen.try_as_plain_ram()?.as_slice::<i64>()?.to_vec();
        let mut pieces = Vec::with_capacity(chosen.len());
        let axis = inputs[0].rank().saturating_sub(1);
        for column in chosen {
            let column = usize::try_from(column).ok().filter(|column| *column < columns);
            let Some(column) = column else {
                bail!("ArrayFeatureExtractor chooses a column beyond the {columns} there are");
            };
            pieces.push(inputs[0].slice(axis, column, column + 1)?);
        }
        let mut out = Tensor::stack_tensors(axis, &pieces)?;
        if inputs[0].rank() == 1 {
            out.insert_axis(0)?;
        }
        Ok(vec![out])
    }
}

pub(super) fn array_feature_extractor(_: &ParsingContext, node: &NodeProto) -> Built {
    build(ArrayFeatureExtractor, node)
}

/// Joins columns into one row of f32.
#[derive(Debug)]
struct FeatureVectorizer;

impl Kernel for FeatureVectorizer {
    fn name(&self) -> &'static str {
        "FeatureVectorizer"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let mut shape = inputs.first().map(|(_, shape)| shape.clone()).unwrap_or_default();
        ensure!(
            shape.len() == 2 && inputs.iter().all(|(_, other)| other.len() == 2),
            "FeatureVectorizer takes inputs of two dimensions"
        );
        shape[1] = inputs.iter().map(|(_, shape)| shape[1].clone()).sum();
        Ok(vec![(DatumType::F32, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let cast = |input: &TValue| Ok(input.cast_to::<f32>()?.into_owned());
        let pieces = inputs.iter().map(cast).collect::<TractResult<Vec<Tensor>>>()?;
        Ok(vec![Tensor::stack_tensors(1, &pieces)?])
    }
}

pub(super) fn feature_vectorizer(_: &ParsingContext, node: &NodeProto) -> Built {
    build(FeatureVectorizer, node)
}
