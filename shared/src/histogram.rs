//! The exponential histogram of OpenTelemetry as a sketch: it records, merges without loss and answers quantiles.
//!
//! Source: "ExponentialHistogram" in OpenTelemetry's metrics data model. The wire type is
//! [`crate::otlp::ExponentialHistogramDataPoint`]. Invariants: the count is the sum of all buckets and the zero count; at most
//! [`MAX_BUCKETS`] buckets are held, whatever was recorded; every bucket of a coarser scale is the sum of whole finer ones.

use crate::otlp::{Buckets, ExponentialHistogramDataPoint, KeyValue};

/// Buckets held at most: five octaves at a relative error of 1.1 %, and what the specification proposes.
pub const MAX_BUCKETS: usize = 160;
/// The finest scale that is recorded: a relative error of 0.14 %. A finer one only makes messages longer.
pub const MAX_SCALE: i32 = 8;
/// The coarsest scale that is read.
const MIN_SCALE: i32 = -10;
/// The finest scale that is read: that of the specification.
const WIRE_MAX_SCALE: i32 = 20;
/// Buckets of one histogram on the wire: what a peer can make us walk.
const WIRE_BUCKETS_MAX: usize = 1024;
/// Beyond it `2^x` leaves the range of a float.
const EXPONENT_MAX: f64 = 1080.0;

/// A histogram of values that are not negative.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    scale: i32,
    /// The index of `buckets[0]`.
    offset: i32,
    /// Empty, or with counts at both ends.
    buckets: Vec<u64>,
    zero_count: u64,
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            scale: MAX_SCALE,
            offset: 0,
            buckets: Vec::new(),
            zero_count: 0,
            count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

