//! Tensors and messages of the Open Inference Protocol, version 2 (JSON form).
//!
//! A [`Tensor`] holds its data as the protocol's binary extension does, row-major and little-endian, whichever way it came:
//! the pipeline copies bytes and never numbers. Invariant: the data's length fits datatype and shape.

pub mod body;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, SeqAccess, Visitor},
    ser::SerializeSeq,
};
use serde_json::value::RawValue;

/// The protocol's datatypes, without BF16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Fp32,
    Fp64,
    /// Each element is a little-endian `u32` length and that many bytes.
    Bytes,
}

impl Datatype {
    const ALL: [Datatype; 13] = [
        Datatype::Bool,
        Datatype::Uint8,
        Datatype::Uint16,
        Datatype::Uint32,
        Datatype::Uint64,
        Datatype::Int8,
        Datatype::Int16,
        Datatype::Int32,
        Datatype::Int64,
        Datatype::Fp16,
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Bytes,
    ];

    /// Bytes of one element; `None` for [`Datatype::Bytes`], whose elements differ in length.
    pub const fn element_bytes(self) -> Option<usize> {
        match self {
            Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => Some(1),
            Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 => Some(2),
            Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => Some(4),
            Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => Some(8),
            Datatype::Bytes => None,
        }
    }

    /// The datatype of that name; the names are upper case.
    pub fn from_name(name: &str) -> Option<Datatype> {
        Datatype::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// The protocol's name, for example `FP32`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Datatype::Bool => "BOOL",
            Datatype::Uint8 => "UINT8",
            Datatype::Uint16 => "UINT16",
            Datatype::Uint32 => "UINT32",
            Datatype::Uint64 => "UINT64",
            Datatype::Int8 => "INT8",
            Datatype::Int16 => "INT16",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Fp16 => "FP16",
            Datatype::Fp32 => "FP32",
            Datatype::Fp64 => "FP64",
            Datatype::Bytes => "BYTES",
        }
    }
}

impl std::fmt::Display for Datatype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a model or pipeline takes or gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// The datatype of its elements.
    pub datatype: Datatype,
    /// Its shape; -1 is a dimension known only at the call.
    pub shape: Vec<i64>,
}

impl TensorMetadata {
    /// True when a tensor of this datatype and shape fits.
    pub fn accepts(&self, tensor: &Tensor) -> bool {
        let fits = |(want, got): (&i64, &usize)| *want < 0 || *want == *got as i64;
        self.datatype == tensor.datatype
            && self.shape.len() == tensor.shape.len()
            && self.shape.iter().zip(&tensor.shape).all(fits)
    }
}

/// A tensor with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Why a tensor was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The shape's product overflows.
    #[error("tensor `{0}` has an impossible shape")]
    Shape(String),
    /// The data does not fit datatype and shape.
    #[error("tensor `{name}` of {datatype} {shape:?} has {got} bytes of data, expected {expected}")]
    DataLength {
        /// The tensor.
        name: String,
        /// Its datatype.
        datatype: Datatype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes found.
        got: usize,
        /// Bytes expected.
        expected: usize,
    },
    /// A `BYTES` tensor's lengths do not add up to its data, or its element count is wrong.
    #[error("BYTES tensor `{0}` has elements that do not add up")]
    Elements(String),
    /// A JSON value that is not of the tensor's datatype.
    #[error("tensor `{name}` has a value at position {position} that is no {datatype}")]
    Value {
        /// The tensor.
        name: String,
        /// The element, counted flat.
        position: usize,
        /// The datatype.
        datatype: Datatype,
    },
    /// More or fewer JSON values than the shape says.
    #[error("tensor `{name}` has {got} values, its shape {shape:?} says {expected}")]
    Count {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Values found.
        got: usize,
        /// Values expected.
        expected: usize,
    },
    /// A datatype that has no JSON form.
    #[error("tensor `{name}`: {datatype} travels in binary form only")]
    BinaryOnly {
        /// The tensor.
        name: String,
        /// The datatype.
        datatype: Datatype,
    },
}

