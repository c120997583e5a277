//! The features of one window, in pure arithmetic. Not aware of tensors or of the host.
//!
//! Invariant: the same numbers as `extract` in `train.py`, in the same order, within 1e-4. Sums are in `f64`: the answer
//! then does not depend on the order of additions, which NumPy chooses differently.

use std::f64::consts::TAU;

/// Accelerometer x, y, z and gyroscope x, y, z.
pub const CHANNELS: usize = 6;
/// Samples of each channel in a window: ten seconds at 10 Hz.
pub const SAMPLES: usize = 100;
/// Features of a window: nine for each channel and a correlation for each pair of channels.
pub const FEATURES: usize = CHANNELS * 9 + CHANNELS * (CHANNELS - 1) / 2;

/// First and last DFT bin of each band; a bin is 0.1 Hz wide.
const BANDS: [(usize, usize); 3] = [(1, 9), (10, 24), (25, 50)];
/// Below this standard deviation a channel counts as still: its correlations would be rounding noise.
const STILL: f64 = 1e-6;

/// Computes features; holds the scale of each channel and the DFT's cosines and sines.
#[derive(Debug, Clone)]
pub struct Extractor {
    scale: [f64; CHANNELS],
    /// `(cos, sin)` of `2πi / SAMPLES`: every angle of the DFT is one of these.
    circle: Vec<(f64, f64)>,
}

/// One channel after scaling.
struct Channel {
    centred: Vec<f64>,
    std: f64,
}

impl Extractor {
    /// Returns an extractor that divides each channel by its `scale`, which must be finite and above zero.
    pub fn new(scale: [f64; CHANNELS]) -> Self {
        let circle = (0..SAMPLES)
            .map(|i| {
                let (sin, cos) = (TAU * i as f64 / SAMPLES as f64).sin_cos();
                (cos, sin)
            })
            .collect();
        Self { scale, circle }
    }

    /// Returns the features of `window`, row-major `[CHANNELS, SAMPLES]`.
    ///
    /// Order: for each channel mean, standard deviation, minimum, maximum, mean absolute difference of neighbours, root
    /// mean square and `ln(1 + energy)` of three bands; then the correlations (0,1), (0,2) … (4,5).
    pub fn extract(&self, window: &[f32; CHANNELS * SAMPLES]) -> [f32; FEATURES] {
        let mut features = Vec::with_capacity(FEATURES);
        let mut channels = Vec::with_capacity(CHANNELS);
        for (samples, scale) in window.chunks_exact(SAMPLES).zip(self.scale) {
            let scaled: Vec<f64> = samples.iter().map(|&x| f64::from(x) / scale).collect();
            channels.push(self.channel(&scaled, &mut features));
        }
        for (i, a) in channels.iter().enumerate() {
            features.extend(channels[i + 1..].iter().map(|b| correlation(a, b)));
        }
        let mut out = [0.0; FEATURES];
        for (out, value) in out.iter_mut().zip(features) {
            *out = value as f32;
        }
        out
    }

    /// Appends one channel's features and returns what the correlations need of it.
    fn channel(&self, x: &[f64], features: &mut Vec<f64>) -> Channel {
        let mean = mean(x.iter().copied());
        let centred: Vec<f64> = x.iter().map(|v| v - mean).collect();
        let std = root_mean_square(&centred);
        features.push(mean);
        features.push(std);
        features.push(x.iter().copied().fold(f64::INFINITY, f64::min));
        features.push(x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        features.push(self::mean(x.windows(2).map(|w| (w[1] - w[0]).abs())));
        features.push(root_mean_square(x));
        for (first, last) in BANDS {
            let energy: f64 = (first..=last).map(|bin| self.energy(&centred, bin)).sum();
            features.push(energy.ln_1p());
        }
        Channel { centred, std }
    }

    /// Returns `|X(bin)|² / SAMPLES²` of the plain DFT.
    fn energy(&self, x: &[f64], bin: usize) -> f64 {
        let (mut re, mut im) = (0.0, 0.0);
        for (i, v) in x.iter().enumerate() {
            let (cos, sin) = self.circle[i * bin % SAMPLES];
            re += v * cos;
            im -= v * sin;
        }
        (re * re + im * im) / (SAMPLES * SAMPLES) as f64
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

fn root_mean_square(values: &[f64]) -> f64 {
    mean(values.iter().map(|v| v * v)).sqrt()
}

fn correlation(a: &Channel, b: &Channel) -> f64 {
    if a.std < STILL || b.std < STILL {
        return 0.0;
    }
    let products = a.centred.iter().zip(&b.centred).map(|(a, b)| a * b);
    mean(products) / (a.std * b.std)
}
