//! The messages of the Open Inference Protocol as protobuf has them; the extensions' answers are the same in JSON.
//!
//! Field numbers are those of `inference.GRPCInferenceService`. A field that nobody reads here is left out: it is skipped
//! and takes no memory.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use skerry_shared::oip::{Datatype, ModelMetadata, TensorMetadata};

/// A request without content.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// `ServerLiveResponse`, `ServerReadyResponse`, `ModelReadyResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Flag {
    #[prost(bool, tag = "1")]
    pub(crate) value: bool,
}

/// `ModelReadyRequest`, `ModelMetadataRequest`, `ModelConfigRequest`, `ModelStatisticsRequest`: an empty version is any.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
}

/// What a server says of itself.
#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ServerMetadataResponse {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) extensions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelMetadataResponse {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) versions: Vec<String>,
    #[prost(string, tag = "3")]
    pub(crate) platform: String,
    #[prost(message, repeated, tag = "4")]
    pub(crate) inputs: Vec<TensorMessage>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) outputs: Vec<TensorMessage>,
}

/// A tensor without its data: metadata, and the outputs of an answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorMessage {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) shape: Vec<i64>,
}

impl From<&TensorMetadata> for TensorMessage {
    fn from(tensor: &TensorMetadata) -> Self {
        TensorMessage {
            name: tensor.name.clone(),
            datatype: tensor.datatype.as_str().to_owned(),
            shape: tensor.shape.clone(),
        }
    }
}

impl From<&ModelMetadata> for ModelMetadataResponse {
    fn from(metadata: &ModelMetadata) -> Self {
        ModelMetadataResponse {
            name: metadata.name.clone(),
            versions: metadata.versions.clone(),
            platform: metadata.platform.clone(),
            inputs: metadata.inputs.iter().map(Into::into).collect(),
            outputs: metadata.outputs.iter().map(Into::into).collect(),
        }
    }
}

/// A parameter's value: numbers only, since no other is read here.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InferParameter {
    #[prost(oneof = "Number", tags = "2, 5")]
    pub(crate) value: Option<Number>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Number {
    #[prost(int64, tag = "2")]
    Signed(i64),
    #[prost(uint64, tag = "5")]
    Unsigned(u64),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelInferRequest {
    #[prost(string, tag = "1")]
    pub(crate) model_name: String,
    #[prost(string, tag = "2")]
    pub(crate) model_version: String,
    #[prost(string, tag = "3")]
    pub(crate) id: String,
    #[prost(map = "string, message", tag = "4")]
    pub(crate) parameters: HashMap<String, InferParameter>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) inputs: Vec<InferInputTensor>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) outputs: Vec<InferRequestedOutputTensor>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(crate) raw_input_contents: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InferInputTensor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    pub(crate) contents: Option<InferTensorContents>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InferRequestedOutputTensor {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Only the names are read, to refuse the extensions that are not here.
    #[prost(map = "string, message", tag = "2")]
    pub(crate) parameters: HashMap<String, InferParameter>,
}

/// A tensor's values by type.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InferTensorContents {
    #[prost(bool, repeated, tag = "1")]
    pub(crate) bools: Vec<bool>,
    #[prost(int32, repeated, tag = "2")]
    pub(crate) ints: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) int64s: Vec<i64>,
    #[prost(uint32, repeated, tag = "4")]
    pub(crate) uints: Vec<u32>,
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) uint64s: Vec<u64>,
    #[prost(float, repeated, tag = "6")]
    pub(crate) fp32s: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    pub(crate) fp64s: Vec<f64>,
    #[prost(bytes = "bytes", repeated, tag = "8")]
    pub(crate) bytes: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelInferResponse {
    #[prost(string, tag = "1")]
    pub(crate) model_name: String,
    #[prost(string, tag = "2")]
    pub(crate) model_version: String,
    #[prost(string, tag = "3")]
    pub(crate) id: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) outputs: Vec<TensorMessage>,
    /// One for each output, in its order: clients read nothing else.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) raw_output_contents: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelStreamInferResponse {
    /// Empty when it went well.
    #[prost(string, tag = "1")]
    pub(crate) error_message: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) infer_response: Option<ModelInferResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelConfigResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) config: Option<ModelConfig>,
}

