//! What the step does with good and bad tensors and parameters.

#![allow(clippy::unwrap_used)]

use super::*;

fn configured(value: &str) -> Result<(), Error> {
    Step::configure(vec![Parameter {
        name: "labels".into(),
        value: value.into(),
    }])
}

fn probabilities(values: &[f32]) -> Tensor {
    Tensor {
        name: "probabilities".into(),
        datatype: Datatype::Fp32,
        shape: vec![1, values.len() as u64],
        data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Says that `process` refuses the tensor with these words.
fn refuses(tensor: Tensor, words: &str) {
    configured("a,b,c").unwrap();
    match Step::process(vec![tensor]) {
        Err(Error::InvalidInput(message)) => assert!(message.contains(words), "{message}"),
        other => panic!("expected invalid-input, got {other:?}"),
    }
}

#[test]
fn the_most_probable_label_comes_out_with_its_probability() {
    configured("Standing, Running,Walking").unwrap();
    let input = probabilities(&[0.125, 0.625, 0.25]);
    let out = Step::process(vec![input.clone()]).unwrap();
    assert_eq!(out[0].data, b"\x07\0\0\0Running");
    assert_eq!(out[1].data, 0.625_f32.to_le_bytes());
    assert_eq!(out[2].data, input.data);
    let described = Step::describe().outputs;
    for (tensor, described) in out.iter().zip(described) {
        assert_eq!(tensor.name, described.name);
        assert_eq!(tensor.datatype, described.datatype);
        assert_eq!(
            tensor.shape.iter().map(|n| *n as i64).collect::<Vec<_>>(),
            described.shape
        );
    }
}

#[test]
fn the_first_of_equal_labels_wins() {
    configured("a,b").unwrap();
    assert_eq!(
        Step::process(vec![probabilities(&[0.5, 0.5])]).unwrap()[0].data,
        b"\x01\0\0\0a"
    );
}

#[test]
fn a_bad_tensor_is_refused_and_says_why() {
    let good = probabilities(&[0.0, 1.0, 0.0]);
    refuses(
        Tensor {
            name: "p".into(),
            ..good.clone()
        },
        "p: unknown tensor",
    );
    refuses(
        Tensor {
            datatype: Datatype::Int32,
            ..good.clone()
        },
        "datatype FP32",
    );
    refuses(
        Tensor {
            data: vec![0; 11],
            ..good
        },
        "12 bytes of data, got 11",
    );
    refuses(probabilities(&[0.5, 0.5]), "[1, 3], got [1, 2]");
    refuses(probabilities(&[0.5, f32::NAN, 0.5]), "number 1 is not between");
    refuses(probabilities(&[0.5, 0.5, 1.5]), "number 2 is not between");
    assert!(matches!(Step::process(vec![]), Err(Error::InvalidInput(_))));
}

#[test]
fn bad_parameters_are_refused() {
    for bad in ["", "a,,b", "a,b,a", &vec!["x"; 1025].join(",")] {
        assert!(matches!(configured(bad), Err(Error::InvalidParameter(_))), "{bad}");
    }
    assert!(matches!(Step::configure(vec![]), Err(Error::InvalidParameter(_))));
    let unknown = Parameter {
        name: "label".into(),
        value: "a".into(),
    };
    assert!(matches!(
        Step::configure(vec![unknown]),
        Err(Error::InvalidParameter(_))
    ));
}

#[test]
fn a_step_that_was_not_configured_says_so() {
    // Each test has a thread, and so a step, of its own.
    assert!(matches!(
        Step::process(vec![probabilities(&[1.0])]),
        Err(Error::Failed(_))
    ));
    assert_eq!(Step::describe().inputs[0].shape, [1, -1]);
}
