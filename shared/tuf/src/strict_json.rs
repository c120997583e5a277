//! JSON with one reading only: no duplicate member names, no floats, bounded depth, nothing after the value.
//!
//! Not a JSON parser of its own: it drives `serde_json` and refuses more. Invariant: two programs that accept the same
//! bytes see the same value, and the value has a canonical form.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::limits::MAX_JSON_DEPTH;

/// Parses `bytes` as strict JSON.
///
/// # Errors
///
/// Bad syntax or UTF-8, a duplicate member name, a number that is not an integer of 64 bits, nesting deeper than
/// [`MAX_JSON_DEPTH`], or bytes after the value.
pub fn parse_strict_json(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = StrictValue {
        depth_left: MAX_JSON_DEPTH,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct StrictValue {
    depth_left: usize,
}

impl StrictValue {
    fn inner<E: Error>(self) -> Result<Self, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Self { depth_left }),
            None => Err(E::custom(format_args!("nested deeper than {MAX_JSON_DEPTH} levels"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without floats")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Err(E::custom("a number is not an integer of 64 bits"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(inner)?;
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate member {name:?}")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn refused(text: &str, because: &str) {
        let error = parse_strict_json(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(because), "{text}: {error}");
    }

    #[test]
    fn ambiguous_json_is_refused() {
        refused(r#"{"a":1,"a":1}"#, "duplicate member");
        refused(r#"{"a":1,"\u0061":2}"#, "duplicate member");
        refused(r#"{"x":{"a":1,"a":1}}"#, "duplicate member");
        refused("1.0", "not an integer");
        refused("1e3", "not an integer");
        refused("-0", "not an integer");
        refused("18446744073709551616", "not an integer");
        refused("{} {}", "trailing");
        refused("", "EOF");
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_strict_json(nested(MAX_JSON_DEPTH).as_bytes()).is_ok());
        refused(&nested(MAX_JSON_DEPTH + 1), "deeper");
        refused(&"[".repeat(100_000), "deeper");
    }

    #[test]
    fn ordinary_json_is_accepted() {
        let text = br#" {"a":[null,true,-3,18446744073709551615,"x\u00e9\n"]} "#;
        assert_eq!(
            parse_strict_json(text).unwrap(),
            json!({"a": [null, true, -3, u64::MAX, "xé\n"]})
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_strict_json(&bytes);
        }
    }
}