/// The part of a model configuration that means something here.
#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelConfig {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) platform: String,
    #[prost(string, tag = "17")]
    pub(crate) backend: String,
    /// 0: the first dimension is the model's own.
    #[prost(int32, tag = "4")]
    pub(crate) max_batch_size: i32,
    #[prost(message, repeated, tag = "5")]
    pub(crate) input: Vec<ModelInput>,
    #[prost(message, repeated, tag = "6")]
    pub(crate) output: Vec<ModelOutput>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelInput {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(enumeration = "DataType", tag = "2")]
    #[serde(serialize_with = "data_type_name")]
    pub(crate) data_type: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(crate) dims: Vec<i64>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelOutput {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(enumeration = "DataType", tag = "2")]
    #[serde(serialize_with = "data_type_name")]
    pub(crate) data_type: i32,
    #[prost(int64, repeated, tag = "3")]
    pub(crate) dims: Vec<i64>,
}

/// The datatypes under the names that a configuration has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum DataType {
    Invalid = 0,
    Bool = 1,
    Uint8 = 2,
    Uint16 = 3,
    Uint32 = 4,
    Uint64 = 5,
    Int8 = 6,
    Int16 = 7,
    Int32 = 8,
    Int64 = 9,
    Fp16 = 10,
    Fp32 = 11,
    Fp64 = 12,
    String = 13,
}

impl From<Datatype> for DataType {
    fn from(datatype: Datatype) -> DataType {
        match datatype {
            Datatype::Bool => DataType::Bool,
            Datatype::Uint8 => DataType::Uint8,
            Datatype::Uint16 => DataType::Uint16,
            Datatype::Uint32 => DataType::Uint32,
            Datatype::Uint64 => DataType::Uint64,
            Datatype::Int8 => DataType::Int8,
            Datatype::Int16 => DataType::Int16,
            Datatype::Int32 => DataType::Int32,
            Datatype::Int64 => DataType::Int64,
            Datatype::Fp16 => DataType::Fp16,
            Datatype::Fp32 => DataType::Fp32,
            Datatype::Fp64 => DataType::Fp64,
            Datatype::Bytes => DataType::String,
        }
    }
}

// serde gives a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn data_type_name<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let data_type = DataType::try_from(*value).unwrap_or(DataType::Invalid);
    serializer.collect_str(&format_args!("TYPE_{}", format!("{data_type:?}").to_uppercase()))
}

impl ModelConfig {
    pub(crate) fn of(metadata: &ModelMetadata) -> ModelConfig {
        let input = |tensor: &TensorMetadata| ModelInput {
            name: tensor.name.clone(),
            data_type: DataType::from(tensor.datatype).into(),
            dims: tensor.shape.clone(),
        };
        let output = |tensor: &TensorMetadata| ModelOutput {
            name: tensor.name.clone(),
            data_type: DataType::from(tensor.datatype).into(),
            dims: tensor.shape.clone(),
        };
        ModelConfig {
            name: metadata.name.clone(),
            platform: metadata.platform.clone(),
            backend: "skerry".to_owned(),
            max_batch_size: 0,
            input: metadata.inputs.iter().map(input).collect(),
            output: metadata.outputs.iter().map(output).collect(),
        }
    }
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelStatisticsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) model_stats: Vec<ModelStatistics>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelStatistics {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub(crate) last_inference: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) inference_count: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) execution_count: u64,
    #[prost(message, optional, tag = "6")]
    pub(crate) inference_stats: Option<InferStatistics>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct InferStatistics {
    #[prost(message, optional, tag = "1")]
    pub(crate) success: Option<StatisticDuration>,
    #[prost(message, optional, tag = "2")]
    pub(crate) fail: Option<StatisticDuration>,
    #[prost(message, optional, tag = "3")]
    pub(crate) queue: Option<StatisticDuration>,
    #[prost(message, optional, tag = "4")]
    pub(crate) compute_input: Option<StatisticDuration>,
    #[prost(message, optional, tag = "5")]
    pub(crate) compute_infer: Option<StatisticDuration>,
    #[prost(message, optional, tag = "6")]
    pub(crate) compute_output: Option<StatisticDuration>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct StatisticDuration {
    #[prost(uint64, tag = "1")]
    pub(crate) count: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) ns: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RepositoryIndexResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) models: Vec<ModelIndex>,
}

#[derive(Clone, PartialEq, Serialize, prost::Message)]
pub(crate) struct ModelIndex {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) version: String,
    #[prost(string, tag = "3")]
    pub(crate) state: String,
    #[prost(string, tag = "4")]
    pub(crate) reason: String,
}
