//! Which operators of a file no engine here knows: the commonest reason why a model does not run, said before loading and all at
//! once instead of one a try.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::{GraphProto, ModelProto};

use crate::admission::shortened;

/// Nodes named per operator; the first few find the place in the training code.
const NAMED_MAX: usize = 3;

/// An operator that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownOperator {
    /// Its operator set; empty for the main one.
    pub domain: String,
    /// Its name.
    pub operator: String,
    /// How many nodes use it, those of inner graphs included.
    pub uses: usize,
    /// The names of the first nodes that do.
    pub nodes: Vec<String>,
}

impl std::fmt::Display for UnknownOperator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.nodes.join("`, `");
        let more = if self.uses > self.nodes.len() { ", …" } else { "" };
        write!(f, "{}", self.operator)?;
        if !self.domain.is_empty() {
            write!(f, " of {}", self.domain)?;
        }
        match self.uses {
            1 => write!(f, " (once: `{nodes}`)"),
            uses => write!(f, " ({uses} times: `{nodes}`{more})"),
        }
    }
}

/// The operators of `proto` that `known` does not have, by name. A domain of a third party is unknown as a whole: tract looks
/// operators up without their domain and would take its own of the same name.
pub(crate) fn unknown(proto: &ModelProto, known: &dyn Fn(&str) -> bool) -> Vec<UnknownOperator> {
    let mut found: BTreeMap<(&str, &str), UnknownOperator> = BTreeMap::new();
    let functions: BTreeSet<&str> = proto
        .functions
        .iter()
        .filter_map(|function| function.name.as_deref())
        .collect();
    if let Some(graph) = &proto.graph {
        visit(
            graph,
            &|domain, operator| is_known_domain(domain) && known(operator) && !functions.contains(operator),
            &mut found,
        );
    }
    found.into_values().collect()
}

fn is_known_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx" | "ai.onnx.ml" | "com.microsoft")
}

fn visit<'a>(
    graph: &'a GraphProto,
    known: &dyn Fn(&str, &str) -> bool,
    found: &mut BTreeMap<(&'a str, &'a str), UnknownOperator>,
) {
    for node in &graph.node {
        if !known(&node.domain, &node.op_type) {
            let entry = found.entry((&node.domain, &node.op_type));
            let unknown = entry.or_insert_with(|| UnknownOperator {
                domain: shortened(&node.domain),
                operator: shortened(&node.op_type),
                uses: 0,
                nodes: Vec::new(),
            });
            unknown.uses += 1;
            if unknown.nodes.len() < NAMED_MAX {
                let name = [&node.name]
                    .into_iter()
                    .chain(&node.output)
                    .find(|name| !name.is_empty());
                unknown.nodes.push(shortened(name.map_or("", String::as_str)));
            }
        }
        let inner = node
            .attribute
            .iter()
            .flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        inner.for_each(|graph| visit(graph, known, found));
    }
}

/// Several operators as one sentence part.
pub(crate) fn listed(operators: &[UnknownOperator]) -> String {
    let words: Vec<String> = operators.iter().map(ToString::to_string).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, NodeProto};

    use super::*;

    fn node(domain: &str, operator: &str, name: &str) -> NodeProto {
        NodeProto {
            domain: domain.to_owned(),
            op_type: operator.to_owned(),
            output: vec![name.to_owned()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn every_unknown_operator_is_named_with_its_nodes() {
        let mut holder = node("", "If", "if");
        holder.attribute.push(AttributeProto {
            g: Some(GraphProto {
                node: vec![node("", "Det", "inner")],
                ..GraphProto::default()
            }),
            ..AttributeProto::default()
        });
        let nodes = vec![
            node("", "Relu", "r"),
            node("", "Det", "a"),
            holder,
            node("", "Det", "b"),
            node("", "Det", "c"),
            node("com.example", "Relu", "strange"),
        ];
        let proto = ModelProto {
            graph: Some(GraphProto {
                node: nodes,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let unknown = unknown(&proto, &|operator| operator != "Det");
        assert_eq!(
            listed(&unknown),
            "Det (4 times: `a`, `inner`, `b`, …), Relu of com.example (once: `strange`)"
        );
    }
}
