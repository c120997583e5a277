//! `If`. tract's own wants both branches to be of one rank from the start; exporters write branches of different rank wherever a
//! condition follows from a shape. This one waits for the condition: if it becomes known, only its branch stays, in place.

use std::collections::HashMap;

use tract_onnx::{
    model::{ParseResult, ParsingContext},
    pb::NodeProto,
    tract_hir::{
        infer::{Factoid, GenericFactoid, InferenceFact, InferenceModel, InferenceModelExt, InferenceNode},
        internal::{
            DatumType, EvalOp, InferenceOp, Op, OutletId, SpecialOps, StaticName, TValue, TVec, TractResult,
            TypedModel, TypedOp, bail, ensure,
        },
        tract_core::ops::logic::IfThenElse,
    },
};

/// A branch, and which input of the `If` each of its own inputs is.
#[derive(Clone, Debug)]
struct Branch {
    body: InferenceModel,
    inputs: Vec<usize>,
}

#[derive(Clone, Debug)]
struct If {
    then: Branch,
    otherwise: Branch,
}

pub(super) fn conditional(
    context: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let parse = |name: &str| {
        let attribute = node.attribute.iter().find(|attribute| attribute.name == name);
        let Some(graph) = attribute.and_then(|attribute| attribute.g.as_ref()) else {
            bail!("If has no {name}");
        };
        context.parse_graph(graph)
    };
    let (then, otherwise) = (parse("then_branch")?, parse("else_branch")?);
    ensure!(
        then.model.outputs.len() == otherwise.model.outputs.len(),
        "the branches of If give {} and {} outputs",
        then.model.outputs.len(),
        otherwise.model.outputs.len()
    );
    let mut outer: Vec<String> = Vec::new();
    let mut branch = |parsed: ParseResult| {
        let position = |name: String| {
            let known = outer.iter().position(|other| *other == name);
            let position = known.unwrap_or_else(|| {
                outer.push(name);
                outer.len() - 1
            });
            // The condition is input 0.
            position + 1
        };
        Branch {
            inputs: parsed.unresolved_inputs.into_iter().map(position).collect(),
            body: parsed.model,
        }
    };
    let (then, otherwise) = (branch(then), branch(otherwise));
    Ok((Box::new(If { then, otherwise }), outer))
}

impl Branch {
    /// Lets the branch know what is known outside, and finds out what it gives.
    fn analyse(&mut self, inputs: &mut [InferenceFact]) -> TractResult<()> {
        for (position, outer) in self.inputs.iter().enumerate() {
            self.body
                .input_fact_mut(position)?
                .unify_with_mut(&mut inputs[*outer])?;
        }
        self.body.analyse(false)?;
        Ok(())
    }
}

impl Branch {
    /// The branch as tract runs it. What analysis did not find out, because the condition was not known then, is known now.
    fn typed(&self, target: &TypedModel, inputs: &[OutletId]) -> TractResult<TypedModel> {
        let mut body = self.body.clone();
        for (position, outer) in self.inputs.iter().enumerate() {
            let fact = body.input_fact(position)?;
            if fact.datum_type.concretize().is_none() || fact.shape.concretize().is_none() {
                let known = InferenceFact::from(target.outlet_fact(inputs[*outer])?);
                body.set_input_fact(position, known)?;
            }
        }
        body.into_typed()
    }
}

impl If {
    fn branch_mut(&mut self, condition: bool) -> &mut Branch {
        if condition { &mut self.then } else { &mut self.otherwise }
    }

    fn branch(&self, condition: bool) -> &Branch {
        if condition { &self.then } else { &self.otherwise }
    }

