//! The graph as names: each is given once, each that is used is given, and nothing waits for itself.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

use super::{shortened, tensor};

/// Nodes of a file, subgraphs and functions included: real device models have hundreds, large ones thousands.
const NODES_MAX: usize = 50_000;
/// Attributes of a node; the largest operator of ONNX has about thirty.
const ATTRIBUTES_MAX: usize = 64;
/// Inputs or outputs of a node: a `Concat` of every layer of a large network stays below.
const CONNECTIONS_MAX: usize = 4096;
/// Graphs inside graphs. Loaders recurse.
const DEPTH_MAX: usize = 8;
/// Bytes of a name. Names become keys, and words in messages.
const NAME_BYTES_MAX: usize = 4096;

/// The names that a graph sees: its own and those of the graphs around it.
struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    names: HashSet<&'a str>,
}

impl Scope<'_> {
    fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.outer.is_some_and(|outer| outer.has(name))
    }
}

pub(super) fn admit(proto: &ModelProto, graph: &GraphProto) -> Result<(), String> {
    let mut nodes = 0;
    for function in &proto.functions {
        count(&mut nodes, function.node.len())?;
        for node in &function.node {
            admit_node(node)?;
            for attribute in &node.attribute {
                admit_tensors(attribute)?;
            }
        }
    }
    let imported = |domain: &str| {
        let same = |name: &str| name == domain || (is_main(name) && is_main(domain));
        proto.opset_import.iter().any(|import| same(&import.domain))
    };
    admit_graph(graph, None, 0, &mut nodes, &imported)
}

/// The main domain has two spellings.
fn is_main(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

fn count(nodes: &mut usize, more: usize) -> Result<(), String> {
    *nodes += more;
    if *nodes > NODES_MAX {
        return Err(format!("its nodes exceed the limit of {NODES_MAX}"));
    }
    Ok(())
}

fn admit_graph<'a>(
    graph: &'a GraphProto,
    outer: Option<&'a Scope<'a>>,
    depth: usize,
    nodes: &mut usize,
    imported: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("graphs are nested deeper than {DEPTH_MAX}"));
    }
    count(nodes, graph.node.len())?;
    if !graph.sparse_initializer.is_empty() {
        return Err("it has sparse initializers, which are not supported; export dense ones".to_owned());
    }
    for initializer in &graph.initializer {
        tensor::admit(initializer)?;
    }
    for node in &graph.node {
        admit_node(node)?;
        if !imported(&node.domain) {
            return Err(format!(
                "{} is of operator set `{}`, which the file does not import",
                words(node),
                shortened(&node.domain)
            ));
        }
        for attribute in &node.attribute {
            admit_tensors(attribute)?;
        }
    }
    let scope = scope(graph, outer)?;
    let given = |name: &str| name.is_empty() || scope.has(name);
    for node in &graph.node {
        if let Some(name) = node.input.iter().find(|name| !given(name)) {
            return Err(format!(
                "{} takes `{}`, which nothing gives",
                words(node),
                shortened(name)
            ));
        }
    }
    if let Some(output) = graph.output.iter().find(|output| !scope.has(&output.name)) {
        return Err(format!("output `{}` is given by no node", shortened(&output.name)));
    }
    admit_order(graph)?;
    for inner in graph.node.iter().flat_map(|node| &node.attribute).flat_map(graphs) {
        admit_graph(inner, Some(&scope), depth + 1, nodes, imported)?;
    }
    Ok(())
}

