//! `ai.onnx.ml` operators on categories: `LabelEncoder` and `OneHotEncoder`.

use std::collections::HashMap;

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{Datum, DatumType, InferenceOp, TValue, Tensor, TractResult, bail, ensure, tensor1},
};

use super::{
    attributes::{float, floats, int, ints, string, strings, tensor},
    kernel::{Fact, Kernel, build},
};

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// A category, of any datatype that ONNX allows. Floats are told apart by their bits, NaN is one category.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Category {
    Int(i64),
    Float(u64),
    Text(String),
}

impl Category {
    fn of_float(value: f64) -> Category {
        // All NaN are the same category, and so are the two zeros.
        let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
        Category::Float(value.to_bits())
    }
}

/// The elements of a tensor as categories.
fn categories(tensor: &Tensor) -> TractResult<Vec<Category>> {
    let datum = tensor.datum_type();
    if datum == DatumType::String {
        let texts = tensor.try_as_plain_ram()?;
        return Ok(texts
            .as_slice::<String>()?
            .iter()
            .cloned()
            .map(Category::Text)
            .collect());
    }
    if datum.is_float() {
        let values = tensor.cast_to::<f64>()?;
        let values = values.try_as_plain_ram()?;
        return Ok(values
            .as_slice::<f64>()?
            .iter()
            .copied()
            .map(Category::of_float)
            .collect());
    }
    let values = tensor.cast_to::<i64>()?;
    let values = values.try_as_plain_ram()?;
    Ok(values.as_slice::<i64>()?.iter().copied().map(Category::Int).collect())
}

/// Values of one datatype, to choose from.
#[derive(Debug)]
enum Values {
    Ints(Vec<i64>),
    Shorts(Vec<i16>),
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
    Texts(Vec<String>),
}

impl Values {
    fn of(tensor: &Tensor) -> TractResult<Values> {
        let view = tensor.try_as_plain_ram()?;
        Ok(match tensor.datum_type() {
            DatumType::I64 => Values::Ints(view.as_slice::<i64>()?.to_vec()),
            DatumType::I16 => Values::Shorts(view.as_slice::<i16>()?.to_vec()),
            DatumType::F32 => Values::Floats(view.as_slice::<f32>()?.to_vec()),
            DatumType::F64 => Values::Doubles(view.as_slice::<f64>()?.to_vec()),
            DatumType::String => Values::Texts(view.as_slice::<String>()?.to_vec()),
            other => bail!("a label cannot be {other:?}"),
        })
    }

    fn datum(&self) -> DatumType {
        match self {
            Values::Ints(_) => DatumType::I64,
            Values::Shorts(_) => DatumType::I16,
            Values::Floats(_) => DatumType::F32,
            Values::Doubles(_) => DatumType::F64,
            Values::Texts(_) => DatumType::String,
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::Ints(values) => values.len(),
            Values::Shorts(values) => values.len(),
            Values::Floats(values) => values.len(),
            Values::Doubles(values) => values.len(),
            Values::Texts(values) => values.len(),
        }
    }

    /// One more, at the end: what an unknown category becomes.
    fn push(&mut self, fallback: Values) -> TractResult<()> {
        match (self, fallback) {
            (Values::Ints(values), Values::Ints(more)) => values.extend(more),
            (Values::Shorts(values), Values::Shorts(more)) => values.extend(more),
            (Values::Floats(values), Values::Floats(more)) => values.extend(more),
            (Values::Doubles(values), Values::Doubles(more)) => values.extend(more),
            (Values::Texts(values), Values::Texts(more)) => values.extend(more),
            _ => bail!("the default is of another datatype than the values"),
        }
        Ok(())
    }

    fn choose(&self, positions: &[usize], shape: &[usize]) -> TractResult<Tensor> {
        fn chosen<T: Datum + Clone>(values: &[T], positions: &[usize], shape: &[usize]) -> TractResult<Tensor> {
            let values: Vec<T> = positions.iter().map(|position| values[*position].clone()).collect();
            tensor1(&values).into_shape(shape)
        }
        match self {
            Values::Ints(values) => chosen(values, positions, shape),
            Values::Shorts(values) => chosen(values, positions, shape),
            Values::Floats(values) => chosen(values, positions, shape),
            Values::Doubles(values) => chosen(values, positions, shape),
            Values::Texts(values) => chosen(values, positions, shape),
        }
    }
}

/// Replaces each category by the value of the same position, or by the default.
#[derive(Debug)]
struct LabelEncoder {
    positions: HashMap<Category, usize>,
    /// The last one is the default.
    values: Values,
}

