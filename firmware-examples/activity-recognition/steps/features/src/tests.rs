//! What the step does with good and bad tensors and parameters. The numbers are checked in `tests/agreement.rs`.

#![allow(clippy::unwrap_used)]

use super::*;

const SCALE: &str = "1,2,3,4,5,6";

fn configured(value: &str) -> Result<(), Error> {
    Step::configure(vec![Parameter {
        name: "channel_scale".into(),
        value: value.into(),
    }])
}

fn window(samples: &[f32]) -> Tensor {
    Tensor {
        name: "window".into(),
        datatype: Datatype::Fp32,
        shape: WINDOW_SHAPE.to_vec(),
        data: samples.iter().flat_map(|s| s.to_le_bytes()).collect(),
    }
}

/// Says that `process` refuses the tensor with these words.
fn refuses(tensor: Tensor, words: &str) {
    configured(SCALE).unwrap();
    match Step::process(vec![tensor]) {
        Err(Error::InvalidInput(message)) => assert!(message.contains(words), "{message}"),
        other => panic!("expected invalid-input, got {other:?}"),
    }
}

#[test]
fn a_window_becomes_as_many_features_as_described() {
    configured(SCALE).unwrap();
    let out = Step::process(vec![window(&[0.5; 600])]).unwrap();
    let described = &Step::describe().outputs[0];
    assert_eq!(out[0].name, described.name);
    assert_eq!(out[0].shape, [1, 69]);
    assert_eq!(described.shape, [1, 69]);
    assert_eq!(out[0].data.len(), 69 * 4);
}

#[test]
fn a_bad_tensor_is_refused_and_says_why() {
    let good = window(&[0.0; 600]);
    refuses(
        Tensor {
            name: "x".into(),
            ..good.clone()
        },
        "x: unknown tensor",
    );
    refuses(
        Tensor {
            datatype: Datatype::Fp64,
            ..good.clone()
        },
        "datatype FP32",
    );
    refuses(
        Tensor {
            shape: vec![1, 100, 6],
            ..good.clone()
        },
        "[1, 6, 100], got [1, 100, 6]",
    );
    refuses(
        Tensor {
            data: vec![0; 2396],
            ..good
        },
        "2400 bytes of data, got 2396",
    );
    let mut samples = [0.0; 600];
    samples[205] = f32::NAN;
    refuses(window(&samples), "sample 5 of channel 2");
    samples[205] = f32::INFINITY;
    refuses(window(&samples), "not a finite number");
}

#[test]
fn features_beyond_fp32_are_refused() {
    configured("0.001,1,1,1,1,1").unwrap();
    assert!(matches!(
        Step::process(vec![window(&[f32::MAX; 600])]),
        Err(Error::InvalidInput(_))
    ));
}

#[test]
fn tensors_without_or_beside_the_window_are_refused() {
    configured(SCALE).unwrap();
    assert!(matches!(Step::process(vec![]), Err(Error::InvalidInput(_))));
    let good = window(&[0.0; 600]);
    assert!(matches!(
        Step::process(vec![good.clone(), good]),
        Err(Error::InvalidInput(_))
    ));
}

#[test]
fn bad_parameters_are_refused() {
    for bad in [
        "",
        "1,2,3,4,5",
        "1,2,3,4,5,6,7",
        "1,2,3,4,5,x",
        "1,2,3,4,5,0",
        "1,2,3,4,5,-1",
        "1,2,3,4,5,inf",
        "1,2,3,4,5,nan",
    ] {
        assert!(matches!(configured(bad), Err(Error::InvalidParameter(_))), "{bad}");
    }
    assert!(matches!(Step::configure(vec![]), Err(Error::InvalidParameter(_))));
    let unknown = Parameter {
        name: "scale".into(),
        value: SCALE.into(),
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
        Step::process(vec![window(&[0.0; 600])]),
        Err(Error::Failed(_))
    ));
}
