//! What an operator of ours must say, and how tract sees it: one wrapper for all of them.
//!
//! Invariant: tract's rewriting leaves these operators alone. They claim no relation between the axes of inputs and outputs.

use std::{fmt::Debug, sync::Arc};

use tract_onnx::{
    pb::NodeProto,
    tract_hir::{
        infer::{InferenceResult, Solver, TensorProxy},
        internal::{
            DatumType, DatumTypeExt, EvalContext, EvalOp, Expansion, InferenceOp, Op, OutletId, ShapeFactoid,
            SpecialOps, StaticName, TDim, TValue, TVec, Tensor, TractResult, TypedFact, TypedModel, TypedOp, bail,
            expand,
        },
    },
};

/// A datatype and a shape.
pub(super) type Fact = (DatumType, TVec<TDim>);

/// An operator that is a function of whole tensors.
pub(super) trait Kernel: Debug + Send + Sync + 'static {
    /// ONNX's name of it.
    fn name(&self) -> &'static str;

    /// The outputs' facts by those of the inputs, all outputs that the operator can have.
    fn facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>>;

    /// The outputs by the inputs.
    fn run(&self, inputs: &[TValue]) -> TractResult<Vec<Tensor>>;
}

/// Makes a kernel into what tract's registry wants, for the inputs and outputs that `node` uses.
pub(super) fn build(kernel: impl Kernel, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    // tract counts only the outputs that have a name; one left out in the middle would shift the others.
    let outputs = node.output.iter().take_while(|name| !name.is_empty()).count();
    if node.output.iter().skip(outputs).any(|name| !name.is_empty()) {
        bail!("output 0 of {} is not used, which is not supported", node.op_type);
    }
    let inputs = node.input.iter().filter(|name| !name.is_empty()).count();
    let wrapped = Wrapped {
        kernel: Arc::new(kernel),
        inputs,
        outputs,
    };
    Ok((expand(wrapped), Vec::new()))
}

#[derive(Clone, Debug)]
struct Wrapped {
    kernel: Arc<dyn Kernel>,
    inputs: usize,
    outputs: usize,
}

impl PartialEq for Wrapped {
    fn eq(&self, other: &Wrapped) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for Wrapped {}

impl Wrapped {
    fn used_facts(&self, inputs: &[Fact]) -> TractResult<Vec<Fact>> {
        let mut facts = self.kernel.facts(inputs)?;
        if facts.len() < self.outputs {
            bail!(
                "{} gives {} outputs, not {}",
                self.kernel.name(),
                facts.len(),
                self.outputs
            );
        }
        facts.truncate(self.outputs);
        Ok(facts)
    }
}

impl Expansion for Wrapped {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != self.inputs || outputs.len() != self.outputs {
            bail!(
                "{} has {} inputs and {} outputs",
                self.kernel.name(),
                inputs.len(),
                outputs.len()
            );
        }
        let types: Vec<_> = inputs.iter().map(|input| &input.datum_type).collect();
        solver.given_all(types, move |solver, types| {
            let shapes: Vec<_> = inputs.iter().map(|input| &input.shape).collect();
            solver.given_all(shapes, move |solver, shapes| {
                let facts: Vec<Fact> = types.iter().copied().zip(shapes).collect();
                for (output, (datum, shape)) in outputs.iter().zip(self.used_facts(&facts)?) {
                    solver.equals(&output.datum_type, datum)?;
                    solver.equals(&output.shape, ShapeFactoid::from(shape))?;
                }
                Ok(())
            })
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Wrapped {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    fn as_typed(&self) -> Option<&dyn TypedOp> {
        Some(self)
    }
}

impl EvalOp for Wrapped {
    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let outputs = self.kernel.run(&inputs)?;
        Ok(outputs.into_iter().take(self.outputs).map(TValue::from).collect())
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.eval(&EvalContext::out_of_plan(), inputs).map(Some)
    }
}

impl TypedOp for Wrapped {
    fn as_op(&self) -> &dyn Op {
        self
    }

    fn as_op_mut(&mut self) -> &mut dyn Op {
        self
    }

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let facts: Vec<Fact> = inputs
            .iter()
            .map(|fact| (fact.datum_type, fact.shape.iter().cloned().collect()))
            .collect();
        let facts = self.used_facts(&facts)?;
        Ok(facts.into_iter().map(|(datum, shape)| datum.fact(shape)).collect())
    }
}