    /// What both branches give alike, as far as is known. A branch that makes no sense with these inputs is the one that the
    /// condition will not choose, so that its errors say nothing yet.
    fn agreed(&self, inputs: &[InferenceFact]) -> TractResult<Vec<InferenceFact>> {
        let mut facts = vec![InferenceFact::default(); self.then.body.outputs.len()];
        let analysed = |branch: &Branch| {
            let mut branch = branch.clone();
            branch.analyse(&mut inputs.to_vec()).is_ok().then_some(branch.body)
        };
        let (Some(then), Some(otherwise)) = (analysed(&self.then), analysed(&self.otherwise)) else {
            return Ok(facts);
        };
        for (position, fact) in facts.iter_mut().enumerate() {
            let (a, b) = (then.output_fact(position)?, otherwise.output_fact(position)?);
            if let (Some(a), Some(b)) = (a.datum_type.concretize(), b.datum_type.concretize())
                && a == b
            {
                fact.datum_type = GenericFactoid::Only(a);
            }
            if let (Some(a), Some(b)) = (a.shape.concretize(), b.shape.concretize())
                && a == b
            {
                fact.shape = a.into();
            }
        }
        Ok(facts)
    }
}

impl PartialEq for If {
    fn eq(&self, _: &If) -> bool {
        false
    }
}

impl Eq for If {}

impl Op for If {
    fn name(&self) -> StaticName {
        "If".into()
    }

    fn as_typed(&self) -> Option<&dyn TypedOp> {
        None
    }
}

impl EvalOp for If {
    // What a branch gives is found by analysing it; this operator itself never runs.
    fn eval_out_of_plan(&self, _: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        Ok(None)
    }
}

type Facts = TVec<InferenceFact>;

impl InferenceOp for If {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(Facts, Facts, Facts)> {
        let owned = |facts: TVec<&InferenceFact>| -> Facts { facts.into_iter().cloned().collect() };
        let (mut inputs, mut outputs) = (owned(inputs), owned(outputs));
        inputs[0].datum_type = inputs[0].datum_type.unify(&GenericFactoid::Only(DatumType::Bool))?;
        match inputs[0].value.concretize() {
            Some(condition) => {
                let branch = self.branch_mut(condition.cast_to_scalar::<bool>()?);
                branch.analyse(&mut inputs)?;
                for (position, output) in outputs.iter_mut().enumerate() {
                    branch.body.output_fact_mut(position)?.unify_with_mut(output)?;
                }
            }
            None => {
                for (output, mut agreed) in outputs.iter_mut().zip(self.agreed(&inputs)?) {
                    output.unify_with_mut(&mut agreed)?;
                }
            }
        }
        Ok((inputs, outputs, owned(observed)))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.then.body.outputs.len())
    }

    fn to_typed(
        &self,
        _: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let Some(condition) = target.outlet_fact(inputs[0])?.konst.clone() else {
            let both = IfThenElse {
                then_body: self.then.typed(target, &inputs)?,
                then_input_mapping: self.then.inputs.clone(),
                else_body: self.otherwise.typed(target, &inputs)?,
                else_input_mapping: self.otherwise.inputs.clone(),
            };
            return target.wire_node(&*node.name, both, &inputs);
        };
        let branch = self.branch(condition.cast_to_scalar::<bool>()?);
        let body = branch.typed(target, &inputs)?;
        let mut inner: HashMap<OutletId, OutletId> = HashMap::new();
        for (outlet, outer) in body.input_outlets()?.iter().zip(&branch.inputs) {
            inner.insert(*outlet, inputs[*outer]);
        }
        for position in body.eval_order()? {
            let part = body.node(position);
            if TypedModel::is_source(&part.op) {
                continue;
            }
            let inputs: TVec<OutletId> = part.inputs.iter().map(|outlet| inner[outlet]).collect();
            let wired = target.wire_node(format!("{}/{}", node.name, part.name), part.op.clone(), &inputs)?;
            for (slot, outlet) in wired.into_iter().enumerate() {
                inner.insert(OutletId::new(position, slot), outlet);
            }
        }
        Ok(body.outputs.iter().map(|outlet| inner[outlet]).collect())
    }

    fn as_op(&self) -> &dyn Op {
        self
    }

    fn as_op_mut(&mut self) -> &mut dyn Op {
        self
    }
}
