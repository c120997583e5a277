#![allow(clippy::unwrap_used)]

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto,
};

use super::admit;

fn node(operator: &str, input: &[&str], output: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        name: format!("the-{operator}"),
        op_type: operator.to_owned(),
        input: names(input),
        output: names(output),
        ..NodeProto::default()
    }
}

fn value(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: name.to_owned(),
        ..ValueInfoProto::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// `x → Relu → y`, and a constant `w` that nothing uses.
fn model() -> ModelProto {
    ModelProto {
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(GraphProto {
            node: vec![node("Relu", &["x"], &["y"])],
            input: vec![value("x")],
            output: vec![value("y")],
            initializer: vec![floats("w", &[2], &[0.0, 1.0])],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// Changes the good model and compares the verdict; an empty one is that it is admitted.
fn check(change: impl FnOnce(&mut ModelProto), expect: &str) {
    let mut proto = model();
    change(&mut proto);
    let verdict = admit(&proto, 1000)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    let verdict = verdict.trim_start_matches("the ONNX file is not admitted: ");
    assert_eq!(verdict, expect);
}

fn graph(proto: &mut ModelProto) -> &mut GraphProto {
    proto.graph.as_mut().unwrap()
}

#[test]
fn a_good_model_is_admitted() {
    check(|_| (), "");
}

#[test]
fn lengths_must_be_true() {
    let initializer = |change: fn(&mut TensorProto), expect| check(|m| change(&mut graph(m).initializer[0]), expect);
    initializer(
        |t| t.dims = vec![3],
        "tensor `w` has 2 elements of FLOAT, its shape says 3",
    );
    initializer(
        |t| (t.raw_data, t.float_data) = (vec![0; 7], vec![]),
        "tensor `w` has 7 bytes of data, its shape says 8",
    );
    initializer(|t| t.dims = vec![-1], "tensor `w` has an impossible shape [-1]");
    initializer(
        |t| t.dims = vec![1 << 40, 1 << 40],
        "tensor `w` has an impossible shape [1099511627776, 1099511627776]",
    );
    initializer(
        |t| t.dims = vec![1 << 28],
        "tensor `w` has an impossible shape [268435456]",
    );
    initializer(
        |t| t.dims = vec![1; 17],
        "tensor `w` has an impossible shape [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]",
    );
    initializer(|t| t.data_type = 99, "tensor `w` has the unknown element type 99");
    initializer(|t| t.data_type = 0, "tensor `w` has the unknown element type 0");
    initializer(
        |t| (t.data_type, t.raw_data) = (8, vec![0; 2]),
        "tensor `w` has strings as raw bytes",
    );
}

#[test]
fn data_outside_the_file_is_refused() {
    let outside = "tensor `w` keeps its data in another file";
    check(|m| graph(m).initializer[0].data_location = Some(1), outside);
    let entry = StringStringEntryProto {
        key: "location".to_owned(),
        value: "/etc/passwd".to_owned(),
    };
    check(|m| graph(m).initializer[0].external_data.push(entry), outside);
    let mut hidden = floats("w", &[2], &[0.0, 1.0]);
    hidden.data_location = Some(1);
    let attribute = AttributeProto {
        tensors: vec![hidden],
        ..AttributeProto::default()
    };
    check(|m| graph(m).node[0].attribute.push(attribute), outside);
}

#[test]
fn names_are_given_once_and_before_they_are_used() {
    check(
        |m| graph(m).node[0].input[0] = "nowhere".to_owned(),
        "Relu `the-Relu` takes `nowhere`, which nothing gives",
    );
    check(
        |m| graph(m).output[0].name = "z".to_owned(),
        "output `z` is given by no node",
    );
    check(
        |m| graph(m).node.push(node("Abs", &["x"], &["y"])),
        "`y` is given twice",
    );
    check(|m| graph(m).node[0].output[0] = "x".to_owned(), "`x` is given twice");
    check(|m| graph(m).node.push(node("Abs", &["x", ""], &["", "z"])), "");
}

#[test]
fn cycles_are_refused_and_any_order_without_is_admitted() {
    check(
        |m| {
            graph(m).node = vec![node("Add", &["x", "z"], &["y"]), node("Abs", &["y"], &["z"])];
        },
        "Add `the-Add` waits for itself",
    );
    check(
        |m| {
            graph(m).node = vec![node("Add", &["x", "z"], &["y"]), node("Abs", &["x"], &["z"])];
        },
        "",
    );
}

/// A node that holds `inner` as its branch.
fn holder(inner: GraphProto, output: &str) -> NodeProto {
    let mut holder = node("If", &["x"], &[output]);
    holder.attribute.push(AttributeProto {
        name: "then_branch".to_owned(),
        g: Some(inner),
        ..AttributeProto::default()
    });
    holder
}

fn inner(node: NodeProto) -> GraphProto {
    GraphProto {
        output: vec![value(&node.output[0])],
        node: vec![node],
        ..GraphProto::default()
    }
}

#[test]
fn a_cycle_through_a_graph_inside_is_found() {
    let branch = inner(node("Abs", &["y"], &["a"]));
    check(
        |m| graph(m).node[0] = holder(branch, "y"),
        "If `the-If` waits for itself",
    );
}

#[test]
fn graphs_inside_see_the_names_outside_and_are_checked_too() {
    check(
        |m| graph(m).node.push(holder(inner(node("Abs", &["w"], &["a"])), "b")),
        "",
    );
    check(
        |m| graph(m).node.push(holder(inner(node("Abs", &["v"], &["a"])), "b")),
        "Abs `the-Abs` takes `v`, which nothing gives",
    );
    let deep = (0..9).fold(node("Abs", &["x"], &["a"]), |deep, level| {
        holder(inner(deep), &format!("b{level}"))
    });
    check(|m| graph(m).node.push(deep), "graphs are nested deeper than 8");
}

#[test]
fn operator_sets_are_imported_once_and_understood() {
    check(
        |m| m.opset_import[0].version = 99,
        "operator set 99 of `ai.onnx` is not understood; versions 7 to 26 are",
    );
    check(
        |m| {
            m.opset_import.push(m.opset_import[0].clone());
            m.opset_import[1].version = 16;
        },
        "operator set `` is imported in two versions",
    );
    check(|m| m.opset_import.push(m.opset_import[0].clone()), "");
    check(
        |m| graph(m).node[0].domain = "com.microsoft".to_owned(),
        "Relu `the-Relu` is of operator set `com.microsoft`, which the file does not import",
    );
    check(|m| graph(m).node[0].domain = "ai.onnx".to_owned(), "");
}

#[test]
fn numbers_of_parts_are_limited() {
    check(
        |m| graph(m).node[0].attribute = vec![AttributeProto::default(); 65],
        "Relu `the-Relu` has 65 attributes, at most 64 are allowed",
    );
    check(
        |m| graph(m).node[0].input = vec!["x".to_owned(); 4097],
        "Relu `the-Relu` has 4097 inputs, at most 4096 are allowed",
    );
    check(
        |m| graph(m).node = vec![node("Relu", &["x"], &["y"]); 50_001],
        "its nodes exceed the limit of 50000",
    );
    let long = "é".repeat(3000);
    let shown = format!("the name `{}…` is too long", "é".repeat(100));
    check(|m| graph(m).node[0].output.push(long), &shown);
    let error = admit(&model(), usize::MAX).unwrap_err().to_string();
    assert!(error.ends_with("exceed the limit of 1073741824"), "{error}");
}
