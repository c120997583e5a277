//! Graphs that are right, and each way in which one is wrong.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::oip::Datatype;

fn tensors(names: &[&str]) -> Vec<TensorMetadata> {
    let tensor = |name: &&str| TensorMetadata {
        name: (*name).to_owned(),
        datatype: Datatype::Fp32,
        shape: vec![-1],
    };
    names.iter().map(tensor).collect()
}

fn pipeline(stages: &[&str], edges: &[(&str, &str)]) -> Pipeline {
    let stage = |name: &&str| Stage {
        name: name.parse().unwrap(),
        kind: StageKind::Model {
            resource: "m.onnx".parse().unwrap(),
        },
        batch: None,
    };
    let edge = |(from, to): &(&str, &str)| Edge {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
    };
    Pipeline {
        inputs: tensors(&["x"]),
        outputs: tensors(&["y"]),
        stages: stages.iter().map(stage).collect(),
        edges: edges.iter().map(edge).collect(),
    }
}

#[track_caller]
fn refused(stages: &[&str], edges: &[(&str, &str)], words: &str) {
    let error = pipeline(stages, edges).order().unwrap_err().to_string();
    assert_eq!(error, words);
}

#[test]
fn stages_run_after_all_that_they_take_from() {
    // Written backwards; `b` and `c` both take from `a`, and `d` from both.
    let edges = [
        ("c:t", "d:u"),
        ("b:t", "d:t"),
        ("a:t", "b:t"),
        ("a:t", "c:t"),
        ("inputs:x", "a:t"),
        ("d:t", "outputs:y"),
    ];
    assert_eq!(pipeline(&["d", "c", "b", "a"], &edges).order().unwrap(), [3, 1, 2, 0]);
}

#[test]
fn without_edges_it_is_a_chain_of_the_old_schema() {
    let chain = pipeline(&["b", "a", "c"], &[]);
    assert_eq!(chain.order().unwrap(), [0, 1, 2]);
    assert_eq!(chain.schema(), SchemaVersion { major: 1, minor: 0 });
    let graph = pipeline(&["a"], &[("inputs:x", "a:x"), ("a:y", "outputs:y")]);
    assert_eq!(graph.schema(), SchemaVersion { major: 2, minor: 0 });
    let mut batched = chain;
    batched.stages[0].batch = NonZeroU32::new(8);
    assert_eq!(batched.schema(), graph.schema());
}

#[test]
fn a_cycle_is_refused_by_the_names_in_it() {
    let edges = [
        ("inputs:x", "a:t"),
        ("a:t", "b:t"),
        ("b:t", "c:t"),
        ("c:t", "b:u"),
        ("c:t", "outputs:y"),
    ];
    refused(&["a", "b", "c"], &edges, "the pipeline has a cycle: b -> c -> b");
    refused(
        &["a"],
        &[("a:t", "a:t"), ("a:t", "outputs:y")],
        "the pipeline has a cycle: a -> a",
    );
}

#[test]
fn an_end_that_is_not_there_is_refused() {
    let end = ("a:t", "outputs:y");
    refused(&["a"], &[("b:t", "a:t"), end], "edge `b:t -> a:t`: there is no `b:t`");
    refused(
        &["a"],
        &[("inputs:z", "a:t"), end],
        "edge `inputs:z -> a:t`: there is no `inputs:z`",
    );
    refused(
        &["a"],
        &[("a:t", "outputs:z"), end],
        "edge `a:t -> outputs:z`: there is no `outputs:z`",
    );
    // The answer gives nothing, the request takes nothing.
    refused(
        &["a"],
        &[("outputs:y", "a:t"), end],
        "edge `outputs:y -> a:t`: there is no `outputs:y`",
    );
    refused(
        &["a"],
        &[("a:t", "inputs:x"), end],
        "edge `a:t -> inputs:x`: there is no `inputs:x`",
    );
}

