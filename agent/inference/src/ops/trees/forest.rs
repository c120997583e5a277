//! Decision trees in the form in which they are walked: one array of nodes, each tree's nodes in the order of a walk, leaves beside.
//!
//! Invariant: every index in a forest is inside its array and every walk ends at a leaf; [`Forest::build`] has seen to it. The one
//! thing that a request decides is the number of columns, which [`Forest::check_columns`] compares.

use std::ops::Range;

use tract_onnx::tract_hir::internal::{TractResult, bail, ensure};

/// How a node compares the feature with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    LessEqual,
    Less,
    GreaterEqual,
    Greater,
    Equal,
    NotEqual,
    /// Is one of a set; the value is the set's number.
    Member,
    Leaf,
}

/// A node as the file has it.
#[derive(Clone, Debug)]
pub(super) struct RawNode {
    pub(super) mode: Mode,
    pub(super) feature: i64,
    pub(super) value: f64,
    /// True when a missing value (NaN) takes the first branch.
    pub(super) nan_is_true: bool,
    /// Positions of the next nodes among the raw ones; unused by a leaf.
    pub(super) branches: [usize; 2],
    /// The leaf's part of the weights; unused by others.
    pub(super) leaf: Range<usize>,
}

/// What a leaf adds to one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weight {
    pub(super) target: usize,
    pub(super) weight: f64,
}

#[derive(Clone, Debug)]
struct Node {
    /// Thresholds are f32 in most files; f64 compares both exactly.
    value: f64,
    feature: u32,
    /// The next node if the comparison holds, else the other; of a leaf the range of its weights.
    next: [u32; 2],
    mode: Mode,
    nan_is_true: bool,
}

/// Trees ready to be walked.
#[derive(Debug)]
pub(super) struct Forest {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    weights: Vec<Weight>,
    sets: Vec<Vec<f64>>,
    columns: usize,
}

impl Forest {
    /// Orders the nodes and checks them: every child exists and belongs to one parent, every weight to a target.
    pub(super) fn build(
        raw: &[RawNode],
        roots: &[usize],
        weights: Vec<Weight>,
        targets: usize,
        sets: Vec<Vec<f64>>,
    ) -> TractResult<Forest> {
        ensure!(!roots.is_empty(), "there is no tree");
        ensure!(
            u32::try_from(raw.len().max(weights.len())).is_ok(),
            "the trees are too large"
        );
        if let Some(wrong) = weights.iter().find(|weight| weight.target >= targets) {
            bail!("a leaf is for target {}, there are {targets}", wrong.target);
        }
        let mut forest = Forest {
            nodes: Vec::with_capacity(raw.len()),
            roots: Vec::with_capacity(roots.len()),
            weights,
            sets,
            columns: 0,
        };
        let mut seen = vec![false; raw.len()];
        for root in roots {
            let position = forest.nodes.len() as u32;
            forest.roots.push(position);
            // Each entry is a raw node and the link that waits for its new position.
            let mut waiting = vec![(*root, None)];
            while let Some((position, link)) = waiting.pop() {
                let Some(node) = raw.get(position) else {
                    bail!("a branch leads to node {position}, there are {}", raw.len());
                };
                if std::mem::replace(&mut seen[position], true) {
                    bail!("two branches lead to node {position}");
                }
                let new = forest.nodes.len();
                if let Some((parent, side)) = link {
                    let parent: &mut Node = &mut forest.nodes[parent];
                    parent.next[side] = new as u32;
                }
                let added = forest.add(node)?;
                forest.nodes.push(added);
                if node.mode != Mode::Leaf {
                    waiting.push((node.branches[1], Some((new, 1))));
                    waiting.push((node.branches[0], Some((new, 0))));
                }
            }
        }
        Ok(forest)
    }

    fn add(&mut self, node: &RawNode) -> TractResult<Node> {
        let mut feature = 0;
        let mut next = [0, 0];
        if node.mode == Mode::Leaf {
            ensure!(
                node.leaf.start <= node.leaf.end && node.leaf.end <= self.weights.len(),
                "a leaf has weights that do not exist"
            );
            next = [node.leaf.start as u32, node.leaf.end as u32];
        } else {
            let Ok(known) = u32::try_from(node.feature) else {
                bail!("a node compares feature {}", node.feature);
            };
            feature = known;
            self.columns = self.columns.max(feature as usize + 1);
        }
        if node.mode == Mode::Member {
            let exists = node.value >= 0.0 && (node.value as usize) < self.sets.len();
            ensure!(exists, "a node compares with a set that does not exist");
        }
        Ok(Node {
            value: node.value,
            feature,
            next,
            mode: node.mode,
            nan_is_true: node.nan_is_true,
        })
    }

