//! Reads trees from the attributes of a node, in the two ways in which ONNX writes them.

use std::collections::HashMap;

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::internal::{TractResult, bail, ensure},
};

use super::forest::{Forest, Mode, RawNode, Weight};
use crate::ops::attributes::{floats, ints, tensor, words};

/// Trees as read.
pub(super) struct Parsed {
    nodes: Vec<RawNode>,
    roots: Vec<usize>,
    pub(super) weights: Vec<Weight>,
    sets: Vec<Vec<f64>>,
}

impl Parsed {
    pub(super) fn forest(self, targets: usize) -> TractResult<Forest> {
        Forest::build(&self.nodes, &self.roots, self.weights, targets, self.sets)
    }
}

/// A list of numbers, which is f32 in the attribute `name`, or any float in `name` + `_as_tensor`.
pub(super) fn doubles(context: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Vec<f64>> {
    let precise = format!("{name}_as_tensor");
    match tensor(node, &precise) {
        Some(_) => tensor_doubles(context, node, &precise),
        None => Ok(floats(node, name).iter().copied().map(f64::from).collect()),
    }
}

fn tensor_doubles(context: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Vec<f64>> {
    let Some(proto) = tensor(node, name) else {
        return Ok(Vec::new());
    };
    let loaded = context.load_tensor(proto)?;
    let values = loaded.cast_to::<f64>()?;
    Ok(values.try_as_plain_ram()?.as_slice::<f64>()?.to_vec())
}

fn same_length(node: &NodeProto, name: &str, got: usize, wanted: usize) -> TractResult<()> {
    ensure!(got == wanted, "{} has {got} `{name}` for {wanted} nodes", node.op_type);
    Ok(())
}

/// Operator sets 1 to 4: parallel lists of nodes, named by tree and number, and of weights that name their leaf.
pub(super) fn classic(context: &ParsingContext, node: &NodeProto, prefix: &str, targets: usize) -> TractResult<Parsed> {
    let (trees, numbers) = (ints(node, "nodes_treeids"), ints(node, "nodes_nodeids"));
    let (features, yes, no) = (
        ints(node, "nodes_featureids"),
        ints(node, "nodes_truenodeids"),
        ints(node, "nodes_falsenodeids"),
    );
    let modes = words(node, "nodes_modes")?;
    let values = doubles(context, node, "nodes_values")?;
    let missing = ints(node, "nodes_missing_value_tracks_true");
    let count = trees.len();
    for (name, got) in [
        ("nodes_nodeids", numbers.len()),
        ("nodes_featureids", features.len()),
        ("nodes_truenodeids", yes.len()),
        ("nodes_falsenodeids", no.len()),
        ("nodes_modes", modes.len()),
        ("nodes_values", values.len()),
    ] {
        same_length(node, name, got, count)?;
    }
    ensure!(
        missing.is_empty() || missing.len() == count,
        "nodes_missing_value_tracks_true has another length than the nodes"
    );
    let mut positions = HashMap::with_capacity(count);
    for (position, key) in trees.iter().zip(numbers).enumerate() {
        if positions.insert(key, position).is_some() {
            bail!("tree {} has two nodes {}", key.0, key.1);
        }
    }
    let (weights, leaves) = leaf_weights(context, node, prefix, targets)?;
    let mut has_parent = vec![false; count];
    let mut nodes = Vec::with_capacity(count);
    for position in 0..count {
        let mode = mode(modes[position])?;
        let mut branches = [0, 0];
        if mode != Mode::Leaf {
            for (side, number) in [yes[position], no[position]].iter().enumerate() {
                let Some(child) = positions.get(&(&trees[position], number)) else {
                    bail!("tree {} has no node {number}", trees[position]);
                };
                branches[side] = *child;
                has_parent[*child] = true;
            }
        }
        let leaf = leaves
            .get(&(trees[position], numbers[position]))
            .cloned()
            .unwrap_or(0..0);
        nodes.push(RawNode {
            mode,
            feature: features[position],
            value: values[position],
            nan_is_true: missing.get(position).is_some_and(|tracks| *tracks != 0),
            branches,
            leaf,
        });
    }
    let roots = (0..count).filter(|position| !has_parent[*position]).collect();
    Ok(Parsed {
        nodes,
        roots,
        weights,
        sets: Vec::new(),
    })
}

type Leaves = HashMap<(i64, i64), std::ops::Range<usize>>;

/// The weights, those of one leaf together, and where those of each leaf are.
fn leaf_weights(
    context: &ParsingContext,
    node: &NodeProto,
    prefix: &str,
    targets: usize,
) -> TractResult<(Vec<Weight>, Leaves)> {
    let list = |name: &str| ints(node, &format!("{prefix}_{name}"));
    let (trees, numbers, ids) = (list("treeids"), list("nodeids"), list("ids"));
    let values = doubles(context, node, &format!("{prefix}_weights"))?;
    let count = ids.len();
    for (name, got) in [
        ("treeids", trees.len()),
        ("nodeids", numbers.len()),
        ("weights", values.len()),
    ] {
        same_length(node, &format!("{prefix}_{name}"), got, count)?;
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|position| (trees[*position], numbers[*position]));
    let mut weights = Vec::with_capacity(count);
    let mut leaves: Leaves = HashMap::new();
    for position in order {
        let Some(target) = usize::try_from(ids[position]).ok().filter(|target| *target < targets) else {
            bail!("a leaf is for target {}, there are {targets}", ids[position]);
        };
        let begin = weights.len();
        weights.push(Weight {
            target,
            weight: values[position],
        });
        leaves
            .entry((trees[position], numbers[position]))
            .or_insert(begin..begin)
            .end = begin + 1;
    }
    Ok((weights, leaves))
}

fn mode(word: &str) -> TractResult<Mode> {
    Ok(match word {
        "BRANCH_LEQ" => Mode::LessEqual,
        "BRANCH_LT" => Mode::Less,
        "BRANCH_GTE" => Mode::GreaterEqual,
        "BRANCH_GT" => Mode::Greater,
        "BRANCH_EQ" => Mode::Equal,
        "BRANCH_NEQ" => Mode::NotEqual,
        "LEAF" => Mode::Leaf,
        other => bail!("node mode `{other}` is not known"),
    })
}

/// Operator set 5: nodes by position, leaves in a list of their own, and nodes that ask for one of a set.
pub(super) fn modern(context: &ParsingContext, node: &NodeProto) -> TractResult<Parsed> {
    let features = ints(node, "nodes_featureids");
    let count = features.len();
    let splits = tensor_doubles(context, node, "nodes_splits")?;
    let modes = tensor_doubles(context, node, "nodes_modes")?;
    let missing = ints(node, "nodes_missing_value_tracks_true");
    let next = [ints(node, "nodes_truenodeids"), ints(node, "nodes_falsenodeids")];
    let is_leaf = [ints(node, "nodes_trueleafs"), ints(node, "nodes_falseleafs")];
    for (name, got) in [
        ("nodes_splits", splits.len()),
        ("nodes_modes", modes.len()),
        ("nodes_truenodeids", next[0].len()),
        ("nodes_falsenodeids", next[1].len()),
        ("nodes_trueleafs", is_leaf[0].len()),
        ("nodes_falseleafs", is_leaf[1].len()),
    ] {
        same_length(node, name, got, count)?;
    }
    let values = tensor_doubles(context, node, "leaf_weights")?;
    let targets = ints(node, "leaf_targetids");
    same_length(node, "leaf_targetids", targets.len(), values.len())?;
    let weight = |(target, weight): (&i64, f64)| Weight {
        target: usize::try_from(*target).unwrap_or(usize::MAX),
        weight,
    };
    let weights: Vec<Weight> = targets.iter().zip(values).map(weight).collect();
    let mut sets = membership(&tensor_doubles(context, node, "membership_values")?).into_iter();
    let mut kept = Vec::new();
    let mut nodes: Vec<RawNode> = Vec::with_capacity(count);
    let mut leaves = Vec::new();
    for position in 0..count {
        let mode = match modes[position] as i64 {
            0 => Mode::LessEqual,
            1 => Mode::Less,
            2 => Mode::GreaterEqual,
            3 => Mode::Greater,
            4 => Mode::Equal,
            5 => Mode::NotEqual,
            6 => Mode::Member,
            other => bail!("node mode {other} is not known"),
        };
        let mut value = splits[position];
        if mode == Mode::Member {
            value = kept.len() as f64;
            let Some(set) = sets.next() else {
                bail!("there are fewer membership_values than nodes that ask for them");
            };
            kept.push(set);
        }
        let mut branches = [0, 0];
        for side in 0..2 {
            let Ok(number) = usize::try_from(next[side][position]) else {
                bail!("a branch leads to node {}", next[side][position]);
            };
            branches[side] = number;
            if is_leaf[side][position] != 0 {
                // A leaf becomes a node of its own behind the others.
                branches[side] = count + leaves.len();
                leaves.push(number);
            }
        }
        nodes.push(RawNode {
            mode,
            feature: features[position],
            value,
            nan_is_true: missing.get(position).is_some_and(|tracks| *tracks != 0),
            branches,
            leaf: 0..0,
        });
    }
    for leaf in leaves {
        nodes.push(RawNode {
            mode: Mode::Leaf,
            feature: 0,
            value: 0.0,
            nan_is_true: false,
            branches: [0, 0],
            leaf: leaf..leaf.saturating_add(1),
        });
    }
    let roots: Option<Vec<usize>> = ints(node, "tree_roots")
        .iter()
        .map(|root| usize::try_from(*root).ok())
        .collect();
    let Some(roots) = roots else {
        bail!("a tree begins before the first node");
    };
    Ok(Parsed {
        nodes,
        roots,
        weights,
        sets: kept,
    })
}

/// The sets, which NaN separates.
fn membership(values: &[f64]) -> Vec<Vec<f64>> {
    let mut sets: Vec<Vec<f64>> = values.split(|value| value.is_nan()).map(<[f64]>::to_vec).collect();
    // A NaN ends the last one too.
    if sets.last().is_some_and(Vec::is_empty) {
        sets.pop();
    }
    sets
}