#[test]
fn what_is_there_twice_or_not_at_all_is_refused() {
    let whole = [("inputs:x", "a:t"), ("a:t", "outputs:y")];
    refused(&["a", "a"], &whole, "two stages are called `a`");
    refused(&["a", "a"], &[], "two stages are called `a`");
    refused(&["a"], &[whole[0], whole[0], whole[1]], "two edges end at `a:t`");
    refused(&["a"], &[whole[0], ("a:t", "a:u")], "no edge ends at `outputs:y`");
    refused(
        &["a", "b"],
        &[whole[0], ("a:t", "b:t"), ("inputs:x", "outputs:y")],
        "no edge begins at stage `b`: nobody takes what it gives",
    );
    refused(&[], &[], "the pipeline has no stages");
    let mut twice = pipeline(&["a"], &whole);
    twice.inputs = tensors(&["x", "x"]);
    assert_eq!(twice.order().unwrap_err().to_string(), "`inputs:x` is there twice");
    let reserved = pipeline(&["outputs"], &whole).order().unwrap_err();
    assert!(matches!(reserved, PipelineError::Reserved(_)), "{reserved}");
}

#[test]
fn stages_and_edges_are_counted() {
    let names: Vec<String> = (0..65).map(|number| format!("s{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    refused(&names, &[], "the pipeline has 65 stages, at most 64 are allowed");
    let edges = vec![("a:t", "a:t"); 1025];
    refused(&["a"], &edges, "the pipeline has 1025 edges, at most 1024 are allowed");
}

#[test]
fn a_tensor_may_have_colons_in_its_name_and_a_stage_may_not() {
    let port: Port = "detector:StatefulPartitionedCall:0".parse().unwrap();
    assert_eq!(
        (port.stage.as_str(), port.tensor.as_str()),
        ("detector", "StatefulPartitionedCall:0")
    );
    assert_eq!(port.to_string(), "detector:StatefulPartitionedCall:0");
    for bad in ["", "a", "a:", ":t", "a b:t", "../a:t"] {
        assert!(bad.parse::<Port>().is_err(), "{bad}");
    }
}

proptest! {
    /// Whatever is accepted has every stage once, and each edge goes forwards.
    #[test]
    fn an_order_is_complete_and_forwards(count in 1..8_usize, ends in vec((0..9_usize, 0..9_usize), 0..20)) {
        let names: Vec<String> = (0..count).map(|number| format!("s{number}")).collect();
        let name = |number: usize, end: &str| names.get(number).map_or_else(|| end.to_owned(), |name| format!("{name}:t"));
        // Each input has a name of its own, so that no two edges end at one.
        let edge = |(number, (from, to)): (usize, &(usize, usize))| {
            let to = if *to < count { format!("s{to}:t{number}") } else { "outputs:y".to_owned() };
            (name(*from, "inputs:x"), to)
        };
        let edges: Vec<(String, String)> = ends.iter().enumerate().map(edge).collect();
        let edges: Vec<(&str, &str)> = edges.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        let stages: Vec<&str> = names.iter().map(String::as_str).collect();
        let pipeline = pipeline(&stages, &edges);
        match pipeline.order() {
            Ok(order) => {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                let at = |port: &Port| order.iter().position(|position| names[*position] == port.stage.as_str());
                for edge in &pipeline.edges {
                    if let (Some(from), Some(to)) = (at(&edge.from), at(&edge.to)) {
                        prop_assert!(from < to, "{}", edge);
                    }
                }
            }
            Err(PipelineError::Cycle(names)) => {
                prop_assert_eq!(names.first(), names.last());
                for pair in names.windows(2) {
                    let edge = |edge: &Edge| edge.from.stage == pair[0] && edge.to.stage == pair[1];
                    prop_assert!(pipeline.edges.iter().any(edge), "{:?}", pair);
                }
            }
            Err(_) => {}
        }
    }
}
