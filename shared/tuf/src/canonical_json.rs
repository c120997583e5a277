//! OLPC canonical JSON: the bytes that TUF signatures and key ids are computed over.
//!
//! Members sorted by name (by code point), no white space, strings escaped only at `"` and `\`, integers only. Strings
//! are taken as they are: no Unicode normalisation, as in the reference implementation. The result is not always JSON
//! (control characters stand raw), so it is signed and never parsed. Invariant: different values give different bytes.

use serde_json::{Map, Value};

use crate::limits::MAX_JSON_DEPTH;

/// Why a value has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalJsonError {
    /// The value has a number that is not an integer of 64 bits.
    #[error("a number is not an integer of 64 bits")]
    NotAnInteger,
    /// The value is nested deeper than [`MAX_JSON_DEPTH`].
    #[error("nested deeper than {MAX_JSON_DEPTH} levels")]
    TooDeep,
}

/// Returns the canonical form of `value`.
///
/// # Errors
///
/// A float, or nesting deeper than [`MAX_JSON_DEPTH`]; neither can come from strict JSON.
pub fn to_canonical_json(value: &Value) -> Result<Vec<u8>, CanonicalJsonError> {
    let mut out = Vec::new();
    write_value(&mut out, value, MAX_JSON_DEPTH)?;
    Ok(out)
}

fn write_value(out: &mut Vec<u8>, value: &Value, depth_left: usize) -> Result<(), CanonicalJsonError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            if !number.is_u64() && !number.is_i64() {
                return Err(CanonicalJsonError::NotAnInteger);
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => write_string(out, text),
        Value::Array(values) => write_array(out, values, inner(depth_left)?)?,
        Value::Object(members) => write_object(out, members, inner(depth_left)?)?,
    }
    Ok(())
}

fn inner(depth_left: usize) -> Result<usize, CanonicalJsonError> {
    depth_left.checked_sub(1).ok_or(CanonicalJsonError::TooDeep)
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn write_array(out: &mut Vec<u8>, values: &[Value], depth_left: usize) -> Result<(), CanonicalJsonError> {
    out.push(b'[');
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_value(out, value, depth_left)?;
    }
    out.push(b']');
    Ok(())
}

fn write_object(out: &mut Vec<u8>, members: &Map<String, Value>, depth_left: usize) -> Result<(), CanonicalJsonError> {
    // The map may be in insertion order, depending on features that other crates switch on. UTF-8 order is code point
    // order.
    let mut members: Vec<_> = members.iter().collect();
    members.sort_unstable_by_key(|(name, _)| name.as_str());
    out.push(b'{');
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        write_value(out, value, depth_left)?;
    }
    out.push(b'}');
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::strict_json::parse_strict_json;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(value: Value, expect: &str) {
        assert_eq!(String::from_utf8(to_canonical_json(&value).unwrap()).unwrap(), expect);
    }

    #[test]
    fn values_have_one_form() {
        check(
            json!({"b": 1, "a": [true, false, null], "é": -5, "": {}}),
            r#"{"":{},"a":[true,false,null],"b":1,"é":-5}"#,
        );
        check(
            json!("quote \" backslash \\ slash / newline \n é"),
            "\"quote \\\" backslash \\\\ slash / newline \n é\"",
        );
        check(json!(u64::MAX), "18446744073709551615");
        check(json!([[], {}]), "[[],{}]");
    }

    #[test]
    fn members_are_sorted_by_code_point() {
        check(
            json!({"\u{ffff}": 1, "\u{10000}": 2, "B": 3, "a": 4}),
            "{\"B\":3,\"a\":4,\"\u{ffff}\":1,\"\u{10000}\":2}",
        );
    }

    #[test]
    fn floats_and_deep_values_are_refused() {
        assert_eq!(
            to_canonical_json(&json!({"a": 1.5})),
            Err(CanonicalJsonError::NotAnInteger)
        );
        let deep = (0..=MAX_JSON_DEPTH).fold(Value::Null, |value, _| Value::Array(vec![value]));
        assert_eq!(to_canonical_json(&deep), Err(CanonicalJsonError::TooDeep));
    }

    /// JSON values without floats, a few levels deep.
    pub(crate) fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn white_space_and_member_order_do_not_matter(value in values()) {
            let canonical = to_canonical_json(&value).unwrap();
            for text in [serde_json::to_vec(&value).unwrap(), serde_json::to_vec_pretty(&value).unwrap()] {
                prop_assert_eq!(&to_canonical_json(&parse_strict_json(&text).unwrap()).unwrap(), &canonical);
            }
        }

        #[test]
        fn different_values_differ(left in values(), right in values()) {
            prop_assert_eq!(left == right, to_canonical_json(&left).unwrap() == to_canonical_json(&right).unwrap());
        }
    }
}
