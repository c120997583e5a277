//! Tensors inside a file: their data is here, is of a known type, and is as long as their shape says.

use skerry_shared::oip::Datatype;
use tract_onnx::pb::TensorProto;

use super::shortened;

/// Bytes of one tensor: larger ones do not fit a device.
const TENSOR_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Dimensions of a tensor. ONNX has no limit; engines recurse or allocate by it.
const RANK_MAX: usize = 16;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;
const STRING: i32 = 8;

pub(super) fn admit(tensor: &TensorProto) -> Result<(), String> {
    let name = shortened(&tensor.name);
    if !tensor.external_data.is_empty() || tensor.data_location == Some(EXTERNAL) {
        return Err(format!("tensor `{name}` keeps its data in another file"));
    }
    if tensor.segment.is_some() {
        return Err(format!("tensor `{name}` is in pieces"));
    }
    let Some(type_name) = datatype_name(tensor.data_type) else {
        return Err(format!(
            "tensor `{name}` has the unknown element type {}",
            tensor.data_type
        ));
    };
    let dims: Option<Vec<usize>> = tensor.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect();
    let count = dims
        .filter(|dims| dims.len() <= RANK_MAX)
        .and_then(|dims| skerry_shared::oip::element_count(&dims));
    let bits = packed_bits(tensor.data_type);
    let bytes = count.and_then(|count| Some(count.checked_mul(bits)?.div_ceil(8)));
    let (Some(count), Some(bytes)) = (count, bytes.filter(|bytes| *bytes <= TENSOR_BYTES_MAX)) else {
        let shape = &tensor.dims[..tensor.dims.len().min(RANK_MAX + 1)];
        return Err(format!("tensor `{name}` has an impossible shape {shape:?}"));
    };
    if !tensor.raw_data.is_empty() {
        // tract 0.23 panics over raw strings; ONNX forbids them.
        if tensor.data_type == STRING {
            return Err(format!("tensor `{name}` has strings as raw bytes"));
        }
        let got = tensor.raw_data.len();
        if got != bytes {
            return Err(format!(
                "tensor `{name}` has {got} bytes of data, its shape says {bytes}"
            ));
        }
        return Ok(());
    }
    let got = typed_elements(tensor, bits);
    if got != Some(count) {
        let got = got.map_or("no".to_owned(), |got| got.to_string());
        return Err(format!(
            "tensor `{name}` has {got} elements of {type_name}, its shape says {count}"
        ));
    }
    Ok(())
}

/// The elements in the field that the datatype uses when there is no `raw_data`.
fn typed_elements(tensor: &TensorProto, bits: usize) -> Option<usize> {
    Some(match tensor.data_type {
        1 => tensor.float_data.len(),
        // Two to an `int32` since ONNX 1.17, so that the exact count of an odd number is not known.
        21..=23 => return None,
        2..=6 | 9 | 10 | 16..=20 => tensor.int32_data.len(),
        7 => tensor.int64_data.len(),
        STRING => tensor.string_data.len(),
        11 => tensor.double_data.len(),
        12 | 13 => tensor.uint64_data.len(),
        14 => tensor.float_data.len() / 2,
        15 => tensor.double_data.len() / 2,
        _ => return (bits == 0).then_some(0),
    })
}

/// Bits of one element in `raw_data`.
fn packed_bits(data_type: i32) -> usize {
    match data_type {
        21..=23 => 4,
        2 | 3 | 9 | 17..=20 | STRING => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        15 => 128,
        _ => 64,
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
        STRING => Datatype::Bytes,
        9 => Datatype::Bool,
        10 => Datatype::Fp16,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        _ => return None,
    })
}

/// ONNX's own word for an element type; `None` for a number that it does not define.
pub(crate) fn datatype_name(element_type: i32) -> Option<&'static str> {
    use tract_onnx::pb::tensor_proto::DataType;
    let known = DataType::try_from(element_type).ok()?;
    (known != DataType::Undefined).then(|| known.as_str_name())
}