impl Tensor {
    /// Makes a tensor of row-major little-endian data.
    ///
    /// # Errors
    /// [`TensorError`] when the data does not fit datatype and shape.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: Vec<usize>,
        data: Vec<u8>,
    ) -> Result<Tensor, TensorError> {
        let name = name.into();
        let Some(count) = element_count(&shape) else {
            return Err(TensorError::Shape(name));
        };
        match datatype.element_bytes() {
            Some(size) => {
                let Some(expected) = count.checked_mul(size) else {
                    return Err(TensorError::Shape(name));
                };
                if data.len() != expected {
                    return Err(TensorError::DataLength {
                        name,
                        datatype,
                        shape,
                        got: data.len(),
                        expected,
                    });
                }
            }
            None => {
                if count_bytes_elements(&data) != Some(count) {
                    return Err(TensorError::Elements(name));
                }
            }
        }
        Ok(Tensor {
            name,
            datatype,
            shape,
            data,
        })
    }

    /// Makes an `FP32` tensor.
    ///
    /// # Errors
    /// [`TensorError`] when there are more or fewer values than the shape says.
    pub fn from_f32(name: impl Into<String>, shape: Vec<usize>, values: &[f32]) -> Result<Tensor, TensorError> {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Tensor::new(name, Datatype::Fp32, shape, data)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The datatype of its elements.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its data, row-major and little-endian.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Gives the data away.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The values of an `FP32` tensor; `None` for another datatype.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("chunks of four bytes"));
        (self.datatype == Datatype::Fp32).then(|| self.data.chunks_exact(4).map(value).collect())
    }

    /// The elements of a `BYTES` tensor; `None` for another datatype.
    pub fn to_byte_elements(&self) -> Option<Vec<&[u8]>> {
        if self.datatype != Datatype::Bytes {
            return None;
        }
        bytes_elements(&self.data)
    }

    /// The same tensor under another name.
    pub fn renamed(mut self, name: impl Into<String>) -> Tensor {
        self.name = name.into();
        self
    }

    /// Its metadata.
    pub fn metadata(&self) -> TensorMetadata {
        let shape = self.shape.iter().map(|dim| *dim as i64).collect();
        TensorMetadata {
            name: self.name.clone(),
            datatype: self.datatype,
            shape,
        }
    }

    /// Makes a tensor of JSON values, nested or flat.
    ///
    /// # Errors
    /// [`TensorError`] when a value is not of the datatype or their count does not fit the shape.
    pub fn from_json(
        name: String,
        datatype: Datatype,
        shape: Vec<usize>,
        data: &RawValue,
    ) -> Result<Tensor, TensorError> {
        let Some(expected) = element_count(&shape) else {
            return Err(TensorError::Shape(name));
        };
        if datatype == Datatype::Fp16 {
            return Err(TensorError::BinaryOnly { name, datatype });
        }
        // Each value takes at least two bytes of JSON: the text bounds what is reserved, whatever the shape claims.
        let likely = expected.min(data.get().len() / 2 + 1);
        let mut elements = Elements {
            datatype,
            expected,
            count: 0,
            bytes: Vec::with_capacity(likely.saturating_mul(datatype.element_bytes().unwrap_or(16))),
        };
        let read = elements.deserialize(&mut serde_json::Deserializer::from_str(data.get()));
        match read {
            Err(_) => Err(TensorError::Value {
                name,
                position: elements.count,
                datatype,
            }),
            Ok(()) if elements.count != expected => Err(TensorError::Count {
                name,
                shape,
                got: elements.count,
                expected,
            }),
            Ok(()) => Tensor::new(name, datatype, shape, elements.bytes),
        }
    }
}

/// The number of elements of a shape; `None` when it overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))
}

fn bytes_elements(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    while !data.is_empty() {
        let (element, rest) = split_element(data)?;
        elements.push(element);
        data = rest;
    }
    Some(elements)
}

/// Counts without a list of them: an empty element takes four bytes of data, and would take sixteen of list.
fn count_bytes_elements(mut data: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !data.is_empty() {
        (_, data) = split_element(data)?;
        count += 1;
    }
    Some(count)
}

fn split_element(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

/// Reads JSON values, nested or flat, straight into a tensor's bytes: a tree of them would take ten times the memory.
struct Elements {
    datatype: Datatype,
    expected: usize,
    /// Values so far; those beyond `expected` are counted and dropped.
    count: usize,
    bytes: Vec<u8>,
}

/// A JSON number or text, as the parser gives it.
enum Scalar<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

impl Scalar<'_> {
    fn as_f64(&self) -> Option<f64> {
        match *self {
            Scalar::Unsigned(value) => Some(value as f64),
            Scalar::Signed(value) => Some(value as f64),
            Scalar::Float(value) => Some(value),
            Scalar::Bool(_) | Scalar::Text(_) => None,
        }
    }

    fn as_integer<T: TryFrom<u64> + TryFrom<i64>>(&self) -> Option<T> {
        match *self {
            Scalar::Unsigned(value) => T::try_from(value).ok(),
            Scalar::Signed(value) => T::try_from(value).ok(),
            Scalar::Float(_) | Scalar::Bool(_) | Scalar::Text(_) => None,
        }
    }
}