/// Collects the names of a graph; none may be given twice.
fn scope<'a>(graph: &'a GraphProto, outer: Option<&'a Scope<'a>>) -> Result<Scope<'a>, String> {
    let mut twice = None;
    let mut names = HashSet::new();
    for input in &graph.input {
        if !names.insert(input.name.as_str()) {
            twice = Some(&input.name);
        }
    }
    // Before IR version 4 every initializer was an input too.
    let mut initializers = HashSet::new();
    for initializer in &graph.initializer {
        if !initializers.insert(initializer.name.as_str()) {
            twice = Some(&initializer.name);
        }
    }
    names.extend(initializers);
    for output in graph.node.iter().flat_map(|node| &node.output) {
        if !output.is_empty() && !names.insert(output) {
            twice = Some(output);
        }
    }
    let too_long = names.iter().find(|name| name.len() > NAME_BYTES_MAX);
    match (twice, too_long) {
        (Some(name), _) => Err(format!("`{}` is given twice", shortened(name))),
        (None, Some(name)) => Err(format!("the name `{}` is too long", shortened(name))),
        (None, None) => Ok(Scope { outer, names }),
    }
}

fn admit_node(node: &NodeProto) -> Result<(), String> {
    for (what, got, limit) in [
        ("attributes", node.attribute.len(), ATTRIBUTES_MAX),
        ("inputs", node.input.len(), CONNECTIONS_MAX),
        ("outputs", node.output.len(), CONNECTIONS_MAX),
    ] {
        if got > limit {
            return Err(format!("{} has {got} {what}, at most {limit} are allowed", words(node)));
        }
    }
    if node.op_type.is_empty() || node.op_type.len().max(node.name.len()) > NAME_BYTES_MAX {
        return Err(format!(
            "{} has no name or operator, or one that is too long",
            words(node)
        ));
    }
    Ok(())
}

fn admit_tensors(attribute: &AttributeProto) -> Result<(), String> {
    if attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty() {
        return Err(format!("attribute `{}` is a sparse tensor", shortened(&attribute.name)));
    }
    attribute.t.iter().chain(&attribute.tensors).try_for_each(tensor::admit)
}

fn graphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

/// Takes away nodes that wait for nothing until none is left (Kahn's algorithm); what stays is a cycle.
fn admit_order(graph: &GraphProto) -> Result<(), String> {
    let mut giver: HashMap<&str, usize> = HashMap::new();
    for (position, node) in graph.node.iter().enumerate() {
        giver.extend(node.output.iter().map(|name| (name.as_str(), position)));
    }
    let mut waits = vec![0_usize; graph.node.len()];
    let mut followers = vec![Vec::new(); graph.node.len()];
    for (position, node) in graph.node.iter().enumerate() {
        let mut used = HashSet::new();
        uses(node, &mut used);
        for name in used {
            if let Some(before) = giver.get(name) {
                followers[*before].push(position);
                waits[position] += 1;
            }
        }
    }
    let mut free: Vec<usize> = (0..waits.len()).filter(|position| waits[*position] == 0).collect();
    let mut left = waits.len();
    while let Some(position) = free.pop() {
        left -= 1;
        for follower in &followers[position] {
            waits[*follower] -= 1;
            if waits[*follower] == 0 {
                free.push(*follower);
            }
        }
    }
    match waits.iter().position(|waits| *waits > 0) {
        Some(position) if left > 0 => Err(format!("{} waits for itself", words(&graph.node[position]))),
        _ => Ok(()),
    }
}

/// Every name that a node or a graph inside it uses. Names that an inner graph gives itself are among them, which does no harm:
/// ONNX forbids that they are names of this graph too.
fn uses<'a>(node: &'a NodeProto, names: &mut HashSet<&'a str>) {
    names.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
    for graph in node.attribute.iter().flat_map(graphs) {
        names.extend(graph.output.iter().map(|output| output.name.as_str()));
        for node in &graph.node {
            uses(node, names);
        }
    }
}

/// A node in a message: its operator and its name, or that of its first output.
fn words(node: &NodeProto) -> String {
    let name = [&node.name]
        .into_iter()
        .chain(&node.output)
        .find(|name| !name.is_empty());
    let name = shortened(name.map_or("", String::as_str));
    format!("{} `{name}`", shortened(&node.op_type))
}
