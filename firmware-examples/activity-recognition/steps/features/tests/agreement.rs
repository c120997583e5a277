//! The step's features against those of `train.py`, on windows and answers that `train.py --fixture` wrote.

#![allow(clippy::unwrap_used)]

use features::extract::{CHANNELS, Extractor, FEATURES, SAMPLES};
use serde_json::Value;

const TOLERANCE: f32 = 1e-4;

fn floats<const N: usize>(value: &Value) -> [f32; N] {
    let numbers: Vec<f32> = value
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_f64().unwrap() as f32)
        .collect();
    numbers.try_into().unwrap()
}

#[test]
fn features_agree_with_the_training_script() {
    let fixture: Value = serde_json::from_str(include_str!("fixture.json")).unwrap();
    let scale: Vec<f64> = fixture["channel_scale"]
        .as_str()
        .unwrap()
        .split(',')
        .map(|n| n.parse().unwrap())
        .collect();
    let extractor = Extractor::new(scale.try_into().unwrap());
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5, "one window of each class and a still one");
    for case in cases {
        let got = extractor.extract(&floats::<{ CHANNELS * SAMPLES }>(&case["window"]));
        let want = floats::<FEATURES>(&case["features"]);
        for ((got, want), name) in got.iter().zip(want).zip(fixture["names"].as_array().unwrap()) {
            assert!(
                (got - want).abs() <= TOLERANCE * want.abs().max(1.0),
                "{name}: {got}, expected {want}"
            );
        }
    }
}
