//! Compares answers with known ones.

use skerry_shared::{
    bundle::{GoldenVectors, Tolerance},
    oip::{Datatype, Tensor},
};

use crate::{GoldenError, InferError};

/// Runs every vector through `infer` and compares.
pub(crate) fn check(
    golden: &GoldenVectors,
    tolerance: Tolerance,
    infer: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError>,
) -> Result<(), GoldenError> {
    if golden.vectors.is_empty() {
        return Err(GoldenError::Empty);
    }
    for (vector, expected) in golden.vectors.iter().enumerate() {
        let got = infer(expected.inputs.clone()).map_err(|source| GoldenError::Infer { vector, source })?;
        for output in &expected.outputs {
            let name = output.name();
            let same = got.iter().find(|tensor| tensor.name() == name);
            let same = same.filter(|t| t.datatype() == output.datatype() && t.shape() == output.shape());
            let same = same.ok_or_else(|| GoldenError::Shape {
                vector,
                output: name.to_owned(),
            })?;
            if let Some((position, got, expected)) = difference(same, output, tolerance) {
                return Err(GoldenError::Mismatch {
                    vector,
                    output: name.to_owned(),
                    position,
                    got,
                    expected,
                });
            }
        }
    }
    Ok(())
}

/// The first element that differs by more than the tolerance.
fn difference(got: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<(usize, String, String)> {
    let floats = |tensor: &Tensor| -> Option<Vec<f64>> {
        match tensor.datatype() {
            Datatype::Fp32 => Some(tensor.to_f32()?.into_iter().map(f64::from).collect()),
            Datatype::Fp64 => {
                let value = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("chunks of eight bytes"));
                Some(tensor.data().chunks_exact(8).map(value).collect())
            }
            _ => None,
        }
    };
    if let (Some(got), Some(expected)) = (floats(got), floats(expected)) {
        // Written so that NaN is a difference.
        let close = |g: f64, e: f64| (g - e).abs() <= tolerance.absolute + tolerance.relative * e.abs();
        let mut pairs = got.into_iter().zip(expected).enumerate();
        return pairs
            .find(|(_, (g, e))| !close(*g, *e))
            .map(|(i, (g, e))| (i, g.to_string(), e.to_string()));
    }
    if let (Some(got), Some(expected)) = (got.to_byte_elements(), expected.to_byte_elements()) {
        let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
        let mut pairs = got.into_iter().zip(expected).enumerate();
        return pairs
            .find(|(_, (g, e))| g != e)
            .map(|(i, (g, e))| (i, text(g), text(e)));
    }
    let size = got.datatype().element_bytes().unwrap_or(1);
    let mut pairs = got.data().chunks(size).zip(expected.data().chunks(size)).enumerate();
    pairs
        .find(|(_, (g, e))| g != e)
        .map(|(i, (g, e))| (i, format!("{g:02x?}"), format!("{e:02x?}")))
}