impl Elements {
    /// Appends one value in binary form; an error when it is not of the datatype.
    fn push<E: serde::de::Error>(&mut self, value: &Scalar<'_>) -> Result<(), E> {
        if self.count < self.expected && self.try_push(value).is_none() {
            return Err(E::custom("not of the datatype"));
        }
        self.count += 1;
        Ok(())
    }

    fn try_push(&mut self, value: &Scalar<'_>) -> Option<()> {
        let out = &mut self.bytes;
        match self.datatype {
            Datatype::Bool => match value {
                Scalar::Bool(value) => out.push(u8::from(*value)),
                _ => return None,
            },
            Datatype::Uint8 => out.extend(value.as_integer::<u8>()?.to_le_bytes()),
            Datatype::Uint16 => out.extend(value.as_integer::<u16>()?.to_le_bytes()),
            Datatype::Uint32 => out.extend(value.as_integer::<u32>()?.to_le_bytes()),
            Datatype::Uint64 => out.extend(value.as_integer::<u64>()?.to_le_bytes()),
            Datatype::Int8 => out.extend(value.as_integer::<i8>()?.to_le_bytes()),
            Datatype::Int16 => out.extend(value.as_integer::<i16>()?.to_le_bytes()),
            Datatype::Int32 => out.extend(value.as_integer::<i32>()?.to_le_bytes()),
            Datatype::Int64 => out.extend(value.as_integer::<i64>()?.to_le_bytes()),
            Datatype::Fp32 => out.extend((value.as_f64()? as f32).to_le_bytes()),
            Datatype::Fp64 => out.extend(value.as_f64()?.to_le_bytes()),
            Datatype::Bytes => match value {
                Scalar::Text(text) => {
                    out.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
                _ => return None,
            },
            Datatype::Fp16 => return None,
        }
        Some(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Elements {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values, nested or flat", self.datatype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.push(&Scalar::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.push(&Scalar::Unsigned(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.push(&Scalar::Signed(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.push(&Scalar::Float(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.push(&Scalar::Text(value))
    }
}

/// The flat JSON values of a tensor.
struct JsonData<'a>(&'a Tensor);

impl Serialize for JsonData<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// Writes each element with one conversion.
        macro_rules! numbers {
            ($seq:ident, $type:ty, $size:literal) => {
                for bytes in self.0.data.chunks_exact($size) {
                    let value = <$type>::from_le_bytes(bytes.try_into().expect("chunks of that size"));
                    $seq.serialize_element(&value)?;
                }
            };
        }
        let mut seq = serializer.serialize_seq(element_count(&self.0.shape))?;
        match self.0.datatype {
            Datatype::Bool => {
                for byte in &self.0.data {
                    seq.serialize_element(&(*byte != 0))?;
                }
            }
            Datatype::Uint8 => numbers!(seq, u8, 1),
            Datatype::Uint16 => numbers!(seq, u16, 2),
            Datatype::Uint32 => numbers!(seq, u32, 4),
            Datatype::Uint64 => numbers!(seq, u64, 8),
            Datatype::Int8 => numbers!(seq, i8, 1),
            Datatype::Int16 => numbers!(seq, i16, 2),
            Datatype::Int32 => numbers!(seq, i32, 4),
            Datatype::Int64 => numbers!(seq, i64, 8),
            Datatype::Fp32 => numbers!(seq, f32, 4),
            Datatype::Fp64 => numbers!(seq, f64, 8),
            Datatype::Bytes => {
                for element in bytes_elements(&self.0.data).expect("checked when the tensor was made") {
                    seq.serialize_element(&String::from_utf8_lossy(element))?;
                }
            }
            Datatype::Fp16 => return Err(serde::ser::Error::custom("FP16 travels in binary form only")),
        }
        seq.end()
    }
}

