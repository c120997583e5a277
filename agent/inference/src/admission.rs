//! Looks at an ONNX file before tract does: a lie about lengths makes tract 0.23 panic or allocate without bound.

use skerry_shared::oip::Datatype;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto};

use crate::ModelError;

/// Nodes in a graph: real device models have hundreds.
const NODES_MAX: usize = 50_000;
/// Bytes of one tensor: larger ones do not fit a device.
const TENSOR_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Dimensions of a tensor.
const RANK_MAX: usize = 16;

/// Refuses what is malformed, refers to files outside, or is absurdly large.
pub(crate) fn admit(proto: &ModelProto) -> Result<&GraphProto, ModelError> {
    let graph = proto
        .graph
        .as_ref()
        .ok_or_else(|| ModelError::Parse("there is no graph in it".to_owned()))?;
    if graph.node.is_empty() || graph.output.is_empty() {
        return Err(ModelError::Parse("the graph is empty".to_owned()));
    }
    if graph.node.len() > NODES_MAX {
        return Err(not_admitted(format!(
            "{} nodes exceed the limit of {NODES_MAX}",
            graph.node.len()
        )));
    }
    let constants = graph
        .node
        .iter()
        .flat_map(|node| &node.attribute)
        .filter_map(|attribute| attribute.t.as_ref());
    for tensor in graph.initializer.iter().chain(constants) {
        admit_tensor(tensor)?;
    }
    Ok(graph)
}

fn admit_tensor(tensor: &TensorProto) -> Result<(), ModelError> {
    let name = &tensor.name;
    if !tensor.external_data.is_empty() || tensor.data_location == Some(1) {
        return Err(not_admitted(format!("tensor `{name}` keeps its data in another file")));
    }
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let count = dims
        .filter(|dims| dims.len() <= RANK_MAX)
        .and_then(|dims| skerry_shared::oip::element_count(&dims));
    let bytes = count.and_then(|count| count.checked_mul(element_bytes(tensor.data_type).unwrap_or(1)));
    let Some(bytes) = bytes.filter(|bytes| *bytes <= TENSOR_BYTES_MAX) else {
        return Err(not_admitted(format!(
            "tensor `{name}` has an impossible shape {:?}",
            tensor.dims
        )));
    };
    let has_raw = !tensor.raw_data.is_empty();
    if has_raw && element_bytes(tensor.data_type).is_some() && tensor.raw_data.len() != bytes {
        let got = tensor.raw_data.len();
        return Err(not_admitted(format!(
            "tensor `{name}` has {got} bytes of data, its shape says {bytes}"
        )));
    }
    Ok(())
}

fn not_admitted(reason: String) -> ModelError {
    ModelError::NotAdmitted(reason)
}

/// Bytes of one element in `raw_data`; `None` where elements differ in length or are packed.
fn element_bytes(data_type: i32) -> Option<usize> {
    match data_type {
        10 | 16 => Some(2),
        other => datatype(other).and_then(Datatype::element_bytes),
    }
}

/// The datatype of an ONNX element type (`TensorProto.DataType`).
pub(crate) fn datatype(element_type: i32) -> Option<Datatype> {
    Some(match element_type {
        1 => Datatype::Fp32,
        2 => Datatype::Uint8,
        3 => Datatype::Int8,
        4 => Datatype::Uint16,
        5 => Datatype::Int16,
        6 => Datatype::Int32,
        7 => Datatype::Int64,
        9 => Datatype::Bool,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        _ => return None,
    })
}