/// A histogram from outside that contradicts itself or exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the histogram {0}")]
pub struct InvalidHistogram(&'static str);

impl Histogram {
    /// Counts a value. One that is negative or no number is not counted.
    pub fn record(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if value == 0.0 {
            self.zero_count += 1;
        } else {
            self.add(finest_index(value) >> (MAX_SCALE - self.scale), 1);
        }
    }

    /// Adds all that another histogram has counted. The result has the coarser scale of both, or a coarser one that fits.
    pub fn merge(&mut self, other: &Histogram) {
        if self.scale > other.scale {
            self.downscale((self.scale - other.scale) as u32);
        }
        for (position, count) in other.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            // `add` may make this scale coarser still.
            let index = (other.offset + position as i32) >> (other.scale - self.scale);
            self.add(index, *count);
        }
        self.zero_count = self.zero_count.saturating_add(other.zero_count);
        self.count = self.count.saturating_add(other.count);
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Makes buckets wider: each of the new ones is the sum of `2^by` old ones.
    fn downscale(&mut self, by: u32) {
        let first = self.offset >> by;
        let mut wider = Vec::new();
        for (position, count) in self.buckets.iter().enumerate() {
            let place = (((self.offset + position as i32) >> by) - first) as usize;
            if wider.len() <= place {
                wider.push(0);
            }
            wider[place] += count;
        }
        self.buckets = wider;
        self.offset = first;
        self.scale -= by as i32;
    }

    /// Adds to a bucket of the present scale.
    fn add(&mut self, mut index: i32, count: u64) {
        if self.buckets.is_empty() {
            self.offset = index;
            self.buckets.push(count);
            return;
        }
        let last = self.offset + self.buckets.len() as i32 - 1;
        let (low, high) = (self.offset.min(index), last.max(index));
        let fits = |by: u32| ((high >> by) - (low >> by)) < MAX_BUCKETS as i32;
        let by = (0..)
            .find(|by| fits(*by))
            .expect("all indexes become 0 or -1 in the end");
        if by > 0 {
            self.downscale(by);
            index >>= by;
        }
        if index < self.offset {
            let missing = (self.offset - index) as usize;
            self.buckets.splice(..0, std::iter::repeat_n(0, missing));
            self.offset = index;
        }
        let place = (index - self.offset) as usize;
        if place >= self.buckets.len() {
            self.buckets.resize(place + 1, 0);
        }
        self.buckets[place] = self.buckets[place].saturating_add(count);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of all values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The greatest value; `None` when nothing was counted.
    pub fn max(&self) -> Option<f64> {
        (self.count > 0).then_some(self.max)
    }

    /// How far [`Histogram::quantile`] may be from the exact value, relative to it.
    pub fn relative_error(&self) -> f64 {
        let base = bound(1, self.scale);
        (base - 1.0) / (base + 1.0)
    }

    /// The value of rank `ceil(q * count)`, within [`Histogram::relative_error`]; `None` when nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut below = self.zero_count;
        if below >= rank {
            return Some(0.0);
        }
        for (position, count) in self.buckets.iter().enumerate() {
            below = below.saturating_add(*count);
            if below >= rank {
                let index = self.offset + position as i32;
                let (lower, upper) = (bound(index, self.scale), bound(index + 1, self.scale));
                // The point whose relative distance to both ends is the same.
                return Some((2.0 * lower / (1.0 + lower / upper)).clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }

    /// The histogram as a data point.
    pub fn to_point(&self, attributes: Vec<KeyValue>, start_ns: u64, time_ns: u64) -> ExponentialHistogramDataPoint {
        ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: start_ns,
            time_unix_nano: time_ns,
            count: self.count,
            sum: Some(self.sum),
            scale: self.scale,
            zero_count: self.zero_count,
            positive: (!self.buckets.is_empty()).then(|| Buckets {
                offset: self.offset,
                bucket_counts: self.buckets.clone(),
            }),
            min: (self.count > 0).then_some(self.min),
            max: (self.count > 0).then_some(self.max),
        }
    }

    /// Reads a data point; a scale finer than [`MAX_SCALE`] becomes that one.
    ///
    /// # Errors
    /// [`InvalidHistogram`] when its parts contradict each other or a limit is exceeded.
    pub fn from_point(point: &ExponentialHistogramDataPoint) -> Result<Histogram, InvalidHistogram> {
        if !(MIN_SCALE..=WIRE_MAX_SCALE).contains(&point.scale) {
            return Err(InvalidHistogram("has a scale out of range"));
        }
        let (offset, counts) = match &point.positive {
            Some(buckets) => (buckets.offset, buckets.bucket_counts.as_slice()),
            None => (0, [].as_slice()),
        };
        if counts.len() > WIRE_BUCKETS_MAX {
            return Err(InvalidHistogram("has too many buckets"));
        }
        let width = (-f64::from(point.scale)).exp2();
        let (first, end) = (f64::from(offset), f64::from(offset) + counts.len() as f64);
        if first * width < -EXPONENT_MAX || end * width > EXPONENT_MAX {
            return Err(InvalidHistogram("has buckets beyond all numbers"));
        }
        let total = counts
            .iter()
            .try_fold(point.zero_count, |total, count| total.checked_add(*count));
        if total != Some(point.count) {
            return Err(InvalidHistogram("has a count that its buckets do not add up to"));
        }
        let mut histogram = Histogram {
            scale: point.scale.min(MAX_SCALE),
            zero_count: point.zero_count,
            count: point.count,
            sum: point.sum.unwrap_or_default(),
            ..Histogram::default()
        };
        for (position, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            histogram.add((offset + position as i32) >> (point.scale - histogram.scale), *count);
        }
        if histogram.count > 0 {
            let lowest = bound(histogram.offset, histogram.scale);
            let highest = bound(histogram.offset + histogram.buckets.len() as i32, histogram.scale);
            let all_zero = histogram.buckets.is_empty();
            let lowest = if histogram.zero_count > 0 { 0.0 } else { lowest };
            histogram.min = point.min.unwrap_or(lowest);
            histogram.max = point.max.unwrap_or(if all_zero { 0.0 } else { highest });
        }
        let ordered = histogram.count == 0 || (histogram.min >= 0.0 && histogram.min <= histogram.max);
        if !ordered || !histogram.sum.is_finite() || histogram.max == f64::INFINITY {
            return Err(InvalidHistogram("has a sum, minimum or maximum that cannot be"));
        }
        Ok(histogram)
    }
}

/// The lower bound of a bucket: `base^index` with `base = 2^(2^-scale)`.
fn bound(index: i32, scale: i32) -> f64 {
    (f64::from(index) * (-f64::from(scale)).exp2()).exp2()
}

/// The bucket at [`MAX_SCALE`]. Coarser indexes are shifts of this one, so that rounding at a bound cannot tell scales apart.
fn finest_index(value: f64) -> i32 {
    const MANTISSA: u64 = (1 << 52) - 1;
    if value.to_bits() & MANTISSA == 0 && value.is_normal() {
        // A power of two is the upper, inclusive bound of its bucket.
        let exponent = (value.to_bits() >> 52) as i32 - 1023;
        return (exponent << MAX_SCALE) - 1;
    }
    (value.log2() * f64::from(1 << MAX_SCALE)).ceil() as i32 - 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(
            prop_oneof![8 => 1e-6..1e3_f64, 1 => Just(0.0), 1 => 1e-300..1e300_f64],
            1..300,
        )
    }

    /// The same values in buckets of one scale, computed one by one.
    fn buckets_at(values: &[f64], scale: i32) -> std::collections::BTreeMap<i32, u64> {
        let mut buckets = std::collections::BTreeMap::new();
        for value in values.iter().filter(|value| **value > 0.0) {
            *buckets.entry(finest_index(*value) >> (MAX_SCALE - scale)).or_insert(0) += 1;
        }
        buckets
    }

    fn check_buckets(histogram: &Histogram, values: &[f64]) -> Result<(), TestCaseError> {
        let held = (histogram.offset..)
            .zip(&histogram.buckets)
            .filter(|(_, count)| **count > 0);
        let held = held.map(|(index, count)| (index, *count)).collect();
        prop_assert_eq!(buckets_at(values, histogram.scale), held);
        prop_assert!(histogram.buckets.len() <= MAX_BUCKETS);
        prop_assert_eq!(histogram.count, values.len() as u64);
        Ok(())
    }

    proptest! {
        #[test]
        fn quantiles_are_as_exact_as_the_scale_promises(mut values in values(), q in 0.0..=1.0_f64) {
            let histogram = of(&values);
            values.sort_by(f64::total_cmp);
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let (exact, got) = (values[rank - 1], histogram.quantile(q).unwrap());
            let error = histogram.relative_error() * (1.0 + 1e-9) * exact;
            prop_assert!((got - exact).abs() <= error, "{} for {} at scale {}", got, exact, histogram.scale);
        }

        #[test]
        fn downscaling_adds_whole_buckets(values in values()) {
            check_buckets(&of(&values), &values)?;
        }

        #[test]
        fn merging_two_scales_counts_as_if_recorded_together(a in values(), b in values()) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            check_buckets(&merged, &[a, b].concat())?;
        }

        #[test]
        fn a_histogram_reads_back_from_the_wire(values in values()) {
            let histogram = of(&values);
            prop_assert_eq!(Histogram::from_point(&histogram.to_point(vec![], 1, 2)).unwrap(), histogram);
        }

        #[test]
        fn arbitrary_points_never_panic(
            scale in -12..24_i32, offset in any::<i32>(), counts in prop::collection::vec(0..9_u64, 0..40), q in 0.0..1.0_f64
        ) {
            let count = counts.iter().sum();
            let positive = Some(Buckets { offset, bucket_counts: counts });
            let point = ExponentialHistogramDataPoint { scale, count, positive, ..Default::default() };
            if let Ok(mut histogram) = Histogram::from_point(&point) {
                histogram.merge(&of(&[1e-9, 1.0, 1e9]));
                prop_assert!(histogram.quantile(q).unwrap() >= 0.0);
            }
        }
    }

    #[test]
    fn bounds_belong_to_the_bucket_below() {
        for exponent in -40..40 {
            let value = f64::from(exponent).exp2();
            assert_eq!(finest_index(value), exponent * 256 - 1);
            assert_eq!(finest_index(value * (1.0 + 1e-9)), exponent * 256);
        }
    }

    #[test]
    fn a_point_that_contradicts_itself_is_refused() {
        let good = of(&[1.0, 2.0]).to_point(vec![], 0, 0);
        let change = |change: fn(&mut ExponentialHistogramDataPoint)| {
            let mut point = good.clone();
            change(&mut point);
            assert!(Histogram::from_point(&point).is_err(), "{point:?}");
        };
        change(|point| point.count = 3);
        change(|point| point.scale = 21);
        change(|point| point.sum = Some(f64::NAN));
        change(|point| point.min = Some(9.0));
        change(|point| point.positive.as_mut().unwrap().offset = i32::MAX);
        change(|point| point.positive.as_mut().unwrap().bucket_counts = vec![u64::MAX; 2]);
        change(|point| point.positive.as_mut().unwrap().bucket_counts = vec![0; WIRE_BUCKETS_MAX + 1]);
    }

    #[test]
    fn nothing_recorded_has_no_quantile() {
        let histogram = of(&[f64::NAN, -1.0]);
        assert_eq!(
            (histogram.count(), histogram.quantile(0.5), histogram.max()),
            (0, None, None)
        );
    }
}