impl Kernel for LabelEncoder {
    fn name(&self) -> &'static str {
        "LabelEncoder"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        Ok(vec![(self.values.datum(), inputs[0].1.clone())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let fallback = self.values.len() - 1;
        let position = |category| self.positions.get(category).copied().unwrap_or(fallback);
        let positions: Vec<usize> = categories(&inputs[0])?.iter().map(position).collect();
        Ok(vec![self.values.choose(&positions, inputs[0].shape())?])
    }
}

pub(super) fn label_encoder(context: &ParsingContext, node: &NodeProto) -> Built {
    let load = |name: &str| tensor(node, name).map(|tensor| context.load_tensor(tensor)).transpose();
    let default_tensor = load("default_tensor")?.map(|tensor| Values::of(&tensor)).transpose()?;
    // Operator set 1 knows only texts numbered by their order, and the way back; which of them, the input says.
    let classes = strings(node, "classes_strings")?;
    if !classes.is_empty() {
        return classes_encoder(node, classes);
    }
    let keys = if let Some(keys) = load("keys_tensor")? {
        categories(&keys)?
    } else {
        let texts = strings(node, "keys_strings")?.into_iter().map(Category::Text);
        let ints = ints(node, "keys_int64s").iter().copied().map(Category::Int);
        let floats = floats(node, "keys_floats")
            .iter()
            .map(|key| Category::of_float(f64::from(*key)));
        texts.chain(ints).chain(floats).collect()
    };
    let (texts, numbers, reals) = (
        strings(node, "values_strings")?,
        ints(node, "values_int64s"),
        floats(node, "values_floats"),
    );
    let (mut values, fallback) = if let Some(values) = load("values_tensor")? {
        let values = Values::of(&values)?;
        let fallback = match (default_tensor, &values) {
            (Some(fallback), _) => fallback,
            (None, values) => default_of(node, values)?,
        };
        (values, fallback)
    } else {
        let values = if !texts.is_empty() {
            Values::Texts(texts)
        } else if !numbers.is_empty() {
            Values::Ints(numbers.to_vec())
        } else {
            Values::Floats(reals.to_vec())
        };
        let fallback = match default_tensor {
            Some(fallback) => fallback,
            None => default_of(node, &values)?,
        };
        (values, fallback)
    };
    ensure!(
        keys.len() == values.len() && !keys.is_empty() && fallback.len() == 1,
        "LabelEncoder has {} keys, {} values and {} defaults",
        keys.len(),
        values.len(),
        fallback.len()
    );
    values.push(fallback)?;
    let positions = keys
        .into_iter()
        .enumerate()
        .map(|(position, key)| (key, position))
        .collect();
    build(LabelEncoder { positions, values }, node)
}

/// The default by attribute: ONNX's own where there is none.
fn default_of(node: &NodeProto, values: &Values) -> TractResult<Values> {
    Ok(match values {
        Values::Ints(_) => Values::Ints(vec![int(node, "default_int64", -1)]),
        Values::Shorts(_) => Values::Shorts(vec![-1]),
        Values::Floats(_) => Values::Floats(vec![float(node, "default_float", -0.0)]),
        Values::Doubles(_) => Values::Doubles(vec![-0.0]),
        Values::Texts(_) => Values::Texts(vec![string(node, "default_string", "_Unused")?.to_owned()]),
    })
}

fn classes_encoder(node: &NodeProto, classes: Vec<String>) -> Built {
    #[derive(Debug)]
    struct Classes {
        numbers: LabelEncoder,
        texts: LabelEncoder,
    }
    impl Kernel for Classes {
        fn name(&self) -> &'static str {
            "LabelEncoder"
        }

        fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
            self.by_input(inputs[0].0).facts(inputs)
        }

        fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
            self.by_input(inputs[0].datum_type()).run(inputs)
        }
    }
    impl Classes {
        fn by_input(&self, datum: DatumType) -> &LabelEncoder {
            if datum == DatumType::String {
                &self.numbers
            } else {
                &self.texts
            }
        }
    }
    let mut numbers = Values::Ints((0..classes.len() as i64).collect());
    numbers.push(Values::Ints(vec![int(node, "default_int64", -1)]))?;
    let by_text = classes
        .iter()
        .cloned()
        .enumerate()
        .map(|(n, text)| (Category::Text(text), n))
        .collect();
    let by_number = (0..classes.len()).map(|n| (Category::Int(n as i64), n)).collect();
    let mut texts = Values::Texts(classes);
    texts.push(Values::Texts(vec![
        string(node, "default_string", "_Unused")?.to_owned(),
    ]))?;
    let classes = Classes {
        numbers: LabelEncoder {
            positions: by_text,
            values: numbers,
        },
        texts: LabelEncoder {
            positions: by_number,
            values: texts,
        },
    };
    build(classes, node)
}

/// One column a category; a row of zeros for an unknown one, or an error if the node says so.
#[derive(Debug)]
struct OneHotEncoder {
    positions: HashMap<Category, usize>,
    zeros: bool,
}

impl Kernel for OneHotEncoder {
    fn name(&self) -> &'static str {
        "OneHotEncoder"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let mut shape = inputs[0].1.clone();
        shape.push(self.positions.len().into());
        Ok(vec![(DatumType::F32, shape)])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>> {
        let columns = self.positions.len();
        let mut shape = inputs[0].shape().to_vec();
        shape.push(columns);
        let mut out = Tensor::zero::<f32>(&shape)?;
        let mut view = out.try_as_plain_ram_mut()?;
        // Numbers of any datatype are compared as integers, as the attribute has them.
        let ints = if inputs[0].datum_type().is_float() {
            inputs[0].cast_to::<i64>()?.into_owned()
        } else {
            (*inputs[0]).clone()
        };
        for (row, category) in view.as_slice_mut::<f32>()?.chunks_mut(columns).zip(categories(&ints)?) {
            match self.positions.get(&category) {
                Some(position) => row[*position] = 1.0,
                None => ensure!(self.zeros, "OneHotEncoder does not know the category {category:?}"),
            }
        }
        Ok(vec![out])
    }
}

pub(super) fn one_hot_encoder(_: &ParsingContext, node: &NodeProto) -> Built {
    let texts = strings(node, "cats_strings")?.into_iter().map(Category::Text);
    let numbers = ints(node, "cats_int64s").iter().copied().map(Category::Int);
    let positions: HashMap<Category, usize> = texts
        .chain(numbers)
        .enumerate()
        .map(|(n, category)| (category, n))
        .collect();
    ensure!(!positions.is_empty(), "OneHotEncoder has no categories");
    let zeros = int(node, "zeros", 1) != 0;
    build(OneHotEncoder { positions, zeros }, node)
}
