//! The batch policy of a stage: its input cut into calls of a few rows each, and the answers put together again.
//!
//! Invariant: row n of an answer is what the stage gave for row n, whatever the cut; without rows nothing is called.

use std::num::NonZeroU32;

use skerry_shared::oip::{Datatype, Tensor, TensorError, TensorMetadata};

use super::LoadedStage;
use crate::{InferError, LoadError};

/// Rows of one request: a detector that finds more is broken, and each row can be a call.
const ROWS_MAX: usize = 4096;

/// Says whether a stage can be called with batches at all.
pub(super) fn check(stage: &LoadedStage) -> Result<(), LoadError> {
    let Some(rows) = stage.batch else { return Ok(()) };
    // A stage with a fixed number of rows takes neither more nor, at the end, fewer.
    let can = |tensor: &&TensorMetadata| match tensor.shape.first() {
        Some(1) => rows.get() == 1,
        Some(length) => *length < 0,
        None => false,
    };
    match stage
        .own_inputs()
        .iter()
        .chain(stage.own_outputs())
        .find(|tensor| !can(tensor))
    {
        Some(tensor) => Err(LoadError::Batch {
            stage: stage.name.clone(),
            rows,
            tensor: tensor.clone(),
        }),
        None => Ok(()),
    }
}

/// Calls the stage with at most `limit` rows at a time.
pub(super) fn run(stage: &LoadedStage, limit: NonZeroU32, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
    let refused = |reason: String| InferError::Rows {
        stage: stage.name.clone(),
        reason,
    };
    let failed = |reason: String| InferError::Batch {
        stage: stage.name.clone(),
        reason,
    };
    let rows = inputs
        .first()
        .and_then(|input| input.shape().first())
        .copied()
        .unwrap_or(0);
    if let Some(other) = inputs.iter().find(|input| input.shape().first() != Some(&rows)) {
        let shape = other.shape();
        return Err(refused(format!(
            "`{}` {shape:?} has not {rows} rows as `{}` has",
            other.name(),
            inputs[0].name()
        )));
    }
    if rows > ROWS_MAX {
        return Err(refused(format!(
            "there are {rows} rows, at most {ROWS_MAX} are allowed"
        )));
    }
    let mut cut: Vec<Rows<'_>> = inputs.iter().map(Rows::new).collect();
    let mut joined: Vec<Joined> = Vec::new();
    let mut done = 0;
    while done < rows {
        let count = (rows - done).min(usize::try_from(limit.get()).unwrap_or(usize::MAX));
        let taken = cut.iter_mut().map(|rows| rows.next(count)).collect();
        let given = stage.call(taken)?;
        let fits = if done == 0 {
            joined = given.into_iter().map(Joined::new).collect();
            joined.iter().all(|joined| joined.shape.first() == Some(&count))
        } else {
            joined.iter_mut().all(|joined| {
                let same = given.iter().find(|tensor| tensor.name() == joined.name);
                same.is_some_and(|tensor| joined.add(tensor, count))
            })
        };
        if !fits {
            let reason = "gave other tensors than the calls before it, or another number of rows";
            return Err(failed(format!("a call with {count} rows {reason}")));
        }
        done += count;
    }
    let tensors: Result<Vec<Tensor>, TensorError> = match rows {
        0 => stage.outputs().iter().map(empty).collect(),
        _ => joined.into_iter().map(Joined::tensor).collect(),
    };
    tensors.map_err(|error| failed(error.to_string()))
}

/// What a stage gives for no rows. A dimension that only a call could tell is 0, too.
fn empty(metadata: &TensorMetadata) -> Result<Tensor, TensorError> {
    let mut shape: Vec<usize> = metadata
        .shape
        .iter()
        .map(|dim| usize::try_from(*dim).unwrap_or(0))
        .collect();
    if let Some(rows) = shape.first_mut() {
        *rows = 0;
    }
    Tensor::new(metadata.name.clone(), metadata.datatype, shape, Vec::new())
}

/// The rows of a tensor that are not taken yet.
struct Rows<'a> {
    tensor: &'a Tensor,
    elements_per_row: usize,
    data: &'a [u8],
}

impl<'a> Rows<'a> {
    fn new(tensor: &'a Tensor) -> Rows<'a> {
        Rows {
            tensor,
            elements_per_row: tensor.shape().iter().skip(1).product(),
            data: tensor.data(),
        }
    }

    fn next(&mut self, rows: usize) -> Tensor {
        let elements = rows * self.elements_per_row;
        let length = match self.tensor.datatype().element_bytes() {
            Some(size) => elements * size,
            None => (0..elements).fold(0, |at, _| at + element_length(&self.data[at..])),
        };
        let (taken, rest) = self.data.split_at(length);
        self.data = rest;
        let mut shape = self.tensor.shape().to_vec();
        shape[0] = rows;
        Tensor::new(self.tensor.name(), self.tensor.datatype(), shape, taken.to_vec())
            .expect("whole rows of a tensor that is one")
    }
}

/// Bytes of the first element of `BYTES` data, with its length in front.
fn element_length(data: &[u8]) -> usize {
    4 + u32::from_le_bytes([data[0], data[1], data[2], data[3]]) as usize
}

/// An output of several calls.
struct Joined {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Joined {
    fn new(tensor: Tensor) -> Joined {
        Joined {
            name: tensor.name().to_owned(),
            datatype: tensor.datatype(),
            shape: tensor.shape().to_vec(),
            data: tensor.into_data(),
        }
    }

    /// False when it is no continuation.
    fn add(&mut self, tensor: &Tensor, rows: usize) -> bool {
        let fits = tensor.datatype() == self.datatype
            && tensor.shape().first() == Some(&rows)
            && tensor.shape()[1..] == self.shape[1..];
        if fits {
            self.shape[0] += rows;
            self.data.extend_from_slice(tensor.data());
        }
        fits
    }

    fn tensor(self) -> Result<Tensor, TensorError> {
        Tensor::new(self.name, self.datatype, self.shape, self.data)
    }
}
