//! Attributes of a node, read as what they are used for; an absent one is empty or its default, a wrong one is an error that
//! names node and attribute.

use tract_onnx::{
    pb::{AttributeProto, NodeProto, TensorProto},
    tract_hir::internal::{TractResult, bail},
};

fn find<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    find(node, name).map_or(default, |attribute| attribute.f)
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    find(node, name).map_or(default, |attribute| attribute.i)
}

pub(super) fn floats<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    find(node, name).map_or(&[], |attribute| &attribute.floats)
}

pub(super) fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    find(node, name).map_or(&[], |attribute| &attribute.ints)
}

pub(super) fn tensor<'a>(node: &'a NodeProto, name: &str) -> Option<&'a TensorProto> {
    find(node, name).and_then(|attribute| attribute.t.as_ref())
}

pub(super) fn string<'a>(node: &'a NodeProto, name: &str, default: &'a str) -> TractResult<&'a str> {
    find(node, name).map_or(Ok(default), |attribute| text(node, name, &attribute.s))
}

pub(super) fn strings(node: &NodeProto, name: &str) -> TractResult<Vec<String>> {
    let bytes = find(node, name).map_or(&[][..], |attribute| &attribute.strings);
    let owned = |bytes: &Vec<u8>| Ok(text(node, name, bytes)?.to_owned());
    bytes.iter().map(owned).collect()
}

/// The string attribute of a tree that holds one word a node, without a copy of each.
pub(super) fn words<'a>(node: &'a NodeProto, name: &str) -> TractResult<Vec<&'a str>> {
    let bytes = find(node, name).map_or(&[][..], |attribute| &attribute.strings);
    bytes.iter().map(|bytes| text(node, name, bytes)).collect()
}

fn text<'a>(node: &NodeProto, name: &str, bytes: &'a [u8]) -> TractResult<&'a str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(_) => bail!("attribute `{name}` of {} is no text", node.op_type),
    }
}