/// A tensor in JSON: `{"name", "datatype", "shape", "data"}`.
impl Serialize for Tensor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            name: &'a str,
            datatype: Datatype,
            shape: &'a [usize],
            data: JsonData<'a>,
        }
        let json = Json {
            name: &self.name,
            datatype: self.datatype,
            shape: &self.shape,
            data: JsonData(self),
        };
        json.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Tensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Json {
            name: String,
            datatype: Datatype,
            shape: Vec<usize>,
            data: Box<RawValue>,
        }
        let json = Json::deserialize(deserializer)?;
        Tensor::from_json(json.name, json.datatype, json.shape, &json.data).map_err(D::Error::custom)
    }
}

/// An answer to an inference request, in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferResponse {
    /// The model that answered.
    pub model_name: String,
    /// Its version.
    pub model_version: String,
    /// The request's id, echoed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The outputs.
    pub outputs: Vec<Tensor>,
}

/// An inference request in JSON, as a client makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InferRequest {
    /// Echoed in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The inputs.
    pub inputs: Vec<Tensor>,
}

/// What `GET /v2/models/{model}` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// The model.
    pub name: String,
    /// The versions that serve.
    pub versions: Vec<String>,
    /// What runs it.
    pub platform: String,
    /// What it takes.
    pub inputs: Vec<TensorMetadata>,
    /// What it gives.
    pub outputs: Vec<TensorMetadata>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(datatype: &str, shape: Value, data: Value) -> Result<Tensor, serde_json::Error> {
        serde_json::from_value(json!({"name": "x", "datatype": datatype, "shape": shape, "data": data}))
    }

    #[test]
    fn nested_and_flat_data_are_the_same_tensor() {
        let flat = parse("FP32", json!([2, 2]), json!([1, 2, 3, 4.5])).unwrap();
        assert_eq!(parse("FP32", json!([2, 2]), json!([[1, 2], [3, 4.5]])).unwrap(), flat);
        assert_eq!(flat.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.5]);
    }

    #[test]
    fn values_of_another_datatype_are_named_by_position() {
        let error = parse("UINT8", json!([3]), json!([1, 2, 300])).unwrap_err();
        assert!(error.to_string().contains("position 2 that is no UINT8"), "{error}");
    }

    #[test]
    fn a_shape_that_claims_too_much_reserves_nothing() {
        let error = parse("INT64", json!([1_u64 << 60]), json!([1, 2])).unwrap_err();
        assert!(error.to_string().contains("has 2 values"), "{error}");
        let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
        let deep = format!(r#"{{"name":"x","datatype":"FP32","shape":[1],"data":{deep}}}"#);
        assert!(serde_json::from_str::<Tensor>(&deep).is_err());
    }

    #[test]
    fn too_few_values_are_refused() {
        let error = parse("FP32", json!([1, 6, 100]), json!([1.0])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("has 1 values, its shape [1, 6, 100] says 600"),
            "{error}"
        );
    }

    #[test]
    fn an_impossible_shape_is_refused_without_allocating() {
        assert!(parse("FP32", json!([u64::MAX, u64::MAX]), json!([])).is_err());
        assert!(Tensor::new("x", Datatype::Fp64, vec![usize::MAX / 2, 1], vec![]).is_err());
    }

    #[test]
    fn byte_elements_must_add_up() {
        assert!(Tensor::new("x", Datatype::Bytes, vec![1], vec![5, 0, 0, 0, b'a']).is_err());
        let tensor = parse("BYTES", json!([2]), json!(["Walking", ""])).unwrap();
        assert_eq!(tensor.to_byte_elements().unwrap(), [b"Walking".as_slice(), b""]);
    }

    proptest! {
        #[test]
        fn every_tensor_reads_back(values in prop::collection::vec(any::<f32>().prop_filter("JSON has no NaN", |v| v.is_finite()), 0..40)) {
            let tensor = Tensor::from_f32("x", vec![1, values.len()], &values).unwrap();
            let json = serde_json::to_vec(&tensor).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Tensor>(&json).unwrap(), tensor);
        }

        #[test]
        fn every_text_reads_back(texts in prop::collection::vec(".{0,20}", 0..10)) {
            let tensor = parse("BYTES", json!([texts.len()]), json!(texts)).unwrap();
            let json = serde_json::to_vec(&tensor).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Tensor>(&json).unwrap(), tensor);
        }
    }
}
