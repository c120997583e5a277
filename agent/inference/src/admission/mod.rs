//! Looks at an ONNX file before any engine does. A signed model is still foreign: a lie about lengths makes tract 0.23 panic or
//! allocate without bound, a cycle makes it loop, and a path in a tensor makes an engine read another file.
//!
//! Pure: protobuf in, verdict out. It does not say whether an engine *can* run the model (`operators` does). Invariant: what
//! passes refers to nothing outside itself, has as much data as its shapes say, and is a finite graph of names that exist.

mod graph;
mod tensor;
#[cfg(test)]
mod tests;

pub(crate) use tensor::{datatype, datatype_name};
use tract_onnx::pb::{GraphProto, ModelProto};

use crate::ModelError;

/// Bytes of a file: with the copies that an engine makes, a larger one does not fit a small device.
const FILE_BYTES_MAX: usize = 1 << 30;
/// The operator sets that are understood, with their newest version. A newer one may give an operator another meaning.
const OPERATOR_SETS: &[(&str, i64, i64)] = &[
    ("", 7, 26),
    ("ai.onnx", 7, 26),
    ("ai.onnx.ml", 1, 5),
    ("com.microsoft", 1, 1),
];

/// Refuses what is malformed, refers to files outside, or is absurdly large.
///
/// # Errors
/// [`ModelError::Parse`] when there is no graph, [`ModelError::NotAdmitted`] with the first reason.
pub(crate) fn admit(proto: &ModelProto, file_bytes: usize) -> Result<&GraphProto, ModelError> {
    let graph = proto
        .graph
        .as_ref()
        .ok_or_else(|| ModelError::Parse("there is no graph in it".to_owned()))?;
    if graph.node.is_empty() || graph.output.is_empty() {
        return Err(ModelError::Parse("the graph is empty".to_owned()));
    }
    let check = || {
        if file_bytes > FILE_BYTES_MAX {
            return Err(format!("{file_bytes} bytes exceed the limit of {FILE_BYTES_MAX}"));
        }
        admit_operator_sets(proto)?;
        graph::admit(proto, graph)
    };
    check().map_err(ModelError::NotAdmitted)?;
    Ok(graph)
}

/// Every domain that is imported has one version, which is understood if any node uses the domain (exporters import many that
/// they do not use).
fn admit_operator_sets(proto: &ModelProto) -> Result<(), String> {
    for (position, import) in proto.opset_import.iter().enumerate() {
        let (domain, version) = (import.domain.as_str(), import.version);
        // Exporters repeat an import; two versions would leave the meaning of operators open.
        let before = proto.opset_import[..position]
            .iter()
            .find(|other| other.domain == domain);
        if before.is_some_and(|before| before.version != version) {
            return Err(format!(
                "operator set `{}` is imported in two versions",
                shortened(domain)
            ));
        }
        let known = OPERATOR_SETS.iter().find(|(name, ..)| *name == domain);
        if let Some((_, oldest, newest)) = known
            && !(*oldest..=*newest).contains(&version)
        {
            let name = if domain.is_empty() { "ai.onnx" } else { domain };
            return Err(format!(
                "operator set {version} of `{name}` is not understood; versions {oldest} to {newest} are"
            ));
        }
    }
    Ok(())
}

/// A name for a message: files can hold names of megabytes.
pub(crate) fn shortened(name: &str) -> String {
    const CHARACTERS_MAX: usize = 100;
    match name.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