    pub(super) fn trees(&self) -> usize {
        self.roots.len()
    }

    /// Refuses rows that lack a feature.
    pub(super) fn check_columns(&self, columns: usize) -> TractResult<()> {
        ensure!(
            columns >= self.columns,
            "the trees need {} features, a row has {columns}",
            self.columns
        );
        Ok(())
    }

    /// The weights of the leaf at which each tree sends `row`, tree by tree.
    pub(super) fn leaves<'a>(&'a self, row: &'a [f64]) -> impl Iterator<Item = &'a [Weight]> {
        self.roots.iter().map(|root| self.walk(*root, row))
    }

    fn walk(&self, root: u32, row: &[f64]) -> &[Weight] {
        let mut node = &self.nodes[root as usize];
        loop {
            if node.mode == Mode::Leaf {
                return &self.weights[node.next[0] as usize..node.next[1] as usize];
            }
            let feature = row[node.feature as usize];
            let holds = match node.mode {
                Mode::LessEqual => feature <= node.value,
                Mode::Less => feature < node.value,
                Mode::GreaterEqual => feature >= node.value,
                Mode::Greater => feature > node.value,
                Mode::Equal => feature == node.value,
                Mode::NotEqual => feature != node.value,
                Mode::Member => self.sets[node.value as usize].contains(&feature),
                Mode::Leaf => true,
            };
            let holds = holds || (node.nan_is_true && feature.is_nan());
            node = &self.nodes[node.next[usize::from(!holds)] as usize];
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn split(feature: i64, value: f64, branches: [usize; 2]) -> RawNode {
        RawNode {
            mode: Mode::LessEqual,
            feature,
            value,
            nan_is_true: false,
            branches,
            leaf: 0..0,
        }
    }

    fn leaf(leaf: Range<usize>) -> RawNode {
        RawNode {
            mode: Mode::Leaf,
            leaf,
            ..split(0, 0.0, [0, 0])
        }
    }

    fn build(raw: &[RawNode], roots: &[usize]) -> TractResult<Forest> {
        let weight = |weight| Weight { target: 0, weight };
        Forest::build(raw, roots, vec![weight(1.0), weight(2.0), weight(3.0)], 1, vec![])
    }

    #[test]
    fn rows_go_to_their_leaves() {
        // Children before parents, which files may have too.
        let raw = [
            leaf(0..1),
            leaf(1..2),
            split(1, 5.0, [0, 1]),
            leaf(2..3),
            split(0, 0.0, [2, 3]),
        ];
        let forest = build(&raw, &[4]).unwrap();
        let answer = |row: &[f64]| forest.leaves(row).map(|leaf| leaf[0].weight).sum::<f64>();
        assert_eq!(answer(&[-1.0, 5.0]), 1.0);
        assert_eq!(answer(&[-1.0, 5.5]), 2.0);
        assert_eq!(answer(&[0.5, 0.0]), 3.0);
        assert_eq!(answer(&[f64::NAN, 0.0]), 3.0);
        assert!(forest.check_columns(1).is_err());
    }

    #[test]
    fn what_would_walk_for_ever_or_outside_is_refused() {
        let refused = |raw: &[RawNode], roots: &[usize]| build(raw, roots).unwrap_err().to_string();
        assert_eq!(refused(&[split(0, 0.0, [0, 0])], &[0]), "two branches lead to node 0");
        assert_eq!(
            refused(&[split(0, 0.0, [1, 7]), leaf(0..1)], &[0]),
            "a branch leads to node 7, there are 2"
        );
        assert_eq!(refused(&[leaf(0..4)], &[0]), "a leaf has weights that do not exist");
        assert_eq!(
            refused(&[split(-1, 0.0, [1, 2]), leaf(0..1), leaf(0..1)], &[0]),
            "a node compares feature -1"
        );
        assert_eq!(refused(&[], &[]), "there is no tree");
        let set = RawNode {
            mode: Mode::Member,
            ..split(0, 1.0, [1, 2])
        };
        assert_eq!(
            refused(&[set, leaf(0..1), leaf(0..1)], &[0]),
            "a node compares with a set that does not exist"
        );
    }
}
