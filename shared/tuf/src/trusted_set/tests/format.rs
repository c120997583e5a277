//! Files that are no metadata, or not quite.

use super::*;

#[track_caller]
fn root_refused(code: &str, change: impl FnOnce(&mut Value)) {
    let error = TrustedSet::new(&tampered(&root(1), change)).unwrap_err();
    assert_eq!(error.code(), code, "{error}");
}

#[test]
fn endless_data_is_cut_off_at_each_role() {
    let mut set = fresh();
    let limits = *set.limits();
    let endless = |role| vec![b' '; limits.bytes_for(role) + 1];
    assert_eq!(TrustedSet::new(&endless(Role::Root)).unwrap_err().code(), "too_large");
    refused(&mut set, "too_large", |set| set.update_root(&endless(Role::Root)));
    refused(&mut set, "too_large", |set| {
        set.update_timestamp(&endless(Role::Timestamp), today())
    });
    let mut set = trusting(&Versions::all(1).release());
    refused(&mut set, "too_large", |set| {
        set.update_snapshot(&endless(Role::Snapshot), today())
    });
    refused(&mut set, "too_large", |set| {
        set.update_targets(&endless(Role::Targets), today())
    });
}

#[test]
fn another_role_cannot_pass_for_this_one() {
    root_refused("wrong_type", |file| file["signed"]["_type"] = json!("targets"));
    root_refused("wrong_type", |file| file["signed"]["_type"] = json!(1));
    root_refused("wrong_type", |file| file["signed"] = json!([]));
}

#[test]
fn another_specification_is_refused() {
    for version in ["2.0.0", "0.9", "10.0", "1", "", "1.", "1.a", "1.0.0.0", "01.0"] {
        root_refused("spec_version", |file| file["signed"]["spec_version"] = json!(version));
    }
    root_refused("spec_version", |file| file["signed"]["spec_version"] = json!(1));
}

#[test]
fn later_minor_versions_are_accepted() {
    for version in ["1.0", "1.0.0", "1.1.0", "1.99.7"] {
        root_refused("sig_threshold", |file| file["signed"]["spec_version"] = json!(version));
    }
}

#[test]
fn malformed_fields_are_refused() {
    let signed = |field: &'static str, value: Value| {
        root_refused("parse", move |file| file["signed"][field] = value);
    };
    signed("version", json!(0));
    signed("version", json!(-1));
    signed("version", json!("1"));
    signed("version", json!(1.5));
    signed("version", Value::Null);
    signed("expires", json!("2030-01-01"));
    signed("expires", json!(1_893_456_000));
    signed("keys", json!([]));
    signed("roles", json!({}));
    root_refused("parse", |file| file["signed"]["roles"]["root"]["threshold"] = json!(0));
    root_refused("parse", |file| file["signatures"] = json!({}));
    root_refused("parse", |file| *file = json!([]));
}

#[test]
fn a_duplicate_member_is_refused() {
    let text = String::from_utf8(root(1)).unwrap();
    let doubled = text.replacen("\"version\":1", "\"version\":1,\"version\":1", 1);
    assert_ne!(text, doubled);
    assert_eq!(TrustedSet::new(doubled.as_bytes()).unwrap_err().code(), "parse");
}

#[test]
fn a_truncated_file_is_refused() {
    let bytes = root(1);
    for length in 0..bytes.len() {
        assert_eq!(
            TrustedSet::new(&bytes[..length]).unwrap_err().code(),
            "parse",
            "{length} bytes"
        );
    }
}

#[test]
fn a_root_with_keys_that_cannot_be_used_still_works() {
    let mut metadata = root_metadata(1, |_| {});
    let rsa = json!({"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "PEM"}});
    metadata
        .keys
        .insert(KeyId::new("rsa"), serde_json::from_value(rsa).unwrap());
    metadata.roles.root.keyids.insert(KeyId::new("rsa"));
    metadata.roles.root.keyids.insert(KeyId::new("absent"));
    assert!(TrustedSet::new(&sign(&metadata, &[ROOT])).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_trace(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut set = trusting(&Versions::all(1).release());
        let before = set.clone();
        prop_assert!(TrustedSet::new(&bytes).is_err());
        prop_assert!(set.update_root(&bytes).is_err());
        prop_assert!(set.update_timestamp(&bytes, today()).is_err());
        prop_assert!(set.update_snapshot(&bytes, today()).is_err());
        prop_assert!(set.update_targets(&bytes, today()).is_err());
        prop_assert_eq!(set, before);
    }

    #[test]
    fn one_changed_byte_never_changes_what_is_trusted(position in any::<prop::sample::Index>(), value in any::<u8>()) {
        let original = root(1);
        let mut bytes = original.clone();
        *position.get_mut(&mut bytes) = value;
        if let Ok(set) = TrustedSet::new(&bytes) {
            // Outside `signed` a byte may differ, such as the case of a hexadecimal digit.
            let expected = fresh();
            prop_assert_eq!(set.root(), expected.root());
        }
    }
}
