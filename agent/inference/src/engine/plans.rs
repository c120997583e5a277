//! The plans of one model, a plan for each shape of its inputs: engines that want everything fixed run dynamic models this way.
//!
//! Bounded: the plan that was not used for the longest time goes.

use std::sync::{Arc, Mutex, PoisonError};

use skerry_shared::oip::Tensor;

/// Plans kept of a model. A plan holds packed weights, so each costs about the model's own size; requests of a real client have
/// few shapes.
const PLANS_MAX: usize = 8;

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    shapes: Vec<Vec<usize>>,
    /// The data of the inputs that decide shapes.
    values: Vec<Vec<u8>>,
}

impl Key {
    /// The key of a request; `is_value` says for each input whether its data decides a shape.
    pub(super) fn of(inputs: &[Tensor], is_value: &[bool]) -> Key {
        let values = inputs.iter().zip(is_value).filter(|(_, is_value)| **is_value);
        Key {
            shapes: inputs.iter().map(|tensor| tensor.shape().to_vec()).collect(),
            values: values.map(|(tensor, _)| tensor.data().to_vec()).collect(),
        }
    }
}

/// The plans, the one used last at the end.
pub(super) struct Plans<P>(Mutex<Vec<(Key, Arc<P>)>>);

impl<P> Plans<P> {
    pub(super) fn new() -> Plans<P> {
        Plans(Mutex::new(Vec::new()))
    }

    /// The plan for `key`, made by `make` if there is none. Others do not wait while it is made; two may make the same.
    pub(super) fn get<E>(&self, key: Key, make: impl FnOnce() -> Result<P, E>) -> Result<Arc<P>, E> {
        if let Some(plan) = self.find(&key) {
            return Ok(plan);
        }
        let plan = Arc::new(make()?);
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|(other, _)| *other != key);
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push((key, plan.clone()));
        Ok(plan)
    }

    fn find(&self, key: &Key) -> Option<Arc<P>> {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let position = plans.iter().position(|(other, _)| other == key)?;
        let found = plans.remove(position);
        let plan = found.1.clone();
        plans.push(found);
        Some(plan)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(length: usize) -> Key {
        let tensor = Tensor::from_f32("x", vec![length], &vec![0.0; length]).unwrap();
        Key::of(&[tensor], &[false])
    }

    #[test]
    fn a_shape_is_planned_once_and_the_oldest_plan_goes() {
        let plans = Plans::new();
        let mut made = Vec::new();
        let mut get = |length: usize| {
            let make = || {
                made.push(length);
                Ok::<usize, ()>(length)
            };
            assert_eq!(*plans.get(key(length), make).unwrap(), length);
        };
        (0..PLANS_MAX).for_each(&mut get);
        get(0);
        get(100);
        get(0);
        get(1);
        let expected: Vec<usize> = (0..PLANS_MAX).chain([100, 1]).collect();
        assert_eq!(made, expected);
    }

    #[test]
    fn data_is_part_of_the_key_only_where_it_decides_a_shape() {
        let tensor = |value| Tensor::from_f32("x", vec![1], &[value]).unwrap();
        let key = |value, decides| Key::of(&[tensor(value)], &[decides]);
        assert_eq!(key(1.0, false), key(2.0, false));
        assert_ne!(key(1.0, true), key(2.0, true));
    }

    #[test]
    fn what_cannot_be_planned_is_not_kept() {
        let plans = Plans::<()>::new();
        assert_eq!(plans.get(key(1), || Err("no")).unwrap_err(), "no");
        plans.get(key(1), || Ok::<(), &str>(())).unwrap();
    }
}
